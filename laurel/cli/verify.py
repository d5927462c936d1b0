"""`laurel verify`: the functions that train against exact truths, and planted mistakes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from laurel.verify.finding import Finding
    from laurel.verify.mutants import Verdict

PARTS = ("steps", "expectations", "fixed points", "invariances", "identities", "samples", "mutants")
WIDTH = 132  # of the tables where no terminal says otherwise


def add_parser(subparsers: Any) -> None:
    """Register `verify`; `args.run` is what the command line calls."""
    about = (
        "hold the functions that train against exact truths; exit 1 if one is missed or a planted"
        " mistake goes unnoticed"
    )
    parser = subparsers.add_parser("verify", help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument(
        "--part",
        action="append",
        choices=PARTS,
        help="only this part (may be repeated; default: all)",
    )
    parser.add_argument(
        "--method",
        help="show only this row of the table of algorithms (or oracle, kl, gae, sampler, ...)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the parts, print what they found; 0 if everything passed and every mutant was killed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from rich.console import Console

    from laurel.verify.suite import hunt_all

    torch.set_num_threads(1)  # everything here is tiny: a second thread costs more than it brings
    began = time.perf_counter()
    console = Console(quiet=args.json, width=None if sys.stdout.isatty() else WIDTH)
    chosen = args.part or PARTS
    findings = run_parts(console, chosen, args.method)
    with console.status("mutants: planted mistakes"):
        verdicts = list(hunt_all(os.cpu_count() or 1)) if "mutants" in chosen else []
    show_mutants(console, verdicts)
    seconds = time.perf_counter() - began
    if args.json:
        print(json.dumps(as_json(findings, verdicts, seconds), indent=1))
    console.print(f"\n{summary_line(findings, verdicts)}, {seconds:.0f} s")
    passed = all(f.passed for f in findings) and all(v.killed and v.named for v in verdicts)
    return 0 if passed else 1


def run_parts(console: Console, chosen: Sequence[str], method: str | None) -> list[Finding]:
    """Run the chosen parts and print each; the findings, of `method` alone where one is named."""
    from laurel.core.errors import UsageError, nearest
    from laurel.verify.suite import PARTS as CHECKS
    from laurel.verify.suite import run_part

    findings: list[Finding] = []
    found: list[Finding] = []
    for name in [part for part in CHECKS if part in chosen]:
        with console.status(f"{name}: {CHECKS[name][0]}"):
            found = list(run_part(name, method))
        kept = [f for f in found if method in (None, f.method)]
        findings += kept
        show_part(console, name, CHECKS[name][0], kept)
    if method is not None and not findings and list(chosen) != ["mutants"]:
        raise UsageError(
            f"no finding is about `{method}`.",
            where="--method",
            fix=nearest(method, {f.method for f in found}),
        )
    return findings


def summary_line(findings: Sequence[Finding], verdicts: Sequence[Verdict]) -> str:
    """How many checks passed, how many mutants were killed, and by the check that they name."""
    line = f"{sum(f.passed for f in findings)} of {len(findings)} checks passed"
    if verdicts:
        killed = sum(v.killed for v in verdicts)
        line += f"; {killed} of {len(verdicts)} mutants killed ({killed_share(verdicts):.0%})"
    if misnamed := sum(not v.named for v in verdicts):
        line += f", {misnamed} not by the check that they name"
    return line


def killed_share(verdicts: Sequence[Verdict]) -> float:
    """The share of mutants that were noticed; 1 if there were none."""
    return sum(v.killed for v in verdicts) / len(verdicts) if verdicts else 1.0


def show_part(console: Console, name: str, about: str, findings: Sequence[Finding]) -> None:
    """Method by method, one line per quantity; both precisions of a check share it."""
    from rich.markup import escape

    if not findings:
        return
    table = new_table(
        f"{name}: {about}",
        ("method", "quantity", "expected", "measured", "error or z", "in float32", ""),
    )
    rows: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        rows.setdefault((finding.method, finding.quantity), []).append(finding)
    before = ""
    for (method, quantity), several in rows.items():
        first, verdict = (
            several[0],
            "[green]ok[/]" if all(f.passed for f in several) else "[bold red]FAIL[/]",
        )
        in_float32 = format_error(several[1]) if several[1:] else ""
        table.add_row(
            "" if method == before else method,
            escape(quantity),
            first.expected,
            first.measured,
            format_error(first),
            in_float32,
            verdict,
        )
        before = method
    console.print(table)
    console.print()


def new_table(title: str, heads: Sequence[str]) -> Table:
    """A table without lines; long cells go on in the next line."""
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def format_error(finding: Finding) -> str:
    """1.2e-16, or for a sampled line z 1.1, n 10240."""
    if finding.samples:
        return f"z {finding.error:.2f}, n {finding.samples}"
    return (
        "0"
        if finding.error == 0
        else (
            f"{finding.error:.1e}"
            if finding.limit < 1e-2
            else f"{finding.error:.3f} < {finding.limit:g}"
        )
    )


def show_mutants(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Each planted mistake, the first check that noticed it, and whether its own check did."""
    from rich.markup import escape

    if not verdicts:
        return
    table = new_table(
        "mutants: one line of the training code is wrong", ("mistake", "in", "noticed by", "")
    )
    for v in verdicts:
        where = (
            f"{v.mutant.function.__module__.removeprefix('laurel.')}.{v.mutant.function.__name__}"
        )
        table.add_row(
            v.mutant.name,
            where,
            escape(v.killer),
            "[green]killed[/]" if v.killed else "[bold red]ALIVE[/]",
        )
        if not v.named:
            table.add_row(
                "",
                "",
                escape(f"not by {v.mutant.check}, {v.mutant.finding}"),
                "[bold red]WRONG NAME[/]",
            )
    console.print(table)


def as_json(
    findings: Sequence[Finding], verdicts: Sequence[Verdict], seconds: float
) -> dict[str, Any]:
    """Everything that was found, as --json prints it."""
    from dataclasses import asdict

    return {
        "passed": all(f.passed for f in findings) and all(v.killed and v.named for v in verdicts),
        "seconds": round(seconds, 1),
        "findings": [{**asdict(f), "passed": f.passed} for f in findings],
        "mutants_killed": killed_share(verdicts),
        "mutants": [
            {
                "name": v.mutant.name,
                "killed": v.killed,
                "killer": v.killer,
                "named": v.mutant.finding,
                "named_kills": v.named,
            }
            for v in verdicts
        ],
    }
