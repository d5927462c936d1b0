"""Prompts of judges: versioned YAML files, filled in one pass, with what is judged fenced off.

A prompt has `system` and `user` with places such as {first}; `reference` and `principle`, which
stand in the user's text where there is one; `direct` and `reasoned`, how to answer; `labels`, what
each answer means, and `choices`, the labels in words.

What is judged is data. It is put in once, so that a {place} in it stays as it is; it stands between
two lines that begin with <<< and hold a code that is not in it; and marks by which chat templates
part turns are broken up in it, so that no server reads one as the end of the question.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.judge.reading import without_halves
from laurel.judge.verdict import TIE, A, B

SHIPPED = Path(__file__).parent / "prompts"
TEXTS = ("system", "user", "reference", "principle", "direct", "reasoned", "answer_prefix")
PLACE = re.compile(r"\{(\w+)\}")
FENCED = ("prompt", "first", "second", "response", "reference", "principle")
"""Places for data; the others are filled by laurel."""
PLACES = (*FENCED, "question", "choices", "low", "high")
ANGLED = (
    r"\||\uff5c|\w+\||/?(?:s|bos|eos|pad|unk|mask|sep|cls|[es]o[a-z])>|/?(?:start|end|begin)_of_\w+>"
    r"|\w*_(?:TOKEN|token)>|(?:unused|extra_id_|reserved_|SPECIAL_)\w*>|seed:\w+>"
)
SQUARE = (
    r"\||/?(?:INST|IMG|ARGS|CALLS?|TOOLS?|RESULTS?|CLS|SEP|[gs]?MASK|PAD|UNK|BOS|EOS|[A-Z]+_[A-Z_\d]+)\]"
    r"|e~\["
)
TURN_MARK = re.compile(rf"(<(?={ANGLED})|\[(?={SQUARE})|\](?=~))")
"""Where `<|im_end|>`, `</s>`, `[/INST]`, `<end_of_turn>` and their like are broken by a space."""


@dataclass(frozen=True)
class Prompt:
    """A prompt file, checked.

    labels: label -> a, b, tie; 1 to 4; or the score of a criterion, None for an abstention. fence:
    False leaves what is judged without its lines, for models that are too small for them.
    """

    name: str
    version: int
    system: str
    user: str
    reference: str = ""
    principle: str = ""
    direct: str = ""
    reasoned: str = ""
    answer_prefix: str = ""
    choices: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fence: bool = True
    digest: str = ""

    @property
    def title(self) -> str:
        """Such as `pair 1 (3f9ac2)`: the digest tells a changed text of one version."""
        return f"{self.name} {self.version} ({self.digest[:6]})"


def load_prompt(name: str) -> Prompt:
    """A prompt of laurel's by its name, or a YAML file. Errors: UsageError naming the field."""
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in SHIPPED.glob("*.yaml")))
        fix = f"Give a YAML file, or one of {known}."
        raise UsageError("there is no such prompt.", where=f"prompt {name}", fix=fix)
    values = read_yaml(path)
    where = f"prompt {name}"
    known = set(Prompt.__dataclass_fields__) - {"digest"}
    if strange := sorted(values.keys() - known):
        fix = f"Known: {', '.join(sorted(known))}."
        raise UsageError(f"unknown field `{strange[0]}`.", where=where, fix=fix)
    for field_ in ("name", "version", "user"):
        if not values.get(field_):
            raise UsageError(f"`{field_}` is missing.", where=where)
    check_places(values, where)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    fields: dict[str, Any] = {"system": "", **values, "digest": digest}
    return Prompt(**fields)


def check_places(values: Mapping[str, Any], where: str) -> None:
    """UsageError for a {place} that is none of ours, or a label that means nothing."""
    for field_ in TEXTS:
        for place in PLACE.findall(str(values.get(field_) or "")):
            if place not in PLACES:
                fix = f"Known: {', '.join(PLACES)}."
                raise UsageError(f"unknown place {{{place}}}.", where=f"{where}, {field_}", fix=fix)
    labels = cast("dict[Any, Any]", values.get("labels") or {})
    for label, meaning in labels.items():
        fine = meaning in (A, B, TIE, None) or isinstance(meaning, int | float)
        if not isinstance(label, str) or not label.strip() or not fine:
            fix = "A label is a text that means a, b, tie, a level from 1 to 4, a number or null."
            raise UsageError(f"label `{label}: {meaning}`.", where=f"{where}, labels", fix=fix)


def fill(prompt: Prompt, values: Mapping[str, str], *, reasoning: bool) -> list[dict[str, str]]:
    """The messages of one question.

    values: of each place; a place without one is left empty.
    """
    data = {name: safe(text) for name, text in values.items() if name in FENCED}
    code = fence_code(list(data.values()))
    shown = {
        name: fenced(text, name, code) if prompt.fence else text for name, text in data.items()
    }
    every = {**values, **shown}
    # a part that is not needed leaves nothing behind; the principle is the user's own words
    every["principle"] = put(prompt.principle, {**every, "principle": data.get("principle", "")})
    every["reference"] = put(prompt.reference, every)
    for name in ("principle", "reference"):
        if not data.get(name):
            every[name] = ""
    how = prompt.reasoned if reasoning else prompt.direct
    user = put(prompt.user, every).rstrip()
    last = put(how, every).strip()
    system = put(prompt.system, every).strip()
    front = [{"role": "system", "content": system}] if system else []
    return [*front, {"role": "user", "content": f"{user}\n{last}" if last else user}]


def put(text: str, values: Mapping[str, str]) -> str:
    """The text with its places filled, in one pass: what is put in is not looked at again."""
    return PLACE.sub(lambda found: values.get(found[1], ""), text)


def fence_code(texts: Sequence[str]) -> str:
    """A code that is in none of the texts, and the same for the same texts."""
    joined = "\0".join(texts)
    turn = 0
    while True:
        code = hashlib.sha256(f"{turn}\0{joined}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
        if code not in joined:
            return code
        turn += 1


def fenced(text: str, name: str, code: str) -> str:
    """The text between its two lines."""
    return f"<<< {name} {code}\n{text}\n<<< end of {name} {code}"


def safe(text: str) -> str:
    """The text with the marks of chat templates broken up by a space, otherwise as it is.

    What no server reads, NUL and half a surrogate pair, is replaced.
    """
    return TURN_MARK.sub(r"\1 ", without_halves(text)).replace("\0", " ")


def as_text(messages: Sequence[Mapping[str, str]], prefix: str) -> str:
    """The messages as one text, for a model without a chat template."""
    body = "\n\n".join(message["content"] for message in messages)
    return f"{body}\n{prefix}" if prefix else body
