"""Heads Q and V for a policy that is a table: the library's own heads, on a hidden state that is 1
at the table's row and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from laurel.core.sample import Batch
from laurel.model.implicit import Heads
from laurel.model.outputs import Outputs


class TableHeads(Heads):
    """The library's heads on one-hot states [N, L, X * S]: there a linear head is a table."""

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs:
        """hidden_NLD [N, L, 1]: which row of the policy's table predicts the next token."""
        assert hidden_NLD is not None
        states = self.all("v")[0].in_features
        one_NLS = one_hot(hidden_NLD[..., 0].long(), states).to(torch.get_default_dtype())
        return super().forward(batch, wanted, one_NLS)


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


def table_heads(tables: Tables, target_update: float) -> Heads:
    """The library's heads with the values of these tables."""
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
    return TableHeads(nn.ModuleDict(made), target_update, 1.0)


def tables_of(heads: Heads, X: int) -> Tables:
    """What the heads say now."""
    q, target = (
        torch.stack([head.weight.detach().T.unflatten(0, (X, -1)) for head in heads.all(kind)])
        for kind in ("q", "target")
    )
    (value,) = heads.all("v")
    return Tables(q, target, value.weight.detach()[0].unflatten(0, (X, -1)))
