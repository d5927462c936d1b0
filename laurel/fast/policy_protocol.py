"""What the engine needs to know of a policy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn


class LanguageModel(Protocol):
    """A causal LM of transformers: `laurel.model.policy.Policy` is one.

    `model` is what is trained, `causal` the language model in it, `dtype` the precision of
    products. `packs`: does `laurel.fast.packed` compute its body? `decoders` keeps what was made to
    sample it with, by name; None where it cannot be made.
    """

    model: nn.Module
    tokenizer: Any
    dtype: torch.dtype
    decoders: dict[str, Any]

    @property
    def causal(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def packs(self) -> bool: ...

    def autocast(self) -> AbstractContextManager[Any]: ...
