"""Rows of a batch: whoever is taken out, put together or split off keeps what is its own, in an
order that is said.
"""

import random
from dataclasses import fields

import pytest
import torch

from laurel.core.microbatch import units_by_group
from laurel.core.sample import Group, Key, Sample
from laurel.rollout.pack import pack


def batch_of(*rows):
    """Rows of (start, length, group), every number of every column another row's never: ids,
    log-probs, temperatures, weights.
    """
    groups = {}
    for n, (start, length, group) in enumerate(rows):
        ids = tuple(100 * (n + 1) + t for t in range(start + length))
        key, mask = (
            Key("r", "s", str(group), n, 0),
            tuple(t != 1 or length == 2 for t in range(length)),
        )
        logps = tuple(-0.5 * (n + 1) - 0.01 * t for t in range(length))
        groups.setdefault(group, []).append(
            Sample(key, ids[:start], ids[start:], logps, mask, 1.0 + n, "eos", "", ())
        )
    batch = pack(
        [
            Group(str(g), {}, tuple(samples), rewards=(1.0,) * len(samples))
            for g, samples in groups.items()
        ]
    )
    number_NT = torch.tensor([key.sample for key in batch.keys])[:, None] + torch.linspace(
        0.1, 0.9, batch.loss_mask_NT.shape[1]
    )
    columns = {
        name: number_NT + 10 * i
        for i, name in enumerate(("weight_NT", "value_NT", "target_NT", "logp_ref_NT"))
    }
    return batch.replace(**columns)


def own(batch, part):
    """Does every row of the part hold, in every column, what the batch holds under the same key?"""
    row = {key: n for n, key in enumerate(batch.keys)}
    assert len(set(part.keys)) == len(part.keys)
    for m, key in enumerate(part.keys):
        for item in fields(batch):
            if item.name != "keys":
                ours, theirs = getattr(part, item.name)[m], getattr(batch, item.name)[row[key]]
                length = int(part.length_N[m]) + (
                    int(part.start_N[m]) if item.name.endswith("_NL") else 0
                )
                cut = slice(0, length) if ours.ndim else ...
                assert torch.equal(ours[cut], theirs[cut]), (key, item.name)
    return True


def samples(part):
    return [key.sample for key in part.keys]


MIXED = [(3, 4, 0), (3, 5, 0), (2, 1, 1), (2, 6, 1), (4, 2, 2), (3, 1, 0), (2, 3, 1), (4, 2, 3)]


def test_rows_are_taken_in_the_order_that_is_asked_for_with_all_that_is_theirs():
    batch = batch_of(*MIXED)
    for index in ([2, 0], [7, 6, 5, 4, 3, 2, 1, 0], [4], list(range(8))):
        part = batch.rows(index)
        assert [batch.keys[n] for n in index] == list(part.keys) and own(batch, part)
        assert part.ids_NL.shape[1] == int((part.start_N + part.length_N).max())
        assert part.loss_mask_NT.shape[1] == int(part.length_N.max())
    assert len(batch.rows([])) == 0


@pytest.mark.parametrize(
    "rows, limit, units, tokens",
    [
        (MIXED[:2], None, [[0, 1]], [12]),
        (MIXED[:2], 12, [[0, 1]], [12]),
        (MIXED[:2], 11, [[0], [1]], [7, 8]),
        ([(3, 2, 0), (4, 5, 0)], None, [[0, 1]], [14]),
        ([(3, 4, 0), (3, 5, 0), (3, 1, 0), (3, 2, 0)], 12, [[0, 1], [2, 3]], [12, 6]),
        ([(3, 4, 0), (2, 1, 1), (3, 5, 0), (2, 6, 1)], None, [[0, 2], [1, 3]], [12, 9]),
        ([(3, 4, 5)], 1, [[0]], [7]),
    ],
    ids=[
        "once",
        "fits",
        "does not fit",
        "other prompts",
        "the newest goes on",
        "in turns",
        "too long alone",
    ],
)
def test_units_by_hand(rows, limit, units, tokens):
    """A prompt that rows of a group share costs once a unit; a unit that would cost more than the
    limit is begun anew, and goes on.
    """
    assert units_by_group(*zip(*rows, strict=True), limit) == (units, tokens)


@pytest.mark.parametrize(
    "budget, how, parts",
    [
        (10, {}, [[0, 2], [1, 3]]),
        (9, {}, [[0], [2], [1, 3]]),
        (1, {}, [[0], [2], [1], [3]]),
        (16, {}, [[0, 2, 1], [3]]),
        (9, {"whole_groups": True}, [[0, 3], [2], [1]]),
        (19, {"whole_groups": True}, [[0, 3, 2], [1]]),
        (6, {"packed": True}, [[0, 3], [2], [1]]),
        (11, {"packed": True}, [[0, 3, 2], [1]]),
        (14, {"packed": True}, [[0, 3, 2, 1]]),
        (5, {"packed": True}, [[0], [2], [1, 3]]),
        (5, {"packed": True, "whole_groups": True}, [[0, 3], [2], [1]]),
    ],
    ids=str,
)
def test_micro_batches_by_hand(budget, how, parts):
    """Rows of 5, 3, 5 and 2 tokens, the first and the last of one group under one prompt of 1:
    longest first, then by place.
    """
    batch = batch_of((1, 4, 0), (2, 1, 1), (3, 2, 2), (1, 1, 0))
    found = list(batch.split(budget, **how))
    assert [samples(part) for part in found] == parts and all(own(batch, part) for part in found)


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_lost_or_mixed_up_and_no_micro_batch_is_larger_or_smaller_than_it_must(seed):
    """Random batches: every row once, with its own columns; groups whole and in order where asked;
    the next unit would not have fitted.
    """
    draw = random.Random(seed)
    starts = [draw.randint(1, 6) for _ in range(5)]
    rows = [
        (starts[g] + draw.choice((0, 0, 1)), draw.randint(1, 9), g)
        for g in draw.choices(range(5), k=20)
    ]
    batch = batch_of(*rows)
    start, length, group = (
        column.tolist() for column in (batch.start_N, batch.length_N, batch.group_N)
    )
    number = {key: n for n, key in enumerate(batch.keys)}
    for budget in (1, 9, 23, 60, 999):
        for packed in (False, True):
            for whole in (False, True):
                parts = list(batch.split(budget, packed=packed, whole_groups=whole))
                assert sorted(n for part in parts for n in samples(part)) == list(range(20))
                assert all(own(batch, part) for part in parts)
                units, tokens = units_by_group(
                    start,
                    length,
                    group if packed or whole else range(20),
                    budget if packed and not whole else None,
                )
                cost = {tuple(unit): spent for unit, spent in zip(units, tokens, strict=True)}
                of_row = {n: tuple(unit) for unit in units for n in unit}
                held = [
                    list(dict.fromkeys(of_row[number[key]] for key in part.keys)) for part in parts
                ]
                assert [[n for unit in part for n in unit] for part in held] == [
                    [number[key] for key in part.keys] for part in parts
                ]
                for i, (part, of) in enumerate(zip(parts, held, strict=True)):
                    used = sum(cost[unit] for unit in of) if packed else part.ids_NL.numel()
                    assert used <= budget or len(of) == 1
                    if i + 1 < len(parts):
                        more = (
                            cost[held[i + 1][0]]
                            if packed
                            else part.ids_NL.shape[1] * len(held[i + 1][0])
                        )
                        assert used + more > budget
