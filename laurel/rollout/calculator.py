"""A worked example of an environment: a calculator that the policy may ask, in square brackets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from laurel.core.sample import Message
from laurel.data.arithmetic import NotArithmetic, evaluate

CALL = re.compile(r"\[([^\[\]]{1,64})\]\s*$")


class Calculator:
    """The policy ends a turn with `[12*34]`; the world answers `408`.

    A turn without a call at its end is the final answer.
    """

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Nothing is added to the prompt."""
        return []

    def step(self, text: str) -> list[Message] | None:
        """The value of the expression, a fraction if it is not whole; `error` if it has none.

        None where nothing was asked.
        """
        call = CALL.search(text)
        if call is None:
            return None
        try:
            return [Message(role="tool", content=f"{evaluate(call[1])}\n")]
        except NotArithmetic:
            return [Message(role="tool", content="error\n")]
