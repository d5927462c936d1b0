"""Preferences, exactly: every pair of answers of a small language, shown as often as its law says,
and where each objective then ends.

Preferences follow Bradley and Terry: y is preferred to z with probability sigmoid(R(y) - R(z)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.verify.expected_gradients import ascent
from laurel.verify.finding import Finding, apart, same
from laurel.verify.fixed_points import follow, probabilities
from laurel.verify.language import best_of_n, optimum
from laurel.verify.world import World, as_groups, build, expected_gradient, gradient, make_world

Shown = tuple[int, tuple[int, int], tuple[float, float], float]
"""Prompt, two answers, their rewards, and how often they are shown so."""

BETA = 0.5
RATES = {"dpo": 6.0, "cdpo": 6.0, "simpo": 4.0, "dpop": 2.0}
"""How far a step goes on the way to an end: near 1 / slope, so that some twenty steps are enough.
"""


def graded(world: World) -> World:
    """The same world at temperature 1: rows of data have none."""
    return replace(world, temperature=1.0)


def preferred(world: World, flips: float = 0.0) -> list[Shown]:
    """Every ordered pair (preferred, other) of different answers, uniform over pairs; labels are
    exchanged with probability `flips`.
    """
    X, N = world.reward.shape
    shown = []
    for x in range(X):
        for y in range(N):
            for z in range(N):
                if y != z:
                    p = float(torch.sigmoid(world.reward[x, y] - world.reward[x, z]))
                    shown.append(
                        (
                            x,
                            (y, z),
                            (1.0, -1.0),
                            (p * (1 - flips) + (1 - p) * flips) / X / N / (N - 1),
                        )
                    )
    return shown


def mean_step(world: World, name: str, shown: list[Shown], **options: Any) -> Tensor:
    """E of the loop's gradient over what is shown, one comparison at a time: [X, S, V], exact, by
    one call of the loop.
    """
    which, chance = torch.tensor([x for x, *_ in shown]), torch.tensor([p for *_, p in shown])
    setup = build(world, name, world.logits[which], world.ref[which], **options)
    drawn = [(at, members) for at, (_, members, _, _) in enumerate(shown)]
    groups = as_groups(
        world,
        drawn,
        rewards=[told for _, _, told, _ in shown],
        table=world.logits[which],
        supervised=True,
    )
    each = gradient(setup, groups) * len(shown)
    return torch.zeros_like(world.logits, dtype=each.dtype).index_add(
        0, which, each * chance[:, None, None]
    )


def population() -> Iterator[Finding]:
    """Expected gradients of the preference rows, at the start and at the policies that theory
    names.
    """
    world = graded(make_world(3, 2, seed=30))
    start = replace(world, logits=world.ref)
    law, X = preferred(world), len(world.reward)
    wins = torch.zeros_like(world.reward)
    for x, (y, z), _, p in law:
        wins[x, y], wins[x, z] = wins[x, y] + p * X, wins[x, z] - p * X
    slope = ascent(start, wins / probabilities(start))
    for name, own, factor in (
        ("dpo", {}, 0.5),
        ("robust_dpo", {"label_smoothing": 0.2}, 0.5 / 0.6),
        ("cdpo", {"label_smoothing": 0.2}, 0.3),
    ):
        found = mean_step(start, name, law, beta=BETA, **own)
        yield same(
            name,
            f"at the reference: {factor:.4g} beta (E grad lp_w - E grad lp_l)",
            found,
            factor * BETA * slope,
        )
    yield same(
        "ipo",
        "at the reference: (E grad lp_w - E grad lp_l) / beta",
        mean_step(start, "ipo", law, beta=BETA),
        slope / BETA,
    )
    yield from without_reference(start, law)
    yield from labelled(start)
    informative = 1 - sum(float((probabilities(start)[x] ** 2).sum()) for x in range(X)) / X
    above = (
        probabilities(start)[:, None, :]
        * (world.reward[:, :, None] - world.reward[:, None, :]).sign()
    ).sum(2)
    found = expected_comparison(start, "online_dpo", beta=BETA)
    share_X = (1 - (probabilities(start) ** 2).sum(1))[:, None, None]
    yield same(
        "online_dpo",
        "at the reference: beta E[P(worse) - P(better)] grad lp, given a difference",
        found,
        BETA * ascent(start, above) / share_X,
    )
    yield apart(
        "online_dpo",
        f"its reward is a rank: not grad J ({informative:.3f} of pairs differ)",
        found,
        ascent(start, world.reward),
    )
    yield from ranked(start)


def without_reference(world: World, law: list[Shown]) -> Iterator[Finding]:
    """SimPO, ORPO and DPOP pair by pair: sums over the law of the pushes, written out."""
    moved = replace(
        world,
        logits=world.logits
        + 0.3 * torch.randn(world.logits.shape, generator=torch.Generator().manual_seed(33)),
    )
    lp, ref, length = (
        world.language.logp(moved.pi),
        world.language.logp(world.ref),
        world.language.length_N,
    )
    score = world.language.token_scores(moved.pi).sum(2)
    truth = {name: torch.zeros_like(world.logits) for name in ("simpo", "orpo", "dpop")}
    for x, (w, other), _, p in law:
        m = [float(lp[x, n]) / int(length[n]) for n in (w, other)]
        push = BETA / (1 + math.exp(BETA * (m[0] - m[1]) - 0.3))
        truth["simpo"][x] += p * push * (score[x, w] / length[w] - score[x, other] / length[other])
        odds = [v - math.log(1 - math.exp(v)) for v in m]
        push = BETA / (1 + math.exp(odds[0] - odds[1]))
        up, down = push / (1 - math.exp(m[0])), push / (1 - math.exp(m[1]))
        truth["orpo"][x] += p * (
            (1 + up) * score[x, w] / length[w] - down * score[x, other] / length[other]
        )
        gain = [float(lp[x, n] - ref[x, n]) for n in (w, other)]
        push = BETA / (1 + math.exp(BETA * (gain[0] - gain[1] - 2.0 * max(0.0, -gain[0]))))
        truth["dpop"][x] += p * push * ((1 + 2.0 * (gain[0] < 0)) * score[x, w] - score[x, other])
    for name, own in (
        ("simpo", {"simpo_gamma": 0.3}),
        ("orpo", {}),
        ("dpop", {"dpop_lambda": 2.0}),
    ):
        yield same(
            name,
            "mean over the law, written out",
            mean_step(moved, name, law, beta=BETA, **own),
            truth[name],
        )


def labelled(world: World) -> Iterator[Finding]:
    """KTO at the reference: beta/4 (2 P(good) - 1) grad lp, since there sigma' = 1/4 and the
    reference point is 0.
    """
    X, N = world.reward.shape
    good = world.reward.sigmoid()
    shown: list[Shown] = []
    for x in range(X):
        for n in range(N):
            shown += [
                (x, (n, 0), (1.0, 0.0), float(good[x, n]) / X / N),
                (x, (n, 0), (-1.0, 0.0), 1 / X / N - float(good[x, n]) / X / N),
            ]
    truth = ascent(world, (2 * good - 1) / N / probabilities(world)) * BETA / 4
    yield same(
        "kto",
        "at the reference: beta/4 (2 P(good) - 1) grad lp",
        mean_step(world, "kto", shown, beta=BETA),
        truth,
    )


def ranked(world: World) -> Iterator[Finding]:
    """RRHF: what it climbs is the mean over groups of the likelihood of the best and of the hinges
    that are wrong, per token.
    """
    lp, N = world.language.logp(world.pi), world.language.N
    m, p = lp / world.language.length_N, probabilities(world)
    weight = torch.zeros_like(p)
    for x in range(len(p)):
        for y in range(N):
            for z in range(N):
                chance = float(p[x, y] * p[x, z])
                first_best = y if world.reward[x, y] >= world.reward[x, z] else z
                weight[x, first_best] += chance
                if world.reward[x, y] < world.reward[x, z] and m[x, y] > m[x, z]:
                    weight[x, y], weight[x, z] = (
                        weight[x, y] - 2 * chance,
                        weight[x, z] + 2 * chance,
                    )
    truth = ascent(world, weight / p / world.language.length_N)
    yield same(
        "rrhf",
        "E over groups of two: best - hinges in the wrong order",
        expected_comparison(world, "rrhf", every=True),
        truth,
    )


def expected_comparison(world: World, name: str, *, every: bool = False, **options: Any) -> Tensor:
    """`expected_gradient` for groups of two that are compared: over those that differ, or (RRHF)
    over all.
    """
    return expected_gradient(world, name, 2, only_informative=not every, **options)


def ends() -> Iterator[Finding]:
    """Where the preference rows end."""
    world = graded(make_world(3, 2, seed=31))
    goal = optimum(world.language.logp(world.ref), world.reward, BETA)
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()))
    law, noisy = preferred(world), preferred(world, flips=0.2)
    yield same(
        "dpo",
        "P1: at pi* = ref exp(R/beta)/Z the gradient is 0",
        mean_step(at_goal, "dpo", law, beta=BETA),
        world.logits * 0,
    )
    found = mean_step(at_goal, "robust_dpo", noisy, beta=BETA, label_smoothing=0.2)
    yield same("robust_dpo", "P7: one label in five flipped: still pi*", found, world.logits * 0)
    yield apart(
        "dpo",
        "P7: flipped labels move plain DPO away from pi*",
        mean_step(at_goal, "dpo", noisy, beta=BETA) + 1,
        world.logits * 0 + 1,
    )
    some = [shown for shown in law if shown[1][0] < 5 and shown[1][1] < 5]
    yield same(
        "dpo",
        "P3: another law of pairs: the same optimum",
        mean_step(at_goal, "dpo", some, beta=BETA),
        world.logits * 0,
    )
    yield from identity(world)
    yield from two_answers()


def identity(world: World) -> Iterator[Finding]:
    """P8, IPO: answers drawn from mu, compared with another from mu: ref exp(P(y better than mu) /
    tau) / Z.
    """
    N = world.language.N
    mu = torch.full((N,), 1.0 / N, dtype=torch.float64)
    law = [
        (x, pair, told, p * (N - 1) / N) for x, pair, told, p in preferred(world)
    ]  # a pair of equal answers teaches nothing
    better = torch.sigmoid(world.reward[:, :, None] - world.reward[:, None, :])
    tilt = (better * mu).sum(2) / BETA
    goal = (world.language.logp(world.ref) + tilt).log_softmax(1)
    at_goal = replace(world, logits=world.language.logits_of(goal.exp()))
    yield same(
        "ipo",
        "P8: at ref exp(P(y > mu)/tau)/Z the gradient is 0",
        mean_step(at_goal, "ipo", law, beta=BETA),
        world.logits * 0,
    )


def two_answers() -> Iterator[Finding]:
    """Two one-token answers, preferred with probability P: a policy is a number theta = logit p,
    and each end is a root of one equation.

    Completion 0 is the end token alone, token 1; completion 1 is token 0.
    """
    bandit = graded(make_world(2, 1, X=1, seed=32))
    law = preferred(bandit)
    P, ref = (
        float(torch.sigmoid(bandit.reward[0, 0] - bandit.reward[0, 1])),
        float(bandit.ref[0, 0, 1] - bandit.ref[0, 0, 0]),
    )
    sigma: Callable[[float], float] = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    e, lam, gamma = 0.1, 2.0, 0.3

    def dpop(theta: float) -> float:
        lp, lr = (
            [-math.log1p(math.exp(-theta)), -math.log1p(math.exp(theta))],
            [-math.log1p(math.exp(-ref)), -math.log1p(math.exp(ref))],
        )
        fall, h, p = [max(0.0, lr[i] - lp[i]) for i in (0, 1)], theta - ref, sigma(theta)
        first = P * sigma(-BETA * (h - lam * fall[0])) * (1 + lam * (fall[0] > 0) * (1 - p))
        return first - (1 - P) * sigma(-BETA * (-h - lam * fall[1])) * (1 + lam * (fall[1] > 0) * p)

    equations: dict[str, tuple[str, dict[str, float], Callable[[float], float]]] = {
        "dpo": ("sigmoid(beta h) = P", {}, lambda t: P - sigma(BETA * (t - ref))),
        "cdpo": (
            "P6: sigmoid(beta h) = (1-e) P + e (1-P)",
            {"label_smoothing": e},
            lambda t: (1 - e) * P + e * (1 - P) - sigma(BETA * (t - ref)),
        ),
        "simpo": (
            "P sigma(g-bh) = (1-P) sigma(g+bh)",
            {"simpo_gamma": gamma},
            lambda t: P * sigma(gamma - BETA * t) - (1 - P) * sigma(gamma + BETA * t),
        ),
        "orpo": (
            "P - p + 2 beta (P - sigmoid(2 theta)) = 0",
            {},
            lambda t: P - sigma(t) + 2 * BETA * (P - sigma(2 * t)),
        ),
        "dpop": ("the root of its own slope", {"dpop_lambda": lam}, dpop),
    }
    for name, (says, options, slope) in equations.items():
        low, high = -30.0, 30.0
        for _ in range(200):
            low, high = (
                ((low + high) / 2, high) if slope((low + high) / 2) > 0 else (low, (low + high) / 2)
            )
        end = follow(
            bandit,
            lambda w, n=name, o=options: mean_step(w, n, law, beta=BETA, **o),
            RATES.get(name, 1.0),
            400,
        )
        yield same(name, f"two answers: {says}", end.logits[0, 0, 1] - end.logits[0, 0, 0], low)
    yield from unbounded(bandit)


def unbounded(bandit: World) -> Iterator[Finding]:
    """KTO and online DPO have no finite end here: what is better takes everything. RRHF's
    likelihood is best at best-of-G.
    """
    better = int(bandit.reward[0].argmax())
    good: list[Shown] = [(0, (n, 1 - n), (1.0 if n == better else -1.0, 0.0), 0.5) for n in (0, 1)]
    rows: tuple[tuple[str, Callable[[World], Tensor]], ...] = (
        ("kto", lambda w: mean_step(w, "kto", good, beta=BETA)),
        ("online_dpo", lambda w: expected_comparison(w, "online_dpo", beta=BETA)),
    )
    for name, update in rows:
        end = bandit
        for _ in range(200):
            end = (
                follow(end, update, 1.0, 1) if float(probabilities(end)[0, better]) < 0.95 else end
            )
        p = float(probabilities(end)[0, better])
        yield Finding(
            name, "no finite end: the better answer takes all", "> .95", f"{p:.4f}", 1 - p, 0.05
        )
    sure = replace(
        bandit,
        logits=torch.tensor([[[1.0, -1.0]]], dtype=torch.float64),
        reward=torch.tensor([[0.5, 1.0]], dtype=torch.float64),
    )
    best = replace(
        sure, logits=sure.language.logits_of(best_of_n(probabilities(sure), sure.reward, 2))
    )
    found = expected_gradient(best, "rrhf", 2, old=sure.logits)
    yield same(
        "rrhf",
        "answers in the right order: fitted to best-of-2, gradient 0",
        found,
        best.logits * 0,
    )
