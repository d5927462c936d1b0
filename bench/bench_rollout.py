"""Rollouts beside transformers' generate: the same rows, lengths and precision, interleaved; medians with the least and the most.

python bench/bench_rollout.py SIZE PROMPTS [REPEATS] [NAME,NAME...]: size a, b or c, 8 completions per prompt.
CLOCK=cpu counts the process's own seconds: on a shared machine, with one thread, those are the ones that repeat.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from laurel.policy.model import Policy
from laurel.policy.sampler import sample, sample_general

SIZES = {  # width, layers, vocabulary, heads, kv heads, head width, width of the MLP
    "a": (128, 4, 512, 4, 2, 32, 384),
    "b": (320, 6, 4096, 5, 5, 64, 960),
    "c": (640, 10, 16384, 10, 5, 64, 1728),
}
CLOCK = time.process_time if os.environ.get("CLOCK") == "cpu" else time.perf_counter
EACH, PROMPT, SHORTEST, LONGEST = 8, 32, 64, 128


def make(size: str, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    """A random Qwen3 of that size."""
    width, layers, vocabulary, heads, kv_heads, head, mlp = SIZES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=width, num_hidden_layers=layers, vocab_size=vocabulary, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head, intermediate_size=mlp, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(dtype).eval()


class Stop(StoppingCriteria):
    """Row n ends after its own number of tokens."""

    def __init__(self, limits: torch.Tensor) -> None:
        self.limits, self.eos_token_id = limits, torch.tensor([-1])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **keywords: object) -> torch.Tensor:
        return input_ids.shape[1] - PROMPT >= self.limits


def contenders(size: str, count: int) -> tuple[dict[str, Callable], int]:
    """Name -> one whole rollout, and its tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, SIZES[size][2], (count, PROMPT), generator=generator)
    limits = torch.randint(SHORTEST, LONGEST + 1, (count * EACH,), generator=generator)
    tokenizer = SimpleNamespace(eos_token_id=None)

    def ours(dtype: torch.dtype, function: Callable, **keywords: int) -> Callable:
        policy, ids = Policy(make(size), tokenizer, dtype), [tuple(row) for row in prompts.tolist()]
        seeds, ends = list(range(count * EACH)), limits.tolist()
        if function is sample:
            return lambda: sample(policy, ids, seeds=seeds, max_completion_length=ends, **keywords)
        return lambda: sample_general(policy, ids, EACH, seeds, ends, 1.0, 0, 1.0, (), 1024)

    def theirs(dtype: torch.dtype, **keywords: str) -> Callable:
        model, ids = make(size, dtype), prompts.repeat_interleave(EACH, 0)
        how = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=LONGEST, pad_token_id=2, eos_token_id=[], **keywords)
        criteria, mask = StoppingCriteriaList([Stop(limits)]), torch.ones_like(ids)

        @torch.no_grad()
        def run() -> None:
            model.generate(input_ids=ids, attention_mask=mask, generation_config=how, stopping_criteria=criteria)

        return run

    half = torch.bfloat16
    return {
        "generate": theirs(torch.float32),
        "static": theirs(torch.float32, cache_implementation="static"),
        "generate bf16": theirs(half),
        "general": ours(torch.float32, sample_general),
        "laurel": ours(torch.float32, sample),
        "laurel 256 rows": ours(torch.float32, sample, rows_at_once=256),
        "laurel 128 rows": ours(torch.float32, sample, rows_at_once=128),
        "laurel bf16": ours(half, sample),
    }, int(limits.sum())


def main(size: str, count: str, repeats: str = "3", names: str = "") -> None:
    """Run the contenders in turn, and print each one's seconds, tokens per second and ratio to generate of its precision."""
    logging.set_verbosity_error()
    runs, tokens = contenders(size, int(count))
    runs = {name: run for name, run in runs.items() if not names or name in names.split(",")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(int(repeats) + 1):
        for name, run in runs.items():
            began = CLOCK()
            run()
            took = CLOCK() - began
            print(f"{name}, run {n}: {took:.2f} s", file=sys.stderr, flush=True)
            if n:
                seconds[name].append(took)
    print(f"{size}, {count} x {EACH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, took in seconds.items():
        middle, peers = statistics.median(took), ("generate bf16",) if "bf16" in name else ("generate", "static")
        ratios = [sorted(p / t for p, t in zip(seconds[peer], took, strict=True)) for peer in peers if peer in seconds]
        text = "  ".join(f"x {statistics.median(r):.2f} ({r[0]:.2f}-{r[-1]:.2f}) {peer}" for peer, r in zip(peers, ratios, strict=False))
        print(f"{name:18s} {middle:7.2f} s ({min(took):.2f}-{max(took):.2f})  {tokens / middle:8.0f} tok/s  {text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
