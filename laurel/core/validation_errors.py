"""What is wrong with an option's value, in our words: pydantic finds it, and says it in its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from laurel.core.errors import nearest

EXPECTED = {
    "int": "a whole number is wanted",
    "float": "a number is wanted",
    "finite": "a finite number is wanted",
    "bool": "true or false is wanted",
    "string": "text is wanted",
    "list": "a list is wanted",
    "dict": "a mapping of names is wanted",
}
"""The first word of pydantic's kind of mistake: what to say."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe_error(problem: Mapping[str, Any]) -> str:
    """One mistake: what is wanted instead, and of a choice the nearest."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    for bound, words in BOUNDS.items():
        if bound in context:
            return f"it must be {words} {context[bound]:g}"
    if kind == "literal_error":
        hint = nearest(str(problem["input"]), re.findall("'([^']*)'", context["expected"]))
        return f"it is one of {context['expected']}" + (
            f" ({hint.rstrip('?')}?)" if hint.startswith("Did you mean") else ""
        )
    if kind == "value_error":
        return str(context["error"])
    return EXPECTED.get(kind.partition("_")[0], str(problem["msg"]))


def describe_errors(problems: Sequence[Any], fields: Mapping[str, Any]) -> str:
    """Each option that does not fit, with its value and what is wanted; of a type with several
    readings pydantic tells each.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for problem in problems:
        name = str(problem["loc"][0]) if problem["loc"] else ""
        kinds = get_args(fields[name].annotation) if name in fields else ()
        readings = (
            bool in kinds or str in kinds
        )  # pydantic puts the reading that failed behind the name: `resume.bool`
        place = name if readings else ".".join(str(part) for part in problem["loc"])
        said = found.setdefault(name, (f"option `{place}` = {problem['input']!r}:", []))[1]
        if (words := describe_error(problem)) not in said:
            said.append(words)
    return " ".join(f"{what} {', or '.join(said)}." for what, said in found.values())
