"""reasoning-gym's tasks under one name: rows, their own scorers, the check of every gold answer,
what is refused.
"""

import argparse
import json

import pytest

from laurel.cli.data import add_parser
from laurel.core.errors import UsageError
from laurel.core.result import Failed, Score
from laurel.core.sample import Group, Key, Sample
from laurel.data.source import load_rows
from laurel.data.tasks import is_own_task, is_task
from laurel.reward.load import is_verifier, load_verifier
from laurel.reward.mixture import load_rewards

pytest.importorskip("reasoning_gym", reason='needs the extra: pip install "laurel-rl[reasoning]"')
NAME = "reasoning_gym:chain_sum:max_terms=3,max_digits=2"


def test_rows_are_seeded_and_hold_what_the_scorer_needs():
    rows = load_rows(NAME, seed=5, size=4)
    assert [row.columns for row in load_rows(NAME, seed=5, size=2)] == [
        row.columns for row in rows[:2]
    ]
    first = rows[0].columns
    assert (
        first["task"] == NAME
        and first["prompt"] == first["question"]
        and first["completion"] == first["answer"]
    )
    assert all(row.columns["metadata"]["num_terms"] <= 3 for row in rows)
    assert (
        rows[0].where == f"{NAME}:seed 5:1"
        and is_task(NAME)
        and is_verifier(NAME)
        and not is_own_task(NAME)
    )


@pytest.mark.parametrize("task", ["chain_sum", "letter_jumble", "rubiks_cube"])
def test_own_scorers_judge(task):
    """Right answers get 1, nonsense less; a cube has many right answers and no gold one, which is
    no failure of the reader.
    """
    name = f"reasoning_gym:{task}"
    row = load_rows(name, seed=1, size=1)[0].columns
    verify = load_verifier(name)
    nonsense = verify("perhaps", row)
    assert isinstance(nonsense, Score) and nonsense.value < 1
    if task == "rubiks_cube":
        assert row["answer"] is None and "completion" not in row
        return
    assert verify(row["answer"], row) == Score(1.0, "the task's own scorer")


def test_a_scorer_that_raises_is_failed_and_no_zero():
    assert isinstance(load_verifier("reasoning_gym:rubiks_cube")("F", {"prompt": "p"}), Failed)


def test_the_rows_own_task_is_the_reward_of_a_run():
    rows = load_rows(NAME, size=2)
    sample = Sample(
        Key("r", "s", "p", 0, 0), (), (), (), (), 1.0, "eos", rows[0].columns["answer"], ()
    )
    (group,) = load_rewards(None, None, rows).score([Group("p", rows[0].columns, (sample,))])
    assert group.rewards == (1.0,)


def test_check_proves_the_rows(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", "check", NAME, "--size", "5"])
    assert (
        args.run(args) == 0
        and capsys.readouterr().out.splitlines()[-1] == "5 of 5 gold answers right"
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row.columns) + "\n" for row in load_rows(NAME, size=3)))
    args = parser.parse_args(["data", "check", str(path)])
    assert (
        args.run(args) == 0
        and capsys.readouterr().out.splitlines()[-1] == "3 of 3 gold answers right"
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reasoning_gym:chain_sums", ["no task `chain_sums`", "`chain_sum`"]),
        ("reasoning_gym:", ["no task ``"]),
        ("reasoning_gym:chain_sum:max_term=3", ["no parameter `max_term`", "`max_terms`"]),
        ("reasoning_gym:chain_sum:max_terms", ["is not parameter=value", "max_terms=3"]),
        ("reasoning_gym:chain_sum:max_terms=-3", ["refuses these parameters", "min_terms"]),
        ("reasoning_gym:composite", ["refuses these parameters"]),
    ],
)
def test_what_the_package_does_not_have_is_refused(name, parts):
    for ask in (load_rows, load_verifier):
        with pytest.raises(UsageError) as caught:
            ask(name)
        assert all(part in str(caught.value) for part in parts), caught.value
