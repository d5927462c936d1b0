"""`laurel judge run`: pairs or responses of a file, a run or the feedback database, judged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.bar import progress
from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from laurel.judge.judge import Judge
    from laurel.judge.run import Judged
    from laurel.judge.sources import Answered

OUTPUT = "runs/judge"


def add_run(verbs: Any) -> None:
    """Register `run`."""
    parser = verbs.add_parser(
        "run",
        help="ask a judge about every pair (or response) of a source; goes on where it was killed",
    )
    parser.add_argument("judge", metavar="JUDGE.yaml", help="such as examples/judge.yaml")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file of preferences, responses or outputs; the folder of a run (samples.jsonl); or"
        " the database of `laurel feedback`, whose items then hold the verdicts, too",
    )
    parser.add_argument(
        "--output_dir", default=OUTPUT, help=f"verdicts, labels, summary (default {OUTPUT})"
    )
    parser.add_argument("--limit", type=int, help="the first so many prompts")
    parser.add_argument(
        "--pairs_per_prompt", type=int, default=0, help="of several responses; 0: every pair"
    )
    parser.add_argument(
        "--repeat_share",
        type=float,
        default=0.0,
        help="share of the items that is asked twice: does the judge repeat itself?",
    )
    parser.add_argument(
        "--ties", choices=("drop", "half"), default="drop", help="in preferences.jsonl"
    )
    parser.add_argument("--batch", help="of a database: the batch to judge, or to add checks to")
    parser.add_argument(
        "--spot_check",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the judged pairs that people are to rate, too (with --database)",
    )
    parser.add_argument("--database", help="the feedback database that spot checks go to")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judge; 0, or 1 where questions got no answer."""
    from laurel.judge.judge import Judge
    from laurel.judge.options import read_judge
    from laurel.judge.run import CACHE, HowToRun, judge_all, prepare, repeated, write_judged

    check(args)
    config = read_judge(args.judge)
    answered = read_source(args)
    folder = Path(args.output_dir)
    how = HowToRun(args.pairs_per_prompt, args.repeat_share, args.ties == "half", args.seed)
    todo = prepare(config, answered, how)
    folder.mkdir(parents=True, exist_ok=True)
    with Judge(config, cache=config.cache or folder / CACHE) as judge:
        asked = [one.pair.id for one in todo.pairs] or [item.id for item in todo.items]
        twice = [name for name in asked if repeated(name, how)]
        total = judge.questions(len(asked) + len(twice))
        with progress("questions", total) as watch:
            found = judge_all(judge, todo, how, watch)
        facts = write_judged(folder, judge, found, how)
        spent = judge.spending().values()
        known = sum(one.cached for one in spent)
        keep_in_database(args, judge, found)
    print_facts(facts, found, known, folder)
    if found.errors:
        print(f"{found.errors} got no answer: the same command asks them again.", file=sys.stderr)
    return 1 if found.errors else 0


def check(args: argparse.Namespace) -> None:
    """UsageError for options that do not go together."""
    for name in ("repeat_share", "spot_check"):
        if not 0 <= getattr(args, name) <= 1:
            raise UsageError("a share is from 0 to 1.", where=f"--{name}")
    if args.spot_check and not args.database:
        fix = "Name the database of `laurel feedback`."
        raise UsageError("spot checks need --database.", where="--spot_check", fix=fix)
    if args.batch and not (args.database or is_database(args.source)):
        raise UsageError("a file has no batch.", where="--batch", fix="Leave it out.")


def is_database(name: str) -> bool:
    """Is it a database of `laurel feedback`, and no file of rows?"""
    if name.startswith(("postgresql", "sqlite:")):
        return True
    path = Path(name)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def read_source(args: argparse.Namespace) -> list[Answered]:
    """What is to be judged."""
    from laurel.judge.sources import Answered, read_answered

    if not is_database(args.source):
        return read_answered(args.source, args.limit)
    from laurel_feedback.exchange.judging import items_to_judge

    with database(args.source) as store:
        rows = items_to_judge(store, args.batch)[: args.limit]
    return [
        Answered(
            row["id"],
            row["prompt"],
            tuple(one["text"] for one in row["responses"]),
            tuple(one["model"] for one in row["responses"]),
            row,
            row["gold"],
            f"item {row['id']}",
        )
        for row in rows
    ]


@contextmanager
def database(name: str) -> Iterator[Any]:
    """The feedback database of this name, open."""
    from laurel_feedback.store.database import Store

    store = Store(name)
    try:
        yield store
    finally:
        store.close()


def keep_in_database(args: argparse.Namespace, judge: Judge, found: Judged) -> None:
    """Verdicts beside their items, and spot checks for people, where there is a database."""
    if is_database(args.source) and found.pairs:
        from laurel_feedback.exchange.judging import store_verdicts

        with database(args.source) as store:
            for name, rows in verdict_rows(found).items():
                store_verdicts(store, name, rows)
    if args.spot_check:
        from laurel.judge.run import HowToRun, repeated
        from laurel_feedback.exchange.judging import add_spot_checks

        how = HowToRun(repeat_share=args.spot_check, seed=args.seed + 1)
        rows = check_rows(found, lambda id: repeated(id, how))
        batch = args.batch or "spot checks of AI verdicts"
        with database(args.database) as store:
            for name in judge.names:
                mine = [
                    {**row, "verdicts": [v for v in row["verdicts"] if v["judge"] == name]}
                    for row in rows
                ]
                added, left_out = add_spot_checks(store, batch, name, mine)
        print(f"spot checks: {added} pairs added to the batch `{batch}`")
        for line in left_out:
            print(f"left out: {line}")


def verdict_rows(found: Judged) -> dict[str, list[dict[str, Any]]]:
    """judge -> its verdicts as the database takes them; of items with two responses alone."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for drawn, judged in zip(found.pairs, found.judgements, strict=True):
        if len(drawn.answered.responses) != 2:
            continue
        for verdict in judged.verdicts:
            # a preference's sides may have been turned: the database has them as it showed them
            turned = drawn.places == (1, 0)
            status = {"a": "b", "b": "a"}.get(verdict.status, verdict.status)
            order = verdict.order[::-1] if turned else verdict.order
            rows.setdefault(verdict.judge, []).append(
                {
                    "item": drawn.answered.id,
                    "order": list(order),
                    "status": status if turned else verdict.status,
                    "raw": verdict.raw,
                }
            )
    return rows


def check_rows(found: Judged, drawn_for: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The pairs that people are to rate, with what the judges said."""
    return [
        {
            "id": drawn.pair.id,
            "prompt": drawn.pair.prompt,
            "first": drawn.pair.first,
            "second": drawn.pair.second,
            "models": list(drawn.models),
            "verdicts": [
                {"judge": v.judge, "order": list(v.order), "status": v.status, "raw": v.raw}
                for v in judged.verdicts
            ],
        }
        for drawn, judged in zip(found.pairs, found.judgements, strict=True)
        if drawn_for(drawn.pair.id)
    ]


def print_facts(facts: dict[str, Any], found: Judged, known: int, folder: Path) -> None:
    """What came out, in a few lines."""
    total = facts.get("pairs", facts.get("responses"))
    kind = "pairs" if "pairs" in facts else "responses"
    counts = ", ".join(f"{status} {count}" for status, count in sorted(facts["statuses"].items()))
    read, written = facts["tokens"]
    cost = "" if facts["cost"] is None else f", {facts['cost']:.4f} in money"
    print(f"judges     {', '.join(facts['judges'])}")
    print(f"{kind:10} {total}: {counts}")
    if "preferences" in facts:
        print(f"labels     {facts['preferences']} preferences")
    print(f"tokens     {read} read, {written} written{cost}; {known} answers were known")
    for line in found.left_out[:20]:
        print(f"left out: {line}")
    if len(found.left_out) > 20:
        print(f"... and {len(found.left_out) - 20} more")
    print(f"written to {folder}")
