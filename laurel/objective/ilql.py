"""Implicit Q-learning of language (ILQL) from logged rows.

The policy's body carries heads Q, a head V and the policy itself.

`reward_N` holds the row's reward R; it is received at the last trained token. The next state is the
one before the next trained token, so tokens of a tool are no steps. Nothing follows the last
trained token, and V is 0 there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from laurel.core.sample import Batch
from laurel.objective.unit import required, same_shape, trained

Pair = tuple[Tensor, Tensor]
"""(sum, count) as scalar tensors, detached."""


class Losses(NamedTuple):
    """The four parts of the loss, each [N, T], 0 where not trained."""

    q: Tensor
    value: Tensor
    cql: Tensor
    awac: Tensor


def implicit_q(
    logp_NT: Tensor,
    q_KNT: Tensor,
    logq_KNT: Tensor,
    target_q_NT: Tensor,
    value_NT: Tensor,
    batch: Batch,
    *,
    gamma: float = 0.99,
    expectile: float = 0.7,
    cql_coef: float = 0.1,
    awac_coef: float = 1.0,
    awac_beta: float = 0.0,
) -> Tensor:
    """Implicit Q-learning, per token: [N, T] -> [N, T].

        sum_k (Q_k - r_t - gamma V(s'))^2  +  |tau - 1[u < 0]| u^2
          -  cql_coef sum_k log softmax(Q_k)(x_t)  -  awac_coef exp(awac_beta u) log pi(x_t)

    with u = target - V, tau = expectile, r_t = R at the last trained token and 0 elsewhere.

    - logp_NT: log pi(x_t).
    - q_KNT, logq_KNT: Q_k(s_t, x_t) and log softmax(Q_k(s_t, .)) at x_t, of K heads.
    - target_q_NT: the least of the K target networks at x_t.
    - value_NT: V(s_t).

    V(s') and the weight exp(...) take no gradient, and the target comes from slow copies of the
    heads. So Q is fitted to the next V, V to an expectile of Q, and the policy to the tokens that Q
    prefers. At tau = .5, V is the value of the policy that wrote the log; as tau -> 1, that of the
    best behaviour in the log. awac_beta = 0 clones the policy of the log. With cql_coef = 0 nothing
    holds down Q of tokens that the log does not contain.

    By hand: Q = V = target = 0, K = 2, R = 1, one token, a vocabulary of 4, log pi = -1 and the
    default coefficients give

        2 + 0 + .2 * 1.3862944 + 1 = 3.2772589

    Snell et al. 2022, arXiv:2206.11871; expectiles: Kostrikov et al. 2021, arXiv:2110.06169; AWAC:
    Nair et al. 2020, arXiv:2006.09359.
    """
    how = {"gamma": gamma, "expectile": expectile, "awac_beta": awac_beta}
    found = losses(logp_NT, q_KNT, logq_KNT, target_q_NT, value_NT, batch, **how)
    return found.q + found.value + cql_coef * found.cql + awac_coef * found.awac


def losses(
    logp_NT: Tensor,
    q_KNT: Tensor,
    logq_KNT: Tensor,
    target_q_NT: Tensor,
    value_NT: Tensor,
    batch: Batch,
    *,
    gamma: float,
    expectile: float,
    awac_beta: float,
) -> Losses:
    """The parts of `implicit_q` before their coefficients."""
    same_shape(value_NT, target_q_NT, logp_NT, batch.loss_mask_NT, *q_KNT, *logq_KNT)
    assert 0 < expectile < 1, expectile
    return_NT = backup(value_NT, batch, gamma).detach()
    u_NT = trained(target_q_NT.detach() - value_NT, batch)
    return Losses(
        q=torch.stack([trained(q_NT - return_NT, batch).square() for q_NT in q_KNT]).sum(0),
        value=expectile_square(u_NT, expectile),
        cql=-torch.stack([trained(logq_NT, batch) for logq_NT in logq_KNT]).sum(0),
        awac=-(awac_beta * u_NT).exp().detach() * trained(logp_NT, batch),
    )


def expectile_square(u: Tensor, expectile: float) -> Tensor:
    """A square with weight tau above V and 1 - tau below, of any shape.

        |tau - 1[u < 0]| u^2,    tau = expectile

    tau = .7: u = 2 -> 2.8, u = -2 -> 1.2. Over targets that are 1 with probability p, else 0, the V
    that minimises it is

        tau p / (tau p + (1 - tau) (1 - p))

    which is the mean at tau = .5 and tends to the maximum as tau -> 1. Newey and Powell 1987.
    """
    return torch.where(u < 0, (1 - expectile) * u.square(), expectile * u.square())


def backup(value_NT: Tensor, batch: Batch, gamma: float) -> Tensor:
    """r_t + gamma V(s_{t+1}) of every trained token: [N, T] -> [N, T].

    V = (.4, .6), R = 1, gamma = .9: (.54, 1).
    """
    last_NT, next_NT = next_value(value_NT, batch)
    reward_NT = torch.where(last_NT, required(batch.reward_N)[:, None], 0.0)
    return reward_NT + gamma * next_NT


def next_value(value_NT: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last trained token of each row, and V at the next trained token: [N, T] each.

    The first is bool, True at the row's last trained token. The second is 0 at the last trained
    token, since nothing follows it. Both are 0 (False) where not trained. V = (1, 2, 3, 4), trained
    (yes, no, yes, no): last (no, no, yes, no), next (3, 0, 0, 0).
    """
    T = value_NT.shape[1]
    place_NT = torch.where(batch.loss_mask_NT, torch.arange(T, device=value_NT.device), T)
    after_NT = pad(place_NT, (0, 1), value=T)[:, 1:].flip(1).cummin(1).values.flip(1)
    next_NT = pad(trained(value_NT, batch), (0, 1)).gather(1, after_NT)
    return batch.loss_mask_NT & (after_NT == T), trained(next_NT, batch)


@torch.no_grad()
def implicit_metrics(
    logp_NT: Tensor,
    q_KNT: Tensor,
    logq_KNT: Tensor,
    target_q_NT: Tensor,
    value_NT: Tensor,
    batch: Batch,
    *,
    gamma: float = 0.99,
    expectile: float = 0.7,
    awac_beta: float = 0.0,
) -> dict[str, Pair]:
    """Metrics of implicit Q-learning as (sum, count), without a gradient.

    Over trained tokens: Q, V, the advantage and the four losses; over rows: the reward. See the
    catalogue of metrics.
    """
    how = {"gamma": gamma, "expectile": expectile, "awac_beta": awac_beta}
    found = losses(logp_NT, q_KNT, logq_KNT, target_q_NT, value_NT, batch, **how)
    last_NT, _ = next_value(value_NT, batch)
    columns = {
        "implicit/q": q_KNT.mean(0),
        "implicit/value": value_NT,
        "implicit/advantage": target_q_NT - value_NT,
        "implicit/q_loss": found.q,
        "implicit/value_loss": found.value,
        "implicit/cql_loss": found.cql,
        "implicit/awac_loss": found.awac,
    }
    count = batch.loss_mask_NT.sum()
    sums: dict[str, Pair] = {
        name: (trained(x_NT, batch).double().sum(), count) for name, x_NT in columns.items()
    }
    return {
        **sums,
        "implicit/reward": (
            torch.where(last_NT, required(batch.reward_N)[:, None], 0.0).double().sum(),
            last_NT.sum(),
        ),
    }
