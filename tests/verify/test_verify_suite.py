"""Every part of `laurel verify` passes, every planted mistake is noticed, and the hunt itself can fail."""

import json

import pytest
import torch

from laurel.cli.main import main
from laurel.core.config import ALGORITHM_NAMES
from laurel.core.errors import LaurelError
from laurel.objective import policy
from laurel.verify.finding import Finding, precision, same, sampled
from laurel.verify.mutants import MUTANTS, Mutant, broken, hunt
from laurel.verify.steps import CASES, steps
from laurel.verify.suite import PARTS, quick, run_part


@pytest.mark.parametrize("part", PARTS)
def test_every_finding_of_the_part_passes(part):
    """Exact rows 1e-10 in float64, the float32 path 1e-5, sampled rows |z| < 4 with their sample size."""
    findings = list(run_part(part))
    assert len(findings) >= 20
    assert [f for f in findings if not f.passed] == []
    limits = {f.precision: f.limit for f in findings if f.limit in (1e-10, 1e-5)}
    assert set(limits.items()) <= {("float64", 1e-10), ("float32", 1e-5)}
    assert all(f.limit == 4.0 for f in findings if f.samples and not f.method.endswith("sampler"))


def test_every_row_of_the_table_has_steps_a_truth_and_a_fixed_point():
    assert set(CASES) == set(ALGORITHM_NAMES)
    for part in ("expectations", "fixed points", "invariances"):
        assert {f.method for f in run_part(part)} >= set(ALGORITHM_NAMES), part


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_planted_mistake_is_noticed(mutant):
    assert hunt(mutant, quick).killed


def test_there_are_enough_mistakes_and_all_differ():
    assert len(MUTANTS) >= 15
    assert len({(m.function, m.old, m.new) for m in MUTANTS}) == len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_a_mistake_lasts_as_long_as_its_context_and_no_longer():
    before = policy.likelihood.__code__
    with broken(MUTANTS[0]):
        assert policy.likelihood.__code__ is not before
    assert policy.likelihood.__code__ is before


def test_a_change_that_changes_nothing_stays_alive():
    """The hunt reports what it does not notice: it is not a machine that says "killed"."""
    harmless = Mutant("nothing", policy.likelihood, "return -batch.weight_NT", "return -1.0 * batch.weight_NT")
    assert not hunt(harmless, lambda: list(steps(batches=1))).killed


def test_a_mutant_whose_source_has_gone_says_so():
    with pytest.raises(LaurelError, match="no longer in the source"), broken(Mutant("gone", policy.clip, "no such text", "")):
        pass


def test_a_finding_fails_when_it_should():
    with precision(torch.float64):
        assert same("a", "b", torch.ones(3) * (1 + 1e-11), torch.ones(3)).passed
        assert not same("a", "b", torch.ones(3) * (1 + 1e-9), torch.ones(3)).passed
        assert not same("a", "b", torch.tensor([1.0, float("nan")]), torch.ones(2)).passed
        assert not same("a", "b", torch.ones(2), torch.ones(3)).passed
    assert not Finding("a", "b", "", "", float("nan"), 1.0).passed
    draws = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert sampled("a", "b", draws, 0.0, samples=400).passed
    assert not sampled("a", "b", draws, 0.5, samples=400).passed


def test_command_prints_json_and_its_exit_code_is_the_verdict(capsys):
    assert main(["verify", "--part", "identities", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["passed"]
        and len(result["findings"]) > 40
        and {"method", "quantity", "expected", "measured", "error"} <= set(result["findings"][0])
    )
    with broken(MUTANTS[0]):
        assert main(["verify", "--part", "steps", "--method", "sft"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["verify", "--part", "identities", "--method", "grpoo"]) == 2
    assert "Did you mean `grpo`" in capsys.readouterr().err
