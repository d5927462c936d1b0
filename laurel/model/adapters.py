"""LoRA adapters: placed on named modules, loaded with their base, and merged into its weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from laurel.core.bound_objects import bound_object
from laurel.core.errors import UsageError, nearest
from laurel.model.folders import ADAPTERS, adapter_base, is_adapter
from laurel.model.objects import config_of
from laurel.model.weights import check_finite, error_line, first_three, note_untied_head

ALL = "all-linear"
OPTION = "lora_target_modules"
INSIDE = "base_model.model."
"""What PEFT puts before the names of a model's modules in an adapter's file."""
HEAD = re.compile(
    r"^base_model\.model\.(score|classifier)\.(?:modules_to_save\.)?(?:default\.)?(weight|bias)$"
)
"""Names of a scorer's own head in such a file."""


def inside_of(part: str) -> str:
    """The beginning of names of modules in a part of the model, as an adapter's file has them."""
    return f"{INSIDE}{part}." if part else INSIDE


def with_lora(model: Any, config: Any, *, task: str | None = "CAUSAL_LM") -> Any:
    """Wrap a model in fresh LoRA adapters; a model that has adapters stays as it is.

    The product of fresh adapters is zero, so the policy starts as its base.

    task: what peft calls the kind of model; None for a body without a head.
    """
    if hasattr(model, "peft_config"):
        return model
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets(model, config.lora_target_modules),
        task_type=task,
    )
    try:
        with silence_peft():
            return get_peft_model(model, lora)
    except ValueError as error:
        raise peft_error(error, model, config.lora_target_modules or ()) from error


def targets(model: Any, asked: Sequence[str] | None) -> list[str] | str:
    """The modules that names mean, in the form that peft takes.

    A name is `all-linear`, the end of a module's name, or a regular expression of whole names.

    Errors: UsageError for a name that means nothing, with the nearest that does, or a module that
    no adapter fits.
    """
    if not asked or list(asked) == [ALL]:
        return ALL  # every linear layer but the output head, by peft's own rule
    modules, kinds = dict(model.named_modules()), adaptable_layers()
    fit = {name for name, module in modules.items() if isinstance(module, kinds)}
    known = sorted({name.rpartition(".")[2] for name in fit})
    # experts as one tensor: peft knows names for them that no module has
    fused = any(p.ndim == 3 for p in model.parameters())
    found = set[str]()
    for name in asked:
        named = {own for own in modules if own == name or own.endswith(f".{name}")}
        if name == ALL:
            head = model.get_output_embeddings()
            found |= {
                own
                for own in fit
                if modules[own] is not head and not isinstance(modules[own], nn.Embedding)
            }
        elif named & fit or (fused and re.fullmatch(r"[\w.]+", name)):
            found.add(name)
        elif named:
            what = (
                f"`{name}` is a {type(modules[min(named)]).__name__}, and LoRA fits linear layers"
                " and embeddings."
            )
            raise UsageError(what, where=OPTION, fix=f"Known: {', '.join(known)}.")
        elif more := fit.intersection(modules_matching(name, modules)):
            found |= more
        else:
            what = f"the model has no module `{name}` that LoRA fits."
            raise UsageError(what, where=OPTION, fix=nearest(name, {*known, ALL}))
    return sorted(found)


def peft_error(error: ValueError, model: Any, asked: Sequence[str]) -> UsageError:
    """The UsageError for a ValueError of peft about names of modules."""
    known = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, adaptable_layers())
    }
    kind = re.match(r"Target module (\w+)", str(error))
    what = f"no adapter fits a {kind[1]}." if kind else error_line(error)
    unknown = [name for name in asked if name not in known]
    return UsageError(what, where=OPTION, fix=nearest(unknown[0], known) if unknown else "")


def modules_matching(name: str, modules: Mapping[str, Any]) -> set[str]:
    """The modules whose whole name a regular expression matches; none if it is no expression."""
    try:
        return {own for own in modules if re.fullmatch(name, own)}
    except re.error:
        return set()


def adaptable_layers() -> tuple[type, ...]:
    """The layers that LoRA fits."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, nn.Embedding, Conv1D


def check_lora(config: Any, *, headless: bool = False) -> None:
    """UsageError for adapters that would not fit, before any weights are loaded.

    They are put on the model of config.json on the meta device. headless: they go into the body
    below the head.
    """
    name = config.model
    if is_adapter(name) or hasattr(bound_object(name), "peft_config"):
        if config.lora_target_modules:
            what = "the model's folder brings its adapters, which name their modules themselves."
            raise UsageError(
                what, where=OPTION, fix="Leave it out, or start from the model under them."
            )
        return
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(config_of(name))
    # another library may raise anything about a folder
    except Exception as error:
        raise UsageError(
            f"cannot load a model: {error_line(error)}", where=f"model={name}"
        ) from error
    with torch.device("meta"):
        body = getattr(model, model.base_model_prefix)
        with_lora(body if headless else model, config, task=None if headless else "CAUSAL_LM")


def load_adapters(name: str, base: Any) -> Any:
    """The model with the adapters of a folder on it, trainable.

    UsageError unless the folder holds every tensor of them, in its shape, and finite.
    """
    library = peft_library()
    with adapter_errors(name), silence_peft():
        model = library.PeftModel.from_pretrained(base, name, is_trainable=True)
        weights = adapter_weights(name)
        report = library.set_peft_model_state_dict(model, weights)
    check_loaded(name, model, report, weights)
    return model


def peft_library() -> Any:
    """The peft library, which has no types that help; imported late, because it is slow to load."""
    import peft

    return peft


def adapter_weights(name: str) -> dict[str, Tensor]:
    """The tensors of an adapter's folder by their names there, on the CPU."""
    from peft.utils import save_and_load

    library: Any = save_and_load
    return library.load_peft_weights(name, device="cpu")


def load_on_body(name: str, model: Any) -> None:
    """Put the adapters of a folder on the body of a model with another head, trainable.

    They were trained under a head that this model has not. A scorer's own head, where the folder
    holds one, takes the place of the model's.
    """
    library = peft_library()
    body_name: str = model.base_model_prefix
    with adapter_errors(name), silence_peft():
        weights = adapter_weights(name)
        of_body = body_weights(weights, body_name)
        config = body_config(name, body_name, of_body)
        adapters = library.get_peft_model(getattr(model, body_name), config)
        report = library.set_peft_model_state_dict(adapters, of_body)
    check_loaded(name, adapters, report, weights)
    setattr(model, body_name, adapters)
    with torch.no_grad():
        for key, value in weights.items():
            if found := HEAD.match(key):
                model.get_parameter(f"{found[1]}.{found[2]}").copy_(value)


def body_weights(weights: Mapping[str, Tensor], body_name: str) -> dict[str, Tensor]:
    """The tensors of a body's adapters, named as if the body were the whole model."""
    front = inside_of(body_name)
    return {
        INSIDE + key.removeprefix(front): value
        for key, value in weights.items()
        if key.startswith(front)
    }


def body_config(name: str, body_name: str, of_body: Mapping[str, Tensor]) -> Any:
    """The peft configuration of a folder, rewritten for the body alone.

    of_body: the tensors as `body_weights` gives them.
    """
    config = peft_library().LoraConfig.from_pretrained(name)
    config.inference_mode = False
    config.task_type = None
    whole_modules: Sequence[str] = config.modules_to_save or ()
    kept = [one for one in whole_modules if any(f".{one}." in key for key in of_body)]
    config.modules_to_save = kept or None
    if isinstance(config.target_modules, str) and config.target_modules != ALL:
        # a regular expression is of the whole model's names: the file says which modules it met
        lora_keys = [key.removeprefix(INSIDE) for key in of_body if ".lora_" in key]
        config.target_modules = sorted({key.partition(".lora_")[0] for key in lora_keys})
    # names of modules from the root on begin with the body's own name
    for option in ("target_modules", "target_parameters"):
        names: Any = getattr(config, option, None)
        if names and not isinstance(names, str):
            inner = {one.removeprefix(f"{body_name}.") for one in names}
            setattr(config, option, sorted(inner))
    return config


def only_on_body(name: str, part: str) -> bool:
    """Does a folder hold adapters of a model's body, or a scorer's head, and nothing else?

    part: the name of the body's module in the model.
    """
    return all(key.startswith(inside_of(part)) or HEAD.match(key) for key in adapter_shapes(name))


def adapter_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors in an adapter's folder."""
    file = Path(name) / ADAPTERS[0]
    if file.is_file():
        reader: Any = safe_open
        with reader(file, "pt") as tensors:
            names: list[str] = tensors.keys()
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in names}
    return {key: tuple(value.shape) for key, value in adapter_weights(name).items()}


@contextmanager
def adapter_errors(name: str) -> Generator[None]:
    """Turns whatever another library raises about a folder of adapters into a UsageError."""
    try:
        yield
    except Exception as error:
        shapes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        what = (
            f"the adapter does not fit its base {adapter_base(name)}:"
            f" {shapes[0] if shapes else error_line(error)}"
        )
        fix = (
            "Name the base that it was trained on as `base_model_name_or_path` in its"
            " adapter_config.json."
        )
        raise UsageError(what, where=f"model={name}", fix=fix) from error


def check_loaded(name: str, model: Any, report: Any, weights: Mapping[str, Any]) -> None:
    """UsageError where a file of adapters lacks tensors, has too many, or has infinite ones."""
    own = {tensor for tensor, value in model.named_parameters() if value.requires_grad}
    lost: list[str] = sorted(own.intersection(report.missing_keys))
    over: list[str] = sorted(report.unexpected_keys)
    if lost or over:
        kind = (
            "the adapter's file lacks tensors"
            if lost
            else "the adapter's file holds tensors without a place in its base"
        )
        fix = (
            "Copy the whole folder again, or name the base that it was trained on in its"
            " adapter_config.json."
        )
        raise UsageError(
            f"{kind} ({len(lost or over)} in all), such as {first_three(lost or over)}.",
            where=f"model={name}",
            fix=fix,
        )
    check_finite(dict(weights), name)


def merge_adapters(model: Any) -> Any:
    """The plain model with the adapters merged into its weights; `model` is used up.

    A model without adapters is returned as it is. Where output head and embedding are one tensor
    and an adapter changes one of them, the head gets a copy first (else each would take the other's
    change), and the model's configuration says that it ties nothing.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    base = model.get_base_model()
    output = base.get_output_embeddings()
    own = getattr(output, "base_layer", output)
    if unties_head(base) and "weight" in getattr(own, "_parameters", {}):
        own.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=False)
    with silence_peft():
        plain = model.merge_and_unload()
    note_untied_head(plain)
    return plain


def unties_head(base: Any) -> bool:
    """Do adapters make the output head differ from the embedding that it is tied to?"""
    layers = base.get_output_embeddings(), base.get_input_embeddings()
    changed = any(
        hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save") for layer in layers
    )
    return changed and bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))


def is_untrained(model: Any) -> bool:
    """Are adapters as they were made? Then the model computes the same with and without them."""
    closing = [
        p for name, p in model.named_parameters() if "lora_B" in name or "lora_embedding_A" in name
    ]
    whole = any("modules_to_save" in name for name, _ in model.named_parameters())
    return bool(closing) and not whole and not any(bool(p.any()) for p in closing)


@contextmanager
def silence_peft() -> Generator[None]:
    """Silences peft's warnings about tied weights and missing tensors, which are handled here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
