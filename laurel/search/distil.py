"""Choices as data: the chosen answers to learn from, or the chosen against what was not.

RAFT by hand: draw, choose, train on the choices. Dong et al. 2023, arXiv:2304.06767. Where votes
chose, this is self-consistency as a teacher: Huang et al. 2022, arXiv:2210.11610.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from laurel.core.sample import sample_seed
from laurel.search.answers import Kind, votes_of
from laurel.search.choices import Choice
from laurel.search.pool import Question


def sft_rows(
    questions: Sequence[Question], choices: Sequence[Choice], *, least_share: float = 0.0
) -> list[dict[str, Any]]:
    """prompt and completion of every choice, with where it came from.

    least_share: of the votes that the chosen answer must have.
    """
    found = list[dict[str, Any]]()
    for question, choice in zip(questions, choices, strict=True):
        if choice.place is None or share_of(choice) < least_share:
            continue
        text = question.answers[choice.place].text
        found.append({**said(question, completion=text), "choice": provenance(choice)})
    return found


def preference_rows(
    questions: Sequence[Question],
    choices: Sequence[Choice],
    *,
    scorer: str = "",
    kind: Kind = "auto",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """prompt, chosen and rejected: the choice against the worst by the scorer, or against an answer
    with another vote, drawn by the seed. Questions without either make no row.
    """
    found = list[dict[str, Any]]()
    for question, choice in zip(questions, choices, strict=True):
        if choice.place is None:
            continue
        other = worst(question, scorer) if scorer else other_vote(question, choice, kind, seed)
        texts = [one.text for one in question.answers]
        if other is None or texts[other] == texts[choice.place]:
            continue
        pair = said(question, chosen=texts[choice.place], rejected=texts[other])
        found.append({**pair, "choice": {**provenance(choice), "rejected_place": other}})
    return found


def share_of(choice: Choice) -> float:
    """The share of the votes that the chosen answer has; 1 where nothing was voted on."""
    return choice.shares.get(choice.vote, 0.0) if choice.vote is not None else 1.0


def provenance(choice: Choice) -> dict[str, Any]:
    """What a row says of its choice."""
    return {
        "question": choice.question,
        "place": choice.place,
        "value": choice.value,
        "vote": choice.vote,
        "share": share_of(choice),
        "drawn": choice.drawn,
    }


def said(question: Question, **texts: str) -> dict[str, Any]:
    """The prompt with answers to it: texts to a text, turns to a conversation."""
    prompt = question.prompt
    if isinstance(prompt, str):
        return {"prompt": prompt, **texts}
    turns = {name: [{"role": "assistant", "content": text}] for name, text in texts.items()}
    return {"prompt": prompt, **turns}


def worst(question: Question, scorer: str) -> int | None:
    """The place of the lowest score, of several the last."""
    scores = [answer.score(scorer) for answer in question.answers]
    there = [place for place, score in enumerate(scores) if score is not None]
    if len(there) < 2:
        return None
    return min(reversed(there), key=lambda place: scores[place] or 0.0)


def other_vote(question: Question, choice: Choice, kind: Kind, seed: int) -> int | None:
    """The place of an answer with another vote."""
    votes = votes_of([one.text for one in question.answers], question.row, kind)
    others = [place for place, vote in enumerate(votes) if vote is not None and vote != choice.vote]
    dice = Random(sample_seed(seed, question.id, 0, 0))
    return dice.choice(others) if others else None
