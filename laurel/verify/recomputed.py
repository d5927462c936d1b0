"""A second opinion: the gradient of one step of every algorithm, written again in plain Python from
the papers' formulas.

Slow, scalar, without autograd and without a line of the library's weights and objectives: numbers
of one batch go in, the direction of ascent comes out. Where it and the training code agree, both
have to be wrong in the same way to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from laurel.verify.heads import some_tables
from laurel.verify.recomputed_implicit import LOGGED
from laurel.verify.recomputed_pairs import PUSH, Answer, pushes
from laurel.verify.recomputed_scores import SCORED, imitated
from laurel.verify.world import Describe, World, value_table

Rewards = Sequence[Sequence[float | None]]

EPS = 1e-4


@dataclass
class Row:
    """One sample of a batch: prompt, reward (None: nobody could judge it), and per token log pi,
    log pi_old, log ref.
    """

    x: int
    reward: float | None
    logp: list[float]
    old: list[float]
    ref: list[float]
    value: list[float]
    truncated: bool
    trained: bool = True
    after: float = 0.0  # value of the state behind the row

    @property
    def kl(self) -> float:
        """The sequence's k1 when it was sampled."""
        return sum(a - b for a, b in zip(self.old, self.ref, strict=True))


@dataclass
class Told:
    """What a sample's advantage may depend on: its reward v, its group's in order, the batch's, the
    options, a running mean.
    """

    v: float
    i: int
    group: list[float | None]
    batch: list[float]
    o: Any
    running_mean: float

    @property
    def present(self) -> list[float]:
        return [v for v in self.group if v is not None]

    @property
    def flat(self) -> bool:
        """Nothing to compare: one reward, or all of them equal."""
        return len(self.present) < 2 or max(self.present) - min(self.present) <= 1e-9 * max(
            abs(v) for v in self.present
        )


def as_it_is(t: Told) -> float:
    """R."""
    return t.v


def minus_baseline(t: Told) -> float:
    """R - b, b the running mean or the batch's."""
    return t.v - (t.running_mean if t.o.baseline == "running" else fmean(t.batch))


def leave_one_out(t: Told) -> float:
    """R minus the mean of the others; nobody else: 0."""
    others = [u for j, u in enumerate(t.group) if j != t.i and u is not None]
    return t.v - fmean(others) if others else 0.0


def centred(t: Told) -> float:
    """R minus the group's mean."""
    return 0.0 if t.flat else t.v - fmean(t.present)


def standardised(t: Told) -> float:
    """The same over the spread (ddof 1, + 1e-4) of the group or the batch."""
    if t.flat or t.o.scale_rewards == "none":
        return centred(t)
    return centred(t) / (stdev(t.batch if t.o.scale_rewards == "batch" else t.present) + EPS)


def selected(t: Told) -> float:
    """1 for what is imitated, else 0."""
    best = t.group.index(max(t.present))
    return {
        "best": float(t.i == best),
        "above": float(t.v >= t.o.bar),
        "over_mean": float(centred(t) > 0),
    }[t.o.keep]


ADVANTAGE: dict[str, Callable[[Told], float]] = {
    "sft": as_it_is,
    "reinforce": as_it_is,
    "reinforce_baseline": minus_baseline,
    "rloo": leave_one_out,
    "raft": selected,
    "hindsight": as_it_is,
    "gail": leave_one_out,
    "grpo": standardised,
    "dr_grpo": centred,
    "dapo": standardised,
    "gspo": standardised,
    "cispo": standardised,
}


def advantages(
    name: str, groups: Sequence[Sequence[Row]], o: Any, running_mean: float
) -> list[list[list[float]]]:
    """One weight per token of every sample of every group. A sample that nobody could judge gets 0
    and is nobody's comparison.
    """
    coef = o.beta if o.kl_placement == "reward" else 0.0
    if name in BY_TOKEN:
        return BY_TOKEN[name](groups, coef, o)
    told = [[None if r.reward is None else r.reward - coef * r.kl for r in g] for g in groups]
    batch = [v for g in told for v in g if v is not None]
    return [
        [
            [0.0 if v is None else ADVANTAGE[name](Told(v, i, values, batch, o, running_mean))]
            * len(r.logp)
            for i, (r, v) in enumerate(zip(group, values, strict=True))
        ]
        for group, values in zip(groups, told, strict=True)
    ]


def returns_to_go(r: Row, coef: float, o: Any) -> list[float]:
    """What follows from each token on: R at the end, less the KL of every token still to come."""
    k1 = [a - b if r.trained else 0.0 for a, b in zip(r.old, r.ref, strict=True)]
    return [(r.reward or 0.0) - coef * sum(k1[t:]) for t in range(len(k1))]


def generalised(r: Row, coef: float, o: Any) -> list[float]:
    """GAE, from the last token backwards: A_t = delta_t + gamma lam A_(t+1), delta_t = r_t + gamma
    V_(t+1) - V_t.
    """
    k1 = [a - b if r.trained else 0.0 for a, b in zip(r.old, r.ref, strict=True)]
    out, later = [0.0] * len(k1), 0.0
    for t in reversed(range(len(k1))):
        last = t == len(k1) - 1
        reward = (r.reward or 0.0) * last - coef * k1[t]
        later = (
            reward
            + o.gamma * (r.after if last else r.value[t + 1])
            - r.value[t]
            + o.gamma * o.lam * later
        )
        out[t] = later
    return out


def whitened(
    of: Callable[[Row, float, Any], list[float]],
    groups: Sequence[Sequence[Row]],
    coef: float,
    o: Any,
) -> list[list[list[float]]]:
    """A number per token, standardised over the trained tokens of the batch."""
    returns = {
        (g, i): of(r, coef, o)
        for g, group in enumerate(groups)
        for i, r in enumerate(group)
        if r.reward is not None
    }
    pool = [v for (g, i), values in returns.items() if groups[g][i].trained for v in values]
    flat = len(pool) < 2 or max(pool) - min(pool) <= 1e-9 * max(map(abs, pool))
    mean, spread = (fmean(pool), stdev(pool)) if not flat else (0.0, 1.0)
    return [
        [
            [
                (v - mean) / (spread + 1e-8) if not flat and r.trained else 0.0
                for v in returns.get((g, i), [0.0] * len(r.logp))
            ]
            for i, r in enumerate(group)
        ]
        for g, group in enumerate(groups)
    ]


BY_TOKEN: dict[str, Callable[..., list[list[list[float]]]]] = {
    "reinforce_pp": partial(whitened, returns_to_go),
    "ppo": partial(whitened, generalised),
    "ppo_max": partial(whitened, generalised),
}


def normalised(rewards: Rewards, o: Any) -> Rewards:
    """PPO-max: rewards less the mean of all so far (there is one batch), over their deviation,
    clipped; others as they are.
    """
    pool = [r for told in rewards for r in told if r is not None]
    if not getattr(o, "normalize_rewards", None) or not pool:
        return rewards
    mean, spread, clip = (
        fmean(pool),
        stdev(pool) if len(pool) > 1 else 0.0,
        o.reward_clip or math.inf,
    )
    scale = spread if spread > 1e-9 * abs(mean) else 1.0
    return [
        [None if r is None else min(max((r - mean) / scale, -clip), clip) for r in told]
        for told in rewards
    ]


def plain_likelihood(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """The weight itself, whatever the ratio."""
    return list(weight)


def clipped(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """PPO: ratio A inside the bounds or on the harmless side of them, else nothing; beyond delta a
    negative A is silent.
    """
    high, out = o.epsilon if o.epsilon_high is None else o.epsilon_high, []
    for a, new, old in zip(weight, r.logp, r.old, strict=True):
        ratio = math.exp(new - old)
        silent = a < 0 and bool(o.delta) and ratio > o.delta
        active = ratio <= 1 + high if a > 0 else ratio >= 1 - o.epsilon
        out.append(ratio * a if active and not silent else 0.0)
    return out


def whole_sequence(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """GSPO: one ratio, the geometric mean over the tokens, at every token."""
    s = math.exp(fmean(a - b for a, b in zip(r.logp, r.old, strict=True)))
    active = s <= 1 + o.epsilon_high if weight[0] > 0 else s >= 1 - o.epsilon
    return [s * weight[0] * active] * len(r.logp)


def capped(r: Row, weight: Sequence[float], o: Any) -> list[float]:
    """CISPO: the ratio, at most epsilon_high, times A."""
    return [
        min(math.exp(new - old), o.epsilon_high) * a
        for a, new, old in zip(weight, r.logp, r.old, strict=True)
    ]


COEFFICIENT: dict[str, Callable[[Row, Sequence[float], Any], list[float]]] = {
    "sft": plain_likelihood,
    "reinforce": plain_likelihood,
    "reinforce_baseline": plain_likelihood,
    "rloo": plain_likelihood,
    "gail": plain_likelihood,
    "raft": plain_likelihood,
    "grpo": clipped,
    "dr_grpo": clipped,
    "dapo": clipped,
    "reinforce_pp": clipped,
    "ppo": clipped,
    "ppo_max": clipped,
    "hindsight": plain_likelihood,
    "gspo": whole_sequence,
    "cispo": capped,
}
"""What multiplies grad log pi(x_t), token by token: the derivative of the row's objective at this
ratio.
"""


def units(rows: Sequence[Row], o: Any) -> tuple[list[float], float]:
    """What a token of each row is multiplied by, and what everything is divided by."""
    trained = [r for r in rows if r.trained and r.reward is not None]
    tokens = sum(len(r.logp) for r in trained)
    share = [
        1.0 / len(r.logp) if o.loss_aggregation == "seq_mean_token_mean" else 1.0 for r in rows
    ]
    total = (
        len(trained) * (o.max_completion_length or 0)
        if o.loss_aggregation == "token_sum_over_const"
        else len(trained)
    )
    return share, float(tokens if o.loss_aggregation == "token_mean" else total)


def temperature(world: World, o: Any) -> float:
    """Rows of data have none."""
    return 1.0 if o.temperature is None else world.temperature


def rows_of(
    world: World,
    drawn: Sequence[tuple[int, Sequence[int]]],
    rewards: Sequence[Sequence[float | None]],
    o: Any,
    old: Tensor,
) -> list[list[Row]]:
    """Every sample of every group with what is known of it, its reward shaped as the options
    say.
    """
    T, language, values = temperature(world, o), world.language, value_table(world.ref)
    table = [language.token_logp(logits / T).tolist() for logits in (world.logits, old, world.ref)]
    groups = []
    for (x, members), told in zip(drawn, normalised(rewards, o), strict=True):
        group = []
        for n, reward in zip(members, told, strict=True):
            length = int(language.length_N[n])
            logp, before, ref = ([float(v) for v in t[x][n][:length]] for t in table)
            value = [float(values[x, language.state_NT[n, t]]) for t in range(length)]
            cut = language.completions[n][-1] != language.eos
            if reward is not None and o.overlong_buffer:
                reward += min(
                    0.0,
                    max(
                        -1.0,
                        (o.max_completion_length - o.overlong_buffer - length) / o.overlong_buffer,
                    ),
                )
            reward = None if reward is None else reward - (o.missing_eos_penalty or 0.0) * cut
            goes_on = bool(cut and o.bootstrap_truncated)
            reward = 0.0 if goes_on and reward is not None else reward
            group.append(
                Row(
                    x,
                    reward,
                    logp,
                    before,
                    ref,
                    value,
                    cut,
                    not (cut and o.mask_truncated_completions),
                    # the table has no prefix of full length: there it gives the empty one's value
                    float(values[x, 0]) * goes_on,
                )
            )
        groups.append(group)
    return groups


def critic(
    world: World,
    drawn: Sequence[tuple[int, Sequence[int]]],
    rewards: Sequence[Sequence[float | None]],
    o: Any,
    *,
    old: Tensor,
    now: Tensor,
) -> Tensor:
    """What pulls at a critic that said `value_table` when the samples were drawn, and says `now`:
    [X, S], upwards.

    Twice the gap to the return, vf_coef times, per trained token; nothing where it has moved more
    than c towards the return or past it.
    """
    coef, c, out, tokens = (
        o.beta if o.kl_placement == "reward" else 0.0,
        o.cliprange_value,
        torch.zeros_like(now),
        0,
    )
    for (x, members), group in zip(drawn, rows_of(world, drawn, rewards, o, old), strict=True):
        for n, r in zip(members, group, strict=True):
            if not r.trained or r.reward is None:
                continue
            tokens += len(r.logp)
            for t, advantage in enumerate(generalised(r, coef, o)):
                s = int(world.language.state_NT[n, t])
                goal, said = advantage + r.value[t], float(now[x, s])
                near = min(max(said, r.value[t] - c), r.value[t] + c) if c else said
                silent = (near - goal) ** 2 > (said - goal) ** 2
                out[x, s] += 0.0 if silent else 2 * o.vf_coef * (goal - said)
    return out / tokens


def gradient(
    world: World,
    name: str,
    drawn: Sequence[tuple[int, Sequence[int]]],
    rewards: Sequence[Sequence[float | None]],
    o: Any,
    *,
    old: Tensor,
    running_mean: float = 0.0,
    describe: Describe | None = None,
) -> Tensor:
    """The direction of ascent [X, S, V] of one step on these groups: `o` are the resolved options,
    `old` the logits that sampled.
    """
    if name in SCORED:
        return from_scores(world, name, drawn, rewards, o, describe)
    if name in LOGGED:
        return LOGGED[name](
            world,
            some_tables(world.ref),
            drawn,
            [[float(r or 0.0) for r in told] for told in rewards],
            o,
        ).policy
    T = temperature(world, o)
    score = world.language.token_scores(world.logits / T)
    groups = rows_of(world, drawn, rewards, o, old)
    if name in PUSH:
        return from_comparisons(world, name, drawn, groups, o, score / T)
    weights = advantages(name, groups, o, running_mean)
    share, total = units([r for g in groups for r in g], o)
    out, at = torch.zeros_like(world.logits), 0
    for (x, members), group, weight in zip(drawn, groups, weights, strict=True):
        for n, r, w in zip(members, group, weight, strict=True):
            if r.trained and r.reward is not None:
                coefficient = COEFFICIENT[name](r, w, o)
                for t in range(len(r.logp)):
                    here = coefficient[t] * score[x, n, t] + penalties(world, x, n, t, r, o)
                    out[x] += share[at] / total / T * here
            at += 1
    return out


def from_scores(
    world: World,
    name: str,
    drawn: Sequence[tuple[int, Sequence[int]]],
    rewards: Sequence[Sequence[float | None]],
    o: Any,
    describe: Describe | None,
) -> Tensor:
    """What pulls at the table of scores, cell by cell, divided by the number of units."""
    language, out, units = world.language, torch.zeros_like(world.logits), 0
    for at, ((x, members), told) in enumerate(zip(drawn, rewards, strict=True)):
        row = {"prompt": f"p{at}", **(describe(x, members) if describe else {})}
        cells = [
            [
                (int(language.state_NT[n, t]), int(language.token_NT[n, t]))
                for t in range(int(language.length_N[n]))
            ]
            for n in members
        ]
        scores = [[float(world.logits[x, s, v]) for s, v in row] for row in cells]
        grades = [float(r or 0.0) for r in told]
        pulls, count = SCORED[name](scores, grades, o, row)
        units += count
        for n, share in zip(
            members, imitated(grades, [len(score) for score in scores], o), strict=True
        ):
            if share:
                out[x] += share * language.token_scores(world.logits[x : x + 1])[0, n].sum(0)
        for row, pull in zip(cells, pulls, strict=True):
            for (s, v), p in zip(row, pull, strict=True):
                out[x, s, v] += p
    return out / units


def from_comparisons(
    world: World,
    name: str,
    drawn: Sequence[tuple[int, Sequence[int]]],
    groups: Sequence[Sequence[Row]],
    o: Any,
    score: Tensor,
) -> Tensor:
    """The mean over comparisons of push times grad lp, for every answer of each."""
    answers = [
        [
            (
                Answer(r.reward or 0.0, sum(r.logp), sum(r.ref), len(r.logp)),
                r.reward is not None and r.trained,
            )
            for r in g
        ]
        for g in groups
    ]
    push, count = pushes(name, answers, o)
    out = torch.zeros_like(world.logits)
    for (x, members), row in zip(drawn, push, strict=True):
        for n, w in zip(members, row, strict=True):
            out[x] += w / max(count, 1) * score[x, n].sum(0)
    return out


def penalties(world: World, x: int, n: int, t: int, r: Row, o: Any) -> Tensor | float:
    """What KL and entropy in the loss add at one token: -beta ratio d grad log pi (or the whole
    state's), and entropy_coef grad H.
    """
    out, language, s = 0.0, world.language, int(world.language.state_NT[n, t])
    p = world.pi[x, s].softmax(0)
    if o.beta and o.kl_placement == "loss":
        d = p.log() - world.pi_ref[x, s].log_softmax(0)
        if o.kl_estimator == "exact":
            whole = torch.zeros(language.S, language.V, dtype=p.dtype)
            whole[s] = p * (d - (p * d).sum())
            out = out - o.beta * whole
        else:
            ratio = math.exp(r.logp[t] - r.old[t])
            out = (
                out
                - o.beta
                * ratio
                * (r.logp[t] - r.ref[t])
                * language.token_scores(world.pi[x : x + 1])[0, n, t]
            )
    if o.entropy_coef:
        whole = torch.zeros(language.S, language.V, dtype=p.dtype)
        whole[s] = -p * (p.log() - (p * p.log()).sum())
        out = out + o.entropy_coef * whole
    return out
