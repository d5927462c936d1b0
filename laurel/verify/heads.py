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
from laurel.model.ilql import Heads


class TableHeads(Heads):
    """The library's heads on one-hot states [N, L, X * S]: there a linear head is a table."""

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs:
        """hidden_NLD [N, L, 1]: which row of the policy's table predicts the next token."""
        assert hidden_NLD is not None
        states = self.all("v")[0].in_features
        state_NL = hidden_NLD[..., 0].long()
        one_NLS = one_hot(state_NL, states)
        one_NLS = one_NLS.to(torch.get_default_dtype())
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
        q = self.q[:, which]
        target = self.target[:, which]
        value = self.value[which]
        return Tables(q, target, value)


def some_tables(ref: Tensor) -> Tables:
    """The values where the checks start, made of logits [X, S, V].

    They depend on prompt, prefix and token, and all are different.
    """
    other_tokens = ref.flip(2)
    other_states = ref.flip(1)
    q = [0.7 * ref, 0.3 - 0.4 * other_tokens]
    target = [0.5 * other_states + 0.1, 0.6 * ref]
    value = 0.2 * ref.sum(2)
    return Tables(torch.stack(q), torch.stack(target), value)


def table_heads(tables: Tables, target_update: float) -> Heads:
    """The library's heads with the values of these tables."""
    made: dict[str, nn.Module] = {}
    for k, table in enumerate(tables.q):
        made[f"q_{k}"] = _linear(table)
    for k, table in enumerate(tables.target):
        made[f"target_{k}"] = _linear(table, trainable=False)
    made["v"] = _linear(tables.value[..., None])
    return TableHeads(nn.ModuleDict(made), target_update, 1.0)


def _linear(table: Tensor, *, trainable: bool = True) -> nn.Linear:
    """A linear layer without a bias whose outputs of the states are [X, S, out]."""
    weight = table.flatten(0, 1).T
    out, states = weight.shape
    made = nn.Linear(states, out, bias=False)
    own = weight.to(torch.get_default_dtype()).clone()
    made.weight = nn.Parameter(own, trainable)
    return made


def tables_of(heads: Heads, X: int) -> Tables:
    """The values of heads of X prompts as they are now."""
    q = _by_state(heads, "q", X)
    target = _by_state(heads, "target", X)
    value = _by_state(heads, "v", X)
    return Tables(q, target, value[0, ..., 0])


def _by_state(heads: Heads, kind: str, X: int) -> Tensor:
    """[K, X, S, out] the values of every head of this kind."""
    tables: list[Tensor] = []
    for head in heads.all(kind):
        weight = head.weight.detach()
        # weights are [out, X * S]
        tables.append(weight.T.unflatten(0, (X, -1)))
    return torch.stack(tables)
