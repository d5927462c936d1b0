"""Well-known public shapes of rows, mapped onto ours. Columns are added and renamed; what a row holds is not thrown away."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Columns = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "ipython"), "tool"),
}
_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")


def sharegpt(columns: Columns) -> Columns | None:
    """`conversations` or `conversation`: [{from, value}] (or role, content) -> `messages`. Unknown speakers stay, to be refused by name."""
    name = next((name for name in ("conversations", "conversation") if isinstance(columns.get(name), list)), None)
    if name is None or "messages" in columns:
        return None
    turns = [_message(turn) for turn in columns[name]]
    return {("messages" if key == name else key): (turns if key == name else value) for key, value in columns.items()}


def human_eval(columns: Columns) -> Columns | None:
    """HumanEval (arXiv:2107.03374): the canonical solution is the completion, and the task is `humaneval`."""
    if not {"prompt", "canonical_solution", "test", "entry_point"} <= columns.keys():
        return None
    return {"completion": columns["canonical_solution"], "task": "humaneval", **columns}


def ifeval(columns: Columns) -> Columns | None:
    """IFEval (arXiv:2311.07911): a prompt and the instructions to check; the task is `ifeval`."""
    if not {"prompt", "instruction_id_list", "kwargs"} <= columns.keys():
        return None
    return {"task": "ifeval", **columns}


def rated_steps(columns: Columns) -> Columns | None:
    """PRM800K, decoded (arXiv:2305.20050): `problem`, `steps` and `ratings` -> prompt, completions and labels; all three stay."""
    if not {"problem", "steps", "ratings"} <= columns.keys():
        return None
    return {"prompt": columns["problem"], "completions": columns["steps"], "labels": columns["ratings"], **columns}


def question_answer(columns: Columns) -> Columns | None:
    """`question` (and `answer`) -> prompt (and completion); both stay. Answers ending in "#### number" get the task `gsm8k`."""
    if "prompt" in columns or not isinstance(columns.get("question"), str) or columns.keys() & {"messages", "text", "chosen"}:
        return None
    answer = columns.get("answer")
    added: Columns = {"prompt": columns["question"]}
    if "completion" not in columns and isinstance(answer, str):
        added["completion"] = answer
        if re.search(r"\n#### *\S+\s*$", answer):
            added["task"] = "gsm8k"
    return {**added, **columns}


def alpaca(columns: Columns) -> Columns | None:
    """`instruction`, `output` and an `input` that may be empty -> prompt and completion; all three stay."""
    if columns.keys() & {"prompt", "completion", "messages"} or not {"instruction", "output"} <= columns.keys():
        return None
    instruction, extra = columns["instruction"], columns.get("input", "")
    prompt = f"{instruction}\n\n{extra}" if isinstance(extra, str) and isinstance(instruction, str) and extra.strip() else instruction
    return {"prompt": prompt, "completion": columns["output"], **columns}


def whole_dialogues(columns: Columns) -> Columns | None:
    """`chosen` and `rejected` that each hold the whole dialogue -> the `prompt` they share and the two ways on, as messages.

    Message lists, or HH-RLHF's text "\\n\\nHuman: ...\\n\\nAssistant: ..." (arXiv:2204.05862). The prompt is the longest common
    beginning that ends before a turn of the assistant; each of the two keeps at least its last turn.
    """
    if "prompt" in columns or not {"chosen", "rejected"} <= columns.keys():
        return None
    chosen, rejected = dialogue(columns["chosen"]), dialogue(columns["rejected"])
    if not chosen or not rejected:
        return None
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    while common and not all(side[common].get("role") == "assistant" for side in (chosen, rejected)):
        common -= 1
    if not common:
        return None
    return {"prompt": chosen[:common], **columns, "chosen": chosen[common:], "rejected": rejected[common:]}


def dialogue(value: Any) -> list[Columns] | None:
    """A dialogue as messages: a list of messages as it is, or text in turns of "Human:" and "Assistant:"; else None."""
    if isinstance(value, list):
        return value if all(isinstance(turn, dict) for turn in value) else None
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return None
    parts = _TURN.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def without_nulls(columns: Columns) -> Columns | None:
    """Messages whose empty extras (null, as Parquet fills them in) go; None if there are none."""
    names = [name for name in ("messages", "prompt", "completion", "chosen", "rejected") if _has_nulls(columns.get(name))]
    return {**columns, **{name: [_without_nulls(turn) for turn in columns[name]] for name in names}} if names else None


SHAPES: tuple[Callable[[Columns], Columns | None], ...] = (
    sharegpt,
    human_eval,
    rated_steps,
    ifeval,
    question_answer,
    alpaca,
    whole_dialogues,
    without_nulls,
)


def _message(turn: Any) -> Any:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        return turn
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = turn["from"]
    return {"role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, "content": turn["value"], **rest}


def _has_nulls(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and None in turn.values() for turn in value)


def _without_nulls(turn: Any) -> Any:
    return {key: value for key, value in turn.items() if value is not None or key == "content"} if isinstance(turn, dict) else turn
