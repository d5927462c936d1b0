"""Hindsight relabelling: a sample becomes a demonstration of the instruction that it achieved."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

from laurel.core.bound_objects import bound_object
from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.data.formats import is_messages
from laurel.data.source import Row
from laurel.model.chat import encode_prompt
from laurel.reward.load import Reward, load_reward
from laurel.reward.mixture import RewardCall
from laurel.rollout.source import POLICY
from laurel.train.session import Session

RELABELLED = "relabelled"
"""The additional column of a relabelled group's row.

It has for each sample the prompt that it is trained under, or None.
"""
FIX = (
    "Give file.py:function or module.function: (prompts, completions, completion_ids, **columns) ->"
    " one prompt or None per completion."
)


def load_relabel(name: str | None, columns: Collection[str] | None = None) -> Reward:
    """The function that names the instruction which a completion achieved.

    It has the signature of a reward, and is checked like one. UsageError where it is not named,
    does not load, or asks for a column that is not there (columns None: not known, not checked).
    """
    if name is None:
        raise UsageError("which instruction did a completion achieve?", where="relabel", fix=FIX)
    if bound_object(name) is None and not re.fullmatch(r".+\.py:\w+|[\w.]+\.\w+", name):
        raise UsageError(f"`{name}` is no function.", where="relabel", fix=FIX)
    if RELABELLED in (columns or ()):
        raise UsageError(
            f"the dataset has a column `{RELABELLED}`, which hindsight writes.",
            where="dataset",
            fix="Rename it.",
        )
    try:
        found = load_reward(name, columns)
    except UsageError as error:
        raise UsageError(error.what, where=f"relabel={name}", fix=FIX) from error
    if found.judges or found.asynchronous:
        raise UsageError(
            "a verifier, or a function that is awaited, cannot relabel.",
            where=f"relabel={name}",
            fix=FIX,
        )
    return found


def relabel_in_hindsight(
    session: Session, rows: Sequence[Row], groups: list[Group], sums: Sums
) -> list[Group]:
    """The groups as demonstrations of what they achieved.

    They were scored and recorded under their own instructions. A sample's prompt is encoded anew
    from the instruction that it achieved, its sampled ids stay, its reward is 1. One that achieved
    nothing (None), or whose new prompt is longer than max_prompt_length, has reward None: it is
    left out of the loss and of its count.
    """
    prompts = achieved_goals(load_relabel(session.config.relabel), groups)
    return [
        relabelled(session, group, wanted, sums)
        for group, wanted in zip(groups, prompts, strict=True)
    ]


def relabelled(session: Session, group: Group, prompts: Sequence[Any], sums: Sums) -> Group:
    """One group under the instructions that its samples achieved."""
    tokenizer, tools = session.policy.tokenizer, group.row.get("tools")
    ids = [
        None if prompt is None else encode_prompt(tokenizer, prompt, tools=tools)
        for prompt in prompts
    ]
    fits = [i is not None and len(i) <= session.config.max_prompt_length for i in ids]
    samples = tuple(
        sample if i is None else replace(sample, prompt_ids=i)
        for sample, i in zip(group.samples, ids, strict=True)
    )
    kept = [prompt if fit else None for prompt, fit in zip(prompts, fits, strict=True)]
    own = sum(prompt == group.row["prompt"] for prompt in prompts)
    sums.add("hindsight/relabelled", sum(fits), len(fits))
    sums.add("hindsight/own", own, len(fits))
    sums.add("hindsight/too_long", sum(i is not None for i in ids) - sum(fits), len(fits))
    row = {**group.row, RELABELLED: kept}
    rewards = tuple(1.0 if fit else None for fit in fits)
    return replace(group, row=row, samples=samples, rewards=rewards)


def achieved_goals(relabel: Reward, groups: Sequence[Group]) -> list[list[Any]]:
    """What the function says of every sample of every group.

    An answer of another length, or that is no prompt, is an error.
    """
    call, where = RewardCall.of(groups), f"relabel, `{relabel.name}`"
    try:
        answer: Any = relabel.function(**call.arguments(relabel))
    except Exception as error:
        raise LaurelError(f"raised {type(error).__name__}: {error}.", where=where) from error
    listed = isinstance(answer, list | tuple)
    found = cast("Sequence[Any]", answer) if listed else ()
    if not listed or len(found) != len(call.keys):
        kind = f"{len(found)} prompts" if listed else type(answer).__name__
        raise LaurelError(
            f"returned {kind} for {len(call.keys)} completions.",
            where=where,
            fix="A list: one prompt or None for each.",
        )
    for prompt, asked, group_key in zip(found, call.prompts, call.keys, strict=True):
        if prompt is not None and not as_same_kind(prompt, asked):
            kind = "a text" if isinstance(asked, str) else "a list of messages"
            raise LaurelError(
                f"returned {prompt!r:.80}, not {kind} as the prompt was, and not None.",
                where=f"{where}, {group_key.prompt}",
            )
    answers = iter(found)
    return [[next(answers) for _ in group.samples] for group in groups]


def as_same_kind(prompt: Any, asked: Any) -> bool:
    """A text where a text was asked, a conversation where it was one."""
    return isinstance(prompt, str) if isinstance(asked, str) else is_messages(prompt)


HINDSIGHT = POLICY.without(
    "beta",
    "reference",
    "kl_placement",
    "kl_estimator",
    "env",
    "max_turns",
    "dynamic_sampling",
    "max_resamples",
    "overlong_buffer",
    "importance_sampling_correction",
    "importance_sampling_cap",
    name="relabelled prompts",
    revise=relabel_in_hindsight,
    off_policy=True,
).having(relabel=None)
"""x ~ policy, then put under the instruction that it achieved."""
