"""Weights as they were meant: every tensor of a model comes from its files, in its shape, finite,
and can learn.
"""

from __future__ import annotations

import logging
import re
import textwrap
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from laurel.core.errors import UsageError
from laurel.model.narrow import hold

LOADING = threading.RLock()
"""Held while weights are loaded. transformers replaces torch's initialisers meanwhile, for the
whole process: two threads that load at
once put back each other's replacements, and every model made afterwards starts from other weights.
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
BESIDE = re.compile(
    r"(^|[._])(vision|visual|vit|image|audio|speech|video|multi_modal|multimodal|mm|mtp|nextn|v_head|value_head)"
)
"""Names of parts that other models have beside a language model: towers for pictures and sound,
further heads.
"""
BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.\w+$|position_ids$")
"""Names of constants that old files hold and nothing learns."""
LAYER = re.compile(r"\.(\d+)\.")


def load_model(
    kind: Any, name: str, what: str, dtype: torch.dtype, *, spare: Collection[str] = ()
) -> Any:
    """A transformers model of class `kind`, every tensor of it from the files of `name`, or an
    error that says why not.

    what: how the error names it ("a causal language model"). spare: parts of it that may be new,
    or, in the files, be left over: heads that the caller replaces or does not use. What the files
    hold for towers of other models is named as unused.
    """
    with LOADING, said_by_us() as reports:
        try:
            how: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
            model, report = kind.from_pretrained(name, ignore_mismatched_sizes=True, **how)
        except (
            Exception
        ) as error:  # whatever another library raises about a folder is told in our words
            raise UsageError(
                f"cannot load {what}: {told(error, reports)}", where=f"model={name}"
            ) from error
    check_shapes(report["mismatched_keys"], name)
    check_names(model, report["missing_keys"], report["unexpected_keys"], name, spare)
    check_finite(model.state_dict(), name)
    let_padding_learn(model)
    tell_ties(model)
    return hold(model, dtype)


@contextmanager
def said_by_us() -> Iterator[list[str]]:
    """transformers' own table of what was not loaded is collected, not shown: `check_names` says
    it, and stops.
    """
    logger, reports = logging.getLogger("transformers.modeling_utils"), list[str]()

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        ours = "LOAD REPORT" in text or "checkpoint seem corrupted" in text
        reports.extend([text] if ours else [])
        return not ours

    logger.addFilter(keep)
    try:
        yield reports
    finally:
        logger.removeFilter(keep)


def told(error: Exception, reports: Sequence[str] = ()) -> str:
    """An error of another library in a line: its first, the next too where the first only announces
    it.
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
    """Tensors that the files lack, or have too many, are an error that names them and the cause, if
    it can be seen.
    """

    def spared(tensor: str) -> bool:
        return any(tensor == part or tensor.startswith(f"{part}.") for part in spare)

    lost = sorted(tensor for tensor in missing if not spared(tensor))
    over = sorted(tensor for tensor in unexpected if not BUFFERS.search(tensor))
    wrong = lost or [tensor for tensor in over if not BESIDE.search(tensor) and not spared(tensor)]
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
            f" random, such as {few(lost)}."
        )
    else:
        tensors = "tensors" if len(wrong) > 1 else "a tensor"
        what = (
            f"the files hold {tensors} that the model of config.json has no place for ({len(wrong)}"
            f" in all), such as {few(wrong)}."
        )
    raise UsageError(what, where=f"model={name}", fix=cause(model, lost, over, every))


def few(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(names[:3])


def cause(model: Any, lost: Sequence[str], over: Sequence[str], every: Sequence[str]) -> str:
    """Why names do not meet, and what to do; of several causes the one that explains most."""
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
    if lost and over and (found := wrapper(lost, over)):
        return found
    head = any(re.match(r"(score|classifier)\.", tensor) for tensor in over)
    if head:
        return "The folder holds a trained scorer: give the language model that it was made from."
    layers, deep = depth(every), max(depth(over), default=-1) + 1
    behind = (
        [n for n in layers if all(LAYER.search(t) and at(t) >= n for t in lost)] if lost else []
    )
    if behind and set(lost) == {t for t in every if LAYER.search(t) and at(t) >= behind[-1]}:
        return (
            f"config.json asks for {max(layers) + 1} layers and the files hold {behind[-1]}: set"
            " the number of layers there."
        )
    if not lost and layers and deep > max(layers) + 1:
        return (
            f"config.json asks for {max(layers) + 1} layers and the files hold {deep}: set the"
            " number of layers there."
        )
    output = (
        {f"{n}.weight" for n, m in model.named_modules() if m is model.get_output_embeddings()}
        if lost
        else set()
    )
    if output and set(lost) <= output:
        return (
            "The files hold no output head. If the model was saved with tied embeddings, set"
            " `tie_word_embeddings` to true in config.json; a body alone, or a scorer, is no"
            " language model."
        )
    return (
        "config.json and the weights do not belong together, or files are missing: copy or download"
        " the folder again."
    )


def wrapper(lost: Sequence[str], over: Sequence[str]) -> str:
    """The part too many that the files' names have, if taking it out gives the names that are
    looked for.
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


def depth(names: Collection[str]) -> list[int]:
    """The numbers of the layers that names speak of."""
    return sorted({at(tensor) for tensor in names if LAYER.search(tensor)})


def at(tensor: str) -> int:
    """The layer of a tensor whose name has one."""
    found = LAYER.search(tensor)
    return int(found[1]) if found else -1


def check_finite(tensors: dict[str, Any], name: str) -> None:
    """A weight that is not a finite number is an error that names its tensor."""
    seen = set[int]()
    for tensor, value in tensors.items():
        if not torch.is_floating_point(value) or value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        if bool(
            value.sum().isfinite()
        ):  # a number that is not finite stays in every sum; one pass, a thirtieth of the time
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
    """Let the row of `pad_token_id` learn where it is a token of texts: torch gives it no gradient,
    and many models end texts with it.

    A token that only pads, whose row was never trained (zeros), keeps its place: sampled by chance,
    a row of zeros behind a norm would have a gradient a thousand times too large.
    """
    embedding = model.get_input_embeddings()
    pad = embedding.padding_idx if isinstance(embedding, nn.Embedding) else None
    if pad is None:
        return
    configs = (model.config.get_text_config(), getattr(model, "generation_config", None))
    named = [
        getattr(config, f"{name}_token_id", None) for config in configs for name in ("bos", "eos")
    ]
    spoken = {token for ids in named for token in (ids if isinstance(ids, list) else [ids])}
    if pad in spoken or bool(embedding.weight[pad].any()):
        embedding.padding_idx = None


def tell_ties(model: Any) -> None:
    """Where the files hold an output head of its own, the configuration must not call it tied:
    others would read it so, once saved.
    """
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is not embedding.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def check_ids(policy: Any, ids: Sequence[int], where: str) -> None:
    """Ids that a policy or scorer has no embedding for are an error, before a kernel reads beyond
    the matrix.
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
    """Where a tokenizer is longer than the embedding, look at all ids on their way in: nobody knows
    which texts need the missing rows.
    """
    embedding = policy.model.get_input_embeddings()
    if len(policy.tokenizer) <= embedding.weight.shape[0]:
        return
    check_ids(policy, sorted(policy.eos_ids), "its end token")

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        check_ids(policy, args[0].unique().tolist() if args else (), "a text")

    embedding.register_forward_pre_hook(look)
