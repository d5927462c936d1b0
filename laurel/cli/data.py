"""`laurel data check|show|convert`: gold answers, the content of a file, another format."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from laurel.core.protocols import Verifier
    from laurel.data.check import GoldCheck
    from laurel.data.source import Row

MASKS = ("assistant", "last", "completion", "all", "no_tags")
SHOWN_WRONG = 5


def add_parser(subparsers: Any) -> None:
    """Register `data` with its verbs; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "data", help="look at data: check gold answers, show rows and tokens, convert formats"
    )
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="check|show|convert")
    source = argparse.ArgumentParser(add_help=False)
    files = (
        "files (.jsonl, .json, .csv, .tsv, also with .gz; .parquet, .arrow), a folder, a pattern"
    )
    source.add_argument("file", nargs="+", help=f"{files}, a generated task or a hub name")
    source.add_argument("--split", help="the split of a hub dataset or a folder (default train)")
    source.add_argument("--seed", type=int, help="the seed of a generated task (default 0)")
    source.add_argument("--size", type=int, help="the rows of a generated task (default 1000)")

    check = verbs.add_parser(
        "check", parents=[source], help="score every gold answer with its own verifier"
    )
    check.add_argument(
        "--verifier",
        help=(
            "whatever --rewards takes: a verifier's name, file.py:function, ...; default: each"
            " row's `task`"
        ),
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON")

    show = verbs.add_parser("show", parents=[source], help="print rows and the format they have")
    show.add_argument("--limit", type=int, default=3, help="rows to print (default 3)")
    show.add_argument(
        "--tokens",
        action="store_true",
        help="print token ids, the supervised spans in colour and between « »",
    )
    show.add_argument(
        "--model", help="with --tokens: whose tokenizer (a folder, a hub name, or scratch)"
    )
    show.add_argument(
        "--train_on", choices=MASKS, help="with --tokens: which tokens are supervised"
    )

    convert = verbs.add_parser(
        "convert",
        parents=[source],
        help="write the rows in our columns, in the format of the suffix",
    )
    convert.add_argument(
        "out", help="the file to write: .jsonl, .json, .csv, also with .gz; .parquet"
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen verb; the exit code is 1 where a check found a wrong gold answer."""
    return {"check": run_check, "show": run_show, "convert": run_convert}[args.data_verb](args)


def load(args: argparse.Namespace) -> list[Row]:
    """The normalised rows that the arguments name.

    UsageError for an option that does not apply to the source.
    """
    from laurel.data.paths import has_splits
    from laurel.data.rows import read_rows
    from laurel.data.source import is_file_name
    from laurel.data.tasks import is_task

    args.file = ",".join(args.file)
    generated = is_task(args.file)
    splits = not generated and (not is_file_name(args.file) or has_splits(args.file))
    for option, applies, what in (
        ("seed", generated, "generated tasks"),
        ("size", generated, "generated tasks"),
        ("split", splits, "hub datasets and folders"),
    ):
        if getattr(args, option) is not None and not applies:
            raise UsageError(
                f"--{option} belongs to {what}, and `{args.file}` is none.",
                where=f"--{option}",
                fix="Leave it out.",
            )
    return read_rows(args.file, split=args.split or "train", seed=args.seed or 0, size=args.size)


def unused_line(args: argparse.Namespace, rows: Sequence[Row]) -> str:
    """One line with the columns that no format uses; none for generated tasks."""
    from laurel.data.formats import unused_columns
    from laurel.data.tasks import is_task

    left = [] if is_task(args.file) else unused_columns(rows)
    return f"columns not used: {', '.join(left)} (only rewards are given them)" if left else ""


def run_check(args: argparse.Namespace) -> int:
    """Score every gold answer; print a table, the first wrong rows and how many are right."""
    from rich.console import Console

    from laurel.data.check import check_rows
    from laurel.reward.load import load_verifier

    rows = load(args)
    verifiers: dict[str, Verifier] = {}
    named = find_verifier(args.verifier, rows) if args.verifier else None

    def verifier_for(row: Row) -> Verifier:
        if named is not None:
            return named
        name = row.columns.get("task")
        if not isinstance(name, str) or not name:
            fix = f"Name a verifier with --verifier: {', '.join(_tasks())}, or another of laurel's."
            raise UsageError(
                "the row has no `task` to take the verifier from.", where=row.where, fix=fix
            )
        if name not in verifiers:
            verifiers[name] = load_verifier(name)
        return verifiers[name]

    result = check_rows(rows, verifier_for, watch=_progress)
    if args.json:
        print(json.dumps(_as_json(args.file, result), ensure_ascii=False))
    else:
        if note := unused_line(args, rows):
            print(note)
        _print_check(Console(highlight=False), args.file, result)
    return 0 if result.passed else 1


def find_verifier(name: str, rows: Sequence[Row]) -> Verifier:
    """What `--rewards` takes, checked against the rows' columns, as a verifier."""
    from laurel.reward.as_verifier import as_verifier

    return as_verifier(name, {column for row in rows for column in row.columns})


def run_show(args: argparse.Namespace) -> int:
    """Print the first rows, or with --tokens their ids and which of them are supervised."""
    from rich.console import Console
    from rich.text import Text

    from laurel.data.formats import detect_format

    if args.limit < 1:
        raise UsageError("show at least one row.", where="--limit")
    if not args.tokens and (args.model or args.train_on):
        raise UsageError(
            "--model and --train_on belong to --tokens.",
            where="laurel data show",
            fix="Add --tokens, or leave them out.",
        )
    if args.tokens and not args.model:
        raise UsageError(
            "--tokens needs a tokenizer.",
            where="laurel data show",
            fix="Name a model with --model (`scratch` is laurel's own).",
        )
    rows = load(args)
    console = Console(highlight=False, soft_wrap=True)
    tokenizer = _tokenizer(args.model) if args.tokens else None
    for row in rows[: args.limit]:
        form = detect_format(row.columns)
        kind = (
            f"{form.name}{', conversational' if form.conversational else ''}" if form else "unknown"
        )
        console.print(Text.assemble((row.where, "bold"), f"  id {row.id}  ", (kind, "cyan")))
        for line in (
            _token_lines(tokenizer, row, args.train_on) if args.tokens else _column_lines(row)
        ):
            console.print(line)
        console.print()
    if note := unused_line(args, rows):
        console.print(note, markup=False)
    console.print(f"{min(args.limit, len(rows))} of {len(rows)} rows shown")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Write the rows, normalised, to `out`."""
    from laurel.data.write import write_rows

    rows = load(args)
    count = write_rows(rows, args.out)
    print(f"{len(rows)} rows read, {count} rows written to {args.out}")
    return 0


def _progress(rows: Iterable[Row]) -> Iterable[Row]:
    """The same rows, with a bar on the error stream that goes when it is done."""
    from rich.console import Console
    from rich.progress import track

    console, known = Console(stderr=True), rows if hasattr(rows, "__len__") else list(rows)
    return track(
        known, "checking", console=console, transient=True, disable=not console.is_terminal
    )  # type: ignore[arg-type]


def _print_check(console: Console, name: str, result: GoldCheck) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name), title_justify="left")
    columns = ("rows", "right", "wrong", "failed", "identical rows", "repeated prompts")
    for column in columns:
        table.add_column(column, justify="right")
    copies = result.duplicates
    values = (
        result.rows,
        result.right,
        len(result.wrong),
        len(result.failed),
        copies.identical,
        copies.repeated,
    )
    table.add_row(*(str(value) for value in values))
    console.print(table)
    findings = [*result.failed, *result.wrong]
    for finding in findings[:SHOWN_WRONG]:
        console.print(
            Text(
                f"{finding.where}: {finding.reason}; gold answer {_shorten(finding.answer, 80)}",
                style="red",
            ),
            soft_wrap=True,
        )
    if len(findings) > SHOWN_WRONG:
        console.print(f"... and {len(findings) - SHOWN_WRONG} more")
    console.print(f"{result.right} of {result.rows} gold answers right")


def _as_json(name: str, result: GoldCheck) -> dict[str, Any]:
    findings = {
        kind: [
            {"where": item.where, "answer": item.answer, "reason": item.reason} for item in items
        ]
        for kind, items in (("wrong", result.wrong), ("failed", result.failed))
    }
    copies = {
        "identical_rows": result.duplicates.identical,
        "repeated_prompts": result.duplicates.repeated,
    }
    return {
        "file": name,
        "rows": result.rows,
        "right": result.right,
        "passed": result.passed,
        **copies,
        **findings,
    }


def _column_lines(row: Row) -> list[Text]:
    from rich.text import Text

    lines = []
    for column, value in row.columns.items():
        turns = (
            value
            if isinstance(value, list)
            and all(isinstance(turn, dict) and "role" in turn for turn in value)
            else []
        )
        if turns:
            lines.append(Text(f"  {column}:", style="bold"))
            lines.extend(
                Text.assemble(
                    "    ", (f"{turn['role']}: ", "magenta"), _shorten(turn.get("content"), 400)
                )
                for turn in turns
            )
        else:
            lines.append(Text.assemble((f"  {column}: ", "bold"), _shorten(value, 400)))
    return lines


def _tokenizer(model: str) -> Any:
    from laurel.model.chat import ensure_template
    from laurel.model.policy import load_tokenizer
    from laurel.model.render import without_template

    if model == "scratch":
        from laurel.train.starter import build_starter

        model = str(build_starter("scratch", "addition", 0))
    tokenizer = load_tokenizer(model)
    for note in without_template(tokenizer, None):
        print(note, file=sys.stderr)
    ensure_template(tokenizer, None)
    return tokenizer


def _token_lines(tokenizer: Any, row: Row, train_on: str | None) -> list[Text]:
    """The ids of a row and their text; supervised spans in green and between « »."""
    from rich.text import Text

    from laurel.model.chat import encode_supervised

    encoded = encode_supervised(tokenizer, row.columns, train_on=train_on)
    ids, text = Text("  ids   "), Text("  text  ")
    on = False
    for token, supervised, piece in zip(
        (*encoded.ids, None),
        (*encoded.mask, False),
        (*_token_texts(tokenizer, encoded.ids), ""),
        strict=True,
    ):
        edge = {(False, True): "«", (True, False): "»"}.get((on, bool(supervised)), "")
        style = "bold green" if supervised else "dim"
        for line in (ids, text):
            line.append(edge, style="green")
        if token is not None:
            ids.append(f"{token} ", style=style)
            text.append(piece.replace("\n", "\\n"), style=style)
        on = bool(supervised)
    return [ids, text, Text(f"  {sum(encoded.mask)} of {len(encoded.ids)} tokens supervised")]


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token after the one before it.

    Decoded alone, many tokenizers drop a leading space.
    """
    pieces = [tokenizer.decode([token]) for token in ids]
    pairs = (tokenizer.decode([left, right]) for left, right in pairwise(ids))
    return pieces[:1] + [
        pair.removeprefix(piece) for pair, piece in zip(pairs, pieces[:-1], strict=True)
    ]


def _shorten(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("\n", "\\n")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _tasks() -> list[str]:
    from laurel.data.tasks import TASKS

    return list(TASKS)
