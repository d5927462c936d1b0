"""A saved folder, read back: as transformers loads it, with the weights of one module at a time in
memory.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.model.written import AT_ONCE, NAMES

KINDS = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int, last: int) -> Tensor:
        """Some rows of it."""
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        count = (last - first) * width if self.shape else self.dtype.itemsize
        data = np.fromfile(
            self.file, dtype=np.uint8, count=count, offset=self.start + first * width
        )
        return (
            torch.from_numpy(data)
            .view(self.dtype)
            .view((last - first, *self.shape[1:]) if self.shape else ())
        )


def places(folder: Path) -> dict[str, Place]:
    """Where each tensor of a folder lies."""
    found: dict[str, Place] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                where = 8 + size + entry["data_offsets"][0]
                found[name] = Place(file, KINDS[entry["dtype"]], tuple(entry["shape"]), where)
    return found


class ReadBack:
    """A model loaded by transformers from a folder that was just written; weights wait on the disk
    until their module runs.

    They are computed in float32 (float64 of such files). noise: every weight times 1 + noise or 1 -
    noise, by fixed dice.
    """

    def __init__(self, folder: Path, auto: Any, device: torch.device) -> None:
        self.load = lambda: auto.from_pretrained(folder, dtype="auto").eval()
        self.model, self.whole = self.load(), False
        self.device, self.dtype, self.noise = device, self.model.dtype, 0.0
        self.compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.held: dict[
            int, Tensor
        ] = {}  # weights that no file holds under their name: transformers put them together
        self.place: dict[int, Place] = {}
        self.names: dict[int, str] = {}
        there = places(folder)
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in there and there[name].shape == tuple(parameter.shape):
                self.place[id(parameter)] = there[name]
        for name, parameter in self.model.named_parameters():
            self.names[id(parameter)] = name
            if id(parameter) not in self.place:
                self.held[id(parameter)] = parameter.data
            parameter.data = torch.empty(0)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(device)
        for module in self.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                self.stream(module)

    def stream(self, module: nn.Module) -> None:
        """Let a module's weights come before it runs and go after it; of embeddings the rows that
        are asked for.
        """
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        if (
            isinstance(module, nn.Embedding) and plain
        ):  # others make ids of their own of what they are given
            module.padding_idx = None  # it would be held against the few rows that are there
            module.register_forward_pre_hook(self.embed)
        elif type(module) is nn.Linear:
            module.forward = lambda x: self.linear(module, x)
        else:
            module.register_forward_pre_hook(self.come)
        module.register_forward_hook(self.go)

    def come(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The weights of a module, whole."""
        for parameter in module.parameters(recurse=False):
            height = self.shape(parameter)[:1]
            parameter.data = self.rows(parameter, 0, *(height or (1,)))

    def embed(self, module: nn.Embedding, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The rows of an embedding that are asked for, and where among them each id lies."""
        ids, where = args[0].unique(return_inverse=True)
        module.weight.data = torch.cat([self.rows(module.weight, i, i + 1) for i in ids.tolist()])
        return (where, *args[1:])

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer, some rows of its weight at a time."""
        height, width = self.shape(module.weight)
        step = max(1, AT_ONCE // width)
        out = torch.empty((*x.shape[:-1], height), dtype=x.dtype, device=x.device)
        for i in range(0, height, step):
            out[..., i : i + step] = F.linear(x, self.rows(module.weight, i, min(i + step, height)))
        return out if module.bias is None else out + self.rows(module.bias, 0, height)

    def go(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """A module has run: its weights are on the disk again."""
        for parameter in module.parameters(recurse=False):
            parameter.data = torch.empty(0)

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Of the whole weight."""
        own = id(parameter)
        return self.place[own].shape if own in self.place else tuple(self.held[own].shape)

    def rows(self, parameter: nn.Parameter, first: int, last: int) -> Tensor:
        """Some rows of a weight, as they are computed with."""
        own = id(parameter)
        if own in self.place:
            found = self.place[own].rows(first, last)
        else:
            found = self.held[own][first:last] if self.held[own].ndim else self.held[own]
        found = found.to(self.device, self.compute)
        if self.noise:
            found = found.clone().mul_(
                self.signs(f"{self.names[own]} {first}", found.shape).mul_(self.noise).add_(1)
            )
        return found

    def signs(self, seed: str, shape: tuple[int, ...]) -> Tensor:
        """Ones, each positive or negative by a bit of its own, of dice that the seed fixes. A draw
        gives eight: drawing takes the time.
        """
        dice, count = torch.Generator().manual_seed(zlib.crc32(seed.encode())), math.prod(shape)
        bits = (
            torch.empty(-(-count // 8), dtype=torch.int64)
            .random_(generator=dice)
            .view(torch.int8)[:count]
            .bitwise_and_(1)
        )
        return bits.view(shape).to(self.device, self.compute).mul_(2).sub_(1)

    def say(self, noise: float = 0.0, **inputs: Tensor) -> Tensor:
        """Logits, float64. A model in which modules read each other's weights is loaded whole."""
        self.noise = noise
        with torch.no_grad():
            if not self.whole:
                try:
                    return self.model(**inputs, use_cache=False).logits.double()
                except (RuntimeError, IndexError):  # the weights that were read were on the disk
                    self.whole = True
            self.model = self.load().to(self.device, self.compute)
            for name, parameter in self.model.named_parameters() if noise else ():
                parameter.mul_(self.signs(name, tuple(parameter.shape)).mul_(noise).add_(1))
            return self.model(**inputs, use_cache=False).logits.double()
