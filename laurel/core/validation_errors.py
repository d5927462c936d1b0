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
"""The first word of pydantic's error type -> what to say."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe_error(problem: Mapping[str, Any]) -> str:
    """What is wanted instead of one value; of a choice the nearest."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    for bound, words in BOUNDS.items():
        if bound in context:
            return f"it must be {words} {context[bound]:g}"
    if kind == "literal_error":
        hint = nearest(str(problem["input"]), re.findall("'([^']*)'", context["expected"]))
        near = f" ({hint.rstrip('?')}?)" if hint.startswith("Did you mean") else ""
        return f"it is one of {context['expected']}{near}"
    if kind == "value_error":
        return str(context["error"])
    return EXPECTED.get(kind.partition("_")[0], str(problem["msg"]))


def describe_errors(problems: Sequence[Any], fields: Mapping[str, Any]) -> str:
    """Each option that does not fit, with its value and what is wanted.

    For an option of several types pydantic reports each type that failed: they become one sentence.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for problem in problems:
        name = str(problem["loc"][0]) if problem["loc"] else ""
        kinds = get_args(fields[name].annotation) if name in fields else ()
        # where text or true|false is one of the types, pydantic adds the type: `resume.bool`
        place = name if bool in kinds or str in kinds else dotted_location(problem)
        wanted = found.setdefault(name, (f"option `{place}` = {problem['input']!r}:", []))[1]
        if (words := describe_error(problem)) not in wanted:
            wanted.append(words)
    return " ".join(f"{what} {', or '.join(wanted)}." for what, wanted in found.values())


def dotted_location(problem: Mapping[str, Any]) -> str:
    """Where the problem is: `sample.num_generations`."""
    return ".".join(str(part) for part in problem["loc"])
