"""Options on the command line: `--config FILE`, then `--name value` for what differs.

The options are the fields of a pydantic model (`laurel.core.options`). Never imports torch.
"""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel

from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.options import check_options, translate_names
from laurel.core.trl import Request, format_value
from laurel.core.trl_names import TABLE

Config = TypeVar("Config", bound=BaseModel)
CONFIG = "a YAML file of options; options on the command line win over it"
PRINT_CONFIG = "print the resolved configuration as YAML, and leave"


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
    words = [f"[{one.metavar or one.dest}]" for one in parser._actions if not one.option_strings]
    parser.usage = " ".join(["%(prog)s", *words, "[--config FILE] [--name value ...]"])
    about = parser.add_argument_group("configuration")
    about.add_argument("--config", metavar="FILE", help=CONFIG)
    about.add_argument("--print_config", action="store_true", help=PRINT_CONFIG)
    for title, names in fields_by_heading(kind).items():
        group = parser.add_argument_group(title)
        for name in [name for name in names if only is None or name in only]:
            field = kind.model_fields[name]
            default = default_text((defaults or {}).get(name, field.default))
            meaning = f"{field.description}{default}".replace("%", "%%")
            group.add_argument(f"--{name}", help=meaning, **argparse_arguments(field.annotation))


def add_trl_names(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """Take every name of TRL's that the model has not, too; no help text shows them."""
    for name in TABLE.keys() - kind.model_fields.keys():
        parser.add_argument(f"--{name}", nargs="*", default=SUPPRESS, help=SUPPRESS)


def add_hidden(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """Take every field of `kind` that the parser has not; no help text shows them."""
    for name in kind.model_fields.keys() - {action.dest for action in parser._actions}:
        how = argparse_arguments(kind.model_fields[name].annotation)
        parser.add_argument(f"--{name}", help=SUPPRESS, **how)


def read_options(
    args: argparse.Namespace,
    kind: type[Config],
    *,
    resolve: Callable[[Config], Config] | None = None,
    ask: Request | None = None,
) -> Config:
    """The configuration that the arguments ask for: the YAML file, with the command line over it.

    A problem in the file is a UsageError that names the file; one on the command line names the
    option. With `--print_config` the configuration (after `resolve`) goes to standard output as
    YAML and the program ends with exit code 0. `ask` names the algorithm.
    """
    words, values = read_command_line(args, kind), dict[str, Any]()
    request = replace(ask or Request(), where="command line")
    if args.config is not None:
        read = read_yaml(args.config)
        in_file = replace(request, where=str(args.config), given=words)
        values = resolve_paths(args.config, translate_names(read, kind, in_file))
        check_options(values, kind, in_file)
        request = replace(request, given={**read, **values})
    words = translate_names(words, kind, request)
    config = check_options({**values, **words}, kind, request)
    if args.print_config:
        print(as_yaml(resolve(config) if resolve is not None else config), end="")
        raise SystemExit(0)
    return config


def read_command_line(args: argparse.Namespace, kind: type[BaseModel]) -> dict[str, Any]:
    """What the command line gives: first options of the model, then names of TRL's."""
    found, fields = vars(args), kind.model_fields
    own = {
        name: parse_value(found[name], fields[name].annotation) for name in found if name in fields
    }
    return own | {
        name: parse_trl_value(found[name]) for name in found if name in TABLE and name not in own
    }


def parse_value(value: str | Sequence[str], annotation: Any) -> Any:
    """Text as the model wants it: `null` is None where the option may be, `[a, b]` a list.

    Numbers and booleans are left to the model's own validation, so that a text option keeps "1",
    "true" and "1e3" as they are.
    """
    if value in ("null", "~", ["null"], ["~"]) and without_none(annotation) != annotation:
        return None
    return value if isinstance(value, str) else parse_list_words(value)


def parse_trl_value(words: Sequence[str]) -> Any:
    """The value of a name of TRL's: no word is true, one is itself, several are a list."""
    found = parse_list_words(words)
    alone = len(found) == 1 and not words[0].startswith("[")
    return True if not words else found[0] if alone else found


def parse_list_words(words: Sequence[str]) -> list[Any]:
    """The words as a list; `[a, b]` as the list of its texts."""
    found = list[Any]()
    for text in words:
        found += parse_yaml_list(text) if text[:1] == "[" and text[-1] == "]" else [text]
    return found


def parse_yaml_list(text: str) -> list[Any]:
    """The items of `[a, b]`, as texts."""
    import yaml

    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        fix = " ".join(str(error).split())
        raise UsageError(f"not a YAML list: {text}", where="command line", fix=fix) from None


def fields_by_heading(kind: type[BaseModel]) -> dict[str, list[str]]:
    """The fields of a model by heading: {"optimiser": ["learning_rate", ...], ...}."""
    found, title = dict[str, list[str]](), "options"
    for name, field in kind.model_fields.items():
        if isinstance(field.json_schema_extra, dict):
            title = str(field.json_schema_extra["group"])
        found.setdefault(title, []).append(name)
    return found


def default_text(default: Any) -> str:
    """A default as the help text ends with it; nothing for None, whose meaning the text tells."""
    if isinstance(default, list | tuple):
        words = cast("Sequence[Any]", default)
        default = " ".join(map(str, words)) or "none"
    return "" if default is None else f" (default {format_value(default)})"


def describe_type(annotation: Any) -> str:
    """A type in a word or two: `integer`, `number`, `text`, `true|false`, `a|b`, `list of text`."""
    wanted = without_none(annotation)
    inner = get_args(wanted)
    if get_origin(wanted) is Literal:
        return "|".join(map(str, inner))
    if get_origin(wanted) is list:
        return f"list of {describe_type(inner[0])}"
    if get_origin(wanted) in (UnionType, Union):
        return "|".join(map(describe_type, inner))
    return {int: "integer", float: "number", str: "text", bool: "true|false"}[wanted]


def argparse_arguments(annotation: Any) -> dict[str, Any]:
    """What argparse does with a field: a list takes several words, a flag may stand alone."""
    wanted, words = without_none(annotation), describe_type(annotation)
    if get_origin(wanted) is list:
        how = {"nargs": "+", "action": "extend", "metavar": words.removeprefix("list of ").upper()}
    elif wanted is bool or bool in get_args(wanted):
        how = {"nargs": "?", "const": "true", "metavar": words}
    else:
        how = {"metavar": words if "|" in words else words.upper()}
    return {**how, "default": SUPPRESS}


def without_none(annotation: Any) -> Any:
    """The type that an option has when it is not null; of several the first."""
    parts = get_args(annotation)
    union = get_origin(annotation) in (UnionType, Union)
    if union and NoneType in parts:
        return next(part for part in parts if part is not NoneType)
    return annotation


def as_yaml(config: BaseModel) -> str:
    """A configuration as YAML that `--config` reads back to the same."""
    import yaml

    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=140)
