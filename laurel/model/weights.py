"""Loads weights and checks them: every tensor is in the files, in its shape, and finite."""

from __future__ import annotations

import logging
import re
import textwrap
import threading
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from laurel.core.errors import UsageError
from laurel.core.json_values import is_list
from laurel.core.tensors import ints
from laurel.model.narrow import cast_weights

LOADING = threading.RLock()
"""Held while weights are loaded.

transformers replaces torch's initialisers meanwhile, for the whole process: two threads that load
at once put back each other's replacements, and every model made afterwards starts from other
weights.
"""

WRAPPERS = {
    "_orig_mod": "a module compiled by torch.compile",
    "module": "a module inside DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module": "a module inside FSDP",
    "_checkpoint_wrapped_module": "a module inside a checkpoint wrapper",
    "_forward_module": "a module inside Lightning or DeepSpeed",
    "pretrained_model": "TRL's model with a value head",
}
"""A part of a tensor's name: what puts it there."""
OTHER_PARTS = re.compile(
    r"(^|[._])"
    r"(vision|visual|vit|image|audio|speech|video|multi_modal|multimodal|mm|mtp|nextn|v_head"
    r"|value_head)"
)
"""Names of parts that files hold besides a language model: vision and audio towers, other heads."""
BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.\w+$|position_ids$")
"""Names of constants that old files hold and nothing learns."""
LAYER = re.compile(r"\.(\d+)\.")


def load_model(
    kind: Any, name: str, what: str, dtype: torch.dtype, *, spare: Collection[str] = ()
) -> Any:
    """A transformers model of class `kind` with every tensor from the files of `name`.

    UsageError with the reason where that cannot be. what: how the error names it ("a causal
    language model"). spare: parts of it that may be new, or, in the files, be left over: heads that
    the caller replaces or does not use. What the files hold for towers of other models is named as
    unused.
    """
    with LOADING, collected_reports() as reports:
        try:
            options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
            model, report = kind.from_pretrained(name, ignore_mismatched_sizes=True, **options)
        # another library may raise anything about a folder
        except Exception as error:
            raise UsageError(
                f"cannot load {what}: {error_line(error, reports)}", where=f"model={name}"
            ) from error
    check_shapes(report["mismatched_keys"], name)
    check_names(model, report["missing_keys"], report["unexpected_keys"], name, spare)
    check_finite(model.state_dict(), name)
    let_padding_learn(model)
    note_untied_head(model)
    return cast_weights(model, dtype)


@contextmanager
def collected_reports() -> Generator[list[str]]:
    """Collects transformers' reports of what was not loaded, in place of logging them.

    `check_names` raises an error about them.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    reports = list[str]()

    def keep(record: logging.LogRecord) -> bool:
        """Is the record logged?"""
        text = record.getMessage()
        if "LOAD REPORT" not in text and "checkpoint seem corrupted" not in text:
            return True
        reports.append(text)
        return False

    logger.addFilter(keep)
    try:
        yield reports
    finally:
        logger.removeFilter(keep)


def error_line(error: Exception, reports: Sequence[str] = ()) -> str:
    """An error of another library in one line.

    It is the first line of its text; where that ends with ":" or ",", the next lines, too.
    """
    rows = [
        line
        for text in reports
        for line in text.splitlines()
        if "CONVERSION" in line and "|" in line
    ]
    if rows or "automatic conversion of the weights" in str(error):
        names = rows[0].split("|")[0].strip() if rows else "a tensor"
        return f"{names} cannot be put together from the tensors of its files; are some missing?"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    line = textwrap.shorten(" ".join(lines), 240) if lines[0].endswith((":", ",")) else lines[0]
    plain = isinstance(error, OSError | ValueError | RuntimeError)
    return f"{line if plain else f'{type(error).__name__}: {line}'}".rstrip(".") + "."


def check_shapes(mismatched: Collection[Any], name: str) -> None:
    """Tensors of another shape than config.json asks for are an error."""
    if not mismatched:
        return
    tensor, there, asked = min(mismatched)
    there, asked = tuple(there), tuple(asked)
    fix = "config.json belongs to a model of another size: put the right one beside the weights."
    if 0 in there:
        fix = (
            "Parts of a sharded model (ZeRO-3, FSDP) were saved: gather the whole weights, then"
            " save."
        )
    elif there[1:] == asked[1:] and ".experts." in tensor:
        fix = (
            f"config.json asks for {asked[0]} experts and the files hold {there[0]}: set their"
            " number there, or copy what is missing."
        )
    elif there[1:] == asked[1:] and re.search("emb|wte|lm_head", tensor):
        fix = f"Set vocab_size in config.json to {there[0]}, if that is what the tokenizer needs."
    count = f"{len(mismatched)} tensor{'s have' if len(mismatched) > 1 else ' has'}"
    what = (
        f"{count} another shape in the files than config.json asks for, such as {tensor}: {there},"
        f" where {asked} is asked for."
    )
    raise UsageError(what, where=f"model={name}", fix=fix)


def check_names(
    model: Any,
    missing: Collection[str],
    unexpected: Collection[str],
    name: str,
    spare: Collection[str] = (),
) -> None:
    """UsageError for tensors that the files lack or have too many, with the likely cause."""

    def spared(tensor: str) -> bool:
        return any(tensor == part or tensor.startswith(f"{part}.") for part in spare)

    lost = sorted(tensor for tensor in missing if not spared(tensor))
    over = sorted(tensor for tensor in unexpected if not BUFFERS.search(tensor))
    wrong = lost or [
        tensor for tensor in over if not OTHER_PARTS.search(tensor) and not spared(tensor)
    ]
    if not wrong:
        if over:
            line = "%s holds %d tensors that are not used here, such as %s"
            logging.getLogger(__name__).warning(line, name, len(over), over[0])
        return
    every = sorted(model.state_dict())
    if lost:
        are = "are" if len(lost) > 1 else "is"
        what = (
            f"{len(lost)} of the model's {len(every)} tensors {are} not in its files and would be"
            f" random, such as {first_three(lost)}."
        )
    else:
        tensors = "tensors" if len(wrong) > 1 else "a tensor"
        what = (
            f"the files hold {tensors} that the model of config.json has no place for ({len(wrong)}"
            f" in all), such as {first_three(wrong)}."
        )
    raise UsageError(what, where=f"model={name}", fix=mismatch_cause(model, lost, over, every))


def first_three(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(names[:3])


def mismatch_cause(
    model: Any, lost: Sequence[str], over: Sequence[str], every: Sequence[str]
) -> str:
    """Why names do not match, and what to do; of several causes the one that explains most.

    lost: the model's tensors that the files lack; over: those of the files that the model lacks;
    every: all of the model's.
    """
    return (
        other_kind_advice(lost, over)
        or other_depth_advice(lost, over, every)
        or lost_head_advice(model, lost)
        or "config.json and the weights do not belong together, or files are missing: copy or"
        " download the folder again."
    )


def other_kind_advice(lost: Sequence[str], over: Sequence[str]) -> str:
    """What to do about files that hold something other than a plain language model, "" if not."""
    if any(re.search(r"\.lora_[AB]\b|\.base_layer\.", tensor) for tensor in over):
        return (
            "The files hold a model with adapters on it: merge them (`merge_and_unload`) before"
            " saving."
        )
    if nested := sorted({"model", "state_dict", "model_state_dict", "module"}.intersection(over)):
        return (
            f"The file is a training checkpoint: save what it holds under `{nested[0]}` by itself."
        )
    if any(re.search(r"(scales?|scale_inv|qweight|qzeros|SCB|absmax)$", tensor) for tensor in over):
        return "The model is quantised: take it in bfloat16 or float32."
    if lost and over and (found := wrapped_names_advice(lost, over)):
        return found
    if any(re.match(r"(score|classifier)\.", tensor) for tensor in over):
        return "The folder holds a trained scorer: give the language model that it was made from."
    return ""


def other_depth_advice(lost: Sequence[str], over: Sequence[str], every: Sequence[str]) -> str:
    """What to do where config.json and the files differ in the number of layers, else ""."""
    layers = layer_numbers(every)
    deepest = max(layer_numbers(over), default=-1) + 1
    # layers from which on everything that is lost lies
    starts = [n for n in layers if all(layer_of(tensor) >= n for tensor in lost)] if lost else []
    count = 0
    if starts and set(lost) == {tensor for tensor in every if layer_of(tensor) >= starts[-1]}:
        count = starts[-1]
    elif not lost and layers and deepest > max(layers) + 1:
        count = deepest
    else:
        return ""
    return (
        f"config.json asks for {max(layers) + 1} layers and the files hold {count}: set the number"
        " of layers there."
    )


def lost_head_advice(model: Any, lost: Sequence[str]) -> str:
    """What to do where the files lack the output head and nothing else, else ""."""
    modules: list[tuple[str, Any]] = list(model.named_modules()) if lost else []
    head: Any = model.get_output_embeddings() if lost else None
    names = {f"{name}.weight" for name, module in modules if module is head}
    if not names or not set(lost) <= names:
        return ""
    return (
        "The files hold no output head. If the model was saved with tied embeddings, set"
        " `tie_word_embeddings` to true in config.json; a body alone, or a scorer, is no"
        " language model."
    )


def wrapped_names_advice(lost: Sequence[str], over: Sequence[str]) -> str:
    """What to do where the files' names have a part too many, else "".

    Taking it out of the names has to give the names that are looked for.
    """
    wanted = set(lost)
    for part in [*WRAPPERS, *sorted({word for tensor in over[:1] for word in tensor.split(".")})]:
        bare = [".".join(word for word in tensor.split(".") if word != part) for tensor in over]
        if len(wanted.intersection(bare)) * 2 > len(over):
            who = WRAPPERS.get(part, "another class")
            return (
                f"Their names hold `{part}.`, as saved from {who}: take it out of the names, or"
                " save the model inside."
            )
    found = Counter(
        tensor[: -len(end)] for tensor in over for end in wanted if tensor.endswith(f".{end}")
    )
    (front, times), *_ = found.most_common(1) or [("", 0)]
    return (
        f"Their names begin with `{front}`: take that out of the names."
        if times * 2 > len(over)
        else ""
    )


def layer_numbers(names: Collection[str]) -> list[int]:
    """The numbers of the layers in names of tensors, sorted."""
    return sorted({layer_of(tensor) for tensor in names if LAYER.search(tensor)})


def layer_of(tensor: str) -> int:
    """The layer that a tensor's name has, -1 where it has none."""
    found = LAYER.search(tensor)
    return int(found[1]) if found else -1


def check_finite(tensors: dict[str, Any], name: str) -> None:
    """A weight that is not a finite number is an error that names its tensor."""
    seen = set[int]()
    for tensor, value in tensors.items():
        if not torch.is_floating_point(value) or value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        # a number that is not finite stays in every sum: one pass, a thirtieth of the time
        if bool(value.sum().isfinite()):
            continue
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            what = f"{bad} of the {value.numel()} numbers of {tensor} are not finite."
            fix = (
                "The model was saved after its training had failed, or is damaged: take an earlier"
                " one."
            )
            raise UsageError(what, where=f"model={name}", fix=fix)


def let_padding_learn(model: Any) -> None:
    """Let the embedding row of `pad_token_id` learn where that token is in texts.

    torch gives the row no gradient, and many models end texts with the padding token. A token that
    only pads, whose row was never trained (zeros), keeps its place: sampled by chance, a row of
    zeros behind a norm would have a gradient a thousand times too large.
    """
    embedding = model.get_input_embeddings()
    pad = embedding.padding_idx if isinstance(embedding, nn.Embedding) else None
    if pad is None:
        return
    configs = (model.config.get_text_config(), getattr(model, "generation_config", None))
    special = set[Any]()
    for config in configs:
        for name in ("bos", "eos"):
            ids: Any = getattr(config, f"{name}_token_id", None)
            special.update(ids if is_list(ids) else [ids])
    if pad in special or bool(embedding.weight[pad].any()):
        embedding.padding_idx = None


def note_untied_head(model: Any) -> None:
    """Set `tie_word_embeddings` to False where the head is a tensor of its own.

    Else the model, once saved, would be loaded with its embedding as its head.
    """
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is not embedding.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def check_ids(policy: Any, ids: Sequence[int], where: str) -> None:
    """UsageError for ids without an embedding, before a kernel reads beyond the matrix.

    policy: a policy or scorer.
    """
    rows = policy.model.get_input_embeddings().weight.shape[0]
    if ids and max(ids) >= rows:
        token = policy.tokenizer.convert_ids_to_tokens(max(ids))
        what = (
            f"the tokenizer numbers {token!r} {max(ids)}, and the model's embedding has {rows}"
            " rows, from 0."
        )
        fix = (
            "Take the tokenizer that the model was trained with, or resize the embedding"
            " (`resize_token_embeddings`) and save it."
        )
        raise UsageError(what, where=where, fix=fix)


def guard_ids(policy: Any) -> None:
    """Check all ids that go into the model, where its tokenizer is longer than its embedding."""
    embedding = policy.model.get_input_embeddings()
    if len(policy.tokenizer) <= embedding.weight.shape[0]:
        return
    check_ids(policy, sorted(policy.eos_ids), "its end token")

    def check(_: nn.Module, args: tuple[Any, ...]) -> None:
        check_ids(policy, ints(args[0].unique()) if args else (), "a text")

    embedding.register_forward_pre_hook(check)
