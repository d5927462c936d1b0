"""Saves what was trained, in a precision, and proves that the folder computes the same."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from laurel.core.bound_objects import bound_object
from laurel.core.errors import LaurelError
from laurel.core.files import atomic_folder
from laurel.model.adapters import INSIDE, inside_of, peft_library
from laurel.model.folders import adapter_base, is_adapter, looks_local
from laurel.model.readback import ReadBack
from laurel.model.written import NAMES, write_model

ROUNDINGS = 8
"""How far a folder's logits may be from the trained model's.

A multiple of what rounding every weight once does (a merge: at most 2).
"""
KINDS = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Origin:
    """Where weights came from, and the precision of the files there.

    `base`: the folder (absolute) or hub name of the model without adapters.
    """

    base: str = ""
    dtype: torch.dtype | None = None


def origin_of(name: str) -> Origin:
    """The origin of a model's folder or hub name; of an adapter's folder: its base.

    A model given as a Python object has no folder, since its weights may have been changed.
    """
    if (model := bound_object(name)) is not None:
        return Origin("", getattr(model.config, "dtype", None))
    base = adapter_base(name) if is_adapter(name) else name
    folder = Path(base)
    return Origin(str(folder.resolve()) if folder.exists() else base, stored_dtype(base))


def stored_dtype(name: str) -> torch.dtype | None:
    """The precision that most bytes of a model's files have, None where it is not known.

    Of a hub name it is what its configuration names.
    """
    sizes = Counter[str]()
    for file in sorted(Path(name).glob("model*.safetensors")) if Path(name).is_dir() else ():
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(size))
        for tensor, entry in header.items():
            if tensor != "__metadata__":
                start, end = entry["data_offsets"]
                sizes[entry["dtype"]] += end - start
    if sizes:
        # the first of the largest, in the order of the files
        kind = KINDS.get(max(sizes, key=lambda one: sizes[one]))
        return kind if kind is not None and kind.is_floating_point else None
    import transformers

    auto: Any = transformers.AutoConfig
    found = getattr(auto.from_pretrained(name), "dtype", None)
    return getattr(torch, found, None) if isinstance(found, str) else found


def saving_precision(live: torch.dtype, origin: Origin, asked: str | None) -> torch.dtype:
    """The precision to write a folder in: what is asked for, else the base's.

    The base's is taken only where it is narrower than that of the weights in memory (`live`).
    """
    if asked not in (None, "auto"):
        return getattr(torch, str(asked))
    if origin.dtype is not None and origin.dtype.itemsize < live.itemsize:
        return origin.dtype
    return live


def why_no_adapter(adapters: Any, origin: Origin) -> str:
    """Why the adapters of a model cannot be saved as such, "" if they can."""
    if not origin.base:
        return "the model under the adapters is in no folder"
    if looks_local(origin.base) and not Path(origin.base).is_dir():
        return f"the model under the adapters is no longer at {origin.base}"
    if list(adapters.peft_config) != ["default"]:
        return "there is more than one adapter"
    kind = adapters.peft_config["default"]
    if kind.peft_type != "LORA" or getattr(kind, "ensure_weight_tying", False):
        return "these adapters are not plain LoRA"
    return ""


@dataclass(frozen=True)
class SavedAdapters:
    """Adapters as a file holds them: name -> tensor (the live ones), and their configuration."""

    tensors: dict[str, Tensor]
    config: Any


def as_saved(
    adapters: Any,
    origin: Origin,
    *,
    inside: str = "",
    task: str | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> SavedAdapters:
    """The adapters of a PeftModel, named as PEFT names them for the whole model.

    inside: where in that model the PeftModel sits (its body, say). head: tensors of another layer
    that is trained whole.
    """
    with torch.no_grad():
        own: dict[str, Tensor] = peft_library().get_peft_model_state_dict(
            adapters, save_embedding_layers=False
        )
    front = inside_of(inside)
    tensors = {front + name.removeprefix(INSIDE): tensor.detach() for name, tensor in own.items()}
    config = copy.deepcopy(adapters.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = origin.base
    if head is not None:
        tensors |= {INSIDE + name: tensor.detach() for name, tensor in head.items()}
        whole_layers = sorted({name.partition(".")[0] for name in head})
        config.modules_to_save = [*(config.modules_to_save or []), *whole_layers]
    config.task_type = task or config.task_type
    return SavedAdapters(tensors, config)


def write_adapters(saved: SavedAdapters, folder: Path, dtype: torch.dtype) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to("cpu", dtype).clone().contiguous() for name, tensor in saved.tensors.items()
    }
    files: Any = safetensors.torch
    files.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    saved.config.save_pretrained(folder)


Logits = Callable[[], Tensor]


@torch.no_grad()
def adapters_gap(
    saved: SavedAdapters, folder: Path, dtype: torch.dtype, logits: Logits
) -> tuple[float, float]:
    """The gap between logits with a folder's adapters and with the live ones, and what is allowed.

    logits: computes the model's logits with the adapters that are in it.
    """
    ours = logits()
    config = peft_library().PeftConfig.from_pretrained(str(folder))
    read = adapter_tensors(folder / "adapter_model.safetensors")
    same = all(
        getattr(config, name) == getattr(saved.config, name)
        for name in ("r", "lora_alpha", "base_model_name_or_path")
    )
    if read.keys() != saved.tensors.keys() or not same:
        return float("inf"), 0.0

    def from_file(name: str, own: Tensor) -> Tensor:
        return read[name].to(own)

    with temporarily_replaced(saved.tensors, from_file):
        gap = largest_entry(ours - logits())
    if gap == 0:
        return 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps

    def perturbed(name: str, own: Tensor) -> Tensor:
        # every weight rounded once, up or down by a coin
        coin = torch.randint(0, 2, own.shape, generator=generator, dtype=torch.int8)
        sign = 2.0 * coin.to(own.device) - 1
        return own * (1 + sign * eps)

    with temporarily_replaced(saved.tensors, perturbed):
        return gap, allowed_gap(ours, logits(), eps)


def adapter_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name."""
    reader: Any = safetensors.safe_open
    with reader(file, "pt") as opened:
        names: list[str] = opened.keys()
        return {name: opened.get_tensor(name) for name in names}


@contextmanager
def temporarily_replaced(
    tensors: Mapping[str, Tensor], other: Callable[[str, Tensor], Tensor]
) -> Generator[None]:
    """Other numbers in these tensors for a while; their own are back afterwards, bit by bit."""
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            tensor.copy_(other(name, tensor))
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])


def largest_entry(difference: Tensor) -> float:
    """The largest entry, whatever its sign; nan where one is."""
    return float(difference.abs().max())


@torch.no_grad()
def model_gap(
    folder: Path,
    auto: Any,
    ours: Tensor,
    live: torch.dtype,
    inputs: Mapping[str, Tensor],
    *,
    compared: Any = None,
    shape: Any = None,
) -> tuple[float, float]:
    """The gap between a folder's logits in plain transformers and `ours`, and what is allowed.

    Allowed is what rounding explains: of every weight, in the coarser of the two precisions, that
    of the files and that of the computation. compared: a mask of the entries that count. shape:
    what is done to logits before they are compared.
    """
    again = ReadBack(folder, auto, ours.device)

    def their_logits(noise: float = 0.0) -> Tensor:
        logits = again.logits(noise, **inputs)
        return shape(logits) if shape else logits

    theirs = their_logits()
    if theirs.shape != ours.shape:
        return float("inf"), 0.0
    counts = slice(None) if compared is None else compared
    gap = largest_entry((ours - theirs)[counts])
    if gap == 0:
        return 0.0, 0.0
    eps = max(torch.finfo(again.dtype).eps, torch.finfo(live).eps)
    return gap, allowed_gap(theirs[counts], their_logits(eps)[counts], eps)


def allowed_gap(logits: Tensor, perturbed: Tensor, eps: float) -> float:
    """The gap that rounding explains: ROUNDINGS times what one rounding does.

    One rounding of the weights, or of the largest logit: with few weights, random signs may leave
    the logits as they are.
    """
    return ROUNDINGS * max(eps * largest_entry(logits), largest_entry(perturbed - logits))


@contextmanager
def verified_folder(
    folder: Path, what: str, fix: str
) -> Generator[tuple[Path, list[tuple[float, float]]]]:
    """A folder to write into, and a list for (gap, allowed).

    LaurelError where a gap is larger than what is allowed: then what was written does not come to
    `folder` but is kept in a folder next to it.
    """
    with atomic_folder(folder) as made:
        gaps: list[tuple[float, float]] = []
        yield made, gaps
        for gap, allowed in gaps:
            # nan is larger than what is allowed, too
            if not gap <= allowed:
                unproven = folder.parent / f"{folder.name}-unproven"
                shutil.rmtree(unproven, ignore_errors=True)
                made.rename(unproven)
                problem = (
                    f"the saved {what} differs from the trained one by {gap:.2g}, where rounding"
                    f" explains {allowed:.2g}."
                )
                raise LaurelError(
                    problem,
                    where=str(folder),
                    fix=f"The last checkpoint is kept, and what was written, in {unproven}. {fix}",
                )


def rounding_note(
    what: str, gap: float, size: float, live: torch.dtype, kind: torch.dtype
) -> list[str]:
    """What rounding to the files' precision did, in a line; nothing where nothing was rounded."""
    if kind.itemsize >= live.itemsize or not gap:
        return []
    name = str(kind).removeprefix("torch.")
    return [
        f"saved in {name}: rounding moves the {what} by at most {gap:.2g} of {size:.2g}"
        " (--save_dtype float32 keeps every bit)"
    ]


def auto_causal() -> Any:
    """The class with which plain transformers loads a language model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def save_causal(policy: Any, folder: Path, merge: bool, dtype: str | None) -> list[str]:
    """Write a policy's folder, prove it, and return notes for the user; see `Policy.save`."""
    model = policy.model
    causal = policy.causal
    notes = list[str]()
    why = why_no_adapter(model, policy.origin) if causal is not model else "no"
    if not merge and not why:
        return save_adapters(policy, folder, dtype)
    fix = "The disk may be at fault: continue with --resume true to save again."
    if causal is not model and why:
        notes.append(f"the whole model is saved, with the adapters merged in: {why}")
    elif not why:
        fix = (
            f"The adapters, for peft, are in {folder.parent / 'adapter'}; --resume true"
            " --save_merged false saves them."
        )
    live = next(causal.parameters()).dtype
    kind = saving_precision(live, policy.origin, dtype)
    ids = {"input_ids": policy.probe()}
    try:
        with verified_folder(folder, "model", fix) as (made, gaps):
            policy.tokenizer.save_pretrained(made)
            write_model(causal, made, kind)
            ours = policy.probe_logits()
            gaps.append(model_gap(made, auto_causal(), ours, live, ids))
    except LaurelError:
        if not why:
            write_adapters(as_saved(model, policy.origin), folder.parent / "adapter", torch.float32)
        raise
    return [*notes, *rounding_note("logits", gaps[0][0], largest_entry(ours), live, kind)]


def save_adapters(policy: Any, folder: Path, dtype: str | None) -> list[str]:
    """The adapters as a PEFT folder, with tokenizer and end tokens."""
    saved = as_saved(policy.model, policy.origin)
    live = next(iter(saved.tensors.values())).dtype
    kind = saving_precision(live, policy.origin, dtype)
    fix = "Continue with --resume true to save again, or with --save_merged true."
    with verified_folder(folder, "adapter", fix) as (made, gaps):
        policy.tokenizer.save_pretrained(made)
        if policy.causal.can_generate():
            policy.causal.generation_config.save_pretrained(made)
        write_adapters(saved, made, kind)
        gaps.append(adapters_gap(saved, made, kind, policy.probe_logits))
    return rounding_note("logits", gaps[0][0], largest_entry(policy.probe_logits()), live, kind)
