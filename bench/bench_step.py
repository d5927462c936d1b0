"""One `update` of the loop, padded rows (the general path) against packed tokens with shared
prompts: seconds and peak memory.

python bench/bench_step.py [--sizes a,b] [--only grpo32,dpo] [--rounds 5] [--threads 2] [--dtype
bfloat16] [--onednn] [--budget 16384]
prints a line per workload: medians (min-max) of interleaved updates in one process, then the peak
of each path in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from laurel.core.metrics import Sums
from laurel.core.sample import Group, Key, Sample, Values
from laurel.fast import packed
from laurel.model.critic import shared_critic
from laurel.model.ilql import new_heads
from laurel.model.policy import Policy, Reference
from laurel.model.scorer import Scorer
from laurel.rollout.pack import comparisons, pack
from laurel.train import loop
from laurel.train.optimizer import make_optimizer
from laurel.train.session import State
from laurel.verify.world import setup_of

SIZES = {
    "a": (128, 4, 512, 4, 2, 32, 384),
    "b": (320, 6, 4096, 5, 5, 64, 960),
    "c": (640, 10, 16384, 10, 5, 64, 1728),
}
SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
WORK = {  # row, prompts, samples, prompt length, completion lengths
    "grpo32": ("grpo", 8, 8, 32, (64, 128)),
    "grpo256": ("grpo", 8, 8, 256, (64, 64)),
    "dpo": ("dpo", 256, 2, 32, (64, 128)),
    "reward_model": ("reward", 256, 2, 32, (64, 128)),
    "sft": ("sft", 128, 1, 1, (31, 255)),
    "ilql": ("ilql", 16, 1, 32, (32, 64)),
    "ppo_shared": ("ppo", 16, 1, 32, (32, 64)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"num_generations": 8},
    "ppo": {"critic": "shared", "num_iterations": 1, "beta": 0.0},
}
"""Further options of a row's workload. PPO's critic reads the policy's own body."""


BESIDE: dict[str, Any] = {
    "ilql": lambda policy: new_heads(policy, target_update=0.005, decode_beta=1.0),
    "ppo": shared_critic,
}


class Tokens:
    """As much of a tokenizer as `update` asks for."""

    eos_token_id = 1


def model_of(size: str, scorer: bool) -> Any:
    """A Qwen3 of one of the sizes, with a head for one score or for its vocabulary."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = Qwen3Config(
        **dict(zip(SHAPE, SIZES[size], strict=True)),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        num_labels=1,
    )
    return (Qwen3ForSequenceClassification if scorer else Qwen3ForCausalLM)(config).eval()


class Step:
    """A workload at a size, ready to be updated on either path as often as wanted; the learning
    rate is too small to move anything.
    """

    def __init__(
        self, work: str, size: str, dtype: torch.dtype, budget: int, prompts: int | None
    ) -> None:
        name, count, G, prompt, (low, high) = WORK[work]
        coin, vocabulary = torch.Generator().manual_seed(1), SIZES[size][2]

        def ids(n: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, vocabulary, (n,), generator=coin).tolist())

        groups = []
        for p in range(prompts or count):
            begin, samples = ids(prompt), []
            for g in range(G):
                text = ids(int(torch.randint(low, high + 1, (1,), generator=coin)))
                key = Key("bench", "", f"p{p}", g, 0)
                samples.append(
                    Sample(
                        key,
                        begin,
                        text,
                        (0.0,) * len(text),
                        (True,) * len(text),
                        1.0,
                        "eos",
                        "",
                        (),
                    )
                )
            rewards = (
                (1.0, -1.0)
                if G == 2
                else (1.0,)
                if G == 1
                else tuple(torch.rand(G, generator=coin).tolist())
            )
            groups.append(Group(f"p{p}", {}, tuple(samples), rewards=rewards))
        scores, model = name == "reward", model_of(size, name == "reward")
        self.policy: Any = (
            Scorer(model, Tokens(), dtype) if scores else Policy(model, Tokens(), dtype)
        )
        self.setup = setup_of(
            name,
            self.policy,
            None,
            None,
            token_budget=budget,
            learning_rate=1e-30,
            **OPTIONS.get(name, {}),
        )
        if name in BESIDE:
            self.setup.auxiliary = BESIDE[name](self.policy)
        self.setup.optimizer = make_optimizer(self.setup.trainable(), self.setup.config)
        self.reference = None if scores else Reference(self.policy, adapters_off=False)
        self.batch = pack(groups)
        if self.reference is not None:
            parts = {
                key: row
                for m in self.batch.split(4096)
                for key, row in zip(m.keys, self.reference.logp(m), strict=True)
            }
            logp_NT = torch.nn.utils.rnn.pad_sequence(
                [parts[key] for key in self.batch.keys], batch_first=True
            )
            self.batch = self.batch.replace(logp_old_NT=logp_NT, logp_ref_NT=logp_NT)
        zero_NT = torch.zeros_like(self.batch.weight_NT)
        if name in ("dpo", "reward"):
            self.batch = self.batch.replace(comparison=comparisons(groups))
        elif name == "ppo":
            self.batch = self.batch.replace(values=Values(zero_NT, zero_NT))
        reward_N = torch.tensor([r for group in groups for r in group.rewards])
        mean_N = reward_N.view(-1, G).mean(1).repeat_interleave(G) if name == "grpo" else 0.0
        self.batch = self.batch.replace(
            weight_NT=(reward_N - mean_N)[:, None].expand_as(zero_NT).contiguous(),
            reward_N=reward_N,
        )
        self.clock = time.perf_counter
        self.tokens = int(self.batch.attention_NL.sum())

    def __call__(self, fast: bool) -> float:
        """Seconds of one update."""
        body = self.policy.model.model
        packed.KNOWN[body] = fast
        keep, Policy.readout = (
            Policy.readout,
            Policy.readout if fast else property(lambda policy: policy.head),
        )
        began = self.clock()
        loop.update(self.setup, State(step=1), self.batch, Sums())
        took, Policy.readout = self.clock() - began, keep
        return took


def high_water() -> float:
    """The most memory this process has held since its peak was last cleared, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Every workload at every size; `--alone PATH` is one update in a process of its own, and
    prints its peak.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="a,b")
    parser.add_argument("--only", default=",".join(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--onednn", action="store_true", help="fp32 products by oneDNN")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="seconds of the processor, not of the clock: for a machine that others use",
    )
    parser.add_argument("--alone", choices=("general", "fast"))
    parser.add_argument("--no-peaks", action="store_true", help="times only")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    for size in asked.sizes.split(","):
        for work in asked.only.split(","):
            step = Step(work, size, getattr(torch, asked.dtype), asked.budget, asked.prompts)
            step.clock = time.process_time if asked.cpu else time.perf_counter
            if asked.alone:
                Path("/proc/self/clear_refs").write_text(
                    "5"
                )  # the peak so far is of the preparation
                before = high_water()
                step(asked.alone == "fast")
                print(json.dumps({"peak": high_water(), "before": before}))
                continue
            took: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(asked.rounds + 1):
                for fast, times in took.items():
                    times.append(step(fast))
            slow, quick = ([median(t[1:]), min(t[1:]), max(t[1:])] for t in took.values())
            ratios = sorted(a / b for a, b in zip(took[False][1:], took[True][1:], strict=True))
            peaks = (
                [] if asked.no_peaks else [alone(work, size, path) for path in ("general", "fast")]
            )
            print(
                f"{size} {work:12} {step.tokens} tokens | general {slow[0]:.3f} s"
                f" ({slow[1]:.3f}-{slow[2]:.3f}) | fast {quick[0]:.3f}"
                f" ({quick[1]:.3f}-{quick[2]:.3f}) | {median(ratios):.2f} x"
                f" ({ratios[0]:.2f}-{ratios[-1]:.2f}) | peak MB "
                + " / ".join(f"{p['peak']:.0f} (+{p['peak'] - p['before']:.0f})" for p in peaks),
                flush=True,
            )


def alone(work: str, size: str, path: str) -> dict[str, float]:
    """The peak of one update in its own process, MB, and what stood before it."""
    given = sys.argv[1:]
    command = [sys.executable, __file__, *given, "--sizes", size, "--only", work, "--alone", path]
    out = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )
    return json.loads(out.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
