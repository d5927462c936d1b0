"""Digests of weights, by which two programs tell whether they hold the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, as vLLM's `/weight_checker` gives it."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def parameter_digests(model: nn.Module) -> dict[str, str]:
    """The digest of each parameter, by name."""
    return {name: digest(parameter) for name, parameter in model.named_parameters()}


def file_digests(folder: Path) -> dict[str, str]:
    """The digest of each tensor in the safetensors files of a folder, by name."""
    found: dict[str, str] = {}
    reader: Any = safetensors.safe_open
    for file in sorted(folder.glob("*.safetensors")):
        with reader(file, "pt") as opened:
            found |= {name: digest(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    return found
