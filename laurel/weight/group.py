"""Rewards of groups -> one weight per sample: the A in "maximise A log pi".

Every function takes `reward_PG` [P, G] float64 (P prompts, G samples each) and returns weights of
the same shape. NaN is a sample that no reward could judge: it enters no mean, no spread and no
count, and its weight is 0. Groups whose rewards are all equal get a weight of exactly 0 from every
function that compares the samples of a group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EPS = 1e-4
"""Added to every standard deviation of rewards (ddof = 1 everywhere).

It keeps noise in nearly equal rewards small.
"""


def raw(reward_PG: Tensor) -> Tensor:
    """The reward itself: [P, G] -> [P, G].

        A = r

    REINFORCE without a baseline; demonstrations (r = 1) make it supervised fine-tuning. [1, 0]:
    [1, 0]. Williams 1992.
    """
    check(reward_PG)
    return reward_PG.masked_fill(reward_PG.isnan(), 0.0)


def minus_baseline(
    reward_PG: Tensor,
    *,
    baseline: Literal["running", "batch"] = "running",
    running_mean: float = 0.0,
) -> Tensor:
    """The reward minus a baseline, a number for the whole batch: [P, G] -> [P, G].

        A = r - b

    A number b that does not depend on the sample leaves the expected gradient unchanged and lowers
    its variance.

    - running: b = `running_mean`, taken over earlier steps: unbiased.
    - batch: b = the mean of this batch of n samples, which contains the sample itself: (n-1)/n of
      the gradient.

    [1, 0, 0, 1] with b = .25: [.75, -.25, -.25, .75]. Williams 1992.
    """
    check(reward_PG)
    if baseline == "batch":
        return centred(reward_PG.reshape(1, -1)).view_as(reward_PG)
    return (reward_PG - running_mean).masked_fill(reward_PG.isnan(), 0.0)


def centred(reward_PG: Tensor) -> Tensor:
    """The reward minus the mean of the sample's own group: [P, G] -> [P, G].

        A_i = r_i - mean(r)

    [1, 0, 0, 1]: [.5, -.5, -.5, .5]. The expected gradient is exactly (G-1)/G of the true one,
    since the mean contains the sample. Dr. GRPO, Liu et al. 2025, arXiv:2503.20783.
    """
    check(reward_PG)
    useful_PG = ~reward_PG.isnan() & informative(reward_PG)[:, None]
    return torch.where(useful_PG, reward_PG - reward_PG.nanmean(1, keepdim=True), 0.0)


def leave_one_out(reward_PG: Tensor) -> Tensor:
    """The reward minus the mean of the group's other samples: [P, G] -> [P, G].

        A_i = n/(n-1) (r_i - mean(r)),    n samples present

    [1, 0, 0, 1]: [2/3, -2/3, -2/3, 2/3]. Unbiased: the baseline of a sample does not depend on it.
    A group with one sample present has no others: weight 0. RLOO, Ahmadian et al. 2024,
    arXiv:2402.14740.
    """
    n_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
    return centred(reward_PG) * n_P1 / (n_P1 - 1).clamp(min=1)


def standardised(
    reward_PG: Tensor, *, scale_rewards: Literal["group", "batch", "none"] = "group"
) -> Tensor:
    """The reward minus the group's mean, divided by a standard deviation: [P, G] -> [P, G].

        A_i = (r_i - mean(r)) / (std(r) + 1e-4),    ddof = 1

    [1, 0, 0, 1]: +-.8658754; [1, 0]: +-.7070068. scale_rewards chooses the std:

    - `group` is GRPO, which gives prompts near p = 0 or 1 a larger step, about 1/sqrt(p(1-p)).
    - `batch` divides every group by the std of all rewards of the batch and keeps their
      proportions.
    - `none` is `centred`.

    DeepSeekMath, Shao et al. 2024, arXiv:2402.03300; batch: ScaleRL, arXiv:2510.13786.
    """
    weight_PG = centred(reward_PG)
    if scale_rewards == "none":
        return weight_PG
    return weight_PG / (
        spread(reward_PG if scale_rewards == "group" else reward_PG.reshape(1, -1)) + EPS
    )


def batch_standardised(reward_PG: Tensor) -> Tensor:
    """The reward standardised over every sample of the batch, as one group: [P, G] -> [P, G].

        A = (r - mean) / (std + 1e-4),    ddof = 1

    Prompts keep their difference in difficulty: an easy prompt's wrong answer and a hard prompt's
    may get different weights. [[1, 0], [0, 1]]: +-.8658754. REINFORCE++ for rewards at the end of a
    sample, Hu et al. 2025, arXiv:2501.03262.
    """
    return standardised(reward_PG.reshape(1, -1)).view_as(reward_PG)


def selected(
    reward_PG: Tensor, *, keep: Literal["best", "above", "over_mean"] = "best", bar: float = 1.0
) -> Tensor:
    """1 for the samples to imitate, else 0, which is rejection sampling: [P, G] -> [P, G].

    - best: the group's highest reward, the first one of a tie (so a group that is all wrong still
      yields one sample). [1, 0, 0, 1]: [1, 0, 0, 0].
    - above: r >= bar. [1, 0, 0, 1]: [1, 0, 0, 1].
    - over_mean: r above the group's mean, none where all are equal. [1, 0, 0, 1]: [1, 0, 0, 1].

    With 0/1 rewards and `above` the expected update is ascent on log p as G grows. RAFT,
    Dong et al. 2023, arXiv:2304.06767.
    """
    check(reward_PG)
    if keep == "above":
        return (reward_PG >= bar).to(reward_PG.dtype)
    if keep == "over_mean":
        return (centred(reward_PG) > 0).to(reward_PG.dtype)
    absent_PG = reward_PG.isnan()
    best_P1 = reward_PG.masked_fill(absent_PG, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(reward_PG).scatter(1, best_P1, 1.0).masked_fill(absent_PG, 0.0)


def best_and_worst(reward_PG: Tensor) -> Tensor:
    """A pair out of each group, as online DPO compares it: [P, G] -> [P, G].

    +1 for the first of the best, -1 for the last of the worst, 0 for the others; all 0 where all
    are equal. [1, 0, 0, 1]: [1, 0, -1, 0]. Guo et al. 2024, arXiv:2402.04792.
    """
    check(reward_PG)
    absent_PG, useful_P1 = reward_PG.isnan(), informative(reward_PG)[:, None]
    best_P1 = reward_PG.masked_fill(absent_PG, -torch.inf).argmax(1, keepdim=True)
    worst_P1 = (
        reward_PG.shape[1]
        - 1
        - reward_PG.masked_fill(absent_PG, torch.inf).flip(1).argmin(1, keepdim=True)
    )
    grade_PG = torch.zeros_like(reward_PG).scatter(1, best_P1, 1.0).scatter(1, worst_P1, -1.0)
    return torch.where(useful_P1, grade_PG, 0.0)


def informative(reward_PG: Tensor) -> Tensor:
    """Whether two present rewards of the group differ: [P, G] -> [P] bool.

        max - min > 1e-9 max|r|

    Only such a group can be compared. The test is on the range, never on a standard deviation:
    thirty rewards of .9 have one of 1.8e-7 in float32. Fewer than two samples present: False.
    """
    absent_PG = reward_PG.isnan()
    high_P = reward_PG.masked_fill(absent_PG, -torch.inf).amax(1)
    low_P = reward_PG.masked_fill(absent_PG, torch.inf).amin(1)
    return high_P - low_P > 1e-9 * torch.maximum(high_P.abs(), low_P.abs())


def predicted_uninformative(p: float, G: int) -> float:
    """The probability that the samples of a group are all right or all wrong.

        p^G + (1-p)^G

    G samples, each right with probability p. p = .1819: G = 2 gives .702, 4 .449, 8 .201, 16 .040.
    """
    return p**G + (1 - p) ** G


def update_running_mean(running_mean: float, reward_PG: Tensor, momentum: float = 0.9) -> float:
    """The running baseline for the next step.

        momentum * old + (1 - momentum) * mean of the rewards present

    None present: unchanged. old = 0, rewards (1, 0), momentum .9: .05.
    """
    present = reward_PG[~reward_PG.isnan()]
    return (
        momentum * running_mean + (1 - momentum) * float(present.mean())
        if len(present)
        else running_mean
    )


def spread(reward_PG: Tensor) -> Tensor:
    """The standard deviation (ddof = 1) of the rewards present in each group: [P, G] -> [P, 1].

    [1, 0, 0, 1]: .5773503. Fewer than two present: 0.
    """
    present_PG = ~reward_PG.isnan()
    error_PG = torch.where(present_PG, reward_PG - reward_PG.nanmean(1, keepdim=True), 0.0)
    return (
        error_PG.square().sum(1, keepdim=True) / (present_PG.sum(1, keepdim=True) - 1).clamp(min=1)
    ).sqrt()


def check(reward_PG: Tensor) -> None:
    """Assert that rewards are [P, G] float64.

    In float32 the mean of equal rewards is not equal to them.
    """
    assert reward_PG.ndim == 2 and reward_PG.dtype == torch.float64, (
        reward_PG.shape,
        reward_PG.dtype,
    )
