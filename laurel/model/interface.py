"""What a model computes of a batch in one pass: the record `Outputs`, and who computes it.

A model is a policy, a scorer, or a policy with an auxiliary model (a critic, heads Q and V, a
discriminator). `forward(batch, wanted)` computes the fields that are wanted and no others; the body
of each runs once, whatever is read from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from laurel.core.sample import Batch, Outputs


class Model(Protocol):
    """What the loop trains: a policy, a scorer, or a policy with an auxiliary model."""

    def forward(
        self, batch: Batch, wanted: Collection[str], *, entropy_grad: bool = False
    ) -> Outputs:
        """The fields of `Outputs` that are wanted. entropy_grad: the entropy is differentiable."""
        ...


class AuxiliaryModel(Protocol):
    """A model that the same optimiser trains together with a policy: critic, discriminator, heads.

    `model`: its own modules, what it adds to memory. `computes`: the fields of `Outputs` that are
    its work. `shares_body`: it reads the policy's last hidden states, which `forward` is given.
    `trainable`, `followers`: name -> parameter, of what gradients move and of target networks,
    which only `follow` moves, after each optimiser step; a checkpoint holds both. No name is one of
    the policy's.
    Optional: `rate`, its learning rate as a multiple of the policy's; `save(policy, folder)`, where
    it shapes how the policy decodes.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def computes(self) -> frozenset[str]: ...

    @property
    def shares_body(self) -> bool: ...

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs: ...

    def trainable(self) -> Mapping[str, nn.Parameter]: ...

    def followers(self) -> Mapping[str, nn.Parameter]: ...

    def follow(self) -> None: ...


@dataclass(frozen=True)
class PolicyWithAuxiliary:
    """A policy and an auxiliary model as one model, whose bodies run once each, or their one body
    once.
    """

    policy: Model
    auxiliary: AuxiliaryModel

    def forward(
        self, batch: Batch, wanted: Collection[str], *, entropy_grad: bool = False
    ) -> Outputs:
        """The outputs of both. Nothing is computed of which nothing is wanted."""
        theirs = self.auxiliary.computes.intersection(wanted)
        ours = set(wanted) - theirs
        if theirs and self.auxiliary.shares_body:
            ours.add("hidden_NLD")
        found = Outputs()
        if ours:
            found = self.policy.forward(batch, ours, entropy_grad=entropy_grad)
        if theirs:
            found = found.joined(self.auxiliary.forward(batch, theirs, found.hidden_NLD))
        return found
