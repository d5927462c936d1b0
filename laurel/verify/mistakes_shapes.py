"""Planted mistakes that show only with chunks of logits, unlike rows, or a critic that moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.sample import Batch
from laurel.fast import logprob, packed
from laurel.model import critic as values
from laurel.model import policy as model
from laurel.objective import value
from laurel.train import values as values_of_step
from laurel.verify.mistakes_loop import by_position
from laurel.verify.mutants import (
    Function,
    Mutant,
    changed_arguments,
    changed_columns,
    changed_record,
    changed_result,
    replaced_by,
    swap_attribute,
    with_replaced,
)


def chunks_in_reverse(record: bool) -> Function:
    """`in_chunks` with its parts in reverse order, where gradients are recorded, or where not."""

    def mistake(right: Function) -> Function:
        def wrong(*args: Any) -> list[Any]:
            parts = right(*args)
            return parts[::-1] if torch.is_grad_enabled() == record else parts

        return wrong

    return mistake


def without_bias(head: Any) -> Any:
    """A linear layer's product alone."""
    if type(head) is not nn.Linear or head.bias is None:
        return head
    return lambda hidden: hidden @ head.weight.T


def own_head(right: Function) -> Function:
    """`Policy.kl` whose reference has the policy's head."""

    def wrong(self: Any, batch: Batch, reference: Any) -> Tensor:
        with swap_attribute(reference, "head", self.head):
            return right(self, batch, reference)

    return wrong


def only_from_above(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """In `clamp`'s place."""
    return torch.minimum(x, high)


def all_inside(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`inside`'s answer, that every token is among these words."""
    return torch.ones_like(found[0]), found[1]


def at_the_token(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """In `trained_positions`' place: where the token itself is."""
    rows, times, at = model.trained_positions(batch)
    return rows, times, at + 1


def in_order_of_keys(part: Batch) -> Batch:
    """A batch whose keys are sorted, and nothing else."""
    return part.replace(keys=tuple(sorted(part.keys)))


READOUT: Any = vars(model.Policy)["readout"].fget


def critic_clipped_around_return(batch: Batch) -> Batch:
    """The critic's old values are the returns."""
    found: Any = batch.values
    return batch.replace(values=replace(found, value_NT=found.return_NT))


MOVED = "ppo: the critic one step off, defaults"
BARE = "transformer: linear head: log pi without a gradient"

SHAPES = (
    Mutant(
        "without a gradient, chunks come in reverse order",
        logprob.in_chunks,
        chunks_in_reverse(record=False),
        "shapes",
        "transformer: head with a bias: log pi without a gradient",
    ),
    Mutant(
        "with a gradient, chunks come in reverse order",
        logprob.in_chunks,
        chunks_in_reverse(record=True),
        "shapes",
        "transformer: head with a bias: log pi",
    ),
    Mutant(
        "every token is looked for in every tile of the vocabulary",
        logprob.ids_in_slice,
        changed_result(all_inside),
        "shapes",
        BARE,
    ),
    Mutant(
        "tiles of the vocabulary are joined with the entropy of the first",
        logprob.merge_stats,
        lambda right: lambda one, other: right(one, other)._replace(entropy=one.entropy),
        "shapes",
        "transformer: linear head: entropy to look at",
    ),
    Mutant(
        "the gradient of the last tile of logits replaces the sum",
        logprob.add_product,
        lambda right: lambda into, a, b, begun: right(into, a, b, False),
        "shapes",
        "transformer: linear head: gradient of log pi",
    ),
    Mutant(
        "the head's bias is forgotten",
        logprob.chunked_logprobs,
        changed_arguments(head=without_bias),
        "shapes",
        "transformer: head with a bias: log pi without a gradient",
    ),
    Mutant(
        "the cap of the logits is forgotten",
        READOUT,
        replaced_by(lambda self: self.causal.get_output_embeddings()),
        "shapes",
        "transformer: capped logits: log pi without a gradient",
    ),
    Mutant(
        "every row is cooled like the first",
        model.Policy.logp,
        changed_columns(temperature_N=lambda t: t[:1].expand_as(t)),
        "shapes",
        BARE,
    ),
    Mutant(
        "the exact KL cools every row like the first",
        model.Policy.kl,
        changed_columns(temperature_N=lambda t: t[:1].expand_as(t)),
        "shapes",
        "transformer: linear head: exact KL without a gradient",
    ),
    Mutant(
        "the exact KL is taken to the policy's own head",
        model.Policy.kl,
        own_head,
        "shapes",
        "transformer: linear head: exact KL without a gradient",
    ),
    Mutant(
        "the entropy that is rewarded takes no gradient",
        logprob.token_logprobs,
        changed_result(
            lambda stats: stats._replace(
                entropy=None if stats.entropy is None else stats.entropy.detach()
            )
        ),
        "steps",
        "rloo: one step, entropy_coef=0.2",
    ),
    Mutant(
        "a shared prompt is known by its length",
        packed.prompt_rows,
        changed_arguments(ids_NL=torch.zeros_like),
        "shapes",
        BARE,
    ),
    Mutant(
        "rows that are taken out keep the names of others",
        Batch.rows,
        changed_result(in_order_of_keys),
        "shapes",
        "transformer: micro-batches of 17, padded: log pi and V by key",
    ),
    Mutant(
        "a value has seen its token",
        values.Critic.forward,
        with_replaced(values, "trained_positions", at_the_token),
        "shapes",
        "transformer: micro-batches of 17, padded: log pi and V by key",
    ),
    Mutant(
        "the critic's values join by position, not by key",
        values_of_step.critic_values,
        by_position,
        "steps",
        MOVED,
    ),
    Mutant(
        "the critic's pessimistic maximum becomes a minimum",
        value.value_loss,
        with_replaced(torch, "maximum", torch.minimum),
        "steps",
        MOVED,
    ),
    Mutant(
        "the critic is never clipped",
        value.squares,
        changed_arguments(cliprange_value=lambda _: 0.0),
        "steps",
        MOVED,
    ),
    Mutant(
        "the critic is clipped around the return",
        value.squares,
        lambda right: lambda v, batch, c: right(v, critic_clipped_around_return(batch), c),
        "steps",
        MOVED,
    ),
    Mutant(
        "the critic is clipped around 0",
        value.squares,
        changed_record("values", value_NT=torch.zeros_like),
        "steps",
        MOVED,
    ),
    Mutant(
        "the critic is clipped from above only",
        value.squares,
        with_replaced(Tensor, "clamp", only_from_above),
        "steps",
        MOVED,
    ),
)
"""In chunks, packed rows, micro-batches and a critic that moves."""
