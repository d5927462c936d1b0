"""Planted mistakes in auxiliary models, in populations, in hindsight and in samplers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Group
from laurel.fast import decode, static
from laurel.model import discriminator as judge
from laurel.model import ilql as heads
from laurel.objective import discriminator, ilql, value
from laurel.rollout import general
from laurel.train import adversary, evolve, relabel, session
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_columns,
    changed_result,
    replaced_by,
    swap_attribute,
    with_replaced,
)
from laurel.weight import population


def kept_on_the_graph(x: Tensor) -> Tensor:
    """The same tensor, whose `detach` does nothing."""
    x.detach = lambda: x  # type: ignore[method-assign]
    return x


def unlikelihood_reward(right: Function) -> Function:
    """`imitation` that pays -log(1 - D) with D turned round."""

    def wrong(logit_N: Tensor, imitation_reward: str = "airl") -> Tensor:
        seen_N = {"gail": -logit_N}.get(imitation_reward, logit_N)
        return right(seen_N, imitation_reward=imitation_reward)

    return wrong


def smoothed_away(right: Function) -> Function:
    """`discriminate` with a minus before the wrong label."""

    def wrong(logit_N: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        sure_N, wrong_N = (right(logit_N, batch, label_smoothing=e) for e in (0.0, 1.0))
        return (1 - label_smoothing) * sure_N - label_smoothing * wrong_N

    return wrong


def stale_discriminator(right: Function) -> Function:
    """`judged` by a copy of the discriminator as it was at the first step."""

    def wrong(setup: Any, groups: list[Group]) -> list[Group]:
        first = vars(setup).setdefault("first", copy.deepcopy(setup.auxiliary))
        with swap_attribute(setup, "auxiliary", first):
            return right(setup, groups)

    return wrong


def noise_kept(right: Function) -> Function:
    """`perturbed` that takes nothing back."""

    def wrong(parameters: Sequence[Any], *how: Any) -> Any:
        inside = right(parameters, *how)
        next(inside)
        yield
        moved = [parameter.detach().clone() for parameter in parameters]
        inside.close()
        with torch.no_grad():
            for parameter, there in zip(parameters, moved, strict=True):
                parameter.copy_(there)

    return wrong


def sum_of_pair_weights(right: Function) -> Function:
    """`search_gradient` of the sum of a pair's weights."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return lambda weight_M, noise, **how: right(
        weight_M * sign.repeat(len(weight_M) // 2), noise, **how
    )


def no_ties(right: Function) -> Function:
    """`shaped` whose equal ranks are those of the worst of them."""

    def wrong(reward_M: Tensor, *, shape_returns: str = "ranks") -> Tensor:
        if shape_returns != "ranks":
            return right(reward_M, shape_returns=shape_returns)
        return (reward_M < reward_M[:, None]).sum(1).double() / (len(reward_M) - 1) - 0.5

    return wrong


def old_prompts(right: Function) -> Function:
    """`hindsight` that leaves every sample under its own prompt."""

    def wrong(setup: Any, rows: Any, groups: list[Group], sums: Sums) -> list[Group]:
        out = right(setup, rows, groups, sums)
        return [replace(new, samples=old.samples) for new, old in zip(out, groups, strict=True)]

    return wrong


def old_rewards(right: Function) -> Function:
    """`hindsight` that leaves every sample its own reward."""

    def wrong(setup: Any, rows: Any, groups: list[Group], sums: Sums) -> list[Group]:
        out = right(setup, rows, groups, sums)
        return [replace(new, rewards=old.rewards) for new, old in zip(out, groups, strict=True)]

    return wrong


def all_right(found: list[Group]) -> list[Group]:
    """Every sample's reward is 1."""
    return [replace(group, rewards=(1.0,) * len(group.samples)) for group in found]


AUXILIARY = (
    Mutant(
        "Q looks at the value of its own state",
        ilql.next_value,
        lambda right: (
            lambda value_NT, batch: (right(value_NT, batch)[0], ilql.trained(value_NT, batch))
        ),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "something comes behind the last token",
        ilql.next_value,
        changed_result(lambda found: (found[0], found[1] + found[0])),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "the reward is paid at every token",
        ilql.backup,
        replaced_by(
            lambda value_NT, batch, gamma: (
                batch.reward_N[:, None] + gamma * ilql.next_value(value_NT, batch)[1]
            )
        ),
        "logged steps",
        "ilql: gradient of Q, defaults",
    ),
    Mutant(
        "the expectile's sides are exchanged",
        ilql.expectile_square,
        changed_arguments(expectile=lambda t: 1 - t),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "V is pulled by the Q it should teach",
        ilql.losses,
        with_replaced(ilql, "backup", lambda *a, backup=ilql.backup: kept_on_the_graph(backup(*a))),
        "logged steps",
        "ilql: gradient of V, defaults",
    ),
    Mutant(
        "the weight of a token takes gradient",
        ilql.losses,
        with_replaced(Tensor, "exp", lambda x: kept_on_the_graph(torch.exp(x))),
        "logged steps",
        "ilql: gradient of V, gamma=0.9, expectile=0.9, awac_beta=0.8, target_update=0.3",
    ),
    Mutant(
        "Q of tokens never seen is raised",
        ilql.implicit_q,
        changed_arguments(cql_coef=lambda c: -c),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "V looks at the larger of the copies",
        heads.Heads.read,
        with_replaced(Tensor, "amin", Tensor.amax),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "V looks at the heads, not at their slow copies",
        heads.Heads.read,
        with_replaced(
            heads.Heads,
            "all",
            lambda self, kind, all=heads.Heads.all: all(self, "q" if kind == "target" else kind),
        ),
        "logged steps",
        "ilql: the loss, defaults",
    ),
    Mutant(
        "the slow copies stand still",
        heads.Heads.follow,
        replaced_by(lambda self: None),
        "logged steps",
        "ilql: the slow copies afterwards, defaults",
    ),
    Mutant(
        "the slow copies become the heads",
        heads.Heads.follow,
        changed_arguments(self=lambda heads: replace(heads, target_update=1.0)),
        "logged steps",
        "ilql: the slow copies afterwards, defaults",
    ),
    Mutant(
        "the saved head adds up its heads",
        heads.fold_q_into_head,
        lambda right: lambda weight_VD, q_KVD, beta: right(weight_VD, q_KVD, beta * len(q_KVD)),
        "logged truths",
        "ilql: the saved head is softmax(log pi + beta (Q - V))",
    ),
    Mutant(
        "the critic's error is not squared",
        value.squares,
        with_replaced(Tensor, "square", Tensor.abs),
        "critic",
        "ppo: the critic is pulled to V of the policy: visits (V - V_now)",
    ),
    Mutant(
        "D is the policy's, not the demonstrations'",
        discriminator.balanced_demonstrations,
        changed_result(lambda found: replace(found, demonstration_N=~found.demonstration_N)),
        "told",
        "gail: the discriminator rests at D* = pi_E / (pi_E + pi)",
    ),
    Mutant(
        "samples outvote their demonstration",
        discriminator.balanced_demonstrations,
        changed_result(lambda found: replace(found, weight_N=found.weight_N.sign())),
        "told",
        "gail: the discriminator rests at D* = pi_E / (pi_E + pi)",
    ),
    Mutant(
        "-log(1 - D) is paid with D turned round",
        discriminator.imitation,
        unlikelihood_reward,
        "told",
        "gail: I1-I3: gail at D*: E[gradient] = -grad 2 JS(pi, pi_E)",
    ),
    Mutant(
        "labels are smoothed the wrong way",
        discriminator.discriminate,
        smoothed_away,
        "told",
        "gail: smoothed, it rests at ((1-e) pi_E + e pi) / (pi_E + pi)",
    ),
    Mutant(
        "the policy is trained on demonstrations",
        adversary.append_demonstration,
        changed_result(lambda group: replace(group, rewards=(*group.rewards[:-1], 0.0))),
        "told",
        "gail: I1: demonstrations leave the policy's gradient as it is",
    ),
    Mutant(
        "the discriminator of the first step judges for ever",
        adversary.discriminator_scores,
        stale_discriminator,
        "whole steps",
        "gail: two whole steps, defaults: what they move",
    ),
    Mutant(
        "the discriminator is not trained",
        session.Session.trainable,
        changed_arguments(self=lambda setup: replace(setup, auxiliary=None)),
        "whole steps",
        "gail: two whole steps, defaults: what they move",
    ),
    Mutant(
        "the discriminator reads one token early",
        judge.Discriminator.logits,
        changed_columns(length_N=lambda n: n - 1),
        "transformer",
        "gail: transformer: logits of each row alone",
    ),
)
"""In what is trained beside a policy."""

OTHERS = (
    Mutant(
        "one stream of noise for every tensor",
        evolve.parameter_noise,
        changed_arguments(tensor=lambda _: 0),
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "both members of a pair go the same way",
        evolve.perturbed_parameters,
        changed_arguments(member=lambda m: m - m % 2),
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "members leave their noise behind",
        evolve.perturbed_parameters,
        noise_kept,
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "the weights of a pair are added",
        population.search_gradient,
        sum_of_pair_weights,
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "the step of a population forgets sigma",
        population.search_gradient,
        changed_arguments(sigma=lambda _: 1.0),
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "equally good members do not share their rank",
        population.shaped,
        no_ties,
        "steps",
        "es: one step, defaults",
    ),
    Mutant(
        "the instruction stays the one that was asked",
        relabel.relabel_in_hindsight,
        old_prompts,
        "relabelled",
        "hindsight: E[gradient] = E over samples of grad log pi(y | G(y))",
    ),
    Mutant(
        "the reward stays the one asked for",
        relabel.relabel_in_hindsight,
        old_rewards,
        "relabelled",
        "hindsight: E[gradient] = E over samples of grad log pi(y | G(y))",
    ),
    Mutant(
        "a sample that achieved nothing is trained on",
        relabel.relabel_in_hindsight,
        changed_result(all_right),
        "relabelled",
        "hindsight: samples that reach nothing: no step",
    ),
    Mutant(
        "the sampler forgets the temperature",
        general.sample_tokens,
        changed_arguments(temperature=lambda t: 1.0 if t else t),
        "samplers",
        "general sampler: chi-square of counts, prompt 0",
    ),
    Mutant(
        "the sampler draws by the wrong uniform",
        general.sample_tokens,
        changed_arguments(uniform_N=torch.square),
        "samplers",
        "general sampler: chi-square of counts, prompt 0",
    ),
    Mutant(
        "the compact decoder forgets the temperature",
        decode.CompactDecoder.draw,
        changed_arguments(temperature=lambda t: 1.0 if t else t),
        "samplers",
        "sampler: chi-square of counts, prompt 0",
    ),
    Mutant(
        "the compact decoder draws by the wrong uniform",
        decode.ContinuousBatch.draw_alike,
        changed_arguments(point=torch.square),
        "samplers",
        "sampler: chi-square of counts, prompt 0",
    ),
    Mutant(
        "static buffers forget the temperature",
        static.StaticDecoder.note,
        changed_arguments(how=lambda how: how._replace(temperature=1.0)),
        "samplers",
        "static sampler: chi-square of counts, prompt 0",
    ),
)
"""In populations, hindsight and samplers."""
