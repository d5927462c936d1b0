"""Bytes that a forward pass keeps for the backward pass.

They are found by a pass over tensors that have shapes and no numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from laurel.core.errors import UsageError
from laurel.core.sample import Batch, Group, Key, Sample
from laurel.fast import kernels
from laurel.fast.packed import (
    EVEN,
    Layout,
    arrange_rows,
    can_encode,
    encode,
    hidden_states,
    without_peft,
)
from laurel.rollout.pack import pack

PROBES = (32, 64)
"""Tokens of the rows that are measured where nothing can be imagined."""
SHORT = (EVEN, 2 * EVEN, 3 * EVEN)
"""Tokens of rows to which a packed pass adds no padding."""


def activations(
    body: Any, batch: Batch, autocast: Callable[[], Any], weights: Sequence[Tensor]
) -> int:
    """Bytes that training keeps of a body's pass over a micro-batch.

    They follow from shapes; where a family of models does not allow that, they are measured on two
    rows.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    loud, logger.disabled = logger.disabled, True
    try:
        return activation_bytes(body, batch, autocast, weights)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        if isinstance(weights[0], FakeTensor):
            what = (
                "what its layers keep cannot be told from its configuration"
                f" ({type(error).__name__} in {type(without_peft(body)).__name__})."
            )
            raise UsageError(
                what, where="model", fix="`laurel train` measures it before its first step."
            ) from error
    finally:
        logger.disabled = loud
    few, many = (measure_pass_bytes(body, count, autocast, weights) for count in PROBES)
    each = (many - few) / (PROBES[1] - PROBES[0])
    return int(few + each * (count_computed_tokens(batch, packed=can_encode(body)) - PROBES[0]))


def weight_copies(body: Any, autocast: Callable[[], Any], weights: Sequence[Tensor]) -> int:
    """The part of `activations` that does not depend on tokens.

    These are copies of weights that autocast makes for products, which wait for their gradients.
    """
    one, two, three = (activations(body, one_row(count), autocast, weights) for count in SHORT)
    # what n tokens keep is a + b n + c n^2, with masks of n by n: this is a
    return max(0, 3 * one - 3 * two + three)


def one_row(count: int) -> Batch:
    """A row of so many tokens, all but the first of them trained on."""
    ids = (1,) * (count - 1)
    sample = Sample(
        Key("memory", "", "probe", 0, 0),
        (1,),
        ids,
        (0.0,) * len(ids),
        (True,) * len(ids),
        1.0,
        "length",
        "",
        (),
    )
    return pack([Group("probe", {}, (sample,), rewards=(1.0,))])


def measure_pass_bytes(
    body: Any, count: int, autocast: Callable[[], Any], weights: Sequence[Tensor]
) -> int:
    """Bytes that a pass over one row of so many tokens keeps."""
    ids = torch.ones(1, count, dtype=torch.long, device=weights[0].device)
    with torch.enable_grad(), autocast():
        return autograd_bytes(
            lambda: hidden_states(body, ids, torch.ones_like(ids, dtype=torch.bool)), weights
        )


def activation_bytes(
    body: Any, batch: Batch, autocast: Callable[[], Any], weights: Sequence[Tensor]
) -> int:
    """Bytes that one forward pass of a body over a batch keeps, by shapes alone.

    Weights are left out, copies of weights in another precision counted. The weights may be real,
    or imagined themselves: nothing is computed, and nothing is written to. Of layers whose
    activations are computed twice, their inputs are kept, and the activations of one of them.
    """
    every: Sequence[Any] = weights
    mode = next((w.fake_mode for w in every if hasattr(w, "fake_mode")), None) or FakeTensorMode(
        allow_non_fake_inputs=True
    )
    layers = recomputed_layers(body)
    for layer in layers:
        layer.gradient_checkpointing = False
    layout = (
        arrange_rows(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N)
        if can_encode(body)
        else None
    )
    # what the pass will have in the weights' place
    shapes = [w if hasattr(w, "fake_mode") else mode.from_tensor(w) for w in weights]
    try:
        with torch.enable_grad(), mode, autocast(), kernels.skip_calls():
            whole = autograd_bytes(
                lambda: forward(body, layout or batch.ids_NL, mode), [*weights, *shapes]
            )
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
    if not layers:
        return whole
    tokens, width = count_computed_tokens(batch, packed=True), body_width(body)
    return whole // len(layers) + len(layers) * tokens * width * 4


def recomputed_layers(body: Any) -> list[Any]:
    """The layers of a body that laurel's own pass computes twice."""
    return (
        [
            layer
            for layer in without_peft(body).layers
            if getattr(layer, "gradient_checkpointing", False)
        ]
        if can_encode(body)
        else []
    )


def body_width(body: Any) -> int:
    """Numbers of a hidden state."""
    return body.get_input_embeddings().weight.shape[1]


def count_computed_tokens(batch: Batch, *, packed: bool) -> int:
    """Tokens that a pass over a batch computes.

    A packed batch computes shared prompts once and no padding, another the whole rectangle.
    """
    if not packed:
        return batch.ids_NL.numel()
    return len(arrange_rows(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N).ids_M)


def forward(body: Any, real: Layout | Tensor, mode: Any) -> Tensor:
    """The pass that training takes, over imagined ids: packed ones, or rows as they are."""
    layout = map_tensors(real, mode, next(body.parameters()).device)
    if isinstance(layout, Tensor):
        return body(input_ids=layout, use_cache=False).last_hidden_state
    return torch.nn.functional.embedding(layout.place_NL, encode(without_peft(body), layout))


def map_tensors(value: Any, mode: Any, place: torch.device) -> Any:
    """The same, with an imagined tensor in the place of each: of a tensor, a tuple, a dataclass."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value).to(place)
    if isinstance(value, tuple):
        return tuple(map_tensors(one, mode, place) for one in cast("tuple[Any, ...]", value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value,
            **{
                one.name: map_tensors(getattr(value, one.name), mode, place)
                for one in fields(value)
            },
        )
    return value


def autograd_bytes(compute: Any, weights: Sequence[Tensor]) -> int:
    """Bytes of all storages that autograd keeps during a call, but for those of weights."""
    mine = {storage_id(weight.untyped_storage()) for weight in weights}
    kept = dict[int, int]()
    alive = list[Any]()  # so that no storage gives its place to another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage_id(storage) not in mine:
            kept[storage_id(storage)] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(compute())
    return sum(kept.values())


def storage_id(storage: Any) -> int:
    """The number by which torch knows a storage, of tensors without numbers, too."""
    return storage._cdata


@contextmanager
def training_mode(model: Any, train: bool) -> Generator[None]:
    """Modes as they are while a model is trained; afterwards it is in evaluation mode."""
    model.train(train)
    try:
        yield
    finally:
        model.eval()
