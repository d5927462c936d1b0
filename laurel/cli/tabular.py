"""`laurel tabular VERB`: experiments on exact worlds, their options read from the signature of the
function that runs them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from laurel.report.exhibit import Chart, Exhibit, Grid, Table

VERBS: dict[str, tuple[str, str]] = {
    "solve": (
        "laurel_worlds.solve:solve",
        "the optimal values and actions of a world, planned and learned",
    ),
    "compare": (
        "laurel_worlds.compare:compare",
        "learning on-policy against off-policy: cost and stability",
    ),
    "imitate": (
        "laurel_worlds.imitate:imitate",
        "behaviour cloning against an interactive expert: how errors grow with the horizon",
    ),
    "gail": (
        "laurel_worlds.adversarial:gail",
        "imitation by matching occupancies: a discriminator as the reward",
    ),
    "irl": ("laurel_worlds.irl:irl", "a reward that explains demonstrations, by maximum entropy"),
    "offline": (
        "laurel_worlds.offline:offline",
        "learning from logs alone: cloning against cautious Q-values",
    ),
    "her": (
        "laurel_worlds.hindsight:her",
        "flipping bits towards a goal, with and without hindsight",
    ),
}
"""verb: ("module:function" that returns an Exhibit, one line of help)."""

PICTURES, PAGES = (".png", ".svg", ".pdf"), (".html", ".htm")
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK = 16  # characters of a curve


@dataclass(frozen=True)
class Option:
    """One parameter of an experiment: `kind` reads its text, `choices` are its only values, `many`
    values have commas between them.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    choices: tuple[Any, ...] | None
    many: bool
    positional: bool


def add_parser(subparsers: Any) -> None:
    """Register `tabular` and a verb for each experiment; the experiments are read as text, not
    imported.
    """
    parser = subparsers.add_parser(
        "tabular",
        help=(
            "the foundations on exact worlds: gridworld, planning, imitation, inverse RL, hindsight"
        ),
    )
    verbs = parser.add_subparsers(dest="tabular_verb", required=True, metavar="|".join(VERBS))
    parser.set_defaults(run=run)
    for verb, (target, line) in VERBS.items():
        about, options = signature(target)
        added = verbs.add_parser(verb, help=line, description=about)
        for option in options:
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
    """Run the experiment and show what it found; the exit code is 1 where one of its claims does
    not hold.
    """
    target = VERBS[args.tabular_verb][0]
    _, options = signature(target)
    for name, suffixes in (("plot", PICTURES), ("page", PAGES)):
        prepare(f"--{name}", getattr(args, name), suffixes)
    module, _, function = target.partition(":")
    experiment = getattr(importlib.import_module(module), function)
    exhibit = experiment(**{option.name: getattr(args, option.name) for option in options})
    if args.json:
        print(json.dumps(plain(exhibit.data), ensure_ascii=False, allow_nan=False))
    else:
        from rich.console import Console

        print_exhibit(exhibit, Console(highlight=False))
    if args.plot is not None:
        from laurel.report.maps import write_figure

        write_figure(exhibit, args.plot)
    if args.page is not None:
        from laurel.report.exhibit_page import write_page

        write_page(
            exhibit,
            args.page,
            command=command_line(args, options),
            more="; with --json it prints every figure",
        )
    written = [str(path) for path in (args.plot, args.page) if path is not None]
    if written and not args.json:
        print("written: " + ", ".join(written))
    failed = [claim for claim in exhibit.claims if not claim.holds]
    for claim in failed if args.json else ():
        print(f"does not hold: {claim.text} ({claim.evidence})", file=sys.stderr)
    return 1 if failed else 0


def signature(target: str) -> tuple[str, list[Option]]:
    """(docstring, options) of "module:function", read from the source, so that nothing that it
    imports is imported.

    Types: int, float, str, bool, Literal, tuple[one of these, ...]; defaults: literals or constants
    of the module. The line "name: text" of the docstring tells what an option is for.
    """
    module, _, function = target.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UsageError(f"there is no module {module}.", where="laurel tabular")
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    constants = {
        node.targets[0].id: node.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found = next(
        node for node in body if isinstance(node, ast.FunctionDef) and node.name == function
    )
    about = ast.get_docstring(found) or ""
    given, named = found.args.args, found.args.kwonlyargs
    defaults = (
        [None] * (len(given) - len(found.args.defaults))
        + found.args.defaults
        + found.args.kw_defaults
    )
    return about.split("\n\n")[0], [
        _option(
            argument,
            _resolved(default, constants),
            constants,
            about,
            positional=position < len(given),
        )
        for position, (argument, default) in enumerate(zip([*given, *named], defaults, strict=True))
    ]


def _option(
    argument: ast.arg,
    default: ast.expr | None,
    constants: dict[str, ast.expr],
    about: str,
    *,
    positional: bool,
) -> Option:
    annotation = _resolved(argument.annotation, constants)
    if isinstance(annotation, ast.BinOp):  # X | None
        annotation = annotation.left
    choices, many = None, False
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple":
        many, annotation = (
            True,
            (
                annotation.slice.elts[0]
                if isinstance(annotation.slice, ast.Tuple)
                else annotation.slice
            ),
        )
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        literal = ast.literal_eval(annotation.slice)
        choices = literal if isinstance(literal, tuple) else (literal,)
    kind = (
        type(choices[0])
        if choices
        else {"int": int, "float": float, "str": str, "bool": bool}[
            ast.unparse(annotation or ast.Name("str"))
        ]
    )
    told = re.search(rf"^\s*`?{argument.arg}`?: +(\S.*)$", about, re.MULTILINE)
    value = ast.literal_eval(default) if default is not None else None
    return Option(
        argument.arg, kind, value, told[1].rstrip(". ") if told else "", choices, many, positional
    )


def _resolved(node: ast.expr | None, constants: dict[str, ast.expr]) -> ast.expr | None:
    """What a name stands for, if it is a constant of the module."""
    while isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    return node


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    shown = "" if option.default is None else f"default {_written(option.default)}"
    meaning = (
        f"{option.meaning} ({shown})" if option.meaning and shown else option.meaning or shown
    ).replace("%", "%%")
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false"}
    word = "|".join(map(str, option.choices)) if option.choices else names[option.kind]
    arity: dict[str, Any] = {"default": option.default, "help": meaning, "type": _reader(option)}
    if option.choices and not option.many:
        arity["choices"] = option.choices
    if option.positional:
        parser.add_argument(option.name, nargs=None if option.default is None else "?", **arity)
        return
    arity["metavar"] = f"{word},..." if option.many else word
    if option.kind is bool and not option.many:
        parser.add_argument(f"--{option.name}", nargs="?", const=True, **arity)
    else:
        parser.add_argument(f"--{option.name}", **arity)


def _reader(option: Option) -> Callable[[str], Any]:
    """What turns the text of an option into its value; argparse says which option a ValueError
    belongs to.
    """

    def read(text: str) -> Any:
        if option.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if option.kind is float and not math.isfinite(float(text)):
            raise ValueError(text)
        return option.kind(text)

    def one(text: str) -> Any:
        try:
            value = read(text)
        except (ValueError, KeyError):
            words = {int: "a whole number", float: "a number", bool: "true or false"}.get(
                option.kind, "a word"
            )
            raise argparse.ArgumentTypeError(f"`{text}` is not {words}") from None
        if option.many and option.choices and value not in option.choices:
            raise argparse.ArgumentTypeError(
                f"`{text}` is none of {', '.join(map(str, option.choices))}"
            )
        return value

    return (
        (lambda text: tuple(one(part.strip()) for part in text.split(","))) if option.many else one
    )


def _written(value: Any) -> str:
    """A value as the command line takes it: 0.1,0.2 and true."""
    if isinstance(value, tuple | list):
        return ",".join(map(_written, value))
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value).removesuffix(".0")
        if isinstance(value, float)
        else str(value)
    )


def command_line(args: argparse.Namespace, options: Sequence[Option]) -> str:
    """The command that makes the exhibit again: the verb, its world, and every option that differs
    from its default.
    """
    words = ["laurel", "tabular", args.tabular_verb]
    for option in options:
        value = getattr(args, option.name)
        if option.positional:
            words.append(_written(value))
        elif value != option.default:
            words += ["--" + option.name.replace("_", "-"), _written(value)]
    return shlex.join(words)


def prepare(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that could not be written, before anything is run; make the folder it goes
    into.
    """
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


def plain(value: Any) -> Any:
    """The same as JSON has it: numpy's numbers and arrays as numbers and lists, sets sorted, what
    is not finite null, keys text.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_exhibit(exhibit: Exhibit, console: Console) -> None:
    """Title, maps, tables, curves, claims with their evidence, notes: as text that fits the
    console.
    """
    from rich.table import Table as Lines
    from rich.text import Text

    parts: list[RenderableType] = [Text(exhibit.title, "bold"), Text(exhibit.about)]
    for grid in exhibit.grids:
        parts += ["", Text(grid.title, "bold"), grid_table(grid, console.width)]
    for table in exhibit.tables:
        parts += ["", Text(table.title, "bold"), text_table(table, console.width)]
    for chart in exhibit.charts:
        parts += [
            "",
            Text(f"{chart.title}: {chart.y} over {chart.x}", "bold"),
            spark_table(chart, console.width),
        ]
    told = Lines.grid(padding=(0, 1, 0, 0))
    for claim in exhibit.claims:
        told.add_row(Text("✓", "green") if claim.holds else Text("✗", "bold red"), Text(claim.text))
        told.add_row("", Text(claim.evidence, "dim"))
    parts += ["", told] if exhibit.claims else []
    parts += ["", *(Text(note) for note in exhibit.notes)] if exhibit.notes else []
    for part in parts:
        console.print(part)


def grid_table(grid: Grid, width: int = 80) -> RenderableType:
    """A map as text: marks beside their values if that fits the width, else above them, else with
    fewer digits, else alone.
    """
    from rich import box
    from rich.table import Table as Lines
    from rich.text import Text

    from laurel.report.cells import is_wall, value_texts

    widest = max(len(mark) for marks in grid.marks for mark in marks)

    def beside(mark: str, text: str) -> str:
        return f"{mark:<{widest}} {text}" if widest else text

    def above(mark: str, text: str) -> str:
        return f"{mark}\n{text}" if widest else text

    layouts = (
        (beside, 3, 1),
        (above, 3, 1),
        (above, 3, 0),
        (above, 2, 0),
        (above, 1, 0),
        (lambda mark, text: mark or text[:1], 1, 0),
    )
    for join, precision, padding in layouts:
        texts = value_texts(grid, precision)
        digits = max(len(text) for row in texts for text in row)
        cells = [
            [
                None if is_wall(value, mark) else join(mark, text.rjust(digits))
                for value, mark, text in zip(*row, strict=True)
            ]
            for row in zip(grid.values, grid.marks, texts, strict=True)
        ]
        size = max(
            max(map(len, cell.split("\n"))) for row in cells for cell in row if cell is not None
        )
        if len(grid.values[0]) * (size + 2 * padding + 1) + 1 <= width:
            break
    lines = Lines(box=box.SQUARE, show_header=False, show_lines=True, padding=(0, padding))
    for _ in grid.values[0]:
        lines.add_column(justify="center", min_width=size, no_wrap=True)
    height = max(cell.count("\n") + 1 for row in cells for cell in row if cell is not None)
    for row in cells:
        lines.add_row(
            *(Text("\n".join(["▒" * size] * height) if cell is None else cell) for cell in row)
        )
    return lines


def text_table(table: Table, width: int = 80) -> RenderableType:
    """A table as text, numbers flush right and never broken. One too wide gives up space between
    columns, a digit, unfolded words.
    """
    from rich import box
    from rich.table import Table as Lines
    from rich.text import Text

    from laurel.report.cells import cell_text
    from laurel.report.exhibit_page import numeric_columns

    right = numeric_columns(table)
    layouts: list[tuple[int, bool, int, list[list[str]], list[int]]] = []
    for significant, gap in ((4, 3), (4, 2), (3, 2), (3, 1)):
        rows = [[cell_text(value, significant) for value in row] for row in table.rows]
        total = width - gap * (len(right) - 1)
        widths = column_widths(
            table.columns, [[row[j] for row in rows] for j in range(len(right))], right, total
        )
        folded = any(
            len(text) > wide for row in rows for text, wide in zip(row, widths, strict=True)
        )
        layouts.append((max(0, sum(widths) - total), folded, gap, rows, widths))
    _, _, gap, rows, widths = min(layouts, key=lambda layout: layout[:2])  # of equals the first
    lines = Lines(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap - 1, 0, 0))
    for head, flush, wide in zip(table.columns, right, widths, strict=True):
        lines.add_column(
            Text(head), justify="right" if flush else "left", width=wide, overflow="fold"
        )
    for row in rows:
        lines.add_row(*map(Text, row))
    return lines


def column_widths(
    heads: Sequence[str], columns: Sequence[Sequence[str]], whole: Sequence[bool], total: int
) -> list[int]:
    """Characters of each column within a total: `whole` columns as wide as their cells, words of
    others unbroken, heads last.
    """

    def longest(texts: Sequence[str]) -> int:
        return max(map(len, texts), default=0)

    least = [
        max(
            longest(head.split()),
            longest(column) if kept else min(40, longest(" ".join(column).split())),
        )
        for head, column, kept in zip(heads, columns, whole, strict=True)
    ]
    widths = [max(small, longest(column)) for small, column in zip(least, columns, strict=True)]
    while sum(widths) > total and widths != least:
        widths[max(range(len(widths)), key=lambda j: (widths[j] > least[j], widths[j]))] -= 1
    for j, head in enumerate(heads):
        widths[j] += max(0, min(len(head) - widths[j], total - sum(widths)))
    return widths


def spark_table(chart: Chart, width: int = 80) -> RenderableType:
    """Curves as text: where each begins and ends, with its interval, and its course on a scale that
    they share.
    """
    from laurel.report.cells import cell_text
    from laurel.report.exhibit import Table

    def height(y: float) -> float | None:
        if not math.isfinite(y) or (chart.log_y and y <= 0):
            return None
        return math.log(y) if chart.log_y else y

    heights = {
        label: [height(y) for _, y, *_ in sorted(points)] for label, points in chart.curves.items()
    }
    known = [value for values in heights.values() for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def spark(values: Sequence[float | None]) -> str:
        count = min(SPARK, len(values))
        chosen = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
        return "".join(
            " " if value is None else BLOCKS[round(7 * (value - low) / (high - low or 1.0))]
            for value in chosen
        )

    def end(point: tuple[float, float, float, float]) -> str:
        x, *figures = point
        y, low, high = (cell_text(figure, 3) for figure in figures)
        return (
            y
            + (f" [{low}, {high}]" if low != high else "")
            + ("" if shared else f" at {cell_text(x)}")
        )

    curves = {label: sorted(points) for label, points in chart.curves.items() if points}
    shared = len({(points[0][0], points[-1][0]) for points in curves.values()}) == 1
    ends = (
        next(
            (
                [f"{chart.x} {cell_text(points[i][0])}" for i in (0, -1)]
                for points in curves.values()
            ),
            [],
        )
        if shared
        else ["first", "last"]
    )
    rows = [
        (label, end(points[0]), end(points[-1]), spark(heights[label]))
        for label, points in curves.items()
    ]
    return text_table(Table(chart.title, ("", *ends, "course"), tuple(rows)), width)
