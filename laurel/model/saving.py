"""The end of a training: what is written, in which precision, and the proof that the folder says
what was trained.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from laurel.core.bound_objects import bound_object
from laurel.core.errors import LaurelError
from laurel.core.files import atomic_folder
from laurel.model.adapters import INSIDE, inside_of
from laurel.model.folders import base_of, is_adapter, looks_local
from laurel.model.readback import ReadBack
from laurel.model.written import NAMES, write_model

ROUNDINGS = 8
"""How far what a folder says may be from what was trained, as a multiple of what rounding every
weight once does (a merge: at most 2).
"""
KINDS = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Origin:
    """Where weights came from: `base`, the folder (absolute) or hub name that adapters belong on,
    and the precision of its files.
    """

    base: str = ""
    dtype: torch.dtype | None = None


def origin_of(name: str) -> Origin:
    """Of a model's folder or hub name; of an adapter's folder: its base. One that was given in
    Python is no folder's: it may have moved.
    """
    if (model := bound_object(name)) is not None:
        return Origin("", getattr(model.config, "dtype", None))
    base = base_of(name) if is_adapter(name) else name
    folder = Path(base)
    return Origin(str(folder.resolve()) if folder.exists() else base, stored(base))


def stored(name: str) -> torch.dtype | None:
    """The precision that most numbers of a model's files have; of a hub name what its configuration
    says. None: nobody says.
    """
    sizes: dict[str, int] = {}
    for file in sorted(Path(name).glob("model*.safetensors")) if Path(name).is_dir() else ():
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for tensor, entry in header.items():
            if tensor != "__metadata__":
                sizes[entry["dtype"]] = (
                    sizes.get(entry["dtype"], 0)
                    + entry["data_offsets"][1]
                    - entry["data_offsets"][0]
                )
    if sizes:
        kind = KINDS.get(max(sizes, key=lambda one: sizes[one]))
        return kind if kind is not None and kind.is_floating_point else None
    from transformers import AutoConfig

    found = getattr(AutoConfig.from_pretrained(name), "dtype", None)
    return getattr(torch, found, None) if isinstance(found, str) else found


def precision(live: torch.dtype, origin: Origin, asked: str | None) -> torch.dtype:
    """What a folder is written in: what is asked for, else the base's precision, but nothing wider
    than what is in memory.
    """
    if asked not in (None, "auto"):
        return getattr(torch, str(asked))
    return (
        origin.dtype if origin.dtype is not None and origin.dtype.itemsize < live.itemsize else live
    )


def no_adapter(adapters: Any, origin: Origin) -> str:
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
class Saved:
    """Adapters as a file holds them: name -> tensor (the live ones), and the configuration beside
    them.
    """

    tensors: dict[str, Tensor]
    config: Any


def as_saved(
    adapters: Any,
    origin: Origin,
    *,
    inside: str = "",
    task: str | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> Saved:
    """The adapters of a PeftModel, named as PEFT names them for the whole model.

    inside: where in that model the PeftModel sits (its body, say). head: tensors of a layer beside
    it that is trained whole.
    """
    from peft import get_peft_model_state_dict

    with torch.no_grad():
        own = get_peft_model_state_dict(adapters, save_embedding_layers=False)
    tensors = {
        inside_of(inside) + name.removeprefix(INSIDE): tensor.detach()
        for name, tensor in own.items()
    }
    config = copy.deepcopy(adapters.peft_config["default"])
    config.inference_mode, config.base_model_name_or_path = True, origin.base
    if head is not None:
        tensors |= {INSIDE + name: tensor.detach() for name, tensor in head.items()}
        config.modules_to_save = [
            *(config.modules_to_save or []),
            *sorted({name.partition(".")[0] for name in head}),
        ]
    config.task_type = task or config.task_type
    return Saved(tensors, config)


def write_adapters(saved: Saved, folder: Path, dtype: torch.dtype) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to("cpu", dtype).clone().contiguous() for name, tensor in saved.tensors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    saved.config.save_pretrained(folder)


Say = Callable[[], Tensor]


@torch.no_grad()
def adapters_gap(saved: Saved, folder: Path, dtype: torch.dtype, say: Say) -> tuple[float, float]:
    """How far what the model says with the adapters of a folder is from what it says with its own,
    and how far rounding may put it.
    """
    from peft import PeftConfig

    ours, config = say(), PeftConfig.from_pretrained(str(folder))
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    same = all(
        getattr(config, name) == getattr(saved.config, name)
        for name in ("r", "lora_alpha", "base_model_name_or_path")
    )
    if read.keys() != saved.tensors.keys() or not same:
        return float("inf"), 0.0
    with instead(saved.tensors, lambda name, own: read[name].to(own)):
        gap = largest(ours - say())
    if gap == 0:
        return 0.0, 0.0
    dice, eps = torch.Generator().manual_seed(0), torch.finfo(dtype).eps

    def shaken(name: str, own: Tensor) -> Tensor:
        sign = torch.randint(0, 2, own.shape, generator=dice, dtype=torch.int8).to(own.device)
        return own * (1 + (2.0 * sign - 1) * eps)

    with instead(saved.tensors, shaken):
        return gap, allowed(ours, say(), eps)


@contextmanager
def instead(
    tensors: Mapping[str, Tensor], other: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Other numbers in these tensors for a while; their own are back afterwards, bit by bit."""
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            tensor.copy_(other(name, tensor))
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])


def largest(difference: Tensor) -> float:
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
    heed: Any = None,
    shape: Any = None,
) -> tuple[float, float]:
    """How far what a folder says in plain transformers is from `ours`, and how far rounding may put
    it.

    Rounding: of every weight, in the coarser of the two precisions, that of the files and that of
    the computation. heed: the entries
    that count. shape: what is done to logits before they are compared.
    """
    again = ReadBack(folder, auto, ours.device)

    def say(noise: float = 0.0) -> Tensor:
        logits = again.say(noise, **inputs)
        return shape(logits) if shape else logits

    theirs = say()
    if theirs.shape != ours.shape:
        return float("inf"), 0.0
    counts = slice(None) if heed is None else heed
    gap = largest((ours - theirs)[counts])
    if gap == 0:
        return 0.0, 0.0
    eps = max(torch.finfo(again.dtype).eps, torch.finfo(live).eps)
    return gap, allowed(theirs[counts], say(eps)[counts], eps)


def allowed(said: Tensor, shaken: Tensor, eps: float) -> float:
    """What rounding explains: ROUNDINGS times what it does to weights, or to the largest number (of
    few, dice may move none).
    """
    return ROUNDINGS * max(eps * largest(said), largest(shaken - said))


@contextmanager
def proven(folder: Path, what: str, fix: str) -> Iterator[tuple[Path, list[tuple[float, float]]]]:
    """A folder to write into, and a list for (gap, allowed). What is not proven does not come to
    `folder`: it is kept beside it.
    """
    with atomic_folder(folder) as made:
        gaps: list[tuple[float, float]] = []
        yield made, gaps
        for gap, allowed in gaps:
            if not gap <= allowed:
                beside = folder.parent / f"{folder.name}-unproven"
                shutil.rmtree(beside, ignore_errors=True)
                made.rename(beside)
                told = (
                    f"the saved {what} differs from the trained one by {gap:.2g}, where rounding"
                    f" explains {allowed:.2g}."
                )
                raise LaurelError(
                    told,
                    where=str(folder),
                    fix=f"The last checkpoint is kept, and what was written, in {beside}. {fix}",
                )


def moved(what: str, gap: float, size: float, live: torch.dtype, kind: torch.dtype) -> list[str]:
    """What rounding to the files' precision did, in a line; nothing where nothing was rounded."""
    if kind.itemsize >= live.itemsize or not gap:
        return []
    name = str(kind).removeprefix("torch.")
    return [
        f"saved in {name}: rounding moves the {what} by at most {gap:.2g} of {size:.2g}"
        " (--save_dtype float32 keeps every bit)"
    ]


def auto_causal() -> Any:
    """What plain transformers loads a language model with."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def save_causal(policy: Any, folder: Path, merge: bool, dtype: str | None) -> list[str]:
    """`Policy.save`."""
    model, causal, notes = policy.model, policy.causal, list[str]()
    why = no_adapter(model, policy.origin) if causal is not model else "no"
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
    kind, ids = precision(live, policy.origin, dtype), {"input_ids": policy.probe()}
    try:
        with proven(folder, "model", fix) as (made, gaps):
            policy.tokenizer.save_pretrained(made)
            write_model(causal, made, kind)
            ours = policy.said()
            gaps.append(model_gap(made, auto_causal(), ours, live, ids))
    except LaurelError:
        if not why:
            write_adapters(as_saved(model, policy.origin), folder.parent / "adapter", torch.float32)
        raise
    return [*notes, *moved("logits", gaps[0][0], largest(ours), live, kind)]


def save_adapters(policy: Any, folder: Path, dtype: str | None) -> list[str]:
    """The adapters as a PEFT folder, with tokenizer and end tokens."""
    saved = as_saved(policy.model, policy.origin)
    live = next(iter(saved.tensors.values())).dtype
    kind = precision(live, policy.origin, dtype)
    with proven(
        folder, "adapter", "Continue with --resume true to save again, or with --save_merged true."
    ) as (made, gaps):
        policy.tokenizer.save_pretrained(made)
        if policy.causal.can_generate():
            policy.causal.generation_config.save_pretrained(made)
        write_adapters(saved, made, kind)
        gaps.append(adapters_gap(saved, made, kind, policy.said))
    return moved("logits", gaps[0][0], largest(policy.said()), live, kind)
