"""Splits by prompt, duplicates, and the order in which rows are drawn."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.core.sample import epoch_order, take
from laurel.data.source import Row, load_rows
from laurel.data.split import duplicates, prompt_key, split_rows


def rows_of(*prompts):
    return [
        Row({"prompt": prompt}, f"a.jsonl:{i}", f"x-{i}")
        for i, prompt in enumerate(prompts, start=1)
    ]


def test_prompts_that_differ_in_case_space_or_spelling_are_one():
    keys = {
        prompt_key(row)
        for row in rows_of("How many?", " how  many? ", "HOW\nMANY?", "\uff48ow many?")
    }
    assert len(keys) == 1
    assert prompt_key(rows_of("How few?")[0]) not in keys
    ask = {"role": "user", "content": "q"}
    dialogues = [
        Row({"messages": [ask, {"role": "assistant", "content": text}]}, "", "")
        for text in ("a", "b")
    ]
    assert prompt_key(dialogues[0]) == prompt_key(dialogues[1])
    assert prompt_key(Row({"messages": [ask]}, "", "")) == prompt_key(dialogues[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(0, 30), st.integers(0, 5))
def test_no_prompt_in_both_parts_and_no_row_lost(prompts, held_out, seed):
    rows = rows_of(*(f"p{number}" for number in prompts))
    try:
        train, held = split_rows(rows, held_out, seed)
    except UsageError:
        assert held_out >= len(rows) or held_out < min(Counter(prompts).values())
        return
    assert sorted(row.id for row in train + held) == sorted(row.id for row in rows)
    assert not {prompt_key(row) for row in train} & {prompt_key(row) for row in held}
    assert len(held) <= held_out and train
    assert [row for row in rows if row in held] == held


def test_split_is_exact_seeded_and_independent_of_the_order_of_rows():
    rows = rows_of(*(f"p{number}" for number in range(100)))
    train, held = split_rows(rows, 10, 0)
    assert len(held) == 10 and len(train) == 90
    assert split_rows(rows, 10, 0) == (train, held)
    assert {row.id for row in split_rows(rows[::-1], 10, 0)[1]} == {row.id for row in held}
    assert split_rows(rows, 10, 1)[1] != held
    assert split_rows(rows, 0)[0] == rows
    for held_out in (100, 101, -1):
        with pytest.raises(UsageError, match="hold out"):
            split_rows(rows, held_out)
    with pytest.raises(UsageError, match="no prompt has 1 rows"):
        split_rows(rows_of("a", "a", "b", "b"), 1)


def test_generated_addition_splits_without_leaks():
    train, held = split_rows(load_rows("addition", size=3_000), 200)
    assert len(held) == 200 and not {row.columns["prompt"] for row in train} & {
        row.columns["prompt"] for row in held
    }


def test_duplicates_are_counted_by_hand():
    rows = [*rows_of("a", "b", "A", "a"), Row({"prompt": "b", "answer": "1"}, "a.jsonl:5", "x-5")]
    found = duplicates(rows)
    assert (found.rows, found.identical, found.repeated) == (5, 1, 3)
    assert found.places == (
        ("a.jsonl:3", "a.jsonl:1"),
        ("a.jsonl:4", "a.jsonl:1"),
        ("a.jsonl:5", "a.jsonl:2"),
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("per_step", [1, 2, 3, 4, 7, 10])
def test_T65_sampler(world, per_step):
    """TRAPS T65: 7 prompts, G=3, world 1/2/3, 2 epochs: every key exactly G times per epoch, groups
    whole, shuffles differ,
    the same for the same seed, independent of the world size. Steps of every size, across the
    border of the epochs too.
    """
    n, group, seed = 7, 3, 11
    draws: list[int] = []
    while len(draws) < 2 * n:
        count = min(per_step, 2 * n - len(draws))
        step = take(len(draws), count, n, seed)
        per_rank = [step[rank::world] for rank in range(world)]
        keys = Counter(
            (prompt, sample) for part in per_rank for prompt in part for sample in range(group)
        )
        assert keys == Counter((prompt, sample) for prompt in step for sample in range(group))
        draws += step
    first, second = draws[:n], draws[n:]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second
    assert first == list(epoch_order(n, 0, seed)) and second == list(epoch_order(n, 1, seed))
    assert draws == take(0, 2 * n, n, seed) != take(0, 2 * n, n, seed + 1)


@given(
    st.integers(1, 30),
    st.integers(0, 100),
    st.lists(st.integers(0, 12), max_size=8),
    st.integers(0, 3),
)
def test_take_depends_on_the_cursor_alone(n, cursor, steps, seed):
    """Drawing a + b rows is drawing a, then b: what dynamic sampling and resuming need."""
    whole = take(cursor, sum(steps), n, seed)
    parts = []
    for count in steps:
        parts += take(cursor + len(parts), count, n, seed)
    assert parts == whole


def test_order_is_uniform_enough_and_pinned():
    """Each of the 6 orders of 3 rows comes up; 600 epochs, expected 100 each. The literal order
    guards resumed runs.
    """
    counts = Counter(epoch_order(3, epoch, 0) for epoch in range(600))
    assert len(counts) == 6 and min(counts.values()) > 60
    assert take(0, 5, 5, 0) == list(epoch_order(5, 0, 0)) == PINNED
    for wrong in ((0, 1, 0), (-1, 1, 5), (0, -1, 5)):
        with pytest.raises(UsageError, match="cannot draw"):
            take(*wrong, 0)


PINNED = [4, 2, 1, 0, 3]
