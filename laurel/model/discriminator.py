"""The discriminator: a body of its own that reads a prompt and a whole completion and says how much
it looks like a demonstration.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laurel.core.sample import Batch, Outputs
from laurel.model.critic import Critic, own_critic
from laurel.model.policy import Policy


@dataclass
class Discriminator:
    """One logit per row. `reader` is a body and a head as a critic has them; `rate`: its learning
    rate as a multiple of the policy's.
    """

    reader: Critic
    rate: float = 1.0
    computes = frozenset({"logit_N"})
    shares_body = False

    @property
    def model(self) -> nn.Module:
        """What it adds to memory."""
        return self.reader.model

    def logits(self, batch: Batch) -> Tensor:
        """log D/(1 - D), D = P(demonstration), read behind the last token of the completion: [N]
        float32 (float64 of such a model).

        The whole completion is judged, whatever is trained on, so masks do not enter.
        """
        every_N = torch.arange(len(batch), device=batch.start_N.device)
        return self.reader.head(
            self.reader.hidden(batch)[every_N, batch.start_N + batch.length_N - 1]
        )

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs:
        """logit_N, from the discriminator's own body."""
        return Outputs(logit_N=self.logits(batch))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what is trained; every name starts with `discriminator.`."""
        return {
            f"discriminator.{name}": p
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def followers(self) -> dict[str, nn.Parameter]:
        """Nothing follows a discriminator."""
        return {}

    def follow(self) -> None:
        """Nothing to do after an optimiser step."""


def make_discriminator(policy: Policy, *, rate: float = 1.0) -> Discriminator:
    """A copy of the policy's body under a head that is zero: D = 1/2 of everything at the start. Of
    a LoRA policy, its adapters learn.
    """
    return Discriminator(own_critic(policy), rate)
