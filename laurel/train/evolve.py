"""Evolution strategies: a population of perturbed parameters answers the same prompts.

The members' rewards move the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from laurel.core.metrics import Sums
from laurel.core.sample import Group, sample_seed
from laurel.core.tensors import floats, ints
from laurel.rollout.pack import reward_matrix
from laurel.train import parallel
from laurel.train.record import check_scored
from laurel.train.session import Session, State, learning_rate


@torch.no_grad()
def evolve(
    session: Session, state: State, answer: Callable[[], list[Group]], sums: Sums
) -> list[tuple[int, float, list[Group]]]:
    """One step of evolution strategies, without back-propagation.

        theta += learning_rate * search_gradient(weights of the members)

    `answer` asks the policy as it then stands: its groups, scored. Every member is asked for the
    same prompts with the same seeds. Members are divided over the processes, and every process adds
    up the same sum, so all keep the same weights, bit by bit, however many there are. A pair of
    which no reward judged one member is left out, as from a smaller population. Returns this
    process's members: number, weight, groups.
    """
    config, parameters = session.config, list(session.policy.trainable().values())
    mine: dict[int, list[Group]] = {}
    for member in range(parallel.rank(), config.population or 0, parallel.world_size()):
        with perturbed_parameters(parameters, config.seed, state.step, member, config.sigma or 0.0):
            mine[member] = answer()
    check_scored(session, [group for groups in mine.values() for group in groups])
    pairs, reward_M = rewards_of_pairs(mine, config.population or 0)
    weight_M = reward_M
    if pairs:
        weight_M = session.row.weigh(reward_M, shape_returns=config.shape_returns)
    with session.clock("optimiser"):
        norm = move_parameters(session, state, parameters, pairs, weight_M)
    state.step += 1
    population_metrics(reward_M, weight_M, norm, sums)
    weight = weights_by_member(pairs, weight_M)
    return [(member, weight.get(member, 0.0), groups) for member, groups in mine.items()]


def population_metrics(reward_M: Tensor, weight_M: Tensor, norm: float, sums: Sums) -> None:
    """The spread of the members' rewards and the length of the step."""
    if len(reward_M):
        sums.add("es/reward_std", float(reward_M.std()), 1)
        sums.add("es/reward_best", float(reward_M.max()), 1)
    sums.add("es/step_norm", norm, 1)
    idle = not bool((weight_M[0::2] != weight_M[1::2]).any())
    sums.total("zero_signal", parallel.rank() == 0 and idle)


def weights_by_member(pairs: Sequence[int], weight_M: Tensor) -> dict[int, float]:
    """member: weight. The weights come two for each pair, its even member first."""
    members = [2 * pair + side for pair in pairs for side in (0, 1)]
    return dict(zip(members, floats(weight_M), strict=True))


def rewards_of_pairs(mine: dict[int, list[Group]], population: int) -> tuple[list[int], Tensor]:
    """The pairs of which both members were judged, over all processes, and their mean rewards.

    There are two rewards for each pair, in float64.
    """
    found = {
        member: reward
        for part in parallel.gather(mean_rewards(mine))
        for member, reward in part.items()
    }
    every_M = torch.tensor([found[member] for member in range(population)], dtype=torch.float64)
    by_pair = every_M.view(-1, 2)
    judged = (~by_pair.isnan().any(1)).nonzero()[:, 0]
    pairs = ints(judged)
    return pairs, by_pair[pairs].flatten()


def move_parameters(
    session: Session,
    state: State,
    parameters: Sequence[nn.Parameter],
    pairs: Sequence[int],
    weight_M: Tensor,
) -> float:
    """Add the step to the parameters, a tensor after the other; the norm of the whole step."""
    config, square = session.config, 0.0
    for i, parameter in enumerate(parameters if pairs else ()):
        eps = partial(noise_of, pairs, config.seed, state.step, i, parameter)
        rate = learning_rate(state.step + 1, config)
        step = rate * session.terms[0].objective(weight_M, eps)
        square += float(step.double().square().sum())
        parameter.add_(step)
    return square**0.5


def noise_of(
    pairs: Sequence[int], seed: int, step: int, tensor: int, like: Tensor, k: int
) -> Tensor:
    """`parameter_noise` of the k-th of some pairs."""
    return parameter_noise(seed, step, tensor, like, pairs[k])


def parameter_noise(seed: int, step: int, tensor: int, like: Tensor, pair: int) -> Tensor:
    """The standard normal noise of one parameter tensor for one pair of members.

    It is made anew from four numbers whenever it is needed. Every tensor has a stream of its own:
    one stream for all would move tensors of equal shape alike, and see only the sum of their
    gradients. It is made where the parameter is, so a CPU and a GPU draw different noise.
    """
    generator = torch.Generator(like.device).manual_seed(
        sample_seed(seed, f"tensor {tensor}", pair, step) % 2**63
    )
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


@contextmanager
def perturbed_parameters(
    parameters: Sequence[nn.Parameter], seed: int, step: int, member: int, sigma: float
) -> Generator[None]:
    """Within it theta + sigma eps for an even member, theta - sigma eps for the odd one after it.

    Afterwards the parameters are theta again, bit by bit. Adding and taking away the same number
    does not give theta back in floating point, so a copy is kept: once the memory of what is
    trained, in place of a gradient and of an optimiser's state.
    """
    kept, sign = (
        [parameter.detach().clone() for parameter in parameters],
        -1.0 if member % 2 else 1.0,
    )
    try:
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.add_(
                    parameter_noise(seed, step, i, parameter, member // 2), alpha=sign * sigma
                )
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def mean_rewards(groups_of: dict[int, list[Group]]) -> dict[int, float]:
    """The mean reward of each member over the samples that a reward could judge."""
    return {member: float(reward_matrix(groups).nanmean()) for member, groups in groups_of.items()}
