"""Where the time of a step goes: a clock with phases that add up to the step, and with `profile` a
table of them in profile.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from laurel.core.files import write_atomic
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Group
from laurel.train.roof import Rates, Work, body_of, bound, drawn, passed

if TYPE_CHECKING:
    from laurel.train.setup import Setup

PHASES = ("sample", "score", "weigh", "forward", "backward", "optimiser", "other")
Given, Made = ParamSpec("Given"), TypeVar("Made")


class Clock:
    """Seconds by phase. A phase inside another interrupts it, so every moment belongs to one phase,
    and all add up to the step.

    What no phase claims is `other`. While it is watching (`watch`), the clock waits for a GPU at
    every change of phase, and notes how long the main thread was not on a core (`idle`): it waited
    for rewards in other processes, for a disk, or for other programs.
    """

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.rates: Rates = {}
        self.steps, self.totals = 0, dict[str, float]()
        self.start()

    def watch(self, device: torch.device) -> None:
        """From now on keep what a profile needs."""
        self.device = device

    def start(self) -> None:
        """A step begins."""
        self.spent, self.idle, self.work = dict[str, float](), dict[str, float](), Work()
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

    def run(
        self, name: str, function: Callable[Given, Made], *args: Given.args, **options: Given.kwargs
    ) -> Made:
        """function(...), as part of the phase `name`."""
        with self(name):
            return function(*args, **options)

    def passed(self, model: nn.Module, batch: Batch, *, learns: bool) -> None:
        """A model reads a batch in this step, and learns from it or not."""
        if self.device is not None:
            passed(self.work, body_of(model), batch, learns=learns)

    def drew(self, model: nn.Module, dtype: torch.dtype, groups: Sequence[Group]) -> None:
        """A model said the completions of these groups in this step."""
        if self.device is not None and groups:
            prompts = [len(group.samples[0].prompt_ids) for group in groups]
            lengths = [[sum(sample.loss_mask) for sample in group.samples] for group in groups]
            drawn(self.work, body_of(model), dtype.itemsize, prompts, lengths)

    def _turn(self) -> None:
        """The moment since the last turn belongs to the phase that is open."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, name = time.perf_counter(), self.open[-1]
        self.spent[name] = self.spent.get(name, 0.0) + now - self.mark
        if self.device is not None:
            on_core = time.thread_time()
            self.idle[name] = self.idle.get(name, 0.0) + max(
                0.0, now - self.mark - (on_core - self.on_core)
            )
            self.on_core = on_core
        self.mark = now


def phase(
    name: str,
) -> Callable[[Callable[Concatenate[Any, Given], Made]], Callable[Concatenate[Any, Given], Made]]:
    """A decorator for functions of a Setup: what they do belongs to the phase `name`."""

    def decorate(
        function: Callable[Concatenate[Any, Given], Made],
    ) -> Callable[Concatenate[Any, Given], Made]:
        @wraps(function)
        def timed(setup: Any, *args: Given.args, **options: Given.kwargs) -> Made:
            with setup.clock(name):
                return function(setup, *args, **options)

        return timed

    return decorate


def learned(setup: Setup, batch: Batch) -> None:
    """The policy, and what is trained beside it, learn from a batch in this step."""
    if setup.clock.device is None:  # nobody watches
        return
    setup.clock.passed(whole(setup.policy), batch, learns=True)
    if setup.companion is not None:
        own = dict(setup.companion.model.named_children())
        setup.clock.passed(own.get("body", setup.companion.model), batch, learns=True)


def whole(policy: Any) -> nn.Module:
    """The model of a policy or a scorer, heads and adapters included."""
    return policy.causal if hasattr(policy, "causal") else policy.model


def record_profile(setup: Setup, phases: dict[str, float], sums: Sums, step: int) -> None:
    """Add a step to the profile and write it, every `logging_steps` steps. The first, which warms
    up, counts only while it is alone.
    """
    clock, config = setup.clock, setup.config
    if clock.steps == 1:
        clock.totals.clear()
    clock.steps += 1
    padding, computed = sums.sums.get("padding_share", (0.0, 0.0))
    numbers = {
        "steps": 1.0,
        "bound": bound(clock.work, setup.policy.dtype, setup.policy.device, clock.rates),
        "operations": clock.work.operations,
        "sampled": sums.totals.get("tokens", 0.0),
        "trained": computed - padding,
        "padding": padding,
        "computed": computed,
    }
    for name, seconds in phases.items():
        kind = name if name in PHASES else "other"
        numbers[f"seconds/{kind}"] = numbers.get(f"seconds/{kind}", 0.0) + seconds
        numbers[f"idle/{kind}"] = numbers.get(f"idle/{kind}", 0.0) + clock.idle.get(name, 0.0)
    for name, number in numbers.items():
        clock.totals[name] = clock.totals.get(name, 0.0) + number
    if step % config.logging_steps == 0 or step == config.max_steps:
        write_atomic(
            setup.run.folder / "profile.json", json.dumps(told(clock.totals), indent=1) + "\n"
        )


def told(totals: dict[str, float]) -> dict[str, Any]:
    """The profile as profile.json has it: means per step, and shares of the step.

    `roofline` is the time that the step's necessary work would take at this machine's own rates
    (`laurel.train.roof`), `idle` the time off the cores, `overhead` the rest: Python, the dispatch
    of operators, element-wise work, padding.
    """
    steps, phases = totals["steps"], [name for name in PHASES if f"seconds/{name}" in totals]
    seconds = sum(totals[f"seconds/{name}"] for name in phases)
    idle = sum(totals[f"idle/{name}"] for name in phases) / seconds
    roofline = totals["bound"] / seconds
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
        "tokens_per_second": {
            "sampled": totals["sampled"] / seconds,
            "trained": totals["trained"] / seconds,
        },
        "roofline": roofline,
        "idle": idle,
        "overhead": max(0.0, 1.0 - roofline - idle),
        "padding_share": totals["padding"] / totals["computed"] if totals["computed"] else 0.0,
        "operations_per_second": totals["operations"] / seconds,
        "threads": torch.get_num_threads(),
    }
