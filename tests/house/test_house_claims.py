"""The scripts of claims: any seeds, intervals that hold together however many comparisons are made, no verdict beside them."""

import ast
import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SCRIPTS = sorted(BENCH.glob("claim_*.py"))


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("claim", BENCH / "claim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_takes_any_seeds_and_corrects_every_verdict(path):
    assert "sys.argv" not in path.read_text(encoding="utf-8")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert calls(tree, "seeds_of") and calls(tree, "command")
    assert all(len(call.args) == 2 for call in calls(tree, "clearly"))  # the differences, and how many comparisons are made
    printed = calls(tree, "print_verdicts")  # corrects and compares by itself: test_verdicts_are_corrected_as_printed
    assert printed or calls(tree, "corrected")
    made = any(isinstance(node, ast.Name) and node.id in ("MADE", "made") for node in ast.walk(tree))
    assert printed or calls(tree, "compared") or made


def test_there_are_scripts():
    assert len(SCRIPTS) >= 11


def test_seeds_are_those_that_were_asked_for(claim, capsys):
    parser = claim.command("about")
    assert claim.seeds_of(parser.parse_args([])) == range(8) and not capsys.readouterr().err
    assert claim.seeds_of(parser.parse_args(["--first-seed", "100", "--seeds", "12"])) == range(100, 112)
    assert claim.seeds_of(parser.parse_args(["--seeds", "3"])) == range(3) and "a trial" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        claim.seeds_of(parser.parse_args(["--seeds", "0"]))
    assert claim.over(range(2), lambda seed, folder: (seed, folder.is_dir())) == [(0, True), (1, True)]


def test_intervals_hold_together(claim):
    gap = [0.1, 0.2, 0.3, 0.4]  # mean .25, deviation .1291, t(3) at 97.5 % is 3.182: +- .2054
    assert claim.told(gap, 3) == "0.250 +- 0.205" and claim.clearly(gap) == 1
    assert claim.told(gap, 3, of=10) == "0.250 +- 0.481" and claim.clearly(gap, 10) == 0  # t(3) at 99.75 % is 7.453
    words = {1: "better", -1: "worse", 0: "not told apart"}
    assert claim.compared({"a": gap}, words, 3) == {"a": "better (0.250 +- 0.205)"}
    many = claim.compared({str(n): gap for n in range(10)}, words, 3)
    assert set(many.values()) == {"not told apart (0.250 +- 0.481)"}


def test_verdicts_are_corrected_as_printed(claim, capsys):
    gap = [0.1, 0.2, 0.3, 0.4]
    claim.print_verdicts({"one": gap})
    assert "one: better (0.250 +- 0.205)." in capsys.readouterr().out
    claim.print_verdicts({str(n): gap for n in range(10)}, "no difference seen")
    printed = capsys.readouterr().out
    assert "all 10 comparisons" in printed and printed.count("no difference seen (0.250 +- 0.481).") == 10
