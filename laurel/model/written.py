"""A model's files, written tensor by tensor: adapters are merged a module at a time, and no second
copy of the model is held.
"""

from __future__ import annotations

import copy
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a safetensors file calls a type of numbers."""
SHARD = 5_000_000_000
"""Bytes of one file: larger models are several files and an index."""
AT_ONCE = 1 << 20
"""Numbers that are worked on at once."""
LAYER = re.compile(r"^.*?\.\d+(?=\.)")


@dataclass(frozen=True)
class Piece:
    """A tensor of the finished model that is made when it is asked for: `rows(start, stop)`.
    `same`: what it is one tensor with.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    same: Any = None

    def chunks(self) -> Iterator[Tensor]:
        """The whole tensor, a few rows at a time."""
        height = self.shape[0] if self.shape else 1
        step = max(1, AT_ONCE * height // max(math.prod(self.shape), 1))
        for start in range(0, height, step):
            yield self.rows(start, min(start + step, height))


def pieces_of(module: nn.Module, prefix: str = "") -> dict[str, Piece]:
    """Every tensor of a model by its name without adapters, which are merged into what they belong
    to.
    """
    if hasattr(module, "peft_config") and hasattr(module, "get_base_model"):
        return pieces_of(module.get_base_model(), prefix)
    if hasattr(module, "modules_to_save"):  # a module trained whole beside adapters
        return pieces_of(module.modules_to_save[module.active_adapters[0]], prefix)
    if hasattr(module, "token_adapter"):
        module = module.token_adapter
    if hasattr(module, "get_base_layer"):
        return adapted(module, prefix)
    found = own(module, prefix)
    for name, child in module.named_children():
        found |= pieces_of(child, f"{prefix}{name}.")
    return found


def own(module: nn.Module, prefix: str) -> dict[str, Piece]:
    """The tensors that a module holds itself, as its state dict names them."""
    kept = [
        (n, b)
        for n, b in module.named_buffers(recurse=False)
        if n not in module._non_persistent_buffers_set
    ]
    tensors = [*module.named_parameters(recurse=False), *kept]
    return {prefix + name: as_it_is(tensor.detach()) for name, tensor in tensors}


def as_it_is(tensor: Tensor) -> Piece:
    """A tensor that is there already."""

    def rows(start: int, stop: int) -> Tensor:
        return tensor[start:stop] if tensor.ndim else tensor

    same = (tensor.device, tensor.data_ptr(), tensor.shape) if tensor.numel() else None
    return Piece(tuple(tensor.shape), tensor.dtype, rows, same)


def adapted(layer: Any, prefix: str) -> dict[str, Piece]:
    """The tensors of a module under adapters: as peft merges them, large plain ones by rows."""
    base, found = layer.get_base_layer(), dict[str, Piece]()
    for name, piece in pieces_of(base, prefix).items():
        own_name = name.removeprefix(prefix)
        rows = by_rows(layer) if own_name == "weight" and math.prod(piece.shape) > AT_ONCE else None
        found[name] = Piece(
            piece.shape, piece.dtype, rows or through(layer, own_name), together(layer, piece)
        )
    return found


def together(layer: Any, piece: Piece) -> Any:
    """What a changed tensor is one with: peft trains single tokens of an embedding and of the head
    tied to it together.
    """
    changed = getattr(getattr(layer, "tied_adapter", None) or layer, "trainable_tokens_delta", None)
    return None if changed is None else (piece.same, id(changed))


def through(layer: Any, name: str) -> Callable[[int, int], Tensor]:
    """Rows of a module's tensor while its adapters are merged, by peft."""

    def rows(start: int, stop: int) -> Tensor:
        with merging(layer) as base:
            tensor = (
                base.get_parameter(name)
                if name in dict(base.named_parameters())
                else base.get_buffer(name)
            )
            return tensor.detach()[start:stop] if tensor.ndim else tensor.detach()

    return rows


@contextmanager
def merging(layer: Any) -> Iterator[Any]:
    """The module under adapters with them in its weights; afterwards its own weights are back, bit
    by bit.
    """
    base, layers = layer.get_base_layer(), [layer]
    while hasattr(
        inner := layers[-1].base_layer, "get_base_layer"
    ):  # several parameters of one module, one wrapper around another
        layers.append(inner)
    kept = {parameter: parameter.data for parameter in base.parameters()}
    try:
        for one in layers:
            one.merge(safe_merge=True)  # safe: into a copy
        yield base
    finally:
        for parameter, data in kept.items():
            parameter.data = data
        for one in layers:
            one.merged_adapters.clear()


def by_rows(layer: Any) -> Callable[[int, int], Tensor] | None:
    """The merged weight of plain LoRA on a linear layer or an embedding, some rows of it at a time;
    None of anything else.
    """
    base, active = layer.get_base_layer(), list(getattr(layer, "active_adapters", ()))
    plain = not getattr(layer, "lora_variant", None) and not hasattr(layer, "parameter_name")
    if (
        not plain
        or layer.merged
        or not isinstance(base, nn.Linear | nn.Embedding)
        or getattr(layer, "fan_in_fan_out", False)
    ):
        return None

    def rows(start: int, stop: int) -> Tensor:
        weight = base.weight.detach()[start:stop].clone()
        for name in active:
            if name in layer.lora_A:
                change = (
                    layer.lora_B[name].weight.detach()[start:stop]
                    @ layer.lora_A[name].weight.detach()
                )
            elif name in layer.lora_embedding_A:
                change = (
                    layer.lora_embedding_B[name].detach()
                    @ layer.lora_embedding_A[name].detach()[:, start:stop]
                ).T
            else:
                continue
            weight += change * layer.scaling[name]
        return weight

    return rows


def head_name(model: Any) -> str:
    """How a language model calls the weight of its output head."""
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


@torch.no_grad()
def write_model(
    model: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    replaced: Mapping[str, Piece] | None = None,
) -> None:
    """Write a transformers model (with adapters: merged) as `save_pretrained` does, without another
    copy of it in memory.

    dtype: the precision of the files; None: as in memory. replaced: tensors that are to take the
    place of the model's own. What is written is read back and compared, tensor by tensor.
    """
    pieces = pieces_of(model) | dict(replaced or {})
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        pieces.pop(name, None)
    pieces = once(pieces)
    write_configs(model, folder, dtype, pieces)
    write_pieces(reverted(model, pieces), folder, dtype)


def once(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Of names for one tensor the first."""
    seen, found = set[Any](), dict[str, Piece]()
    for name, piece in pieces.items():
        if piece.same is None or piece.same not in seen:
            found[name] = piece
            seen.add(piece.same)
    return found


def write_configs(
    model: Any, folder: Path, dtype: torch.dtype | None, pieces: Mapping[str, Piece]
) -> None:
    """config.json and generation_config.json. A head that is written beside the embedding is not
    called tied to it.
    """
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    if model.get_output_embeddings() is not None and head_name(model) in pieces:
        for one in (config, config.get_text_config()):
            one.tie_word_embeddings = False
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def reverted(model: Any, pieces: dict[str, Piece]) -> dict[str, Piece]:
    """The tensors as the files of such models name and divide them (transformers fuses experts,
    say), a layer at a time.
    """
    from transformers.core_model_loading import revert_weight_conversion

    hollow = {
        name: torch.empty(piece.shape, dtype=piece.dtype, device="meta")
        for name, piece in pieces.items()
    }
    named = revert_weight_conversion(model, dict(hollow))
    if {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in hollow.items()
    }:
        return pieces
    groups: dict[str, list[str]] = {}
    for name in pieces:
        layer = LAYER.match(name)
        groups.setdefault(layer[0] if layer else name, []).append(name)
    by_layer = converted(model, pieces, groups, hollow)
    return (
        by_layer
        if by_layer.keys() == named.keys()
        else converted(model, pieces, {"": list(pieces)}, hollow)
    )


def converted(
    model: Any,
    pieces: Mapping[str, Piece],
    groups: Mapping[str, list[str]],
    hollow: Mapping[str, Tensor],
) -> dict[str, Piece]:
    """The tensors that those of each group become together. Only the group that was asked for last
    is held.
    """
    from transformers.core_model_loading import revert_weight_conversion

    held: dict[str, dict[str, Tensor]] = {}

    def rows_of(group: str, name: str) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            if group not in held:
                held.clear()
                held[group] = revert_weight_conversion(
                    model, {one: whole(pieces[one]) for one in groups[group]}
                )
            tensor = held[group][name]
            return tensor[start:stop] if tensor.ndim else tensor

        return rows

    found: dict[str, Piece] = {}
    for group, names in groups.items():
        for name, tensor in revert_weight_conversion(
            model, {one: hollow[one] for one in names}
        ).items():
            found[name] = Piece(tuple(tensor.shape), tensor.dtype, rows_of(group, name))
    return found


def whole(piece: Piece) -> Tensor:
    """All rows together."""
    chunks = list(piece.chunks())
    return torch.cat(chunks) if piece.shape else chunks[0]


def write_pieces(pieces: Mapping[str, Piece], folder: Path, dtype: torch.dtype | None) -> None:
    """`model.safetensors`, or several files of at most SHARD bytes and their index."""
    shards, size = [dict[str, Piece]()], 0
    for name, piece in pieces.items():
        bytes_ = size_of(piece, dtype)
        if shards[-1] and size + bytes_ > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = piece
        size += bytes_
    if len(shards) == 1:
        return write_file(shards[0], folder / "model.safetensors", dtype)
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(shard, folder / file, dtype)
        place |= dict.fromkeys(shard, file)
    numbers = sum(math.prod(piece.shape) for piece in pieces.values())
    metadata = {
        "total_parameters": numbers,
        "total_size": sum(size_of(piece, dtype) for piece in pieces.values()),
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(place.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def kind_of(piece: Piece, dtype: torch.dtype | None) -> torch.dtype:
    """The type of numbers that a tensor is written as."""
    return dtype if dtype is not None and piece.dtype.is_floating_point else piece.dtype


def size_of(piece: Piece, dtype: torch.dtype | None) -> int:
    """Bytes of a tensor in its file."""
    return math.prod(piece.shape) * kind_of(piece, dtype).itemsize


def write_file(pieces: Mapping[str, Piece], file: Path, dtype: torch.dtype | None) -> None:
    """One safetensors file, and a comparison of what the disk gives back with what was written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, piece in pieces.items():
        start, end = end, end + size_of(piece, dtype)
        header[name] = {
            "dtype": NAMES[kind_of(piece, dtype)],
            "shape": list(piece.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format asks for it
    sums: dict[str, int] = {}
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, piece in pieces.items():
            sums[name] = 0
            for rows in piece.chunks():
                data = (
                    rows.to("cpu", kind_of(piece, dtype))
                    .contiguous()
                    .flatten()
                    .view(torch.uint8)
                    .numpy()
                    .data
                )
                sums[name] = zlib.crc32(data, sums[name])
                stream.write(data)
    read_again(
        file,
        8 + len(text),
        {name: entry["data_offsets"] for name, entry in header.items() if name in sums},
        sums,
    )


def read_again(
    file: Path, start: int, places: Mapping[str, list[int]], sums: Mapping[str, int]
) -> None:
    """OSError for a tensor that the disk gives back otherwise than it was written."""
    with open(file, "rb") as stream:
        stream.seek(start)
        for name, (first, last) in places.items():
            left, found = last - first, 0
            while left and (data := stream.read(min(left, 1 << 24))):
                left, found = left - len(data), zlib.crc32(data, found)
            if left or found != sums[name]:
                raise OSError(5, f"{name} was written, and is read back otherwise", str(file))
