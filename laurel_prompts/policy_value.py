"""What a choice of prompts is worth: exactly where everything was tried, else from propensities.

Regret, and a paired verdict.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from laurel.measure.intervals import Interval, cluster_bootstrap_mean

Groups = Sequence[Hashable] | np.ndarray

# Everywhere: reward_SP has nan where a prompt was not tried; propensity_SP is the probability that
# the logger tried it (read only where it
# did); policy_SP is what is to be valued: how probably it sends prompt p, one-hot for a plain
# choice; question_S groups draws of one.


def one_hot(choice_S: np.ndarray, prompts: int) -> np.ndarray:
    """[S, P]: a choice as a policy."""
    return np.eye(prompts)[choice_S]


def exact(reward_SP: np.ndarray, policy_SP: np.ndarray, question_S: Groups) -> Interval:
    """mean over queries of sum_p pi(p|q) r(q, p): no estimate but of the queries.

    Every prompt that is sent must have been tried.
    """
    return clustered_mean(value_S(reward_SP, policy_SP), question_S)


def value_S(reward_SP: np.ndarray, policy_SP: np.ndarray) -> np.ndarray:
    """sum_p pi(p|q) r(q, p) of each query.

    ValueError where the policy sends a prompt that was not tried.
    """
    if np.isnan(reward_SP[policy_SP > 0]).any():
        raise ValueError("the policy sends prompts that were not tried: the value is not exact")
    return np.where(policy_SP > 0, policy_SP * reward_SP, 0.0).sum(1)


def inverse_propensity(
    reward_SP: np.ndarray, propensity_SP: np.ndarray, policy_SP: np.ndarray, question_S: Groups
) -> Interval:
    """IPS: mean over queries of sum over tried p of pi(p|q)/b(p|q) r.

    Unbiased if b is right and positive wherever pi is. Horvitz and Thompson 1952. With r = 1, 0 at
    b = .25, .75 and pi all on the first: (4 * 1 + 0) / 2 = 2, which no reward can be: it is noisy.
    """
    weight, reward = _weights(reward_SP, propensity_SP, policy_SP)
    return clustered_mean((weight * reward).sum(1), question_S)


def self_normalised(
    reward_SP: np.ndarray, propensity_SP: np.ndarray, policy_SP: np.ndarray, question_S: Groups
) -> Interval:
    """SNIPS: sum of weighted rewards over the sum of weights, inside the rewards' range.

    The interval is that of its linear part.

    ValueError where the policy never sends what was tried. Swaminathan and Joachims 2015.
    """
    weight, reward = _weights(reward_SP, propensity_SP, policy_SP)
    total = weight.sum() / len(weight)
    if total == 0:
        raise ValueError("the policy sends nothing of what was tried: no estimate")
    value = float((weight * reward).sum() / len(weight) / total)
    return clustered_mean(value + (weight * (reward - value)).sum(1) / total, question_S)


def doubly_robust(
    reward_SP: np.ndarray,
    propensity_SP: np.ndarray,
    policy_SP: np.ndarray,
    predicted_SP: np.ndarray,
    question_S: Groups,
) -> Interval:
    """DR: mean of sum_p pi r^ + sum over tried p of pi/b (r - r^).

    Unbiased if b or r^ is right, and less noisy than IPS if r^ is near.

    predicted_SP must come from models that did not see the query's own rewards. Dudik et al. 2011,
    arXiv:1103.4601.
    """
    return clustered_mean(
        doubly_robust_S(reward_SP, propensity_SP, policy_SP, predicted_SP), question_S
    )


def doubly_robust_S(
    reward_SP: np.ndarray,
    propensity_SP: np.ndarray,
    policy_SP: np.ndarray,
    predicted_SP: np.ndarray,
) -> np.ndarray:
    """What each query adds to `doubly_robust`.

    It is linear in the policy, so that of a difference of policies it is the difference.
    """
    weight, reward = _weights(reward_SP, propensity_SP, policy_SP)
    return (policy_SP * predicted_SP).sum(1) + (
        weight * (reward - np.where(weight != 0, predicted_SP, 0.0))
    ).sum(1)


def regret(reward_SP: np.ndarray, policy_SP: np.ndarray, question_S: Groups) -> Interval:
    """mean of max_p r(q, p) - sum_p pi r: to the per-query oracle, all prompts tried.

    Exact where rewards are expected rewards. Of single noisy draws the best looks better than any
    prompt is, so the regret is an upper bound. It is at most 2 E max_p |r^ - r| of a choice that
    maximises r^.
    """
    if np.isnan(reward_SP).any():
        raise ValueError("regret needs every prompt tried on every query")
    return clustered_mean(reward_SP.max(1) - value_S(reward_SP, policy_SP), question_S)


def split_oracle(reward_SP: np.ndarray, question_S: np.ndarray) -> Interval | None:
    """The per-question oracle without the luck of single draws.

    The best prompt on one half of a question's draws, valued on the others.

    A lower bound of what knowing each question's best prompt is worth. None where no question was
    drawn twice.
    """
    values, groups = [], []
    for question, count in zip(*np.unique(question_S, return_counts=True), strict=True):
        if count < 2:
            continue
        draws = reward_SP[question_S == question]
        for half in (0, 1):
            mean_P = draws[half::2].mean(0)
            best = mean_P == mean_P.max()
            values.append(float(draws[1 - half :: 2].mean(0)[best].mean()))
            groups.append(question)
    return cluster_bootstrap_mean(values, groups) if values else None


def gain(
    reward_SP: np.ndarray, policy_SP: np.ndarray, baseline_SP: np.ndarray, question_S: Groups
) -> Interval:
    """The exact value of one policy minus another's on the same queries.

    Paired; whole questions are resampled.
    """
    return clustered_mean(
        value_S(reward_SP, policy_SP) - value_S(reward_SP, baseline_SP), question_S
    )


GAIN = "a credible gain"
FEWEST = 30
"""Questions below which no interval is believed: the bootstrap of a few has no width."""


def verdict(interval: Interval) -> str:
    """What a paired interval supports."""
    if interval.n < FEWEST:
        return "too few questions to tell"
    return (
        GAIN if interval.low > 0 else "a credible loss" if interval.high < 0 else "no credible gain"
    )


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """AUC: the chance that a right answer scores above a wrong one, ties half.

    .5 for a constant such as always-no. nan without both kinds.
    """
    from scipy.stats import rankdata

    ones = right > 0.5
    n, m = int(ones.sum()), int((~ones).sum())
    return (
        float("nan")
        if not n * m
        else float((rankdata(score)[ones].sum() - n * (n + 1) / 2) / (n * m))
    )


def _weights(
    reward_SP: np.ndarray, propensity_SP: np.ndarray, policy_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(pi / b where tried, else 0; rewards, 0 where not tried)."""
    tried = ~np.isnan(reward_SP)
    b = propensity_SP[tried]
    if not (np.isfinite(b).all() and (b > 0).all() and (b <= 1).all()):
        raise ValueError("every logged row needs its propensity, above 0 and at most 1")
    weight = np.zeros(reward_SP.shape)
    weight[tried] = policy_SP[tried] / b
    return weight, np.where(tried, reward_SP, 0.0)


def clustered_mean(values: np.ndarray, question_S: Groups) -> Interval:
    """The mean over queries, whole questions resampled."""
    return cluster_bootstrap_mean(values.tolist(), list(question_S))
