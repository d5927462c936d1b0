"""The verifiable tasks, as one table: a maker of seeded rows (where there is one) and an exact
verifier.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from laurel.core.errors import UsageError, nearest
from laurel.core.protocols import Verifier
from laurel.data import answers, synthetic
from laurel.data.gsm8k import verify_gsm8k
from laurel.data.reasoning import gym_rows, is_gym


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of problem with checkable answers.

    `make` is None for tasks that only come from files.
    """

    name: str
    description: str
    verify: Verifier
    make: Callable[..., dict[str, Any]] | None = None

    @property
    def parameters(self) -> dict[str, int]:
        """The names and defaults of the difficulty parameters."""
        if self.make is None:
            return {}
        return {
            name: item.default
            for name, item in inspect.signature(self.make).parameters.items()
            if item.kind is item.KEYWORD_ONLY
        }

    def generate(self, seed: int, size: int, **parameters: int) -> list[dict[str, Any]]:
        """`size` rows with prompt, completion (a gold answer), answer, task and metadata.

        Row i is a function of (task, seed, i, parameters) alone: a larger size leaves the earlier
        rows as they were, and a file of rows can be made anew. Prompts may repeat where a task has
        few. An unknown parameter is a UsageError.
        """
        if self.make is None:
            raise UsageError(
                f"task `{self.name}` has a verifier and no generator.",
                where="dataset",
                fix="Give a file of its rows.",
            )
        for name in parameters:
            if name not in self.parameters:
                raise UsageError(
                    f"task `{self.name}` has no parameter `{name}`.",
                    where="dataset",
                    fix=nearest(name, self.parameters),
                )
        if size < 1:
            raise UsageError(
                f"a size of {size} rows.", where=self.name, fix="Ask for at least one."
            )
        sources = (random.Random(f"{self.name}/{seed}/{index}") for index in range(size))
        return [{**self.make(source, **parameters), "task": self.name} for source in sources]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("addition", "the sum of two numbers", answers.verify_sum, synthetic.addition),
        Task(
            "calculator",
            "a product, of which a calculator may be asked",
            answers.verify_last_line,
            synthetic.calculator,
        ),
        Task(
            "chain_sum",
            "sums and differences of a few numbers",
            answers.verify_sum,
            synthetic.chain_sum,
        ),
        Task(
            "countdown",
            "an expression over given numbers that makes a target",
            answers.verify_countdown,
            synthetic.countdown,
        ),
        Task(
            "letter_counting",
            "how often a letter occurs in a text",
            answers.verify_letter_counting,
            synthetic.letter_counting,
        ),
        Task(
            "number_sorting",
            "numbers in ascending or descending order",
            answers.verify_number_sorting,
            synthetic.number_sorting,
        ),
        Task("leg_counting", "the legs of a list of animals", answers.verify_leg_counting),
        Task(
            "simple_equations",
            "a linear equation with one unknown",
            answers.verify_simple_equations,
        ),
        Task("gsm8k", "grade-school word problems with a number as the answer", verify_gsm8k),
    )
}


def is_task(name: str) -> bool:
    """True for `addition` and `addition:digits=3`, for every other task of the table, and for
    `reasoning_gym:TASK`.
    """
    return is_own_task(name) or is_gym(name)


def is_own_task(name: str) -> bool:
    """True for the tasks of the table, with or without parameters."""
    return name.partition(":")[0] in TASKS


def generate_task(name: str, seed: int, size: int) -> list[dict[str, Any]]:
    """The rows of `task` or `task:parameter=value,parameter=value`."""
    if is_gym(name):
        if size < 1:
            raise UsageError(f"a size of {size} rows.", where=name, fix="Ask for at least one.")
        return gym_rows(name, seed, size)
    task, _, text = name.partition(":")
    parameters: dict[str, int] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        try:
            parameters[key.strip()] = int(value)
        except ValueError:
            raise UsageError(
                f"`{pair}` is not parameter=whole number.",
                where=name,
                fix=f"As in `{task}:digits=3`.",
            ) from None
    return TASKS[task].generate(seed, size, **parameters)
