"""Preference objectives: one margin, many link functions.

An objective takes (log pi of the rows, batch) and returns one value to minimise per comparison:
[N, T] -> [P].

A comparison is a group of rows. Its grades say which is better: +1 chosen, -1 rejected, 0 neither
(`laurel.core.sample.Comparisons`). With lp the sum of a row's log-probabilities over its trained
tokens and ref the same under the reference, a pair's margin is

    h = (lp_w - ref_w) - (lp_l - ref_l)

w is the chosen row and l the rejected one. Most objectives are a link function of beta h. Only
differences enter it, so both log-probabilities may fall together: watch `logps/chosen`, and see
`dpop`, `orpo` and the option `rpo_alpha` for remedies. The objectives of pairs take soft labels and
weights, see `laurel.objective.label`: each is its weight times its expectation over which row is
better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.errors import UsageError
from laurel.core.sample import Batch
from laurel.objective.constraint import constrained
from laurel.objective.label import expected, grade, margin_asked, weighted
from laurel.objective.unit import Pair, by_group, required, same_shape, trained


@weighted
@expected
def dpo(
    logp_NT: Tensor,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    use_margin: bool = True,
) -> Tensor:
    """Direct preference optimisation: [N, T] -> [P].

        (1 - eps) softplus(-z) + eps softplus(z)

        z = beta h - m,    eps = label_smoothing

    m is the row's `margin`, 0 where the data has none: how far apart the implied rewards of the two
    rows shall lie (ODPO).

    By hand: lp (-10, -12), ref (-11, -11.5), beta .1 give h = 1.5 and the value .6209570; with
    m = .15 the value is ln 2, as at h = 0.

    The gradient is that of a weighted likelihood: beta sigmoid(-z) times that of -(lp_w - lp_l).
    Over pairs of full support the optimum is ref exp(R / beta) / Z. eps > 0 is cDPO, for labels
    that are wrong with probability eps; where p is the probability that w is better, it stops at

        sigmoid(beta h) = (1 - eps) p + eps (1 - p)

    Rafailov et al. 2023, arXiv:2305.18290; cDPO: Mitchell 2023; ODPO: Amini et al. 2024,
    arXiv:2402.10571.
    """
    z_P = beta * margin(logp_NT, batch) - (
        margin_asked(batch).to(logp_NT.dtype) if use_margin else 0.0
    )
    return (1 - label_smoothing) * softplus(-z_P) + label_smoothing * softplus(z_P)


@weighted
@expected
def robust_dpo(
    logp_NT: Tensor,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    use_margin: bool = True,
) -> Tensor:
    """DPO with an unbiased correction for labels that are flipped at random: [N, T] -> [P].

        ((1 - eps) softplus(-z) - eps softplus(z)) / (1 - 2 eps)

        z = beta h - m,    eps = label_smoothing

    On labels flipped with probability eps its expectation is that of `dpo` on clean ones, so the
    optimum is unchanged. z = .15, eps = .1: .6022070. eps = 0 is `dpo`. Chowdhury et al. 2024,
    arXiv:2403.00409.
    """
    z_P = beta * margin(logp_NT, batch) - (
        margin_asked(batch).to(logp_NT.dtype) if use_margin else 0.0
    )
    return ((1 - label_smoothing) * softplus(-z_P) - label_smoothing * softplus(z_P)) / (
        1 - 2 * label_smoothing
    )


def check_target(name: str, *, beta: float) -> None:
    """Refuse beta = 0: the margin that IPO fits would be infinite."""
    if beta == 0:
        what = f"`{name}` aims at a margin of 1 / (2 beta), which is infinite."
        raise UsageError(what, where="beta", fix="Give one above 0, such as 0.1.")


@constrained(check_target)
@weighted
@expected
def ipo(logp_NT: Tensor, batch: Batch, *, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation: the margin is fitted to a finite target: [N, T] -> [P].

        (h - 1 / (2 beta))^2

    Certain preferences therefore do not drive the margin to infinity. h = 1.5, beta = .1: 12.25.
    beta is the paper's tau. h is a difference of sums over tokens, as in the paper (TRL averages,
    which is another beta for every length). Azar et al. 2023, arXiv:2310.12036.
    """
    return (margin(logp_NT, batch) - 1 / (2 * beta)).square()


@weighted
@expected
def simpo(logp_NT: Tensor, batch: Batch, *, beta: float = 2.5, simpo_gamma: float = 1.0) -> Tensor:
    """SimPO: no reference, log-probabilities per token, and a target margin: [N, T] -> [P].

        softplus( -(beta (lp_w / |w| - lp_l / |l|) - gamma) ),    gamma = simpo_gamma

    Means -1 and -2, beta = 2.5, gamma = 1: softplus(-1.5) = .2014133. Meng et al. 2024,
    arXiv:2405.14734.
    """
    same_shape(logp_NT, batch.loss_mask_NT)
    per_token_N = trained(logp_NT, batch).sum(1) / length(batch)
    return softplus(simpo_gamma - beta * by_group(grade(batch) * per_token_N, batch))


@weighted
@expected
def orpo(logp_NT: Tensor, batch: Batch, *, beta: float = 0.1) -> Tensor:
    """ORPO: likelihood of the chosen answer plus an odds ratio, no reference: [N, T] -> [P].

        -m_w + beta softplus(-(log odds(w) - log odds(l)))

        m = lp / |y|,    log odds = m - log(1 - e^m)

    m = (-1, -2), beta = .1: log odds -.5413 and -1.8546, and the value is

        1 + .1 softplus(-1.3133) = 1.0238

    beta is the paper's lambda. Hong et al. 2024, arXiv:2403.07691.
    """
    same_shape(logp_NT, batch.loss_mask_NT)
    mean_N = trained(logp_NT, batch).sum(1) / length(batch)
    # the clamp: a certain answer's odds are large, not infinite
    log_odds_N = mean_N - log1mexp(mean_N.clamp(max=-torch.finfo(mean_N.dtype).eps))
    chosen_P = by_group(torch.where(grade(batch) > 0, mean_N, 0.0), batch)
    return beta * softplus(-by_group(grade(batch) * log_odds_N, batch)) - chosen_P


@weighted
@expected
def dpop(
    logp_NT: Tensor,
    batch: Batch,
    *,
    beta: float = 0.1,
    dpop_lambda: float = 50.0,
    use_margin: bool = True,
    rounding: float = 3e-5,
) -> Tensor:
    """DPO with a penalty where the chosen answer is less likely than under the reference.

        softplus( m - beta (h - lambda max(0, ref_w - lp_w)) ),    lambda = dpop_lambda

    [N, T] -> [P]. The value and the gradient are those of `dpo` while lp_w >= ref_w. lp_w 1 below
    ref_w, h = 1.5, beta = .1, lambda = 50, m = 0: softplus(4.85) = 4.8578.

    Training starts at the kink: lp_w = ref_w there, up to rounding, and a slope of 0 or of 1 is a
    gradient lambda times as large. The slope at 0 is taken as 0, and a fall counts only where
    rounding cannot explain it: beyond `rounding` sqrt|w| nats, where `rounding` is that of one
    token's log-probability in the precision of the model (the loop passes it). So the first step is
    that of `dpo`. Smaug, Pal et al. 2024, arXiv:2402.13228.
    """
    gain_N = log_ratios(logp_NT, batch)
    fell_N = (grade(batch) > 0) & (-gain_N > rounding * length(batch).sqrt())
    fallen_P = by_group(torch.where(fell_N, -gain_N, 0.0), batch)
    m_P = margin_asked(batch).to(logp_NT.dtype) if use_margin else 0.0
    return softplus(m_P - beta * (margin(logp_NT, batch) - dpop_lambda * fallen_P))


def kto(
    logp_NT: Tensor,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: answers labelled good or bad, valued as gains and losses from a reference point.

        good:  desirable_weight   (1 - sigmoid(beta (g - z)))
        bad:   undesirable_weight (1 - sigmoid(beta (z - g)))

        g = lp - ref,    z = max(0, KL)

    [N, T] -> [P]. The KL is measured on answers to other prompts, without a gradient: the batch
    holds z in `reference_kl_N`. A group is one graded row (+1 good, -1 bad) and such another
    answer, which is not compared. g = z: half the weight. Ethayarajh et al. 2024, arXiv:2402.01306.
    """
    found = required(batch.comparison)
    away_N = beta * (log_ratios(logp_NT, batch) - found.reference_kl_N)
    value_N = torch.where(
        grade(batch) > 0,
        desirable_weight * (-away_N).sigmoid(),
        undesirable_weight * away_N.sigmoid(),
    )
    weighted_N = found.weight_N.to(value_N.dtype) * value_N
    return by_group(torch.where(found.compared_N, weighted_N, 0.0), batch)


def rrhf(logp_NT: Tensor, batch: Batch, *, nll_weight: float = 1.0) -> Tensor:
    """RRHF: a hinge on every pair in the wrong order, and likelihood of the best: [N, T] -> [P].

        sum over r_i < r_j of max(0, p_i - p_j)  -  nll_weight p_best,    p = lp / |y|

    The grades are the rewards r. Rewards (1, 0), p = (-2, -1.5): .5 + 2 = 2.5. Yuan et al. 2023,
    arXiv:2304.05302.
    """
    same_shape(logp_NT, batch.loss_mask_NT)
    p_N, r_N = trained(logp_NT, batch).sum(1) / length(batch), grade(batch)
    judged_N = batch.loss_mask_NT.any(1)
    ours_NN = (batch.group_N[:, None] == batch.group_N) & judged_N[:, None] & judged_N
    wrong_N = torch.where(
        ours_NN & (r_N[:, None] < r_N), (p_N[:, None] - p_N).clamp(min=0), 0.0
    ).sum(1)
    better_NN = ours_NN & (r_N > r_N[:, None])
    order_N = torch.arange(len(r_N), device=r_N.device)
    equal_before_NN = ours_NN & (r_N == r_N[:, None]) & (order_N < order_N[:, None])
    best_N = judged_N & ~better_NN.any(1) & ~equal_before_NN.any(1)
    return by_group(wrong_N - nll_weight * torch.where(best_N, p_N, 0.0), batch)


@weighted
@expected
def chosen_nll(logp_NT: Tensor, batch: Batch, *, rpo_alpha: float = 0.0) -> Tensor:
    """The likelihood of the chosen answer, a term that may be added to DPO: [N, T] -> [P].

        -rpo_alpha lp_w / |w|

    With it the chosen answer cannot fall far. lp_w / |w| = -1, rpo_alpha = .5: .5.
    Pang et al. 2024, arXiv:2404.19733.
    """
    same_shape(logp_NT, batch.loss_mask_NT)
    return -rpo_alpha * by_group(
        torch.where(grade(batch) > 0, trained(logp_NT, batch).sum(1) / length(batch), 0.0), batch
    )


def margin(logp_NT: Tensor, batch: Batch) -> Tensor:
    """The margin h of each group, before its factor beta: [N, T] -> [P].

        h = sum over the group's rows of grade (lp - ref)

    lp (-10, -12), ref (-11, -11.5), grades (1, -1): 1.5.
    """
    return by_group(grade(batch) * log_ratios(logp_NT, batch), batch)


def log_ratios(logp_NT: Tensor, batch: Batch) -> Tensor:
    """The log-ratio lp - ref of each whole row: [N, T] -> [N]."""
    same_shape(logp_NT, batch.logp_ref_NT)
    return trained(logp_NT - batch.logp_ref_NT, batch).sum(1)


def length(batch: Batch) -> Tensor:
    """Trained tokens of each row, at least 1: [N]."""
    return batch.loss_mask_NT.sum(1).clamp(min=1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0 without cancellation.

        x        -1e-3         -1e-6          -1e-8
        value    -6.9082551    -13.8155106    -18.4206808

    Maechler 2012.
    """
    # each branch gets only arguments that it can take, so neither gradient is NaN; -ln 2 parts them
    near = x > -0.6931472
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def preference_metrics(logp_NT: Tensor, batch: Batch, *, beta: float) -> dict[str, Pair]:
    """Implied rewards and log-probabilities of chosen and rejected rows, as (sum, count).

    The reward of a row is the one that the policy implies, beta (lp - ref).

    - `rewards/chosen`, `rewards/rejected`, `logps/chosen`, `logps/rejected`: means over rows graded
      above and below 0.
    - `rewards/margins`, `rewards/accuracies`: means over groups that have both kinds. A margin
      within 1e-5 of 0, as at the start, counts half in the accuracy.
    """
    grade_N = required(batch.comparison).grade_N
    lp_N = torch.where(batch.loss_mask_NT, logp_NT.detach(), 0).sum(1)
    ref_N = torch.where(batch.loss_mask_NT, batch.logp_ref_NT, 0).sum(1)
    reward_N = beta * (lp_N - ref_N)
    sides = {
        "chosen": grade_N > 0,
        "rejected": grade_N < 0,
    }
    found: dict[str, Pair] = {}
    for side, of_N in sides.items():
        count = of_N.sum()
        found[f"rewards/{side}"] = (reward_N[of_N].sum(), count)
        found[f"logps/{side}"] = (lp_N[of_N].sum(), count)
    chosen_P = by_group(sides["chosen"].double(), batch)
    rejected_P = by_group(sides["rejected"].double(), batch)
    both_P = (chosen_P > 0) & (rejected_P > 0)
    margin_P = by_group(grade_N.sign() * reward_N, batch)[both_P]
    right_P = (margin_P > 1e-5).double()
    equal_P = (margin_P.abs() <= 1e-5).double()
    right_P = right_P + equal_P / 2
    pairs = both_P.sum()
    found["rewards/margins"] = (margin_P.sum(), pairs)
    found["rewards/accuracies"] = (right_P.sum(), pairs)
    return found
