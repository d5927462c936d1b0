"""A process-reward search from beginning to end: options, questions, the file, choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.protocols import Generator
from laurel.core.sample import Draw
from laurel.data.source import Row
from laurel.search.options import ChooseConfig
from laurel.search.run import Chosen, graded, load_grader, load_scorers
from laurel.search.tree import RewardValue, TreeShape, tree_search
from laurel.search.tree_file import TreeFile
from laurel.search.tree_options import NOT_OURS, SearchConfig

TREE = "tree.jsonl"
DRAWN_BY = ("seed", "max_completion_length", "temperature", "top_p", "top_k", "stop")
SHAPED_BY = ("branches", "subtrees", "delimiters", "step_tokens", "max_steps", "distinct")


def shape_of(config: SearchConfig) -> TreeShape:
    """The shape of the tree; UsageError for one that cannot be, and for what says nothing here."""
    fields = ChooseConfig.model_fields
    for name in NOT_OURS:
        if getattr(config, name) != fields[name].default:
            raise UsageError("it says nothing to a search.", where=name, fix="Leave it out.")
    if len(config.scorers) != 1:
        what = f"a search keeps prefixes by one scorer, not {len(config.scorers)}."
        raise UsageError(what, where="scorers", fix="Such as --scorers '[prm:FOLDER]'.")
    return TreeShape(
        config.num_generations,
        config.branches,
        config.subtrees,
        tuple(config.delimiters),
        config.step_tokens,
        config.max_steps,
        config.distinct,
    )


def searched(
    generator: Generator,
    rows: Sequence[Row],
    config: SearchConfig,
    identity: str,
    watch: Callable[[int], None] | None = None,
) -> Chosen:
    """Search every row, and choose. What was drawn is kept in output_dir, and not drawn again.

    identity: what tells the model from any other. Errors: UsageError where the folder holds a
    search of another kind.
    """
    shape = shape_of(config)
    scorers, grader = load_scorers(config, rows), load_grader(config, rows)
    assert scorers is not None
    value = RewardValue(scorers)
    how: dict[str, Any] = {
        "model": identity,
        "scorers": config.scorers,
        "num_generations": config.num_generations,
        **{name: getattr(config, name) for name in (*DRAWN_BY, *SHAPED_BY)},
    }
    file = TreeFile(Path(config.output_dir) / TREE, how)
    draw = Draw.of(config, "choose", 0)
    found = tree_search(generator, value, rows, shape, draw, file=file, watch=watch)
    choices = [one.choice(value.name, config.kind, votes=config.final == "vote") for one in found]
    questions = [one.question for one in found]
    facts = {
        "steps": sum(one.steps for one in found),
        "depth": max((one.depth for one in found), default=0),
        "scorer": value.name,
    }
    return Chosen("search", questions, choices, graded(questions, choices, grader), facts)
