"""Writes a model's files tensor by tensor, merging adapters, without a second copy of the model."""

from __future__ import annotations

import copy
import json
import math
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
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
"""The names of number types in safetensors files."""
SHARD = 5_000_000_000
"""Bytes of one file: larger models are several files and an index."""
AT_ONCE = 1 << 20
"""Numbers that are worked on at once."""
LAYER = re.compile(r"^.*?\.\d+(?=\.)")


@dataclass(frozen=True)
class Piece:
    """A tensor of the finished model, made when it is asked for by `rows(start, stop)`.

    `same`: a key that is equal for all names of one tensor.
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
    """Every tensor of a model by its name without adapters, which are merged into its weights."""
    # peft's attributes are in no type
    wrapper: Any = module
    if hasattr(wrapper, "peft_config") and hasattr(wrapper, "get_base_model"):
        return pieces_of(wrapper.get_base_model(), prefix)
    # a module that is trained whole, next to adapters
    if hasattr(wrapper, "modules_to_save"):
        return pieces_of(wrapper.modules_to_save[wrapper.active_adapters[0]], prefix)
    if hasattr(wrapper, "token_adapter"):
        wrapper = wrapper.token_adapter
    if hasattr(wrapper, "get_base_layer"):
        return adapted_tensors(wrapper, prefix)
    found = own_tensors(wrapper, prefix)
    for name, child in wrapper.named_children():
        found |= pieces_of(child, f"{prefix}{name}.")
    return found


def own_tensors(module: Any, prefix: str) -> dict[str, Piece]:
    """The tensors that a module holds itself, as its state dict names them."""
    tensors: list[tuple[str, Tensor]] = list(module.named_parameters(recurse=False))
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            tensors.append((name, buffer))
    return {prefix + name: unchanged(tensor.detach()) for name, tensor in tensors}


def unchanged(tensor: Tensor) -> Piece:
    """A tensor that is written as it is in memory."""

    def rows(start: int, stop: int) -> Tensor:
        return tensor[start:stop] if tensor.ndim else tensor

    same = (tensor.device, tensor.data_ptr(), tensor.shape) if tensor.numel() else None
    return Piece(tuple(tensor.shape), tensor.dtype, rows, same)


def adapted_tensors(layer: Any, prefix: str) -> dict[str, Piece]:
    """The tensors of a module under adapters: as peft merges them, large plain ones by rows."""
    found = dict[str, Piece]()
    for name, piece in pieces_of(layer.get_base_layer(), prefix).items():
        own_name = name.removeprefix(prefix)
        rows = None
        if own_name == "weight" and math.prod(piece.shape) > AT_ONCE:
            rows = merged_by_rows(layer)
        if rows is None:
            rows = merged_by_peft(layer, own_name)
        found[name] = Piece(piece.shape, piece.dtype, rows, tensor_key(layer, piece))
    return found


def tensor_key(layer: Any, piece: Piece) -> Any:
    """The key of a changed tensor among the names of one tensor; None where there is one name.

    peft trains single tokens of an embedding and of the head tied to it together.
    """
    owner = getattr(layer, "tied_adapter", None) or layer
    changed = getattr(owner, "trainable_tokens_delta", None)
    return None if changed is None else (piece.same, id(changed))


def merged_by_peft(layer: Any, name: str) -> Callable[[int, int], Tensor]:
    """Rows of a module's tensor, read while peft has its adapters merged."""

    def rows(start: int, stop: int) -> Tensor:
        with merged_while_open(layer) as base:
            if name in dict(base.named_parameters()):
                tensor = base.get_parameter(name)
            else:
                tensor = base.get_buffer(name)
            return tensor.detach()[start:stop] if tensor.ndim else tensor.detach()

    return rows


@contextmanager
def merged_while_open(layer: Any) -> Generator[Any]:
    """Merges the adapters of a module, and yields the module under them.

    Afterwards its own weights are back, bit by bit.
    """
    base = layer.get_base_layer()
    # adapters on several parameters of one module are wrappers around each other
    layers = [layer]
    while hasattr(layers[-1].base_layer, "get_base_layer"):
        layers.append(layers[-1].base_layer)
    kept: dict[Any, Tensor] = {parameter: parameter.data for parameter in base.parameters()}
    try:
        for one in layers:
            # safe: into a copy
            one.merge(safe_merge=True)
        yield base
    finally:
        for parameter, data in kept.items():
            parameter.data = data
        for one in layers:
            one.merged_adapters.clear()


def merged_by_rows(layer: Any) -> Callable[[int, int], Tensor] | None:
    """Rows of the merged weight of plain LoRA on a linear layer or an embedding, else None."""
    base = layer.get_base_layer()
    active: list[str] = list(getattr(layer, "active_adapters", ()))
    plain = not getattr(layer, "lora_variant", None) and not hasattr(layer, "parameter_name")
    if not plain or layer.merged or getattr(layer, "fan_in_fan_out", False):
        return None
    if not isinstance(base, nn.Linear | nn.Embedding):
        return None

    def rows(start: int, stop: int) -> Tensor:
        weight = base.weight.detach()[start:stop].clone()
        for name in active:
            if name in layer.lora_A:
                a = layer.lora_A[name].weight.detach()
                b = layer.lora_B[name].weight.detach()
                change = b[start:stop] @ a
            elif name in layer.lora_embedding_A:
                a = layer.lora_embedding_A[name].detach()
                b = layer.lora_embedding_B[name].detach()
                # an embedding's weight is (B A)': a row of it is a column of A
                change = (b @ a[:, start:stop]).T
            else:
                continue
            weight += change * layer.scaling[name]
        return weight

    return rows


def head_name(model: Any) -> str:
    """The name of the weight of a language model's output head."""
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
    """Write a transformers model, its adapters merged, without another copy of it in memory.

    The files are those of `save_pretrained`. dtype: the precision of the files; None: as in memory.
    replaced: tensors that are to take the place of the model's own. What is written is read back
    and compared, tensor by tensor.
    """
    pieces = pieces_of(model) | dict(replaced or {})
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        pieces.pop(name, None)
    pieces = first_names(pieces)
    write_configs(model, folder, dtype, pieces)
    write_pieces(original_layout(model, pieces), folder, dtype)


def first_names(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """The pieces, each tensor once under the first of its names."""
    known = set[Any]()
    found = dict[str, Piece]()
    for name, piece in pieces.items():
        if piece.same is None or piece.same not in known:
            found[name] = piece
            known.add(piece.same)
    return found


def write_configs(
    model: Any, folder: Path, dtype: torch.dtype | None, pieces: Mapping[str, Piece]
) -> None:
    """Write config.json and generation_config.json.

    A head that is a tensor of its own among `pieces` is noted as not tied to the embedding.
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


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def as_in_files(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model as the files of its family name and divide them, by transformers."""
    from transformers import core_model_loading

    library: Any = core_model_loading
    return library.revert_weight_conversion(model, dict(tensors))


def original_layout(model: Any, pieces: dict[str, Piece]) -> dict[str, Piece]:
    """The pieces as the files of such models name and divide them, converted a layer at a time.

    transformers fuses experts, say.
    """
    hollow = {
        name: torch.empty(piece.shape, dtype=piece.dtype, device="meta")
        for name, piece in pieces.items()
    }
    named = as_in_files(model, hollow)
    if shapes_of(named) == shapes_of(hollow):
        return pieces
    groups: dict[str, list[str]] = {}
    for name in pieces:
        layer = LAYER.match(name)
        groups.setdefault(layer[0] if layer else name, []).append(name)
    by_layer = convert_pieces(model, pieces, groups, hollow)
    if by_layer.keys() == named.keys():
        return by_layer
    # some tensor is made of several layers: convert all together
    return convert_pieces(model, pieces, {"": list(pieces)}, hollow)


def convert_pieces(
    model: Any,
    pieces: Mapping[str, Piece],
    groups: Mapping[str, list[str]],
    hollow: Mapping[str, Tensor],
) -> dict[str, Piece]:
    """The pieces that those of each group become together.

    Only the group that was asked for last stays in memory.
    """
    last: dict[str, dict[str, Tensor]] = {}

    def rows_of(group: str, name: str) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            if group not in last:
                last.clear()
                tensors = {one: whole_tensor(pieces[one]) for one in groups[group]}
                last[group] = as_in_files(model, tensors)
            tensor = last[group][name]
            return tensor[start:stop] if tensor.ndim else tensor

        return rows

    found: dict[str, Piece] = {}
    for group, names in groups.items():
        named = as_in_files(model, {one: hollow[one] for one in names})
        for name, tensor in named.items():
            found[name] = Piece(tuple(tensor.shape), tensor.dtype, rows_of(group, name))
    return found


def whole_tensor(piece: Piece) -> Tensor:
    """A piece as one tensor."""
    chunks = list(piece.chunks())
    return torch.cat(chunks) if piece.shape else chunks[0]


def write_pieces(pieces: Mapping[str, Piece], folder: Path, dtype: torch.dtype | None) -> None:
    """`model.safetensors`, or several files of at most SHARD bytes and their index."""
    shards = [dict[str, Piece]()]
    size = 0
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
    """Write one safetensors file, and compare what is read back with what was written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes = dict[str, int]()
    end = 0
    for name, piece in pieces.items():
        sizes[name] = size_of(piece, dtype)
        start = end
        end += sizes[name]
        header[name] = {
            "dtype": NAMES[kind_of(piece, dtype)],
            "shape": list(piece.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    # the format wants the tensors to begin at a multiple of 8
    text += b" " * (-len(text) % 8)
    sums: dict[str, int] = {}
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, piece in pieces.items():
            sums[name] = 0
            for rows in piece.chunks():
                on_cpu = rows.to("cpu", kind_of(piece, dtype))
                data = on_cpu.contiguous().flatten().view(torch.uint8).numpy().data
                sums[name] = zlib.crc32(data, sums[name])
                stream.write(data)
    check_written(file, 8 + len(text), sizes, sums)


def check_written(
    file: Path, start: int, sizes: Mapping[str, int], sums: Mapping[str, int]
) -> None:
    """OSError for a tensor that is read back otherwise than it was written.

    start: where the first tensor begins. sizes, sums: bytes and CRC-32 of each tensor, in order.
    """
    with open(file, "rb") as stream:
        stream.seek(start)
        for name, size in sizes.items():
            left = size
            found = 0
            while left and (data := stream.read(min(left, 1 << 24))):
                left -= len(data)
                found = zlib.crc32(data, found)
            if left or found != sums[name]:
                raise OSError(5, f"{name} was written, and is read back otherwise", str(file))
