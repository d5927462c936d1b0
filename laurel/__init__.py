"""laurel: Language-model Alignment Using REinforcement Learning.

sample x ~ policy or data  ->  score R(x)  ->  weigh A(x)  ->  maximise A(x) log pi(x)
"""

from importlib import import_module
from typing import Any

from laurel.core.errors import LaurelError, UsageError
from laurel.core.protocols import Train
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
    "train",
]

train: Train
"""`laurel.train("grpo", model=..., dataset=..., rewards=[...])`: the room `laurel/train`, which can
be called; imported when asked for.
"""


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "train"})
