"""Several sets of rows to evaluate on, each under a name of its own:
`easy=a.jsonl,hard=b.jsonl,c.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = r"[A-Za-z_][\w.-]*"


def parse_named_sets(text: str) -> str | dict[str, str]:
    """`easy=a.jsonl,hard=b.jsonl,c.jsonl` as {"easy": "a.jsonl", "hard": "b.jsonl,c.jsonl"}; text
    without names as it is.

    A part without a name belongs to the set before it. `digits=3` is a parameter of a generated
    task, not a set.
    """
    if not re.match(rf"\s*{NAME}=", text) or Path(text).exists():
        return text
    found: dict[str, str] = {}
    name = ""
    for part in text.split(","):
        new = re.fullmatch(rf"\s*({NAME})=(.*)", part)
        if new and not re.fullmatch(r"[-+\d.]*", new[2].strip()):
            name = new[1]
            if name in found:
                raise ValueError(f"two sets are called {name!r}")
            found[name] = new[2].strip()
        else:
            found[name] = f"{found[name]},{part.strip()}" if name else part
    return text if "" in found else check_set_names(found)


def check_set_names(sets: Mapping[Any, Any]) -> dict[str, Any]:
    """The same sets, if each has a name that can stand in a metric's (`eval/NAME/...`), and there
    is one at all.
    """
    if not sets:
        raise ValueError("no set is named")
    for name in sets:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r} cannot name a set: letters, digits, `_`, `-` and `.`, a letter first"
            )
    return dict(sets)


def format_named_sets(sets: str | Mapping[str, str]) -> str:
    """Sets as the command line names them."""
    return (
        sets
        if isinstance(sets, str)
        else ",".join(f"{name}={source}" for name, source in sets.items())
    )
