"""Where the time of a step goes: a clock with phases that add up to the step, and with `profile` a table of them in profile.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch

from laurel.core.files import write_atomic
from laurel.core.metrics import Sums

if TYPE_CHECKING:
    from laurel.train.setup import Setup

PHASES = ("sample", "score", "weigh", "forward", "backward", "optimiser", "other")
Given, Made = ParamSpec("Given"), TypeVar("Made")


class Clock:
    """Seconds by phase. A phase inside another interrupts it, so every moment belongs to one phase, and all add up to the step.

    What no phase claims is `other`. While it is watching (`watch`), the clock waits for a GPU at every change of phase, and notes how
    long the main thread was not on a core (`idle`): it waited for rewards in other processes, for a disk, or for other programs.
    """

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.rate = 0.0  # floating-point operations per second of a matrix product
        self.steps, self.totals = 0, dict[str, float]()
        self.start()

    def watch(self, device: torch.device, dtype: torch.dtype) -> None:
        """From now on keep what a profile needs. Measures for half a second how fast this machine multiplies matrices."""
        self.device, self.rate = device, product_rate(device, dtype)

    def start(self) -> None:
        """A step begins."""
        self.spent, self.idle, self.counts = dict[str, float](), dict[str, float](), dict[str, float]()
        self.open = ["other"]
        self.mark, self.on_core = time.perf_counter(), time.thread_time()

    def stop(self) -> dict[str, float]:
        """The step ends: the seconds of each phase it went through."""
        self._turn()
        return self.spent

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What happens in this context belongs to the phase `name`."""
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def run(self, name: str, function: Callable[Given, Made], *args: Given.args, **options: Given.kwargs) -> Made:
        """function(...), as part of the phase `name`."""
        with self(name):
            return function(*args, **options)

    def count(self, name: str, number: float) -> None:
        """Add to a count of this step (tokens read or trained on)."""
        self.counts[name] = self.counts.get(name, 0.0) + number

    def _turn(self) -> None:
        """The moment since the last turn belongs to the phase that is open."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, name = time.perf_counter(), self.open[-1]
        self.spent[name] = self.spent.get(name, 0.0) + now - self.mark
        if self.device is not None:
            on_core = time.thread_time()
            self.idle[name] = self.idle.get(name, 0.0) + max(0.0, now - self.mark - (on_core - self.on_core))
            self.on_core = on_core
        self.mark = now


def phase(name: str) -> Callable[[Callable[Concatenate[Any, Given], Made]], Callable[Concatenate[Any, Given], Made]]:
    """A decorator for functions of a Setup: what they do belongs to the phase `name`."""

    def decorate(function: Callable[Concatenate[Any, Given], Made]) -> Callable[Concatenate[Any, Given], Made]:
        @wraps(function)
        def timed(setup: Any, *args: Given.args, **options: Given.kwargs) -> Made:
            with setup.clock(name):
                return function(setup, *args, **options)

        return timed

    return decorate


@torch.no_grad()
def product_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations per second of a large square matrix product: the fastest of as many as fit into `seconds`."""
    size = 1024 if device.type == "cpu" else 4096
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def operations(setup: Setup, sums: Sums) -> float:
    """Floating-point operations of a step's matrix products that a model must do: 2 per weight and token read, 6 per token trained on.

    Weights of the body count for every token (a prompt's once per group when sampling; in training every position that was computed
    and is no padding), those of the head for every token drawn or trained on. A frozen weight needs 4 in place of 6. Products of
    queries with keys and of attention with values are left out, so utilisation errs on the low side.
    """
    policy, counts = setup.policy, setup.clock.counts
    own = policy.causal if hasattr(policy, "causal") else policy.model
    embedding = own.get_input_embeddings().weight
    output = getattr(own.get_output_embeddings(), "weight", None)
    body = sum(p.numel() for p in own.parameters() if p.ndim > 1 and p is not embedding and p is not output)
    head = 0 if output is None else output.numel()
    moved = sum(p.numel() for p in policy.trainable().values()) / max(1, policy.num_parameters)
    beside = setup.companion.trainable() if setup.companion else {}
    critic = sum(p.numel() for name, p in beside.items() if p.ndim > 1 and "embed" not in name)
    drawn = sums.totals.get("tokens", 0.0)
    padding, computed = sums.sums.get("padding_share", (0.0, 0.0))
    trained = sums.totals.get("supervised_tokens", 0.0) or sums.sums.get("entropy", (0.0, 0.0))[1]
    reading = 2 * body * (counts.get("prompt_tokens", 0.0) + drawn + counts.get("reference_tokens", 0.0)) + 2 * head * drawn
    return reading + (4 + 2 * min(1.0, moved)) * (body * (computed - padding) + head * trained) + 6 * critic * (computed - padding)


def record_profile(setup: Setup, phases: dict[str, float], sums: Sums, step: int) -> None:
    """Add a step to the profile and write it, every `logging_steps` steps. The first, which warms up, counts only while it is alone."""
    clock, config = setup.clock, setup.config
    if clock.steps == 1:
        clock.totals.clear()
    clock.steps += 1
    padding, computed = sums.sums.get("padding_share", (0.0, 0.0))
    numbers = {
        "steps": 1.0, "operations": operations(setup, sums), "sampled": sums.totals.get("tokens", 0.0),
        "trained": computed - padding, "padding": padding, "computed": computed,
    }  # fmt: skip
    for name, seconds in phases.items():
        kind = name if name in PHASES else "other"
        numbers[f"seconds/{kind}"] = numbers.get(f"seconds/{kind}", 0.0) + seconds
        numbers[f"idle/{kind}"] = numbers.get(f"idle/{kind}", 0.0) + clock.idle.get(name, 0.0)
    for name, number in numbers.items():
        clock.totals[name] = clock.totals.get(name, 0.0) + number
    if step % config.logging_steps == 0 or step == config.max_steps:
        write_atomic(setup.run.folder / "profile.json", json.dumps(told(clock.totals, clock.rate), indent=1) + "\n")


def told(totals: dict[str, float], rate: float) -> dict[str, Any]:
    """The profile as profile.json has it: means per step, and shares of the step.

    `mfu`, model FLOP utilisation, is the time that the needed matrix products would take at `rate`, `idle` the time
    off the cores, `overhead` the rest: Python, the dispatch of operators, element-wise work, padding, memory traffic.
    """
    steps, phases = totals["steps"], [name for name in PHASES if f"seconds/{name}" in totals]
    seconds = sum(totals[f"seconds/{name}"] for name in phases)
    idle = sum(totals[f"idle/{name}"] for name in phases) / seconds
    mfu = totals["operations"] / rate / seconds
    return {
        "steps": int(steps),
        "seconds": seconds / steps,
        "phases": {
            name: {
                "seconds": totals[f"seconds/{name}"] / steps,
                "share": totals[f"seconds/{name}"] / seconds,
                "idle": totals[f"idle/{name}"] / seconds,
            }
            for name in phases
        },
        "tokens_per_second": {"sampled": totals["sampled"] / seconds, "trained": totals["trained"] / seconds},
        "mfu": mfu,
        "idle": idle,
        "overhead": max(0.0, 1.0 - mfu - idle),
        "padding_share": totals["padding"] / totals["computed"] if totals["computed"] else 0.0,
        "product_rate": rate,
        "threads": torch.get_num_threads(),
    }
