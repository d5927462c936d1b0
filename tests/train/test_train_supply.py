"""The rows of a run: errors that blame the right file and ask for nothing impossible, columns that
nobody reads, what is held out.
"""

import json

import pytest

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.data.split import split_rows
from laurel.rollout.source import DEMONSTRATIONS, POLICY
from laurel.train.run_data import column_notes, held_out_note, load_data, load_mixture

SEEN = "columns that the model does not see, only its rewards"


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_evaluation_rows_that_do_not_fit_are_blamed_on_their_own_file(tmp_path):
    good = lines(tmp_path / "train.jsonl", {"prompt": "p", "completion": "c"})
    bad = lines(
        tmp_path / "held.jsonl",
        {"prompt": "p", "completion": "c"},
        {"prompt": "p"},
        {"prompt": "p"},
    )
    config = TrainConfig(dataset=good, eval_dataset=bad)
    with pytest.raises(UsageError) as caught:
        load_data(config, "sft", "sft")
    said = str(caught.value)
    assert (
        said.startswith(f"eval_dataset={bad}: held.jsonl: 2 of 3 rows")
        and "held.jsonl:2: sft needs" in said
        and "train" not in said
    )
    with pytest.raises(UsageError, match=r"^held\.jsonl: 2 of 3 rows"):
        load_data(TrainConfig(dataset=bad, eval_dataset=good), "sft", "sft")


def test_rewards_must_fit_the_evaluation_rows_too(tmp_path):
    """They were asked of the training rows only: evaluation then failed on every sample, steps
    later.
    """
    train = lines(
        tmp_path / "train.jsonl", *[{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(3)]
    )
    held = lines(tmp_path / "held.jsonl", {"prompt": "p"})
    (tmp_path / "mine.py").write_text(
        "def right(completions, answer):\n    return [1.0 for _ in answer]\n"
    )
    for rewards in (["exact"], [f"{tmp_path / 'mine.py'}:right"]):
        config = TrainConfig(dataset=train, eval_dataset=held, rewards=rewards)
        with pytest.raises(UsageError, match=f"^eval_dataset={held}: .*answer"):
            load_mixture(config, POLICY, *load_data(config, "rl"))
        assert load_mixture(
            config.model_copy(update={"eval_dataset": None}), POLICY, *load_data(config, "rl")
        )


def test_evaluation_rows_of_another_task_have_their_own_verifier(tmp_path):
    """The verifier of the training rows' one task judged them."""
    train = lines(tmp_path / "train.jsonl", {"prompt": "1+1=", "answer": "2", "task": "addition"})
    held = lines(
        tmp_path / "held.jsonl",
        {"prompt": "q", "question": "q", "answer": "#### 7", "task": "gsm8k"},
    )
    config = TrainConfig(dataset=train, eval_dataset=held)
    mixture = load_mixture(config, POLICY, *load_data(config, "rl"))
    row = {"prompt": "q", "question": "q", "answer": "#### 7", "task": "gsm8k"}
    assert mixture.rewards[0].function("It is 7.", row).value == 1.0


def test_a_task_that_is_no_verifiers_name_is_a_column_like_others(tmp_path):
    rows = [{"prompt": "p", "completion": "c", "task": "summarization"}]
    config = TrainConfig(dataset=lines(tmp_path / "a.jsonl", *rows), eval_steps=1)
    data, held = load_data(config, "sft")
    assert load_mixture(config, DEMONSTRATIONS, data, held) is None
    assert column_notes(config, "sft", data, None, False) == ["columns not used: task"]


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (
            "def f(completions, answer): return [0.0]",
            [
                "columns not used: level",
                "columns that the model does not see, only its rewards: answer",
            ],
        ),
        (
            "def f(completions, **columns): return [0.0]",
            ["columns that the model does not see, only its rewards: answer, level"],
        ),
        (
            "def f(answer, row): return 0.0",
            ["columns that the model does not see, only its rewards: answer, level"],
        ),
        ("def f(completions): return [0.0]", ["columns not used: answer, level"]),
    ],
)
def test_columns_are_read_passed_to_the_reward_or_named(tmp_path, reward, told):
    data = lines(tmp_path / "a.jsonl", {"system": "s", "prompt": "p", "answer": "a", "level": 3})
    (tmp_path / "mine.py").write_text(reward + "\n")
    config = TrainConfig(dataset=data, rewards=[f"{tmp_path / 'mine.py'}:f"])
    rows, held = load_data(config, "rl")
    mixture = load_mixture(config, POLICY, rows, held)
    assert column_notes(config, "rl", rows, mixture, False) == told
    assert column_notes(TrainConfig(dataset="addition"), "rl", rows, mixture, False) == []


def test_no_advice_asks_for_the_impossible():
    rows = [Row({"prompt": prompt}, f"a:{n}", f"x-{n}") for n, prompt in enumerate(["a", "b"] * 15)]
    with pytest.raises(UsageError, match="Hold out 15 or more"):
        split_rows(rows, 3)
    with pytest.raises(
        UsageError, match="Name other rows with eval_dataset, or hold out none: eval_size 0"
    ):
        split_rows(rows, 3, most=3)
    with pytest.raises(UsageError, match="eval_size 0"):
        split_rows([row for row in rows if row.columns["prompt"] == "a"], 3)


def test_fewer_rows_held_out_than_asked_for_are_told(tmp_path):
    config = TrainConfig(
        dataset=lines(tmp_path / "a.jsonl", *[{"text": str(n)} for n in range(30)]), eval_size=20
    )
    rows, held = load_data(config, "sft")
    assert len(held) == 3 and held_out_note(config, rows, held)[0].startswith(
        "3 rows held out for evaluation, not 20: at most a tenth of 30"
    )
    assert held_out_note(TrainConfig(dataset=config.dataset), rows, held) == []
    assert held_out_note(config.model_copy(update={"eval_size": 3}), rows, held) == []
