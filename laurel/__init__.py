"""laurel: Language-model Alignment Using REinforcement Learning.

sample x ~ policy or data  ->  score R(x)  ->  weigh A(x)  ->  maximise A(x) log pi(x)
"""

from importlib import import_module
from typing import Any

from laurel.core.errors import LaurelError, UsageError
from laurel.core.protocols import Evaluate, Generate, Load, Train
from laurel.core.result import Abstain, Failed, Result, Score
from laurel.core.sample import Batch, Group, Key, Message, Sample
from laurel.core.version import __version__ as __version__

__all__ = [
    "Abstain",
    "Batch",
    "Failed",
    "Group",
    "Key",
    "LaurelError",
    "Message",
    "Result",
    "Sample",
    "Score",
    "UsageError",
    "evaluate",
    "generate",
    "load",
    "train",
]

evaluate: Evaluate
"""`laurel.evaluate("runs/mine/model", "gsm8k", num_generations=8)`: figures with intervals."""
generate: Generate
"""`laurel.generate("runs/mine/model", "12+34=")`: the samples of a prompt, or of several."""
load: Load
"""`laurel.load("runs/mine/model")`: a policy, or a scorer, ready to be asked."""
train: Train
"""`laurel.train("grpo", model=..., dataset=..., rewards=[...])`: the room `laurel/train`, which can
be called.

All four are imported, and torch with them, when they are asked for.
"""
INFERENCE = ("evaluate", "generate", "load")


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module(f"{__name__}.{name}")
    if name in INFERENCE:
        return getattr(import_module(f"{__name__}.train.inference"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *INFERENCE, "train"})
