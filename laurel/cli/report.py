"""`laurel report RUN`: one HTML page about a run or an evaluation."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register `report`; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "report",
        help=(
            "write one self-contained HTML page about a run: what happened, is it healthy, samples"
        ),
    )
    parser.add_argument(
        "folder",
        metavar="RUN",
        help="the --output_dir of a run (finished or not), or a folder with an eval.json",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page, print its path, open it if asked."""
    from laurel.report.page import write_report

    path = write_report(args.folder)
    print(path)
    if args.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0
