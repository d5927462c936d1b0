"""A server of the real application on a real socket, in a thread of the test."""

import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import torch
import uvicorn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from laurel.model.chat import ensure_template
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer
from laurel.serve.admin import Server
from laurel.serve.app import make_app
from laurel.serve.engine import Engine, Limits


def tiny(kind="llama", seed=0, hidden=32):
    """A random model over the character tokenizer."""
    tokenizer = char_tokenizer()
    ensure_template(tokenizer, None)
    torch.manual_seed(seed)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=256,
        )
        model = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=hidden, n_layer=2, n_head=4, n_positions=256
        )
        model = GPT2LMHeadModel(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model.eval(), tokenizer)


@contextmanager
def running(policy=None, *, scorer=None, chooser=None, roots=(), key="", places=16, **limits):
    """The server of a policy or scorer: its address, its engine, and a client of it."""
    length = 256 if policy is None else policy.positions
    engine = Engine(Limits(places=places, length=length, **limits))
    server = Server(engine, "m", tuple(roots), scorer, chooser=chooser)
    if policy is not None:
        served = engine.add("m", policy, "0", "")
        server.exact = served.compact
    app = make_app(server, key=key, hosts=("localhost", "127.0.0.1"))
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=loop.run, args=([listening],), daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not loop.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url, timeout=60, headers=headers) as client:
        yield SimpleNamespace(url=url, server=server, engine=engine, client=client, policy=policy)
    loop.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
