"""A small server over a real socket that speaks the engines' wire, and misbehaves where asked to.

It samples with the library's own sampler, reads folders of weights, and serves adapters. `faults`
maps a path to a function of (peer, handler, body) that answers in its place, or returns False to
let the peer answer. What it was asked is in `calls`.
"""

import copy
import hashlib
import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from safetensors.torch import load_file

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw
from laurel.model.adapters import load_adapters
from laurel.model.policy import Policy, load_causal, load_policy
from laurel.rollout.sampler import Sampler


@cache
def loaded(model, use_peft):
    """The policy in a folder, read once."""
    return load_policy(TrainConfig(model=str(model), use_peft=use_peft))


def policy_of(model, use_peft=False):
    """A policy of its own, as it is in a folder."""
    return copy.deepcopy(loaded(model, use_peft))


class Handler(BaseHTTPRequestHandler):
    """One connection; HTTP/1.1, so that connections are kept."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        self.take(None)

    def do_POST(self):
        size = int(self.headers.get("content-length", 0))
        self.take(json.loads(self.rfile.read(size) or b"{}"))

    def take(self, body):
        """Answer, or misbehave."""
        peer, path = self.server.peer, self.path.partition("?")[0]
        peer.calls.append((path, body))
        fault = peer.faults.get(path)
        if fault is not None and fault(peer, self, body) is not False:
            return
        try:
            status, found = 200, peer.answer(path, body)
        except KeyError as error:
            status, found = 404, {"error": {"message": f"unknown: {error}"}}
        self.send(found.encode() if isinstance(found, str) else json.dumps(found).encode(), status)

    def send(self, data, status=200):
        """An answer."""
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Peer:
    """The server, while the block lasts; `url` is its address."""

    def __init__(self, policy, kind="laurel", port=0):
        self.policy, self.kind = policy, kind
        self.base = {name: p.detach().clone() for name, p in policy.causal.named_parameters()}
        self.untouched = "0" if kind == "laurel" else "default"
        self.version, self.paused = self.untouched, False
        self.adapters, self.faults, self.calls = {}, {}, []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads, self.http.peer = True, self
        self.http.handle_error = lambda *_: None  # a client that hangs up is no news
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """No more connections."""
        self.http.shutdown()
        self.http.server_close()

    def asked(self, path):
        """The bodies that came to a path."""
        return [body for where, body in self.calls if where == path]

    def answer(self, path, body):
        """What a server that behaves answers."""
        with self.lock:
            return {
                "/version": self.about,
                "/v1/models": self.models,
                "/weight_info": lambda _: {"weight_version": self.version},
                "/update_weight_version": self.rename,
                "/pause": lambda _: self.pause(True),
                "/resume": lambda _: self.pause(False),
                "/is_paused": lambda _: {"is_paused": self.paused},
                "/collective_rpc": self.reload,
                "/weight_checker": self.checksums,
                "/v1/load_lora_adapter": self.load,
                "/v1/unload_lora_adapter": lambda b: (
                    self.adapters.pop(b["lora_name"]) and "Success: removed."
                ),
                "/v1/completions": self.complete,
            }[path](body)

    def about(self, _):
        if self.kind == "vllm":
            return {"version": "0.32.0"}
        return {"version": "0.1.0", "engine": "laurel", "exact": True, "precision": "float32"}

    def models(self, _):
        return {"data": [{"id": name} for name in ("m", *self.adapters)]}

    def rename(self, body):
        self.version = body["new_version"]

    def pause(self, on):
        self.paused = on

    def reload(self, body):
        causal = load_causal(body["kwargs"]["weights_path"])
        for name, p in causal.named_parameters():
            self.policy.causal.get_parameter(name).data.copy_(p)
        self.version = body["kwargs"].get("version", self.version)

    def load(self, body):
        load_file(f"{body['lora_path']}/adapter_model.safetensors")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return "Success: loaded."

    def checksums(self, body):
        policy = self.sampler(body.get("model", "m")).policy
        return {
            "checksums": {
                name: hashlib.sha256(p.detach().contiguous().numpy().tobytes()).hexdigest()
                for name, p in policy.causal.named_parameters()
            }
        }

    def sampler(self, model):
        """What samples under this name."""
        if model == "m":
            return Sampler(self.policy)
        folder = self.adapters[model]
        causal = load_causal(str(folder_base(folder)))
        return Sampler(Policy(load_adapters(folder, causal).eval(), self.policy.tokenizer))

    def complete(self, body):
        """Completions of one prompt, or of many with a seed for each."""
        many = "seeds" in body
        prompts = [tuple(p) for p in (body["prompt"] if many else [body["prompt"]])]
        n = body["n"]
        seeds = body["seeds"] if many else [body["seed"] + i for i in range(n)]
        draw = Draw(
            "peer",
            0,
            0,
            n,
            body["max_tokens"],
            body["temperature"],
            tuple(body["stop"]),
            seeds=tuple(seeds),
        )
        done = self.sampler(body["model"]).generate(prompts, draw)
        texts = self.policy.tokenizer.batch_decode(
            [c.spoken for c in done], skip_special_tokens=True
        )
        choices = []
        for index, (one, text) in enumerate(zip(done, texts, strict=True)):
            choice = {
                "index": index,
                "text": text,
                "finish_reason": "length" if one.finish == "length" else "stop",
                "stop_reason": None,
                "token_ids": list(one.ids),
                "logprobs": {"token_logprobs": list(one.logps)},
            }
            if self.kind == "laurel":
                named = self.version if body["model"] == "m" else body["model"]
                choice["weight_versions"] = [{"version": named, "start": 0, "end": len(one.ids)}]
                choice["finish_reason_detail"] = one.finish
            elif one.finish == "stop":
                choice["stop_reason"] = body["stop"][0]
            choices.append(choice)
        return {"choices": choices}


def folder_base(folder):
    """The model under adapters."""
    return json.loads(open(f"{folder}/adapter_config.json").read())["base_model_name_or_path"]


def change_choice(change):
    """A fault: the answer with `change(choice)` done to the second choice."""

    def fault(peer, handler, body):
        found = peer.answer("/v1/completions", body)
        change(found["choices"][1])
        handler.send(json.dumps(found).encode())

    return fault


def change_answer(change):
    """A fault: the bytes of the answer with `change` done to them."""

    def fault(peer, handler, body):
        handler.send(change(json.dumps(peer.answer(handler.path, body)).encode()))

    return fault


def silent(peer, handler, body):
    """A fault: the connection stays open, and nothing comes."""
    time.sleep(5)


def cut(peer, handler, body):
    """A fault: half an answer, and the connection closes."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def drip(peer, handler, body):
    """A fault: a byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    for _ in range(300):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def once(fault):
    """A fault that happens the first time only."""
    left = [fault]

    def first(peer, handler, body):
        return left.pop()(peer, handler, body) if left else False

    return first


def nudge(policy, seed=1, by=0.5):
    """Other weights, as after a step."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(by * torch.randn_like(p) * p.std().clamp(min=0.02))
