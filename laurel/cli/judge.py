"""`laurel judge`: a model says which response is better, and a card says what its word is worth."""

from __future__ import annotations

from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register `judge` with its verbs; `args.run` is what the command line calls."""
    from laurel.cli.judge_card import add_calibrate, add_compare
    from laurel.cli.judge_run import add_run

    parser = subparsers.add_parser(
        "judge", help="AI feedback: verdicts of a model, and their report card beside people's"
    )
    verbs = parser.add_subparsers(dest="judge_verb", required=True, metavar="VERB")
    add_run(verbs)
    add_calibrate(verbs)
    add_compare(verbs)
