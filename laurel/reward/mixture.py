"""Several rewards, one number per sample: call each once per step, join by key, weigh, gate, and
never turn a failure into a zero.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MappingView, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from laurel.core.errors import LaurelError, UsageError
from laurel.core.result import ENVIRONMENT, Abstain, Failed, Result, Score, as_result
from laurel.core.sample import Group, Key
from laurel.reward.load import Reward, distinct_names, load_reward, load_verifier
from laurel.reward.verifiers import NEEDS, VERIFIERS

TIMEOUT = 60.0
MAX_FAILED_FRACTION = 0.5


@dataclass(frozen=True, slots=True)
class Mixture:
    """Rewards with weights.

        reward_i = sum over the rewards that scored of weight * score, times the gates (a gate never
        lifts a negative sum)

    A sample that any reward Failed on has reward None: it is excluded and counted. One that every
    reward abstains on too. With gates alone the sum is 1. timeout: seconds for one call of one
    reward with all samples of a step.
    """

    rewards: tuple[Reward, ...]
    timeout: float = TIMEOUT
    max_failed_fraction: float = MAX_FAILED_FRACTION

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which results are kept."""
        return tuple(reward.name for reward in self.rewards)

    @property
    def win_chances(self) -> bool:
        """Is the sum the mean P(better than another answer to the prompt), of one judge?"""
        if len(self.rewards) != 1 or self.rewards[0].weight != 1.0:
            return False
        return bool(getattr(self.rewards[0].function, "win_chances", False))

    def score(self, groups: Sequence[Group], *, refuse: bool = True) -> list[Group]:
        """The same groups with `results` and `rewards` filled.

        Each function is called once, concurrently with the others, with all samples in a row:
        `prompts`, `completions` (text, or messages where the row's prompt is messages),
        `completion_ids`, and every other column repeated per completion. A group whose environment
        failed is shown to no reward: each of them has failed on it. Raises LaurelError if more than
        `max_failed_fraction` of the samples have a failed result; refuse False: that is left to who
        knows all of the step (`failures`, `refuse`).
        """
        call = RewardCall.of([group for group in groups if ENVIRONMENT not in group.results])
        tables = (
            run_all(self.rewards, call, self.timeout) if call.keys else [[] for _ in self.rewards]
        )
        by_key: list[dict[Key, Result]] = [
            dict(zip(call.keys, table, strict=True)) for table in tables
        ]
        for group in groups:
            for table in by_key if ENVIRONMENT in group.results else ():
                table.update(
                    {
                        s.key: why
                        for s, why in zip(group.samples, group.results[ENVIRONMENT], strict=True)
                    }
                )
        scored = []
        for group in groups:
            columns = {
                reward.name: tuple(table[sample.key] for sample in group.samples)
                for reward, table in zip(self.rewards, by_key, strict=True)
            }
            rewards = tuple(
                self.combine([columns[name][i] for name in self.names])
                for i in range(len(group.samples))
            )
            scored.append(replace(group, results=columns, rewards=rewards))
        if refuse:
            self.refuse(*self.failures(scored))
        return scored

    def combine(self, results: Sequence[Result]) -> float | None:
        """One sample's results, in the order of the rewards, as one number; None excludes the
        sample.
        """
        pairs = list(zip(self.rewards, results, strict=True))
        if any(isinstance(result, Failed) for result in results):
            return None
        added = [
            reward.weight * result.value
            for reward, result in pairs
            if not reward.gate and isinstance(result, Score)
        ]
        gates = [
            result.value for reward, result in pairs if reward.gate and isinstance(result, Score)
        ]
        if not added and (not gates or not all(reward.gate for reward in self.rewards)):
            return None
        total = sum(added) if added else 1.0
        return total * math.prod(gates) if total > 0 else total

    def failures(self, groups: Sequence[Group]) -> tuple[int, int, str, str]:
        """Of scored groups: how many samples failed, of how many, and of the first failure where it
        was and what it said.
        """
        failures = [
            (name, sample, result)
            for group in groups
            for i, sample in enumerate(group.samples)
            for name in self.names
            if isinstance(result := group.results[name][i], Failed)
        ]
        total = sum(len(group.samples) for group in groups)
        failed = len({sample.key for _, sample, _ in failures})
        if not failures:
            return 0, total, "", ""
        name, sample, result = failures[0]
        where = "environment" if sample.finish == "error" else f"reward `{name}`"
        return (
            failed,
            total,
            where,
            f"The first: {result.reason.rstrip('.')}. On the completion {sample.text[:300]!r}.",
        )

    def refuse(self, failed: int, total: int, where: str, first: str) -> None:
        """Raises LaurelError if more than `max_failed_fraction` of `total` samples failed."""
        if failed > self.max_failed_fraction * total:
            what = (
                f"{failed} of {total} samples could not be scored (at most"
                f" {self.max_failed_fraction:.0%} may fail)."
            )
            raise LaurelError(what, where=where, fix=first)


def load_rewards(
    names: Sequence[str | Callable[..., Any]] | None,
    weights: Sequence[float] | None,
    rows: Sequence[Any],
    *,
    timeout: float | None = None,
    max_failed_fraction: float | None = None,
) -> Mixture:
    """The mixture of a run, checked before any weight is loaded.

    names: built-in verifiers, `module.function`, `file.py:function` or callables; None: the
    verifier that each row's `task` names. weights: one per reward, default 1 (a gate has none).
    rows: the dataset, as mappings or `laurel.data` rows. Errors: UsageError naming the option, the
    reward and what is missing.
    """
    table = [
        (getattr(row, "columns", row), getattr(row, "where", f"row {number}"))
        for number, row in enumerate(rows, start=1)
    ]
    rewards = (_by_task(table),) if names is None else _by_name(names, table)
    limit = MAX_FAILED_FRACTION if max_failed_fraction is None else max_failed_fraction
    return Mixture(
        _weighted(rewards, weights),
        TIMEOUT if timeout is None else timeout,
        limit,
    )


def _by_name(
    names: Sequence[str | Callable[..., Any]], table: Sequence[tuple[Mapping[str, Any], str]]
) -> tuple[Reward, ...]:
    """The rewards of these names, each checked against the columns of the dataset."""
    if not names:
        raise UsageError(
            "no reward is named.",
            where="rewards",
            fix="Name one, or leave the option out to use the rows' `task`.",
        )
    columns = {name for row, _ in table for name in row} - {"prompt"} if table else None
    rewards = distinct_names([load_reward(name, columns) for name in names])
    for source, reward in zip(names, rewards, strict=True):
        if isinstance(source, str):
            _check_columns(source, table)
        clash = sorted({"prompts", "completions", "completion_ids"} & (columns or set()))
        if clash and not reward.judges:
            raise UsageError(
                f"the dataset's column `{clash[0]}` has the name of an argument of every reward.",
                where="dataset",
                fix="Rename it.",
            )
    return rewards


def _weighted(rewards: Sequence[Reward], weights: Sequence[float] | None) -> tuple[Reward, ...]:
    """The rewards with their weights, one each; a gate's weight must be 1."""
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards):
        raise UsageError(
            f"{len(weights)} weights for {len(rewards)} rewards.",
            where="reward_weights",
            fix="Give one per reward, in their order.",
        )
    weighted: list[Reward] = []
    for reward, weight in zip(rewards, weights, strict=True):
        if reward.gate and weight != 1.0:
            raise UsageError(
                f"`{reward.name}` is a gate: it multiplies and has no weight.",
                where="reward_weights",
                fix="Give it 1.",
            )
        if not math.isfinite(weight):
            raise UsageError(f"the weight of `{reward.name}` is {weight}.", where="reward_weights")
        weighted.append(replace(reward, weight=float(weight)))
    return tuple(weighted)


def metrics(groups: Sequence[Group]) -> dict[str, tuple[float, int]]:
    """(sum, count) per metric: `rewards/<name>/mean` over the samples it scored, `/failed` and
    `/abstained` over all samples.
    """
    sums: dict[str, tuple[float, int]] = {}
    for group in groups:
        for name, results in group.results.items():
            scores = [result.value for result in results if isinstance(result, Score)]
            for metric, total, count in (
                (f"rewards/{name}/mean", sum(scores), len(scores)),
                (
                    f"rewards/{name}/failed",
                    sum(isinstance(result, Failed) for result in results),
                    len(results),
                ),
                (
                    f"rewards/{name}/abstained",
                    sum(isinstance(result, Abstain) for result in results),
                    len(results),
                ),
            ):
                before = sums.get(metric, (0.0, 0))
                sums[metric] = (before[0] + total, before[1] + count)
    return sums


def _by_task(table: Sequence[tuple[Mapping[str, Any], str]]) -> Reward:
    """The verifier named by the rows' `task`; with several tasks, each row's own."""
    fix = f"Name a reward with --rewards. Built in: {', '.join(sorted(VERIFIERS))}."
    if not table:
        raise UsageError("no rows to take the reward from.", where="rewards", fix=fix)
    for row, where in table:
        if not isinstance(row.get("task"), str):
            raise UsageError(
                "the row has no column `task` that names its verifier.", where=where, fix=fix
            )
    tasks = list(dict.fromkeys(row["task"] for row, _ in table))
    verifiers = {task: load_verifier(task) for task in tasks}
    for task in tasks:
        _check_columns(task, [(row, where) for row, where in table if row["task"] == task])
    if len(tasks) == 1:
        return load_reward(tasks[0])

    def judge(answer: str, row: Mapping[str, Any]) -> Result:
        return verifiers[row["task"]](answer, row)

    return Reward("task", judge, judges=True)


def _check_columns(name: str, table: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    for choices in NEEDS.get(name, ()):
        for row, where in table:
            if not any(choice in row for choice in choices):
                wanted = " or ".join(f"`{choice}`" for choice in choices)
                raise UsageError(
                    f"the verifier `{name}` needs the column {wanted}.",
                    where=where,
                    fix=f"The row has: {', '.join(row)}.",
                )


THREADS = 2


GRACE_SECONDS = 10.0


UNORDERED = (Mapping, Set, MappingView, str, bytes, bytearray)


@dataclass(frozen=True, slots=True)
class RewardCall:
    """The samples of a step as the columns that rewards are called with.

    Position i of each belongs to keys[i].
    """

    keys: tuple[Key, ...]
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    answers: list[str]
    rows: list[Mapping[str, Any]]
    columns: dict[str, list[Any]]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> RewardCall:
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

    def arguments(self, reward: Reward, only: int | None = None) -> dict[str, list[Any]]:
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


def run_all(rewards: Sequence[Reward], call: RewardCall, timeout: float) -> list[list[Result]]:
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


def _sync(reward: Reward, call: RewardCall, table: list[Result], deadline: float) -> None:
    if reward.judges:
        _judge(reward, call, table, deadline)
        return
    try:
        _fill_results(table, reward.function(**call.arguments(reward)))
    except (Exception, SystemExit) as error:
        if len(table) == 1:
            table[0] = describe_failure(error)
            return
        for i in range(len(table)):
            table[i] = _judge_alone(reward, call, i)


def _judge_alone(reward: Reward, call: RewardCall, i: int) -> Result:
    """A sample by itself, after the whole list raised: so only the culprit fails."""
    alone: list[Result] = [Failed("no result")]
    try:
        _fill_results(alone, reward.function(**call.arguments(reward, i)))
    except (Exception, SystemExit) as error:
        return describe_failure(error)
    return alone[0]


def _judge(reward: Reward, call: RewardCall, table: list[Result], deadline: float) -> None:
    """A verifier over all samples, two at a time (most of the wait is for workers).

    Each is bounded by itself; none starts late.
    """

    def one(i: int) -> None:
        if time.monotonic() >= deadline:
            return
        try:
            table[i] = as_result(reward.function(call.answers[i], call.rows[i]))
        except (Exception, SystemExit) as error:
            table[i] = describe_failure(error)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(one, range(len(table))))


def _async_all(
    waiting: Sequence[tuple[Reward, list[Result]]], call: RewardCall, timeout: float
) -> None:
    async def one(reward: Reward, table: list[Result]) -> None:
        try:
            _fill_results(table, await reward.function(**call.arguments(reward)))
        except (Exception, SystemExit) as error:
            if len(table) == 1:
                table[0] = describe_failure(error)
                return
            await asyncio.gather(*(alone(reward, table, i) for i in range(len(table))))

    async def alone(reward: Reward, table: list[Result], i: int) -> None:
        single: list[Result] = [Failed("no result")]
        try:
            _fill_results(single, await reward.function(**call.arguments(reward, i)))
            table[i] = single[0]
        except (Exception, SystemExit) as error:
            table[i] = describe_failure(error)

    async def all_of_them() -> None:
        await asyncio.wait(
            [asyncio.ensure_future(one(reward, table)) for reward, table in waiting],
            timeout=timeout,
        )

    asyncio.run(all_of_them())


def _fill_results(table: list[Result], values: Any) -> None:
    """Values into results, one each.

    Another number of values fails every sample: which belongs to which is not known.
    """
    found = as_result_list(values, len(table))
    table[:] = (
        [Failed(found)] * len(table)
        if isinstance(found, str)
        else [as_result(value) for value in found]
    )


def as_result_list(values: Any, count: int) -> list[Any] | str:
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


def describe_failure(error: BaseException) -> Failed:
    """What was raised and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return Failed(f"{type(error).__name__}: {error}{place}")
