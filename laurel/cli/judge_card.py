"""`laurel judge calibrate` and `laurel judge compare`: report cards of judges."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from laurel.measure.judge_records import Judged, PersonVote
    from laurel.report.exhibit import Exhibit
    from laurel_feedback.statistics.votes import Poll

SOURCES = (
    "a folder or file of LLMBar, MT-Bench, FastChat's model_judgment, AlpacaEval, Chatbot Arena,"
    " LLMFAO; our verdicts.jsonl or its folder; a laurel feedback database"
)


def add_calibrate(verbs: Any) -> None:
    """Register `calibrate`; `args.run` is what the command line calls."""
    parser = verbs.add_parser(
        "calibrate", help="the report card of judges, beside people's votes and right answers"
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCES)
    _options(parser)
    parser.set_defaults(run=run_calibrate)


def add_compare(verbs: Any) -> None:
    """Register `compare`; `args.run` is what the command line calls."""
    parser = verbs.add_parser(
        "compare", help="judges side by side on the same items: agreement, kappa, McNemar"
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help=f"{SOURCES}; several of the same items"
    )
    _options(parser)
    parser.set_defaults(run=run_compare)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judges", metavar="NAME,...", default="", help="only these, in this order (default: all)"
    )
    parser.add_argument(
        "--votes",
        metavar="FILE",
        help=(
            "people's votes on the same items: rows id, label (a, b, tie), rater; or a feedback"
            " database"
        ),
    )
    parser.add_argument(
        "--labels",
        type=int,
        metavar="N",
        help=(
            "correct the win rates from people's votes on N items, drawn by --seed (default: all"
            " that have votes)"
        ),
    )
    parser.add_argument("--seed", type=int, default=0, help="of --labels (default 0)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the card as one page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure; - prints it")


def run_calibrate(args: argparse.Namespace) -> int:
    """Print the cards of one source."""
    return _run(args, read_source(args.source), args.source, "calibrate")


def run_compare(args: argparse.Namespace) -> int:
    """Print the cards of several sources joined by item."""
    found = merged([(name, read_source(name)) for name in args.sources])
    if all(len(one.judges) < 2 for one in found):
        raise UsageError(
            "there is only one judge to compare.",
            where=", ".join(args.sources),
            fix="Name a source with several, or several sources of the same items.",
        )
    return _run(args, found, ", ".join(Path(name).name for name in args.sources), "compare")


def _run(args: argparse.Namespace, found: Sequence[Judged], source: str, verb: str) -> int:
    from laurel.measure.judge_card import card
    from laurel.report.judge_card import exhibit

    _check(args)
    if args.votes:
        found = _voted(args.votes, found)
    cards = [
        card(one, names, labels=args.labels, seed=args.seed)
        for one, names in _chosen(found, args.judges)
    ]
    name = Path(source).name or source
    shown = exhibit(cards, name, whole=False)
    _tell(args, shown)
    if args.html is not None:
        from laurel.report.exhibit_page import write_page

        command = f"laurel judge {verb} {name}{_asked(args)}"
        more = "; with --json it writes every figure, and why others are missing"
        write_page(exhibit(cards, name), args.html, command=command, more=more)
        print(f"written: {args.html}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    """UsageError for what cannot be written or drawn."""
    from laurel.cli.tabular import prepare_output_file

    prepare_output_file("--html", args.html, (".html", ".htm"))
    if str(args.json) != "-":
        prepare_output_file("--json", args.json, (".json",))
    if args.labels is not None and args.labels < 2:
        raise UsageError("two items are the least.", where="--labels", fix="Give 50 or more.")


def _tell(args: argparse.Namespace, shown: Exhibit) -> None:
    """Print the tables, or the figures; write the figures where they are asked for."""
    from laurel.cli.tabular import to_json_value
    from laurel.core.files import write_atomic

    written = json.dumps(to_json_value(shown.data), ensure_ascii=False, allow_nan=False, indent=2)
    if str(args.json) == "-":
        print(written)
        return
    _print(shown)
    if args.json is not None:
        write_atomic(args.json, written + "\n")
        print(f"written: {args.json}", file=sys.stderr)


def _asked(args: argparse.Namespace) -> str:
    """The options that make the page again."""
    options = {"judges": args.judges, "labels": args.labels, "seed": args.seed}
    words = [f" --{name} {value}" for name, value in options.items() if value]
    return "".join(words) + (f" --votes {Path(args.votes).name}" if args.votes else "")


def _print(shown: Exhibit) -> None:
    """Tables of at most 100 columns."""
    from rich.console import Console

    from laurel.report.exhibit_text import print_exhibit

    print_exhibit(shown, Console(width=100, highlight=False, soft_wrap=False))


def _chosen(found: Sequence[Judged], asked: str) -> list[tuple[Judged, list[str]]]:
    """Each source with its judges, those that were asked for."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    known = dict.fromkeys(name for one in found for name in one.judges)
    for name in names:
        if name not in known:
            where, fix = "--judges", nearest(name, known)
            raise UsageError(f"there is no judge `{name}`.", where=where, fix=fix)
    chosen = [(one, [n for n in names or one.judges if n in one.judges]) for one in found]
    if not any(judges for _, judges in chosen):
        raise UsageError(
            "there are votes of people here, and no verdicts of a judge.",
            where=", ".join(one.name for one in found),
            fix="Give them as --votes beside verdicts on the same items.",
        )
    return [(one, judges) for one, judges in chosen if judges]


def read_source(name: str) -> list[Judged]:
    """The sources that a folder, file or database holds."""
    from laurel.judge.published import with_makers
    from laurel.judge.recorded import read_recorded

    polls = read_polls(name)
    return read_recorded(name) if polls is None else [with_makers(poll) for poll in polls]


def read_polls(name: str) -> list[Judged] | None:
    """Votes and verdicts of LLMFAO or of a feedback database; None where it is neither."""
    polls = open_polls(name)
    if polls is None:
        return None
    from laurel_feedback.statistics.judges import judged_of

    return [judged_of(poll) for poll in polls]


def open_polls(name: str) -> list[Poll] | None:
    """The polls of LLMFAO or of a feedback database; None where it is neither."""
    path = Path(name.removeprefix("sqlite:///")).expanduser()
    served = "://" in name and not name.startswith("sqlite:")
    crowd = "crowd-comparisons.csv"
    llmfao = not served and ((path / crowd).is_file() or path.name == crowd)
    if not served and not llmfao and not _is_sqlite(path):
        return None
    from laurel_feedback.statistics.votes import batch_polls, file_polls

    return file_polls(path) if llmfao else batch_polls(name)


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _voted(name: str, found: Sequence[Judged]) -> list[Judged]:
    """The sources with people's votes from another file."""
    from laurel.judge.recorded import read_recorded, read_votes, with_votes

    votes = poll_votes(name)
    if votes is not None:
        pass
    elif Path(name).name == "human.jsonl":
        votes = [vote for one in read_recorded(name) for vote in one.votes]
    else:
        votes = read_votes(name)
    known = {item for one in found for item in one.items}
    if not any(vote.item in known for vote in votes):
        raise UsageError(
            "no vote is about an item that was judged.",
            where=name,
            fix=f"Items are called {', '.join(list(known)[:3])}.",
        )
    return [with_votes(one, votes) for one in found]


def poll_votes(name: str) -> list[PersonVote] | None:
    """People's votes of LLMFAO or of a database; None where it is neither.

    Votes on a spot check are about the pair that was judged, as it was judged.
    """
    polls = open_polls(name)
    if polls is None:
        return None
    from laurel_feedback.statistics.judges import judged_of

    votes: list[PersonVote] = []
    for poll in polls:
        own = {item: check for check, item in poll.checks.items()}
        given = judged_of(poll).votes
        votes += [replace(vote, item=own.get(vote.item, vote.item)) for vote in given]
    return votes


def merged(sources: Sequence[tuple[str, Sequence[Judged]]]) -> list[Judged]:
    """Sources joined where they share items; a judge of a name already taken gets the source's."""
    found: list[Judged] = []
    for name, several in sources:
        for one in several:
            same = [k for k, before in enumerate(found) if before.items.keys() & one.items.keys()]
            if same:
                found[same[0]] = _joined(found[same[0]], one, Path(name).stem)
            else:
                found.append(one)
    if len(sources) > 1 and len(found) == sum(len(several) for _, several in sources):
        raise UsageError(
            "the sources have no item in common.",
            where=", ".join(name for name, _ in sources),
            fix="Items are told apart by their id.",
        )
    return found


def _joined(before: Judged, one: Judged, name: str) -> Judged:
    own = {
        f"{judge} ({name})" if judge in before.judges else judge: answers
        for judge, answers in one.judges.items()
    }
    families = {
        f"{judge} ({name})" if judge in before.judges else judge: maker
        for judge, maker in one.families.items()
    }
    return replace(
        before,
        items={**one.items, **before.items},
        judges={**before.judges, **own},
        votes=tuple(dict.fromkeys((*before.votes, *one.votes))),
        families={**families, **before.families},
        notes=tuple(dict.fromkeys((*before.notes, *one.notes))),
    )
