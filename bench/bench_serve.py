"""`laurel serve` beside the sampler in this process: the same completions, tokens per second.

    python bench/bench_serve.py [--hidden 512] [--rows 64] [--tokens 128] [--repeat 3]

One model, random; the same prompts and seeds on both sides, whose tokens must be equal. Streams: so
many at once, and the time to the first token of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer
from laurel.rollout.sampler import sample


def model_of(hidden: int, layers: int) -> Policy:
    """A random Llama; its vocabulary is larger than the tokenizer's, so that few rows end early."""
    tokenizer = char_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=3 * hidden,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model.eval(), tokenizer)


async def post(port: int, body: dict[str, Any]) -> tuple[float, bytes]:
    """The time to the first token, and all that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    began = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    first, parts = 0.0, list[bytes]()
    while part := await reader.read(1 << 16):
        parts.append(part)
        if not first and b"token_ids" in part:
            first = time.perf_counter() - began
    writer.close()
    return first, b"".join(parts)


async def together(port: int, bodies: list[dict[str, Any]]) -> list[tuple[float, bytes]]:
    """All at once."""
    return await asyncio.gather(*(post(port, body) for body in bodies))


def body_of(answer: bytes) -> Any:
    """The JSON of a whole answer, whose body may come in chunks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head, answer[:300]
    return json.loads(body)


def main() -> None:
    """Both sides in turn, and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"hidden": 512, "layers": 6, "rows": 64, "tokens": 128, "repeat": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    policy = model_of(args.hidden, args.layers)
    # as the server does it: torch with all cores, whose number the environment says
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    prompts = [tuple(4 + (n + i) % 60 for i in range(4 + n % 40)) for n in range(args.rows)]
    seeds = list(range(args.rows))
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "model")
        command = [sys.executable, "-m", "laurel", "serve", f"{folder}/model", "--port", "0"]
        command += ["--max_num_seqs", str(args.rows)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r":(\d+)/v1", line)
            assert found, line
            compare(policy, prompts, seeds, int(found[1]), args)
        finally:
            process.terminate()
            process.wait(60)


def timed(work: Any) -> tuple[float, Any]:
    """The seconds that some work takes, and what it gives."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def compare(policy: Policy, prompts: Any, seeds: list[int], port: int, args: Any) -> None:
    """All ways in turns, after one of each that warms up."""
    one = {"max_tokens": args.tokens, "logprobs": 0, "return_token_ids": True}
    bodies = [{"prompt": list(p), "seed": s, **one} for p, s in zip(prompts, seeds, strict=True)]
    whole = {"prompt": [list(p) for p in prompts], "seeds": seeds, **one}
    ways = {
        "in process": lambda: sample(
            policy, prompts, seeds=seeds, max_completion_length=args.tokens
        ),
        "one request each": lambda: asyncio.run(together(port, bodies)),
        "one request": lambda: asyncio.run(together(port, [whole])),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    firsts = list[float]()
    for turn in range(args.repeat + 1):
        found = {name: timed(way) for name, way in ways.items()}
        done, each, ((_, answer),) = (result for _, result in found.values())
        told = [body_of(raw)["choices"][0] for _, raw in each]
        gap = max(largest_gap(done, told), largest_gap(done, body_of(answer)["choices"]))
        streams = asyncio.run(together(port, [{**body, "stream": True} for body in bodies]))
        if turn:
            for name, (seconds, _) in found.items():
                times[name].append(seconds)
            firsts += [first for first, _ in streams]
    tokens = sum(len(row.ids) for row in done)
    print(f"{policy.num_parameters / 1e6:.1f} M parameters, {args.rows} rows, {tokens} tokens")
    report(times, tokens, gap, sorted(firsts))


def largest_gap(done: Any, choices: list[Any]) -> float:
    """The largest distance of log-probabilities; AssertionError unless ids are equal."""
    worst = 0.0
    for row, choice in zip(done, choices, strict=True):
        assert tuple(choice["token_ids"]) == row.ids
        logps = choice["logprobs"]["token_logprobs"]
        worst = max(worst, *(abs(a - b) for a, b in zip(logps, row.logps, strict=True)))
    return worst


def report(times: dict[str, list[float]], tokens: int, gap: float, firsts: list[float]) -> None:
    """The table."""
    base = statistics.median(times["in process"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:18} {middle:7.2f} s {tokens / middle:8.0f} tokens/s {base / middle:6.1%}")
    print(f"ids equal; log-probabilities differ by {gap:.2g} at most")
    p50, p99 = firsts[len(firsts) // 2], firsts[int(0.99 * len(firsts))]
    print(f"first token of the streams: p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
