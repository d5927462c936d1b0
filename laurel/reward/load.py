"""From a name to a reward: a verifier, `module.function`, `file.py:function`, `model:FOLDER` or
`prm:FOLDER` (scorers), `judge:FILE.yaml` (AI feedback), or a callable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from laurel.core.bound_objects import bound_object, refuse_unbound
from laurel.core.errors import UsageError, nearest
from laurel.core.load import load_file, load_module
from laurel.core.protocols import Verifier
from laurel.data.reasoning import is_gym
from laurel.reward.patterns import Format
from laurel.reward.verifiers import VERIFIERS

MODULE = (
    "Modules are looked for in the current folder, then among the installed ones. A file:"
    " path/to/file.py:function."
)
GIVEN = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True, slots=True)
class Reward:
    """One reward of a mixture, checked and named.

    judges: a verifier `(answer, row)`, else a function in TRL's signature. asynchronous: it must be
    awaited. gate: it multiplies instead of adding. accepts: the names it takes, None for any
    (**columns).
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    judges: bool = False
    asynchronous: bool = False
    gate: bool = False
    accepts: frozenset[str] | None = None


def is_verifier(name: Any) -> bool:
    """Is this the name of a verifier that judges by itself, as a row's `task` may be?"""
    return isinstance(name, str) and (name in VERIFIERS or is_gym(name))


def load_verifier(name: str) -> Verifier:
    """A built-in verifier by name; `format:PATTERN` is the gate with that pattern,
    `reasoning_gym:TASK` that task's scorer.

    Unknown: UsageError with the nearest name.
    """
    if name.startswith("format:"):
        return Format(name.removeprefix("format:"))
    if is_gym(name):
        from laurel.reward.reasoning import gym_verifier

        return gym_verifier(name)
    if name not in VERIFIERS:
        raise UsageError(
            f"unknown verifier `{name}`.", where="verifier", fix=nearest(name, VERIFIERS)
        )
    return VERIFIERS[name]


def load_reward(source: str | Callable[..., Any], columns: Collection[str] | None = None) -> Reward:
    """One reward with its signature checked against the dataset's columns.

    columns: None where they are not known, and not checked. Errors: UsageError for an unknown name,
    a file or module that does not load, or a function that asks for what there is not.
    """
    if callable(source):
        return _checked(source, function_name(source), columns)
    name = source.strip()
    if (own := bound_object(name)) is not None:
        return _checked(own, function_name(own), columns)
    refuse_unbound(name, "rewards")
    if is_verifier(name) or name.startswith("format:"):
        verifier = load_verifier(name)
        gate = bool(getattr(verifier, "gate", False))
        return Reward(name.partition(":")[0], verifier, judges=True, gate=gate)
    # The scorers bring torch and transformers: only where one is asked for.
    if name.startswith("model:"):
        from laurel.reward.learned import parse

        return _checked(scorer := parse(name), function_name(scorer), columns)
    if name.startswith("prm:"):
        from laurel.reward import process

        return _checked(scorer := process.parse(name), function_name(scorer), columns)
    if name.startswith("judge:"):
        from laurel.reward import judged

        return _checked(asked := judged.parse(name), function_name(asked), columns)
    function, attribute = _function_of(name)
    return _checked(function, attribute, columns)


def _function_of(name: str) -> tuple[Callable[..., Any], str]:
    """The function of `module.function` or `file.py:function`, and its name there."""
    path, separator, attribute = name.rpartition(":")
    if separator and path.endswith(".py"):
        module = load_file(path, f"reward `{name}`")
    elif "." in name and not separator:
        path, _, attribute = name.rpartition(".")
        module = load_module(path, f"reward `{name}`", MODULE)
    else:
        fix = (
            nearest(name, VERIFIERS)
            or "A name, module.function, path/to/file.py:function, model:FOLDER, prm:FOLDER or"
            " judge:FILE.yaml."
        )
        raise UsageError(f"unknown reward `{name}`.", where="rewards", fix=fix)
    function = getattr(module, attribute, None)
    if callable(function):
        return function, attribute
    members = vars(module).items()
    known = [key for key, value in members if callable(value) and not key.startswith("_")]
    raise UsageError(
        f"`{path}` has no function `{attribute}`.",
        where=f"reward `{name}`",
        fix=nearest(attribute, known),
    )


def distinct_names(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """The same rewards under names that differ: the second `f` becomes `f_2`, the third `f_3`."""
    taken = {reward.name for reward in rewards}
    used: set[str] = set()
    out = []
    for reward in rewards:
        name = reward.name
        if name in used:
            name = next(
                new for number in count(2) if (new := f"{reward.name}_{number}") not in taken | used
            )
        used.add(name)
        out.append(replace(reward, name=name))
    return tuple(out)


def function_name(function: Callable[..., Any]) -> str:
    """A stable name: of a partial its function's, of a lambda `lambda`, of an object its
    class's.
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)


def _checked(function: Callable[..., Any], name: str, columns: Collection[str] | None) -> Reward:
    """The reward of a user's function, its signature checked against the dataset's columns."""
    where = f"reward `{name}`"
    parameters = _parameters(function, where)
    gate = bool(getattr(function, "gate", False))
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [item.name for item in parameters if item.kind in by_name]
    if names == ["answer", "row"]:
        return Reward(name, function, judges=True, gate=gate)
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    if not takes_any and not set(names) & set(GIVEN):
        raise UsageError(
            f"it takes none of {', '.join(GIVEN)}.",
            where=where,
            fix=(
                f"It takes: {', '.join(names) or 'nothing'}. Write def {name}(completions,"
                " **columns)."
            ),
        )
    if columns is not None:
        required = [
            item.name for item in parameters if item.default is item.empty and item.name in names
        ]
        _check_required(required, columns, where)
    return Reward(
        name,
        function,
        asynchronous=_is_async(function),
        gate=gate,
        accepts=None if takes_any else frozenset(names),
    )


def _parameters(function: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    """The parameters of a function, all of which can be passed by name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UsageError(
            "its signature cannot be read.",
            where=where,
            fix="Wrap it in a def with (prompts, completions, **columns).",
        ) from None
    if [item.name for item in parameters] == ["answer", "row"]:
        return parameters
    for item in parameters:
        if item.kind is item.POSITIONAL_ONLY and item.default is item.empty:
            raise UsageError(
                f"its parameter `{item.name}` is positional only.",
                where=where,
                fix="Arguments are passed by name.",
            )
    return parameters


def _check_required(required: Sequence[str], columns: Collection[str], where: str) -> None:
    """A UsageError for a required parameter that is neither given nor a column of the dataset."""
    known = [*GIVEN, *columns]
    missing = [parameter for parameter in required if parameter not in known]
    if missing:
        fix = (
            nearest(missing[0], known)
            + f" The dataset's columns: {', '.join(sorted(columns)) or 'none'}."
        )
        raise UsageError(
            f"it asks for `{'`, `'.join(missing)}`, which is neither given nor a column of the"
            " dataset.",
            where=where,
            fix=fix,
        )


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
