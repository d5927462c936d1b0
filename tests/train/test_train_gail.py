"""Adversarial imitation end to end: sevens learned from demonstrations alone, resumed bit by bit,
and what is refused.
"""

import json

import pytest
import torch
from arithmetic import agree, rounding
from seeds import SEEDS
from test_train_resume import final_weights, same
from toy import HERE, make_toy, toy_config

from laurel.core.errors import UsageError
from laurel.core.metrics import Sums, explain
from laurel.train import adversary, loop
from laurel.train.loop import train
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def gail_config(toy, folder, **options):
    """No reward: demonstrations are the toy's completions, cut at four tokens as samples are."""
    return toy_config(
        toy, folder, reward=None, **{"max_completion_length": 4, "max_steps": 40, **options}
    )


def share_of_sevens(run):
    """By step, of the samples; demonstrations left out."""
    by_step = {}
    for line in run.samples():
        if line["version"] != adversary.NOT_SAMPLED:
            by_step.setdefault(line["step"], []).append(line["completion"].count("7") / 4)
    return [sum(found) / len(found) for _, found in sorted(by_step.items())]


@pytest.mark.parametrize("seed", SEEDS)
def test_sevens_are_learned_from_demonstrations_alone(seed, toy, tmp_path):
    """From about .05 to nearly all; the discriminator starts at exactly 1/2, tells the two apart,
    and in the end it cannot.
    """
    run = train("gail", gail_config(toy, tmp_path, seed=seed), quiet=True)
    found, lines = share_of_sevens(run), run.metrics()
    assert found[0] < 0.2 and sum(found[-5:]) / 5 > 0.85, found
    first = lines[0]
    assert (
        first["discriminator/demonstrations"]
        == first["discriminator/samples"]
        == first["discriminator/accuracy"]
        == 0.5
    )
    assert (
        first["discriminator/loss"] == pytest.approx(0.6931472, abs=1e-6) and first["reward"] == 0
    )
    assert max(line["discriminator/accuracy"] for line in lines) > 0.9
    assert lines[-1]["discriminator/demonstrations"] - lines[-1]["discriminator/samples"] < 0.2
    for line in lines:
        for name in line.keys() - {"run", "step", "time"}:
            explain(name)


@pytest.mark.parametrize(
    "options",
    [
        {"imitation_reward": "gail"},
        {"imitation_reward": "log_d"},
        {"beta": 0.02},
        {"label_smoothing": 0.1},
    ],
)
def test_every_arrangement_learns(options, toy, tmp_path):
    found = share_of_sevens(
        train("gail", gail_config(toy, tmp_path, max_steps=60, **options), quiet=True)
    )
    assert sum(found[-5:]) / 5 - found[0] > 0.4, found


def test_resumed_gail_is_the_unbroken_run(toy, tmp_path):
    """T59: the discriminator and its optimiser state come back bit by bit, at a learning rate of
    its own.
    """
    options = {"discriminator_rate": 0.5, "beta": 0.01}
    whole = train("gail", gail_config(toy, tmp_path / "whole", max_steps=6, **options), quiet=True)
    for stop in (2, 6):
        parts = train(
            "gail",
            gail_config(toy, tmp_path / "parts", max_steps=stop, resume=True, **options),
            quiet=True,
        )
    weights = final_weights(whole)
    assert same(weights, final_weights(parts)) and any(
        name.startswith("discriminator.body") for name in weights
    )
    keys = ("loss", "discriminator/loss", "reward", "grad_norm")
    assert [[line[key] for key in keys] for line in whole.metrics()] == [
        [line[key] for key in keys] for line in parts.metrics()
    ]


def test_a_rate_is_a_multiple_of_the_learning_rate(toy, tmp_path):
    """AdamW's first step is the learning rate for every number with a gradient: half as far at half
    the rate, the policy as before.
    """
    moved = {}
    for rate in (1.0, 0.5):
        setup, state = prepare_session(
            "gail",
            gail_config(toy, tmp_path / str(rate), discriminator_rate=rate, max_grad_norm=0.0),
        )
        loop.step(setup, state, Sums())
        moved[rate] = setup.auxiliary.model["head"].weight.detach().abs().max()
    assert float(moved[1.0]) == pytest.approx(1e-2, rel=1e-3) and float(
        moved[0.5]
    ) == pytest.approx(5e-3, rel=1e-3)


def test_a_group_of_a_step(toy, tmp_path):
    """Four groups of eight samples and a demonstration, which has no reward, no weight and no mask,
    but a side.
    """
    setup, state = prepare_session("gail", gail_config(toy, tmp_path))
    torch.nn.init.normal_(
        setup.auxiliary.model["head"].weight, generator=torch.Generator().manual_seed(0)
    )
    sums = Sums()
    groups = loop.collect(setup, state, sums)
    batch = loop.weigh(setup, state, groups, sums)
    assert [len(group.samples) for group in groups] == [9] * 4 and len(batch) == 36
    for group in groups:
        *drawn, shown = group.samples
        assert (
            shown.text == "7777"
            and shown.prompt_ids == drawn[0].prompt_ids
            and shown.finish == "length"
        )
        assert group.rewards[-1] is None and all(
            reward is not None for reward in group.rewards[:-1]
        )
    assert sums.means()["demonstrations/clipped_ratio"] == 1.0
    demonstration_N = torch.tensor([key.version == adversary.NOT_SAMPLED for key in batch.keys])
    assert (
        not batch.loss_mask_NT[demonstration_N].any() and not batch.weight_NT[demonstration_N].any()
    )
    assert (
        batch.loss_mask_NT[~demonstration_N].any(1).all()
        and batch.weight_NT[~demonstration_N].any()
    )
    found = batch.demonstrations
    assert torch.equal(found.demonstration_N, demonstration_N)
    assert found.weight_N[demonstration_N].eq(4.5).all()
    assert found.weight_N[~demonstration_N].eq(0.5625).all()
    logit_N = setup.auxiliary.logits(batch)
    told = [reward for group in groups for reward in group.rewards[:-1]]
    agree(logit_N[~demonstration_N].double(), torch.tensor(told, dtype=torch.float64))


@pytest.mark.parametrize("budget", [1, 20, 31])
def test_T01_micro_batches_change_no_gradient(budget, toy, tmp_path):
    """T01: one shot or many, the same step of policy and discriminator."""
    grads = []
    for size in (budget, 10_000):
        setup, state = prepare_session(
            "gail",
            gail_config(
                toy, tmp_path / str(size), prompts_per_step=3, num_generations=5, token_budget=size
            ),
        )
        torch.nn.init.normal_(
            setup.auxiliary.model["head"].weight, generator=torch.Generator().manual_seed(0)
        )
        batch = loop.weigh(setup, state, loop.collect(setup, state, Sums()), Sums())
        kept = {}
        setup.optimizer.step = lambda setup=setup, kept=kept: kept.update(
            {k: p.grad.clone() for k, p in setup.trainable().items()}
        )
        setup.optimizer.zero_grad(set_to_none=True)
        state.step = 1
        loop.update(setup, state, batch, Sums())
        grads.append(kept)
    assert len(grads[0]) > 20 and any(
        bool(g.any()) for name, g in grads[0].items() if name.startswith("discriminator.body")
    )
    bound = rounding(*grads[1].values(), units=64, least=0)
    for name, value in grads[1].items():
        assert torch.allclose(grads[0][name], value, rtol=0, atol=bound), name


def test_a_demonstration_ends_where_a_sample_would(toy, tmp_path):
    """At its end token, behind the first stop string, or at the limit."""
    setup, _ = prepare_session("gail", gail_config(toy, tmp_path, max_completion_length=8))
    ids = tuple(setup.policy.tokenizer.encode("7=77", add_special_tokens=False))
    closed, tokenizer = (*ids, setup.policy.tokenizer.eos_token_id), setup.policy.tokenizer
    assert adversary.completion_end(tokenizer, closed, (), 8) == (
        5,
        "eos",
    ) and adversary.completion_end(tokenizer, closed, (), 5) == (5, "eos")
    assert adversary.completion_end(tokenizer, closed, (), 3) == (3, "length")
    assert adversary.completion_end(tokenizer, closed, ("=",), 8) == (
        2,
        "stop",
    ) and adversary.completion_end(tokenizer, closed, ("=",), 1) == (1, "length")


def test_evaluation_uses_the_verifier_of_the_rows_if_they_name_one(toy, tmp_path):
    """`task` is for looking, not for training: eval/accuracy appears, the reward stays the
    discriminator's.
    """
    rows = [
        {"prompt": f"{i}=", "completion": "7777", "answer": "7777", "task": "exact"}
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = {
        **toy,
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_dataset": str(tmp_path / "rows.jsonl"),
        "eval_size": 4,
    }
    (*_, line) = train(
        "gail", gail_config(mine, tmp_path / "run", max_steps=2, eval_steps=2), quiet=True
    ).metrics()
    assert (
        line["eval/accuracy"] == 0.0
        and line["eval/samples"] == 4
        and "rewards/discriminator/mean" in line
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": [f"{HERE}:sevens"]}, "`rewards` does not apply to `gail`"),
        ({"env": "calculator"}, "`env` does not apply to `gail`"),
        ({"dynamic_sampling": True}, "`dynamic_sampling` does not apply to `gail`"),
        ({"num_generations": 1}, "at least 2"),
        ({"max_length": 100}, "`max_length` does not apply"),
        ({"beta": 0.1, "kl_estimator": "k3"}, "k3"),
    ],
)
def test_what_is_refused(options, message, toy, tmp_path):
    with pytest.raises(UsageError, match=message):
        train("gail", gail_config(toy, tmp_path / "run", **options), quiet=True)
    assert not (tmp_path / "run").exists()


def test_rows_without_a_demonstration_are_refused(toy, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1=", "answer": "7777"}\n')
    with pytest.raises(UsageError, match="completion"):
        train(
            "gail",
            gail_config({**toy, "dataset": str(tmp_path / "rows.jsonl")}, tmp_path / "run"),
            quiet=True,
        )
