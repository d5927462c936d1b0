"""Every row of a source that cannot be used, named at once: one error for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from laurel.core.errors import UsageError

SHOWN = 20


def combined_error(faults: Sequence[UsageError], rows: int, where: str = "") -> UsageError:
    """One error for the faults of a source of so many rows: a single one as it is, several as a
    list, the first 20 by name.

    A remedy that all of them share stands once, at the end.
    """
    if len(faults) == 1:
        return faults[0]
    same = len({fault.fix for fault in faults}) == 1
    lines = [
        f"{fault.where}: {fault.what}{'' if same or not fault.fix else f' {fault.fix}'}"
        for fault in faults[:SHOWN]
    ]
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    message = "".join(f"\n  {line}" for line in (*lines, *more))
    fix = faults[0].fix if same and faults[0].fix else "Mend or remove these rows."
    return UsageError(
        f"{len(faults)} of {rows} rows cannot be used:{message}\n ", where=where, fix=fix
    )


def source_of(where: str) -> str:
    """The source in a row's place: `train.jsonl` of "train.jsonl:17" and of "train.jsonl:record
    17".
    """
    return where.rpartition(":")[0] or where
