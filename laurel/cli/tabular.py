"""`laurel tabular VERB`: experiments on exact worlds (`laurel.cli.tabular_options` lists them)."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.tabular_options import EXPERIMENTS, Experiment, Option
from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from laurel.report.exhibit import Exhibit

VERBS = EXPERIMENTS
PICTURES, PAGES = (".png", ".svg", ".pdf"), (".html", ".htm")
NAMES = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false"}
"""The type of an option, as its help shows it."""
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
"""The type of an option, as its error says it."""


def add_parser(subparsers: Any) -> None:
    """Register `tabular` and a verb for each experiment; none of them is imported."""
    parser = subparsers.add_parser(
        "tabular",
        help=(
            "the foundations on exact worlds: gridworld, planning, imitation, inverse RL, hindsight"
        ),
    )
    verbs = parser.add_subparsers(dest="tabular_verb", required=True, metavar="|".join(VERBS))
    parser.set_defaults(run=run)
    for verb, experiment in VERBS.items():
        added = verbs.add_parser(verb, help=experiment.line, description=experiment.about)
        for option in experiment.options:
            _add_option(added, option)
        added.add_argument(
            "--json", action="store_true", help="print the figures as JSON, and nothing else"
        )
        added.add_argument(
            "--plot",
            metavar="FILE",
            type=Path,
            help="draw maps and curves into a picture: .png, .svg or .pdf",
        )
        added.add_argument(
            "--page", metavar="FILE", type=Path, help="write everything as one page: .html"
        )


def run(args: argparse.Namespace) -> int:
    """Run the experiment and show what it found.

    The exit code is 1 where one of its claims does not hold.
    """
    experiment = VERBS[args.tabular_verb]
    prepare_output_file("--plot", args.plot, PICTURES)
    prepare_output_file("--page", args.page, PAGES)
    module, _, name = experiment.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    exhibit: Exhibit = function(**{one.name: getattr(args, one.name) for one in experiment.options})
    if args.json:
        print(json.dumps(to_json_value(exhibit.data), ensure_ascii=False, allow_nan=False))
    else:
        from rich.console import Console

        from laurel.report.exhibit_text import print_exhibit

        print_exhibit(exhibit, Console(highlight=False))
    write_files(exhibit, experiment, args)
    failed = [claim for claim in exhibit.claims if not claim.holds]
    for claim in failed if args.json else ():
        print(f"does not hold: {claim.text} ({claim.evidence})", file=sys.stderr)
    return 1 if failed else 0


def write_files(exhibit: Exhibit, experiment: Experiment, args: argparse.Namespace) -> None:
    """The picture and the page that are asked for, and a line that names them."""
    if args.plot is not None:
        from laurel.report.maps import write_figure

        write_figure(exhibit, args.plot)
    if args.page is not None:
        from laurel.report.exhibit_page import write_page

        command = command_line(args, experiment.options)
        write_page(exhibit, args.page, command=command, more="; with --json it prints every figure")
    written = [str(path) for path in (args.plot, args.page) if path is not None]
    if written and not args.json:
        print("written: " + ", ".join(written))


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Register one option: its word, its help with the default, and what reads its text."""
    shown = "" if option.default is None else f"default {_written(option.default)}"
    both = option.meaning and shown
    meaning = f"{option.meaning} ({shown})" if both else option.meaning or shown
    how: dict[str, Any] = {"default": option.default, "type": _reader(option)}
    how["help"] = meaning.replace("%", "%%")
    if option.choices and not option.many:
        how["choices"] = option.choices
    if option.positional:
        parser.add_argument(option.name, nargs=None if option.default is None else "?", **how)
        return
    word = "|".join(map(str, option.choices)) or NAMES[option.kind]
    how["metavar"] = f"{word},..." if option.many else word
    if option.kind is bool and not option.many:
        how |= {"nargs": "?", "const": True}
    parser.add_argument(f"--{option.name}", **how)


def _reader(option: Option) -> Callable[[str], Any]:
    """What turns the text of an option into its value; argparse adds the option to its errors."""

    def one(text: str) -> Any:
        try:
            value = _value(text, option.kind)
        except (ValueError, KeyError):
            what = f"`{text}` is not {TYPES[option.kind]}"
            raise argparse.ArgumentTypeError(what) from None
        if option.many and option.choices and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            raise argparse.ArgumentTypeError(f"`{text}` is none of {choices}")
        return value

    def several(text: str) -> tuple[Any, ...]:
        return tuple(one(part.strip()) for part in text.split(","))

    return several if option.many else one


def _value(text: str, kind: type) -> Any:
    """The text as a value of its type; ValueError or KeyError where it is none."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind is float and not math.isfinite(float(text)):
        raise ValueError(text)
    return kind(text)


def _written(value: Any) -> str:
    """A value as the command line takes it: 0.1,0.2 and true."""
    if isinstance(value, tuple | list):
        return ",".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def command_line(args: argparse.Namespace, options: Sequence[Option]) -> str:
    """The command that makes the exhibit again, without options at their defaults."""
    words = ["laurel", "tabular", args.tabular_verb]
    for option in options:
        value = getattr(args, option.name)
        if option.positional:
            words.append(_written(value))
        elif value != option.default:
            words += ["--" + option.name.replace("_", "-"), _written(value)]
    return shlex.join(words)


def prepare_output_file(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that could not be written, before anything runs; make its folder."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"`{path}` ends in no format we write.",
            where=option,
            fix=f"End it in {', '.join(suffixes)}.",
        )
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder.", where=option, fix="Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write into `{path.parent}`: {error.strerror}.", where=option
        ) from None


def to_json_value(value: Any) -> Any:
    """The same as JSON has it.

    numpy's numbers and arrays as numbers and lists, sets sorted, what is not finite null, keys
    text.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [to_json_value(item) for item in sorted(value)]
    if isinstance(value, tuple | list):
        return [to_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
