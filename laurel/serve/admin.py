"""What an operator or a trainer does to a server: pause, new weights, adapters, names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from laurel.core.choosing import Chooser
from laurel.model.digests import parameter_digests
from laurel.model.scorer import Scorer
from laurel.serve.engine import Engine, Refused, Served
from laurel.serve.middleware import read_body
from laurel.serve.schemas import (
    CheckRequest,
    LoadAdapter,
    RpcRequest,
    UnloadAdapter,
    VersionRequest,
)
from laurel.serve.weights import NAME, allowed_folder, put_weights, read_weights, with_adapters

Result = TypeVar("Result")


@dataclass
class Server:
    """What the routes share.

    base: the name of the model that was started with. roots: the folders from which a client may
    have weights loaded. scorer: a trained scorer, served at `/v1/score`; there are no completions
    then. chooser: makes one answer of several; None: such requests are refused.
    """

    engine: Engine
    base: str
    roots: tuple[Path, ...] = ()
    scorer: Scorer | None = None
    precision: str = "float32"
    exact: bool = False
    most_adapters: int = 8
    chooser: Chooser | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    choosing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(32, thread_name_prefix="laurel-choose")
    )

    def served(self, name: str) -> Served:
        """The model of that name; of "" the one that was started with."""
        found = self.engine.served.get(name or self.base)
        if found is None:
            if self.scorer is not None:
                what = f"{self.base} is a scorer: ask it at /v1/score."
            else:
                what = f"there is no model `{name:.100}`; there is {', '.join(self.names)}."
            raise Refused(what, status=404, kind="not_found_error", param="model")
        return found

    @property
    def names(self) -> list[str]:
        """All names that can be asked for."""
        return list(self.engine.served) or [self.base]

    async def between_tokens(self, work: Callable[[], Result]) -> Result:
        """Have the sampling thread do something between two tokens."""
        return await asyncio.wrap_future(self.engine.call_between_tokens(work))


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return request.app.state.server


async def pause(request: Request) -> Response:
    """No token more: `abort` ends what runs, `wait` lets it end first, `keep` freezes it."""
    server, mode = server_of(request), request.query_params.get("mode", "abort")
    if mode not in ("abort", "wait", "keep"):
        raise Refused(f"mode is abort, wait or keep, not `{mode:.50}`.", param="mode")
    engine = server.engine
    if mode == "wait":
        until = time.monotonic() + engine.limits.seconds
        while engine.busy:
            if time.monotonic() > until:
                raise Refused("what runs has not ended in time.", status=504, kind="timeout_error")
            await asyncio.sleep(0.005)

    def stop() -> None:
        if mode == "abort":
            engine.fail_all("the server was paused, and ended what ran.")
        engine.paused = True

    await server.between_tokens(stop)
    return JSONResponse({"status": "paused"})


async def resume(request: Request) -> Response:
    """Go on."""
    engine = server_of(request).engine

    def go_on() -> None:
        engine.paused = False

    await server_of(request).between_tokens(go_on)
    return JSONResponse({"status": "resumed"})


async def is_paused(request: Request) -> Response:
    """Is sampling paused?"""
    return JSONResponse({"is_paused": server_of(request).engine.paused})


async def weight_info(request: Request) -> Response:
    """The version of the weights, and of each adapter."""
    engine, base = server_of(request).engine, server_of(request).base
    versions = {name: one.version for name, one in engine.served.items()}
    return JSONResponse({"weight_version": versions.get(base, "0"), "versions": versions})


async def update_weight_version(request: Request) -> Response:
    """Name the weights as they are: tokens from now on are under that version."""
    body, server = await read_body(request, VersionRequest), server_of(request)
    served = server.served("")
    await server.between_tokens(lambda: server.engine.set_version(served, body.new_version))
    return JSONResponse({"success": True, "new_version": body.new_version})


async def collective_rpc(request: Request) -> Response:
    """New weights from a folder: {"method": "reload_weights", "kwargs": {"weights_path": DIR}}.

    They are read while the old ones go on, and put in place between two tokens. `version` in
    kwargs names them at the same moment; without it they are `VERSION+` until they are named.
    """
    body, server = await read_body(request, RpcRequest), server_of(request)
    unknown = sorted(body.kwargs.keys() - {"weights_path", "version"})
    if unknown:
        raise Refused(f"reload_weights takes no `{unknown[0]:.50}`.", param="kwargs")
    served = server.served("")
    folder = allowed_folder(body.kwargs.get("weights_path", served.folder), server.roots)
    version = body.kwargs.get("version", f"{served.version}+")
    if not isinstance(version, str) or not 0 < len(version) <= 256:
        raise Refused("version is a text of 1 to 256 characters.", param="kwargs")

    def change() -> None:
        put_weights(served.policy, fresh, list(server.engine.served.values()))
        server.engine.set_version(served, version)
        server.engine.metrics.reloads += 1

    async with server.changing:
        fresh = await run_in_threadpool(read_weights, served.policy, folder)
        await server.between_tokens(change)
    return JSONResponse({"results": [None], "weight_version": version})


async def weight_checker(request: Request) -> Response:
    """A digest of each parameter, or whether they are those of a baseline."""
    body, server = await read_body(request, CheckRequest), server_of(request)
    policy = server.served(body.model).policy
    found = await server.between_tokens(lambda: parameter_digests(policy.causal))
    if body.action == "checksum":
        return JSONResponse({"checksums": found})
    if body.baseline is None:
        raise Refused("action compare needs a baseline.", param="baseline")
    names = found.keys() | body.baseline.keys()
    differ = sorted(name for name in names if found.get(name) != body.baseline.get(name))
    return JSONResponse({"match": not differ, "mismatches": differ})


async def load_adapter(request: Request) -> Response:
    """Serve adapters under a name of their own; what runs under other names goes on."""
    body, server = await read_body(request, LoadAdapter), server_of(request)
    base, engine = server.served(""), server.engine
    if not NAME.fullmatch(body.lora_name) or body.lora_name == server.base:
        raise Refused("such a name cannot be an adapter's.", param="lora_name")
    if body.lora_name in engine.served and not body.load_inplace:
        raise Refused(
            f"`{body.lora_name}` is served already (load_inplace replaces it).", param="lora_name"
        )
    if body.lora_name not in engine.served and len(engine.served) > server.most_adapters:
        raise Refused(f"{server.most_adapters} adapters are served: unload one.", status=409)
    folder = allowed_folder(body.lora_path, server.roots)
    async with server.changing:
        policy = await run_in_threadpool(with_adapters, base.policy, folder)
        await server.between_tokens(
            lambda: engine.add(body.lora_name, policy, body.lora_name, str(folder))
        )
    return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: Request) -> Response:
    """Serve a name no more; what runs under it ends under its weights."""
    body, server = await read_body(request, UnloadAdapter), server_of(request)
    engine = server.engine
    if body.lora_name == server.base or body.lora_name not in engine.served:
        raise Refused(
            f"there is no adapter `{body.lora_name}`.", status=404, kind="not_found_error"
        )

    def remove() -> None:
        engine.served = {name: one for name, one in engine.served.items() if name != body.lora_name}

    await server.between_tokens(remove)
    return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
