"""What a report says of a run: worked values, and each thing it must not overlook."""

import math

import pytest

from laurel.core.metrics import explain
from laurel.core.run import Run
from laurel.report.collect import Story, read_story
from laurel.report.panels import PANELS
from laurel.report.plots import smoothed, thin_out
from laurel.report.verdict import change, changes, findings, out_of_range, show, window


def story(tmp_path, **series):
    """A story whose metrics (`a__b` is a/b) have these values, one per step."""
    named = {name.replace("__", "/"): values for name, values in series.items()}
    run = Run.create(tmp_path, {"max_steps": max(map(len, named.values()))}, resume=False)
    for step in range(max(map(len, named.values()))):
        run.log(
            step + 1, {name: values[step] for name, values in named.items() if step < len(values)}
        )
    return read_story(tmp_path)


def titles(told: Story) -> list[str]:
    return [finding.title for finding in findings(told)]


def test_a_rise_is_a_rise(tmp_path):
    """20 steps: first 3 and last 3. Means 1 and 18, so +17; the interval of steps 0,1,2 against
    17,18,19 lies within +15 to +19.
    """
    told = story(tmp_path, reward=[float(i) for i in range(20)])
    (item,) = changes(told)
    assert (item.before, item.after, item.window, item.kind) == (1, 18, 3, "good")
    assert (
        item.difference.value == 17 and 15 <= item.difference.low < 17 < item.difference.high <= 19
    )
    assert (
        item.sentence == "Reward rose from 1 to 18."
        and "first and the last 3 logged values" in item.evidence
    )


def test_noise_is_not_a_rise(tmp_path):
    told = story(tmp_path, reward=[0.5 + (0.1 if i % 2 else -0.1) for i in range(39)] + [0.62])
    assert changes(told)[0].kind == "flat" and "did not clearly change" in changes(told)[0].sentence


def test_a_fall_is_bad_for_reward_and_good_for_loss(tmp_path):
    told = story(
        tmp_path, reward=[1 - i / 20 for i in range(20)], nll=[2 - i / 20 for i in range(20)]
    )
    assert [(item.name, item.kind) for item in changes(told)] == [
        ("reward", "bad"),
        ("nll", "good"),
    ]


def test_few_values_have_no_interval(tmp_path):
    told = story(tmp_path, reward=[0.1, 0.2, 0.3, 0.4])
    assert changes(told)[0].difference is None and changes(told)[0].kind == "unsure"
    assert change(story(tmp_path / "one", reward=[0.1]), "reward", "Reward", "up") is None


def test_accuracy_has_newcombes_interval(tmp_path):
    """48/80 -> 56/80. Wilson: (.490455, .700388) and (.592359, .789394); so the difference is
    .1 - sqrt(.107641^2 + .100388^2) = -.0472 to .1 + sqrt(.089394^2 + .109545^2) = .2414: not
    called a rise.
    """
    (item,) = changes(story(tmp_path, eval__accuracy=[0.6, 0.7], eval__samples=[80, 80]))
    assert (
        round(item.difference.low, 4) == -0.0472
        and round(item.difference.high, 4) == 0.2414
        and item.kind == "flat"
    )
    assert changes(story(tmp_path / "b", eval__accuracy=[0.6, 0.7]))[0].difference is None


def test_a_healthy_run_raises_nothing(tmp_path):
    told = story(
        tmp_path,
        reward=[i / 20 for i in range(20)],
        kl=[0.01 * i for i in range(20)],
        informative_fraction=[0.7] * 20,
        entropy=[0.9] * 20,
        failed_fraction=[0.0] * 20,
        duplicates=[0.6] * 20,
        completions__mean_length=[4.0] * 20,
        clip_ratio__region=[0.02] * 20,
    )
    assert titles(told) == []


@pytest.mark.parametrize(
    ("series", "title"),
    [
        ({"kl": [0.01] * 10 + [2.0] * 10}, "kl is 2 at last."),
        ({"kl": [-0.1] * 20}, "kl is -0.1 at last."),
        ({"completions__clipped_ratio": [0.9] * 20}, "completions/clipped_ratio is 0.9 at last."),
        ({"frac_reward_zero_std": [0.95] * 20}, "frac_reward_zero_std is 0.95 at last."),
        (
            {"rewards__math__failed": [0.0] * 19 + [0.125]},
            "rewards/math/failed reached 0.125 at step 20.",
        ),
        ({"sampler_gap__p99": [0.5] * 20}, "sampler_gap/p99 is 0.5 at last."),
        ({"supervised_tokens": [0.0] * 20}, "supervised_tokens is 0 at last."),
        ({"entropy": [1.0] * 10 + [0.01] * 10}, "Entropy has collapsed."),
        (
            {"duplicates": [0.9] * 20, "completions__mean_length": [60.0] * 20},
            "Samples repeat each other.",
        ),
        (
            {"completions__mean_length": [10.0] * 10 + [90.0] * 10},
            "Completions changed their length.",
        ),
        (
            {
                "logps__chosen": [-10 - i / 2 for i in range(20)],
                "rewards__accuracies": [0.9, 0.8] * 10,
            },
            "Chosen answers become less likely.",
        ),
        ({"grad_norm": [1.0] * 10 + [math.nan] + [1.0] * 9}, "grad_norm is not finite."),
    ],
)
def test_what_must_not_be_overlooked(tmp_path, series, title):
    """A60: each comes with what to look at first."""
    found = findings(story(tmp_path, **series))
    assert [finding.title for finding in found] == [title]
    assert found[0].level in ("bad", "warn") and found[0].check


def test_T34_steps_without_a_signal_are_counted(tmp_path):
    """T34, A18: 5 of 20 steps had no informative group; the report says so and which."""
    (found,) = findings(story(tmp_path, informative_fraction=[0.5] * 15 + [0.0] * 5))
    assert (
        found.title == "Steps without a signal."
        and "25%" in found.text
        and "steps 16, 17, 18, 19, 20" in found.text
    )


def test_a_collapse_on_a_solved_task_is_only_a_note(tmp_path):
    told = story(tmp_path, reward=[i / 20 for i in range(20)], entropy=[1.0] * 10 + [0.01] * 10)
    assert [(finding.level, finding.title) for finding in findings(told)] == [
        ("note", "Entropy has collapsed.")
    ]


def test_A26_only_the_margin_is_maximised(tmp_path):
    """A26: chosen answers sink while pairs are told apart better: a note with both numbers. Level
    or rising ones, or a drop in both:
    nothing. Means of the first and the last three: -10.5 and -19, .53 and .95."""
    falls, rises = [-10 - i / 2 for i in range(20)], [0.5 + i / 40 for i in range(20)]
    (found,) = findings(story(tmp_path / "a", logps__chosen=falls, rewards__accuracies=rises))
    assert (
        found.level == "note"
        and "from -10.5 to -19," in found.text
        and "from 0.525 to 0.95:" in found.text
    )
    for i, (chosen, right) in enumerate(
        [(falls[::-1], rises), ([-10.0, -11.0] * 10, rises), (falls, rises[::-1])]
    ):
        assert (
            findings(story(tmp_path / str(i), logps__chosen=chosen, rewards__accuracies=right))
            == []
        )


def test_the_loss_of_preferences_is_no_headline(tmp_path):
    """nll of pairs holds the rejected answers, whose likelihood is meant to fall."""
    told = story(
        tmp_path,
        nll=[1 + i / 20 for i in range(20)],
        logps__chosen=[-9.0] * 20,
        rewards__accuracies=[0.5 + i / 40 for i in range(20)],
    )
    assert [(item.name, item.kind) for item in changes(told)] == [("rewards/accuracies", "good")]


def test_the_worst_comes_first(tmp_path):
    told = story(tmp_path, kl=[2.0] * 20, loss=[math.inf] * 20)
    assert [finding.level for finding in findings(told)] == ["bad", "warn"]


def test_numbers_as_people_write_them():
    shown = [show(value) for value in (0.0, 1.0, 0.12345, 12345.6, 1e-5, 1234567.0, None, -0.5)]
    assert shown == ["0", "1", "0.123", "12 346", "1.0e-05", "1 234 567", "not finite", "-0.5"]


def test_windows():
    """A tenth of the run, at least 3 where there are 6, never more than half or 25."""
    assert [window(n) for n in (1, 2, 4, 6, 20, 100, 1000)] == [1, 1, 2, 3, 3, 10, 25]


def test_ranges_come_from_the_catalogue():
    assert (
        out_of_range(0.6, explain("kl"))
        and not out_of_range(0.4, explain("kl"))
        and not out_of_range(9, None)
    )


def test_every_panel_is_in_the_catalogue():
    for _, names in PANELS:
        for name in names:
            assert explain(name).what


def test_smoothing_and_thinning():
    """A constant stays; NaN is left out; 1000 points become 334 blocks of 3 whose first is the mean
    of 0, 1, 2.
    """
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smoothed([1.0, math.nan, 3.0]) == [1.0, 2.0, 3.0]
    blocks = thin_out([(i, float(i)) for i in range(1000)])
    assert len(blocks) == 334 and blocks[0] == (2, 1.0) and blocks[-1] == (999, 999.0)
    assert thin_out([(1, None), (2, 1.0)]) == [(1, None), (2, 1.0)]


def said(text, prompt, step, length=20):
    return {
        "prompt_id": prompt,
        "sample": 0,
        "prompt": prompt,
        "completion": text,
        "reward": 1.0,
        "weight": 0.0,
        "length": length,
    }


@pytest.mark.parametrize(
    ("length", "share", "found"), [(20, 5, True), (20, 20, False), (4, 5, False)]
)
def test_one_answer_to_every_prompt_is_seen(tmp_path, length, share, found):
    """One text in five to prompts that differ is a collapse, in every group another one; one in
    twenty is not, nor are short answers.
    """
    run = Run.create(tmp_path, {"max_steps": 3}, resume=False)
    for step in (1, 2, 3):
        texts = [
            f"{step} {i}" if i % share or step == 1 else "Once upon a time there was a cat"
            for i in range(40)
        ]
        run.log_samples(
            step, [said(text, f"p{step}-{i}", step, length) for i, text in enumerate(texts)]
        )
        run.log(step, {"reward": 0.1 * step})
    seen = [
        finding
        for finding in findings(read_story(tmp_path))
        if finding.title == "Different prompts get the same answer."
    ]
    assert bool(seen) == found
    if found:  # 16 of the last 120 lines, or 13 %
        assert (
            "13% of the last answers, to 16 different prompts" in seen[0].text
            and "Once upon a time" in seen[0].text
        )


def test_a_judge_that_training_never_saw_is_held_against_its_own_peak(tmp_path):
    """120 steps in 12 blocks: up to .6 in the middle and back to .3 is told with both numbers; up
    and level is not; nor is a reward
    that weighs something."""
    noise = [0.01 if i % 2 else -0.01 for i in range(120)]
    hill = [min(i, 120 - i) / 100 + noise[i] for i in range(120)]
    for name, weights, values, expected in (
        ("a", [1.0, 0.0], hill, True),
        ("b", [1.0, 0.0], [min(i, 60) / 100 + noise[i] for i in range(120)], False),
        ("c", [1.0, 0.5], hill, False),
    ):
        run = Run.create(
            tmp_path / name,
            {"max_steps": 120, "rewards": ["model:x", "file.py:gold"], "reward_weights": weights},
            resume=False,
        )
        for step, value in enumerate(values, 1):
            run.log(step, {"reward": step / 100, "rewards/gold/mean": value})
        found = [
            finding
            for finding in findings(read_story(tmp_path / name))
            if finding.title == "Over-optimised."
        ]
        assert bool(found) == expected, name
        if expected:
            assert (
                "rewards/gold/mean" in found[0].text
                and "from 0.55" in found[0].text
                and "to 0.055" in found[0].text
            )


def test_nothing_looks_wrong_only_where_every_metric_was_in_range_at_every_step(tmp_path):
    """KL beyond its range for two steps in the middle, and back: a note names it; a metric that is
    out at last is told once.
    """
    kl = [0.01] * 5 + [1e4] * 2 + [0.01] * 13
    (found,) = findings(
        story(
            tmp_path,
            kl__sequence=[1.0] * 20,
            reward=[0.5] * 20,
            sampler_gap__mean=[1.0 if v > 1 else 0.0 for v in kl],
        )
    )
    assert (
        found.level == "note"
        and found.title == "Out of range for a while."
        and "sampler_gap/mean (steps 6, 7)" in found.text
    )
