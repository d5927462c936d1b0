"""Every built-in verifier by name: `(answer, row) -> Score | Abstain | Failed`."""

from __future__ import annotations

from laurel.core.protocols import Verifier
from laurel.data.tasks import TASKS
from laurel.reward.code import code, humaneval
from laurel.reward.instructions import ifeval
from laurel.reward.math import math
from laurel.reward.patterns import Format, regex
from laurel.reward.text import choice, exact, numeric

VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "numeric": numeric,
    "math": math,
    "choice": choice,
    "regex": regex,
    "format": Format(),
    "ifeval": ifeval,
    "humaneval": humaneval,
    "code": code,
    **{name: task.verify for name, task in TASKS.items()},
}

# Columns without which a verifier can judge nothing: one of each group must be in every row.
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "exact": (("answer", "completion"),),
    "numeric": (("answer", "completion"),),
    "math": (("answer", "completion"),),
    "choice": (("answer", "completion"),),
    "regex": (("pattern",),),
    "ifeval": (("instruction_id_list",), ("kwargs",)),
    "humaneval": (("prompt",), ("entry_point",), ("test",)),
    "code": (("tests", "test_list", "test"),),
    "gsm8k": (("answer",),),
}
