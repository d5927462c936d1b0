"""Preferences at the first step and across steps: whose answer stands beside whose prompt, and
gradients that rounding does not choose.
"""

import json

import pytest
import torch
from toy import make_toy, toy_config

from laurel.core.errors import UsageError
from laurel.core.metrics import Sums
from laurel.data.source import Row
from laurel.model.scratch import save_scratch
from laurel.objective.preference import dpo, dpop
from laurel.rollout.data import mismatched_rows
from laurel.train import loop
from laurel.train.loop import train
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("partners"))


def labels_of(tmp_path, prompts):
    """A file of labelled answers: the i-th is i to the i-th prompt."""
    file = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": prompt, "completion": str(i), "label": i % 2 == 0}
        for i, prompt in enumerate(prompts)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def row(name, prompt):
    return Row({"prompt": prompt, "completion": name, "label": True}, name, name)


def test_the_next_row_that_asks_something_else():
    """In the step, round its end; a part of a step finds the partners that the whole finds; else
    among the rows that come later.
    """
    step = [row("a", "1="), row("b", "1="), row("c", "2="), row("d", "3=")]
    assert [other.id for other in mismatched_rows(step, step)] == ["c", "c", "d", "a"]
    assert [
        other.id for other in mismatched_rows(step[:1], step) + mismatched_rows(step[1:], step)
    ] == [
        "c",
        "c",
        "d",
        "a",
    ]
    assert [other.id for other in mismatched_rows(step[:2], step[:2], step)] == ["c", "c"]
    with pytest.raises(UsageError, match="one prompt"):
        mismatched_rows(step[:2], step[:2])


def test_no_row_is_its_own_mismatch_where_a_step_crosses_an_epoch(toy, tmp_path):
    """Three rows, five per step: rows come twice in a step, also one after the other. No answer is
    its own mismatch, in any step.
    """
    config = toy_config(
        {**toy, "dataset": labels_of(tmp_path, ["1=", "2=", "3="])},
        tmp_path / "run",
        reward=None,
        prompts_per_step=5,
    )
    setup, state = prepare_session("kto", config)
    twice = 0
    for _ in range(6):
        groups = loop.collect(setup, state, Sums())
        prompts = [group.row["prompt"] for group in groups]
        twice += any(
            one == next_ for one, next_ in zip(prompts, [*prompts[1:], prompts[0]], strict=True)
        )
        for group in groups:
            answer, mismatch = (sample.text for sample in group.samples)
            assert answer.strip() != mismatch.strip(), (answer, mismatch)
    assert twice  # such steps were among them


def test_a_step_of_one_prompt_borrows_from_the_next(toy, tmp_path):
    """Two answers to one prompt side by side, as such files have them: the mismatch is an answer to
    another prompt.
    """
    data = labels_of(tmp_path, ["1=", "1=", "1=", "1=", "2="])
    setup, state = prepare_session(
        "kto",
        toy_config({**toy, "dataset": data}, tmp_path / "run", reward=None, prompts_per_step=2),
    )
    for _ in range(5):
        for group in loop.collect(setup, state, Sums()):
            assert group.samples[1].text.endswith("=4") == (group.row["prompt"] == "1=")
    with pytest.raises(UsageError, match="every row asks the same"):
        prepare_session(
            "kto",
            toy_config(
                {**toy, "dataset": labels_of(tmp_path, ["1="] * 4)}, tmp_path / "same", reward=None
            ),
        )


def test_every_held_out_answer_is_evaluated(toy, tmp_path):
    """65 of them, in chunks of 64: the last one stands alone, and counts."""
    data = labels_of(tmp_path, [f"{i % 10}={i}" for i in range(65)])
    config = toy_config(
        {**toy, "dataset": data, "eval_dataset": data, "eval_size": 65},
        tmp_path / "run",
        reward=None,
        max_steps=1,
    )
    setup, _ = prepare_session("kto", config)
    sums = loop.evaluate(setup, 1).sums
    assert sums["eval/rewards/chosen"][1] + sums["eval/rewards/rejected"][1] == 65


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dpop_starts_as_dpo_whatever_rounding_says(dtype, toy, tmp_path):
    """At the start the policy is its reference but for rounding: the slope of the fall is 0 there,
    in micro-batches of any size.
    """
    save_scratch(
        tmp_path / "model",
        alphabet="0123456789+=",
        seed=0,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    rows = [
        {"prompt": f"{i}=", "chosen": str(7 ** (5 + i)), "rejected": str(3 ** (10 + 2 * i))}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    norms = {}
    for name, budget in (("dpo", 2000), ("dpop", 2000), ("dpop", 150), ("dpop", 1)):
        options = {
            "model": str(tmp_path / "model"),
            "dataset": str(tmp_path / "pairs.jsonl"),
            "token_budget": budget,
            "dtype": dtype,
        }
        config = toy_config(
            {**toy, **options},
            tmp_path / f"{name}{budget}",
            reward=None,
            prompts_per_step=8,
            max_steps=1,
        )
        norms[name, budget] = train(name, config, quiet=True).metrics()[0]["grad_norm"]
    assert max(norms.values()) == pytest.approx(
        min(norms.values()), rel=0.02 if dtype == "bfloat16" else 1e-4
    ), norms


def test_a_fall_beyond_rounding_counts_in_full(make_pair):
    """.2 nats below: the formula to the last digit. A thousandth of the rounding: the value and the
    gradient of dpo.
    """
    batch = make_pair(ref=((-2.0, -2.0), (-2.0, -2.0)))
    for fall, beyond in ((0.2, True), (1e-8, False), (0.0, False), (-0.2, False)):
        logp = torch.tensor(
            [[-2.0 - fall, -2.0], [-2.0, -2.5]], dtype=torch.float64, requires_grad=True
        )
        value, plain = dpop(logp, batch, beta=0.1, dpop_lambda=50.0), dpo(logp, batch, beta=0.1)
        (slope,), (plain_slope,) = (
            torch.autograd.grad(value.sum(), logp),
            torch.autograd.grad(plain.sum(), logp),
        )
        if beyond:
            truth = torch.nn.functional.softplus(
                torch.tensor(-0.1 * (0.5 - fall - 50 * fall), dtype=torch.float64)
            )
            assert (
                float(value.detach()) == pytest.approx(float(truth), rel=1e-12)
                and float(slope[0, 0] / plain_slope[0, 0]) > 30
            )
        else:
            assert torch.equal(value, plain) and torch.equal(slope, plain_slope)


@pytest.fixture
def make_pair():
    from laurel.core.sample import Batch, Comparisons, Key

    def make(ref):
        N, T = 2, 2
        zeros, ones = torch.zeros(N, T, dtype=torch.float64), torch.ones(N, T, dtype=torch.bool)
        return Batch(
            ids_NL=torch.zeros(N, T, dtype=torch.long),
            attention_NL=ones,
            start_N=torch.zeros(N, dtype=torch.long),
            length_N=torch.full((N,), T),
            loss_mask_NT=ones,
            logp_old_NT=zeros,
            logp_ref_NT=torch.tensor(ref, dtype=torch.float64),
            weight_NT=zeros,
            comparison=Comparisons.of(torch.tensor([1.0, -1.0], dtype=torch.float64)),
            temperature_N=torch.ones(N),
            group_N=torch.zeros(N, dtype=torch.long),
            keys=tuple(Key("t", "", "0", n, 0) for n in range(N)),
        )

    return make
