"""Computes with a saved folder, one module's weights in memory at a time."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.core.tensors import ints
from laurel.fast.autograd import from_numpy
from laurel.model.written import AT_ONCE, NAMES

KINDS = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of the tensor; a scalar whole."""
        # bytes of one row; the product over no dimension is 1
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        count = (last - first) * width if self.shape else self.dtype.itemsize
        begin = self.start + first * width
        data = np.fromfile(self.file, dtype=np.uint8, count=count, offset=begin)
        shape = (last - first, *self.shape[1:]) if self.shape else ()
        return from_numpy(data).view(self.dtype).view(shape)


def tensor_places(folder: Path) -> dict[str, TensorPlace]:
    """Where each tensor of a folder lies."""
    found: dict[str, TensorPlace] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                where = 8 + size + entry["data_offsets"][0]
                found[name] = TensorPlace(file, KINDS[entry["dtype"]], tuple(entry["shape"]), where)
    return found


class ReadBack:
    """A model loaded by transformers from a folder; each module's weights are read when it runs.

    They are computed with in float32 (float64 where the files are float64). noise: every weight is
    multiplied by 1 + noise or 1 - noise, by a generator with a fixed seed.
    """

    def __init__(self, folder: Path, auto: Any, device: torch.device) -> None:
        self.folder = folder
        self.auto = auto
        self.device = device
        self.model = self.load()
        # is the whole model in memory?
        self.whole = False
        self.dtype: torch.dtype = self.model.dtype
        self.noise = 0.0
        self.compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        # weights that no file holds under their name: transformers put them together
        self.in_memory: dict[int, Tensor] = {}
        # by id(parameter)
        self.place: dict[int, TensorPlace] = {}
        self.names: dict[int, str] = {}
        self.find_places()
        self.unload()

    def load(self) -> Any:
        """The folder's model as transformers loads it, whole."""
        return self.auto.from_pretrained(self.folder, dtype="auto").eval()

    def find_places(self) -> None:
        """Note where in the folder each parameter lies, by any of its names."""
        in_files = tensor_places(self.folder)
        # tied parameters have several names, of which a file holds one
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in in_files and in_files[name].shape == tuple(parameter.shape):
                self.place[id(parameter)] = in_files[name]

    def unload(self) -> None:
        """Take the weights out of memory, and have every module read its own when it runs."""
        for name, parameter in self.model.named_parameters():
            self.names[id(parameter)] = name
            if id(parameter) not in self.place:
                self.in_memory[id(parameter)] = parameter.data
            parameter.data = torch.empty(0)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self.device)
        for module in self.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                self.stream(module)

    def stream(self, module: nn.Module) -> None:
        """Have a module's weights read before it runs and dropped after it.

        Of an embedding only the rows that are asked for are read.
        """
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        # embeddings with a forward of their own compute other ids from those they are given
        if isinstance(module, nn.Embedding) and plain:
            # its number could be beyond the few rows that are read
            module.padding_idx = None
            module.register_forward_pre_hook(self.read_embedding)
        elif type(module) is nn.Linear:
            replaced: Any = module
            replaced.forward = partial(self.linear, module)
        else:
            module.register_forward_pre_hook(self.read_weights)
        module.register_forward_hook(self.drop_weights)

    def read_weights(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook: read the weights of a module, whole."""
        for parameter in module.parameters(recurse=False):
            shape = self.shape(parameter)
            height = shape[0] if shape else 1
            parameter.data = self.rows(parameter, 0, height)

    def read_embedding(self, module: nn.Embedding, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook: read the rows that are asked for; the ids become places among them."""
        ids, where = args[0].unique(return_inverse=True)
        rows = [self.rows(module.weight, i, i + 1) for i in ints(ids)]
        module.weight.data = torch.cat(rows)
        return (where, *args[1:])

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer, some rows of its weight at a time."""
        height, width = self.shape(module.weight)
        step = max(1, AT_ONCE // width)
        out = torch.empty((*x.shape[:-1], height), dtype=x.dtype, device=x.device)
        for first in range(0, height, step):
            last = min(first + step, height)
            weight = self.rows(module.weight, first, last)
            out[..., first:last] = F.linear(x, weight)
        # torch's types leave out that a layer can have no bias
        bias = cast("Tensor | None", module.bias)
        return out if bias is None else out + self.rows(bias, 0, height)

    def drop_weights(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Forward hook: drop the weights of a module that has run."""
        for parameter in module.parameters(recurse=False):
            parameter.data = torch.empty(0)

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """The shape of the whole weight."""
        key = id(parameter)
        if key in self.place:
            return self.place[key].shape
        return tuple(self.in_memory[key].shape)

    def rows(self, parameter: Tensor, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of a weight, in the precision of the computation, with noise."""
        key = id(parameter)
        if key in self.place:
            found = self.place[key].rows(first, last)
        else:
            whole = self.in_memory[key]
            found = whole[first:last] if whole.ndim else whole
        found = found.to(self.device, self.compute)
        if not self.noise:
            return found
        signs = self.signs(f"{self.names[key]} {first}", found.shape)
        return found.clone().mul_(signs.mul_(self.noise).add_(1))

    def signs(self, seed: str, shape: tuple[int, ...]) -> Tensor:
        """Ones and minus ones by fair coins, fixed by the seed."""
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        count = math.prod(shape)
        # a drawn number of 64 bits gives eight signs, since drawing takes the time: count / 8,
        # rounded up
        drawn = torch.empty(-(-count // 8), dtype=torch.int64).random_(generator=generator)
        bits = drawn.view(torch.int8)[:count].bitwise_and_(1)
        return bits.view(shape).to(self.device, self.compute).mul_(2).sub_(1)

    def logits(self, noise: float = 0.0, **inputs: Tensor) -> Tensor:
        """Logits, float64. A model in which modules read each other's weights is loaded whole."""
        self.noise = noise
        with torch.no_grad():
            if not self.whole:
                try:
                    return self.model(**inputs, use_cache=False).logits.double()
                # a module met weights of another module, which were not in memory
                except (RuntimeError, IndexError):
                    self.whole = True
            self.model = self.load().to(self.device, self.compute)
            for name, parameter in self.model.named_parameters() if noise else ():
                signs = self.signs(name, tuple(parameter.shape))
                parameter.mul_(signs.mul_(noise).add_(1))
            return self.model(**inputs, use_cache=False).logits.double()
