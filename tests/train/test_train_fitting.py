"""What is said of rows before the first step: left out, cut, equal, lost in the template, beyond
the model's positions.
"""

import json
from dataclasses import replace
from io import StringIO

import pytest

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.model.chat import ensure_template
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer, small_model
from laurel.rollout.source import (
    DEMONSTRATIONS,
    LABELS,
    LOGGED,
    OUTCOMES,
    PAIRS,
    POLICY,
    POPULATION,
    RANKINGS,
    STEPS,
)
from laurel.train.fitting import MANY, select_fitting_rows, with_bar, with_position_limits
from laurel.train.loop import train

SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
THINKING = """{% for m in messages %}{{ '<' + m.role + '>' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


@pytest.fixture(scope="module")
def policy():
    tokenizer = char_tokenizer()
    ensure_template(tokenizer)
    return Policy(small_model(tokenizer, **SHAPE, max_position_embeddings=64).eval(), tokenizer)


def rows_of(*columns):
    return [Row(one, f"rows.jsonl:{n}", f"row-{n}") for n, one in enumerate(columns, 1)]


def fits(policy, rows, source, **options):
    config = with_position_limits(
        TrainConfig(dataset="rows.jsonl", **options), source, policy.causal
    )
    kept, notes = select_fitting_rows(policy, rows, config, source)
    return [row.where.rpartition(":")[2] for row in kept], notes


def pair(chosen, rejected, prompt="1?", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


LONG = "the same long beginning "


def test_K11_pairs_that_are_equal_as_the_model_reads_them(policy):
    """Equal in the file, or once they are cut: left out and counted by their reason; nothing but
    such pairs is an error.
    """
    rows = rows_of(
        pair("yes", "no"),
        pair(LONG + "good", LONG + "bad"),
        pair("yes", "yes"),
        pair("no", "yes " * 20),
    )
    kept, notes = fits(policy, rows, PAIRS, max_length=24)
    assert kept == ["1", "4"]
    assert notes == [
        "1 of 4 rows left out: equal answers within max_length=24",
        "1 of 4 rows left out: equal answers, as the model reads them",
        "1 of 4 rows cut at max_length=24: what lies behind is not trained on, nor their end",
    ]
    with pytest.raises(
        UsageError, match="every row has equal answers within max_length=24"
    ) as caught:
        fits(policy, rows[1:2], PAIRS, max_length=24)
    assert "Raise max_length" in str(caught.value)
    with pytest.raises(UsageError, match="equal answers, as the model reads them") as caught:
        fits(policy, rows[2:3], PAIRS)
    assert "Raise" not in str(caught.value)


def test_K11_rankings(policy):
    """Every answer equal: left out. Some equal and ranked differently: counted; equal and of one
    rank: a tie.
    """
    three = {"prompt": "1?", "responses": ["a", "a", "a"], "ranks": [1, 2, 3]}
    rows = rows_of(
        three,
        {**three, "responses": ["a", "b", "a"]},
        {**three, "responses": ["a", "b", "b"], "ranks": [1, 2, 2]},
    )
    kept, notes = fits(policy, rows, RANKINGS)
    assert kept == ["2", "3"] and notes[0].startswith("1 of 3 rows left out: equal answers")
    assert notes[1].startswith("1 of 3 rows have equal answers of different rank")


def test_K11_chosen_and_rejected_that_differ_in_a_thought_the_template_drops(policy):
    bare = replace(policy, tokenizer=char_tokenizer())
    bare.tokenizer.chat_template = THINKING
    answers = [[{"role": "assistant", "content": f"<think>{why}</think>4"}] for why in "ab"]
    with pytest.raises(UsageError, match="leaves out the thought of turn 2"):
        fits(bare, rows_of(pair(*answers, prompt=[{"role": "user", "content": "2+2?"}])), PAIRS)


@pytest.mark.parametrize("source", [DEMONSTRATIONS, LABELS, OUTCOMES, LOGGED])
def test_K23_rows_are_cut_at_the_models_positions(policy, source):
    """Whatever max_length says; cut rows are counted, and what is trained on later is cut in the
    same place.
    """
    row = {"prompt": "1?", "completion": "a" * 100, "label": True, "reward": 1.0}
    rows = rows_of(row, {**row, "prompt": "2?", "completion": "a"})
    for options in ({}, {"max_length": 80}):
        config = with_position_limits(
            TrainConfig(dataset="rows.jsonl", **options), source, policy.causal
        )
        kept, notes = select_fitting_rows(policy, rows, config, source)
        assert len(kept) == 2 and notes == [
            "1 of 2 rows cut at 64 tokens, the model's positions: what lies behind is not trained"
            " on, nor their end"
        ]
        groups = source.read(
            policy, kept, run="r", step=0, train_on=None, max_length=config.max_length
        )
        assert (
            max(
                len(s.prompt_ids) + len(s.completion_ids) for group in groups for s in group.samples
            )
            == 64
        )
    assert with_position_limits(TrainConfig(max_length=20), source, policy.causal).max_length == 20


def test_K23_steps_behind_the_positions_are_left_out(policy):
    rows = rows_of({"prompt": "1?", "completions": ["a" * 30, "b" * 40], "labels": [1, -1]})
    kept, notes = fits(policy, rows, STEPS)
    assert kept == ["1"] and "1 of 1 rows cut at 64 tokens" in notes[0]


@pytest.mark.parametrize("source", [POLICY, POPULATION])
def test_K23_prompts_leave_room_for_the_answer(policy, source):
    """Prompt and max_completion_length together count; the reason names the positions, or the
    option where that is the bound.
    """
    rows = rows_of({"prompt": "a" * 50}, {"prompt": "a" * 100})  # and a BOS
    assert fits(policy, rows, source, max_completion_length=13) == (
        ["1"],
        [
            "1 of 2 rows left out: a prompt of more than 51 tokens, which the model's 64 positions"
            " leave it beside max_completion_length=13"
        ],
    )
    with pytest.raises(
        UsageError,
        match=r"every row has a prompt of more than 50 tokens.*Lower max_completion_length",
    ):
        fits(policy, rows, source, max_completion_length=14)
    with pytest.raises(UsageError, match="max_completion_length=64 leaves a prompt no room"):
        fits(policy, rows, source, max_completion_length=64)
    assert (
        "max_prompt_length=9 tokens"
        in fits(
            policy,
            [*rows, *rows_of({"prompt": "a"})],
            source,
            max_completion_length=8,
            max_prompt_length=9,
        )[1][0]
    )


def test_K01_every_row_that_loses_something_is_named(policy):
    """Rows that cannot be trained on: one error with their places. What templates drop by design:
    one line with the count.
    """
    bare = replace(policy, tokenizer=char_tokenizer())
    bare.tokenizer.chat_template = THINKING
    question, thought = (
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>so</think>4"},
    )
    good = {"messages": [question, {"role": "assistant", "content": "4", "name": "Ann"}]}
    bad, early = (
        {"messages": [question, thought]},
        {"messages": [question, thought, *good["messages"]]},
    )
    kept, notes = fits(bare, rows_of(good, early), DEMONSTRATIONS, train_on="last")
    assert kept == ["1", "2"] and notes == [
        "not in the text that the chat template makes: `name` of assistant turns (2 of 2 rows),"
        " thoughts of earlier turns (1 of 2 rows)"
    ]
    with pytest.raises(UsageError, match="2 of 3 rows cannot be trained on as they are") as caught:
        fits(bare, rows_of(bad, good, bad), DEMONSTRATIONS)
    assert all(f"rows.jsonl:{n}: chat template" in str(caught.value) for n in (1, 3))
    masked = {"messages": [question, {**good["messages"][1], "weight": 0}]}
    with pytest.raises(
        UsageError,
        match=(
            r"every row has no supervised token\. Are its answers empty, or all its turns told not"
            r" to be"
        ),
    ):
        fits(bare, rows_of(masked), DEMONSTRATIONS)
    asked = rows_of({"prompt": [question, thought, question]})
    assert fits(bare, asked, POLICY, max_completion_length=8)[1] == [
        "not in the text that the chat template makes: thoughts of earlier turns (1 of 1 rows)"
    ]


def test_a_template_that_laurel_invents_is_announced_and_says_so_where_it_is_saved(
    policy, tmp_path
):
    """In run.json and in the saved folder; a model that has been saved has a template, so nothing
    is announced again.
    """
    tokenizer = char_tokenizer()
    policy.causal.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk))
    options = {
        "dataset": str(tmp_path / "talks.jsonl"),
        "eval_size": 0,
        "max_steps": 1,
        "prompts_per_step": 1,
        "learning_rate": 1e-3,
    }
    run = train(
        "sft",
        TrainConfig(model=str(tmp_path / "bare"), output_dir=str(tmp_path / "run"), **options),
        quiet=True,
    )
    assert any("no chat template: laurel's own is used" in note for note in run.facts["notes"])
    assert "Made by laurel" in (run.model / "chat_template.jinja").read_text()
    again = train(
        "sft",
        TrainConfig(model=str(run.model), output_dir=str(tmp_path / "again"), **options),
        quiet=True,
    )
    assert not any("chat template" in note for note in again.facts["notes"])


def test_many_rows_are_tokenised_with_a_bar_and_few_without(monkeypatch):
    """On a terminal's error stream; every row comes through, in order."""

    class Terminal(StringIO):
        def isatty(self):
            return True

    rows = [Row({"prompt": str(i)}, "here", str(i)) for i in range(MANY)]
    for count, shown in ((MANY, True), (MANY - 1, False)):
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        assert list(with_bar(rows[:count])) == rows[:count]
        assert ("tokenizing rows" in screen.getvalue()) is shown
