"""Ways in which new weights come to a server: a folder that it reads, or a folder of adapters.

A transfer writes once, before any server is touched, and then pushes what it wrote to each server.
What breaks in the middle is finished or undone: a server that was paused goes on, with the weights
of before, and the error names server and folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from laurel.core.errors import LaurelError
from laurel.core.files import disk_errors, read_json, write_atomic
from laurel.core.http import ServerRefusal
from laurel.core.numbered_dirs import remove_empty_dir
from laurel.model.digests import file_digests, parameter_digests
from laurel.model.policy import Policy
from laurel.model.saving import why_no_adapter
from laurel.rollout.engine_server import QUICK, Server

LOADING = "-loading"
"""Ends the name of a version of which a server may have a part only."""
HEAD_FILE = "model-head.safetensors"
BACK = "The weights of before are back on it."


class WeightTransfer(Protocol):
    """How weights come to servers, under a label that is the run's and the version's own.

    - means: how, in a line for the user. names_version: does the label become the version of the
      server's weights? exact: are they the trainer's own, and not merged ones?
    - write(label): into the run's folder, where that is needed. push(server, label): the server has
      them when it returns; else it raises.
    - model(server, label): the name that requests then ask for. digests(label): what the weights
      there should be, tensor by tensor.
    - clear(servers, kept): what belongs to other labels is removed, here and there. end(): nothing
      will be pushed any more, and no server is asked for anything.
    """

    means: str
    names_version: bool

    @property
    def exact(self) -> bool: ...

    def write(self, label: str) -> None: ...

    async def push(self, server: Server, label: str) -> None: ...

    def model(self, server: Server, label: str) -> str: ...

    def digests(self, label: str) -> dict[str, str]: ...

    async def clear(self, servers: Collection[Server], kept: Collection[str]) -> None: ...

    def end(self) -> None: ...


@dataclass
class FolderTransfer:
    """Full weights as a folder of safetensors that the server reads: `reload_weights`.

    with_head: the output head has a tensor of its own there, even where it is the embedding's.
    """

    policy: Policy
    place: Path
    with_head: bool = False
    means: str = "a folder"
    names_version: bool = True

    @property
    def exact(self) -> bool:
        """Adapters that are merged round differently from adapters beside the weights."""
        return self.policy.causal is self.policy.model

    def folder(self, label: str) -> Path:
        """Where the weights of a label are."""
        return self.place / label

    def digests(self, label: str) -> dict[str, str]:
        """Those of the parameters; of merged ones those of the files, which were proven."""
        if self.exact:
            return parameter_digests(self.policy.causal)
        return file_digests(self.folder(label))

    def write(self, label: str) -> None:
        """The whole model in the precision of the weights in memory, adapters merged into it."""
        kind = str(next(self.policy.causal.parameters()).dtype).removeprefix("torch.")
        self.policy.save(self.folder(label), merge=True, dtype=kind)
        if self.with_head:
            with disk_errors(self.folder(label)):
                add_head(self.folder(label), *tied_names(self.policy.causal))

    def model(self, server: Server, label: str) -> str:
        """The server's own name for its model."""
        return server.known.models[0]

    async def push(self, server: Server, label: str) -> None:
        """Pause, read, name the version, go on; whatever happens, the server goes on."""
        try:
            await server.call("/pause?mode=keep", {})
            await self.reload(server, label)
        finally:
            await self.resume(server)

    async def reload(self, server: Server, label: str) -> None:
        """Read a folder; where that fails, that of before."""
        before = server.pushed
        if server.known.kind != "laurel":
            await server.set_version(label + LOADING)
        try:
            await self.read(server, label)
        except LaurelError as error:
            raise await self.undone(server, before, label, error) from error

    async def read(self, server: Server, label: str) -> None:
        """The server reads the folder of a label, and is named after it."""
        how = {"weights_path": str(self.folder(label))}
        if server.known.kind == "laurel":
            # weights and their name change in one moment
            how["version"] = label
        await server.call("/collective_rpc", {"method": "reload_weights", "kwargs": how})
        if server.known.kind != "laurel":
            await server.set_version(label)

    async def undone(
        self, server: Server, before: str, label: str, error: LaurelError
    ) -> LaurelError:
        """The error of a reading that failed, after the folder of before was read again."""
        state = "Its weights may be a mixture now: start it anew."
        if server.known.kind == "laurel":
            state = "It goes on with the weights of before."
        elif before and self.folder(before).is_dir():
            try:
                await self.read(server, before)
                state = BACK
            except LaurelError as again:
                state = f"{state} ({again.what})"
        what = f"weights were not read from {self.folder(label)}: {error.what}"
        fix = f"{state} {can_read(server)} {error.fix}".strip()
        return type(error)(what, where=error.where, fix=fix)

    async def resume(self, server: Server) -> None:
        """The server goes on; where it does not answer to that, it is told, not raised."""
        try:
            await server.call("/resume", {}, seconds=QUICK)
        except LaurelError as error:
            say = "%s does not answer to /resume, and may be paused: %s"
            logging.getLogger(__name__).warning(say, server.url, error.what)

    async def clear(self, servers: Collection[Server], kept: Collection[str]) -> None:
        """Remove the folders of other labels."""
        remove_folders(self.place, kept)

    def end(self) -> None:
        """Remove the last folder, which every server has read."""
        remove_folders(self.place, ())
        remove_empty_dir(self.place)


@dataclass
class AdapterTransfer:
    """Adapters as a PEFT folder, which the server serves under a name of their own.

    Nothing is paused: what was asked for under the name of before is answered with it.
    """

    policy: Policy
    place: Path
    means: str = "a folder of adapters"
    names_version: bool = False
    served: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @property
    def exact(self) -> bool:
        return True

    def digests(self, label: str) -> dict[str, str]:
        """Those of the parameters, under the adapters and of them."""
        return parameter_digests(self.policy.causal)

    def folder(self, label: str) -> Path:
        """Where the adapters of a label are."""
        return self.place / f"adapter-{label}"

    def write(self, label: str) -> None:
        """The adapters in the precision of the weights in memory."""
        kind = str(next(iter(self.policy.trainable().values())).dtype).removeprefix("torch.")
        self.policy.save(self.folder(label), dtype=kind)

    def model(self, server: Server, label: str) -> str:
        """The adapters' name."""
        return label

    async def push(self, server: Server, label: str) -> None:
        """Load them under their name; what an earlier process of the run left is unloaded first."""
        folder = self.folder(label)
        body = {"lora_name": label, "lora_path": str(folder)}
        mine = self.served.setdefault(server.url, [])
        run = label.rpartition("-")[0]
        for name in (await server.identify()).models:
            if name.startswith(f"{run}-") and name not in mine:
                await self.unload(server, name)
        try:
            await server.call("/v1/load_lora_adapter", body, plain=True)
        except LaurelError as error:
            # its first answer may have been lost, and then it is told that they are there already
            if label not in (await server.identify()).models:
                raise adapter_error(error, folder, server) from error
        mine.append(label)

    async def unload(self, server: Server, label: str) -> None:
        """The server forgets adapters; where it knows none of that name there is nothing to do."""
        try:
            path, body = "/v1/unload_lora_adapter", {"lora_name": label}
            await server.call(path, body, seconds=QUICK, plain=True)
        except ServerRefusal as error:
            if error.status not in (400, 404):
                raise

    async def clear(self, servers: Collection[Server], kept: Collection[str]) -> None:
        """Unload the adapters of other labels, and remove their folders."""
        for server in servers:
            mine = self.served.setdefault(server.url, [])
            for label in [label for label in mine if label not in kept]:
                await self.unload(server, label)
                mine.remove(label)
        remove_folders(self.place, [self.folder(label).name for label in kept])

    def end(self) -> None:
        """Remove the last folders, which no server reads any more."""
        remove_folders(self.place, ())
        remove_empty_dir(self.place)


def tied_names(causal: Any) -> tuple[str, str]:
    """The names of the tensors of the output head and of the embedding."""
    of_module: dict[Any, str] = {module: name for name, module in causal.named_modules()}
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    return f"{of_module[head]}.weight", f"{of_module[embedding]}.weight"


def add_head(folder: Path, head: str, embedding: str) -> None:
    """Write the head of a saved model, where its files have none because it is the embedding.

    vLLM on a CPU packs the head by itself when it starts, and packs it again only if it reads one.
    """
    tensors: dict[str, Path] = {}
    reader: Any = safetensors.safe_open
    for file in sorted(folder.glob("*.safetensors")):
        with reader(file, "pt") as opened:
            tensors |= dict.fromkeys(opened.keys(), file)
    if head in tensors or embedding not in tensors:
        return
    with reader(tensors[embedding], "pt") as opened:
        tensor: Tensor = opened.get_tensor(embedding)
    files: Any = safetensors.torch
    files.save_file({head: tensor}, folder / HEAD_FILE, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        content["weight_map"][head] = HEAD_FILE
        write_atomic(index, json.dumps(content))


def can_read(server: Server) -> str:
    """What to do where a server does not read a folder."""
    if server.known.kind == "laurel":
        return "Start it with --allow_folder and the folder of the run."
    return "Can the server read that folder?"


def adapter_error(error: LaurelError, folder: Path, server: Server) -> LaurelError:
    """The error of adapters that a server did not load."""
    what = f"adapters were not loaded from {folder}: {error.what}"
    fix = can_read(server)
    if server.known.kind == "vllm":
        fix = f"{fix} Is its --max-lora-rank as large as lora_r?"
        missing = isinstance(error, ServerRefusal) and error.status == 404
    else:
        missing = False
    if missing:
        fix = (
            "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or train with"
            " --engine_weights folder."
        )
    return type(error)(what, where=error.where, fix=fix)


def remove_folders(place: Path, kept: Collection[str]) -> None:
    """Remove all that lies in a place but what is kept, half-written folders too."""
    for one in place.iterdir() if place.is_dir() else ():
        if one.name not in kept:
            shutil.rmtree(one, ignore_errors=True)


def choose_transfer(policy: Policy, place: Path, asked: str, *, with_head: bool) -> WeightTransfer:
    """The transfer that an option means: adapters go as adapters, where they can be saved as such.

    with_head: of a `FolderTransfer`.
    """
    has_adapters = policy.causal is not policy.model
    why = why_no_adapter(policy.model, policy.origin) if has_adapters else "there are none"
    if asked == "nccl":
        from laurel.rollout.engine_nccl import NcclTransfer

        return NcclTransfer.of(policy, has_adapters)
    if asked == "lora" and why:
        what = f"weights cannot go to the server as adapters: {why}."
        raise LaurelError(what, where="engine_weights=lora", fix="Set use_peft, or leave it out.")
    if asked == "folder" or why:
        return FolderTransfer(policy, place, with_head)
    return AdapterTransfer(policy, place)


def version_label(run: str, version: int) -> str:
    """The label of a version of a run's weights."""
    return f"{run}-{version}"
