"""Options as pydantic models whose errors name the option, its value and the nearest right name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.config import JsonDict

from laurel.core.errors import UsageError, misspelt
from laurel.core.trl import Request
from laurel.core.trl_names import TABLE, translate_options
from laurel.core.validation_errors import describe_errors, dotted_location

Config = TypeVar("Config", bound=BaseModel)


def option(default: Any, meaning: str, *, group: str = "", **limits: Any) -> Any:
    """A field: its default, its line in `--help`, its limits.

    group: a heading of `--help`, for this field and those after it.
    """
    extra: JsonDict | None = {"group": group} if group else None
    return Field(default=default, description=meaning, json_schema_extra=extra, **limits)


def _validate_in_python(
    kind: type[BaseModel], values: Any, check: Callable[[Any], Any], info: ValidationInfo
) -> Any:
    """`TrainConfig(lerning_rate=1)`; with a context, `check_options` does all this itself."""
    if info.context is not None or not isinstance(values, Mapping):
        return check(values)
    request = Request(where=kind.__name__)
    given = translate_names(cast("Mapping[str, Any]", values), kind, request)
    return _checked(given, kind, request, check)


class Options(BaseModel):
    """A configuration whose errors are UsageErrors, however it is built."""

    model_config = ConfigDict(
        extra="forbid", validate_default=False, frozen=True, protected_namespaces=()
    )
    universal: ClassVar[tuple[str, ...]] = ()
    """Of training options: those without a default for all that every algorithm has."""

    _in_python = model_validator(mode="wrap")(cast(Any, classmethod(_validate_in_python)))


def translate_names(values: Mapping[str, Any], kind: type[BaseModel], request: Request) -> Any:
    """The values by laurel's names: training options have names of TRL's, others only their own."""
    trains = getattr(kind, "universal", ())
    return translate_options(values, kind.model_fields, request) if trains else dict(values)


def check_options(values: Mapping[str, Any], kind: type[Config], request: Request) -> Config:
    """Values by laurel's names as a `kind`. All problems are one UsageError at `request.where`."""
    return _checked(values, kind, request, partial(kind.model_validate, context=request))


def _checked(
    values: Mapping[str, Any], kind: type[BaseModel], request: Request, check: Callable[[Any], Any]
) -> Any:
    """Unknown names first, then pydantic's `check`. One text where a list is wanted is its item."""
    fields = kind.model_fields
    if unknown := [name for name in values if name not in fields]:
        raise unknown_options(unknown, kind, request)
    listed = dict(values)
    for name, value in values.items():
        if isinstance(value, str) and takes_list(fields[name].annotation):
            listed[name] = [value]
    try:
        return check(listed)
    except ValidationError as error:
        problems = error.errors()
        if unknown := [
            dotted_location(one) for one in problems if one["type"] == "extra_forbidden"
        ]:
            raise unknown_options(unknown, kind, request) from None
        raise UsageError(describe_errors(problems, fields), where=request.where) from None


def takes_list(annotation: Any) -> bool:
    """Is a list among the types of this annotation?"""
    return list in (get_origin(annotation), *map(get_origin, get_args(annotation)))


def unknown_options(names: list[str], kind: type[BaseModel], request: Request) -> UsageError:
    """The error for names that are no options, each with what to write instead."""
    hints = {name: suggestion(name, kind, request) for name in names}
    if len(names) == 1:
        return UsageError(f"unknown option `{names[0]}`.", where=request.where, fix=hints[names[0]])
    what = f"unknown options {', '.join(f'`{name}`' for name in names)}."
    each = (f"`{name}`: {hint or 'nothing like it.'}" for name, hint in hints.items())
    return UsageError(what, where=request.where, fix=" ".join(each))


def suggestion(name: str, kind: type[BaseModel], ask: Request | None = None) -> str:
    """What to write instead of an option that there is not; never one of another algorithm's."""
    universal: tuple[str, ...] = getattr(kind, "universal", ())
    if universal and name in TABLE:
        return TABLE[name].say
    near = misspelt(name, kind.model_fields)
    if not near:
        return ""
    everywhere = near in universal or kind.model_fields[near].default is not None
    if ask is not None and ask.algorithm and not everywhere and near not in ask.own():
        return ""
    return f"Did you mean `{near}`?"
