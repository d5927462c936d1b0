"""The page: self-contained, escaped, right about the run, and written for any state a run can be
in.
"""

import json
import math
import re
import time
from html.parser import HTMLParser

import pytest

from laurel.core.errors import UsageError
from laurel.core.run import Run
from laurel.report import collect
from laurel.report.collect import first_and_last, read_story
from laurel.report.page import bars, duration, groups, write_report
from laurel.report.panels import level, panels

CONFIG = {
    "algorithm": "grpo",
    "model": "starter",
    "dataset": "addition",
    "seed": 0,
    "max_steps": 12,
}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Balanced(HTMLParser):
    """Every tag that opens closes, in order; ids do not repeat."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.attributes = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(folder):
    html = write_report(folder).read_text(encoding="utf-8")
    page = Balanced()
    page.feed(html)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    return html, page


def sample(i, reward=1.0, **more):
    return {
        "prompt_id": "p1",
        "sample": i,
        "prompt": "2+2=",
        "completion": str(3 + i),
        "finish": "eos",
        "reward": reward,
        "weight": 0.5,
        "length": 2,
        "results": {
            "exact": {
                "kind": "score",
                "value": reward or 0.0,
                "reason": f"answer {3 + i}, expected 4",
            }
        },
        **more,
    }


def a_run(folder, steps=12, **config):
    """A run whose reward rises and whose metrics are healthy."""
    run = Run.create(folder, {**CONFIG, **config}, resume=False)
    for step in range(1, steps + 1):
        run.log_samples(step, [sample(0, 0.0), sample(1)])
        metrics = {
            "reward": 0.3 + 0.05 * step,
            "kl": 0.01 * step,
            "entropy": 1 - 0.03 * step,
            "informative_fraction": 0.8,
            "completions/mean_length": 2.0,
            "completions/clipped_ratio": 0.0,
            "grad_norm": 1.0,
            "failed_fraction": 0.0,
            "seconds/sample": 0.2,
            "seconds/score": 0.01,
            "seconds/update": 0.1,
            "seconds/step": 0.31,
            "tokens_per_second": 900.0,
            "clip_ratio/region": 0.01,
            "my/own": 7.0,
        }
        run.log(
            step,
            metrics
            | ({"eval/accuracy": 0.3 + 0.05 * step, "eval/samples": 100} if step % 4 == 0 else {}),
        )
    return run


def test_a_page_needs_nothing_but_itself(tmp_path):
    a_run(tmp_path)
    html, page = parsed(tmp_path)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    fetched = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "xlink:href", "action") and not value.startswith("#")
    ]
    assert fetched == [] and "@import" not in html and "url(" not in html.replace("url(#", "")
    assert len(html) < 600_000


def test_a_page_tells_the_story(tmp_path):
    run = a_run(tmp_path)
    html, _ = parsed(tmp_path)
    assert "Held-out accuracy rose from 50.0 % to 90.0 %." in html and "from 100 prompts" in html
    assert "Reward rose from 0.4 to 0.85." in html
    assert "Nothing looks wrong" in html
    for text in (
        "grpo on addition",
        run.id[:8],
        "Before: step 1",
        "After: step 12",
        "answer 4, expected 4",
        "advantage +0.5",
        "max_steps: 12",
    ):
        assert text in html
    assert "KL of the policy from the reference" in html and "a metric of your own" in html
    titles = [panel.title for panel in panels(read_story(tmp_path))]
    assert {
        "Reward",
        "Held-out accuracy",
        "KL from the reference",
        "Entropy",
        "Length of completions",
        "Completions cut off",
    } <= set(titles)
    assert {
        "Clipped tokens",
        "Informative groups",
        "Speed",
        "Gradient norm",
        "Where the time goes",
    } <= set(titles)


EVIL = "<script>alert(1)</script></style><img src=x onerror=alert(1)>"


def test_everything_foreign_is_escaped(tmp_path):
    run = Run.create(tmp_path, {**CONFIG, "dataset": EVIL, "model": EVIL}, resume=False)
    line = sample(0, prompt=EVIL, completion=EVIL + "\x00\x1b[31m", finish=EVIL)
    line["results"] = {EVIL: {"kind": EVIL, "reason": EVIL}}
    run.log_samples(
        1, [line, sample(1, prompt_id="chat", prompt=[{"role": EVIL, "content": EVIL}])]
    )
    for step in (1, 2):
        run.log(
            step,
            {"reward": 0.5, EVIL: math.nan, f"rewards/{EVIL}/mean": 1.0, "rewards/b/mean": 2.0},
        )
    html, page = parsed(tmp_path)
    assert "script" not in page.tags and "img" not in page.tags and html.count("</style>") == 1
    assert html.count("&lt;script&gt;") > 5 and "\x00" not in html and "\x1b" not in html


def test_failures_and_abstentions_show_their_reason(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    failed = {
        "slow": {"kind": "failed", "reason": "no answer within 2 s"},
        "judge": {"kind": "abstain", "reason": "not my subject"},
    }
    run.log_samples(
        1, [sample(0, None, results=failed, finish="length", completion="", weight=0.0)]
    )
    run.log(1, {"reward": 0.5})
    html, _ = parsed(tmp_path)
    for text in ("excluded", "no answer within 2 s", "not my subject", "cut off", "(empty)"):
        assert text in html


def test_supervised_runs(tmp_path):
    run = Run.create(tmp_path, {**CONFIG, "algorithm": "sft"}, resume=False)
    for step in range(1, 13):
        run.log(
            step,
            {
                "nll": 3 - 0.1 * step,
                "loss": 3 - 0.1 * step,
                "supervised_tokens": 500.0,
                "learning_rate": 1e-4,
            },
        )
    html, _ = parsed(tmp_path)
    assert (
        "Loss per supervised token fell from 2.8 to 1.9." in html
        and 'class="verdict good main"' in html
    )
    assert "Samples" not in html


def test_an_evaluation_by_itself(tmp_path):
    figures = {
        "accuracy": {"value": 0.8, "low": 0.49, "high": 0.94, "n": 10, "level": 0.95},
        "length": {"value": 4.0, "low": 3.0, "high": 5.0, "n": 10},
    }
    (tmp_path / "eval.json").write_text(
        json.dumps(
            {
                "config": {"model": "m", "dataset": "addition"},
                "figures": figures,
                "prompts": 10,
                "failed": 0,
            }
        )
    )
    html, page = parsed(tmp_path)
    assert (
        "evaluation on addition" in html
        and "0.49 to 0.94, n = 10" in html
        and "Verdict" not in html
    )
    assert sum(name == "class" and value == "whisker" for _, name, value in page.attributes) == 1, (
        "only shares are drawn as bars"
    )
    assert [row["name"] for row in bars(json.loads((tmp_path / "eval.json").read_text()))] == [
        "accuracy",
        "length",
        "prompts",
        "failed",
    ]


def test_unfinished_and_running_runs(tmp_path):
    run = a_run(tmp_path, steps=5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"run": "')
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"run": "')
    html, _ = parsed(tmp_path)
    assert "5 of 12 steps are logged" in html and "After: step 5" in html
    run.note({"resumed": [{"time": 0.0, "changed": {}}]})
    assert "continued 1 time(s)" in parsed(tmp_path)[0]


def test_one_step(tmp_path):
    a_run(tmp_path, steps=1)
    html, _ = parsed(tmp_path)
    assert "Nothing to compare yet" in html and "Step 1" in html and "After" not in html


def test_nothing_to_report_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UsageError, match="no run and no evaluation"):
        write_report(tmp_path)
    Run.create(tmp_path, CONFIG, resume=False)
    with pytest.raises(UsageError, match="has not logged a step yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_long_runs_stay_small_and_quick(tmp_path):
    run = Run.create(tmp_path, {**CONFIG, "max_steps": 5000}, resume=False)
    lines = [
        json.dumps(
            {"run": run.id, "step": s, "time": s, "reward": s / 5000, "kl": 0.1, "entropy": 1.0}
        )
        for s in range(1, 5001)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    began = time.perf_counter()
    html, _ = parsed(tmp_path)
    assert len(html) < 400_000 and time.perf_counter() - began < 20


def test_a_metric_that_is_never_finite_is_named_not_drawn(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step in (1, 2, 3):
        run.log(step, {"reward": 0.1, "kl": math.inf})
    html, _ = parsed(tmp_path)
    assert (
        "kl is not finite" in html
        and "steps 1, 2, 3" in html
        and "KL from the reference" not in html
    )


@pytest.mark.parametrize("tail", [100, 700, 10**6])
def test_first_and_last_equal_reading_everything(tmp_path, monkeypatch, tail):
    monkeypatch.setattr(collect, "TAIL_BYTES", tail)
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step in range(1, 8):
        run.log_samples(step, [sample(i) for i in range(3)])
    first, last = first_and_last(tmp_path / "samples.jsonl", run.id)
    assert first == run.samples(1)
    assert last and all(line in run.samples(7) for line in last) and last[-1] == run.samples(7)[-1]
    if tail == 10**6:
        assert last == run.samples(7)


def test_before_and_after_show_the_same_prompts_where_any_was_asked_twice(tmp_path):
    """Prompt a is asked at steps 1 and 6, b at 2 and 3, too close together; c to f once each."""
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step, prompt in enumerate("abbcda", 1):
        run.log_samples(
            step, [sample(i, prompt=prompt, prompt_id=f"{prompt}~{step}") for i in range(2)]
        )
        run.log(step, {"reward": 0.1 * step})
    told = read_story(tmp_path)
    assert {(line["prompt"], line["step"]) for line in told.first} == {("a", 1)}
    assert {(line["prompt"], line["step"]) for line in told.last} == {("a", 6)}
    html, _ = parsed(tmp_path)
    assert (
        "The same prompts both times" in html
        and "Before: step 1" in html
        and "After: step 6" in html
    )


def test_other_prompts_before_and_after_are_called_so(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step, prompt in enumerate("abc", 1):
        run.log_samples(step, [sample(0, prompt=prompt)])
        run.log(step, {"reward": 0.1 * step})
    html, _ = parsed(tmp_path)
    assert "Other prompts before and after: none was asked early and again late" in html


def test_what_never_changed_is_folded(tmp_path):
    """Constant in range: a line in a table. Constant out of range: a picture, with its alarm."""
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step in range(1, 7):
        run.log(
            step, {"reward": 0.1 * step, "completions/clipped_ratio": 0.0, "failed_fraction": 0.5}
        )
    html, _ = parsed(tmp_path)
    assert "1 that never changed" in html
    folded = html[html.index("1 that never changed") :]
    assert (
        "Completions cut off" in folded
        and "Failed rewards" not in folded.partition("</details>")[0]
    )
    assert html.count("<figure") == 2


def test_groups_show_the_best_and_the_worst():
    lines = [sample(i, reward) for i, reward in enumerate([0.1, 0.9, None, 0.5, 0.7, 0.2])]
    ((prompt, shown),) = groups(lines)
    assert prompt == "2+2=" and [line["reward"] for line in shown] == [0.9, 0.7, 0.1, None]
    assert len(groups([sample(0, prompt_id=str(i)) for i in range(9)])) == 4


def test_durations():
    assert [duration(s) for s in (0.25, 48, 200, 7500)] == [
        "0.2 s",
        "48 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


def test_colours_belong_to_the_page(tmp_path):
    """Both themes: no colour is fixed inside a picture."""
    a_run(tmp_path)
    for panel in panels(read_story(tmp_path)):
        assert not re.search(r"(stroke|fill):\s*#", panel.svg) and "var(--line1)" in panel.svg


@pytest.mark.parametrize(
    ("values", "nothing"),
    [
        ([1.0, 1.0], True),
        ([1.0, 1.00001, 0.99999], True),
        ([1e-13, 3e-12, 0.0], True),
        ([0.5, 0.501], False),
        ([0.0, 1e-6], False),
        ([-1.0, 1.0], False),
    ],
)
def test_a_picture_needs_a_difference_to_be_seen(values, nothing):
    """A ratio of 1 but for rounding, a divergence of 1e-13: an axis of equal labels says
    nothing.
    """
    assert level(values) is nothing
