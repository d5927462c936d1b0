"""Objectives of reward models: values per comparison [P] or per token [N, T].

They take (the head's outputs at every completion token, batch). The score r of a row is the head's
output at its last real token, found by its length, never by token ids.

A comparison is a group of rows, see `laurel.core.sample.Comparisons`. The order of their grades is
the preference, equal grades are a tie, and the group's value is multiplied by its weight w. A row
that is not compared, or has no trained token, is left out. Pairs may have a soft label, see
`laurel.objective.label`. `laurel.objective.unit.comparison_mean` divides by the number of
comparisons.

`reward_coef`, written lambda, multiplies the comparison where `imitation`, the likelihood of the
best answer, is added to it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.errors import UsageError
from laurel.core.sample import Batch
from laurel.objective.label import expected, grade, is_compared, reliability
from laurel.objective.unit import (
    Pair,
    by_group,
    group_places,
    masked_sum,
    required,
    same_shape,
    trained,
)


def last_score(score_NT: Tensor, batch: Batch) -> Tensor:
    """The head's output at each completion's last real token, by its length: [N, T] -> [N].

    [1, 2, 3], length 2: 2.
    """
    same_shape(score_NT, batch.loss_mask_NT)
    return score_NT.gather(1, (batch.length_N - 1).clamp(min=0)[:, None])[:, 0]


@expected
def bradley_terry(
    score_NT: Tensor,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    use_margin: bool = True,
    reward_coef: float = 1.0,
) -> Tensor:
    """The negative log-likelihood of pairs, per comparison: [N, T] -> [P].

        lambda w [ (1 - eps) softplus(-h) + eps softplus(h) + c (r_w + r_l)^2 ]

        h = r_w - r_l - m

    The model is P(w better than l) = sigmoid(r_w - r_l). lambda = reward_coef (1),
    eps = label_smoothing, c = center_rewards_coefficient, m = `margin_N` (how much better; 0 where
    the data do not say), and the factor w is the pair's weight.

    By hand, r = (1, 0):

        eps = c = m = 0    .3132617
        m = 1              ln 2
        eps = .1           .4132617
        c = .01            .3232617

    The gradient in r_w is -lambda w sigmoid(-h) at eps = c = 0, that in r_l its opposite. The
    population optimum is the true score up to a constant per prompt. A margin inflates its gaps, c
    picks the constant near 0, and eps shrinks the gaps: where p is the probability that w is
    better,

        sigmoid(h) = (1 - eps) p + eps (1 - p)

    Bradley and Terry 1952; margin: Touvron et al. 2023, arXiv:2307.09288; centring:
    Eisenstein et al. 2023, arXiv:2312.09244.
    """
    r_N, w_P = last_score(score_NT, batch), reliability(batch).to(score_NT.dtype)
    sign_N = torch.where(is_compared(batch), grade(batch), 0.0).sign().to(score_NT.dtype)
    won_P = by_group((sign_N > 0).to(r_N.dtype), batch)
    lost_P = by_group((sign_N < 0).to(r_N.dtype), batch)
    if bool(((won_P > 1) | (lost_P > 1)).any()):
        raise UsageError(
            "a pair has one chosen and one rejected answer; a group here has more.",
            where="objective",
            fix="Use k_wise.",
        )
    h_P = by_group(sign_N * r_N, batch)
    if use_margin:
        margin_N = torch.where(sign_N > 0, required(batch.comparison).margin_N, 0.0)
        h_P = h_P - by_group(margin_N.to(r_N.dtype), batch)
    value_P = (1 - label_smoothing) * softplus(-h_P) + label_smoothing * softplus(h_P)
    centre_P = by_group(sign_N.abs() * r_N, batch).square()
    return reward_coef * torch.where(
        won_P * lost_P > 0, w_P * (value_P + center_rewards_coefficient * centre_P), 0.0
    )


@expected
def k_wise(
    score_NT: Tensor, batch: Batch, *, pairs_per_prompt: int = 0, reward_coef: float = 1.0
) -> Tensor:
    """Bradley-Terry over every pair of a ranking, each prompt counting once: [N, T] -> [P].

        lambda w / C(K, 2)  sum over i better than j of softplus(-(r_i - r_j))

    lambda = reward_coef. Ties are left out of the sum and of the count, so this is the mean over
    the pairs that are ordered. pairs_per_prompt = m > 0: over m of those pairs, drawn by
    `some_pairs`, and divided by m: the same on average. r = (2, 1, 0) in this order:

        (2 * .3132617 + .1269280) / 3 = .2511504

    All pairs of a prompt come from one forward pass per answer. K = 2 is `bradley_terry`. The
    optimum is that of pairs: the true score up to a constant per prompt. Ouyang et al. 2022,
    arXiv:2203.02155.
    """
    r_N, better_NN = last_score(score_NT, batch), better(batch)
    if pairs_per_prompt:
        better_NN = some_pairs(better_NN, batch, pairs_per_prompt)
    value_NN = torch.where(better_NN, softplus(r_N - r_N[:, None]), 0.0)
    pairs_P = by_group(better_NN.sum(1).to(r_N.dtype), batch)
    return (
        reward_coef
        * reliability(batch).to(r_N.dtype)
        * by_group(value_NN.sum(1), batch)
        / pairs_P.clamp(min=1)
    )


@expected
def plackett_luce(score_NT: Tensor, batch: Batch, *, reward_coef: float = 1.0) -> Tensor:
    """The negative log-likelihood of a whole ranking, best first: [N, T] -> [P].

        lambda w  sum_k [ logsumexp(r_k, ..., r_K) - r_k ],    lambda = reward_coef

    Each choice is made among the answers that are left. r = (2, 1, 0) in this order:

        .4076059 + .3132617 = .7208676

    K = 2 is `bradley_terry`. A row is compared only with those that are worse, so tied rows do not
    enter each other's terms; without ties exp(-value) sums to 1 over all K! orders. Plackett 1975;
    Luce 1959.
    """
    r_N, better_NN = last_score(score_NT, batch), better(batch)
    # a row by itself adds logsumexp(r) - r = 0
    left_NN = better_NN | torch.eye(len(r_N), dtype=torch.bool, device=r_N.device)
    value_N = torch.where(left_NN, r_N, -torch.inf).logsumexp(1) - r_N
    return reward_coef * reliability(batch).to(r_N.dtype) * by_group(value_N, batch)


@expected
def imitation(logp_NT: Tensor, batch: Batch, *, imitation_coef: float = 0.0) -> Tensor:
    """The negative log-likelihood of the best answer under the same body: [N, T] -> [P].

        -beta w lp_best / |best|,    beta = imitation_coef

    A language-model term, per token, that is added to a comparison. The best answer is better than
    another one and none is better than it: the chosen one of a pair, the first of a ranking; of
    several equal ones the mean. A group in which no answer is better has no such term. lp = -3 over
    2 tokens, beta = .5, w = .6: .45. The gradient in each log-probability of the best answer's
    tokens is

        -beta w / |best|

    The paper sums over tokens: its beta is beta / |best| here. beta = 0: the comparison alone.
    Askell et al. 2021, arXiv:2112.00861; Zheng et al. 2023, arXiv:2307.04964 (beta 1).
    """
    same_shape(logp_NT, batch.loss_mask_NT)
    best_N = best(batch).to(logp_NT.dtype)
    _, group_N = group_places(batch)
    # each of several equal best rows of a group gets an equal share
    share_N = best_N / by_group(best_N, batch).clamp(min=1)[group_N]
    per_token_N = trained(logp_NT, batch).sum(1) / batch.loss_mask_NT.sum(1).clamp(min=1)
    return (
        -imitation_coef
        * reliability(batch).to(logp_NT.dtype)
        * by_group(share_N * per_token_N, batch)
    )


def outcome(score_NT: Tensor, batch: Batch) -> Tensor:
    """Outcome reward model: the label of the whole answer at each of its tokens: [N, T] -> [N, T].

        w [ softplus(s_t) - y s_t ],    y = label_NT in [0, 1],    w = weight_NT

    The score s_t is a logit. s = 0: ln 2; s = 2, y = 1: .1269280. The gradient in s_t is

        w (sigmoid(s_t) - y)

    At the optimum sigmoid(s_t) is the probability that the answer ends well given its tokens up to
    t: a value function. Cobbe et al. 2021, arXiv:2110.14168.
    """
    label_NT = required(batch.label_NT)
    same_shape(score_NT, label_NT, batch.weight_NT)
    s_NT = trained(score_NT, batch)
    return trained(batch.weight_NT * (softplus(s_NT) - label_NT * s_NT), batch)


def process(score_NTC: Tensor, batch: Batch) -> Tensor:
    """Process reward model: the label of each step at its last token: [N, T, 3] -> [N, T].

        -w log softmax(s_t)[y_t + 1],    y = label_NT in {-1, 0, 1},    w = weight_NT

    The labels are -1 wrong, 0 neutral, 1 right; the loss mask is True at step ends only.
    s = (0, 0, 0): ln 3; s = (0, 0, ln 2), y = 1: ln 2. At the optimum the three probabilities are
    those of the label given the steps up to there. Lightman et al. 2023, arXiv:2305.20050.
    """
    value_NT = -class_logp(score_NTC, batch).gather(2, step_class(batch)[..., None])[..., 0]
    return trained(batch.weight_NT * value_NT, batch)


def comparison_metrics(score_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """Metrics over the ordered pairs of rows as (sum, count), without a gradient.

    - `accuracy`: the better row scores higher. An equal score counts half, so a constant score is
      at .5, not at 0 or 1.
    - `margin`: the mean of r_better - r_worse.
    - `score/mean`: the mean score of the rows that are compared.
    """
    r_N, better_NN = last_score(score_NT.detach(), batch), better(batch)
    gap_NN = r_N[:, None] - r_N
    right_NN = (gap_NN > 0).to(r_N.dtype) + 0.5 * (gap_NN == 0).to(r_N.dtype)
    return {
        "accuracy": masked_sum(right_NN, better_NN),
        "margin": masked_sum(gap_NN, better_NN),
        "score/mean": masked_sum(r_N, better_NN.any(0) | better_NN.any(1)),
    }


def imitation_metrics(logp_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """`imitation/nll`: the negative log-likelihood of the best answers, per token.

    As (sum, count), without a gradient.
    """
    at_NT = best(batch)[:, None] & batch.loss_mask_NT
    return {"imitation/nll": masked_sum(-logp_NT.detach(), at_NT)}


def outcome_metrics(score_NT: Tensor, batch: Batch) -> dict[str, Pair]:
    """Accuracies of the score's sign against the row's label, as (sum, count).

    `accuracy`: at each row's last token. `accuracy/tokens`: at every trained token. A score of
    exactly 0 counts half.
    """
    label_NT = required(batch.label_NT)
    same_shape(score_NT, label_NT)
    right_NT = 0.5 * (score_NT.detach().sign() * (label_NT - 0.5).sign() + 1)
    judged_N = batch.loss_mask_NT.any(1)
    return {
        "accuracy": masked_sum(last_score(right_NT, batch), judged_N),
        "accuracy/tokens": masked_sum(right_NT, batch.loss_mask_NT),
    }


def process_metrics(score_NTC: Tensor, batch: Batch) -> dict[str, Pair]:
    """Accuracy over the steps, and the recall of each class, as (sum, count).

    `accuracy` is over the three classes; the recalls are `recall/wrong`, `recall/neutral` and
    `recall/right`.
    """
    right_NT = class_logp(score_NTC.detach(), batch).argmax(2) == step_class(batch)
    found = {"accuracy": masked_sum(right_NT, batch.loss_mask_NT)}
    for label, name in ((-1, "wrong"), (0, "neutral"), (1, "right")):
        of_NT = batch.loss_mask_NT & (required(batch.label_NT) == label)
        found[f"recall/{name}"] = masked_sum(right_NT, of_NT)
    return found


def better(batch: Batch) -> Tensor:
    """Whether row i is better than row j of the same group: [N, N] bool.

    False for ties, and where either row is not compared or has no trained token.
    """
    g_N, on_N = grade(batch), is_compared(batch)
    ours_NN = (batch.group_N[:, None] == batch.group_N) & on_N[:, None] & on_N
    return ours_NN & (g_N[:, None] > g_N)


def best(batch: Batch) -> Tensor:
    """Whether the row is better than another of its group and none is better than it: [N] bool.

    Grades -1, -2, -2: the first; 1, 1, 1: none.
    """
    better_NN = better(batch)
    return better_NN.any(1) & ~better_NN.any(0)


def some_pairs(better_NN: Tensor, batch: Batch, m: int) -> Tensor:
    """At most m of the ordered pairs of each group, drawn at random: [N, N] -> [N, N] bool.

    Every subset of m is as likely as any other. Each pair's number in the draw is a hash of its
    prompt, its step and its two samples, and the m lowest of the group stay. So the choice depends
    on the rows' keys alone, not on their order, on micro-batches or on a generator that a resumed
    run would have to find again.
    """
    kept_NN = torch.zeros_like(better_NN)
    lots: dict[int, list[tuple[bytes, int, int]]] = {}
    places: Any = better_NN.nonzero()
    ordered: list[list[int]] = places.tolist()
    for i, j in ordered:
        key, other = batch.keys[i], batch.keys[j]
        a, b = sorted((key.sample, other.sample))
        lot = hashlib.sha256(f"{key.prompt}|{key.version}|{a}|{b}".encode()).digest()
        lots.setdefault(int(batch.group_N[i]), []).append((lot, i, j))
    for drawn in lots.values():
        # the m lowest lots of the group
        for _, i, j in sorted(drawn)[:m]:
            kept_NN[i, j] = True
    return kept_NN


def step_class(batch: Batch) -> Tensor:
    """Labels -1, 0, 1 as class indices 0, 1, 2, and 1 where there is no step: [N, T] int64.

    Another label at a step is a UsageError.
    """
    label_NT = torch.where(batch.loss_mask_NT, required(batch.label_NT), 0.0)
    index_NT = (label_NT + 1).round().long()
    if bool(((index_NT < 0) | (index_NT > 2)).any()):
        raise UsageError(
            "a step is labelled -1 (wrong), 0 (neutral) or 1 (right).", where="dataset"
        )
    return index_NT


def class_logp(score_NTC: Tensor, batch: Batch) -> Tensor:
    """log softmax over the three classes at steps, uniform elsewhere: [N, T, 3].

    No token outside a step has a gradient.
    """
    assert score_NTC.ndim == 3 and score_NTC.shape[2] == 3, score_NTC.shape
    same_shape(score_NTC[..., 0], batch.loss_mask_NT)
    return torch.where(batch.loss_mask_NT[..., None], score_NTC, 0.0).log_softmax(2)
