"""Evolution strategies: the loop's own population against the gradient of the smoothed J.

The policies are listed in full.
Each prompt's logits are a parameter tensor of their own, all of one shape, and a member's reward is
its policy's exact E[R].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.train.evolve import evolve
from laurel.train.session import Session, State
from laurel.verify.finding import Finding, compare_equal, compare_sampled_mean
from laurel.verify.world import Recorder, World, as_groups, make_world, setup_of

NAME, SEED = "es", 5
Reward = Callable[[Tensor], Tensor]


def expected_reward(world: World, logits_XSV: Tensor) -> Tensor:
    """E[R] of every prompt: [..., S, V] -> [...]."""
    return (world.language.logp(logits_XSV / world.temperature).exp() * world.reward).sum(1)


def population(world: World, **options: Any) -> Session:
    """What the loop needs: one parameter tensor [S, V] per prompt, at the world's logits."""
    parameters = {
        f"prompt {x}": nn.Parameter(logits.to(torch.get_default_dtype(), copy=True))
        for x, logits in enumerate(world.logits)
    }
    policy: Any = SimpleNamespace(trainable=lambda: parameters)
    return setup_of(NAME, policy, None, Recorder([]), seed=SEED, **{"sigma": 0.5} | options)


def parameter_table(setup: Session) -> Tensor:
    """The parameters as they are now, as one table: [X, S, V] float64."""
    return torch.stack([p.detach().double() for p in setup.policy.trainable().values()])


def answer_groups(world: World, setup: Session, reward: Reward) -> Callable[[], list[Group]]:
    """What the loop calls to evaluate a member: one group per prompt.

    Its reward is `reward` of the parameters as they then are.
    """
    groups = as_groups(
        world,
        [(x, (0,)) for x in range(len(world.logits))],
        rewards=[(0.0,)] * len(world.logits),
        table=world.logits,
    )

    def answer() -> list[Group]:
        return [
            replace(g, rewards=(r,))
            for g, r in zip(groups, reward(parameter_table(setup)).tolist(), strict=True)
        ]

    return answer


def step_of(world: World, *, step: int = 0, reward: Reward | None = None, **options: Any) -> Tensor:
    """Where one step of the loop takes the parameters: [X, S, V]."""
    setup = population(world, **options)
    before = parameter_table(setup)
    evolve(
        setup,
        State(step=step),
        answer_groups(world, setup, reward or (lambda logits: expected_reward(world, logits))),
        Sums(),
    )
    return parameter_table(setup) - before


def one_step(world: World, options: dict[str, Any], quantity: str, batches: int) -> Finding:
    """Some steps end to end, from the loop and from plain Python.

    Rewards are rounded, so that some members are equally good.
    """
    members = 8
    ours: list[Tensor] = []
    theirs: list[Tensor] = []

    def rounded(logits: Tensor) -> Tensor:
        return (expected_reward(world, logits) * 4).round() / 4

    for step in range(batches):
        own = {"sigma": 0.5, "learning_rate": 1.0, "shape_returns": "ranks"} | options
        ours.append(step_of(world, step=step, reward=rounded, population=members, **own))
        # the members of a pair have the same noise, up and down
        eps = [recomputed_noises(step, m // 2, world.logits) * (-1) ** m for m in range(members)]
        rewards = [fmean(rounded(world.logits + own["sigma"] * e).tolist()) for e in eps]
        total = torch.zeros_like(world.logits)
        for weight, e in zip(PLAIN[own["shape_returns"]](rewards), eps, strict=True):
            total = total + weight * e
        theirs.append(total * own["learning_rate"] / (members * own["sigma"]))
    return compare_equal(NAME, quantity, torch.stack(ours), torch.stack(theirs))


def recomputed_noises(step: int, pair: int, logits_XSV: Tensor) -> Tensor:
    """What the pair adds to every tensor of a policy: [X, S, V]."""
    tensors = range(len(logits_XSV))
    return torch.stack([recomputed_noise(step, x, pair, logits_XSV[x]) for x in tensors])


def recomputed_noise(step: int, tensor: int, pair: int, like: Tensor) -> Tensor:
    """What the pair adds to the tensor: normal numbers.

    Their seed is the hash of run, tensor, pair and step.
    """
    name = blake2b(f"{SEED}|tensor {tensor}|{pair}|{step}".encode(), digest_size=8).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(name, "little") % 2**63)
    return torch.randn(like.shape, generator=stream, dtype=torch.get_default_dtype()).double()


def recomputed_ranks(rewards: Sequence[float]) -> list[float]:
    """The place in the order, worst first, between -1/2 and 1/2.

    Equal ones share the mean of their places.
    """
    ordered = sorted(rewards)
    out: list[float] = []
    for reward in rewards:
        place = fmean(i for i, r in enumerate(ordered) if r == reward)
        out.append(place / (len(rewards) - 1) - 0.5)
    return out


def recomputed_z_scores(rewards: Sequence[float]) -> list[float]:
    """How many standard deviations above the mean."""
    mean = fmean(rewards)
    spread = stdev(rewards)
    return [(r - mean) / spread for r in rewards]


PLAIN: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "ranks": recomputed_ranks,
    "zscore": recomputed_z_scores,
    "raw": list,
}


def quadrature(sigma: float, cells: int, nodes: int = 12) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite: points sigma eps [K, cells] and their weights [K], for a normal eps.

    Exact for polynomials below degree 2 nodes.
    """
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    grids = torch.meshgrid(*[torch.tensor(at)] * cells, indexing="ij")
    chances = torch.meshgrid(*[torch.tensor(weight / weight.sum())] * cells, indexing="ij")
    points_KC = torch.stack(grids, -1).view(-1, cells)
    weight_KC = torch.stack(chances, -1).view(-1, cells)
    return sigma * points_KC, weight_KC.prod(1)


def smoothed_gradient(world: World, sigma: float) -> tuple[Tensor, float]:
    """The gradient of J smoothed by N(0, sigma^2), [X, S, V], and the deviation of J.

    It is the standard deviation over the population.
    """
    eps_KC, weight_K = quadrature(sigma, world.logits[0].numel())
    X = len(world.logits)
    grad: list[Tensor] = []
    variance = 0.0
    for x in range(X):
        near = (world.logits[x] + eps_KC.view(-1, *world.logits[x].shape)) / world.temperature
        ours = world.reward[x].expand(len(near), -1)
        each = world.language.ascent(near, ours) / world.temperature / X
        grad.append((each * weight_K[:, None, None]).sum(0))
        J_K = (world.language.logp(near).exp() * ours).sum(1) / X
        variance += float((J_K.square() * weight_K).sum() - (J_K * weight_K).sum().square())
    return torch.stack(grad), variance**0.5


def check_smoothed_gradient() -> Iterator[Finding]:
    """K1 to K4: on average the step is the smoothed gradient, and nears grad J as sigma^2.

    Every tensor is perturbed by itself.
    """
    world = make_world(3, 1, X=2, seed=21)
    sigma = 0.7
    members = 8
    steps = 160
    grad, _ = smoothed_gradient(world, sigma)
    apart = torch.stack([grad[0] / grad[0].norm(), -grad[1] / grad[1].norm()]) / 2**0.5
    found = [
        step_of(world, step=s, population=members, sigma=sigma, shape_returns="raw")
        for s in range(steps)
    ]
    for says, along in (("along it", grad / grad.norm()), ("one tensor against the other", apart)):
        each = torch.stack([(f * along).sum() for f in found])
        quantity = f"mean step, sigma {sigma}: the smoothed gradient, {says}"
        yield compare_sampled_mean(
            NAME, quantity, each, float((grad * along).sum()), samples=steps * members
        )
    yield from check_z_scores(world)
    yield from check_z_scores_exactly(world)


def check_z_scores(world: World) -> Iterator[Finding]:
    """The mean step of a large population with z-scores."""
    few, spread = smoothed_gradient(world, 0.05)
    scored = [
        step_of(world, step=s, population=100, sigma=0.05, shape_returns="zscore")
        for s in range(10)
    ]
    each = torch.stack([(f * few).sum() / few.norm() for f in scored])
    yield compare_sampled_mean(
        NAME,
        "z-scores: grad / std(R) of a large population",
        each,
        float(few.norm()) / spread,
        samples=1000,
    )


def check_z_scores_exactly(world: World) -> Iterator[Finding]:
    """What holds in every single step: z-scores are raw weights over their spread.

    Weights come back; the error is O(sigma^2).
    """
    own: dict[str, Any] = {"population": 6}
    raw = step_of(world, shape_returns="raw", **own)
    seen: list[Tensor] = []
    setup = population(world, shape_returns="zscore", **own)
    start = parameter_table(setup)
    ask = answer_groups(world, setup, lambda logits: expected_reward(world, logits))

    def recorded() -> list[Group]:
        seen.append(parameter_table(setup))
        return ask()

    evolve(setup, State(), recorded, Sums())
    rewards = torch.stack([expected_reward(world, logits).mean() for logits in seen])
    yield compare_equal(
        NAME,
        "z-scores: the raw step over the members' std",
        (parameter_table(setup) - start) * rewards.std(),
        raw,
    )
    yield compare_equal(
        NAME, "the two members of a pair lie around the parameters", (seen[0] + seen[1]) / 2, start
    )
    setup = population(world, learning_rate=1e-300, shape_returns="raw", **own)
    evolve(
        setup,
        State(),
        answer_groups(world, setup, lambda logits: expected_reward(world, logits)),
        Sums(),
    )
    yield compare_equal(
        NAME,
        "after the members the weights are what they were, bit by bit",
        parameter_table(setup),
        start,
        limit=1e-300,
    )
    yield from error_of_sigma(world)


def error_of_sigma(world: World) -> Iterator[Finding]:
    """The error of a step is O(sigma^2): half the sigma, a quarter of it."""
    with_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # differences of nearly equal numbers
    try:
        grad = world.language.ascent(world.pi, world.reward) / world.temperature / len(world.logits)
        exact, wide, narrow = (
            step_of(world, sigma=s, shape_returns="raw", reward=r)
            for s, r in (
                (1.0, lambda logits: (2 * grad * logits).sum((1, 2))),
                (0.1, None),
                (0.05, None),
            )
        )
        ratio = float((wide - exact).norm() / (narrow - exact).norm())
    finally:
        torch.set_default_dtype(with_dtype)
    yield Finding(
        NAME,
        "half the sigma: the error of a step is a quarter",
        "4",
        f"{ratio:.4f}",
        abs(ratio / 4 - 1),
        0.02,
    )


def check_ends_at_best() -> Iterator[Finding]:
    """R10: ranks lead to the best answers. Where all answers are equally good, nothing moves."""
    world = make_world(3, 2, X=2, seed=22)
    setup = population(world, population=20, sigma=0.3, learning_rate=0.3)
    state = State()
    ask = answer_groups(world, setup, lambda logits: expected_reward(world, logits))
    for _ in range(120):
        evolve(setup, state, ask, Sums())
    reached = expected_reward(world, parameter_table(setup)).mean()
    best = world.reward.amax(1).mean()
    low = world.reward.amin(1).mean()
    share = float((reached - low) / (best - low))
    yield Finding(
        NAME,
        "120 steps of 20 members: share of the way from worst to best",
        "> .95",
        f"{share:.4f}",
        1 - share,
        0.05,
    )
    for how in ("ranks", "zscore", "raw"):
        moved = step_of(
            world,
            shape_returns=how,
            population=20,
            reward=lambda logits: torch.full((len(logits),), 0.3).double(),
        )
        yield compare_equal(NAME, f"equal rewards: nothing moves, {how}", moved, moved * 0)


def check_constant_added() -> Iterator[Finding]:
    """What must not matter: a constant added to rewards.

    Neither does an increasing function of them with ranks, or their scale with z-scores.
    """
    world = make_world(3, 2, X=3, seed=23)

    def step(how: str, change: Reward) -> Tensor:
        return step_of(
            world,
            shape_returns=how,
            population=10,
            reward=lambda logits: change(expected_reward(world, logits).mean().expand(3)),
        )

    for how, changes in {
        "ranks": {"5 added to R": lambda r: r + 5, "exp(R)": torch.exp, "R^3": lambda r: r**3},
        "zscore": {"5 added to R": lambda r: r + 5, "10 R": lambda r: 10 * r},
        "raw": {"5 added to R": lambda r: r + 5},
    }.items():
        for says, change in changes.items():
            yield compare_equal(
                NAME,
                f"{how}: {says}" if "added" in says else f"{how}: {says} for R",
                step(how, change),
                step(how, torch.clone),
            )
