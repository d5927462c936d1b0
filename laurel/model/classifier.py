"""Classification models of transformers around the body of a language model, and their heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from laurel.core.errors import UsageError
from laurel.model.adapters import HEAD, adapter_shapes, load_on_body, merge_adapters, only_on_body
from laurel.model.ends import ends_of
from laurel.model.folders import adapter_base, check_folder, is_adapter
from laurel.model.narrow import NARROW, cast_weights
from laurel.model.objects import config_of, given_model
from laurel.model.policy import load_causal
from laurel.model.readback import tensor_places
from laurel.model.weights import error_line, load_model

PAD = "<|pad|>"
SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
HEADS = ("score", "classifier")
"""What transformers calls the linear layer on top."""


def load_with_head(
    name: str, labels: int, trained: bool, language: bool, adapters: bool, dtype: torch.dtype
) -> tuple[Any, Any, bool]:
    """A model with a head, from a folder or hub name.

    Returns the causal language model that it was made from (None under a trained head), the model
    with the head, and whether it keeps the folder's adapters.
    """
    base = adapter_base(name) if is_adapter(name) else name
    on_body = is_adapter(name) and (trained or (adapters and only_on_body(name, body_name(base))))
    source = base if on_body else name
    if trained_labels(source):
        causal = None
        model = load_trained(source, labels, dtype)
    else:
        causal = merge_adapters(load_causal(source, dtype, head=language))
        model = new_head(causal, labels)
    if on_body:
        load_on_body(name, model)
        body = getattr(model, model.base_model_prefix)
        prepared = cast_weights(body, dtype) if adapters else merge_adapters(body)
        setattr(model, model.base_model_prefix, prepared)
    return causal, model, on_body and adapters


def body_name(name: str) -> str:
    """The name of the body's module in the causal language model of a folder."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    config = config_of(name)
    kind = auto._model_mapping.get(config.__class__, None)
    return getattr(kind, "base_model_prefix", "model")


def load_trained(name: str, labels: int, dtype: torch.dtype) -> Any:
    """A saved scorer's model with every weight of it, or the model object bound to the name.

    Its head is float32, with the numbers of its files.
    """
    given = given_model(name, dtype)
    if given is not None:
        if dtype == NARROW:
            head_of(given).float()
        return given
    model = load_model(auto_class(labels), name, "a scorer", dtype, spare=("lm_head",))
    if dtype == NARROW:
        read_head(head_of(model).float(), Path(name))
    return model


def read_head(head: nn.Linear, folder: Path) -> None:
    """Give a head the numbers that the files of a folder have for it, unrounded."""
    in_files = tensor_places(folder)
    for tensor, parameter in head.named_parameters():
        names = [f"{kind}.{tensor}" for kind in HEADS if f"{kind}.{tensor}" in in_files]
        if names:
            place = in_files[names[0]]
            height = place.shape[0] if place.shape else 1
            parameter.data.copy_(place.rows(0, height))


def new_head(causal: Any, labels: int) -> Any:
    """A classification model around the body of a language model.

    The body is taken over as it is. Loading the checkpoint into the other class would not do: where
    embeddings are tied and stored under the language head's name alone, transformers drops them and
    starts the body from random ones.
    """
    config = copy.deepcopy(causal.config)
    config.num_labels = labels
    # transformers' default of .1 would make scores of training and use differ
    config.classifier_dropout = 0.0
    try:
        # only its head is wanted: a body that is dropped would take as much memory as the model
        with torch.device("meta"):
            model = auto_class(labels).from_config(config)
    except ValueError as error:
        raise UsageError(
            f"no such model with a head: {error_line(error)}", where=f"model={config.model_type}"
        ) from error
    body = getattr(causal, causal.base_model_prefix)
    if type(body) is not type(getattr(model, model.base_model_prefix, None)):
        what = (
            f"transformers builds {type(model).__name__} around another body than"
            f" {type(body).__name__}."
        )
        raise UsageError(
            what, where=f"model={config.model_type}", fix="Use another language model."
        )
    setattr(model, model.base_model_prefix, body)
    head = head_of(model).to_empty(device=next(body.parameters()).device).float()
    with torch.no_grad():
        head.weight.normal_(0.0, 0.1 * head.in_features**-0.5)
        bias = bias_of(head)
        if bias is not None:
            bias.zero_()
    return model


def auto_class(labels: int) -> Any:
    """The transformers class of a folder: one number per row, or several classes per token."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    return AutoModelForSequenceClassification if labels == 1 else AutoModelForTokenClassification


def head_of(model: Any) -> nn.Linear:
    """The linear layer on top."""
    for name in HEADS:
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Linear):
            return layer
    raise UsageError(
        f"{type(model).__name__} has no linear head.",
        where="model",
        fix="Use a causal language model.",
    )


def bias_of(linear: nn.Linear) -> Tensor | None:
    """The bias of a linear layer, None where it has none (which torch's types leave out)."""
    return cast("Tensor | None", linear.bias)


def trained_labels(name: str) -> int:
    """The number of outputs of a saved scorer's head; 0 for a model without such a head.

    It is read from the configuration of its folder, or from the shapes of its adapters.
    """
    check_folder(name)
    if is_adapter(name):
        heads = [
            shape[0]
            for key, shape in adapter_shapes(name).items()
            if (found := HEAD.match(key)) and found[2] == "weight"
        ]
        return heads[0] if heads else 0
    try:
        config = config_of(name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot load a model: {error_line(error)}", where=f"model={name}"
        ) from error
    kind = (config.architectures or [""])[0]
    return int(config.num_labels or 0) if kind.endswith((SEQUENCE, TOKEN)) else 0


def own_padding(tokenizer: Any, model: Any) -> None:
    """Make padding a token that ends no text, in the tokenizer and in the model's configuration."""
    ends = sorted(ends_of(tokenizer, model.config))
    closing = {str(token) for token in tokenizer.convert_ids_to_tokens(ends)}
    if tokenizer.pad_token is None or str(tokenizer.pad_token) in closing:
        rows = model.get_input_embeddings().weight.shape[0]
        # to resize would give the tokens between them random rows
        if len(tokenizer) > rows:
            what = (
                f"the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows, and a"
                " padding token must come behind both."
            )
            fix = "Resize the embedding (`resize_token_embeddings`) and save the model first."
            raise UsageError(what, where=f"model={tokenizer.name_or_path}", fix=fix)
        tokenizer.add_special_tokens({"pad_token": PAD})
    lacking = tokenizer.pad_token_id + 1 - model.get_input_embeddings().weight.shape[0]
    # the token is new, or that of an adapter whose base has no row for it
    if lacking == 1:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
