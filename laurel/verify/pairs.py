"""Preferences, exactly: every pair of answers of a small language, and where each objective ends.

A pair is shown as often as its law says. Preferences follow Bradley and Terry: y is preferred to z
with probability sigmoid(R(y) - R(z)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from laurel.verify.expected_gradients import ascent
from laurel.verify.finding import Finding, compare_different, compare_equal
from laurel.verify.fixed_points import Update, follow_natural_ascent, probabilities
from laurel.verify.language import best_of_n, optimum
from laurel.verify.world import (
    World,
    as_groups,
    build_session,
    expected_gradient,
    gradient,
    make_world,
    mean_by_prompt,
)

Shown = tuple[int, tuple[int, int], tuple[float, float], float]
"""Prompt, two answers, their rewards, and how often they are shown so."""

BETA = 0.5
RATES = {"dpo": 6.0, "cdpo": 6.0, "simpo": 4.0, "dpop": 2.0}
"""The rate of a step on the way to an end: near 1 / slope, so that some twenty steps do."""


def at_temperature_one(world: World) -> World:
    """The same world at temperature 1: rows of data have none."""
    return replace(world, temperature=1.0)


def all_preference_pairs(world: World, flips: float = 0.0) -> list[Shown]:
    """Every ordered pair (preferred, other) of different answers, uniform over pairs.

    Labels are exchanged with probability `flips`.
    """
    X, N = world.reward.shape
    shown: list[Shown] = []
    for x, y, z in product(range(X), range(N), range(N)):
        if y == z:
            continue
        p = float(torch.sigmoid(world.reward[x, y] - world.reward[x, z]))
        labelled = p * (1 - flips) + (1 - p) * flips
        shown.append((x, (y, z), (1.0, -1.0), labelled / X / N / (N - 1)))
    return shown


def mean_step(world: World, name: str, shown: list[Shown], **options: Any) -> Tensor:
    """E of the loop's gradient over what is shown, one comparison at a time: [X, S, V], exact.

    One call of the loop: every comparison becomes a prompt of its own.
    """
    which = torch.tensor([x for x, *_ in shown])
    setup = build_session(world, name, world.logits[which], world.ref[which], **options)
    drawn = [(at, members) for at, (_, members, _, _) in enumerate(shown)]
    rewards = [rewards for _, _, rewards, _ in shown]
    groups = as_groups(world, drawn, rewards=rewards, table=world.logits[which], supervised=True)
    each = gradient(setup, groups) * len(shown)
    return mean_by_prompt(world, which, each, torch.tensor([p for *_, p in shown]))


def population() -> Iterator[Finding]:
    """Expected gradients of the preference rows, at the start and at the policies of theory."""
    world = at_temperature_one(make_world(3, 2, seed=30))
    start = replace(world, logits=world.ref)
    law = all_preference_pairs(world)
    yield from at_reference(start, law)
    yield from without_reference(start, law)
    yield from check_kto(start)
    yield from sampled_pairs(start)
    yield from check_rrhf(start)


def at_reference(start: World, law: list[Shown]) -> Iterator[Finding]:
    """DPO, its smoothed and robust forms and IPO, where the policy is the reference."""
    X = len(start.reward)
    wins = torch.zeros_like(start.reward)
    for x, (y, z), _, p in law:
        wins[x, y] += p * X
        wins[x, z] -= p * X
    slope = ascent(start, wins / probabilities(start))
    for name, own, factor in (
        ("dpo", {}, 0.5),
        ("robust_dpo", {"label_smoothing": 0.2}, 0.5 / 0.6),
        ("cdpo", {"label_smoothing": 0.2}, 0.3),
    ):
        yield compare_equal(
            name,
            f"at the reference: {factor:.4g} beta (E grad lp_w - E grad lp_l)",
            mean_step(start, name, law, beta=BETA, **own),
            factor * BETA * slope,
        )
    yield compare_equal(
        "ipo",
        "at the reference: (E grad lp_w - E grad lp_l) / beta",
        mean_step(start, "ipo", law, beta=BETA),
        slope / BETA,
    )


def sampled_pairs(start: World) -> Iterator[Finding]:
    """Online DPO on its own samples, where the policy is the reference."""
    p_XN = probabilities(start)
    X = len(p_XN)
    informative = 1 - sum(float((p_XN[x] ** 2).sum()) for x in range(X)) / X
    better_XNN = (start.reward[:, :, None] - start.reward[:, None, :]).sign()
    above = (p_XN[:, None, :] * better_XNN).sum(2)
    found = expected_comparison(start, "online_dpo", beta=BETA)
    share_X = (1 - (p_XN**2).sum(1))[:, None, None]
    yield compare_equal(
        "online_dpo",
        "at the reference: beta E[P(worse) - P(better)] grad lp, given a difference",
        found,
        BETA * ascent(start, above) / share_X,
    )
    yield compare_different(
        "online_dpo",
        f"its reward is a rank: not grad J ({informative:.3f} of pairs differ)",
        found,
        ascent(start, start.reward),
    )


def without_reference(world: World, law: list[Shown]) -> Iterator[Finding]:
    """SimPO, ORPO and DPOP pair by pair: sums over the law of the pushes, written out."""
    generator = torch.Generator().manual_seed(33)
    moved = replace(
        world, logits=world.logits + 0.3 * torch.randn(world.logits.shape, generator=generator)
    )
    score = world.language.token_scores(moved.pi).sum(2)
    rows: tuple[tuple[str, dict[str, float], Pushes], ...] = (
        ("simpo", {"simpo_gamma": 0.3}, simpo_push),
        ("orpo", {}, orpo_push),
        ("dpop", {"dpop_lambda": 2.0}, dpop_push),
    )
    for name, own, pushes in rows:
        truth = torch.zeros_like(world.logits)
        for x, (w, other), _, p in law:
            chosen, rejected = (answer_of(moved, x, n) for n in (w, other))
            push = pushes(chosen, rejected)
            up = push.chosen * score[x, w] / (chosen.length if push.per_token else 1)
            down = push.rejected * score[x, other] / (rejected.length if push.per_token else 1)
            truth[x] += p * push.both * (up - down)
        found = mean_step(moved, name, law, beta=BETA, **own)
        yield compare_equal(name, "mean over the law, written out", found, truth)


@dataclass(frozen=True)
class Likelihood:
    """log pi and log ref of an answer, sums over its tokens, and its length."""

    lp: float
    ref: float
    length: int

    @property
    def mean(self) -> float:
        """log pi per token."""
        return self.lp / self.length

    @property
    def gain(self) -> float:
        """log pi - log ref."""
        return self.lp - self.ref


@dataclass(frozen=True)
class Push:
    """A slope both (chosen grad lp_w - rejected grad lp_l); per_token: of lp / length instead."""

    both: float
    chosen: float
    rejected: float
    per_token: bool


Pushes = Callable[[Likelihood, Likelihood], Push]
"""The slope of an objective at a chosen and a rejected answer."""


def answer_of(world: World, x: int, n: int) -> Likelihood:
    """Completion n of prompt x."""
    lp = float(world.language.logp(world.pi)[x, n])
    ref = float(world.language.logp(world.ref)[x, n])
    return Likelihood(lp, ref, int(world.language.length_N[n]))


def simpo_push(chosen: Likelihood, rejected: Likelihood) -> Push:
    """SimPO with gamma .3: beta sigma(.3 - beta (m_w - m_l)), per token."""
    push = BETA / (1 + math.exp(BETA * (chosen.mean - rejected.mean) - 0.3))
    return Push(push, 1.0, 1.0, per_token=True)


def orpo_push(chosen: Likelihood, rejected: Likelihood) -> Push:
    """ORPO: beta sigma(-log OR) / (1 - e^m) per token, and 1 more for the chosen answer."""
    log_odds = [a.mean - math.log(1 - math.exp(a.mean)) for a in (chosen, rejected)]
    push = BETA / (1 + math.exp(log_odds[0] - log_odds[1]))
    up = 1 + push / (1 - math.exp(chosen.mean))
    down = push / (1 - math.exp(rejected.mean))
    return Push(1.0, up, down, per_token=True)


def dpop_push(chosen: Likelihood, rejected: Likelihood) -> Push:
    """DPOP with lambda 2: the chosen answer counts thrice where it is below its reference."""
    h = chosen.gain - rejected.gain - 2.0 * max(0.0, -chosen.gain)
    push = BETA / (1 + math.exp(BETA * h))
    return Push(push, 1 + 2.0 * (chosen.gain < 0), 1.0, per_token=False)


def check_kto(world: World) -> Iterator[Finding]:
    """KTO at the reference: beta/4 (2 P(good) - 1) grad lp.

    There sigma' = 1/4 and the reference point is 0.
    """
    X, N = world.reward.shape
    good = world.reward.sigmoid()
    shown: list[Shown] = []
    for x in range(X):
        for n in range(N):
            chance = float(good[x, n]) / X / N
            shown.append((x, (n, 0), (1.0, 0.0), chance))
            shown.append((x, (n, 0), (-1.0, 0.0), 1 / X / N - chance))
    truth = ascent(world, (2 * good - 1) / N / probabilities(world)) * BETA / 4
    yield compare_equal(
        "kto",
        "at the reference: beta/4 (2 P(good) - 1) grad lp",
        mean_step(world, "kto", shown, beta=BETA),
        truth,
    )


def check_rrhf(world: World) -> Iterator[Finding]:
    """RRHF climbs the likelihood of the best and the hinges in the wrong order, per token.

    Both are means over groups of two.
    """
    p_XN = probabilities(world)
    truth = ascent(world, rrhf_weights(world) / p_XN / world.language.length_N)
    yield compare_equal(
        "rrhf",
        "E over groups of two: best - hinges in the wrong order",
        expected_comparison(world, "rrhf", every=True),
        truth,
    )


def rrhf_weights(world: World) -> Tensor:
    """[X, N] the mean over groups of two of what multiplies grad lp / length of each answer."""
    p_XN = probabilities(world)
    mean_XN = world.language.logp(world.pi) / world.language.length_N
    weight = torch.zeros_like(p_XN)
    X, N = p_XN.shape
    for x, y, z in product(range(X), range(N), range(N)):
        chance = float(p_XN[x, y] * p_XN[x, z])
        first_best = y if world.reward[x, y] >= world.reward[x, z] else z
        weight[x, first_best] += chance
        if world.reward[x, y] < world.reward[x, z] and mean_XN[x, y] > mean_XN[x, z]:
            # (y, z) and (z, y) are the same pair: it is counted here for both
            weight[x, y] -= 2 * chance
            weight[x, z] += 2 * chance
    return weight


def expected_comparison(world: World, name: str, *, every: bool = False, **options: Any) -> Tensor:
    """`expected_gradient` for groups of two that are compared.

    It is over those whose rewards differ, or (RRHF) over all.
    """
    return expected_gradient(world, name, 2, only_informative=not every, **options)


def check_fixed_points() -> Iterator[Finding]:
    """Where the preference rows end."""
    world = at_temperature_one(make_world(3, 2, seed=31))
    goal = optimum(world.language.logp(world.ref), world.reward, BETA)
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()))
    law, noisy = all_preference_pairs(world), all_preference_pairs(world, flips=0.2)
    yield compare_equal(
        "dpo",
        "P1: at pi* = ref exp(R/beta)/Z the gradient is 0",
        mean_step(at_goal, "dpo", law, beta=BETA),
        world.logits * 0,
    )
    found = mean_step(at_goal, "robust_dpo", noisy, beta=BETA, label_smoothing=0.2)
    yield compare_equal(
        "robust_dpo", "P7: one label in five flipped: still pi*", found, world.logits * 0
    )
    yield compare_different(
        "dpo",
        "P7: flipped labels move plain DPO away from pi*",
        mean_step(at_goal, "dpo", noisy, beta=BETA) + 1,
        world.logits * 0 + 1,
    )
    some = [shown for shown in law if shown[1][0] < 5 and shown[1][1] < 5]
    yield compare_equal(
        "dpo",
        "P3: another law of pairs: the same optimum",
        mean_step(at_goal, "dpo", some, beta=BETA),
        world.logits * 0,
    )
    yield from check_ipo(world)
    yield from check_two_answers()


def check_ipo(world: World) -> Iterator[Finding]:
    """P8, IPO: pairs of answers drawn from mu end at ref exp(P(y better than mu) / tau) / Z."""
    N = world.language.N
    mu = torch.full((N,), 1.0 / N, dtype=torch.float64)
    # a pair of equal answers teaches nothing
    law = [(x, pair, own, p * (N - 1) / N) for x, pair, own, p in all_preference_pairs(world)]
    better = torch.sigmoid(world.reward[:, :, None] - world.reward[:, None, :])
    tilt = (better * mu).sum(2) / BETA
    goal = (world.language.logp(world.ref) + tilt).log_softmax(1)
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()))
    yield compare_equal(
        "ipo",
        "P8: at ref exp(P(y > mu)/tau)/Z the gradient is 0",
        mean_step(at_goal, "ipo", law, beta=BETA),
        world.logits * 0,
    )


@dataclass(frozen=True)
class TwoAnswers:
    """Two one-token answers: the first is preferred with probability P.

    A policy is a number theta = logit p of the first answer; ref is the reference's theta. Each
    method below is the slope of a row's objective in theta, up to a positive factor: the row ends
    at its root.
    """

    P: float
    ref: float
    eps: float = 0.1
    lam: float = 2.0
    gamma: float = 0.3

    def dpo(self, theta: float) -> float:
        """P - sigmoid(beta h), h = theta - ref."""
        return self.P - sigmoid(BETA * (theta - self.ref))

    def cdpo(self, theta: float) -> float:
        """The same with labels flipped in a share eps."""
        smoothed = (1 - self.eps) * self.P + self.eps * (1 - self.P)
        return smoothed - sigmoid(BETA * (theta - self.ref))

    def simpo(self, theta: float) -> float:
        """P sigma(gamma - beta theta) - (1 - P) sigma(gamma + beta theta)."""
        first = self.P * sigmoid(self.gamma - BETA * theta)
        return first - (1 - self.P) * sigmoid(self.gamma + BETA * theta)

    def orpo(self, theta: float) -> float:
        """P - p + 2 beta (P - sigmoid(2 theta)): odds of p are exp(theta), their ratio 2 theta."""
        return self.P - sigmoid(theta) + 2 * BETA * (self.P - sigmoid(2 * theta))

    def dpop(self, theta: float) -> float:
        """As dpo, with the penalty on a chosen answer below its reference."""
        p = sigmoid(theta)
        first = self.dpop_order(self.P, theta, self.ref, 1 - p)
        return first - self.dpop_order(1 - self.P, -theta, -self.ref, p)

    def dpop_order(self, chance: float, theta: float, ref: float, other: float) -> float:
        """What one order of the pair pushes at its chosen answer.

        theta, ref: of the chosen answer; other: the probability of the rejected one.
        """
        fallen = max(0.0, log_sigmoid(ref) - log_sigmoid(theta))
        push = chance * sigmoid(-BETA * (theta - ref - self.lam * fallen))
        return push * (1 + self.lam * (fallen > 0) * other)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    """log sigmoid(x)."""
    return -math.log1p(math.exp(-x))


def check_two_answers() -> Iterator[Finding]:
    """Two one-token answers: each row ends at the root of one equation.

    Completion 0 is the end token alone, token 1; completion 1 is token 0.
    """
    bandit = at_temperature_one(make_world(2, 1, X=1, seed=32))
    law = all_preference_pairs(bandit)
    two = TwoAnswers(
        float(torch.sigmoid(bandit.reward[0, 0] - bandit.reward[0, 1])),
        float(bandit.ref[0, 0, 1] - bandit.ref[0, 0, 0]),
    )
    for name, says, options, slope in equations(two):
        update = lambda w, n=name, o=options: mean_step(w, n, law, beta=BETA, **o)  # noqa: E731
        end = follow_natural_ascent(bandit, update, RATES.get(name, 1.0), 400)
        theta = end.logits[0, 0, 1] - end.logits[0, 0, 0]
        yield compare_equal(name, f"two answers: {says}", theta, root_of(slope))
    yield from check_unbounded(bandit)


Equation = tuple[str, str, dict[str, float], Callable[[float], float]]
"""A row, its equation in words, the options, and the slope whose root is the end."""


def equations(two: TwoAnswers) -> tuple[Equation, ...]:
    """The equations of all rows that have a finite end here."""
    return (
        ("dpo", "sigmoid(beta h) = P", {}, two.dpo),
        (
            "cdpo",
            "P6: sigmoid(beta h) = (1-e) P + e (1-P)",
            {"label_smoothing": two.eps},
            two.cdpo,
        ),
        ("simpo", "P sigma(g-bh) = (1-P) sigma(g+bh)", {"simpo_gamma": two.gamma}, two.simpo),
        ("orpo", "P - p + 2 beta (P - sigmoid(2 theta)) = 0", {}, two.orpo),
        ("dpop", "the root of its own slope", {"dpop_lambda": two.lam}, two.dpop),
    )


def root_of(slope: Callable[[float], float]) -> float:
    """The root of a falling function between -30 and 30, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


def check_unbounded(bandit: World) -> Iterator[Finding]:
    """Rows without a finite end here: KTO and online DPO, where what is better takes everything.

    RRHF's likelihood is best at best-of-G.
    """
    better = int(bandit.reward[0].argmax())
    good: list[Shown] = [(0, (n, 1 - n), (1.0 if n == better else -1.0, 0.0), 0.5) for n in (0, 1)]
    rows: tuple[tuple[str, Update], ...] = (
        ("kto", lambda w: mean_step(w, "kto", good, beta=BETA)),
        ("online_dpo", lambda w: expected_comparison(w, "online_dpo", beta=BETA)),
    )
    for name, update in rows:
        end = bandit
        for _ in range(200):
            if float(probabilities(end)[0, better]) < 0.95:
                end = follow_natural_ascent(end, update, 1.0, 1)
        p = float(probabilities(end)[0, better])
        takes_all = "no finite end: the better answer takes all"
        yield Finding(name, takes_all, "> .95", f"{p:.4f}", 1 - p, 0.05)
    yield from fitted_to_best(bandit)


def fitted_to_best(bandit: World) -> Iterator[Finding]:
    """RRHF where likelihoods are in the right order: only the likelihood of the best is left."""
    sure = replace(
        bandit,
        logits=torch.tensor([[[1.0, -1.0]]], dtype=torch.float64),
        reward=torch.tensor([[0.5, 1.0]], dtype=torch.float64),
    )
    best_p = best_of_n(probabilities(sure), sure.reward, 2)
    best = replace(sure, logits=sure.language.logits_of(best_p))
    found = expected_gradient(best, "rrhf", 2, old=sure.logits)
    yield compare_equal(
        "rrhf",
        "answers in the right order: fitted to best-of-2, gradient 0",
        found,
        best.logits * 0,
    )
