"""Choosing for a server, as the answers of a question are drawn: votes and best-of-n by a plan.

With `adaptive` a vote is drawn in rounds, each as long as the shortest way to its end: the rule of
`laurel.measure.stopping` could not have ended it earlier, so that no token more is drawn than one
answer at a time would take.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from laurel.core.choosing import Chosen, Way
from laurel.core.config import build_config
from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.options import Options, option
from laurel.core.result import Failed, as_result
from laurel.core.sample import Completion
from laurel.measure.best_of_n import value_of_one_more
from laurel.measure.stopping import is_decided, is_settled
from laurel.reward.mixture import Mixture, load_rewards
from laurel.search.answers import votes_of
from laurel.search.choices import best, vote
from laurel.search.options import ChooseConfig
from laurel.search.pool import Answer, Question, scored

MOST = 128
FIRST = 4
"""Answers of the first round of an adaptive best-of-n; later rounds add a quarter."""
SHOWN = 200
"""Characters of a vote that are told."""
LOGPROB = "logprob"


class ServedPlan(Options):
    """How a server chooses: the file of `laurel serve --choose`."""

    default_choice: Literal["none", "vote", "best_of"] = option(
        "none", "for requests that do not say; none: they are answered as they come", group="plan"
    )
    num_generations: int = option(
        16, "answers to a question where a request does not say", ge=2, le=MOST
    )
    kind: Literal["number", "math", "choice", "text"] = option(
        "text", "when two answers are one vote"
    )
    weigh: Literal["none", "likelihood", "score"] = option(
        "none", "what a vote counts: 1, its likelihood per token, or the scorer's score"
    )
    scorers: list[str] = option(
        [],
        "by what best_of chooses: model:FOLDER, prm:FOLDER, judge:FILE.yaml, a verifier, or"
        " file.py:function; default: the mean log-probability of the tokens",
        max_length=1,
    )
    adaptive: bool = option(False, "stop drawing once the choice is sure, or not worth more")
    alpha: float = option(
        0.05,
        "with adaptive votes: the chance that the leader is not the most likely answer, however"
        " often one looks",
        gt=0,
        lt=1,
    )
    worth: float = option(
        0.0,
        "with adaptive best_of: stop where one more answer is expected to raise the score by less",
        ge=0,
    )
    reward_timeout: float = option(
        60.0, "seconds that scoring the answers of a round may take", gt=0
    )


def read_plan(path: str | Path) -> ServedPlan:
    """The plan in a YAML file; paths in it may be relative to it. UsageError names the option."""
    values = read_yaml(path)
    for name in values:
        if name in ChooseConfig.model_fields and name not in ServedPlan.model_fields:
            fix = "Leave it out: a request brings its prompt, and how its answers are drawn."
            raise UsageError(f"`{name}` is for `laurel choose`.", where=str(path), fix=fix)
    plan = build_config(resolve_paths(path, values), ServedPlan, where=str(path))
    if plan.weigh == "score" and not plan.scorers:
        fix = "Name one, such as model:FOLDER."
        raise UsageError("there is no scorer to weigh votes by.", where=str(path), fix=fix)
    if plan.adaptive and plan.weigh != "none":
        what = "the rule that may be looked at after each answer is for votes that count 1."
        raise UsageError(what, where=f"{path}, adaptive", fix="Take weigh: none.")
    return plan


class PlanChooser:
    """Chooses by a plan; `listed`: its names are shown among the models.

    Answers of several questions are scored one question after the other: what scores need not be
    made for several threads.
    """

    def __init__(self, plan: ServedPlan, *, listed: bool = True) -> None:
        self.plan = plan
        number = plan.num_generations
        self.names = (f"best-of-{number}", f"vote-{number}") if listed else ()
        self.scorers = plan_scorers(plan)
        self.turn = threading.Lock()

    @property
    def default(self) -> Way | None:
        """How a request is answered that does not say."""
        return None if self.plan.default_choice == "none" else self.plan.default_choice

    @property
    def number(self) -> int:
        """Answers where a request does not say."""
        return self.plan.num_generations

    def begin(self, way: Way, most: int, prompt: Any) -> PlannedSelection:
        """A question with at most so many answers."""
        kind = VoteSelection if way == "vote" else BestSelection
        return kind(self, most, {"prompt": prompt})


def plan_scorers(plan: ServedPlan) -> Mixture | None:
    """The scorer of a plan, checked: a request has no columns but its prompt."""
    if not plan.scorers:
        return None
    how: dict[str, Any] = {"timeout": plan.reward_timeout, "max_failed_fraction": 1.0}
    found = load_rewards(plan.scorers, None, [{"prompt": ""}], **how)
    if plan.adaptive and found.win_chances:
        what = "a judge of pairs scores an answer against the others: all must be there."
        raise UsageError(what, where="adaptive", fix="Leave it out, or score answers one by one.")
    return found


@dataclass(eq=False)
class PlannedSelection:
    """One question with its answers. stopped: why no more are drawn."""

    chooser: PlanChooser
    most: int
    row: dict[str, Any]
    answers: list[Answer] = field(default_factory=list[Answer])
    stopped: str = ""
    seen: int = 0

    @property
    def plan(self) -> ServedPlan:
        """By which is chosen."""
        return self.chooser.plan

    @property
    def question(self) -> Question:
        """The question with what was drawn for it."""
        return Question("request", self.row, tuple(self.answers))

    @property
    def scorer(self) -> str:
        """The name of what scores; "" for none."""
        scorers = self.chooser.scorers
        return "" if scorers is None else scorers.names[0]

    def add(self, texts: Sequence[str], completions: Sequence[Completion]) -> int:
        """More answers: how many are wanted next."""
        for text, one in zip(texts, completions, strict=True):
            logp = float(sum(one.logps))
            self.answers.append(Answer(text, len(one.ids), logp, one.finish, one.ids))
        left = self.most - len(self.answers)
        if not left:
            self.stopped = "all drawn"
            return 0
        return self.wanted(left) if self.plan.adaptive else left

    def wanted(self, left: int) -> int:
        """How many of those that are left come next, where it depends on the answers."""
        raise NotImplementedError

    def choose(self) -> Chosen:
        """One of those that were drawn."""
        raise NotImplementedError

    def score(self) -> None:
        """Have the answers scored that were not yet."""
        if (mixture := self.chooser.scorers) is None or self.seen == len(self.answers):
            return
        fresh = Question("request", self.row, tuple(self.answers[self.seen :]))
        with self.chooser.turn:
            (done,) = scored([fresh], mixture)
        self.answers[self.seen :] = done.answers
        self.seen = len(self.answers)
        for answer in done.answers:
            result = answer.scores[self.scorer]
            if isinstance(result, Failed):
                logging.getLogger(__name__).warning("`%s`: %s", self.scorer, result.reason)

    def why_left_out(self) -> str:
        """The first failure of the scorer; without the place in its source, which is nobody's."""
        results = [one.scores.get(self.scorer) for one in self.answers]
        reasons = [one.reason for one in results if isinstance(one, Failed)]
        return without_place(f"`{self.scorer}` failed: {reasons[0]}") if reasons else ""


class VoteSelection(PlannedSelection):
    """The answer that most agree on."""

    @property
    def votes(self) -> list[str | None]:
        """Of each answer. All anew: one that comes may be equivalent to an earlier one."""
        return votes_of([one.text for one in self.answers], self.row, self.plan.kind)

    def wanted(self, left: int) -> int:
        """As many as the leader needs at least to be announced, or to be out of reach."""
        counts = counts_of(self.votes)
        if is_decided(counts, self.plan.alpha):
            self.stopped = "sure"
            return 0
        if is_settled(counts, left):
            self.stopped = "cannot change"
            return 0
        return soonest(counts, left, self.plan.alpha)

    def choose(self) -> Chosen:
        """The first answer with the winning vote; the first of all where none can be read."""
        plan, votes = self.plan, self.votes
        if plan.weigh == "score":
            self.score()
        scorer = self.scorer if plan.weigh == "score" else ""
        found = vote(self.question, plan.kind, plan.weigh, scorer, votes=votes)
        counts = Counter(one for one in votes if one is not None)
        sure = is_decided(counts_of(votes), plan.alpha) if plan.adaptive else None
        details = {
            "by": {"none": "votes", "likelihood": "likelihood"}.get(plan.weigh, scorer),
            "vote": shown(found.vote),
            "votes": [
                {"vote": shown(one), "count": counts[one], "share": share}
                for one, share in sorted(found.shares.items(), key=lambda pair: -pair[1])
            ],
            "decided": sure,
            "left_out": found.left_out,
            "stopped": self.stopped,
            "reason": without_place(found.reason) or self.why_left_out(),
        }
        # nothing failed where no answer can be read; where votes were read, their scores did
        error = without_place(found.reason) if found.place is None and counts else ""
        return Chosen(found.place, details, error)


class BestSelection(PlannedSelection):
    """The answer with the highest score; without a scorer of the likeliest tokens."""

    @property
    def name(self) -> str:
        """What an answer's score is filed under."""
        return self.scorer or LOGPROB

    def score(self) -> None:
        """Have the answers scored that were not yet."""
        if self.chooser.scorers is not None:
            super().score()
            return
        for i, one in enumerate(self.answers):
            logp = None if one.logp is None or not one.tokens else one.logp / one.tokens
            self.answers[i] = Answer(
                one.text, one.tokens, one.logp, one.finish, one.ids, {LOGPROB: as_result(logp)}
            )

    def wanted(self, left: int) -> int:
        """A few; none where one more is not expected to be worth it."""
        if not self.answers:
            return min(left, FIRST)
        self.score()
        there = [score for one in self.answers if (score := one.score(self.name)) is not None]
        if there and value_of_one_more(there) < self.plan.worth:
            self.stopped = "not worth more"
            return 0
        return min(left, max(1, len(self.answers) // 4))

    def choose(self) -> Chosen:
        """The first answer with the highest score; an error where none has one."""
        self.score()
        found = best(self.question, self.name)
        details = {
            "by": self.name,
            "value": found.value,
            "scores": [one.score(self.name) for one in self.answers],
            "left_out": found.left_out,
            "stopped": self.stopped,
            "reason": without_place(found.reason) or self.why_left_out(),
        }
        return Chosen(found.place, details, without_place(found.reason))


def counts_of(votes: Sequence[str | None]) -> list[int]:
    """How often each vote was given, in the order in which they first came."""
    return list(Counter(one for one in votes if one is not None).values())


def soonest(counts: Sequence[int], left: int, alpha: float) -> int:
    """The fewest more answers with which a vote can end, at most those that are left.

    They would all be for one of the leading answers: `sure` or `cannot change` then.
    """
    order = sorted(range(len(counts)), key=lambda place: -counts[place])
    for more in range(1, left):
        for place in order[:3] or [0]:
            then = list(counts) or [0]
            then[place] += more
            if is_settled(then, left - more) or is_decided(then, alpha):
                return more
    return left


def shown(vote: str | None) -> str | None:
    """A vote as it is told, cut short."""
    return vote if vote is None or len(vote) <= SHOWN else f"{vote[:SHOWN]}..."


def without_place(reason: str) -> str:
    """A reason without the file and line where something was raised: clients need no paths."""
    return re.sub(r" \([^()]*:\d+\)$", "", reason)
