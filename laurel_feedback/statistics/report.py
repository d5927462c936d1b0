"""`laurel feedback report`: the analysis as text of 100 columns and as one HTML page.

The votes come from a database, or from the files of LLMFAO or MT-Bench.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import select

import laurel
from laurel.core.errors import UsageError
from laurel.core.files import write_atomic
from laurel_feedback.statistics.analysis import Analysis, analyse
from laurel_feedback.statistics.batches import exposure, summaries
from laurel_feedback.statistics.demographics import Reference, demographics_of
from laurel_feedback.statistics.sections import (
    Section,
    demographics_sections,
    harm_section,
    progress_section,
    sections,
)
from laurel_feedback.statistics.votes import batch_poll, file_polls
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Batch

PACKAGE = Path(__file__).parents[1]  # the report shares the pages' table and style
WIDTH = 100
LONGEST = 25
"""Rows of a table in the text report; the page has them all."""
Chapter = tuple[str, list[Section]]
Read = tuple[str, list[Section], Analysis]
"""A chapter with its analysis."""


def report(
    source: str | Path,
    out: str | Path | None = None,
    *,
    reference: Reference | None = None,
    as_json: bool = False,
) -> str:
    """The text, or as_json the figures; with `out` the HTML page is written there too.

    source: a database (a path or an address), a folder of LLMFAO or of MT-Bench, or one of their
    files. reference: a population to compare the annotators with, see `reference_of`. UsageError
    where there is nothing to report on.
    """
    if out is not None:
        out = Path(out).expanduser()
        if not out.parent.is_dir():
            raise UsageError("no such folder.", where=str(out.parent), fix="Make it first.")
        if out.is_dir():
            raise UsageError("this is a folder.", where=str(out), fix="Name a file in it.")
    found = read_chapters(source, reference)
    chapters = [(name, parts) for name, parts, _ in found]
    if out is not None:
        write_atomic(out, page(chapters, str(source)).encode("utf-8", "replace"))
    return report_figures(found) if as_json else text_report(chapters)


def report_figures(found: list[Read]) -> str:
    """As JSON: of each batch its name, every figure of the analysis, and the tables as words.

    Several are the list `chapters`.
    """
    made = []
    for name, parts, analysis in found:
        plain = asdict(replace(analysis, worth=None))
        plain["answers"] = plain.pop("labels")
        del plain["worth"]
        labels = None if analysis.worth is None else analysis.worth.as_json()
        tables = [
            {"title": part.title, "columns": part.columns, "rows": part.rows, "note": part.note}
            for part in parts
        ]
        made.append({**plain, "name": name, "labels": labels, "tables": tables})
    return json.dumps(
        made[0] if len(made) == 1 else {"chapters": made}, indent=2, default=_as_python_numbers
    )


def _as_python_numbers(value: object) -> object:
    """numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def read_chapters(source: str | Path, reference: Reference | None = None) -> list[Read]:
    """Each batch, or published set of votes, with its tables and the analysis that they show."""
    address = str(source)
    path = Path(address.removeprefix("sqlite:///")).expanduser()
    served = "://" in address and not address.startswith("sqlite:")
    if not served and (path.is_dir() or (path.is_file() and not _is_sqlite(path))):
        return [
            (poll.name, sections(made), made)
            for poll in file_polls(path)
            for made in [analyse(poll)]
        ]
    if not served and not path.is_file():
        fix = (
            "Give the database of `laurel feedback serve`, or a folder with votes of LLMFAO or"
            " MT-Bench."
        )
        raise UsageError("there is no such file.", where=address, fix=fix)
    store = Store(address)
    try:
        return _batches(store, reference)
    finally:
        store.close()


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _batches(store: Store, reference: Reference | None) -> list[Read]:
    with store.read() as session:
        batches = list(session.scalars(select(Batch.id).order_by(Batch.id)))
    if not batches:
        raise UsageError(
            "this database has no batch.",
            where=store.shown,
            fix="Bring votes or items in: laurel feedback import.",
        )
    found = []
    for batch in batches:
        poll = batch_poll(store, batch)
        analysis = analyse(poll)
        made = [progress_section(summaries(store, batch)[0]), *sections(analysis)]
        exposed = exposure(store, batch)
        made += [harm_section(exposed)] if exposed else []
        made += demographics_sections(
            demographics_of(store, poll, reference, actor="operator, report")
        )
        found.append((poll.name, made, analysis))
    return found


def text_report(chapters: list[Chapter]) -> str:
    """Tables of at most 100 columns, without colours."""
    sink = io.StringIO()
    console = Console(
        file=sink,
        width=WIDTH,
        no_color=True,
        force_terminal=False,
        highlight=False,
        emoji=False,
        markup=False,
    )
    for name, parts in chapters:
        console.rule(Text(name), align="left")
        for part in parts:
            console.print()
            console.print(Text(part.title))
            if part.rows:
                console.print(_rich(part))
            if len(part.rows) > LONGEST:
                console.print(Text(f"{len(part.rows) - LONGEST} more are in the HTML page."))
            if part.note:
                console.print(Text(part.note))
        console.print()
    lines = [line.rstrip() for line in sink.getvalue().splitlines()]
    return "\n".join(line for k, line in enumerate(lines) if line or k == 0 or lines[k - 1]) + "\n"


def _rich(part: Section) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in part.columns:
        table.add_column(
            Text(name), justify="left" if name in part.words else "right", overflow="fold"
        )
    for row in part.rows[:LONGEST]:
        table.add_row(*map(Text, row))
    return table


def page(chapters: list[Chapter], source: str) -> str:
    """One HTML page that fetches nothing and runs nothing. All text in it is escaped."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("statistics/report.html").render(
        chapters=chapters,
        source=Path(source).name if "://" not in source else "a database",
        style=(PACKAGE / "web" / "static" / "style.css").read_text(encoding="utf-8"),
        version=laurel.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
