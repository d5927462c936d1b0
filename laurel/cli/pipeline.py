"""`laurel pipeline PLAN.yaml`: from demonstrations to a trained and compared policy."""

from __future__ import annotations

import argparse
from typing import Any

CHANGES = ("model", "dataset", "gold", "output_dir", "seed", "eval_size", "dataset_size")
"""Options of the plan that have a flag of their own; every other one is reached by --set."""


def add_parser(subparsers: Any) -> None:
    """Register `pipeline`. Its help lists every section with its options and defaults."""
    from laurel.pipeline.plan import Plan

    parser = subparsers.add_parser(
        "pipeline",
        help=(
            "SFT, answers, preferences, reward model, reinforcement, comparison: one resumable plan"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=sections(),
    )
    parser.add_argument(
        "plan", metavar="PLAN", help="a YAML file, such as examples/addition-rlhf.yaml"
    )
    for name in CHANGES:
        field = Plan.model_fields[name]
        parser.add_argument(
            f"--{name}",
            type=int if field.annotation is int else str,
            help=field.description,
            default=None,
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="change one option of a section; may be repeated",
    )
    parser.set_defaults(run=run)


def sections() -> str:
    """The sections of a plan, for the help text."""
    from laurel.pipeline.plan import Comparing, Preferring, Sampling

    lines = [
        "sections of a plan:",
        (
            "  sft      dataset, and options of `laurel train sft`; null: the model is the start as"
            " it is"
        ),
        "  reward   algorithm, members, combine, and options of `laurel train reward`",
        "  policy   algorithm, and options of `laurel train ALGORITHM`",
    ]
    for name, kind in (("sample", Sampling), ("prefer", Preferring), ("compare", Comparing)):
        for option, field in kind.model_fields.items():
            lines.append(
                f"  {name + '.' + option:32} {field.description} (default {field.default})"
            )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Carry out the plan; 0 when it ends. Wrong plans are UsageErrors before any weight."""
    from laurel.pipeline.plan import read_plan

    changes = {name: value for name in CHANGES if (value := getattr(args, name)) is not None}
    plan = read_plan(args.plan, changes, args.set)
    from laurel.pipeline.run import pipeline

    pipeline(plan)
    return 0
