"""A model or a tokenizer that a Python program has loaded already, and gives instead of a folder's
name.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from laurel.core.bound_objects import bound_object, refuse_unbound
from laurel.core.errors import UsageError
from laurel.model.narrow import hold
from laurel.model.weights import check_finite, let_padding_learn, tell_ties

TOKENIZER = "tokenizer of "
"""Before a model's name: the name of the tokenizer that was given with it."""


def check_model(model: Any) -> None:
    """UsageError for an object that cannot be trained as it is. Nothing of it is changed."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    where = f"model={type(model).__name__}"
    if not isinstance(model, PreTrainedModel | PeftModel):
        fix = (
            "Give a folder, a hub name, or a model as from_pretrained returns it (unwrapped, not"
            " compiled)."
        )
        raise UsageError("this is no model of transformers or peft.", where=where, fix=fix)
    if not isinstance(model, PeftModel) and any(
        "lora_" in name for name, _ in model.named_parameters()
    ):
        fix = "Load it again, or give the PeftModel around it."
        raise UsageError(
            "it has the LoRA layers of an earlier training in it.", where=where, fix=fix
        )
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UsageError(
            "some of its weights are not in memory (device meta).",
            where=where,
            fix="Load it whole, on one device.",
        )
    floating = [parameter for parameter in model.parameters() if torch.is_floating_point(parameter)]
    if len(floating) < sum(1 for _ in model.parameters()):
        raise UsageError(
            "some of its weights are quantised, and cannot be trained.",
            where=where,
            fix="Load it without quantisation.",
        )
    if not any(parameter.requires_grad for parameter in floating):
        raise UsageError(
            "every weight of it is frozen.",
            where=where,
            fix="model.requires_grad_(True), for what is to be trained.",
        )


def said_of(model: Any, kept: str = "float32") -> str:
    """What a run says of a model that it was given. kept: the precision that its weights will
    have.
    """
    found = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    cast = (
        f", its weights now in {kept} (given in {', '.join(sorted(found))})"
        if found != {kept}
        else ""
    )
    return (
        f"the {type(model).__name__} given in Python is trained in place, not copied{cast}: at the"
        " end it holds the trained weights"
    )


def given_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model itself, checked as one that is loaded is; None where no object goes by this
    name.
    """
    model = bound_object(name)
    if model is None:
        refuse_unbound(name, "model")
        return None
    check_finite(model.state_dict(), name)
    let_padding_learn(model)
    tell_ties(model)
    hold(model, dtype)
    renew_constants(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return model


@torch.no_grad()
def renew_constants(model: Any) -> None:
    """Constants that no file holds (rotary frequencies, the scale of embeddings) as a model that is
    loaded in this precision has them.

    `model.to(torch.bfloat16)` rounds them for good, and what is saved from such a model is not,
    read back, what was trained. transformers computes them where it initialises a module's weights;
    these are put aside meanwhile.
    """
    for module in model.modules():
        constants = [
            name
            for name in module._non_persistent_buffers_set
            if torch.is_floating_point(module._buffers[name])
        ]
        if not constants:
            continue
        aside = [
            (part, name, p)
            for part in module.modules()
            for name, p in part._parameters.items()
            if p is not None
        ]
        for name in constants:
            vars(module._buffers[name]).pop(
                "_is_hf_initialized", None
            )  # transformers' mark of what it has made already
        try:
            for part, name, parameter in aside:
                part._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )
            model._init_weights(module)
        finally:
            for part, name, parameter in aside:
                part._parameters[name] = parameter


def given_tokenizer(name: str) -> Any:
    """A copy of the tokenizer that was given with the model (a run may give it a template, an end
    or padding); None without one.
    """
    tokenizer = bound_object(f"{TOKENIZER}{name}")
    return None if tokenizer is None else copy.deepcopy(tokenizer)


def config_of(name: str) -> Any:
    """The configuration of a model: of the one that was given, else of a folder or hub name."""
    from transformers import AutoConfig

    model = bound_object(name)
    if model is None:
        refuse_unbound(name, "model")
        return AutoConfig.from_pretrained(name)
    config = copy.deepcopy(model.config)
    config.architectures = [
        type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    ]
    return config
