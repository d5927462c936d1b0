"""Heads Q and V for a policy that is a table: the library's own heads, on a hidden state that is 1
at the table's row and 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from laurel.core.sample import Batch
from laurel.fast.logprob import TokenStats
from laurel.model.implicit import Heads
from laurel.model.policy import Policy


@dataclass
class OneHot:
    """A table's policy whose last hidden state is [N, L, X * S], so that a linear head of it is a
    table, too.
    """

    policy: Policy
    states: int

    def hidden(self, batch: Batch) -> Tensor:
        """Which row of the table predicts the next token."""
        return one_hot(self.policy.hidden(batch)[..., 0].long(), self.states).to(
            torch.get_default_dtype()
        )

    def logp(self, batch: Batch, *, hidden_NLD: Tensor) -> TokenStats:
        """log pi of the table itself."""
        return self.policy.logp(batch)


@dataclass(frozen=True)
class Tables:
    """What heads say: q and target [K, X, S, V], value [X, S]."""

    q: Tensor
    target: Tensor
    value: Tensor

    def at(self, which: Tensor) -> Tables:
        """The same for these prompts."""
        return Tables(self.q[:, which], self.target[:, which], self.value[which])


def some_tables(ref: Tensor) -> Tables:
    """Heads that depend on prompt, prefix and token, all different, made of [X, S, V] of logits:
    where the checks start.
    """
    q = torch.stack([0.7 * ref, 0.3 - 0.4 * ref.flip(2)])
    return Tables(q, torch.stack([0.5 * ref.flip(1) + 0.1, 0.6 * ref]), 0.2 * ref.sum(2))


def table_heads(policy: Policy, tables: Tables, target_update: float) -> Heads:
    """The library's heads on such a policy, saying what the tables say."""
    K, X, S, V = tables.q.shape
    made: dict[str, nn.Module] = {}
    for k in range(K):
        for kind, table in (("q", tables.q), ("target", tables.target)):
            made[f"{kind}_{k}"] = nn.Linear(X * S, V, bias=False)
            made[f"{kind}_{k}"].weight = nn.Parameter(
                table[k].reshape(X * S, V).T.to(torch.get_default_dtype()).clone(), kind == "q"
            )
    made["v"] = nn.Linear(X * S, 1, bias=False)
    made["v"].weight = nn.Parameter(
        tables.value.reshape(1, X * S).to(torch.get_default_dtype()).clone()
    )
    return Heads(cast(Any, OneHot(policy, X * S)), nn.ModuleDict(made), target_update, 1.0)


def tables_of(heads: Heads, X: int) -> Tables:
    """What the heads say now."""
    q, target = (
        torch.stack([head.weight.detach().T.unflatten(0, (X, -1)) for head in heads.all(kind)])
        for kind in ("q", "target")
    )
    (value,) = heads.all("v")
    return Tables(q, target, value.weight.detach()[0].unflatten(0, (X, -1)))
