"""A second opinion: the gradient of one step of every algorithm, written again in plain Python.

It is written from the papers' formulas: slow, scalar, without autograd and without a line of the
library's weights and objectives. Numbers of one batch go in, the direction of ascent comes out.
Where it and the training code agree, both have to be wrong in the same way to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from laurel.verify.heads import some_tables
from laurel.verify.recomputed_ilql import LOGGED
from laurel.verify.recomputed_pairs import PUSH, Answer, pushes
from laurel.verify.recomputed_scores import SCORED, imitation_pulls
from laurel.verify.world import Describe, World, value_table

Drawn = Sequence[tuple[int, Sequence[int]]]
"""The groups of a batch: a prompt and the numbers of its completions."""
Rewards = Sequence[Sequence[float | None]]
"""The reward of every sample of every group; None where nobody could judge it."""
Weights = list[list[list[float]]]
"""One number per group, sample and token."""

EPS = 1e-4


@dataclass
class Row:
    """One sample of a batch: prompt, reward (None: nobody could judge it), and numbers per token.

    logp, old, ref: log pi, log pi_old and log ref of the token; value: the critic's value of the
    state before it; after: the value of the state behind the last one; mu: log-probabilities of
    another sampler ([]: pi_old sampled).
    """

    x: int
    reward: float | None
    logp: list[float]
    old: list[float]
    ref: list[float]
    value: list[float]
    truncated: bool
    trained: bool = True
    after: float = 0.0
    mu: list[float] = field(default_factory=list[float])

    @property
    def kl(self) -> float:
        """The sequence's k1 when it was sampled."""
        return sum(a - b for a, b in zip(self.old, self.ref, strict=True))


@dataclass
class Compared:
    """What a sample's advantage may depend on.

    Its reward v, its place i in its group, the group's rewards, the batch's, the options and the
    running mean.
    """

    v: float
    i: int
    group: list[float | None]
    batch: list[float]
    o: Any
    running_mean: float

    @property
    def present(self) -> list[float]:
        """The rewards of the group that are known."""
        return [v for v in self.group if v is not None]

    @property
    def flat(self) -> bool:
        """Nothing to compare: one reward, or all of them equal."""
        return is_flat(self.present)


def is_flat(numbers: Sequence[float]) -> bool:
    """Fewer than two numbers, or all equal up to rounding."""
    if len(numbers) < 2:
        return True
    return max(numbers) - min(numbers) <= 1e-9 * max(map(abs, numbers))


def raw_reward(c: Compared) -> float:
    """R."""
    return c.v


def minus_baseline(c: Compared) -> float:
    """R - b, b the running mean or the batch's."""
    return c.v - (c.running_mean if c.o.baseline == "running" else fmean(c.batch))


def leave_one_out(c: Compared) -> float:
    """R minus the mean of the others; 0 where there are none."""
    others = [u for j, u in enumerate(c.group) if j != c.i and u is not None]
    return c.v - fmean(others) if others else 0.0


def centred_reward(c: Compared) -> float:
    """R minus the group's mean."""
    return 0.0 if c.flat else c.v - fmean(c.present)


def standardised_reward(c: Compared) -> float:
    """R minus the group's mean, over the spread (ddof 1, + 1e-4) of the group or the batch."""
    if c.flat or c.o.scale_rewards == "none":
        return centred_reward(c)
    spread = stdev(c.batch if c.o.scale_rewards == "batch" else c.present)
    return centred_reward(c) / (spread + EPS)


def is_imitated(c: Compared) -> float:
    """1 for what is imitated, else 0."""
    best = c.group.index(max(c.present))
    chosen = {
        "best": c.i == best,
        "above": c.v >= c.o.bar,
        "over_mean": centred_reward(c) > 0,
    }
    return float(chosen[c.o.keep])


ADVANTAGE: dict[str, Callable[[Compared], float]] = {
    "sft": raw_reward,
    "reinforce": raw_reward,
    "reinforce_baseline": minus_baseline,
    "rloo": leave_one_out,
    "raft": is_imitated,
    "hindsight": raw_reward,
    "gail": leave_one_out,
    "grpo": standardised_reward,
    "dr_grpo": centred_reward,
    "dapo": standardised_reward,
    "gspo": standardised_reward,
    "cispo": standardised_reward,
}


def advantages(name: str, groups: Sequence[Sequence[Row]], o: Any, running_mean: float) -> Weights:
    """One weight per token of every sample of every group.

    A sample that nobody could judge gets 0 and is nobody's comparison.
    """
    coef = o.beta if o.kl_placement == "reward" else 0.0
    if name in BY_TOKEN:
        return BY_TOKEN[name](groups, coef, o)
    rewards = [[None if r.reward is None else r.reward - coef * r.kl for r in g] for g in groups]
    batch = [v for group in rewards for v in group if v is not None]
    out: Weights = []
    for group, values in zip(groups, rewards, strict=True):
        weights: list[list[float]] = []
        for i, (r, v) in enumerate(zip(group, values, strict=True)):
            weight = 0.0
            if v is not None:
                weight = ADVANTAGE[name](Compared(v, i, values, batch, o, running_mean))
            weights.append([weight] * len(r.logp))
        out.append(weights)
    return out


def token_kl(r: Row) -> list[float]:
    """k1 of every token; 0 of a row that is not trained on."""
    return [a - b if r.trained else 0.0 for a, b in zip(r.old, r.ref, strict=True)]


def returns_to_go(r: Row, coef: float, o: Any) -> list[float]:
    """What follows from each token on: R at the end, less the KL of every token still to come."""
    k1 = token_kl(r)
    return [(r.reward or 0.0) - coef * sum(k1[t:]) for t in range(len(k1))]


def generalised_advantages(r: Row, coef: float, o: Any) -> list[float]:
    """GAE, from the last token backwards.

    A_t = delta_t + gamma lam A_(t+1),    delta_t = r_t + gamma V_(t+1) - V_t
    """
    k1 = token_kl(r)
    out = [0.0] * len(k1)
    later = 0.0
    for t in reversed(range(len(k1))):
        last = t == len(k1) - 1
        reward = (r.reward or 0.0) * last - coef * k1[t]
        after = r.after if last else r.value[t + 1]
        later = reward + o.gamma * after - r.value[t] + o.gamma * o.lam * later
        out[t] = later
    return out


def whitened_weights(
    of: Callable[[Row, float, Any], list[float]],
    groups: Sequence[Sequence[Row]],
    coef: float,
    o: Any,
) -> Weights:
    """A number per token, standardised over the trained tokens of the batch."""
    judged = [r for group in groups for r in group if r.reward is not None]
    pool = [v for r in judged if r.trained for v in of(r, coef, o)]
    if is_flat(pool):
        return [[[0.0] * len(r.logp) for r in group] for group in groups]
    mean = fmean(pool)
    spread = stdev(pool) + 1e-8

    def weights(r: Row) -> list[float]:
        if r.reward is None or not r.trained:
            return [0.0] * len(r.logp)
        return [(v - mean) / spread for v in of(r, coef, o)]

    return [[weights(r) for r in group] for group in groups]


BY_TOKEN: dict[str, Callable[..., Weights]] = {
    "reinforce_pp": partial(whitened_weights, returns_to_go),
    "ppo": partial(whitened_weights, generalised_advantages),
    "ppo_max": partial(whitened_weights, generalised_advantages),
}


def normalised_rewards(rewards: Rewards, o: Any) -> Rewards:
    """PPO-max: rewards less the mean of all so far, over their deviation, clipped.

    There is one batch, so its mean is that of all so far. Rewards of other rows stay as they are.
    """
    pool = [r for group in rewards for r in group if r is not None]
    if not getattr(o, "normalize_rewards", None) or not pool:
        return rewards
    mean = fmean(pool)
    spread = stdev(pool) if len(pool) > 1 else 0.0
    clip = o.reward_clip or math.inf
    scale = spread if spread > 1e-9 * abs(mean) else 1.0

    def normal(r: float) -> float:
        return min(max((r - mean) / scale, -clip), clip)

    return [[None if r is None else normal(r) for r in group] for group in rewards]


def plain_likelihood(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """The weight itself, whatever the ratio."""
    return list(weight)


def clipped_weights(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """PPO: ratio A inside the bounds or on the harmless side of them, else nothing.

    Beyond delta a negative A is silent, too.
    """
    high = o.epsilon if o.epsilon_high is None else o.epsilon_high
    out: list[float] = []
    for a, new, old in zip(weight, r.logp, r.old, strict=True):
        ratio = math.exp(new - old)
        silent = a < 0 and bool(o.delta) and ratio > o.delta
        active = ratio <= 1 + high if a > 0 else ratio >= 1 - o.epsilon
        out.append(ratio * a if active and not silent else 0.0)
    return out


def sequence_ratio_weights(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """GSPO: one ratio, the geometric mean over the tokens, at every token.

    It moves with every token of the row, so weights that differ within it count as their mean.
    """
    s = math.exp(fmean(a - b for a, b in zip(r.logp, r.old, strict=True)))
    mean = fmean(weight)
    active = s <= 1 + o.epsilon_high if mean > 0 else s >= 1 - o.epsilon
    return [s * mean * active] * len(r.logp)


def capped_weights(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """CISPO: the ratio, at most epsilon_high, times A."""
    ratios = [math.exp(new - old) for new, old in zip(r.logp, r.old, strict=True)]
    return [min(ratio, o.epsilon_high) * a for ratio, a in zip(ratios, weight, strict=True)]


COEFFICIENT: dict[str, Callable[[Row, Sequence[float], Any], list[float]]] = {
    "sft": plain_likelihood,
    "reinforce": plain_likelihood,
    "reinforce_baseline": plain_likelihood,
    "rloo": plain_likelihood,
    "gail": plain_likelihood,
    "raft": plain_likelihood,
    "grpo": clipped_weights,
    "dr_grpo": clipped_weights,
    "dapo": clipped_weights,
    "reinforce_pp": clipped_weights,
    "ppo": clipped_weights,
    "ppo_max": clipped_weights,
    "hindsight": plain_likelihood,
    "gspo": sequence_ratio_weights,
    "cispo": capped_weights,
}
"""What multiplies grad log pi(x_t), token by token.

It is the derivative of the row's objective at this ratio.
"""


def corrected_weights(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """The weights of a row that another sampler drew, as the options correct them.

    Of a token pi_old / mu, at most the cap; or of the whole row, 0 above the cap.
    """
    if o.importance_sampling_correction == "token_truncate":
        cap = math.log(o.importance_sampling_cap)
        ratios = [math.exp(min(a - b, cap)) for a, b in zip(r.old, r.mu, strict=True)]
        return [ratio * a for ratio, a in zip(ratios, weight, strict=True)]
    rho = row_ratio(r)
    return [a * rho if rho <= o.importance_sampling_cap else 0.0 for a in weight]


def row_ratio(r: Row) -> float:
    """How much likelier pi_old is to say the whole row than who did."""
    return math.exp(sum(r.old) - sum(r.mu))


def unit_sizes(rows: Sequence[Row], o: Any) -> tuple[list[float], float]:
    """What a token of each row is multiplied by, and what everything is divided by."""
    by_length = o.loss_aggregation == "seq_mean_token_mean"
    share = [1.0 / len(r.logp) if by_length else 1.0 for r in rows]
    trained = [r for r in rows if r.trained and r.reward is not None]
    if o.loss_aggregation == "token_mean":
        return share, float(sum(len(r.logp) for r in trained))
    if o.loss_aggregation == "token_sum_over_const":
        return share, float(len(trained) * (o.max_completion_length or 0))
    return share, float(len(trained))


def temperature(world: World, o: Any) -> float:
    """Rows of data have none."""
    return 1.0 if o.temperature is None else world.temperature


@dataclass(frozen=True)
class TokenTables:
    """log pi, log pi_old and log ref of every token of every completion, [X][N][T] each; values.

    values [X, S]: what the critic gives each state. mu: log-probabilities of another sampler.
    """

    logp: list[list[list[float]]]
    old: list[list[list[float]]]
    ref: list[list[list[float]]]
    values: Tensor
    mu: list[list[list[float]]] | None = None


def rows_of(
    world: World,
    drawn: Drawn,
    rewards: Rewards,
    o: Any,
    old: Tensor,
    sampler: Tensor | None = None,
) -> list[list[Row]]:
    """Every sample of every group, its reward shaped as the options say.

    old: the logits that sampled; or those of the trainer when `sampler` did.
    """
    T = temperature(world, o)
    token_logp = world.language.token_logp
    tables = TokenTables(
        token_logp(world.logits / T).tolist(),
        token_logp(old / T).tolist(),
        token_logp(world.ref / T).tolist(),
        value_table(world.ref),
        None if sampler is None else token_logp(sampler / T).tolist(),
    )
    return [
        [row_of(world, tables, x, n, r, o) for n, r in zip(members, group, strict=True)]
        for (x, members), group in zip(drawn, normalised_rewards(rewards, o), strict=True)
    ]


def row_of(world: World, tables: TokenTables, x: int, n: int, reward: float | None, o: Any) -> Row:
    """Completion n of prompt x."""
    length = int(world.language.length_N[n])
    states = world.language.state_NT[n, :length].tolist()
    cut = world.language.completions[n][-1] != world.language.eos
    bootstrapped = bool(cut and o.bootstrap_truncated)
    return Row(
        x,
        None if reward is None else shaped_reward(reward, length, cut, o),
        tables.logp[x][n][:length],
        tables.old[x][n][:length],
        tables.ref[x][n][:length],
        [float(tables.values[x, s]) for s in states],
        cut,
        not (cut and o.mask_truncated_completions),
        # the table has no prefix of full length: there it gives the empty one's value
        float(tables.values[x, 0]) * bootstrapped,
        tables.mu[x][n][:length] if tables.mu else [],
    )


def shaped_reward(reward: float, length: int, cut: bool, o: Any) -> float:
    """The reward less what is taken off long and cut completions; 0 of a bootstrapped one."""
    if cut and o.bootstrap_truncated:
        return 0.0
    if o.overlong_buffer:
        over = (o.max_completion_length - o.overlong_buffer - length) / o.overlong_buffer
        reward += min(0.0, max(-1.0, over))
    return reward - (o.missing_eos_penalty or 0.0) * cut


def critic(
    world: World, drawn: Drawn, rewards: Rewards, o: Any, *, old: Tensor, now: Tensor
) -> Tensor:
    """The direction in which the critic's values move: [X, S].

    Its values were `value_table` when the samples were drawn, and are `now`. Twice the gap to the
    return, vf_coef times, per trained token; nothing where the value has moved more than c towards
    the return or past it.
    """
    coef = o.beta if o.kl_placement == "reward" else 0.0
    out = torch.zeros_like(now)
    tokens = 0
    for (x, members), group in zip(drawn, rows_of(world, drawn, rewards, o, old), strict=True):
        for n, r in zip(members, group, strict=True):
            if not r.trained or r.reward is None:
                continue
            tokens += len(r.logp)
            for t, advantage in enumerate(generalised_advantages(r, coef, o)):
                s = int(world.language.state_NT[n, t])
                goal = advantage + r.value[t]
                out[x, s] += value_push(goal, r.value[t], float(now[x, s]), o)
    return out / tokens


def value_push(goal: float, before: float, now: float, o: Any) -> float:
    """The slope of the clipped squared error of a value towards its goal.

    max((now - goal)^2, (clip(now, before - c, before + c) - goal)^2) vf_coef
    """
    c = o.cliprange_value
    near = min(max(now, before - c), before + c) if c else now
    silent = (near - goal) ** 2 > (now - goal) ** 2
    return 0.0 if silent else 2 * o.vf_coef * (goal - now)


def gradient(
    world: World,
    name: str,
    drawn: Drawn,
    rewards: Rewards,
    o: Any,
    *,
    old: Tensor,
    sampler: Tensor | None = None,
    running_mean: float = 0.0,
    describe: Describe | None = None,
) -> Tensor:
    """The direction of ascent [X, S, V] of one step on these groups.

    o: the resolved options; old: the logits that sampled, or those of the trainer when `sampler`
    did.
    """
    if name in SCORED:
        return from_scores(world, name, drawn, rewards, o, describe)
    if name in LOGGED:
        logged = [[float(r or 0.0) for r in group] for group in rewards]
        return LOGGED[name](world, some_tables(world.ref), drawn, logged, o).policy
    groups = rows_of(world, drawn, rewards, o, old, sampler)
    if name in PUSH:
        return from_comparisons(world, name, drawn, groups, o)
    return from_weights(world, name, drawn, groups, o, running_mean)


def from_weights(
    world: World,
    name: str,
    drawn: Drawn,
    groups: Sequence[Sequence[Row]],
    o: Any,
    running_mean: float,
) -> Tensor:
    """The policy gradient of weighted tokens, with what KL and entropy in the loss add."""
    T = temperature(world, o)
    score = world.language.token_scores(world.logits / T)
    weights = advantages(name, groups, o, running_mean)
    share, total = unit_sizes([r for group in groups for r in group], o)
    out = torch.zeros_like(world.logits)
    at = 0
    for (x, members), group, weight in zip(drawn, groups, weights, strict=True):
        for n, r, w in zip(members, group, weight, strict=True):
            if r.trained and r.reward is not None:
                w = corrected_weights(r, w, o) if r.mu else w
                coefficient = COEFFICIENT[name](r, w, o)
                for t in range(len(r.logp)):
                    here = coefficient[t] * score[x, n, t] + penalties(world, x, n, t, r, o)
                    out[x] += share[at] / total / T * here
            at += 1
    return out


def from_scores(
    world: World,
    name: str,
    drawn: Drawn,
    rewards: Rewards,
    o: Any,
    describe: Describe | None,
) -> Tensor:
    """What pulls at the table of scores, cell by cell, divided by the number of units."""
    out = torch.zeros_like(world.logits)
    units = 0
    for at, ((x, members), group) in enumerate(zip(drawn, rewards, strict=True)):
        columns = {"prompt": f"p{at}", **(describe(x, members) if describe else {})}
        cells = [world.language.choices(n) for n in members]
        scores = [[float(world.logits[x, s, v]) for s, v in row] for row in cells]
        grades = [float(r or 0.0) for r in group]
        pulls, count = SCORED[name](scores, grades, o, columns)
        units += count
        add_imitation(out, world, x, members, grades, o)
        for row, pull in zip(cells, pulls, strict=True):
            for (s, v), p in zip(row, pull, strict=True):
                out[x, s, v] += p
    return out / units


def add_imitation(
    out: Tensor, world: World, x: int, members: Sequence[int], grades: Sequence[float], o: Any
) -> None:
    """Add what a reward model's imitation term pulls at prompt x of the table read as logits."""
    lengths = [int(world.language.length_N[n]) for n in members]
    for n, share in zip(members, imitation_pulls(grades, lengths, o), strict=True):
        if share:
            score = world.language.token_scores(world.logits[x : x + 1])[0, n].sum(0)
            out[x] += share * score


def from_comparisons(
    world: World, name: str, drawn: Drawn, groups: Sequence[Sequence[Row]], o: Any
) -> Tensor:
    """The mean over comparisons of push times grad lp, for every answer of each."""
    T = temperature(world, o)
    score = world.language.token_scores(world.logits / T) / T
    push, count = pushes(name, [[as_answer(r, o) for r in group] for group in groups], o)
    out = torch.zeros_like(world.logits)
    for (x, members), row in zip(drawn, push, strict=True):
        for n, w in zip(members, row, strict=True):
            out[x] += w / max(count, 1) * score[x, n].sum(0)
    return out


def as_answer(r: Row, o: Any) -> tuple[Answer, bool]:
    """A row as an answer, and whether it takes part in comparisons.

    One that another sampler drew does where its ratio is not above the cap.
    """
    known = r.reward is not None and r.trained
    if r.mu and o.importance_sampling_correction == "sequence_mask":
        known = known and row_ratio(r) <= o.importance_sampling_cap
    return Answer(r.reward or 0.0, sum(r.logp), sum(r.ref), len(r.logp)), known


def penalties(world: World, x: int, n: int, t: int, r: Row, o: Any) -> Tensor | float:
    """What KL and entropy in the loss add to the gradient at one token."""
    out = 0.0
    if o.beta and o.kl_placement == "loss":
        out = out - kl_penalty(world, x, n, t, r, o)
    if o.entropy_coef:
        s = int(world.language.state_NT[n, t])
        p = world.pi[x, s].softmax(0)
        slope = -p * (p.log() - (p * p.log()).sum())
        out = out + o.entropy_coef * in_state(world, s, slope)
    return out


def kl_penalty(world: World, x: int, n: int, t: int, r: Row, o: Any) -> Tensor:
    """beta ratio d grad log pi at one token, d = log pi - log ref; or the whole state's KL."""
    if o.kl_estimator == "exact":
        s = int(world.language.state_NT[n, t])
        p = world.pi[x, s].softmax(0)
        d = p.log() - world.pi_ref[x, s].log_softmax(0)
        return o.beta * in_state(world, s, p * (d - (p * d).sum()))
    ratio = math.exp(r.logp[t] - r.old[t])
    d = r.logp[t] - r.ref[t]
    score = world.language.token_scores(world.pi[x : x + 1])[0, n, t]
    return o.beta * ratio * d * score


def in_state(world: World, s: int, slope_V: Tensor) -> Tensor:
    """[S, V] zeros, with these numbers in state s."""
    whole = torch.zeros(world.language.S, world.language.V, dtype=slope_V.dtype)
    whole[s] = slope_V
    return whole
