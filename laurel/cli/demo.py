"""`laurel demo`: a language model learns to add, in minutes on two cores."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register `demo`."""
    about = (
        "arithmetic learned from a verifier (GRPO), then from preferences alone (reward model,"
        " PPO), in minutes"
    )
    parser = subparsers.add_parser("demo", help=about, description=about)
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of everything random (default 0)"
    )
    parser.add_argument(
        "--output_dir",
        default="runs/demo",
        help="where the runs and summary.json are written (default runs/demo)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; 0 when it ends."""
    from laurel.pipeline.demo import demo

    demo(args.output_dir, args.seed)
    return 0
