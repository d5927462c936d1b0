"""Models and tokenizers that a Python program gives as objects, in place of a folder's name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from laurel.core.bound_objects import bound_object, refuse_unbound
from laurel.core.errors import UsageError
from laurel.model.narrow import cast_weights
from laurel.model.weights import check_finite, let_padding_learn, note_untied_head

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


def note_of_given(model: Any, kept: str = "float32") -> str:
    """The note for the user about a model that was given as an object.

    kept: the precision that its weights will have.
    """
    found = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    converted = ""
    if found != {kept}:
        converted = f", its weights now in {kept} (given in {', '.join(sorted(found))})"
    return (
        f"the {type(model).__name__} given in Python is trained in place, not copied{converted}:"
        " at the end it holds the trained weights"
    )


def given_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model object bound to a name, checked like a loaded one; None where there is none."""
    model = bound_object(name)
    if model is None:
        refuse_unbound(name, "model")
        return None
    check_finite(model.state_dict(), name)
    let_padding_learn(model)
    note_untied_head(model)
    cast_weights(model, dtype)
    renew_constants(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return model


@torch.no_grad()
def renew_constants(model: Any) -> None:
    """Compute the constants that no file holds anew: rotary frequencies, the scale of embeddings.

    `model.to(torch.bfloat16)` rounds them for good, and a folder saved from such a model would
    compute other logits when it is loaded. transformers computes them where it initialises a
    module's weights; the weights are put aside meanwhile.
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
            # transformers marks what it has initialised, and would leave it as it is
            module._buffers[name].__dict__.pop("_is_hf_initialized", None)
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
    """A copy of the tokenizer that was given with the model, None without one.

    A copy, because a run may set a template, an end token or padding.
    """
    tokenizer = bound_object(f"{TOKENIZER}{name}")
    return None if tokenizer is None else copy.deepcopy(tokenizer)


def config_of(name: str) -> Any:
    """The configuration of a model: of the one that was given, else of a folder or hub name."""
    import transformers

    model = bound_object(name)
    if model is None:
        refuse_unbound(name, "model")
        auto: Any = transformers.AutoConfig
        return auto.from_pretrained(name)
    config = copy.deepcopy(model.config)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config.architectures = [type(plain).__name__]
    return config
