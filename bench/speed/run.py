"""`laurel bench`: contenders in processes of their own take turns; the table tells ours, the
peer's, their ratio and the goal.

As `run.py --child WORKLOAD CONTENDER` it is one contender. Without TRL its columns say "not
installed".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata, util
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ABSENT = "not installed"
THREADS = str(
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}


class Racer:
    """A contender in its process. `why` says why it cannot race ("" while it can)."""

    def __init__(self, workload: str, name: str, quick: bool, folder: Path) -> None:
        self.name, self.why, self.turns = name, "", list[dict[str, Any]]()
        self.log = folder / f"{workload}.{name}.log"
        words = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--child",
            workload,
            name,
            *(["--quick"] if quick else []),
        ]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS, **os.environ, **QUIET},
            )

    def answer(self) -> dict[str, Any] | None:
        """The next line it says; None (and `why`) where it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait(timeout=60)
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self.why = f"failed: {said[-1][:200] if said else f'exit code {self.process.returncode}'}"
        return None

    def turn(self, *, counts: bool) -> None:
        """One repetition; a warm-up does not count."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        figures = self.answer()
        if figures is not None and counts:
            self.turns.append(figures)

    def close(self) -> None:
        """No more turns."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def race(name: str, repeat: int, quick: bool, folder: Path) -> dict[str, Any]:
    """All contenders of a workload, in turn, after a warm-up of each: name -> its repetitions, or
    why it has none.
    """
    from workloads import WORKLOADS

    workload, racers, absent = WORKLOADS[name], list[Racer](), dict[str, str]()
    for contender in workload.contenders:
        if contender in workload.needs_trl and util.find_spec("trl") is None:
            absent[contender] = ABSENT
            continue
        racer = Racer(name, contender, quick, folder)
        racers.append(racer)
    for racer in racers:
        racer.answer()  # ready
    for counts in [*([False] if name not in ("learn", "soak") else []), *[True] * repeat]:
        for racer in racers:
            if not racer.why:
                racer.turn(counts=counts)
    for racer in racers:
        racer.close()
    return {**{racer.name: racer.turns or (racer.why or ABSENT) for racer in racers}, **absent}


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def judged(row: Any, found: dict[str, Any], quick: bool) -> dict[str, Any]:
    """A row of the table from what was measured. A ratio is taken turn by turn, of neighbours in
    time.

    `share`: of its roofline, of the side that is ours, in every row whose contender has one.
    """
    least = row.least or row.kind in ("speed", "bound")
    line: dict[str, Any] = {
        "row": row.title,
        "kind": row.kind,
        "goal": row.goal,
        "least": least,
        "unit": row.unit,
    }
    mine, other = found[row.ours], found.get(row.peer, [])
    if row.kind == "bound" and not isinstance(mine, str) and not isinstance(other, str) and other:
        mine, other = (
            min(mine, other, key=lambda turns: median(turn["seconds"] for turn in turns)),
            [],
        )
    wrong = next((side for side in (mine, other) if isinstance(side, str)), "")
    for side, turns in (("ours", mine), ("peer", other)):
        line[side] = (
            turns
            if isinstance(turns, str)
            else spread([value_of(row, t) for t in turns])
            if turns
            else None
        )
    shares = (
        []
        if isinstance(mine, str)
        else [turn["bound"] / turn["seconds"] for turn in mine if "bound" in turn]
    )
    line["share"] = spread(shares) if shares else None
    if wrong:
        return line | {"value": None, "met": None, "verdict": wrong}
    if row.kind == "figure":
        values = [value_of(row, turn) for turn in mine]
    elif row.kind == "bound":
        values = shares
    else:
        pairs = [(value_of(row, a), value_of(row, b)) for a, b in zip(mine, other, strict=True)]
        values = [a / b if row.kind == "memory" else b / a for a, b in pairs]
    line["value"] = spread(values)
    value = line["value"]["median"]
    if row.goal is None or quick:
        return line | {"met": None, "verdict": "quick" if quick else "no goal"}
    met = value >= row.goal if least else value <= row.goal
    return line | {
        "met": met,
        "verdict": "met" if met else f"missed: {value / row.goal:.2f} of the goal",
    }


def value_of(row: Any, turn: dict[str, Any]) -> float:
    """The number of one repetition that a row looks at."""
    if row.kind == "figure":
        return turn["tokens"] / turn["seconds"] if row.figure == "speed" else turn[row.figure]
    return turn["peak_mb" if row.kind == "memory" else "seconds"]


def number(value: Any, unit: str = "") -> str:
    """1.23 (1.20 .. 1.31)"""
    if not isinstance(value, dict):
        return value or ""
    return f"{value['median']:.3g}{unit} ({value['min']:.3g} .. {value['max']:.3g})"


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table that a terminal can be read with too."""
    lines = [["workload", "ours", "of its roofline", "peer", "ratio or figure", "goal", "met?"]]
    for name, result in results.items():
        for line in result["rows"]:
            unit = {"speed": " s", "bound": " s", "memory": " MB"}.get(line["kind"], line["unit"])
            goal = (
                ""
                if line["goal"] is None
                else f"{'>=' if line['least'] else '<='} {line['goal']:g}"
            )
            mine = "" if line["kind"] == "figure" else number(line["ours"], unit)
            value = number(line["value"], line["unit"] if line["kind"] == "figure" else "")
            share = (
                f"{line['share']['median']:.2f}"
                if line["kind"] == "speed" and line["share"]
                else ""
            )
            lines.append(
                [
                    f"{name}: {line['row']}",
                    mine,
                    share,
                    number(line["peer"], unit),
                    value,
                    goal,
                    line["verdict"],
                ]
            )
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join(
        [rows[0], "|" + "|".join("-" * (width + 2) for width in wide) + "|", *rows[1:]]
    )


def facts(words: list[str]) -> dict[str, Any]:
    """What a reader needs to judge the figures: command, commit, versions, machine."""
    import torch

    def version(package: str) -> str:
        return metadata.version(package) if util.find_spec(package) else ABSENT

    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    done = subprocess.run(git, cwd=HERE, capture_output=True, text=True)
    cpus = (
        line.split(":")[1].strip()
        for line in lines_of("/proc/cpuinfo")
        if line.startswith("model name")
    )
    cpu = next(cpus, platform.processor())
    return {
        "command": " ".join(["laurel bench", *words]),
        "commit": done.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
        "machine": {
            "cpu": cpu,
            "cores": int(THREADS),
            "threads": int(os.environ.get("OMP_NUM_THREADS", THREADS)),
            "system": platform.platform(),
            "products of bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }


def lines_of(path: str) -> list[str]:
    """The lines of a file; none where there is no such file."""
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []


def child(workload: str, contender: str, quick: bool) -> None:
    """Race as one contender."""
    import torch
    from measure import Turns
    from workloads import WORKLOADS

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns, chosen = Turns(), WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as folder:
        shape = chosen.shape.quick() if quick else chosen.shape
        chosen.contenders[contender](turns, shape, Path(folder))


def record(report: dict[str, Any], page: Path) -> None:
    """Add the run to bench/RESULTS.md, above the log of what was tried."""
    about = report["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = ", ".join(
        f"{name} {value}" for name, value in about["machine"].items() if value is not None
    )
    told = f"`{about['command']}`, commit `{about['commit']}`. {versions}. {machine}."
    mark, text = (
        "<!-- runs: newest first, written by `laurel bench --record` -->",
        page.read_text(encoding="utf-8"),
    )
    if text.count(mark) != 1:
        raise SystemExit(f"{page} needs the line {mark} once.")
    page.write_text(
        text.replace(
            mark, f"{mark}\n\n## {about['time']}\n\n{told}\n\n{table(report['workloads'])}"
        ),
        encoding="utf-8",
    )


def parsed() -> argparse.Namespace:
    """The command line; `laurel bench --help` prints the same words."""
    parser = argparse.ArgumentParser(prog="laurel bench")
    parser.add_argument("names", nargs="*")
    for flag in ("all", "list", "quick", "record"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--output", default="runs/bench")
    parser.add_argument("--child", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Race what was asked for; print the table, write the JSON."""
    args = parsed()
    if args.child:
        child(args.names[0], args.names[1], args.quick)
        return 0
    from workloads import WORKLOADS

    if args.list:
        print(
            "\n".join(
                f"{name:15} {w.about}{' (long: by name or with --all)' if w.long else ''}"
                for name, w in WORKLOADS.items()
            )
        )
        return 0
    unknown = [name for name in args.names if name not in WORKLOADS]
    if unknown:
        print(
            f"error: no workload is called {', '.join(unknown)}; `laurel bench --list` names them",
            file=sys.stderr,
        )
        return 2
    names = args.names or [
        name for name, workload in WORKLOADS.items() if args.all or not workload.long
    ]
    report: dict[str, Any] = {"facts": facts(sys.argv[1:]), "quick": args.quick, "workloads": {}}
    output = Path(args.output)
    path = (
        output
        if output.suffix == ".json"
        else output / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name}: {WORKLOADS[name].about}", file=sys.stderr, flush=True)
            found = race(
                name,
                args.repeat or (1 if args.quick else WORKLOADS[name].repeat),
                args.quick,
                Path(folder),
            )
            rows = [judged(row, found, args.quick) for row in WORKLOADS[name].rows]
            report["workloads"][name] = {
                "about": WORKLOADS[name].about,
                "rows": rows,
                "turns": found,
            }
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(table({name: report["workloads"][name]}), file=sys.stderr, flush=True)
    print(table(report["workloads"]))
    print(f"written: {path}" + (" (--quick: these figures mean nothing)" if args.quick else ""))
    if args.record and not args.quick:
        record(report, HERE.parent / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
