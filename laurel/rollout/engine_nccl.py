"""Weights over NCCL, by the trainer's side that vLLM itself publishes. Not run on any machine here.

vLLM must be importable in the trainer's environment for that, and it pins a torch of its own: so
nothing of it is imported unless `engine_weights: nccl` asks for it, and then by name. The server is
started with `--weight-transfer-config '{"backend": "nccl"}'`.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch

from laurel.core.errors import LaurelError, UsageError
from laurel.model.digests import parameter_digests
from laurel.model.policy import Policy
from laurel.rollout.engine_server import QUICK, Server, fields_of

LIBRARY = "vllm.distributed.weight_transfer"
OPTION = "engine_weights=nccl"


@dataclass
class NcclTransfer:
    """Full weights, broadcast from this process's GPU to those of each server."""

    policy: Policy
    library: Any
    backend: Any
    means: str = "NCCL"
    names_version: bool = True
    senders: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, policy: Policy, has_adapters: bool) -> NcclTransfer:
        """The transfer, where it can be; else a UsageError with what is missing."""
        if has_adapters:
            fix = "Leave engine_weights out: they go as a folder of adapters."
            raise UsageError("adapters do not go over NCCL.", where=OPTION, fix=fix)
        if policy.device.type != "cuda":
            fix = "Leave engine_weights out: a folder is read on every device."
            raise UsageError(
                f"NCCL needs CUDA, and this is {policy.device}.", where=OPTION, fix=fix
            )
        try:
            library = importlib.import_module(LIBRARY)
            backend = importlib.import_module(f"{LIBRARY}.nccl_engine")
        except ImportError as error:
            fix = (
                "Install vLLM into the trainer's environment (it pins a torch of its own), or leave"
                " engine_weights out."
            )
            what = f"vLLM cannot be imported here: {error}."
            raise UsageError(what, where=OPTION, fix=fix) from None
        return cls(policy, library, backend)

    @property
    def exact(self) -> bool:
        return True

    def digests(self, label: str) -> dict[str, str]:
        """Those of the parameters."""
        return parameter_digests(self.policy.causal)

    def write(self, label: str) -> None:
        """Nothing: weights go from memory to memory."""

    def model(self, server: Server, label: str) -> str:
        """The server's own name for its model."""
        return server.known.models[0]

    async def push(self, server: Server, label: str) -> None:
        """Pause, broadcast, name the version, go on."""
        try:
            await server.call("/pause?mode=keep", {})
            size = fields_of(await server.call("/get_world_size", seconds=QUICK), server.url)
            workers = int(size["world_size"])
            sent = await asyncio.to_thread(
                within, server.timeout, partial(self.send, server, workers)
            )
            if sent is not None:
                # vLLM refuses to begin another while one is open
                await server.call("/finish_weight_update", {}, seconds=QUICK)
                raise sent
            await server.set_version(label)
        finally:
            await server.call("/resume", {}, seconds=QUICK)

    def send(self, server: Server, workers: int) -> None:
        """One round of vLLM's own trainer side; the first makes the group of processes."""
        # a thread begins on the first GPU
        torch.cuda.set_device(self.policy.device)
        sender = self.senders.get(server.url)
        if sender is None:
            about = self.backend.NCCLTrainerInitInfo(
                master_address=own_address(server.url),
                master_port=free_port(),
                world_size=workers + 1,
                rank=0,
            )
            client = self.library.HTTPVLLMWeightSyncClient(server.url, timeout=server.timeout)
            source = self.library.ModuleSource(self.policy.causal)
            factory = self.library.WeightTransferTrainerFactory
            sender = factory.trainer_init(about, client=client, source=source)
            self.senders[server.url] = sender
        sender.send_weights()

    async def clear(self, servers: Collection[Server], kept: Collection[str]) -> None:
        """Nothing: there are no files."""

    def end(self) -> None:
        """Nothing: there are no files."""


def within(seconds: float, work: Callable[[], None]) -> LaurelError | None:
    """Do the work in a thread; the error where it fails, or is not done in that time."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        what = f"weights were not sent within {seconds:g} seconds."
        return LaurelError(what, where=OPTION, fix="Start server and run anew.")
    if found:
        return LaurelError(f"weights were not sent: {found[0]}.", where=OPTION)
    return None


def own_address(url: str) -> str:
    """The address of this machine as the server sees it."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # a datagram socket that is connected sends nothing, and knows its own address
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        return str(probe.getsockname()[0])


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
