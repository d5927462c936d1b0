"""Where the time of a step goes: with `profile` a table of phases in profile.json."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from laurel.core.files import write_atomic
from laurel.core.metrics import Sums
from laurel.core.sample import Batch
from laurel.train.roofline import bound_seconds
from laurel.train.session import Session

PHASES = ("sample", "score", "weigh", "forward", "backward", "optimiser", "other")


def count_learning(session: Session, batch: Batch) -> None:
    """The policy, and what is trained beside it, learn from a batch in this step."""
    if session.clock.device is None:  # nobody watches
        return
    session.clock.passed(whole_model(session.policy), batch, learns=True)
    if session.auxiliary is not None:
        own = dict(session.auxiliary.model.named_children())
        session.clock.passed(own.get("body", session.auxiliary.model), batch, learns=True)


def whole_model(policy: Any) -> nn.Module:
    """The model of a policy or a scorer, heads and adapters included."""
    return policy.causal if hasattr(policy, "causal") else policy.model


def record_profile(session: Session, phases: dict[str, float], sums: Sums, step: int) -> None:
    """Add a step to the profile and write it, every `logging_steps` steps.

    The first step, which warms up, counts only while it is alone.
    """
    clock, config = session.clock, session.config
    if clock.steps == 1:
        clock.totals.clear()
    clock.steps += 1
    padding, computed = sums.sums.get("padding_share", (0.0, 0.0))
    numbers = {
        "steps": 1.0,
        "bound": bound_seconds(
            clock.work, session.policy.dtype, session.policy.device, clock.rates
        ),
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
            session.run.folder / "profile.json",
            json.dumps(average_profile(clock.totals), indent=1) + "\n",
        )


def average_profile(totals: dict[str, float]) -> dict[str, Any]:
    """The profile as profile.json has it: means per step, and shares of the step.

    `roofline` is the time that the step's necessary work would take at this machine's own rates
    (`laurel.train.roofline`), `idle` the time off the cores, `overhead` the rest: Python, the
    dispatch of operators, element-wise work, padding.
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
