"""A trained process reward model as a reward: `prm:FOLDER`, `prm:FOLDER:min`, `:product`, `:mean`,
`:last`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError, nearest
from laurel.core.protocols import RewardFunction

if TYPE_CHECKING:
    from torch import Tensor

    from laurel.model.scorer import Scorer

PREFIX = "prm:"


def product(sound_S: Tensor) -> Tensor:
    """The chance that no step is wrong, each given those before it: [S] -> []. (.9, .5, .8): .36.

    Every step costs, so long answers score less. Lightman et al. 2023, arXiv:2305.20050.
    """
    return sound_S.prod()


def worst(sound_S: Tensor) -> Tensor:
    """The weakest step: [S] -> [].

    (.9, .5, .8): .5. Steps that are better than the weakest change nothing.
    """
    return sound_S.amin()


def mean(sound_S: Tensor) -> Tensor:
    """The average step: [S] -> [].

    (.9, .5, .8): .7333333. Idle right steps raise it: a policy will find that out.
    """
    return sound_S.mean()


def last(sound_S: Tensor) -> Tensor:
    """The last step alone: [S] -> []. (.9, .5, .8): .8. What is left of an outcome model."""
    return sound_S[-1]


COMBINE: dict[str, Callable[[Tensor], Tensor]] = {
    "product": product,
    "min": worst,
    "mean": mean,
    "last": last,
}


def step_soundness(score_SC: Tensor) -> Tensor:
    """1 - P(wrong) of each step, P(neutral) + P(right), by its three logits: [S, 3] -> [S].

    (0, 0, 0): 2/3; (ln 2, 0, 0): 1/2.

    A neutral step is no error, and rows of steps are labelled up to the first *wrong* one; so this,
    not P(right), is the chance that reading may go on, and its product the chance that it never has
    to stop.
    """
    assert score_SC.ndim == 2 and score_SC.shape[1] == 3, score_SC.shape
    return 1 - score_SC.softmax(1)[:, 0]


def steps_of(completion: Any) -> list[str]:
    """The steps of an answer (text, or messages: their contents), a line each as in training.

    Blank lines are none.
    """
    text = (
        completion
        if isinstance(completion, str)
        else "\n".join(turn["content"] for turn in completion if turn["role"] == "assistant")
    )
    return [line for line in text.split("\n") if line.strip()]


def process_reward(
    folder: str, *, combine: str = "product", device: str = "auto", token_budget: int = 8192
) -> RewardFunction:
    """A reward function that reads an answer's steps with a trained process reward model.

    `step_soundness` at each step's end, combined.

    An answer without a step, or one of which the model's max_length leaves steps unread, is
    abstained on (None): nobody judged it. The folder is checked now and loaded at the first call.
    Errors: UsageError for a folder that `prm` training did not save.
    """
    from laurel.model.classifier import trained_labels

    if combine not in COMBINE:
        raise UsageError(
            f"unknown way to combine steps `{combine}`.",
            where="rewards",
            fix=nearest(combine, COMBINE),
        )
    if not folder:
        raise UsageError(
            "a folder is missing.", where="rewards", fix="Write prm:FOLDER or prm:FOLDER:min."
        )
    labels = trained_labels(folder)
    if labels != 3:
        what = (
            f"a scorer of {labels} output{'s' * (labels > 1)} judges no steps."
            if labels
            else "a language model, not a trained scorer."
        )
        raise UsageError(
            what, where=f"{PREFIX}{folder}", fix="Give a folder that prm training saved."
        )
    return _Process(folder, combine, device, token_budget)


def parse(name: str) -> RewardFunction:
    """`prm:FOLDER` (the product), or `prm:FOLDER:` and one of COMBINE.

    What follows the last colon is a way if no folder is named so.
    """
    from pathlib import Path

    whole = name.removeprefix(PREFIX)
    folder, separator, how = whole.rpartition(":")
    if not separator or "/" in how or Path(whole).is_dir():
        return process_reward(whole)
    return process_reward(folder, combine=how)


class _Process:
    """The reward function of `process_reward`: callable, named, loaded once."""

    def __init__(self, folder: str, combine: str, device: str, token_budget: int) -> None:
        self.folder, self.combine, self.device, self.token_budget = (
            folder,
            combine,
            device,
            token_budget,
        )
        self.scorer: Scorer | None = None
        self.lock = threading.Lock()
        self.__name__ = f"prm_{combine}"

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: Any = None,
        **columns: list[Any],
    ) -> list[float | None]:
        """One number in [0, 1] per completion, or None."""
        with self.lock:
            return self._judge(
                [(p, steps_of(text)) for p, text in zip(prompts, completions, strict=True)]
            )

    def _judge(self, rows: Sequence[tuple[Any, list[str]]]) -> list[float | None]:
        from laurel.model.rows import encode_steps
        from laurel.model.scorer import load_scorer

        self.scorer = self.scorer or load_scorer(self.folder, num_labels=3, device=self.device)
        tokenizer, limit = self.scorer.tokenizer, self.scorer.card.max_length
        every = [
            encode_steps(tokenizer, {"prompt": p, "completions": steps}, max_length=limit)
            for p, steps in rows
        ]
        whole = [
            i for i, (_, steps) in enumerate(rows) if steps and every[i].supervised == len(steps)
        ]
        asked = [(every[i].ids, [at for at, on in enumerate(every[i].mask) if on]) for i in whole]
        found = self.scorer.score_at(asked, token_budget=self.token_budget)
        scores = {
            i: float(COMBINE[self.combine](step_soundness(score.double())))
            for i, score in zip(whole, found, strict=True)
        }
        return [scores.get(i) for i in range(len(rows))]
