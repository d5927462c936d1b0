"""`laurel bench`: laurel and its peers on this machine.

The workloads are scripts of the checkout (bench/speed), not of the wheel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "speed" / "run.py"


def add_parser(subparsers: Any) -> None:
    """Register `bench`; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "bench", help="laurel beside TRL and transformers on this machine: medians, ratios, goals"
    )
    parser.add_argument(
        "names",
        metavar="WORKLOAD",
        nargs="*",
        help="workloads to run; default: all but the long ones",
    )
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--list", action="store_true", help="name the workloads, and leave")
    parser.add_argument(
        "--repeat",
        type=int,
        metavar="N",
        help="repetitions of each contender, after one to warm up",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models, one repetition: does every path work? the figures mean nothing",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="a .json file, or a folder for one file per run (default runs/bench)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="add the table to bench/RESULTS.md, with command, commit, versions, machine",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Hand over to the checkout's script; its exit code. UsageError without a checkout."""
    if not SCRIPT.is_file():
        raise UsageError(
            "the benchmarks are part of a checkout of laurel, not of the installed package.",
            where="laurel bench",
            fix="Clone the repository, `pip install -e '.[bench]'`, and run it from there.",
        )
    words = [
        *args.names,
        *(f"--{flag}" for flag in ("all", "list", "quick", "record") if getattr(args, flag)),
    ]
    for name in ("repeat", "output"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) is not None else []
    return subprocess.run([sys.executable, str(SCRIPT), *words]).returncode
