"""A configuration model as command-line options: `--config FILE`, then `--name value` for what
differs. Never imports torch.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from laurel.core.config import build_config, translate_names
from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.trl import Request
from laurel.core.trl_names import TABLE

Config = TypeVar("Config", bound=BaseModel)


def add_options(
    parser: argparse.ArgumentParser,
    kind: type[BaseModel],
    *,
    only: Collection[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Give `parser` one `--name` per field of `kind`, and `--config` and `--print_config`.

    only: leave out every other field (for a help text). defaults: what the help text shows instead
    of the field's own default. Values stay text here; `read_options` validates them.
    """
    parser.allow_abbrev = False
    words = [
        str(action.metavar or action.dest)
        for action in parser._actions
        if not action.option_strings
    ]
    parser.usage = " ".join(
        ["%(prog)s", *(f"[{word}]" for word in words), "[--config FILE] [--name value ...]"]
    )
    about = parser.add_argument_group("configuration")
    about.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file of options; options on the command line win over it",
    )
    about.add_argument(
        "--print_config",
        action="store_true",
        help="print the resolved configuration as YAML, and leave",
    )
    for title, names in groups(kind).items():
        chosen = [name for name in names if only is None or name in only]
        group = parser.add_argument_group(title) if chosen else None
        for name in chosen:
            field = kind.model_fields[name]
            default = field.default if defaults is None else defaults.get(name, field.default)
            meaning = f"{field.description}{shown(default)}".replace("%", "%%")
            typing.cast(Any, group).add_argument(
                f"--{name}", default=argparse.SUPPRESS, help=meaning, **_arity(field.annotation)
            )


def read_options(
    args: argparse.Namespace,
    kind: type[Config],
    *,
    resolve: Callable[[Config], Config] | None = None,
    ask: Request | None = None,
) -> Config:
    """The configuration that the arguments ask for: the YAML file, overridden by what the command
    line gives.

    A problem in the file is a UsageError that names the file; one on the command line names the
    option. With `--print_config` the configuration (after `resolve`) goes to standard output as
    YAML and the program ends with exit code 0. Both may use names of TRL's; `ask` tells for which
    algorithm.
    """
    values: dict[str, Any] = {}
    words, ask = given(args, kind), ask or Request()
    if args.config is not None:
        read, place = read_yaml(args.config), str(args.config)
        values = resolve_paths(
            args.config, translate_names(read, kind, where=place, ask=replace(ask, given=words))
        )
        build_config(values, kind, where=place, ask=ask)
        ask = replace(ask, given={**read, **values})
    words = translate_names(words, kind, where="command line", ask=ask)
    config = build_config({**values, **words}, kind, where="command line", ask=ask)
    if args.print_config:
        print(as_yaml(resolve(config) if resolve is not None else config), end="")
        raise SystemExit(0)
    return config


def given(args: argparse.Namespace, kind: type[BaseModel]) -> dict[str, Any]:
    """What the command line gives: options of the model, and names of TRL's."""
    found = vars(args)
    own = {
        name: parse(value, kind.model_fields[name].annotation)
        for name, value in found.items()
        if name in kind.model_fields
    }
    return own | {name: foreign(found[name]) for name in found if name in TABLE and name not in own}


def foreign(words: Sequence[str]) -> Any:
    """The value of a name of TRL's as the command line gives it: no word is true, one is itself,
    several are a list.
    """
    items = [
        item for text in words for item in (_yaml_list(text) if text.startswith("[") else [text])
    ]
    return (
        True
        if not words
        else items[0]
        if len(items) == 1 and not words[0].startswith("[")
        else items
    )


def add_foreign(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """Take every name of TRL's that the model has not, too; no help text shows them."""
    for name in TABLE:
        if name not in kind.model_fields:
            parser.add_argument(
                f"--{name}", nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )


def add_hidden(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """One `--name` per field of `kind` that the parser has not; no help text shows them."""
    there = {action.dest for action in parser._actions}
    for name, field in kind.model_fields.items():
        if name not in there:
            parser.add_argument(
                f"--{name}",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                **_arity(field.annotation),
            )


def parse(value: str | Sequence[str], annotation: Any) -> Any:
    """Text from the command line as the model wants it: `null` is None where the option may be,
    `[a, b]` a list, the rest stays text.

    Numbers and booleans are left to the model's own validation, so that a text option keeps "1",
    "true" and "1e3" as they are.
    """
    wanted, optional = _plain(annotation)
    if isinstance(value, str):
        return None if optional and value in ("null", "~") else value
    if optional and list(value) in (["null"], ["~"]):
        return None
    items: list[Any] = []
    for text in value:
        items.extend(_yaml_list(text) if typing.get_origin(wanted) is list else [text])
    return items


def groups(kind: type[BaseModel]) -> dict[str, list[str]]:
    """The fields of a model under the comments that head them in its source: {"optimiser":
    ["learning_rate", ...], ...}.
    """
    found: dict[str, list[str]] = {}
    title = "options"
    for line in inspect.getsource(kind).splitlines():
        if heading := re.match(r"    # (\w.*)$", line):
            title = heading[1]
        elif (field := re.match(r"    (\w+):", line)) and field[1] in kind.model_fields:
            found.setdefault(title, []).append(field[1])
    headed = {name for names in found.values() for name in names}
    if rest := [name for name in kind.model_fields if name not in headed]:
        found.setdefault("options", []).extend(rest)
    return found


def shown(default: Any) -> str:
    """A default as the help text ends with it; nothing for None, whose meaning the description
    tells.
    """
    if default is None:
        return ""
    if isinstance(default, list | tuple):
        default = " ".join(str(item) for item in typing.cast(Sequence[Any], default)) or "none"
    text = (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
    return f" (default {text})"


def type_words(annotation: Any) -> str:
    """The type of a field in a word or two: `integer`, `number`, `text`, `true|false`, `a|b|c`,
    `list of text`.
    """
    wanted, _ = _plain(annotation)
    if typing.get_origin(wanted) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(wanted))
    if typing.get_origin(wanted) is list:
        return f"list of {type_words(typing.get_args(wanted)[0])}"
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        return "|".join(type_words(one) for one in typing.get_args(wanted))
    return {int: "integer", float: "number", str: "text", bool: "true|false"}[wanted]


def as_yaml(config: BaseModel) -> str:
    """A configuration as YAML that `--config` reads back to the same."""
    import yaml

    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=140)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """(the type without None, whether None is allowed)."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and types.NoneType in parts:
        return next(part for part in parts if part is not types.NoneType), True
    return annotation, False


def _arity(annotation: Any) -> dict[str, Any]:
    """How argparse reads a field: a flag may stand alone, a list takes several words and
    repetitions, all else one word.
    """
    wanted, _ = _plain(annotation)
    if typing.get_origin(wanted) is list:
        item = type_words(typing.get_args(wanted)[0]).upper()
        return {"nargs": "+", "action": "extend", "metavar": item}
    if wanted is bool or bool in typing.get_args(wanted):
        return {"nargs": "?", "const": "true", "metavar": type_words(wanted)}
    words = type_words(wanted)
    return {"metavar": words if "|" in words else words.upper()}


def _yaml_list(text: str) -> list[Any]:
    """`[a, b]` as the list of its texts; any other text as a list of itself."""
    import yaml

    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        items = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UsageError(
            f"not a YAML list: {text}", where="command line", fix=" ".join(str(error).split())
        ) from None
    return items if isinstance(items, list) else [text]
