"""The checks that planted mistakes name: parts of `laurel verify` small enough to run for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from laurel.verify.correction import corrected_claims, corrected_steps
from laurel.verify.expected_gradients import check_critic
from laurel.verify.finding import Finding, precision
from laurel.verify.hindsight import check_relabelled
from laurel.verify.identities import identities
from laurel.verify.ilql import logged_steps, logged_truths
from laurel.verify.imitation import discriminator_rewards, whole_steps
from laurel.verify.invariances import invariances
from laurel.verify.mistakes_auxiliary import AUXILIARY, OTHERS
from laurel.verify.mistakes_correction import CORRECTED
from laurel.verify.mistakes_loop import LOOP
from laurel.verify.mistakes_pairs import COMPARISONS
from laurel.verify.mistakes_shapes import SHAPES
from laurel.verify.mistakes_step import OBJECTIVES, WEIGHTS
from laurel.verify.mutants import Mutant, outcome, plant_mistake
from laurel.verify.pairs import at_temperature_one
from laurel.verify.sampled import samplers, transformer
from laurel.verify.scores import no_step_is_wrong
from laurel.verify.shapes import shapes
from laurel.verify.single_steps import single_steps
from laurel.verify.world import make_world

MUTANTS: tuple[Mutant, ...] = (
    *OBJECTIVES,
    *WEIGHTS,
    *LOOP,
    *CORRECTED,
    *COMPARISONS,
    *AUXILIARY,
    *OTHERS,
    *SHAPES,
)

CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "steps": lambda method: single_steps(batches=2, only=method),
    "invariances": lambda method: invariances(only=method),
    "identities": lambda _: identities(),
    "critic": lambda _: check_critic(make_world(3, 2, seed=3, binary=True)),
    "corrected": lambda _: corrected_claims(),
    "corrected steps": lambda method: corrected_steps(1, only=method),
    "process": lambda _: no_step_is_wrong(at_temperature_one(make_world(3, 2, seed=40))),
    "told": lambda _: discriminator_rewards(),
    "whole steps": lambda _: whole_steps(),
    "logged steps": lambda _: logged_steps(batches=2),
    "logged truths": lambda _: logged_truths(),
    "relabelled": lambda _: check_relabelled(),
    "shapes": lambda _: shapes(),
    "samplers": lambda _: samplers(draws=8_000),
    "transformer": lambda _: transformer(),
}
"""name: findings about a method (or more: a finding is looked for until it comes)."""
SINGLE = ("samplers", "transformer")
"""Checks of a float32 model; the others are run in float64."""


def run_finding(check: str, finding: str) -> str:
    """What becomes of a check's finding, as the code now is: see `outcome`."""
    method = finding.partition(": ")[0]
    with precision(torch.float32 if check in SINGLE else torch.float64):
        return outcome(finding, lambda: CHECKS[check](method))


def is_caught(mutant: Mutant) -> bool:
    """Does the finding that the mutant names fail while the mistake is there?"""
    with plant_mistake(mutant):
        return run_finding(mutant.check, mutant.finding) == "fails"
