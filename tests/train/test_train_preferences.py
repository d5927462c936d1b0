"""Rows that compare answers, through the whole loop: the remembered reference, resuming, what is
refused, how a run begins.
"""

import json
import math

import pytest
import torch
from arithmetic import rounding
from safetensors.torch import load_file
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.metrics import Sums
from laurel.core.sample import take
from laurel.data.source import load_rows
from laurel.model.policy import Reference
from laurel.train import loop
from laurel.train.loop import train
from laurel.train.options import defaults, resolve
from laurel.train.reference_cache import epoch_blocks
from laurel.train.setup import prepare_session

WITH_REFERENCE = ("dpo", "cdpo", "robust_dpo", "dpop", "ipo")
PAIRED = (*WITH_REFERENCE, "simpo", "orpo")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy with forty pairs: sevens are chosen, one of four other answers is rejected."""
    folder = tmp_path_factory.mktemp("toy")
    made = make_toy(folder)
    others = ("1234", "77", "7778", "0000")
    rows = [{"prompt": f"{i}=", "chosen": "7777", "rejected": others[i % 4]} for i in range(40)]
    labels = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    write(folder / "labels.jsonl", labels)
    return {**made, "dataset": write(folder / "pairs.jsonl", rows), "prompts_per_step": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


@pytest.fixture
def counted(monkeypatch):
    """How many rows the reference was asked for, call by call."""
    rows, real = [], Reference.logp

    def logp(self, batch):
        rows.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(Reference, "logp", logp)
    return rows


def without_reward(toy, folder, **options):
    """A configuration of a row that learns from data."""
    return toy_config(toy, folder, reward=None, **{"max_steps": 10, **options})


def labels_of(toy):
    return toy["dataset"].replace("pairs.jsonl", "labels.jsonl")


# --------------------------------------------------------------------------------------------- the
# remembered reference


def test_every_row_is_asked_of_the_reference_once(toy, tmp_path, cache, counted):
    """16 steps of 8 of 40 pairs, more than three epochs: 80 answers once each. A second run asks
    for none and takes the same steps.
    """
    first = train("dpo", without_reward(toy, tmp_path / "first", max_steps=16), quiet=True)
    assert sum(counted) == 80
    (file,) = cache.iterdir()
    assert (
        sum(len(logp_T) > 0 for logp_T in load_file(file).values()) == 40 + 40
    )  # digests differ: the prompt is part of them
    written = file.stat().st_mtime_ns
    again = train("dpo", without_reward(toy, tmp_path / "again", max_steps=16), quiet=True)
    assert sum(counted) == 80 and file.stat().st_mtime_ns == written
    assert same(final_weights(first), final_weights(again))


def test_what_is_remembered_is_what_would_be_computed(toy, tmp_path):
    """Later, when the policy has moved, a batch still gets log ref of the starting weights, at
    every trained token.
    """
    setup, state = prepare_session("dpo", without_reward(toy, tmp_path, learning_rate=1e-2))
    for _ in range(7):  # beyond the first epoch: all is remembered by now
        loop.step(setup, state, Sums())
    batch = loop.weigh(setup, state, loop.collect(setup, state, Sums()), Sums())
    fresh_NT = setup.reference.logp(batch)
    assert torch.allclose(batch.logp_ref_NT, fresh_NT, rtol=0, atol=rounding(fresh_NT)) and bool(
        (batch.logp_ref_NT[batch.loss_mask_NT] < 0).all()
    )
    with torch.no_grad():
        assert float((setup.policy.logp(batch).logp - fresh_NT).abs().max()) > 0.1


def test_another_reference_or_dataset_has_its_own_file(toy, tmp_path, cache, counted):
    """Nothing is taken from the file of other weights, other rows or another limit."""
    train("dpo", without_reward(toy, tmp_path / "a", max_steps=1), quiet=True)
    other = make_toy(tmp_path)
    weights = load_file(tmp_path / "model/model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {name: w * 1.01 for name, w in weights.items()},
        tmp_path / "model/model.safetensors",
        metadata={"format": "pt"},
    )
    shorter = write(
        tmp_path / "pairs.jsonl", [row.columns for row in load_rows(toy["dataset"])][:20]
    )
    for i, (changed, files) in enumerate(
        [({"model": other["model"]}, 2), ({"dataset": shorter}, 3), ({"max_length": 6}, 4)]
    ):
        before = sum(counted)
        train("dpo", without_reward({**toy, **changed}, tmp_path / str(i), max_steps=1), quiet=True)
        assert len(list(cache.iterdir())) == files and sum(counted) > before, changed


def test_a_step_asks_the_reference_of_its_own_rows_and_of_no_others(toy, tmp_path, cache, counted):
    """40 pairs in steps of 8: every step of the first epoch asks for its 16 answers, later ones for
    none.
    """
    setup, state = prepare_session("dpo", without_reward(toy, tmp_path))
    asked = []
    for _ in range(7):
        before = sum(counted)
        loop.step(setup, state, Sums())
        asked.append(sum(counted) - before)
    assert asked == [16] * 5 + [0] * 2


def test_blocks_are_what_each_process_draws_in_a_step():
    """11 rows, 4 a step, 3 processes: 2, 1, 1 of each step; the last step has 3 rows left of the
    epoch. Every row once.
    """
    found, order = epoch_blocks(11, 5, 4, 3), take(0, 11, 11, 5)
    assert [len(block) for block in found] == [2, 1, 1, 2, 1, 1, 2, 1]
    assert [row for block in found for row in block] == order != sorted(order)


def test_the_last_bits_do_not_depend_on_when_a_row_was_needed(toy, tmp_path, cache):
    """Steps 1 to 5, or 3 to 7 of another run of the same seed, whose epoch ends in between: equal
    to the bit.

    Another seed has a file of its own.
    """
    train("dpo", without_reward(toy, tmp_path / "a", max_steps=5), quiet=True)
    (file,) = cache.iterdir()
    found = [load_file(file)]
    file.unlink()
    setup, state = prepare_session("dpo", without_reward(toy, tmp_path / "b", learning_rate=1e-2))
    state.cursor = 16
    for _ in range(5):
        loop.step(setup, state, Sums())
    found.append(setup.reference_cache.known)
    assert same(*found) and len(found[0]) == 80
    setup.reference_cache.save()
    train("dpo", without_reward(toy, tmp_path / "c", max_steps=1, seed=1), quiet=True)
    assert len(list(cache.iterdir())) == 2


def test_sampled_answers_are_not_remembered(toy, tmp_path, cache):
    """online_dpo meets new answers in every step: nothing is kept of them."""
    source = {**toy, "dataset": toy["dataset"].replace("pairs.jsonl", "rows.jsonl")}
    train("online_dpo", toy_config(source, tmp_path / "run", max_steps=2), quiet=True)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["dpo", "kto", "online_dpo"])
def test_a_resumed_run_is_the_unbroken_one(name, toy, tmp_path, cache):
    """T59 for preferences: 8 steps against 3 + resume + 5, with the remembered reference thrown
    away in between.
    """
    data = {"dpo": "pairs", "kto": "labels", "online_dpo": "rows"}[name]
    mine = {**toy, "dataset": toy["dataset"].replace("pairs.jsonl", f"{data}.jsonl")}
    options = {"reward": "sevens" if name == "online_dpo" else None, "learning_rate": 3e-3}
    whole = train(name, toy_config(mine, tmp_path / "whole", max_steps=8, **options), quiet=True)
    for stop in (3, 8):
        for file in cache.glob("*"):
            file.unlink()
        parts = train(
            name,
            toy_config(mine, tmp_path / "parts", max_steps=stop, resume=True, **options),
            quiet=True,
        )
    assert same(final_weights(whole), final_weights(parts))
    assert [line.get("loss") for line in whole.metrics()] == [
        line.get("loss") for line in parts.metrics()
    ]


# --------------------------------------------------------------------------------------------------
# how a run begins


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_T21_the_first_step(name, toy, tmp_path):
    """T21: policy = reference: ln 2 (IPO: 25 at beta .1), rewards and margin 0, half of the pairs
    right.
    """
    line = train(name, without_reward(toy, tmp_path, max_steps=1), quiet=True).metrics()[0]
    assert line["loss"] == pytest.approx(25 if name == "ipo" else math.log(2), rel=1e-5)
    assert line["rewards/accuracies"] == 0.5
    assert max(abs(line[f"rewards/{what}"]) for what in ("margins", "chosen", "rejected")) < 1e-6
    assert line["logps/chosen"] < 0 and line["logps/rejected"] < 0 and line["grad_norm"] > 0


@pytest.mark.parametrize("name", PAIRED)
def test_T01_micro_batches_change_no_gradient(name, toy, tmp_path):
    """T01: the pairs of a step in micro-batches of any size, a pair never parted: the same
    gradient, and the same metrics.

    dpop stands on the kink of max(0, log ref - log pi) at the first step, where the last bit
    decides: its loss there, not its gradient.
    """
    lines, first = [], name == "dpop"
    for budget in (1, 40, 10_000):
        options = {"rpo_alpha": 0.3} if "rpo_alpha" in defaults(name) else {}
        options |= {"max_steps": 1 if first else 2, "token_budget": budget}
        lines.append(
            train(
                name, without_reward(toy, tmp_path / str(budget), **options), quiet=True
            ).metrics()
        )
    for line in lines[1:]:
        for key in ("loss", "rewards/margins", "logps/chosen", *(() if first else ("grad_norm",))):
            assert [step[key] for step in line] == pytest.approx(
                [step[key] for step in lines[0]], rel=1e-4, abs=1e-6
            ), key


def test_the_likelihood_term_holds_the_chosen_answers_up(toy, tmp_path):
    """rpo_alpha is the coefficient of -lp_w per token in the loss: at the start the loss is ln 2 +
    alpha times the chosen nll per token.
    """
    plain, helped = (
        train(
            "dpo", without_reward(toy, tmp_path / str(a), max_steps=1, rpo_alpha=a), quiet=True
        ).metrics()[0]
        for a in (0.0, 0.5)
    )
    assert helped["loss"] - plain["loss"] == pytest.approx(
        -0.5 * plain["logps/chosen"] / 5, rel=1e-5
    )  # 7777 and the end: five tokens


# --------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"epsilon": 0.2}, "`epsilon` does not apply to `dpo`"),
        ("dpo", {"num_generations": 4}, "does not apply to `dpo`"),
        ("dpo", {"rewards": ["addition"]}, "does not apply to `dpo`"),
        ("rrhf", {"beta": 0.1}, "`beta` does not apply to `rrhf`"),
        ("rrhf", {"reference": "start"}, "does not apply to `rrhf`"),
        ("simpo", {"reference": "start"}, "does not apply to `simpo`"),
        ("orpo", {"rpo_alpha": 1.0}, "does not apply to `orpo`"),
        ("dpo", {"simpo_gamma": 1.0}, "does not apply to `dpo`"),
        ("online_dpo", {"kl_placement": "reward"}, "does not apply to `online_dpo`"),
        ("online_dpo", {"num_generations": 1}, "at least 2"),
        ("dpo", {"loss_aggregation": "token_mean"}, "its unit is a comparison"),
        ("kto", {"loss_aggregation": "seq_mean_token_mean"}, "its unit is a comparison"),
        ("grpo", {"loss_aggregation": "comparison_mean"}, "compares no answers"),
        ("sft", {"loss_aggregation": "comparison_mean"}, "compares no answers"),
    ],
)
def test_T36_what_does_not_apply_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        resolve(name, TrainConfig(**options))


@pytest.mark.parametrize("eps", [0.5, 0.7, -0.1])
def test_half_of_the_labels_wrong_is_refused(eps):
    """At .5 there is nothing to learn, and robust_dpo would divide by 0."""
    with pytest.raises(UsageError, match="label_smoothing"):
        TrainConfig(label_smoothing=eps)


def test_kto_needs_another_prompt(toy, tmp_path):
    """Its reference point is measured on answers to other prompts: one row per step has none."""
    with pytest.raises(UsageError, match="one prompt"):
        train(
            "kto",
            without_reward({**toy, "dataset": labels_of(toy), "prompts_per_step": 1}, tmp_path),
            quiet=True,
        )


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "dpo",
            {"prompt": "1=", "completion": "2"},
            "dpo needs `prompt` \\+ `chosen` \\+ `rejected`; this row has",
        ),
        ("dpo", {"prompt": "1=", "chosen": "2"}, "dpo needs"),
        ("dpo", {"prompt": "1=", "preferred": "2", "rejected": "3"}, "chosen"),
        (
            "kto",
            {"prompt": "1=", "chosen": "2", "rejected": "3"},
            "kto needs `prompt` \\+ `completion` \\+ `label`",
        ),
        ("dpo", {"prompt": "1=", "chosen": 2, "rejected": "3"}, "field `chosen`: expected text"),
    ],
)
def test_rows_without_two_answers_are_refused(name, row, message, toy, tmp_path):
    """Before any weight is loaded; the message says what the row has, and what to rename."""
    with pytest.raises(UsageError, match=message):
        train(
            name,
            without_reward(
                {**toy, "dataset": write(tmp_path / "rows.jsonl", [row] * 4)}, tmp_path / "run"
            ),
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_misnamed_column_is_named(toy, tmp_path):
    rows = [{"question": "1=", "preferred": "2", "worse": "3"}] * 4
    with pytest.raises(UsageError) as caught:
        train(
            "dpo",
            without_reward(
                {**toy, "dataset": write(tmp_path / "rows.jsonl", rows)}, tmp_path / "run"
            ),
            quiet=True,
        )
    assert "chosen" in str(caught.value)
