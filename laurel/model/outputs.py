"""What a model computes of a batch in one pass: the record `Outputs`, and who computes it.

A model is a policy, a scorer, or a policy with an auxiliary model (a critic, heads Q and V, a
discriminator). `forward(batch, wanted)` computes the fields that are wanted and no others; the body
of each runs once, whatever is read from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

from torch import Tensor, nn

from laurel.core.sample import Batch


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model for one batch; None where a field was not asked for.

    Per-token outputs are 0 at tokens that are not trained on. x_t is a trained token, s_t the state
    it was chosen in: what was read before it.

    logp_NT: log pi(x_t) at the temperature that sampled it. entropy_NT: of pi(. | s_t), in nats.
    value_NT: V(s_t), of a critic or of implicit Q-learning. value_after_N: a critic's value of the
    state behind the row's last token.
    q_KNT: Q_k(s_t, x_t) of K heads. logq_KNT: log softmax(Q_k(s_t, .)) at x_t.
    target_q_NT: the least of the K target networks at x_t, without a gradient.
    score_NT, score_NTC: a scorer's output at every completion token, of C classes.
    logit_N: a discriminator's log D / (1 - D) of the whole row.
    hidden_NLD: the last hidden states of the policy's body, at every position.
    """

    logp_NT: Tensor | None = None
    entropy_NT: Tensor | None = None
    value_NT: Tensor | None = None
    value_after_N: Tensor | None = None
    q_KNT: Tensor | None = None
    logq_KNT: Tensor | None = None
    target_q_NT: Tensor | None = None
    score_NT: Tensor | None = None
    score_NTC: Tensor | None = None
    logit_N: Tensor | None = None
    hidden_NLD: Tensor | None = None

    def tensors(self, names: Iterable[str]) -> tuple[Tensor, ...]:
        """The fields of these names, in this order; one that was not computed is an error."""
        found: list[Tensor] = []
        for name in names:
            tensor = getattr(self, name)
            if tensor is None:
                raise ValueError(f"{name} was not asked of this model")
            found.append(tensor)
        return tuple(found)

    def joined(self, other: Outputs) -> Outputs:
        """These outputs and those of another model for the same batch."""
        added = {item.name: getattr(other, item.name) for item in fields(other)}
        return replace(self, **{name: x for name, x in added.items() if x is not None})


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
