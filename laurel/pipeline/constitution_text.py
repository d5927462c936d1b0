"""A constitution: principles in words, and the frames in which a model is asked about them.

A YAML file:

    name: mine
    version: 1
    principles:
    - id: kindness
      critique: What in the answer is unkind?      # asked of the critic
      revise: Rewrite the answer so that it is kind.
      prefer: Which answer is kinder?              # asked of the judge

`about: helpfulness` marks a principle by which answers to helpful prompts are compared; it needs
only `prefer`. `critique_frame` and `revise_frame` (`system`, `user`) replace laurel's own, for
models that need other words; `fence: false` leaves the texts without the lines that part them from
the instructions, for models that are too small for these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from laurel.core.config import build_config
from laurel.core.errors import UsageError, nearest
from laurel.core.files import read_yaml
from laurel.judge.template import fence_code, fenced, put, safe
from laurel.pipeline.plan import Section
from laurel.pipeline.store import digest_of

SHIPPED = Path(__file__).with_name("constitution.yaml")
HARM, HELPFULNESS = "harm", "helpfulness"
TEXTS = ("prompt", "response", "critique")
"""Places for what was written by others: fenced."""
PLACES = (*TEXTS, "question", "request")
PLACE = re.compile(r"\{(\w+)\}")


class Principle(Section):
    """One principle: what is asked of the critic, of the reviser and of the judge."""

    id: str = Field(min_length=1)
    critique: str = ""
    revise: str = ""
    prefer: str = Field(min_length=1)
    about: Literal["harm", "helpfulness"] = HARM


class Frame(Section):
    """The words around a question. Places: {prompt}, {response}, {question}, and to revise also
    {critique} and {request}.
    """

    system: str = ""
    user: str = Field(min_length=1)


class Constitution(Section):
    """The principles, and the frames."""

    name: str = Field(min_length=1)
    version: int = 1
    principles: list[Principle] = Field(min_length=1)
    critique_frame: Frame
    revise_frame: Frame
    fence: bool = True

    @property
    def title(self) -> str:
        """Such as `laurel 1 (3f9ac2)`: the digest tells a changed text of one version."""
        return f"{self.name} {self.version} ({digest_of(self.model_dump())[:6]})"

    def about(self, what: str) -> list[Principle]:
        """The principles about harm, or about helpfulness."""
        return [one for one in self.principles if one.about == what]

    def only(self, ids: list[str], where: str) -> Constitution:
        """The same with these principles alone. Errors: UsageError for an unknown id."""
        known = {one.id: one for one in self.principles}
        for name in ids:
            if name not in known:
                what = f"unknown principle `{name}`."
                raise UsageError(what, where=where, fix=nearest(name, known))
        return self.model_copy(update={"principles": [known[name] for name in ids]})


def load_constitution(path: str | Path | None, ids: list[str] | None = None) -> Constitution:
    """The constitution in a file (None: laurel's own), or some of its principles.

    Errors: UsageError naming the file, and the principle that lacks something.
    """
    shipped = read_yaml(SHIPPED)
    if path is not None and not Path(path).is_file():
        raise UsageError("there is no such file.", where=f"constitution {path}")
    values = shipped if path is None else read_yaml(path)
    where = f"constitution {path or SHIPPED.name}"
    if not values.get("principles"):
        fix = "Give a list `principles`, each with id, critique, revise and prefer."
        raise UsageError("it has no principles.", where=where, fix=fix)
    frames = {name: shipped[name] for name in ("critique_frame", "revise_frame")}
    found = build_config({**frames, **values}, Constitution, where=where)
    check_principles(found, where)
    return found if not ids else found.only(ids, "principles")


def check_principles(found: Constitution, where: str) -> None:
    """UsageError for an id twice, for a principle that lacks a text, for an unknown {place}."""
    seen: set[str] = set()
    for one in found.principles:
        place = f"{where}, principle {one.id}"
        if one.id in seen:
            raise UsageError(f"two principles are called `{one.id}`.", where=place)
        seen.add(one.id)
        if one.about == HARM and not (one.critique and one.revise):
            fix = "Or mark it `about: helpfulness`, which is only compared by."
            raise UsageError("it lacks critique or revise.", where=place, fix=fix)
    if not found.about(HARM):
        raise UsageError("no principle is about harm.", where=where, fix="Write one.")
    for name in ("critique_frame", "revise_frame"):
        frame: Frame = getattr(found, name)
        for place in PLACE.findall(frame.system + frame.user):
            if place not in PLACES:
                fix = f"Known: {', '.join(PLACES)}."
                what = f"unknown place {{{place}}}."
                raise UsageError(what, where=f"{where}, {name}", fix=fix)


def asked(frame: Frame, values: Mapping[str, str], fence: bool) -> list[dict[str, str]]:
    """The messages of one question: the frame with its places filled in one pass.

    What others wrote is data: it cannot fill a place, and stands between lines with a code that is
    not in it.
    """
    data = {name: safe(values.get(name, "")) for name in TEXTS}
    code = fence_code(list(data.values()))
    if fence:
        data = {name: fenced(text, name, code) for name, text in data.items()}
    every = {**values, **data}
    front = [{"role": "system", "content": put(frame.system, every).strip()}]
    return [*(front if frame.system else []), {"role": "user", "content": put(frame.user, every)}]


def critique_messages(
    law: Constitution, principle: Principle, prompt: str, response: str
) -> list[dict[str, str]]:
    """What the critic is asked about an answer."""
    values = {"prompt": prompt, "response": response, "question": principle.critique}
    return asked(law.critique_frame, values, law.fence)


def revise_messages(
    law: Constitution, principle: Principle, prompt: str, response: str, critique: str
) -> list[dict[str, str]]:
    """What the reviser is asked: the answer, what was found in it, and what to do."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "response": response,
        "question": principle.critique,
        "critique": critique,
        "request": principle.revise,
    }
    return asked(law.revise_frame, values, law.fence)
