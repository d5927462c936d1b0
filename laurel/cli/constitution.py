"""`laurel constitution PLAN.yaml`: a policy from principles in words, and a model that judges."""

from __future__ import annotations

import argparse
from typing import Any

CHANGES = ("model", "judge", "critic", "constitution", "output_dir", "seed", "eval_size")
"""Options of the plan that have a flag of their own; every other one is reached by --set."""


def add_parser(subparsers: Any) -> None:
    """Register `constitution`. Its help lists every section with its options and defaults."""
    from laurel.pipeline.constitution_plan import ConstitutionPlan

    parser = subparsers.add_parser(
        "constitution",
        help="critiques, revisions and preferences by principles: one resumable plan",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=sections(),
    )
    parser.add_argument(
        "plan", metavar="PLAN", help="a YAML file, such as examples/constitution.yaml"
    )
    for name in CHANGES:
        field = ConstitutionPlan.model_fields[name]
        kind = int if field.annotation is int else str
        parser.add_argument(f"--{name}", type=kind, help=field.description, default=None)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="change one option of a section, or of the plan; may be repeated",
    )
    parser.set_defaults(run=run)


def sections() -> str:
    """The options of a plan, for the help text."""
    from laurel.pipeline.constitution_plan import (
        Answering,
        ConstitutionPlan,
        Ending,
        Gold,
        Judging,
        Revising,
    )

    lines = ["options of a plan:"]
    kinds = {
        "gold": Gold,
        "sample": Answering,
        "revise": Revising,
        "prefer": Judging,
        "compare": Ending,
    }
    for name, field in ConstitutionPlan.model_fields.items():
        if name not in kinds and name not in CHANGES:
            lines.append(f"  {name:28} {field.description}")
    for name, kind in kinds.items():
        for option, field in kind.model_fields.items():
            default = "required" if field.is_required() else f"default {field.default}"
            lines.append(f"  {name + '.' + option:28} {field.description} ({default})")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Carry out the plan; 0 when it ends. Wrong plans are UsageErrors before any weight."""
    from laurel.pipeline.constitution_plan import read_constitution_plan

    changes = {name: value for name in CHANGES if (value := getattr(args, name)) is not None}
    plan = read_constitution_plan(args.plan, changes, args.set)
    from laurel.pipeline.constitution_run import constitution

    constitution(plan)
    return 0
