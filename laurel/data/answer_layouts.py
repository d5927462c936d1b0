"""Well-known public shapes of rows with one answer, or with steps.

What a shape reads is named; nothing of a row is thrown away.

A shape takes a row's columns and gives (ours, the names of those it read), or None where the row is
of another shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from laurel.data.conversations import Columns

Found = tuple[Columns, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """A shape by name, and how its rows become ours.

    It is known by columns that must be there and columns that must not.
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[Columns], Found | None]
    without: tuple[str, ...] = ()

    def fits(self, names: frozenset[str]) -> bool:
        """May a row with these columns be of this shape?"""
        return names.issuperset(self.needs) and names.isdisjoint(self.without)

    def read(self, columns: Columns) -> Found | None:
        """(our columns, the names of those read) of a row of this shape, else None."""
        return self.make(columns) if self.fits(frozenset(columns)) else None


def request(columns: Columns) -> Found | None:
    """What a row asks: its `instruction` or its `question`.

    `input` and `context` stand behind an instruction, a `context` before a question.
    """
    name = next(
        (name for name in ("instruction", "question", "input") if _text(columns, name)), None
    )
    if name is None:
        return None
    extras = [extra for extra in ("input", "context") if extra != name and _text(columns, extra)]
    parts = (
        [*(extra for extra in extras if extra == "context"), name]
        if name == "question"
        else [name, *extras]
    )
    text = "\n\n".join(columns[part] for part in parts if columns[part].strip()) or columns[name]
    empty = [extra for extra in ("input", "context") if columns.get(extra) == ""]
    return {"prompt": text}, (*parts, *empty)


def instruction_answer(columns: Columns) -> Found | None:
    """`instruction` or `question`, and the answer to it if there is one as text.

    "#### 18" at its end is GSM8K's mark.
    """
    found = request(columns)
    if found is None:
        return None
    ours, names = found
    order = (
        ("answer", "response", "output")
        if "question" in names
        else ("output", "response", "answer")
    )
    reply = next((name for name in order if isinstance(columns.get(name), str)), None)
    if reply is None and isinstance(
        columns.get("answers"), dict
    ):  # SQuAD: {"text": [...], "answer_start": [...]}
        return squad(ours, names, columns["answers"])
    if reply is None or "completion" in columns:
        return ours, names
    more = _unless(columns, task="gsm8k") if re.search(r"\n#### *\S+\s*$", columns[reply]) else {}
    return {**ours, "completion": columns[reply], **more}, (*names, reply)


def squad(ours: Columns, names: tuple[str, ...], answers: Columns) -> Found:
    """SQuAD (arXiv:1606.05250): the first of the answers that it accepts is the completion."""
    texts = answers.get("text")
    first = texts[:1] if isinstance(texts, list) else []
    return {**ours, **({"completion": first[0]} if first else {})}, (*names, "answers")


def self_instruct(columns: Columns) -> Found | None:
    """Self-Instruct's seed tasks (arXiv:2212.10560).

    `instances` holds the one input and output of the instruction.
    """
    examples = columns["instances"]
    if not isinstance(examples, list) or len(examples) != 1 or not isinstance(examples[0], dict):
        return None
    found = instruction_answer({"instruction": columns["instruction"], **examples[0]})
    return found and (found[0], ("instruction", "instances"))


def single_response(columns: Columns) -> Found:
    """HelpSteer (arXiv:2311.09528): `response` is the completion.

    The five scores stay for whoever asks for them.
    """
    return {"completion": columns["response"]}, ("prompt", "response")


def human_eval(columns: Columns) -> Found:
    """HumanEval (arXiv:2107.03374): the canonical solution is the completion.

    The task is `humaneval`.
    """
    ours = _unless(columns, completion=columns["canonical_solution"], task="humaneval")
    return ours, ("canonical_solution",)


def mbpp(columns: Columns) -> Found | None:
    """MBPP (arXiv:2108.07732): the text, with the tests that name the function, is the prompt.

    The code is the completion.
    """
    name, tests = "text" if "text" in columns else "prompt", columns["test_list"]
    asked = columns[name]
    if (
        not isinstance(asked, str)
        or not isinstance(tests, list)
        or not all(isinstance(test, str) for test in tests)
    ):
        return None
    if not any(test in asked for test in tests):
        asked = f"{asked}\n\nYour code should pass these tests:\n\n" + "\n".join(tests)
    ours = {"prompt": asked, "completion": columns["code"], **_unless(columns, task="code")}
    return ours, (name, "code", "test_list")


def mathematics(columns: Columns) -> Found | None:
    r"""MATH (arXiv:2103.03874): `problem` and `solution`.

    The gold `answer` is what the solution's last \boxed{} holds.
    """
    boxed = last_boxed(columns["solution"])
    more = _unless(columns, task="math", **({} if boxed is None else {"answer": boxed}))
    if "answer" not in columns and boxed is None:
        more.pop("task", None)  # nothing that a verifier could compare
    return {"prompt": columns["problem"], "completion": columns["solution"], **more}, (
        "problem",
        "solution",
    )


def ifeval(columns: Columns) -> Found:
    """IFEval (arXiv:2311.07911): a prompt and the instructions to check; the task is `ifeval`."""
    return _unless(columns, task="ifeval"), ()


def rated_steps(columns: Columns) -> Found:
    """PRM800K, decoded (arXiv:2305.20050): `problem`, `steps` and `ratings`."""
    ours = {
        "prompt": columns["problem"],
        "completions": columns["steps"],
        "labels": columns["ratings"],
    }
    return _unless(columns, **ours), ("problem", "steps", "ratings")


def first_mistake(asked: str, where: str) -> Callable[[Columns], Found | None]:
    """Steps and the place of the first wrong one, from 0; none, or -1: all are right.

    What follows a mistake is not labelled.
    """

    def make(columns: Columns) -> Found | None:
        steps, place = columns["steps"], columns.get(where, -1)
        if (
            not isinstance(steps, list)
            or not isinstance(place, int)
            or not -1 <= place < len(steps)
        ):
            return None
        kept = steps if place < 0 else steps[: place + 1]
        labels = [1] * len(kept) if place < 0 else [1] * place + [-1]
        return {"prompt": columns[asked], "completions": kept, "labels": labels}, (
            asked,
            "steps",
            where,
        )

    return make


def prm_bench(columns: Columns) -> Found | None:
    """PRMBench (arXiv:2501.03124): the modified process.

    `error_steps` numbers its wrong steps from 1.
    """
    steps, wrong = columns["modified_process"], columns["error_steps"]
    if not isinstance(steps, list) or not isinstance(wrong, list):
        return None
    labels = [-1 if number in wrong else 1 for number in range(1, len(steps) + 1)]
    asked = next(
        name for name in ("modified_question", "question", "original_question") if name in columns
    )
    return {"prompt": columns[asked], "completions": steps, "labels": labels}, (
        asked,
        "modified_process",
        "error_steps",
    )


def kto_tagged(columns: Columns) -> Found | None:
    """LLaMA-Factory's `kto_tag`: is the answer, or the conversation's last turn, a good one?"""
    ours: Columns = {"label": columns["kto_tag"]}
    turns = columns.get("messages")
    if isinstance(turns, list) and len(turns) > 1:
        return {**ours, "prompt": turns[:-1], "completion": turns[-1:]}, ("messages", "kto_tag")
    found = instruction_answer(columns)
    return found and ({**found[0], **ours}, (*found[1], "kto_tag"))


def last_boxed(text: Any) -> str | None:
    r"""What the last \boxed{...} (or \fbox{...}) of a text holds, braces matched; None
    without one.
    """
    if not isinstance(text, str):
        return None
    marks = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))
    if not marks:
        short = re.findall(r"\\boxed\s+([^\s$.]+)", text)  # MATH has a few "\boxed 5"
        return short[-1] if short else None
    depth, start = 1, marks[-1].end()
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place].strip()
    return None


SINGLE: Sequence[Layout] = (
    Layout("HumanEval", ("prompt", "canonical_solution", "test", "entry_point"), human_eval),
    Layout("MBPP", ("text", "code", "test_list"), mbpp, ("completion",)),
    Layout("MBPP, sanitised", ("prompt", "code", "test_list"), mbpp, ("completion",)),
    Layout("IFEval", ("prompt", "instruction_id_list", "kwargs"), ifeval),
    Layout("PRM800K", ("problem", "steps", "ratings"), rated_steps),
    Layout(
        "ProcessBench",
        ("problem", "steps", "label", "final_answer_correct"),
        first_mistake("problem", "label"),
        ("prompt",),
    ),
    Layout(
        "BIG-Bench Mistake",
        ("input", "steps", "answer", "target"),
        first_mistake("input", "mistake_index"),
        ("prompt",),
    ),
    Layout(
        "PRMBench", ("original_question", "modified_process", "error_steps"), prm_bench, ("prompt",)
    ),
    Layout("MATH", ("problem", "solution"), mathematics, ("prompt", "messages")),
    Layout("HelpSteer", ("prompt", "response", "helpfulness"), single_response, ("completion",)),
    Layout("LLaMA-Factory KTO", ("kto_tag",), kto_tagged, ("prompt", "label")),
    Layout(
        "Self-Instruct",
        ("instruction", "instances"),
        self_instruct,
        ("prompt", "messages", "output"),
    ),
)
ANSWERED: Sequence[Layout] = tuple(
    Layout(name, needs, instruction_answer, ("prompt", "messages", "text", "chosen"))
    for name, needs in (
        ("Alpaca, Dolly", ("instruction",)),
        ("GSM8K, OpenOrca, SQuAD", ("question",)),
    )
)


def _text(columns: Columns, name: str) -> bool:
    return isinstance(columns.get(name), str) and bool(columns[name].strip())


def _unless(columns: Columns, **ours: Any) -> Columns:
    """Those of our columns that the row does not have already."""
    return {name: value for name, value in ours.items() if name not in columns}
