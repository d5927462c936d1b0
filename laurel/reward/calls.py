"""Calling rewards: once per step each, all at a time, every wait with a deadline, one result per
sample whatever happens.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Mapping, MappingView, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from laurel.core.errors import LaurelError
from laurel.core.result import Failed, Result, as_result
from laurel.core.sample import Group, Key
from laurel.reward.load import Reward

THREADS = 2
GRACE_SECONDS = 10.0
UNORDERED = (Mapping, Set, MappingView, str, bytes, bytearray)


@dataclass(frozen=True, slots=True)
class Call:
    """The samples of a step as the columns that rewards are called with.

    Position i of each belongs to keys[i].
    """

    keys: tuple[Key, ...]
    prompts: list
    completions: list
    completion_ids: list[list[int]]
    answers: list[str]
    rows: list[Mapping[str, Any]]
    columns: dict[str, list]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Call:
        """Flatten groups.

        A column that a row lacks is None there. Two samples of one key are an error: nothing could
        join them.
        """
        pairs = [(group, sample) for group in groups for sample in group.samples]
        keys = tuple(sample.key for _, sample in pairs)
        if len(set(keys)) != len(keys):
            raise LaurelError("two samples of a step have the same key.", where="rewards")
        names = dict.fromkeys(name for group in groups for name in group.row if name != "prompt")
        spoken = [isinstance(group.row.get("prompt"), (list, tuple)) for group, _ in pairs]
        return cls(
            keys=keys,
            prompts=[
                group.row.get("prompt", group.row.get("question", group.prompt))
                for group, _ in pairs
            ],
            completions=[
                list(sample.turns) if is_list else sample.text
                for is_list, (_, sample) in zip(spoken, pairs, strict=True)
            ],
            completion_ids=[list(sample.completion_ids) for _, sample in pairs],
            answers=[sample.answer for _, sample in pairs],
            rows=[group.row for group, _ in pairs],
            columns={name: [group.row.get(name) for group, _ in pairs] for name in names},
        )

    def arguments(self, reward: Reward, only: int | None = None) -> dict[str, list]:
        """The keyword arguments for a function, of all samples or of one.

        Fresh lists, so that no reward can change another's.
        """
        every = {
            **self.columns,
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
        }
        cut = slice(None) if only is None else slice(only, only + 1)
        return {
            name: values[cut]
            for name, values in every.items()
            if reward.accepts is None or name in reward.accepts
        }


def run_all(rewards: Sequence[Reward], call: Call, timeout: float) -> list[list[Result]]:
    """One result per sample for each reward, after at most `timeout` seconds and a grace of 10 s
    for verifiers to end by themselves.

    A reward that is late leaves its unfinished samples Failed. Its thread cannot be killed: it is
    abandoned, as a daemon.
    """
    late = Failed(f"no answer within {timeout:g} s (reward_timeout)")
    tables: list[list[Result]] = [[late] * len(call.keys) for _ in rewards]
    deadline = time.monotonic() + timeout
    threads = []
    waiting = [
        (reward, table)
        for reward, table in zip(rewards, tables, strict=True)
        if reward.asynchronous
    ]
    jobs: list[tuple[Any, tuple[Any, ...]]] = [
        (_sync, (reward, call, table, deadline))
        for reward, table in zip(rewards, tables, strict=True)
        if not reward.asynchronous
    ]
    if waiting:
        jobs.append((_async_all, (waiting, call, timeout)))
    for function, arguments in jobs:
        thread = threading.Thread(
            target=function, args=arguments, daemon=True, name="laurel-reward"
        )
        thread.start()
        threads.append(thread)
    patience = GRACE_SECONDS if any(reward.judges for reward in rewards) else 0.0
    for thread in threads:
        thread.join(max(0.0, deadline + patience - time.monotonic()))
    return [list(table) for table in tables]


def _sync(reward: Reward, call: Call, table: list[Result], deadline: float) -> None:
    if reward.judges:
        _judge(reward, call, table, deadline)
        return
    try:
        _fill(table, reward.function(**call.arguments(reward)))
    except (Exception, SystemExit) as error:
        if len(table) == 1:
            table[0] = failure(error)
            return
        for i in range(len(table)):
            table[i] = _one(reward, call, i)


def _one(reward: Reward, call: Call, i: int) -> Result:
    """A sample by itself, after the whole list raised: so only the culprit fails."""
    alone: list[Result] = [Failed("no result")]
    try:
        _fill(alone, reward.function(**call.arguments(reward, i)))
    except (Exception, SystemExit) as error:
        return failure(error)
    return alone[0]


def _judge(reward: Reward, call: Call, table: list[Result], deadline: float) -> None:
    """A verifier over all samples, two at a time (most of the wait is for workers).

    Each is bounded by itself; none starts late.
    """

    def one(i: int) -> None:
        if time.monotonic() >= deadline:
            return
        try:
            table[i] = as_result(reward.function(call.answers[i], call.rows[i]))
        except (Exception, SystemExit) as error:
            table[i] = failure(error)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(one, range(len(table))))


def _async_all(waiting: Sequence[tuple[Reward, list[Result]]], call: Call, timeout: float) -> None:
    async def one(reward: Reward, table: list[Result]) -> None:
        try:
            _fill(table, await reward.function(**call.arguments(reward)))
        except (Exception, SystemExit) as error:
            if len(table) == 1:
                table[0] = failure(error)
                return
            await asyncio.gather(*(alone(reward, table, i) for i in range(len(table))))

    async def alone(reward: Reward, table: list[Result], i: int) -> None:
        single: list[Result] = [Failed("no result")]
        try:
            _fill(single, await reward.function(**call.arguments(reward, i)))
            table[i] = single[0]
        except (Exception, SystemExit) as error:
            table[i] = failure(error)

    async def all_of_them() -> None:
        await asyncio.wait(
            [asyncio.ensure_future(one(reward, table)) for reward, table in waiting],
            timeout=timeout,
        )

    asyncio.run(all_of_them())


def _fill(table: list[Result], values: Any) -> None:
    """Values into results, one each.

    Another number of values fails every sample: which belongs to which is not known.
    """
    said = listed(values, len(table))
    table[:] = (
        [Failed(said)] * len(table)
        if isinstance(said, str)
        else [as_result(value) for value in said]
    )


def listed(values: Any, count: int) -> list[Any] | str:
    """What a function returned as a list of `count` values, or why it is none.

    Lists, tuples, arrays, tensors and iterators have an order. A dict would give its keys, a set
    its members in any order, a text its
    characters: none of them says which value belongs to which completion.
    """
    kind = type(values).__name__
    if len(getattr(values, "shape", ())) > 1:
        return f"returned {kind} of shape {tuple(values.shape)}, not one number for each completion"
    try:
        iterator = None if isinstance(values, UNORDERED) else iter(values)
    except TypeError:
        iterator = None
    if iterator is None:
        return f"returned {kind}, not a list of numbers"
    found = list(islice(iterator, count + 1))
    if len(found) != count:
        number = (
            len(values)
            if hasattr(values, "__len__")
            else "more"
            if len(found) > count
            else len(found)
        )
        return f"returned {number} values for {count} completions"
    return found


def failure(error: BaseException) -> Failed:
    """What was raised and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return Failed(f"{type(error).__name__}: {error}{place}")
