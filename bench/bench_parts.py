"""Where the time of a rollout, or of a step, goes: parts of the compact decoder, or operators of
torch, as shares of the whole.

python bench/bench_parts.py rollout b 64         the decoder: attention, products (GFLOP/s), drawing
python bench/bench_parts.py dpo a                a step of the loop: grpo, dpo, reward, sft, ppo,
raft or ilql, by operator
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "speed"))
import models
import ours

from laurel.core.metrics import Sums
from laurel.fast import decode
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.options import defaults


def rollout(size: str, prompts: int) -> None:
    """Seconds of each part of the compact decoder, after a warm-up; the rest is Python and small
    operators.
    """
    shape = models.Shape(size=size, prompts=prompts)
    policy = ours.Endless(
        models.make_model(shape), models.make_tokenizer(shape.vocabulary), torch.float32
    )
    asked, limits = [tuple(ids) for ids in shape.prompt_ids().tolist()], shape.lengths().tolist()
    spent, done = dict[str, float](), dict[str, float]()

    def timed(
        function: Callable,
        name: Callable[..., str],
        operations: Callable[..., float] = lambda *_: 0.0,
    ) -> Callable:
        def watched(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **options)
            key = name(*args)
            spent[key] = spent.get(key, 0.0) + time.perf_counter() - began
            done[key] = done.get(key, 0.0) + operations(*args)
            return result

        return watched

    def once() -> float:
        began = time.perf_counter()
        ours.sample(policy, asked, seeds=list(range(len(limits))), max_completion_length=limits)
        return time.perf_counter() - began

    once()
    decode.call_kernel = timed(decode.call_kernel, lambda name, *_: f"kernel {name}")  # type: ignore[assignment]
    torch.mm = timed(
        torch.mm,
        lambda x, w: f"product with {tuple(w.shape)}",
        lambda x, w: 2.0 * x.numel() * w.shape[1],
    )
    decode.ContinuousBatch.prefill_jobs = timed(
        decode.ContinuousBatch.prefill_jobs, lambda *_: "reading prompts (in the above, too)"
    )  # type: ignore[method-assign]
    whole = once()
    print(f"rollout {size}, {prompts} x {shape.each}: {whole:.2f} s")
    for key, seconds in sorted(spent.items(), key=lambda part: -part[1]):
        rate = f"{done[key] / seconds / 1e9:.0f} GFLOP/s" if done[key] else ""
        print(f"{seconds:7.3f} s {seconds / whole:6.1%}  {key:36} {rate}")


def step(algorithm: str, size: str) -> None:
    """Shares of torch's operators in one step of the loop, after two that warm up."""
    shape = models.Shape(size=size, prompts=64 if size == "a" else 8)
    samples, supervised = ours.samples(algorithm), "train_on" in defaults(algorithm)
    long = models.Shape(size=size, rows=512, low=32, high=256)
    rows = ours.rows_of(algorithm, long if supervised else shape)
    options: dict[str, Any] = {"train_on": "all"} if supervised else {}
    options |= ours.sampling_options(shape) if samples else {"prompts_per_step": shape.batch}
    with tempfile.TemporaryDirectory() as folder:
        setup, state = ours.setup_of(algorithm, shape, Path(folder), rows, **options)
        setup.policy = ours.endless(setup.policy) if samples else setup.policy
        with ours.given_lengths(shape.lengths().tolist()) if samples else contextlib.nullcontext():
            for _ in range(2):
                loop.step(setup, state, Sums())
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU]
            ) as profile:
                loop.step(setup, state, Sums())
    print(
        profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rollout", *ALGORITHMS), metavar="rollout|ALGORITHM")
    parser.add_argument("size", choices=("a", "b", "c"))
    parser.add_argument("prompts", nargs="?", type=int, default=64)
    asked = parser.parse_args()
    rollout(asked.size, asked.prompts) if asked.what == "rollout" else step(asked.what, asked.size)
