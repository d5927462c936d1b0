"""The workloads: who races, on what, and which goals the figures are held against (the project's
performance table).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import learn
import ours
import peers
from models import Shape

Contender = Callable[..., None]


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of ours against a peer's, and the goal.

    speed: peer's seconds over ours, at least `goal`. memory: our peak over the peer's, at most
    `goal`. bound: seconds of the roofline over ours, at least `goal`; where `peer` names another
    precision of ours, of the quicker one.
    figure: our own number `figure`, at most `goal` (or at least, with `least`).
    """

    title: str
    kind: Literal["speed", "memory", "bound", "figure"]
    ours: str
    peer: str = ""
    goal: float | None = None
    figure: str = ""
    least: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Workload:
    """Contenders by name, each in a process of its own, and the rows that compare them. `long`:
    only with --all or by name.
    """

    about: str
    shape: Shape
    contenders: Mapping[str, Contender]
    rows: tuple[Row, ...]
    repeat: int = 5
    long: bool = False
    needs_trl: tuple[str, ...] = field(default=())


def quicker(goal: float | None) -> Row:
    """How near the machine's bound the quicker of our two precisions comes."""
    return Row(
        "share of its roofline, the quicker precision", "bound", "laurel-fp32", "laurel-bf16", goal
    )


def rollout(
    size: str, dtype: str, prompts: int, goal: float, static: float | None, share: float | None
) -> Workload:
    """The sampler against generate with its two caches, and against the limit of the machine."""
    shape = Shape(size=size, prompts=prompts)
    bound = Row("share of its roofline", "bound", "laurel", goal=share)
    return Workload(
        f"rollout {size} {dtype}: {prompts} prompts x 8, 32 tokens of prompt, 64 to 128 new",
        shape,
        {
            "laurel": partial(ours.rollout, dtype=dtype),
            "generate": partial(peers.generate, dtype=dtype),
            "generate-static": partial(peers.generate, dtype=dtype, cache="static"),
        },
        (
            Row("against generate, dynamic cache", "speed", "laurel", "generate", goal),
            Row("against generate, static cache", "speed", "laurel", "generate-static", static),
            bound,
        ),
    )


def grpo(
    about: str,
    shape: Shape,
    rows: tuple[Row, ...],
    ours_in: tuple[str, ...],
    trl_as: tuple[str, ...],
) -> Workload:
    """A whole step of GRPO: laurel's loop in some precisions, TRL in some settings."""
    mine = {f"laurel-{dtype}": partial(ours.grpo, dtype=dtype) for dtype in ours_in}
    theirs = {f"trl-{setting}": partial(peers.grpo, setting=setting) for setting in trl_as}
    return Workload(about, shape, {**mine, **theirs}, rows, needs_trl=tuple(theirs))


def data(about: str, kind: str, algorithm: str, shape: Shape, rows: tuple[Row, ...]) -> Workload:
    """A pass over rows of data in both precisions: laurel's loop against a trainer of TRL."""
    mine = {
        f"laurel-{dtype}": partial(ours.data, dtype=dtype, algorithm=algorithm)
        for dtype in ("fp32", "bf16")
    }
    settings = ("fp32", "bf16", "default")
    theirs: dict[str, Contender] = {
        f"trl-{setting}": partial(peers.data, setting=setting, kind=kind) for setting in settings
    }
    if kind == "sft":
        theirs["trl-fp32-packed"] = partial(peers.data, setting="fp32", kind=kind, packing=True)
    return Workload(about, shape, {**mine, **theirs}, rows, needs_trl=tuple(theirs))


def pairs(title: str, kind: str, goal: float) -> Workload:
    """A pass over 256 pairs."""
    rows = (
        Row("fp32 against TRL in fp32", "speed", "laurel-fp32", "trl-fp32", goal),
        Row("bf16 against TRL in bf16", "speed", "laurel-bf16", "trl-bf16"),
        Row("bf16 against TRL's default", "speed", "laurel-bf16", "trl-default"),
        quicker(0.6),
    )
    return data(f"{title} a: 256 pairs, 32 a step", kind, kind, Shape(size="a"), rows)


def own(algorithm: str, shape: Shape) -> Workload:
    """A row of the table without a living peer on a CPU."""
    told = (
        Row(
            "tokens sampled and trained on per second",
            "figure",
            "laurel",
            figure="speed",
            least=True,
            unit=" tokens/s",
        ),
        Row(
            "share of the step that is not matrix products",
            "figure",
            "laurel",
            figure="not_products",
            goal=0.35,
        ),
        Row("share of its roofline", "bound", "laurel"),
    )
    contenders = {"laurel": partial(ours.profiled, dtype="fp32", algorithm=algorithm)}
    return Workload(
        f"{algorithm} step {shape.size}: no living peer on a CPU", shape, contenders, told
    )


STEP_B = Shape(size="b", prompts=8)
PREFIX = Shape(size="b", prompts=8, prompt=256, low=64, high=64)
SMALL = Shape(size="a", prompts=8, prompt=16, low=16, high=32)
TEXTS = Shape(size="a", rows=512, low=32, high=256, batch=28)

WORKLOADS: dict[str, Workload] = {
    "rollout-a": rollout("a", "fp32", 64, 4.0, None, None),
    "rollout-a-bf16": rollout("a", "bf16", 64, 8.0, None, None),
    "rollout-b": rollout("b", "fp32", 64, 8.0, 4.0, 0.75),
    "rollout-b-bf16": rollout("b", "bf16", 64, 10.0, None, 0.75),
    "rollout-c": rollout("c", "fp32", 2, 3.0, None, None),
    "rollout-c-bf16": rollout("c", "bf16", 2, 3.0, None, None),
    "grpo-a": grpo(
        "GRPO step a: 64 prompts x 8, 64 to 128 new tokens",
        Shape(size="a"),
        (
            Row("fp32 against TRL in fp32", "speed", "laurel-fp32", "trl-fp32", 2.5),
            Row("bf16 against TRL in bf16", "speed", "laurel-bf16", "trl-bf16", 3.5),
            Row("bf16 against TRL's default", "speed", "laurel-bf16", "trl-default"),
            quicker(None),
        ),
        ("fp32", "bf16"),
        ("fp32", "bf16", "default"),
    ),
    "grpo-b": grpo(
        "GRPO step b: 8 prompts x 8, 64 to 128 new tokens",
        STEP_B,
        (
            Row("bf16 against TRL's default", "speed", "laurel-bf16", "trl-default", 6.0),
            Row("bf16 against TRL's best setting", "speed", "laurel-bf16", "trl-bf16", 4.5),
            Row("fp32 against TRL's default", "speed", "laurel-fp32", "trl-default"),
            Row("fp32 against TRL in fp32", "speed", "laurel-fp32", "trl-fp32", 4.5),
            Row(
                "peak memory, bf16 against TRL's default",
                "memory",
                "laurel-bf16",
                "trl-default",
                0.7,
            ),
            Row("peak memory, fp32 against TRL's default", "memory", "laurel-fp32", "trl-default"),
            quicker(0.75),
        ),
        ("fp32", "bf16"),
        ("bf16", "default", "fp32"),
    ),
    "grpo-b-prefix": grpo(
        "GRPO step b: 8 x 8, prompts of 256 tokens, 64 new",
        PREFIX,
        (
            Row("bf16 against TRL's default", "speed", "laurel-bf16", "trl-default", 6.0),
            Row("bf16 against TRL's best setting", "speed", "laurel-bf16", "trl-bf16", 5.0),
            Row("fp32 against TRL in fp32", "speed", "laurel-fp32", "trl-fp32", 5.0),
            quicker(0.75),
        ),
        ("fp32", "bf16"),
        ("bf16", "default", "fp32"),
    ),
    "dpo-a": pairs("DPO", "dpo", 1.8),
    "reward-a": pairs("reward model", "reward", 1.6),
    "sft-a": data(
        "SFT a: 512 texts of 32 to 256 tokens, 28 a step",
        "sft",
        "sft",
        TEXTS,
        (
            Row("fp32 against TRL in fp32, padded", "speed", "laurel-fp32", "trl-fp32", 2.2),
            Row("bf16 against TRL in bf16, padded", "speed", "laurel-bf16", "trl-bf16"),
            Row("fp32 against TRL in fp32, packed", "speed", "laurel-fp32", "trl-fp32-packed", 5.0),
            quicker(0.6),
        ),
    ),
    "logprob-memory": Workload(
        "extra memory of the log-prob function, B 4, T 512, V 50,000",
        Shape(),
        {"laurel": partial(ours.logprob, dtype="fp32")},
        (
            Row("over B T V 4 bytes", "figure", "laurel", goal=0.3, figure="share"),
            Row("at twice V, over that at V: flat", "figure", "laurel", goal=1.1, figure="growth"),
            Row(
                "the same under a frozen head (LoRA)",
                "figure",
                "laurel",
                goal=1.1,
                figure="growth_frozen",
            ),
        ),
        repeat=1,
    ),
    "gap": Workload(
        "nats between sampler and trainer, b, 8 x 8",
        STEP_B,
        {"fp32": partial(ours.gap, dtype="fp32"), "bf16": partial(ours.gap, dtype="bf16")},
        (
            Row("fp32, the largest of all tokens", "figure", "fp32", goal=1e-5, figure="largest"),
            Row("bf16, mean", "figure", "bf16", figure="mean"),
            Row("bf16, mean of the general sampler", "figure", "bf16", figure="general_mean"),
        ),
        repeat=1,
    ),
    "scaling": Workload(
        "tokens/s from 64 to 1,024 rows, seconds of an update from 64 to 512 tokens, b",
        Shape(size="b", prompts=4, low=64, high=64),
        {"laurel": partial(ours.scaling, dtype="fp32")},
        (
            Row(
                "worst ratio of tokens/s at twice the rows",
                "figure",
                "laurel",
                goal=0.95,
                figure="worst_drop",
                least=True,
            ),
            Row(
                "slope of an update's time against its tokens",
                "figure",
                "laurel",
                goal=1.15,
                figure="slope",
            ),
        ),
        repeat=3,
        long=True,
    ),
    "ppo-b": own("ppo", STEP_B),
    "raft-b": own("raft", STEP_B),
    "ilql-b": own("ilql", Shape(size="b", rows=32, batch=32)),
    "learn": Workload(
        "two-digit addition to 90 % held-out accuracy, one seed a repetition, evaluation's time"
        " taken off",
        Shape(),
        {
            "laurel": partial(learn.ours, dtype="fp32"),
            "trl-default": partial(learn.trl, dtype="bf16"),
        },
        (Row("wall clock against TRL's default", "speed", "laurel", "trl-default", 4.0),),
        repeat=3,
        long=True,
        needs_trl=("trl-default",),
    ),
    "soak": Workload(
        "300 GRPO steps a: resident memory after warm-up",
        SMALL,
        {"laurel": partial(ours.soak, dtype="fp32")},
        (Row("growth", "figure", "laurel", goal=20.0, figure="growth_mb", unit=" MB"),),
        repeat=1,
        long=True,
    ),
}
"""name: the workload."""
