"""Trained scorers as a reward: `model:FOLDER`, or several folders at once, combined so that no
single one is trusted blindly.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError, nearest
from laurel.core.protocols import RewardFunction

if TYPE_CHECKING:
    from torch import Tensor

    from laurel.model.scorer import Scorer
    from laurel.reward.remote import RemoteScorer

PREFIX = "model:"
PENALTY = 0.5


def mean(score_KN: Tensor, penalty: float = PENALTY) -> Tensor:
    """The average of K scorers: [K, N] -> [N]. (1, 3): 2."""
    return score_KN.mean(0)


def worst(score_KN: Tensor, penalty: float = PENALTY) -> Tensor:
    """The lowest of K scorers, worst-case optimisation: [K, N] -> [N]. (1, 3): 1. Coste et al.
    2023, arXiv:2310.02743.
    """
    return score_KN.amin(0)


def penalised(score_KN: Tensor, penalty: float = PENALTY) -> Tensor:
    """Less where the scorers disagree, uncertainty-weighted optimisation: [K, N] -> [N].

        mean_k r_k - penalty * var_k r_k        (variance over the K, ddof 0)

    (1, 3), penalty .5: 2 - .5 * 1 = 1.5. penalty 0 is `mean`. Coste et al. 2023, arXiv:2310.02743.
    """
    return score_KN.mean(0) - penalty * score_KN.var(0, correction=0)


COMBINE: dict[str, Callable[..., Tensor]] = {"mean": mean, "min": worst, "penalised": penalised}


def learned(
    *folders: str,
    combine: str = "mean",
    penalty: float = PENALTY,
    standardise: bool = False,
    device: str = "auto",
    token_budget: int = 8192,
) -> RewardFunction:
    """A reward function that asks trained scorers: prompt + completion as in training, the score at
    the last token, centred. A folder may be the address of a server (`laurel serve`) instead.

    Each scorer's scores lose the mean that its folder keeps (0 if it keeps none); standardise: they
    are divided by its deviation too, for members whose scales differ. combine: see COMBINE. Folders
    are checked now and loaded at the first call; calls from several threads take turns. Errors:
    UsageError for a folder without a scorer, or with one of several classes.
    """
    from laurel.model.classifier import trained_labels
    from laurel.reward.remote import is_address

    if not folders:
        raise UsageError("no scorer is named.", where="rewards", fix="Write model:FOLDER.")
    if combine not in COMBINE:
        raise UsageError(
            f"unknown way to combine scorers `{combine}`.",
            where="rewards",
            fix=nearest(combine, COMBINE),
        )
    if not (math.isfinite(penalty) and penalty >= 0):
        raise UsageError(
            f"the penalty on disagreement is {penalty}.", where="rewards", fix="Give 0 or more."
        )
    for folder in folders:
        labels = 1 if is_address(folder) else trained_labels(folder)
        if labels != 1:
            what = (
                f"a scorer of {labels} classes gives no single number."
                if labels
                else "a language model, not a trained scorer."
            )
            raise UsageError(
                what,
                where=f"{PREFIX}{folder}",
                fix="Give a folder that reward or outcome training saved.",
            )
    return _Learned(folders, combine, penalty, standardise, device, token_budget)


def parse(name: str) -> RewardFunction:
    """`model:A`, `model:A+B+C` (their mean), `model:A+B:min`, `model:A+B:penalised`,
    `model:A+B:penalised=0.2`.

    What follows the last colon is a way to combine only if it is spelt like one; folders may hold
    colons, but no plus.
    """
    folders, separator, how = name.removeprefix(PREFIX).rpartition(":")
    kind, equals, number = how.partition("=")
    if not separator or kind not in COMBINE:
        if separator and "/" not in how and (equals or "+" in folders):
            raise UsageError(
                f"unknown way to combine scorers `{kind}`.",
                where=f"reward `{name}`",
                fix=nearest(kind, COMBINE),
            )
        return learned(*_split(name.removeprefix(PREFIX), name))
    if equals and kind != "penalised":
        raise UsageError(
            f"`{kind}` takes no number.",
            where=f"reward `{name}`",
            fix="Only penalised does: penalised=0.5.",
        )
    try:
        penalty = float(number) if equals else PENALTY
    except ValueError:
        raise UsageError(
            f"`{number}` is not a number.", where=f"reward `{name}`", fix="Write penalised=0.5."
        ) from None
    return learned(*_split(folders, name), combine=kind, penalty=penalty)


def _split(folders: str, name: str) -> list[str]:
    found = folders.split("+")
    if not all(found):
        raise UsageError(
            "a folder is missing.",
            where=f"reward `{name}`",
            fix="Write model:FOLDER or model:FOLDER1+FOLDER2:min.",
        )
    return found


class _Learned:
    """The reward function of `learned`: callable, named, loaded once."""

    def __init__(
        self,
        folders: Sequence[str],
        combine: str,
        penalty: float,
        standardise: bool,
        device: str,
        token_budget: int,
    ) -> None:
        from laurel.reward.remote import RemoteScorer, is_address

        self.folders, self.combine, self.penalty = tuple(folders), combine, penalty
        self.standardise, self.device, self.token_budget = standardise, device, token_budget
        self.scorers: list[Scorer | RemoteScorer] = []
        # a server is asked now whether it has a scorer, a folder was looked at by its files
        self.remote = {name: RemoteScorer(name) for name in self.folders if is_address(name)}
        self.lock = threading.Lock()
        self.__name__ = "model" if len(folders) == 1 else f"model_{combine}"

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: Any = None,
        **columns: list[Any],
    ) -> list[float | None]:
        """One score per completion.

        Text and messages are encoded by the scorer's own tokenizer and template.
        """
        import torch

        rows = [
            {"prompt": prompt, "completion": text}
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        if not rows:
            return []
        with self.lock:
            members = [self._centred(scorer, rows) for scorer in self._load()]
        return COMBINE[self.combine](torch.stack(members), self.penalty).tolist()

    def _load(self) -> list[Scorer | RemoteScorer]:
        from laurel.model.scorer import load_scorer

        if not self.scorers:
            self.scorers = [
                self.remote.get(name) or load_scorer(name, num_labels=1, device=self.device)
                for name in self.folders
            ]
        return self.scorers

    def _centred(self, scorer: Scorer | RemoteScorer, rows: list[dict[str, Any]]) -> Tensor:
        score_N = scorer.score(rows, token_budget=self.token_budget).double() - scorer.card.mean
        return score_N / scorer.card.std if self.standardise else score_N
