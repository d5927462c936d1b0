"""Heads Q and V for a policy that is a table: the library's own heads, on one-hot states.

The hidden state is 1 at the table's row and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from laurel.core.sample import Batch, Outputs
from laurel.model.implicit import Heads


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
    """The values of K heads Q, their target networks and V.

    q and target are [K, X, S, V], value [X, S].
    """

    q: Tensor
    target: Tensor
    value: Tensor

    def at(self, which: Tensor) -> Tables:
        """The same for these prompts."""
        return Tables(self.q[:, which], self.target[:, which], self.value[which])


def some_tables(ref: Tensor) -> Tables:
    """The values where the checks start, made of logits [X, S, V].

    They depend on prompt, prefix and token, and all are different.
    """
    q = torch.stack([0.7 * ref, 0.3 - 0.4 * ref.flip(2)])
    target = torch.stack([0.5 * ref.flip(1) + 0.1, 0.6 * ref])
    value = 0.2 * ref.sum(2)
    return Tables(q, target, value)


def table_heads(tables: Tables, target_update: float) -> Heads:
    """The library's heads with the values of these tables."""
    made: dict[str, nn.Module] = {}
    for k, (q, target) in enumerate(zip(tables.q, tables.target, strict=True)):
        made[f"q_{k}"] = _linear(q.flatten(0, 1).T)
        made[f"target_{k}"] = _linear(target.flatten(0, 1).T, trainable=False)
    made["v"] = _linear(tables.value.reshape(1, -1))
    return TableHeads(nn.ModuleDict(made), target_update, 1.0)


def _linear(weight: Tensor, *, trainable: bool = True) -> nn.Linear:
    """A linear layer with these weights [out, X * S], without a bias, in the default precision."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    own = weight.to(torch.get_default_dtype()).clone()
    made.weight = nn.Parameter(own, trainable)
    return made


def tables_of(heads: Heads, X: int) -> Tables:
    """The values of heads of X prompts as they are now."""
    (v,) = heads.all("v")
    # a layer's weights are [out, X * S]
    value = v.weight.detach()[0].unflatten(0, (X, -1))
    return Tables(_by_state(heads, "q", X), _by_state(heads, "target", X), value)


def _by_state(heads: Heads, kind: str, X: int) -> Tensor:
    """[K, X, S, V] the values of every head of this kind."""
    weights = [head.weight.detach().T for head in heads.all(kind)]
    return torch.stack([weight.unflatten(0, (X, -1)) for weight in weights])
