"""The experiments take any seeds, and their intervals hold together for all comparisons."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from laurel_worlds.experiments import comparison as claim

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"__init__", "comparison", "start_model"}
SCRIPTS = sorted(
    path
    for path in (ROOT / "laurel_worlds" / "experiments").glob("*.py")
    if path.stem not in SHARED
)


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_takes_any_seeds_and_corrects_every_verdict(path):
    assert "sys.argv" not in path.read_text(encoding="utf-8")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert calls(tree, "seeds_of") and calls(tree, "make_parser")
    assert all(
        len(call.args) == 2 for call in calls(tree, "sign_if_clear")
    )  # the differences, and how many comparisons are made
    printed = calls(
        tree, "print_verdicts"
    )  # corrects and compares by itself: test_verdicts_are_corrected_as_printed
    assert printed or calls(tree, "correction_note")
    made = any(
        isinstance(node, ast.Name) and node.id in ("MADE", "made") for node in ast.walk(tree)
    )
    assert printed or calls(tree, "comparison_words") or made


def test_there_are_scripts():
    assert len(SCRIPTS) >= 11
    assert not list((ROOT / "bench").glob("claim*")), "experiments are laurel_worlds.experiments"


def test_an_experiment_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "laurel_worlds.experiments.ranking", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "--first-seed" in done.stdout and "python -m laurel_worlds.experiments" in done.stdout


def test_figures_are_drawn_in_the_checkout():
    assert ROOT / "docs" / "figures" == claim.FIGURES


def test_seeds_are_those_that_were_asked_for(capsys):
    parser = claim.make_parser("about")
    assert claim.seeds_of(parser.parse_args([])) == range(8) and not capsys.readouterr().err
    assert claim.seeds_of(parser.parse_args(["--first-seed", "100", "--seeds", "12"])) == range(
        100, 112
    )
    assert (
        claim.seeds_of(parser.parse_args(["--seeds", "3"])) == range(3)
        and "a trial" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        claim.seeds_of(parser.parse_args(["--seeds", "0"]))
    assert claim.run_seeds(range(2), lambda seed, folder: (seed, folder.is_dir())) == [
        (0, True),
        (1, True),
    ]


def test_intervals_hold_together():
    gap = [0.1, 0.2, 0.3, 0.4]  # mean .25, deviation .1291, t(3) at 97.5 % is 3.182: +- .2054
    assert claim.interval_text(gap, 3) == "0.250 +- 0.205" and claim.sign_if_clear(gap) == 1
    assert (
        claim.interval_text(gap, 3, of=10) == "0.250 +- 0.481" and claim.sign_if_clear(gap, 10) == 0
    )  # t(3) at 99.75 % is 7.453
    words = {1: "better", -1: "worse", 0: "not told apart"}
    assert claim.comparison_words({"a": gap}, words, 3) == {"a": "better (0.250 +- 0.205)"}
    many = claim.comparison_words({str(n): gap for n in range(10)}, words, 3)
    assert set(many.values()) == {"not told apart (0.250 +- 0.481)"}


def test_verdicts_are_corrected_as_printed(capsys):
    gap = [0.1, 0.2, 0.3, 0.4]
    claim.print_verdicts({"one": gap})
    assert "one: better (0.250 +- 0.205)." in capsys.readouterr().out
    claim.print_verdicts({str(n): gap for n in range(10)}, "no difference seen")
    printed = capsys.readouterr().out
    assert (
        "all 10 comparisons" in printed
        and printed.count("no difference seen (0.250 +- 0.481).") == 10
    )
