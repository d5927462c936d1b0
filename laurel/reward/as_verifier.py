"""Any reward as a verifier of one answer: what `laurel data check --verifier` asks of a row's own
gold answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.protocols import Verifier
from laurel.core.result import Result
from laurel.core.sample import Group, Key, Message, Sample
from laurel.reward.load import Reward, is_verifier, load_reward
from laurel.reward.mixture import RewardCall, run_all

SECONDS = 60.0


def as_verifier(name: str, columns: Collection[str]) -> Verifier:
    """What `--rewards` takes, as (answer, row) -> result.

    A function is called with this one answer.

    Errors: those of `load_reward`, and a function that asks for the ids of tokens, which an answer
    of a file has not.
    """
    reward = load_reward(name, set(columns) - {"prompt"})
    if is_verifier(name) or name.startswith("format:"):
        return reward.function
    if reward.accepts is not None and "completion_ids" in reward.accepts:
        what = "it asks for `completion_ids`, and answers in a file have none."
        raise UsageError(
            what,
            where=f"reward `{reward.name}`",
            fix="Check it in training, or with another reward.",
        )

    def verify(answer: str, row: Mapping[str, Any]) -> Result:
        return judge_one(reward, answer, row)

    return verify


def judge_one(reward: Reward, answer: str, row: Mapping[str, Any]) -> Result:
    """One answer to one row, judged as training would: alone in its step."""
    sample = Sample(
        key=Key("check", "", "0", 0, 0),
        prompt_ids=(),
        completion_ids=(),
        logps=(),
        loss_mask=(),
        temperature=1.0,
        finish="eos",
        text=answer,
        turns=(Message(role="assistant", content=answer),),
    )
    ((result,),) = run_all([reward], RewardCall.of([Group("0", row, (sample,))]), SECONDS)
    return result
