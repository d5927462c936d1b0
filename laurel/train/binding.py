"""The functions of a row of the table with their options taken from the configuration, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from laurel.core.config import TrainConfig
from laurel.objective.unit import AGGREGATIONS, UNITS
from laurel.train.row import Algorithm
from laurel.train.session import BoundRow, BoundTerm

SUPPLIED = {"running_mean"}  # given to a weight by the loop, not by the configuration
MEASURED = {"rounding"}  # given to an objective by the precision of the model


@cache
def option_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a weight or objective: its keyword-only parameters, with their defaults."""
    found = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in found
        if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED | MEASURED
    }


def objective_inputs(objective: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of an objective before `batch`.

    They are the fields of a model's `Outputs` that it is a function of, such as logp_NT.
    """
    names = list(inspect.signature(objective).parameters)
    return tuple(names[: names.index("batch")]) if "batch" in names else ()


def bind_options(
    function: Callable[..., Any], config: TrainConfig, **supplied: Any
) -> Callable[..., Any]:
    """`function` with its options taken by name from the configuration.

    Options in `supplied` win over the configuration, where the function takes them.
    """
    takes = inspect.signature(function).parameters
    options = {option: getattr(config, option) for option in option_defaults(function)}
    options.update({option: value for option, value in supplied.items() if option in takes})
    return partial(function, **options)


def bind_row(row: Algorithm, config: TrainConfig, *, rounding: float | None = None) -> BoundRow:
    """The row's functions with their options bound; terms whose option is 0 are left out.

    rounding: the ratio's error that the model's precision explains (None: the objective's default).
    """
    measured = {} if rounding is None else {"rounding": rounding}
    main = BoundTerm(
        objective_inputs(row.objective),
        bind_options(row.objective, config, **measured),
        bind_options(AGGREGATIONS[str(config.loss_aggregation)], config),
    )
    used = [term for term in row.terms if not term.option or getattr(config, term.option)]
    further = [
        BoundTerm(
            objective_inputs(term.objective),
            bind_options(term.objective, config),
            bind_options(UNITS[term.unit], config),
        )
        for term in used
    ]
    return BoundRow(
        terms=(main, *further),
        weigh=bind_options(row.weigh, config),
        credit=row.credit,
        running_mean="running_mean" in inspect.signature(row.weigh).parameters,
        measure=None if row.measure is None else bind_options(row.measure, config),
        measure_reads=() if row.measure is None else objective_inputs(row.measure),
    )
