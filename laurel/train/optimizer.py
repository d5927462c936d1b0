"""AdamW, the learning rate as a pure function of the step, and one guarded optimiser step."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.train.masters import NARROW, Make, Masters

KEPT = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}
"""optim -> its class in bitsandbytes."""
BLOCK = 256
"""How many 8-bit moments share a scale."""
SMALL = 4096
"""Moments of a tensor with fewer numbers stay float32."""


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: TrainConfig,
    auxiliary: Mapping[str, nn.Parameter] | None = None,
    rate: float = 1.0,
) -> Any:
    """AdamW (Loshchilov & Hutter 2019) over the trainable parameters.

    Vectors (norms, biases) do not decay. Parameters held in bfloat16 have float32 masters
    (`laurel.train.masters`). `config.optim`: torch's, or one of bitsandbytes'.

    auxiliary: an auxiliary model's parameters, which learn at `rate` times the learning rate. AdamW
    forgets the scale of a gradient, so a coefficient of a loss that nothing else touches would do
    nothing.
    """
    together = (
        {1.0: {**parameters, **(auxiliary or {})}}
        if rate == 1
        else {1.0: parameters, rate: auxiliary or {}}
    )
    groups: list[dict[str, Any]] = []
    for times, of in together.items():
        how = {
            "times": times,
            "betas": (config.adam_beta1, config.adam_beta2),
            "eps": config.adam_epsilon,
        }
        groups.append(
            {
                "params": [p for p in of.values() if p.ndim > 1],
                "weight_decay": config.weight_decay,
                **how,
            }
        )
        groups.append(
            {"params": [p for p in of.values() if p.ndim <= 1], "weight_decay": 0.0, **how}
        )
    used = [g for g in groups if g["params"]]
    every = [p for g in used for p in g["params"]]
    make = optimizer_class(config, fused=all(p.device.type in ("cpu", "cuda") for p in every))
    return Masters(used, make) if any(p.dtype == NARROW for p in every) else make(used)


def optimizer_class(config: TrainConfig, fused: bool) -> Make:
    """What makes the optimiser of float32 parameters that `config.optim` names."""
    if config.optim == "adamw_torch":
        return lambda groups: torch.optim.AdamW(groups, lr=config.learning_rate or 0.0, fused=fused)
    kind = getattr(load_bitsandbytes(config.optim), KEPT[config.optim])
    return lambda groups: kind(groups, lr=config.learning_rate)


def load_bitsandbytes(optim: str) -> Any:
    """bitsandbytes' optimisers; a UsageError where it is not installed, or does not work."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("bitsandbytes").optim
    except ImportError as error:
        fix = "pip install 'laurel-rl[optim]', or leave optim out."
        what = (
            "bitsandbytes is not installed."
            if getattr(error, "name", "") == "bitsandbytes"
            else f"bitsandbytes: {error}"
        )
        raise UsageError(what, where=f"optim={optim}", fix=fix) from error


def check_optim(config: TrainConfig, device: torch.device) -> None:
    """UsageError for an optimiser that is not here, or would not be what its name says.

    It is raised before any weight is loaded.
    """
    if config.optim == "adamw_torch":
        return
    if config.optim.startswith("paged") and device.type != "cuda":
        fix = (
            "Use adamw_8bit, which works on a CPU, too."
            if device.type == "cpu"
            else "Leave it out."
        )
        raise UsageError(
            f"pages move between a GPU and main memory, and this runs on {device.type}.",
            where=f"optim={config.optim}",
            fix=fix,
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"bitsandbytes does not work on {device.type}.",
            where=f"optim={config.optim}",
            fix="Leave it out.",
        )
    load_bitsandbytes(config.optim)


def state_bytes(parameters: Mapping[str, nn.Parameter], optim: str) -> dict[str, int]:
    """Bytes of a step's gradients and of the optimiser.

    The optimiser has moments, and what masters have beyond their weights.
    """
    found = {"gradients": 0, "moments": 0, "masters": 0}
    for parameter in parameters.values():
        count = parameter.numel()
        eight = "8bit" in optim and count >= SMALL
        found["gradients"] += count * parameter.element_size()
        found["moments"] += 2 * (count + 4 * -(-count // BLOCK)) if eight else 8 * count
        found["masters"] += 2 * count if parameter.dtype == NARROW else 0
    return found
