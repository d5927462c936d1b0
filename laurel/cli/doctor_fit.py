"""`laurel doctor --model M --algorithm A`: the memory of a run, before there is one.

From the model's configuration alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from laurel.core.errors import UsageError
from laurel.fast.packed import KNOWN, looks_packed, without_peft
from laurel.fast.room import device_memory, logit_room
from laurel.model.adapters import with_lora
from laurel.model.folders import adapter_base, check_folder, is_adapter
from laurel.model.narrow import cast_weights
from laurel.model.objects import config_of
from laurel.model.policy import (
    Policy,
    checkpoint_activations,
    pick_device,
    pick_dtype,
    pick_param_dtype,
)
from laurel.model.weights import error_line
from laurel.train.activation_memory import count_computed_tokens
from laurel.train.algorithms import ALGORITHMS
from laurel.train.memory import (
    MemoryForecast,
    body_of,
    forecast_bytes,
    longest_groups,
    memory_advice,
    own_bodies,
    weight_bytes,
    work_in,
)
from laurel.train.optimizer import state_bytes
from laurel.train.options import resolve

GB = 1e9
ROWS = {
    "weights": ("policy",),
    "reference": ("reference",),
    "beside it": ("critic", "discriminator", "heads"),
    "gradients": ("gradients",),
    "optimiser's moments": ("moments",),
    "rest of float32 masters": ("masters",),
    "a tensor's master, while it moves": ("a tensor at a time",),
    "activations": ("activations",),
    "gaps between them in a CPU's heap": ("gaps in the heap",),
    "copies of weights for products": ("copies of weights",),
    "logits, and the head's gradient": ("logits", "gradient of the head"),
    "gradients twice": ("gradients twice",),
    "keys and values": ("keys and values",),
    "sampler's weights and logits": ("sampler's weights", "sampled logits"),
    "what a checkpoint copies": ("what is saved",),
    "a copy of what moves": ("a copy",),
}
"""A line of the table -> the parts of the forecast that it adds up."""


@dataclass(frozen=True)
class MemoryFit:
    """A forecast of one way to train, the tokens of its micro-batch, and what helps."""

    found: MemoryForecast
    tokens: int
    ways: list[str]

    @property
    def total(self) -> int:
        """Bytes of the models and of the fullest phase."""
        return sum(self.found.there.values()) + self.found.coming

    def size(self, parts: Iterable[str]) -> float:
        """Bytes of these parts of the forecast."""
        sizes = {**self.found.there, **self.found.parts}
        return sum(sizes.get(part, 0) for part in parts)


def fit_lines(algorithm: str, config: Any, device_gb: float | None = None) -> list[str]:
    """The table as lines, for all weights and for adapters, and whether a device has the room."""
    device = pick_device(config.device)
    there = (int(device_gb * GB), int(device_gb * GB)) if device_gb else device_memory(device)
    kind = "cuda" if device_gb else device.type
    fits = {
        name: forecast_fit(algorithm, config.model_copy(update={"use_peft": peft}), kind, there)
        for name, peft in (("all weights", False), ("LoRA", True))
    }
    lines = [
        *forecast_heading(algorithm, config, kind),
        f"{'GB':34}" + "".join(f"{n:>14}" for n in fits),
    ]
    for line, parts in ROWS.items():
        sizes = [one.size(parts) for one in fits.values()]
        if any(sizes):
            lines.append(numbers_line(line, [size / GB for size in sizes]))
    each = [one.size(("activations",)) / max(1, one.tokens) / 1e6 for one in fits.values()]
    lines.append(numbers_line("(activations of a token, in MB)", each))
    lines.append(numbers_line("at its largest", [one.total / GB for one in fits.values()]))
    return lines + [f"{name}: {describe_fit(one, there)}" for name, one in fits.items()]


def numbers_line(title: str, numbers: Iterable[float]) -> str:
    """A line of the table."""
    return f"{title:34}" + "".join(f"{number:14.3f}" for number in numbers)


def describe_fit(one: MemoryFit, there: tuple[int, int] | None) -> str:
    """Does it fit, and in which part of a step is it closest; three ways out where it does not."""
    size = f"{one.total / GB:.1f} GB in {one.found.fullest}"
    if there is None:
        return size
    if one.total <= there[0]:
        return f"fits: {size}, of {there[0] / GB:.1f}."
    return f"does not fit: {size}, of {there[0] / GB:.1f}. " + " ".join(one.ways[:3])


def forecast_heading(algorithm: str, config: Any, kind: str) -> list[str]:
    """What the table is of."""
    config, row = resolve(algorithm, config), ALGORITHMS[algorithm]
    if row.source.prompts:
        rows = (
            f"{config.prompts_per_step} prompts of {config.max_prompt_length:,} tokens x"
            f" {config.num_generations} samples of "
        )
        rows += f"{config.max_completion_length:,}"
    else:
        rows = (
            f"{config.prompts_per_step} rows of data of {config.max_length:,} tokens, half of them"
            " the prompt's"
        )
    param_dtype, dtype = pick_param_dtype(config.param_dtype), precision_on(config, kind)
    precise = (
        f"weights in {str(param_dtype).removeprefix('torch.')}, products in"
        f" {str(dtype).removeprefix('torch.')}, {config.optim}"
    )
    return [f"{algorithm}: {rows}; {token_budget_on(config, kind):,} tokens a micro-batch", precise]


def token_budget_on(config: Any, kind: str) -> int:
    """token_budget, by rule where none is given."""
    return config.token_budget or (2048 if kind == "cpu" else 16_384)


def precision_on(config: Any, kind: str) -> torch.dtype:
    """The precision of products; on a GPU that is not here it has bfloat16."""
    if kind == "cuda" and config.dtype == "auto":
        return torch.bfloat16
    return pick_dtype(config.dtype, torch.device("cpu"), config.param_dtype)


def forecast_fit(
    algorithm: str, config: Any, kind: str, there: tuple[int, int] | None
) -> MemoryFit:
    """The forecast of one way to train, by the functions a run uses before its first step."""
    row, config = ALGORITHMS[algorithm], resolve(algorithm, config)
    config = config.model_copy(
        update={
            "token_budget": token_budget_on(config, kind),
            "critic_model": config.critic_model and "policy",
        }
    )
    policy, auxiliary = build_without_memory(config, row, precision_on(config, kind))
    trainable = {**policy.trainable(), **(auxiliary.trainable() if auxiliary else {})}
    vocabulary = policy.causal.get_output_embeddings().weight.shape[0]
    coming = sum(state_bytes(trainable, config.optim).values()) + weight_bytes(policy.model)
    useful = config.token_budget * vocabulary * policy.dtype.itemsize
    policy.room = logit_room(torch.device(kind), coming, useful, there)
    asked = config.reference not in (None, "none")
    reference = SimpleNamespace(adapters_off=config.use_peft, policy=policy) if asked else None
    divided = SimpleNamespace(
        by_comparison=config.loss_aggregation == "comparison_mean", packs=policy.packs
    )
    work = work_in(*longest_step_rows(config, row, divided))
    found = forecast_bytes(policy, reference, auxiliary, config, row, work, kind)
    return MemoryFit(
        found,
        count_computed_tokens(work.micro, packed=policy.packs),
        memory_advice(config, row, found),
    )


def longest_step_rows(config: Any, row: Any, divided: Any) -> tuple[Any, ...]:
    """The rows of a step, as long as they may be, as `work_in` takes them."""
    if row.source.prompts:
        prompts = [(1,) * config.max_prompt_length] * config.prompts_per_step
        more, each = (
            config.max_completion_length * (config.max_turns or 1),
            config.num_generations or 1,
        )
        return (
            longest_groups(prompts, each, more),
            config,
            divided,
            each,
            config.max_prompt_length,
            more,
        )
    half, length = config.max_length // 2, config.max_length
    return (
        longest_groups([(1,) * half] * config.prompts_per_step, row.source.answers, length - half),
        config,
        divided,
    )


def build_without_memory(config: Any, row: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """The policy of a configuration and what is trained with it, as shapes without memory."""
    from transformers import AutoModelForCausalLM

    check_folder(config.model)
    name = adapter_base(config.model) if is_adapter(config.model) else config.model
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32)
    except (
        Exception
    ) as error:  # whatever another library raises about a folder is told in our words
        raise UsageError(
            f"cannot load a model: {error_line(error)}", where=f"model={config.model}"
        ) from error
    kept = pick_param_dtype(config.param_dtype)
    model = cast_weights(model, kept)
    with torch.device("meta"):
        model = cast_weights(with_lora(model, config), kept) if config.use_peft else model
        if config.gradient_checkpointing:
            checkpoint_activations(model)
    policy = Policy(model.eval(), None, dtype, whole_logits=False)
    with torch.device("meta"):
        auxiliary = row.trained.load(config, policy) if row.trained.load else None
    mode = FakeTensorMode()
    for module in (model, *([auxiliary.model] if auxiliary else [])):
        to_fake_tensors(module, mode)
    for body in (body_of(policy.causal), *own_bodies(auxiliary)):
        KNOWN[without_peft(body)] = looks_packed(without_peft(body))
    return policy, auxiliary


def to_fake_tensors(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace each tensor of a model by a fake one of its shape; shared ones stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, FakeTensor):
                fake = FakeTensor(mode, parameter.data, torch.device("cpu"))
                made.setdefault(
                    id(parameter), nn.Parameter(fake, requires_grad=parameter.requires_grad)
                )
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and not isinstance(buffer, FakeTensor):
                module._buffers[name] = made.setdefault(
                    id(buffer), FakeTensor(mode, buffer, torch.device("cpu"))
                )
