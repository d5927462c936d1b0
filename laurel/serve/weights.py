"""New weights for a model that is being served: read and checked whole, then put in place."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import LaurelError
from laurel.fast.decode import compact_of
from laurel.model.adapters import load_adapters
from laurel.model.folders import ADAPTER, check_folder, weight_files
from laurel.model.policy import Policy, load_causal
from laurel.serve.engine import Refused, Served

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/@-]{0,126}[A-Za-z0-9])?")
"""Names under which adapters are served."""


def allowed_folder(asked: object, roots: Sequence[Path]) -> Path:
    """The folder that a client names, if it lies in one of the folders named at the start.

    Links are followed before it is looked at, those of its files, too.
    """
    if not roots:
        what = "this server opens no folder: start it with --allow_folder DIR."
        raise Refused(what, status=403, kind="permission_error")
    if not isinstance(asked, str) or not asked or len(asked) > 4096 or "\0" in asked:
        raise Refused("the folder's path is not one.")
    try:
        folder = Path(asked).resolve(strict=True)
        inside = any(folder.is_relative_to(root) for root in roots)
        if inside and folder.is_dir():
            check_files(folder)
            return folder
    except (OSError, RuntimeError, ValueError):
        inside = False
    # what lies elsewhere is not told: not even whether it is there
    what = "no such folder in the folders that this server may open (--allow_folder)."
    raise Refused(what, status=404, kind="not_found_error")


def check_files(folder: Path) -> None:
    """Refused where a file of a folder, or one that its index names, lies outside of it."""
    for file in folder.iterdir():
        if not file.resolve().is_relative_to(folder):
            raise Refused(f"{file.name} is a link that leads out of the folder.", status=403)
        if file.name.endswith(".index.json"):
            named = json.loads(file.read_text(encoding="utf-8")).get("weight_map", {}).values()
            if any("/" in str(name) or "\\" in str(name) for name in named):
                raise Refused(f"{file.name} names files in other folders.", status=403)


def put_weights(policy: Policy, fresh: Mapping[str, Tensor], sharers: Sequence[Served]) -> None:
    """Put weights that `read_weights` gave in the place of those that are served.

    sharers: every name that is served with these weights.
    """
    with torch.no_grad():
        for name, tensor in policy.causal.state_dict().items():
            tensor.copy_(fresh[name])
    for one in sharers:
        refresh(one.policy)


def read_weights(policy: Policy, folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder, by the names of the served model.

    Refused where they differ in name or shape, or are not finite: the old ones go on.
    """
    if policy.causal is not policy.model:
        raise Refused("a model with adapters takes new adapters, not new weights.", status=409)
    if (folder / ADAPTER).is_file():
        raise Refused("the folder holds adapters: load them under a name of their own.")
    try:
        check_folder(str(folder))
        if not list(weight_files(folder)):
            raise Refused("the folder holds no weights.", status=404, kind="not_found_error")
        dtype = next(policy.causal.parameters()).dtype
        fresh: dict[str, Tensor] = load_causal(str(folder), dtype).state_dict()
    except Refused:
        raise
    except Exception as error:
        what = error.what if isinstance(error, LaurelError) else f"{type(error).__name__}."
        raise Refused(f"the weights cannot be read, and the old ones stay: {what}") from error
    own: dict[str, Tensor] = policy.causal.state_dict()
    strange = sorted(own.keys() ^ fresh.keys()) or sorted(
        name for name, tensor in own.items() if fresh[name].shape != tensor.shape
    )
    if strange:
        raise Refused(
            f"the folder holds another model, and the old weights stay: {len(strange)} tensors"
            f" differ, such as {strange[0]}."
        )
    for name, tensor in fresh.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Refused(f"{name} is not finite, and the old weights stay.")
    return fresh


def refresh(policy: Policy) -> None:
    """The decoder takes the weights as they are now."""
    if policy.decoders.get("compact"):
        compact_of(policy)


def with_adapters(base: Policy, folder: Path) -> Policy:
    """A policy with the adapters of a folder on the base, whose weights they share.

    The base that the folder's configuration names is not opened.
    """
    if not (folder / ADAPTER).is_file():
        raise Refused(f"the folder holds no {ADAPTER}.", status=404, kind="not_found_error")
    try:
        model: Any = load_adapters(str(folder), shared_copy(base.causal))
    except Exception as error:
        what = error.what if isinstance(error, LaurelError) else f"{type(error).__name__}."
        raise Refused(f"the adapters cannot be used: {what}") from error
    return Policy(
        model.to(base.device).eval(),
        base.tokenizer,
        base.dtype,
        base.template,
        base.notes,
        base.origin,
        base.room,
        base.whole_logits,
        base.logit_size,
    )


def shared_copy(module: nn.Module) -> Any:
    """A copy of the modules that holds the same parameters and buffers."""
    shared: dict[int, Any] = {id(one): one for one in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
