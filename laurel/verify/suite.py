"""The whole of `laurel verify`: its parts in order, and the hunt for mutants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from laurel.train.algorithms import ALGORITHMS
from laurel.verify.checks import MUTANTS, is_caught
from laurel.verify.correction import corrected_gradients
from laurel.verify.evolution import check_ends_at_best, check_smoothed_gradient
from laurel.verify.expected_gradients import expected_gradients
from laurel.verify.finding import Finding, precision
from laurel.verify.fixed_points import fixed_points
from laurel.verify.hindsight import check_posterior, check_relabelled
from laurel.verify.identities import identities
from laurel.verify.ilql import logged_ends, logged_steps, logged_truths
from laurel.verify.imitation import check_expert_matched, discriminator_rewards
from laurel.verify.invariances import invariances
from laurel.verify.mutants import Verdict, hunt
from laurel.verify.pairs import check_fixed_points, population
from laurel.verify.sampled import sampled_rows
from laurel.verify.scores import check_pulls, check_rests_at_truth
from laurel.verify.single_steps import single_steps

CLAIMS = (
    expected_gradients,
    corrected_gradients,
    population,
    check_pulls,
    check_smoothed_gradient,
    check_relabelled,
    discriminator_rewards,
    logged_steps,
    logged_truths,
)
"""Expectations of rows that sample, by the trainer and by an engine, of rows that are shown
preferences, of scorers, and of four rows by themselves.
"""
ENDS = (
    fixed_points,
    check_fixed_points,
    check_rests_at_truth,
    check_ends_at_best,
    check_posterior,
    check_expert_matched,
    logged_ends,
)
"""Fixed points of the same."""
ALONE = {
    "es": (check_smoothed_gradient, check_ends_at_best),
    "hindsight": (check_relabelled, check_posterior),
    "gail": (discriminator_rewards, check_expert_matched),
    "ilql": (logged_steps, logged_truths, logged_ends),
}
"""Rows that have checks of their own."""


def checks_of(method: str) -> tuple[Callable[..., Iterator[Finding]], ...]:
    """The checks of CLAIMS and ENDS that look at this row."""
    row = ALGORITHMS[method]
    if method in ALONE:
        return ALONE[method]
    if row.trained.head:
        return (check_pulls, check_rests_at_truth)
    compares = row.defaults["loss_aggregation"] == "comparison_mean" or row.source.partners
    if not compares:
        return (expected_gradients, corrected_gradients, fixed_points)
    corrected = (corrected_gradients,) if row.source.sampled else ()
    return (population, *corrected, check_fixed_points)


def all_claims(only: str | None = None) -> Iterator[Finding]:
    """Every expectation; only: those of checks that look at this row."""
    for check in CLAIMS:
        if only is None or check in checks_of(only):
            yield from check()


def all_ends(only: str | None = None) -> Iterator[Finding]:
    """Every fixed point; only: as above."""
    for check in ENDS:
        if only is None or check in checks_of(only):
            yield from check()


PARTS: dict[str, tuple[str, Callable[[], Iterator[Finding]], tuple[torch.dtype, ...]]] = {
    "steps": (
        "single steps against a second implementation in plain Python",
        single_steps,
        (torch.float64, torch.float32),
    ),
    "expectations": (
        "the expected gradient, all groups listed, against theory",
        all_claims,
        (torch.float64, torch.float32),
    ),
    "fixed points": ("where the expected update ends", all_ends, (torch.float64,)),
    "invariances": ("what must not matter", invariances, (torch.float64, torch.float32)),
    "identities": (
        "the oracle itself, KL estimators, credit, best-of-n, preferences",
        identities,
        (torch.float64,),
    ),
    "samples": (
        "a transformer, the sampler and the loop, by sampling",
        sampled_rows,
        (torch.float32,),
    ),
}
"""part: (what it compares, its findings, the precisions it runs in)."""
BY_ROW: dict[str, Callable[..., Iterator[Finding]]] = {
    "steps": single_steps,
    "invariances": invariances,
    "expectations": all_claims,
    "fixed points": all_ends,
}
"""Parts that can be asked for one row of the table."""


def run_part(
    name: str, method: str | None = None, *, precisions: Sequence[torch.dtype] = ()
) -> Iterator[Finding]:
    """The findings of one part, in every precision it has, or in these.

    method: of this row alone, where a part can tell rows apart.
    """
    _, checks, own = PARTS[name]
    by_row = name in BY_ROW and method in ALGORITHMS
    for dtype in precisions or own:
        with precision(dtype):
            yield from BY_ROW[name](only=method) if by_row else checks()


def quick() -> Iterator[Finding]:
    """What a mutant has to get past: every part but the fixed points, in float64, cheapest first.

    What samples last.
    """
    with precision(torch.float64):
        yield from identities()
        yield from single_steps(batches=2)
        yield from invariances()
        for cheap in (
            check_relabelled,
            logged_steps,
            logged_truths,
            check_smoothed_gradient,
            check_pulls,
            discriminator_rewards,
            population,
            corrected_gradients,
            expected_gradients,
        ):
            yield from cheap()
    with precision(torch.float32):
        yield from sampled_rows(draws=8_000, batches=2)


def hunt_all(processes: int = 1) -> Iterator[Verdict]:
    """Every mutant against `quick`, several at a time.

    Each process breaks its own copy of the code. A hunt is blind: whatever notices first is the
    killer. Whether the finding that the mutant names does is a question of its own.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for number, killer, named in pool.map(hunt_one, range(len(MUTANTS))):
            yield Verdict(MUTANTS[number], killer, named)


def hunt_one(number: int) -> tuple[int, str, bool]:
    """Of the mutant with this number: who noticed it, and whether who it names does."""
    torch.set_num_threads(1)
    mutant = MUTANTS[number]
    return number, hunt(mutant, quick).killer, is_caught(mutant)
