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


def compare(policy: Policy, prompts: Any, seeds: list[int], port: int, args: Any) -> None:
    """In turns, after one of each that warms up."""
    one = {"max_tokens": args.tokens, "logprobs": 0, "return_token_ids": True}
    bodies = [{"prompt": list(p), "seed": s, **one} for p, s in zip(prompts, seeds, strict=True)]
    times: dict[str, list[float]] = {"in process": [], "one request each": [], "one request": []}
    firsts = list[float]()
    worst = 0.0
    for turn in range(args.repeat + 1):
        began = time.perf_counter()
        done = sample(policy, prompts, seeds=seeds, max_completion_length=args.tokens)
        spent = [time.perf_counter() - began]
        began = time.perf_counter()
        answers = asyncio.run(together(port, bodies))
        spent.append(time.perf_counter() - began)
        began = time.perf_counter()
        whole = {"prompt": [list(p) for p in prompts], "seeds": seeds, **one}
        ((_, answer),) = asyncio.run(together(port, [whole]))
        spent.append(time.perf_counter() - began)
        for row, (_, told) in zip(done, answers, strict=True):
            assert tuple(body_of(told)["choices"][0]["token_ids"]) == row.ids
        for row, choice in zip(done, body_of(answer)["choices"], strict=True):
            assert tuple(choice["token_ids"]) == row.ids
            told = choice["logprobs"]["token_logprobs"]
            worst = max(worst, *(abs(a - b) for a, b in zip(told, row.logps, strict=True)))
        streams = asyncio.run(together(port, [{**body, "stream": True} for body in bodies]))
        if turn:
            for name, seconds in zip(times, spent, strict=True):
                times[name].append(seconds)
            firsts += [first for first, _ in streams]
    tokens = sum(len(row.ids) for row in done)
    base = statistics.median(times["in process"])
    print(f"{policy.num_parameters / 1e6:.1f} M parameters, {args.rows} rows, {tokens} tokens")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:18} {middle:7.2f} s {tokens / middle:8.0f} tokens/s {base / middle:6.1%}")
    print(f"ids equal; log-probabilities differ by {worst:.2g} at most")
    firsts.sort()
    p50, p99 = firsts[len(firsts) // 2], firsts[int(0.99 * len(firsts))]
    print(f"first token of {args.rows} streams: p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
