"""The critic: a value of every state in which the policy chose a token.

It has a body of its own, or reads the policy's.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import UsageError
from laurel.core.sample import Batch, Outputs
from laurel.fast.logprob import upcast_logits
from laurel.fast.packed import hidden_states
from laurel.model.classifier import bias_of, head_of
from laurel.model.narrow import autocast_for, cast_weights, weight_dtype_of
from laurel.model.policy import Policy, trained_positions


@dataclass
class Critic:
    """Values per token.

    `model` is what belongs to the critic alone: a ModuleDict of `head`, and of `body` unless it
    reads the policy's (then the value loss moves the policy's body too).
    """

    model: nn.ModuleDict
    dtype: torch.dtype = torch.float32
    computes = frozenset({"value_NT", "value_after_N"})

    @property
    def shares_body(self) -> bool:
        """Are the policy's hidden states read?"""
        return "body" not in self.model

    @property
    def num_parameters(self) -> int:
        """Parameters that are not the policy's: what the critic adds to memory."""
        return sum(p.numel() for p in self.model.parameters())

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs:
        """value_NT and value_after_N, as far as they are wanted: float32 (float64 of such a model).

        A value is read at the position before its token, where its log-probability is read too, so
        it cannot see the token. The temperature of the sampler does not enter.
        """
        if not self.shares_body:
            hidden_NLD = self.hidden(batch)
        assert hidden_NLD is not None, "the policy's hidden states must be given"
        value_NT = value_after_N = None
        if "value_NT" in wanted:
            rows, times, at = trained_positions(batch)
            value_M = self.head(hidden_NLD[rows, at])
            shape = batch.loss_mask_NT.shape
            zeros_NT = torch.zeros(shape, device=value_M.device, dtype=value_M.dtype)
            value_NT = zeros_NT.index_put((rows, times), value_M)
        if "value_after_N" in wanted:
            # the state behind a row's last token is the hidden state at that token
            last_N = batch.start_N + batch.length_N - 1
            every_N = torch.arange(len(last_N), device=last_N.device)
            value_after_N = self.head(hidden_NLD[every_N, last_N])
        return Outputs(value_NT=value_NT, value_after_N=value_after_N)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> values [...], never in half precision.

        bfloat16 would have values to two or three digits.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.model["head"](upcast_logits(hidden)).squeeze(-1)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [N, L, D] of a right-padded batch, of the critic's own body."""
        assert not self.shares_body, "the policy's hidden states must be given"
        plain = self.dtype == torch.float32
        device = batch.ids_NL.device.type
        with nullcontext() if plain else torch.autocast(device, self.dtype):
            return hidden_states(
                self.model["body"], batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N
            )

    def trainable(self) -> dict[str, nn.Parameter]:
        """The critic's own trained parameters by name; every name starts with `critic.`."""
        return {f"critic.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}

    def followers(self) -> dict[str, nn.Parameter]:
        """Nothing follows a critic."""
        return {}

    def follow(self) -> None:
        """Nothing to do after an optimiser step."""

    def state_dict(self) -> dict[str, Tensor]:
        """The critic's own tensors, trained or frozen, under the names of `trainable`."""
        return {f"critic.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the weights of `state_dict` back; a name too many or too few is an error."""
        self.model.load_state_dict(
            {name.removeprefix("critic."): tensor for name, tensor in state.items()}, strict=True
        )


def own_critic(
    policy: Policy, scorer: nn.Module | None = None, *, mean: float = 0.0, std: float = 1.0
) -> Critic:
    """A critic with a body of its own: a copy of the policy's, or of a reward model's and its head.

    scorer: a Hugging Face model with one score per sequence or token. Without one the head is zero,
    so every value is exactly 0 at the start. mean, std: where the reward is (score - mean) / std,
    so are the values. A copy of the policy keeps what is frozen (a LoRA policy gives a LoRA
    critic), one of a scorer is trained whole, in the policy's precision; training it changes
    nothing else. Make it before the policy is trained, or restored from a checkpoint.
    """
    original = body_of(policy.causal if scorer is None else scorer)
    body = copy.deepcopy(original).to(policy.device).eval()
    if scorer is not None:
        body = cast_weights(body, weight_dtype_of(policy.causal)).requires_grad_(True)
    head = value_head(body, scorer, mean, std)
    return Critic(nn.ModuleDict({"body": body, "head": head}), policy.dtype)


def shared_critic(
    policy: Policy, scorer: nn.Module | None = None, *, mean: float = 0.0, std: float = 1.0
) -> Critic:
    """A critic that is a second head on the policy's own body.

    It takes hardly any memory, and both losses train one set of weights.

    scorer, mean, std: as of `own_critic`, but of the scorer the head alone is used; so its body
    must be the one that the policy has.
    """
    return Critic(
        nn.ModuleDict({"head": value_head(body_of(policy.causal), scorer, mean, std)}), policy.dtype
    )


def body_of(model: Any) -> nn.Module:
    """The transformer below the head of a Hugging Face model."""
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def value_head(
    body: nn.Module, scorer: nn.Module | None, mean: float = 0.0, std: float = 1.0
) -> nn.Linear:
    """A linear map from the body's hidden states to one value.

    It is zero, or (score - mean) / std of a scorer's head.
    """
    like = next(body.parameters())
    # nothing is computed on the meta device
    if like.device.type == "meta":
        config: Any = body.config
        width: int = config.get_text_config().hidden_size
    else:
        probe = torch.zeros(1, 1, dtype=torch.long, device=like.device)
        with autocast_for(body):
            width = body(input_ids=probe, use_cache=False).last_hidden_state.shape[-1]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    head = nn.Linear(width, 1, device=like.device, dtype=dtype)
    head.weight.zero_()
    head.bias.zero_()
    if scorer is not None:
        given = head_of(scorer)
        if given.weight.shape != head.weight.shape:
            what = (
                f"the reward model's head makes {given.out_features} of {given.in_features}"
                f" numbers, a critic's 1 of {width}."
            )
            raise UsageError(
                what,
                where="critic",
                fix="Use a reward model with one output, on a body of the same width.",
            )
        head.weight.copy_(given.weight / std)
        bias = bias_of(given)
        if bias is None:
            bias = torch.zeros_like(head.bias)
        head.bias.copy_(bias.sub(mean) / std)
    return head
