"""AdamW, the learning rate as a pure function of the step, and one guarded optimiser step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig, beside: Mapping[str, nn.Parameter] | None = None, rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the trainable parameters; no decay on vectors (norms, biases).

    beside: what is trained beside them, at `rate` times the learning rate. AdamW forgets the scale of a gradient, so a coefficient of a
    loss that nothing else touches would do nothing.
    """
    together = {1.0: {**parameters, **(beside or {})}} if rate == 1 else {1.0: parameters, rate: beside or {}}
    groups: list[dict[str, Any]] = []
    for times, of in together.items():
        groups.append({"params": [p for p in of.values() if p.ndim > 1], "weight_decay": config.weight_decay, "times": times})
        groups.append({"params": [p for p in of.values() if p.ndim <= 1], "weight_decay": 0.0, "times": times})
    betas = (config.adam_beta1, config.adam_beta2)
    fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    used = [g for g in groups if g["params"]]
    return torch.optim.AdamW(used, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=fused)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 1, 2, ...: linear warm-up, then constant, linear or cosine down to 0 at max_steps."""
    assert config.learning_rate is not None
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = (config.max_steps - step + 1) / max(1, config.max_steps - config.warmup_steps)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return config.learning_rate * shape[config.lr_scheduler_type]


def optimizer_step(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], step: int, config: TrainConfig) -> float:
    """Clip, step, clear; returns the gradient norm before clipping.

    A gradient that is exactly zero moves nothing: no step, so no weight decay and no momentum either. A gradient that is not finite
    stops the run.
    """
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
    if not math.isfinite(norm):
        bad = next(name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all())
        raise LaurelError(f"the gradient of {bad} is not finite.", where=f"step {step}", fix="Lower learning_rate; look at samples.jsonl.")
    if norm > 0:
        if config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters.values(), config.max_grad_norm, torch.tensor(norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group.get("times", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
