"""What a row of the table of algorithms is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from laurel.model.interface import AuxiliaryModel
from laurel.rollout.source import Source

Credit = Literal["sample", "token", "critic"]


@dataclass(frozen=True)
class Term:
    """One more term of the loss: `objective`, reduced over `unit`.

    The objective brings its own coefficient; the term is left out where `option` is 0.
    """

    objective: Callable[..., Any]
    unit: str
    option: str = ""


@dataclass(frozen=True)
class TrainedModel:
    """What is trained: a language model, or a scorer with `head` numbers.

    `auxiliary` is the name of a model that is trained together with it; `load(config, policy)`
    makes it.
    """

    head: int = 0
    auxiliary: str = ""
    load: Callable[..., AuxiliaryModel] | None = None


@dataclass(frozen=True)
class Algorithm:
    """x from `source`, R -> A by `weigh`, L = `objective` of what `trained` computes.

    `defaults` are this row's values of options; every other default stands in the signature of the
    function that uses it, or in the source. `terms` are added to the loss. `targets` fills the
    batch's targets before the update, from the rows or from the policy as it is now. `measure` are
    metrics, a function of a model's outputs as the objective is. `compares`: the weights of a
    group's samples depend on each other, so a group needs two.
    """

    source: Source
    weigh: Callable[..., Any]
    objective: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    terms: tuple[Term, ...] = ()
    targets: Callable[..., Any] | None = None
    measure: Callable[..., Any] | None = None
    trained: TrainedModel = TrainedModel()
    compares: bool = False

    @property
    def credit(self) -> Credit:
        """What gets one weight: read off what `weigh` is a function of.

        A sample (rewards [P, G]), a token (rewards [N, T]), or a token by a critic's values.
        """
        names = inspect.signature(self.weigh).parameters
        if "value_NT" in names:
            return "critic"
        return "token" if "reward_NT" in names else "sample"
