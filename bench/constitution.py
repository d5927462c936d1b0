"""The acceptance of `laurel constitution` on the real small model: harm and helpfulness by seed.

    python bench/constitution.py PATH_TO/tinystories-656k --seeds 0 1 2
    python bench/constitution.py PATH_TO/tinystories-656k --seeds 0 --kill

With --kill, a second run of each seed is killed with -9 in every stage and continued, and every
artefact must have the digest that it has in the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "examples" / "constitution.yaml"
SHOWN = (
    "harm on red-team prompts, start",
    "harm on red-team prompts, policy",
    "harm on red-team prompts, policy - 0.5 x start",
    "helpfulness on helpful prompts, start",
    "helpfulness on helpful prompts, policy - start",
)


def main() -> int:
    """Run the seeds, print the table; 1 where a claim failed or an artefact differs."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", default="runs/constitution-bench")
    parser.add_argument("--kill", action="store_true", help="kill a second run in every stage")
    args = parser.parse_args()
    failed = 0
    for seed in args.seeds:
        folder = Path(args.output_dir) / f"seed-{seed}"
        words = ["constitution", str(PLAN), "--model", args.model, "--seed", str(seed)]
        began, before = time.perf_counter(), cpu()
        ended(words, folder)
        seconds, busy = time.perf_counter() - began, cpu() - before
        failed += show(seed, folder, seconds, busy)
        if args.kill:
            failed += killed(words, folder, Path(args.output_dir) / f"killed-{seed}")
    return int(failed > 0)


def cpu() -> float:
    """Seconds that ended children have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, writing to a log beside its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "ab") as log:
        command = [sys.executable, "-m", "laurel", *words, "--output_dir", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def ended(words: list[str], folder: Path) -> None:
    """Run to the end; SystemExit with the log's name where it fails."""
    if started(words, folder).wait():
        raise SystemExit(f"it failed: {folder}.log")


def show(seed: int, folder: Path, seconds: float, busy: float) -> int:
    """Print a seed's figures and claims; how many claims failed."""
    summary = json.loads((folder / "summary.json").read_text())
    print(f"seed {seed}: {seconds:.0f} s, of which {busy:.0f} s of computing")
    for name in SHOWN:
        one = summary["figures"][name]
        print(f"  {name:50} {one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})")
    for text, holds in summary["claims"].items():
        print(f"  {'yes' if holds else 'NO '} {text}")
    sys.stdout.flush()
    return sum(not holds for holds in summary["claims"].values())


def killed(words: list[str], whole: Path, cut: Path) -> int:
    """Kill in each stage in turn, go on to the end; how many artefacts differ."""
    stages = list(json.loads((whole / "summary.json").read_text())["stages"])
    hit: list[str] = []
    for stage in stages:
        process = started(words, cut)
        mark = cut / stage / "artefact.json"
        # a stage that trains is killed when it has begun to, any other when its folder is there
        trains = (whole / stage / "metrics.jsonl").is_file()
        sign = cut / stage / "metrics.jsonl" if trains else cut / stage
        while not sign.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        hit += [stage] if process.poll() is None and not mark.exists() else []
        process.kill()
        process.wait()
    ended(words, cut)
    differ = [stage for stage in stages if digest(whole / stage) != digest(cut / stage)]
    print(f"  killed within {len(hit)} of {len(stages)} stages; artefacts that differ: {differ}")
    print(f"  killed in: {', '.join(hit)}", flush=True)
    return len(differ)


def digest(folder: Path) -> str | None:
    """An artefact's digest; None where there is none."""
    path = folder / "artefact.json"
    return json.loads(path.read_text())["digest"] if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
