"""What a row of the table of algorithms is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Term:
    """One more term of the loss: `objective`, which brings its own coefficient, reduced over
    `unit`; left out where `option` is 0.
    """

    objective: Callable[..., Any]
    unit: str
    option: str = ""


@dataclass(frozen=True)
class Algorithm:
    """x from `source`, R -> A by `weigh` (one weight per sample, or per token with credit="token"
    or "critic"), L = `objective`.

    `defaults` are this row's values of options; every other default stands in the signature of the
    function that uses it. `compares` says that the weights of a group's samples depend on each
    other, so a group needs two. `aim` fills the batch's targets from the policy as it is now;
    `terms` are added to the loss; `without` are options of its source that make no sense here.
    source: rows of data as they are (data), as preference pairs, as answers labelled good or bad,
    as rankings, outcomes or steps to be scored, logged with their reward, samples of the policy, or
    of its parameters (`laurel.train.evolve`). `head`: how many numbers a scorer's head gives (0: a
    language model is trained); `measure` are its metrics. `beside` names what is trained beside the
    policy (BESIDE in `laurel.train.companions`). `judge` scores sampled groups in place of the
    configuration's rewards; `revise` changes scored groups before they are packed; `off_policy`
    says that they then no longer are what the policy drew, so no ratio is looked at.
    `use`: what its rows of data must hold (USES in `laurel.data.formats`), where its source does
    not say it.
    """

    about: str
    source: Literal[
        "data", "pairs", "labels", "rankings", "outcomes", "steps", "logged", "policy", "parameters"
    ]
    weigh: Callable[..., Any]
    objective: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    credit: Literal["sample", "token", "critic"] = "sample"
    compares: bool = False
    terms: tuple[Term, ...] = ()
    without: tuple[str, ...] = ()
    aim: Callable[..., Any] | None = None
    head: int = 0
    measure: Callable[..., Any] | None = None
    beside: str = ""
    judge: Callable[..., Any] | None = None
    revise: Callable[..., Any] | None = None
    off_policy: bool = False
    use: str = ""
