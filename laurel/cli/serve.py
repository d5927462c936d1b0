"""`laurel serve MODEL`: a model for other programs, by OpenAI's and vLLM's wire."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.options import add_options, read_options
from laurel.core.errors import UsageError
from laurel.core.serve_options import ServeConfig

if TYPE_CHECKING:
    from laurel.core.choosing import Chooser
    from laurel.model.policy import Policy
    from laurel.serve.admin import Server

KEY = "LAUREL_API_KEY"
MOST_POSITIONS = 4096


def add_parser(subparsers: Any) -> None:
    """Register `serve`; its options are those of ServeConfig."""
    parser = subparsers.add_parser(
        "serve",
        help="answer OpenAI's and vLLM's clients: completions, chats, log-probabilities, scores",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder or hub name of a causal LM, of adapters, or of a trained scorer; `starter`:"
        " laurel's own small arithmetic model",
    )
    add_options(parser, ServeConfig)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; what runs then is answered first."""
    config = read_options(args, ServeConfig)
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(
            f"`{missing[0]}` is not installed.",
            where="laurel serve",
            fix="pip install 'laurel-rl[serve]'",
        )
    key = config.api_key or os.environ.get(KEY, "")
    check_reach(config.host, key)
    roots = tuple(existing_folder(name) for name in config.allow_folder)
    chooser = load_chooser(config)
    listening = listen(config.host, config.port)
    server = load_server(args.model, config, roots)
    if server.scorer is None:
        server.chooser = chooser
    elif config.choose is not None:
        fix = "Serve the model that answers, and name the scorer in the plan: model:FOLDER."
        raise UsageError("a scorer gives no answers.", where="--choose", fix=fix)
    from laurel.serve.app import make_app
    from laurel.serve.run import BACKLOG, serve

    host, port = listening.getsockname()[:2]
    local = is_loopback(config.host)
    hosts = ("localhost", "127.0.0.1", "::1", config.host.lower()) if local else ()
    app = make_app(server, key=key, hosts=hosts, most=config.max_body)
    # who reads the line may ask at once: from now on connections wait for the loop to begin
    listening.listen(BACKLOG)
    print(f"{server.base} is served at http://{host}:{port}/v1", flush=True)
    serve(app, listening, config.timeout)
    return 0


def load_chooser(config: ServeConfig) -> Chooser:
    """What makes one answer of several: by the plan, whose names are listed then, or by rule."""
    from laurel.search.served import PlanChooser, ServedPlan, read_plan

    if config.choose is None:
        return PlanChooser(ServedPlan(), listed=False)
    return PlanChooser(read_plan(config.choose))


def check_reach(host: str, key: str) -> None:
    """UsageError for an address that others can reach, and no key."""
    if not key and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from outside, and there is no API key.",
            where="--host",
            fix=f"Set {KEY}, or serve on 127.0.0.1.",
        )


def is_loopback(host: str) -> bool:
    """Is it an address of this machine alone?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def existing_folder(name: str) -> Path:
    """A folder that is there, without links."""
    try:
        folder = Path(name).resolve(strict=True)
    except OSError:
        folder = Path(name)
    if not folder.is_dir():
        raise UsageError("no such folder.", where=f"--allow_folder {name}", fix="Make it first.")
    return folder


def listen(host: str, port: int) -> socket.socket:
    """A socket on the port, before a model is loaded; UsageError where it cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        fix = "Another program may have the port: take --port 0 for a free one."
        raise UsageError(
            f"cannot listen there: {error.strerror}.", where=f"{host}:{port}", fix=fix
        ) from None
    return listening


def load_server(model: str, config: ServeConfig, roots: tuple[Path, ...]) -> Server:
    """The model as it is served: a policy, or a trained scorer."""
    from laurel.train.inference import is_scorer

    name = config.served_model_name or model
    how: dict[str, Any] = {
        one: getattr(config, one) for one in ("device", "dtype", "chat_template")
    }
    make = scorer_server if is_scorer(model) else policy_server
    server = make(model, name, config, how)
    server.roots = roots
    server.most_adapters = config.max_loras
    return server


def scorer_server(model: str, name: str, config: ServeConfig, how: dict[str, Any]) -> Server:
    """A server of scores."""
    from laurel.model.scorer import load_scorer
    from laurel.serve.admin import Server
    from laurel.serve.engine import Engine, Limits

    scorer = load_scorer(model, **how)
    engine = Engine(Limits(config.max_num_seqs, config.max_queue, config.timeout))
    return Server(engine, name, scorer=scorer, precision=precision_of(scorer.dtype))


def policy_server(model: str, name: str, config: ServeConfig, how: dict[str, Any]) -> Server:
    """A server of completions."""
    from laurel.core.config import EvalConfig
    from laurel.serve.admin import Server
    from laurel.serve.engine import Engine, Limits
    from laurel.train.inference import policies_of

    settings = EvalConfig(model=model, num_threads=config.num_threads, seed=config.seed, **how)
    policy, _ = policies_of(settings)
    for note in policy.notes:
        print(note, file=sys.stderr, flush=True)
    length = model_length(policy, config.max_model_len)
    engine = Engine(Limits(config.max_num_seqs, config.max_queue, config.timeout, length))
    served = engine.add(name, policy, "0", model)
    precision = precision_of(policy.dtype)
    exact = served.compact and precision == "float32"
    return Server(engine, name, precision=precision, exact=exact)


def precision_of(dtype: Any) -> str:
    """torch.float32 -> float32"""
    return str(dtype).partition(".")[2]


def model_length(policy: Policy, asked: int | None) -> int:
    """The most tokens of a prompt and its completion."""
    positions = policy.positions
    if asked is None:
        return min(positions or MOST_POSITIONS, MOST_POSITIONS)
    if positions is not None and asked > positions:
        raise UsageError(
            f"the model has {positions} positions.",
            where=f"--max_model_len {asked}",
            fix="Take that number or less.",
        )
    return asked
