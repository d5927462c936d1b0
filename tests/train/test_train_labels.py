"""Columns margin, weight and soft_label of preferences, through the whole loop: what changes
nothing, what teaches, what is refused.
"""

import json

import pytest
import torch
from arithmetic import agree
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.core.errors import UsageError
from laurel.core.metrics import Sums
from laurel.train import loop
from laurel.train.loop import train
from laurel.train.setup import prepare_session

PAIRED = (
    "dpo",
    "cdpo",
    "robust_dpo",
    "ipo",
    "simpo",
    "orpo",
    "dpop",
    "reward",
    "reward_kwise",
    "reward_pl",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))


def config(toy, folder, columns, name="run", **options):
    """Twenty-four pairs, sevens chosen; columns(i) are the further columns of row i."""
    rows = [
        {"prompt": f"{i}=", "chosen": "7777", "rejected": f"{i % 5:04d}", **columns(i)}
        for i in range(24)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"max_steps": 3, "prompts_per_step": 8, "learning_rate": 1e-3, **options}
    return toy_config({**toy, "dataset": str(path)}, folder / name, reward=None, **given)


@pytest.mark.parametrize("name", PAIRED)
def test_equal_weights_certain_labels_and_no_margin_change_no_bit(name, toy, tmp_path):
    """Weight .3 everywhere, soft label 1, margin 0: the same losses and the same weights as without
    the columns.
    """
    plain = train(name, config(toy, tmp_path, lambda i: {}, "plain"), quiet=True)
    told = train(
        name,
        config(toy, tmp_path, lambda i: {"weight": 0.3, "soft_label": 1.0, "margin": 0.0}, "told"),
        quiet=True,
    )
    assert [line["loss"] for line in plain.metrics()] == [line["loss"] for line in told.metrics()]
    assert same(final_weights(plain), final_weights(told))


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_each_column_reaches_the_loss(name, toy, tmp_path):
    """Weights of mean 1 multiply, doubt and margin raise the first loss as the formulas say (all
    scores equal at the start of dpo).
    """
    first, weight_P = {}, torch.ones(24)
    for label, columns in {
        "plain": lambda i: {},
        "weight": lambda i: {"weight": 1 + i % 2},
        "soft_label": lambda i: {"soft_label": 0.6},
        "margin": lambda i: {"margin": 1.0},
    }.items():
        setup, state = prepare_session(
            name, config(toy, tmp_path, columns, f"{name}-{label}", prompts_per_step=24)
        )
        batch = loop.weigh(setup, state, loop.collect(setup, state, Sums()), Sums())
        reads, objective, _ = setup.terms[0]
        outputs = loop.forward(setup, batch).tensors(reads)
        first[label] = objective(*outputs, batch).detach().double()
        weight_P = batch.comparison.weight_N[::2].double() if label == "weight" else weight_P
    plain = first["plain"]
    assert sorted(weight_P.tolist()) == pytest.approx([2 / 3] * 12 + [4 / 3] * 12)
    agree(first["weight"], plain * weight_P)
    z = -torch.log(torch.expm1(plain))  # softplus(-z) = plain
    agree(first["soft_label"], plain + 0.4 * z)
    agree(first["margin"], torch.nn.functional.softplus(1 - z))


def test_soft_labels_end_where_they_say(toy, tmp_path):
    """Trained long on soft_label .7, the gap of the scores is logit(.7), not as large as can be."""
    options = {"max_steps": 150, "prompts_per_step": 24, "learning_rate": 5e-3}
    run = train(
        "reward", config(toy, tmp_path, lambda i: {"soft_label": 0.7}, **options), quiet=True
    )
    assert run.metrics()[-1]["margin"] == pytest.approx(0.8473, abs=0.1)
    assert run.metrics()[-1]["loss"] == pytest.approx(0.6109, abs=0.01)


def test_rows_of_no_weight_are_left_out_and_noted(toy, tmp_path):
    setup, _ = prepare_session("dpo", config(toy, tmp_path, lambda i: {"weight": i % 3}))
    assert len(setup.rows) == 16 and any(
        "8 of 24 rows left out: weight 0" in note for note in setup.notes
    )
    assert sum(row.columns["weight"] for row in setup.rows) == pytest.approx(16)
    with pytest.raises(UsageError, match="every row has the weight 0"):
        prepare_session("dpo", config(toy, tmp_path, lambda i: {"weight": 0}, "none"))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("weight", -1, "0 or above"),
        ("weight", "much", "0 or above"),
        ("soft_label", 1.5, "from 0 to 1"),
        ("soft_label", True, "from 0 to 1"),
    ],
)
def test_what_is_no_weight_and_no_probability_is_refused_at_its_line(
    column, value, told, toy, tmp_path
):
    with pytest.raises(UsageError, match=rf"run.jsonl:4: .*{column}.*{told}"):
        prepare_session("dpo", config(toy, tmp_path, lambda i: {column: value if i == 3 else 1}))


def test_margins_can_be_ignored(toy, tmp_path):
    """use_margin false: the run of a file without margins."""
    plain = train("dpo", config(toy, tmp_path, lambda i: {}, "plain"), quiet=True)
    ignored = train(
        "dpo",
        config(toy, tmp_path, lambda i: {"margin": 1.0}, "ignored", use_margin=False),
        quiet=True,
    )
    asked = train("dpo", config(toy, tmp_path, lambda i: {"margin": 1.0}, "asked"), quiet=True)
    assert same(final_weights(plain), final_weights(ignored)) and not same(
        final_weights(plain), final_weights(asked)
    )


def test_kto_takes_weights(toy, tmp_path):
    rows = [
        {
            "prompt": f"{i}=",
            "completion": "7777" if i % 2 else "0123",
            "label": bool(i % 2),
            "weight": 1 + i % 3,
        }
        for i in range(24)
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        "kto",
        toy_config(
            {**toy, "dataset": str(path)},
            tmp_path / "run",
            reward=None,
            max_steps=2,
            prompts_per_step=8,
        ),
        quiet=True,
    )
    assert len(run.metrics()) == 2
