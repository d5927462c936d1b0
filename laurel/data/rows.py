"""From a name to rows that are fit for a use: read, mapped and checked.

All that is wrong with a source is one error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from laurel.core.errors import UsageError
from laurel.data.formats import normalise_all, rows_fit_for, unused_columns
from laurel.data.source import Row, load_rows


def read_rows(
    name: str,
    use: str | None = None,
    *,
    split: str = "train",
    seed: int = 0,
    size: int | None = None,
    by: str = "",
    option: str = "",
) -> list[Row]:
    """The rows of `name` (see `load_rows`), normalised and fit for `use` (None: for any format).

    Every row that cannot be read or used is named in one UsageError. by: the algorithm that needs
    them. option: which one named the source, where there are several (`eval_dataset`), so that the
    error blames the right one.
    """
    faults: list[UsageError] = []
    try:
        rows = load_rows(name, split=split, seed=seed, size=size, faults=faults)
        return rows_fit_for(rows, use, by=by, faults=faults) if use else normalise_all(rows, faults)
    except UsageError as error:
        if not option:
            raise
        raise UsageError(
            error.what, where=f"{option}={name}: {error.where}", fix=error.fix
        ) from None


def columns_note(
    rows: Sequence[Row],
    use: str,
    accepts: Callable[[Collection[str]], Collection[str]] | None = None,
) -> list[str]:
    """What a run says of columns that training does not read: nothing, or a line or two.

    accepts: which of some columns the rewards (or the environment) are given; None where nobody is
    given any.
    """
    left = unused_columns(rows, use)
    names = {name: name.partition(" (")[0] for name in left}
    seen = set(accepts(set(names.values()))) if accepts else set()
    unread = [name for name in left if names[name] not in seen]
    lines = [f"columns not used: {', '.join(unread)}"] if unread else []
    others = [name for name in left if names[name] in seen]
    return (
        [*lines, f"columns that the model does not see, only its rewards: {', '.join(others)}"]
        if others
        else lines
    )
