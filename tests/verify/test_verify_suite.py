"""Every part of `laurel verify` passes, every planted mistake is noticed, and the hunt itself can
fail.
"""

import json

import pytest
import torch

from laurel.cli import verify as command
from laurel.cli.main import main
from laurel.core.config import ALGORITHM_NAMES
from laurel.objective import policy
from laurel.verify import suite
from laurel.verify.checks import CHECKS, MUTANTS, is_caught, run_finding
from laurel.verify.finding import Finding, compare_equal, compare_sampled_mean, precision
from laurel.verify.mutants import (
    Mutant,
    Verdict,
    changed_result,
    hunt,
    outcome,
    plant_mistake,
    replaced_by,
)
from laurel.verify.single_steps import CASES, single_steps
from laurel.verify.suite import PARTS, hunt_all, quick

BY_ROW = ("expectations", "fixed points", "invariances")
NAMED = sorted({(mutant.check, mutant.finding) for mutant in MUTANTS})


IN_FULL = [(part, "all") for part in ("expectations", "invariances")]
"""Parts of which the suite runs float64; float32, which `steps` and `samples` run here, too, comes
behind
 `make verify`.
"""


@pytest.mark.parametrize(
    "part, how",
    [
        *((part, "suite") for part in PARTS),
        *(pytest.param(*one, marks=pytest.mark.whole) for one in IN_FULL),
    ],
)
def test_every_finding_of_the_part_passes(part, how, findings):
    """Exact rows 1e-10 in float64, the float32 path 1e-5, sampled rows |z| < 4 with their sample
    size; every algorithm has its own.
    """
    short = how == "suite" and (part, "all") in IN_FULL
    found = findings(part, torch.float64) if short else findings(part)
    assert len(found) >= 20
    assert [f for f in found if not f.passed] == []
    limits = {f.precision: f.limit for f in found if f.limit in (1e-10, 1e-5)}
    assert set(limits.items()) <= {("float64", 1e-10), ("float32", 1e-5)}
    assert all(f.limit == 4.0 for f in found if f.samples and not f.method.endswith("sampler"))
    assert part not in BY_ROW or {f.method for f in found} >= set(ALGORITHM_NAMES)


def test_every_row_of_the_table_has_steps():
    assert set(CASES) == set(ALGORITHM_NAMES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_planted_mistake_is_noticed_by_the_check_that_it_names(mutant):
    assert is_caught(mutant)


@pytest.mark.parametrize("check, finding", NAMED, ids="{0[0]}-{0[1]}".format)
def test_a_named_check_passes_where_nothing_is_planted(check, finding):
    assert run_finding(check, finding) == "passes"


@pytest.mark.whole
def test_the_blind_hunt_kills_all_and_every_name_is_right():
    """Nobody says where to look: whatever of `laurel verify` notices first is the killer."""
    verdicts = list(hunt_all(2))
    assert [v.mutant.name for v in verdicts if not (v.killed and v.named)] == []


def test_there_are_enough_mistakes_and_all_differ():
    assert len(MUTANTS) >= 120
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert {m.check for m in MUTANTS} <= set(CHECKS)


def test_a_mistake_lasts_as_long_as_its_context_and_no_longer():
    before = policy.likelihood.__code__, policy.likelihood.__kwdefaults__
    with (
        plant_mistake(MUTANTS[0]),
        plant_mistake(Mutant("a sign", policy.likelihood, changed_result(torch.neg), "", "")),
    ):
        assert policy.likelihood.__code__ is not before[0]
    assert (policy.likelihood.__code__, policy.likelihood.__kwdefaults__) == before


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_what_a_mutant_breaks_is_whole_again(mutant):
    import inspect

    function = inspect.unwrap(mutant.function)
    before = (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        inspect.signature(function),
        dict(vars(function)),
    )
    with plant_mistake(mutant):
        assert inspect.signature(function) == before[3]
    assert (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        inspect.signature(function),
        dict(vars(function)),
    ) == before


def test_a_change_that_changes_nothing_stays_alive():
    """The hunt reports what it does not notice: it is not a machine that says "killed"."""
    harmless = Mutant(
        "nothing",
        policy.likelihood,
        changed_result(lambda x: x * 1.0),
        "steps",
        "sft: one step, defaults",
    )
    assert not hunt(harmless, lambda: list(single_steps(batches=1, only="sft"))).killed
    assert not is_caught(harmless)


def test_a_name_is_wrong_where_another_check_notices_or_the_code_cannot_run():
    """A killer is the finding that is named: no other one, none that is not there, and no stumble
    on the way to it.
    """
    flipped, by_grpo = policy.likelihood, "grpo: one step, defaults"
    assert not is_caught(Mutant("a", flipped, changed_result(torch.neg), "steps", by_grpo))
    assert not is_caught(
        Mutant("b", flipped, changed_result(torch.neg), "steps", "sft: no such finding")
    )
    assert not is_caught(
        Mutant("c", flipped, replaced_by(lambda: None), "steps", "sft: one step, defaults")
    )
    assert is_caught(
        Mutant("d", flipped, changed_result(torch.neg), "steps", "sft: one step, defaults")
    )
    assert is_caught(Mutant("e", flipped, replaced_by(lambda: None), "steps", "sft: TypeError: "))


def test_an_error_that_is_named_must_be_raised():
    def stops():
        raise ValueError("too large by 3")
        yield

    assert outcome("a: ValueError: too large", stops) == "fails"
    assert outcome("a: ValueError: too small", stops) == "is not there"
    assert outcome("a: ValueError: too large", list) == "passes"
    assert outcome("a: some quantity", list) == "is not there"


def test_a_finding_fails_when_it_should():
    with precision(torch.float64):
        assert compare_equal("a", "b", torch.ones(3) * (1 + 1e-11), torch.ones(3)).passed
        assert not compare_equal("a", "b", torch.ones(3) * (1 + 1e-9), torch.ones(3)).passed
        assert not compare_equal("a", "b", torch.tensor([1.0, float("nan")]), torch.ones(2)).passed
        assert not compare_equal("a", "b", torch.ones(2), torch.ones(3)).passed
    assert not Finding("a", "b", "", "", float("nan"), 1.0).passed
    draws = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert compare_sampled_mean("a", "b", draws, 0.0, samples=400).passed
    assert not compare_sampled_mean("a", "b", draws, 0.5, samples=400).passed


def test_command_prints_json_and_its_exit_code_is_the_verdict(capsys):
    assert main(["verify", "--part", "identities", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["passed"]
        and len(result["findings"]) > 40
        and {"method", "quantity", "expected", "measured", "error"} <= set(result["findings"][0])
    )
    with plant_mistake(Mutant("a sign", policy.likelihood, changed_result(torch.neg), "", "")):
        assert main(["verify", "--part", "steps", "--method", "sft"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["verify", "--part", "identities", "--method", "grpoo"]) == 2
    assert "Did you mean `grpo`" in capsys.readouterr().err


def test_command_fails_where_a_name_is_wrong_and_prints_the_share(capsys, monkeypatch):
    """Two mutants, one of whom another check notices than the one that it names."""
    right = MUTANTS[0]
    wrong = Mutant(
        right.name + " twice", right.function, right.mistake, "steps", "sft: no such finding"
    )
    for verdicts, code in (
        ([Verdict(right, "who: ever")], 0),
        ([Verdict(right, "who: ever"), Verdict(wrong, "who: ever", False)], 1),
    ):
        monkeypatch.setattr(suite, "hunt_all", lambda processes, verdicts=verdicts: iter(verdicts))
        assert main(["verify", "--part", "mutants"]) == code
        said = capsys.readouterr().out
        assert f"{len(verdicts)} of {len(verdicts)} mutants killed (100%)" in said
        assert (
            ("1 not by the check that they name" in said)
            == ("no such finding" in said)
            == bool(code)
        )
    assert command.as_json([], [Verdict(wrong, "who: ever", False)], 0.0)["passed"] is False


def test_the_blind_hunt_and_the_names_are_asked_of_each_mutant():
    """What a process of the hunt does, on one mutant: killed, and by the check that it names."""
    number = next(n for n, m in enumerate(MUTANTS) if m.function is policy.likelihood)
    assert suite.hunt_one(number) == (number, "sft: one step, defaults", True)
    assert next(iter(quick())).passed
