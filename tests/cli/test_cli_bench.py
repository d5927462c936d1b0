"""`laurel bench`: a workload from the command to the table, without TRL; what it says where there
is no checkout.
"""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from laurel.cli import bench
from laurel.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench" / "speed"))
speed, workloads = import_module("run"), import_module("workloads")
WORKLOADS, Row = workloads.WORKLOADS, workloads.Row


def test_a_quick_workload_ends_in_a_table_and_a_file(tmp_path):
    """A contender in a process of its own: a warm-up, two turns, figures, facts; a quick run judges
    nothing.
    """
    out = tmp_path / "one.json"
    words = [
        sys.executable,
        "-m",
        "laurel",
        "bench",
        "logprob-memory",
        "--quick",
        "--repeat",
        "2",
        "--output",
        str(out),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    (turns,) = report["workloads"]["logprob-memory"]["turns"].values()
    assert len(turns) == 2 and all(turn["seconds"] > 0 and turn["peak_mb"] > 50 for turn in turns)
    assert turns[0]["unit_mb"] == 8 * 1024 * 4 / 2**20
    rows = report["workloads"]["logprob-memory"]["rows"]
    assert [row["verdict"] for row in rows] == ["quick"] * 3
    assert report["facts"]["versions"]["torch"] and report["facts"]["machine"]["cores"] >= 1
    assert "over B T V 4 bytes" in done.stdout and str(out) in done.stdout


class OneTurn:
    """One turn, in this process."""

    def each(self, repetition):
        self.figures = repetition()


def test_ours_and_the_peer_do_the_same_work(tmp_path):
    """The lengths that both are forced to: as many tokens here as there; the machine's bound is a
    plausible number.
    """
    shape = WORKLOADS["rollout-a"].shape.quick()
    found = {}
    for name, contender in WORKLOADS["rollout-a"].contenders.items():
        turn = OneTurn()
        contender(turn, shape, tmp_path)
        found[name] = turn.figures
    assert {figures["tokens"] for figures in found.values()} == {int(shape.lengths().sum())}
    assert 1e-7 < found["laurel"]["bound"]() < 10


def test_a_contender_that_cannot_race_says_why(tmp_path):
    racer = speed.Racer("logprob-memory", "nobody", True, tmp_path)
    assert racer.answer() is None and racer.why.startswith("failed: KeyError")
    racer.close()
    line = speed.judged(
        Row("r", "speed", "laurel", "trl", 1.0), {"laurel": turns(1.0), "trl": racer.why}, False
    )
    assert line["met"] is None and line["verdict"] == racer.why


def turns(*seconds, peak=100.0, **more):
    return [{"seconds": s, "peak_mb": peak, **more} for s in seconds]


def test_ratios_are_of_neighbours_and_goals_are_judged_in_their_direction():
    """Ours 1, 2, 4 s beside 4, 6, 20 s: ratios 4, 3, 5, median 4. The ratio of the medians, 6 / 2,
    would be 3.
    """
    found = {
        "laurel": turns(1.0, 2.0, 4.0, peak=80.0, share=0.4),
        "trl": turns(4.0, 6.0, 20.0),
        "gone": "not installed",
    }
    fast = speed.judged(Row("r", "speed", "laurel", "trl", 3.5), found, False)
    assert fast["value"] == {"median": 4.0, "min": 3.0, "max": 5.0} and fast["met"]
    slow = speed.judged(Row("r", "speed", "laurel", "trl", 8.0), found, False)
    assert not slow["met"] and slow["verdict"] == "missed: 0.50 of the goal"
    light = speed.judged(Row("r", "memory", "laurel", "trl", 0.7), found, False)
    assert light["value"]["median"] == pytest.approx(0.8) and not light["met"]
    assert not speed.judged(Row("r", "figure", "laurel", goal=0.3, figure="share"), found, False)[
        "met"
    ]
    assert speed.judged(
        Row("r", "figure", "laurel", goal=0.3, figure="share", least=True), found, False
    )["met"]
    absent = speed.judged(Row("r", "speed", "laurel", "gone", 1.0), found, False)
    assert (
        absent["verdict"] == "not installed"
        and absent["value"] is None
        and absent["ours"]["median"] == 2.0
    )
    shown = speed.table({"w": {"rows": [fast, slow, light, absent]}})
    assert (
        "4 (3 .. 5)" in shown
        and ">= 3.5" in shown
        and "<= 0.7" in shown
        and shown.count("not installed") == 2
    )


def test_the_share_of_the_roofline_stands_beside_the_ratio_and_is_judged_of_the_quicker_precision():
    """fp32 2 s with a bound of 1.8, bf16 1 s with one of .5: the quicker reaches .5 of what the
    machine can do, not .9.
    """
    found = {
        "fp32": turns(2.0, bound=1.8),
        "bf16": turns(1.0, bound=0.5),
        "trl": turns(8.0),
        "gone": "not installed",
    }
    ratio = speed.judged(Row("r", "speed", "fp32", "trl", 3.0), found, False)
    assert ratio["value"]["median"] == 4.0 and ratio["share"]["median"] == 0.9
    best = speed.judged(Row("r", "bound", "fp32", "bf16", 0.6), found, False)
    assert best["value"]["median"] == 0.5 and not best["met"] and best["ours"]["median"] == 1.0
    assert speed.judged(Row("r", "bound", "fp32", goal=0.6), found, False)["met"]
    assert (
        speed.judged(Row("r", "speed", "fp32", "gone", 1.0), found, False)["share"]["median"] == 0.9
    )
    assert "| 0.90 " in speed.table({"w": {"rows": [ratio, best]}})


def test_every_row_compares_contenders_that_there_are():
    for name, workload in WORKLOADS.items():
        for row in workload.rows:
            alone = row.kind in ("figure", "bound") and not row.peer
            assert row.ours in workload.contenders and (alone or row.peer in workload.contenders), (
                name,
                row,
            )


def test_a_run_is_recorded_above_the_older_ones(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text((ROOT / "bench" / "RESULTS.md").read_text())
    about = {
        "command": "laurel bench --all",
        "commit": "abc",
        "versions": {"trl": "1.16.0"},
        "machine": {"cpu": "x", "gpu": None},
    }
    for day in ("2026-01-01", "2026-01-02"):
        speed.record({"facts": about | {"time": day}, "workloads": {}}, page)
    text = page.read_text()
    assert (
        text.index("## 2026-01-02") < text.index("## 2026-01-01") < text.index("# What was tried")
    )
    assert "`laurel bench --all`, commit `abc`. trl 1.16.0. cpu x." in text


def test_an_installed_wheel_says_where_the_benchmarks_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "SCRIPT", tmp_path / "run.py")
    assert main(["bench", "--list"]) == 2
    assert "checkout" in capsys.readouterr().err


def test_an_unknown_workload_is_refused_by_name():
    done = subprocess.run(
        [sys.executable, "-m", "laurel", "bench", "rollout-z"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 2 and "rollout-z" in done.stderr
