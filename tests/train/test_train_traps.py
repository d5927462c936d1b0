"""Silent failures made loud: zero signal, broken rewards, stale samplers, odd batch sizes,
memory.
"""

import itertools
import math

import pytest
import torch
from arithmetic import rounding
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums, explain
from laurel.core.sample import Completion
from laurel.train import loop
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.loop import train
from laurel.train.session import State
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def weights(setup):
    return {name: p.detach().clone() for name, p in setup.policy.trainable().items()}


def gradient_of(toy, folder, name="grpo", **options):
    """Parameters after one step, per configuration: equal parameters mean equal gradients."""
    setup, state = prepare_session(name, toy_config(toy, folder, **options))
    groups = loop.collect(setup, state, Sums())
    batch = loop.weigh(setup, state, groups, Sums())
    total = setup.terms[0].unit(batch).count
    for micro in batch.split(setup.config.token_budget):
        stats = setup.policy.logp(micro)
        loop.reduce_loss(
            setup.terms[0].objective(stats.logp, micro), setup.terms[0].unit(micro), total
        ).backward()
    return {name: p.grad.clone() for name, p in setup.policy.trainable().items()}


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "reinforce",
        "rloo",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "cispo",
        "reinforce_pp",
        "raft",
    ],
)
def test_T01_T44_micro_batches_change_no_gradient(name, toy, tmp_path):
    """T01, T44: prompts=3, G=5, any token budget: the gradient of one shot, to 1e-5 of the largest
    number in it.
    """
    options = {"reward": None} if name == "sft" else {"num_generations": 5}
    once = gradient_of(toy, tmp_path / "once", name, prompts_per_step=3, **options)
    for budget in (1, 20, 31):
        split = gradient_of(
            toy, tmp_path / str(budget), name, prompts_per_step=3, token_budget=budget, **options
        )
        bound = rounding(*once.values(), units=64, least=0)
        for key, value in once.items():
            assert torch.allclose(split[key], value, rtol=0, atol=bound), key


def test_T33_loss_zero_is_not_gradient_zero(toy, tmp_path):
    """T33: on-policy GRPO with rewards that differ: the loss is about 0, the gradient is not."""
    line = train(
        "grpo", toy_config(toy, tmp_path, max_steps=1, prompts_per_step=8), quiet=True
    ).metrics()[0]
    assert line["grad_norm"] > 1e-3


def test_T34_equal_rewards_move_nothing(toy, tmp_path):
    """T34, A30: no signal: no step, not even weight decay, and the log says so."""
    setup, state = prepare_session(
        "grpo", toy_config(toy, tmp_path, reward="constant", weight_decay=0.1)
    )
    before, sums = weights(setup), Sums()
    loop.step(setup, state, sums)
    means = sums.means()
    assert all(torch.equal(before[name], p) for name, p in setup.policy.trainable().items())
    assert (
        means["informative_fraction"] == 0
        and means["zero_signal"] == 1
        and means["frac_reward_zero_std"] == 1
    )


def test_T52_one_broken_sample_is_excluded_and_the_run_goes_on(toy, tmp_path):
    """T52: the culprit is named in the samples and counted; the others keep their scores."""
    run = train(
        "rloo",
        toy_config(toy, tmp_path, reward="raises_once", max_steps=2, max_failed_fraction=0.9),
        quiet=True,
    )
    failed = [line for line in run.samples() if line["results"]["raises_once"]["kind"] == "failed"]
    assert failed and all(
        "8" in line["completion"] and line["reward"] is None and line["weight"] == 0
        for line in failed
    )
    assert all("an eight" in line["results"]["raises_once"]["reason"] for line in failed)
    assert run.metrics()[0]["failed_fraction"] > 0
    fine = [line for line in run.samples() if line["results"]["raises_once"]["kind"] == "score"]
    assert all(line["reward"] == line["completion"].count("7") / 4 for line in fine)


@pytest.mark.parametrize("reward", ["too_short", "hangs", "no_opinion"])
def test_rewards_that_break_for_all_stop_the_run(reward, toy, tmp_path):
    """Wrong length, a hang, no opinion at all: an error that names the reward, in bounded time,
    never a zero.
    """
    with pytest.raises(LaurelError, match=reward):
        train(
            "grpo",
            toy_config(toy, tmp_path, reward=reward, max_steps=2, reward_timeout=0.5),
            quiet=True,
        )


def test_nan_rewards_are_failures(toy, tmp_path):
    run = train("grpo", toy_config(toy, tmp_path, reward="not_a_number", max_steps=1), quiet=True)
    for line in run.samples():
        assert (line["reward"] is None) == line["completion"].startswith("1")


def test_T39_a_sampler_with_other_weights_stops_the_run(toy, tmp_path, monkeypatch):
    """T39: log-probs that are not the trainer's: the run stops and names the p99 gap."""
    real = loop.rollout

    def stale(generator, rows, draw):
        groups = real(generator, rows, draw)
        return [loop_shift(group) for group in groups]

    def loop_shift(group):
        from dataclasses import replace

        return replace(
            group,
            samples=tuple(replace(s, logps=tuple(x - 0.3 for x in s.logps)) for s in group.samples),
        )

    monkeypatch.setattr(loop, "rollout", stale)
    with pytest.raises(LaurelError, match="log-prob gap: p99"):
        train("grpo", toy_config(toy, tmp_path, max_steps=2), quiet=True)


def test_T10_start_up_check_refuses_a_wrong_sampler(toy, tmp_path, monkeypatch):
    """T10, A5: |ratio - 1| at the start above 1e-4 refuses to train."""
    from laurel.rollout.sampler import Sampler

    real = Sampler.generate
    monkeypatch.setattr(
        Sampler,
        "generate",
        lambda *a, **k: [
            Completion(c.ids, tuple(x * 0.9 for x in c.logps), c.finish) for c in real(*a, **k)
        ],
    )
    with pytest.raises(LaurelError, match="ratio"):
        train("grpo", toy_config(toy, tmp_path, max_steps=1), quiet=True)


def test_T32_no_supervised_token_is_an_error(toy, tmp_path):
    """T32: max_length cuts every answer off: an error before step 1, not a loss of 0."""
    with pytest.raises(UsageError, match="supervised"):
        train("sft", toy_config(toy, tmp_path, reward=None, max_length=2), quiet=True)


def test_T67_metrics_are_weighted_by_what_they_count(toy, tmp_path):
    """T67: the same step in micro-batches of any size logs the same numbers."""
    lines = []
    for budget in (1, 10_000):
        run = train(
            "grpo",
            toy_config(toy, tmp_path / str(budget), max_steps=1, token_budget=budget, beta=0.1),
            quiet=True,
        )
        lines.append(run.metrics()[0])
    for name in ("entropy", "kl", "approx_kl", "reward", "sampler_gap/mean", "grad_norm"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-4, abs=1e-6), name


def test_every_metric_has_a_meaning(toy, tmp_path):
    """A60: whatever the loop writes, the catalogue explains."""
    runs = [
        train(
            "dapo",
            toy_config(
                toy,
                tmp_path / "rl",
                max_steps=2,
                beta=0.1,
                eval_steps=1,
                eval_dataset=toy["dataset"],
                eval_size=4,
            ),
            quiet=True,
        ),
        train(
            "sft",
            toy_config(
                toy,
                tmp_path / "sft",
                reward=None,
                max_steps=2,
                eval_steps=1,
                eval_dataset=toy["dataset"],
                eval_size=4,
            ),
            quiet=True,
        ),
    ]
    names = {name for run in runs for line in run.metrics() for name in line} - {
        "run",
        "step",
        "time",
    }
    assert {"eval/accuracy", "eval/nll", "kl", "resampled_groups"} <= names
    for name in names:
        assert explain(name).text if hasattr(explain(name), "text") else explain(name)


def test_learning_rate_shapes():
    from laurel.core.config import TrainConfig
    from laurel.train.session import learning_rate

    config = TrainConfig(
        learning_rate=1.0, warmup_steps=4, max_steps=14, lr_scheduler_type="cosine"
    )
    rates = [learning_rate(step, config) for step in range(1, 15)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[4:])) and 0 < rates[-1] < 0.05
    linear = config.model_copy(update={"lr_scheduler_type": "linear"})
    assert learning_rate(9, linear) == pytest.approx(0.6)


def test_dynamic_sampling_replaces_and_is_bounded(toy, tmp_path):
    """Groups without signal make room for new prompts; when nothing has signal it stops after
    max_resamples rounds.
    """
    setup, state = prepare_session(
        "dapo", toy_config(toy, tmp_path, reward="constant", max_resamples=2)
    )
    sums = Sums()
    groups = loop.collect(setup, state, sums)
    assert len(groups) == 4 and state.cursor == 4 * 3
    assert sums.means()["resampled_groups"] == 8


def test_T65_every_prompt_once_per_epoch(toy, tmp_path):
    """T65: 8 prompts, 3 per step: after 8 steps each was drawn exactly three times, whatever the
    step size.
    """
    setup, state = prepare_session(
        "rloo", toy_config(toy, tmp_path, prompts_per_step=3, num_generations=2)
    )
    drawn = [row.id.split("~")[0] for _ in range(8) for row in loop.next_rows(setup, state, 3)]
    assert sorted(drawn) == sorted(3 * [row.id for row in setup.rows])


def test_T41_loading_a_checkpoint_gives_its_weights_back(toy, tmp_path):
    """T41: the parameters after a resume are the saved ones."""
    run = train("grpo", toy_config(toy, tmp_path, max_steps=2), quiet=True)
    setup, state = prepare_session("grpo", toy_config(toy, tmp_path, max_steps=3, resume=True))
    from safetensors.torch import load_file

    saved = load_file(finished_checkpoints(run.checkpoints)[0] / "weights.safetensors")
    assert state.step == 2 and isinstance(state, State)
    assert all(torch.equal(saved[name], p) for name, p in setup.policy.trainable().items())


def test_duplicates_within_a_group_are_measured(toy, tmp_path):
    """A56: identical samples in a group show in the metrics, and fresh ones differ."""
    line = train("grpo", toy_config(toy, tmp_path, max_steps=1), quiet=True).metrics()[0]
    assert 0 <= line["duplicates"] < 0.5 and not math.isnan(line["duplicates"])


def test_T38_memory_stays_level_over_300_steps(toy, tmp_path):
    """T38: 300 tiny GRPO steps: resident memory grows by less than 20 MB after the first 60."""
    lines = train(
        "grpo",
        toy_config(toy, tmp_path, max_steps=300, prompts_per_step=2, num_generations=4),
        quiet=True,
    ).metrics()
    used = [line["rss_mb"] for line in lines]
    assert max(used[60:]) - used[60] < 20, (used[60], max(used))


def test_a_starter_for_a_file_is_refused_before_a_run_begins(tmp_path):
    """A folder that a failed start left behind would refuse the next try."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    config = TrainConfig(
        dataset=str(tmp_path / "pairs.jsonl"),
        output_dir=str(tmp_path / "run"),
        eval_size=0,
        prompts_per_step=2,
    )
    with pytest.raises(UsageError, match="--model scratch"):
        prepare_session("reward", config)
    assert not (tmp_path / "run").exists()
