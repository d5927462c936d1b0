"""Choosing from beginning to end: questions, answers, scores, choices, and how good they are.

A question stops wanting answers, where `adaptive` is asked for, once

    votes      the leader is announced at `alpha`, or cannot lose within the answers that are left
    best of n  one more answer is expected to raise the best score by less than `worth`, or the bar
               is reached

and with a bar alone at the first answer that reaches it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.files import atomic_file, write_atomic
from laurel.measure.best_of_n import value_of_one_more
from laurel.measure.intervals import Interval, bootstrap_mean, wilson
from laurel.measure.stopping import LeaderTest
from laurel.reward.mixture import Mixture, load_rewards
from laurel.search.answers import votes_of
from laurel.search.choices import Choice, accept, best, vote
from laurel.search.curves import Judged
from laurel.search.options import ChooseConfig
from laurel.search.pool import Question, scored

CHOICES, SUMMARY = "choices.jsonl", "summary.json"
Watch = Callable[[int], None]


@dataclass(frozen=True)
class Chosen:
    """The choices of a run. right: of each question, None where nothing says what is right."""

    verb: str
    questions: Sequence[Question]
    choices: Sequence[Choice]
    right: Sequence[float | None]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def accuracy(self) -> Interval | None:
        """The share of questions whose choice is right; without a choice they are not."""
        known = [value for value in self.right if value is not None]
        return wilson(sum(known), len(known)) if known else None


def check_config(config: ChooseConfig, verb: str) -> None:
    """UsageError for options that do not go together."""
    needs = verb == "best" or config.weigh == "score" or config.bar is not None
    if needs and not config.scorers:
        fix = "Such as --scorers '[model:FOLDER]', prm:FOLDER, judge:FILE.yaml, or a verifier."
        raise UsageError("nothing says how good an answer is.", where="scorers", fix=fix)
    if len(config.scorers) > 1:
        fix = "Name one; curves compare several."
        raise UsageError("one scorer chooses.", where="scorers", fix=fix)
    if verb == "vote" and config.bar is not None:
        raise UsageError("a bar is for `best`.", where="bar", fix="Leave it out.")
    if verb == "best" and config.weigh != "none":
        raise UsageError("votes are weighed, not the best.", where="weigh", fix="Take `vote`.")
    if config.pool is not None and config.url is not None:
        raise UsageError("answers are there, or are drawn.", where="pool", fix="Leave url out.")
    if verb == "vote" and config.adaptive and config.weigh != "none":
        what = "the rule that may be looked at after each answer is for votes that count 1."
        raise UsageError(what, where="adaptive", fix="Take weigh: none.")


def load_scorers(config: ChooseConfig, rows: Sequence[Any]) -> Mixture | None:
    """The scorers of a run, each by its name; None without any."""
    if not config.scorers:
        return None
    how: dict[str, Any] = {"timeout": config.reward_timeout, "max_failed_fraction": 1.0}
    return load_rewards(config.scorers, None, rows, **how)


def check_scorers(config: ChooseConfig, scorers: Mixture | None) -> None:
    """UsageError for a judge of pairs where answers are scored one by one."""
    one_by_one = config.adaptive or config.bar is not None
    if scorers is not None and one_by_one and scorers.win_chances:
        what = "a judge of pairs compares answers; it scores none by itself."
        fix = "Take a judge of form: score, or leave adaptive and bar out."
        raise UsageError(what, where="scorers", fix=fix)


def load_grader(config: ChooseConfig, rows: Sequence[Any]) -> Mixture | None:
    """What says which answer is right: `rewards`, else the rows' own verifier, if all have one."""
    how: dict[str, Any] = {"timeout": config.reward_timeout, "max_failed_fraction": 1.0}
    if config.rewards is not None:
        return load_rewards(config.rewards, None, rows, **how)
    columns = [getattr(row, "columns", row) for row in rows]
    if not all(isinstance(one.get("task"), str) for one in columns):
        return None
    return load_rewards(None, None, rows, **how)


def choose(question: Question, config: ChooseConfig, verb: str) -> Choice:
    """The choice of one question, whose answers are scored."""
    if verb == "best":
        name = scorer_name(config, question)
        if config.bar is not None:
            return accept(question, name, config.bar, config.num_generations)
        return best(question, name)
    name = scorer_name(config, question) if config.weigh == "score" else ""
    return vote(question, config.kind, config.weigh, name)


def scorer_name(config: ChooseConfig, question: Question) -> str:
    """The name of the first scorer's results."""
    names = [name for answer in question.answers[:1] for name in answer.scores]
    return names[0] if names else config.scorers[0]


class AdaptiveRule:
    """Which questions want another answer. Scores of answers are kept: none is asked for twice."""

    def __init__(self, config: ChooseConfig, verb: str, scorers: Mixture | None) -> None:
        self.config, self.verb, self.scorers = config, verb, scorers
        self.known: dict[str, Question] = {}

    def __call__(self, questions: Sequence[Question]) -> list[bool]:
        """Of each question, whose answers are those so far."""
        if self.verb == "vote":
            return [self.by_votes(one) for one in questions]
        self.score(questions)
        return [self.by_scores(self.known[one.id]) for one in questions]

    def by_votes(self, question: Question) -> bool:
        """Is the leader neither announced nor safe?"""
        config = self.config
        test = LeaderTest(config.alpha)
        # from the first answer on: an equivalent one may have taken another's name
        for one in votes_of([one.text for one in question.answers], question.row, config.kind):
            test.add(one)
        left = config.num_generations - test.drawn
        hopeless = config.give_up and test.hopeless(left)
        return not (test.decided or test.settled(left) or hopeless)

    def by_scores(self, question: Question) -> bool:
        """Is one more answer worth it, or the bar not reached?"""
        config = self.config
        name = scorer_name(config, question)
        scores = [answer.score(name) for answer in question.answers]
        there = [score for score in scores if score is not None]
        if config.bar is not None:
            return not any(score >= config.bar for score in there)
        return value_of_one_more(there) >= config.worth

    def score(self, questions: Sequence[Question]) -> None:
        """Score what is new."""
        assert self.scorers is not None
        for one in scored([newest(one, self.known) for one in questions], self.scorers):
            before = self.known.get(one.id)
            answers = (*(before.answers if before else ()), *one.answers)
            self.known[one.id] = Question(one.id, one.row, answers)


def newest(question: Question, known: dict[str, Question]) -> Question:
    """A question with the answers alone that were not scored before."""
    there = len(known[question.id].answers) if question.id in known else 0
    return Question(question.id, question.row, question.answers[there:])


def graded(
    questions: Sequence[Question], choices: Sequence[Choice], grader: Mixture | None
) -> list[float | None]:
    """1 where the chosen answer is right, 0 where it is not or there is none; None: unknown."""
    if grader is None:
        return [None] * len(questions)
    picked = [
        Question(one.id, one.row, (one.answers[choice.place],))
        for one, choice in zip(questions, choices, strict=True)
        if choice.place is not None
    ]
    results = {one.id: is_right(one, grader) for one in scored(picked, grader)}
    return [results.get(one.id, 0.0) for one in questions]


def is_right(question: Question, grader: Mixture) -> float:
    """1 where every reward of the grader gives the first answer 1 or more."""
    scores = [question.answers[0].score(name) for name in grader.names]
    return float(all(score is not None and score >= 1 for score in scores))


def judged_pool(
    questions: Sequence[Question], config: ChooseConfig, grader: Mixture
) -> list[Judged]:
    """Each question's votes, and which of its answers are right, for curves."""
    found = list[Judged]()
    for plain, one in zip(questions, scored(questions, grader), strict=True):
        votes = votes_of([answer.text for answer in one.answers], one.row, config.kind)
        right = [
            all((score := answer.score(name)) is not None and score >= 1 for name in grader.names)
            for answer in one.answers
        ]
        found.append(Judged(plain, votes, right))
    return found


def write_choices(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """choices.jsonl and summary.json; returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / CHOICES) as file:
        for question, choice, right in zip(
            chosen.questions, chosen.choices, chosen.right, strict=True
        ):
            row = choice_row(question, choice, right)
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    facts = {**chosen.facts, **figures(chosen)}
    write_atomic(folder / SUMMARY, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts


def choice_row(question: Question, choice: Choice, right: float | None) -> dict[str, Any]:
    """A row of choices.jsonl."""
    text = None if choice.place is None else question.answers[choice.place].text
    return {
        "id": question.id,
        "prompt": question.prompt,
        "chosen": text,
        "place": choice.place,
        "value": choice.value,
        "vote": choice.vote,
        "shares": dict(choice.shares),
        "left_out": choice.left_out,
        "drawn": choice.drawn,
        "tokens": choice.tokens,
        "reason": choice.reason,
        "right": right,
    }


def figures(chosen: Chosen) -> dict[str, Any]:
    """What a run comes to, with intervals over questions."""
    drawn = [float(choice.drawn) for choice in chosen.choices]
    tokens = [float(choice.tokens) for choice in chosen.choices]
    found: dict[str, Any] = {
        "verb": chosen.verb,
        "questions": len(chosen.questions),
        "unanswered": sum(choice.place is None for choice in chosen.choices),
        "left_out": sum(choice.left_out for choice in chosen.choices),
        "answers": plain(bootstrap_mean(drawn)),
        "tokens": int(sum(tokens)),
    }
    if chosen.accuracy is not None:
        found["accuracy"] = plain(chosen.accuracy)
    return found


def plain(interval: Interval) -> dict[str, float]:
    """An interval as JSON."""
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
