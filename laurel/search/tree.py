"""Process-reward search: answers grow a step at a time, and the most promising prefixes are kept.

Beam search draws `beams` first steps of a question, keeps beams / branches prefixes by what a
process reward model says of them, draws `branches` next steps of each, and so on: Snell et al.
2024, arXiv:2408.03314. Diverse verifier tree search divides the beams among subtrees that do not
compete, so that the answers stay different (Beeching, Tunstall and Rush 2024). With one branch
nothing is ever dropped: the answers are those of plain sampling, token for token.

Where a search stands is a function of the steps that were drawn and of their values alone. Both are
kept as they come (`laurel.search.tree_file`): a search that was killed goes over them again and
draws what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from laurel.core.errors import UsageError
from laurel.core.protocols import Generator
from laurel.core.result import Result, Score
from laurel.core.sample import Completion, Draw, Finish, sample_seed
from laurel.data.source import Row
from laurel.fast.decode import later_seed
from laurel.model.chat import encode_prompt
from laurel.reward.mixture import Mixture
from laurel.search.answers import Kind
from laurel.search.choices import Choice, best, vote
from laurel.search.pool import Answer, Question, scored
from laurel.search.tree_file import TreeFile

AT_ONCE = 64
"""Questions that are searched together, a depth at a time."""


@dataclass(frozen=True, slots=True)
class TreeShape:
    """How wide and how deep a search is, and where a step ends.

    beams: steps drawn at each depth, at most. branches: next steps of each prefix that is kept, so
    beams / branches are. subtrees: 1 for beam search; beams / branches for diverse verifier tree
    search. delimiters: strings that end a step; a step also ends where the model ends its answer,
    and after step_tokens tokens (0: without such a limit). max_steps: an answer of so many is
    ended. distinct: of equal prefixes only the first is kept, while there are others.
    """

    beams: int = 16
    branches: int = 4
    subtrees: int = 1
    delimiters: tuple[str, ...] = ("\n",)
    step_tokens: int = 0
    max_steps: int = 64
    distinct: bool = True

    def __post_init__(self) -> None:
        if min(self.beams, self.branches, self.subtrees, self.max_steps) < 1:
            raise UsageError("beams, branches, subtrees and max_steps are 1 or more.", where="tree")
        if self.beams % (self.branches * self.subtrees):
            what = (
                f"{self.beams} beams cannot be {self.branches} branches each of equally many"
                f" prefixes in {self.subtrees} subtrees."
            )
            fix = "Take a multiple of branches * subtrees."
            raise UsageError(what, where="beams", fix=fix)
        if not self.step_tokens and not any(self.delimiters):
            fix = "Give delimiters, or step_tokens."
            raise UsageError("nothing ends a step.", where="delimiters", fix=fix)

    @property
    def width(self) -> int:
        """Prefixes that are kept of each subtree."""
        return self.beams // self.branches // self.subtrees

    def finish_of(self, step: Completion, whole: str, stop: Sequence[str]) -> Finish | None:
        """Why an answer ended with this step; None where it goes on.

        whole: its text so far. stop: strings that end an answer.
        """
        if step.finish == "stop":
            return "stop" if any(text in whole for text in stop) else None
        if step.finish == "length" and len(step.ids) == self.step_tokens:
            return None
        return step.finish


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer as far as it is drawn: its ids, log-probability and text, and its value.

    finish: why it ended, None where it goes on. tree: its subtree. seed: of its next token.
    """

    ids: tuple[int, ...] = ()
    logp: float = 0.0
    text: str = ""
    finish: Finish | None = None
    tree: int = 0
    seed: int = 0
    result: Result | None = None

    @property
    def value(self) -> float | None:
        """None where the scorer failed or abstained."""
        return self.result.value if isinstance(self.result, Score) else None


@dataclass(frozen=True, slots=True)
class Want:
    """A step that is to be drawn: of which prefix, with which seed, of how many tokens at most."""

    beam: Beam
    seed: int
    limit: int


class Value(Protocol):
    """What prefixes are worth. `name`: of its results.

    Called with questions whose answers are prefixes; a result for each. A prefix that it fails on,
    or abstains from, is kept last.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, questions: Sequence[Question]) -> Sequence[Sequence[Result]]: ...


class RewardValue:
    """Values by the first reward of a mixture, such as `prm:FOLDER`."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.name = mixture.names[0]

    def __call__(self, questions: Sequence[Question]) -> list[list[Result]]:
        """A result for each prefix."""
        found = scored(questions, self.mixture)
        return [[answer.scores[self.name] for answer in one.answers] for one in found]


@dataclass(frozen=True)
class Searched:
    """What a search of one question came to.

    question: its answers in the order in which they ended, with their values. tokens, steps: all
    that were drawn, those of dropped prefixes too. depth: of the tree.
    """

    question: Question
    tokens: int
    steps: int
    depth: int

    def choice(self, name: str, kind: Kind = "auto", *, votes: bool = False) -> Choice:
        """The best answer by its value, or the vote of all answers weighted by it."""
        chosen = vote(self.question, kind, "score", name) if votes else best(self.question, name)
        return replace(chosen, tokens=self.tokens)


@dataclass
class Growth:
    """The search of one question.

    most: tokens of an answer. live: prefixes to be continued. ended: answers.
    """

    row: Row
    prompt: tuple[int, ...]
    shape: TreeShape
    draw: Draw
    most: int
    live: list[Beam] = field(default_factory=list[Beam])
    ended: list[Beam] = field(default_factory=list[Beam])
    tokens: int = 0
    steps: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        shape = self.shape
        seeds = replace(self.draw, num_generations=shape.beams).seeds_of([self.row.id])
        each = shape.beams // shape.subtrees
        self.live = [Beam(tree=place // each, seed=seed) for place, seed in enumerate(seeds)]

    @property
    def branches(self) -> int:
        """Steps to draw of each live prefix: of the roots, which have seeds of their own, one."""
        return self.shape.branches if self.depth else 1

    def wants(self) -> list[Want]:
        """The steps to draw next, `branches` of each live prefix in turn.

        The first branch goes on with the random numbers of its prefix, as if it had never been
        stopped; the others have numbers of their own, by (seed, question, depth, prefix, branch).
        """
        found = list[Want]()
        for place, beam in enumerate(self.live):
            left = self.most - len(beam.ids)
            limit = min(left, self.shape.step_tokens or left)
            for branch in range(self.branches):
                name = f"{self.row.id}/{self.depth}/{place}/{branch}"
                fresh = sample_seed(self.draw.seed, name, 0, self.draw.step)
                found.append(Want(beam, fresh if branch else beam.seed, limit))
        return found

    def grown(self, steps: Sequence[Completion], texts: Sequence[str]) -> list[Beam]:
        """The prefixes with the steps that `wants` asked for. texts: of each, whole."""
        found = list[Beam]()
        last = self.depth + 1 >= self.shape.max_steps
        for want, step, text in zip(self.wants(), steps, texts, strict=True):
            ids = want.beam.ids + step.ids
            finish = self.shape.finish_of(step, text, self.draw.stop)
            if finish is None and (last or len(ids) >= self.most):
                finish = "length"
            found.append(
                Beam(
                    ids,
                    want.beam.logp + sum(step.logps),
                    text,
                    finish,
                    want.beam.tree,
                    later_seed(want.seed, len(step.ids)),
                )
            )
        return found

    def take(self, beams: Sequence[Beam], steps: Sequence[Completion]) -> None:
        """Keep what is to be continued of the newest prefixes, which have values."""
        self.tokens += sum(len(step.ids) for step in steps)
        self.steps += len(steps)
        self.depth += 1
        self.live = []
        for tree in range(self.shape.subtrees):
            # an answer that ended holds its place as long as it is among the best
            rivals = [one for one in (*self.ended, *beams) if one.tree == tree]
            kept = ranked(rivals, self.shape.distinct)[: self.shape.width]
            self.live += [one for one in kept if one.finish is None]
        self.ended += [one for one in beams if one.finish is not None]

    def searched(self, name: str) -> Searched:
        """The answers, with their values under this name."""
        answers = tuple(
            replace(as_answer(beam), scores={name: beam.result} if beam.result else {})
            for beam in self.ended
        )
        question = Question(self.row.id, self.row.columns, answers)
        return Searched(question, self.tokens, self.steps, self.depth)


def ranked(beams: Sequence[Beam], distinct: bool = True) -> list[Beam]:
    """By value, the highest first; those without one last; of equals the first.

    distinct: behind all others with a value comes what equals one before it.
    """

    seen = set[tuple[int, ...]]()
    keys = list[tuple[bool, bool, float, int]]()
    for place, beam in enumerate(beams):
        again = distinct and beam.ids in seen
        seen.add(beam.ids)
        keys.append((beam.value is None, again, -(beam.value or 0.0), place))
    return [beams[place] for *_, place in sorted(keys)]


def tree_search(
    generator: Generator,
    value: Value,
    rows: Sequence[Row],
    shape: TreeShape,
    draw: Draw,
    *,
    file: TreeFile | None = None,
    watch: Callable[[int], None] | None = None,
) -> list[Searched]:
    """Search an answer to each row: beam search, or diverse verifier tree search.

    draw: seed, max_completion_length (of a whole answer), temperature, top_k, top_p, and stop
    strings, which end an answer. The tokens of a step depend on (seed, question, depth, prefix,
    branch) alone. All questions of a portion, and all of their beams, are drawn in one call a
    depth. file: what is known already, and where everything new is kept. watch: told how many more
    are done. Errors: UsageError for a shape, or a file, that does not fit.
    """
    found = list[Searched]()
    for start in range(0, len(rows), AT_ONCE):
        some = [growth_of(generator, row, shape, draw) for row in rows[start : start + AT_ONCE]]
        while growing := [one for one in some if one.live]:
            go_deeper(generator, value, growing, file or TreeFile())
        found += [one.searched(value.name) for one in some]
        if watch is not None:
            watch(len(some))
    return found


def growth_of(generator: Generator, row: Row, shape: TreeShape, draw: Draw) -> Growth:
    """The search of a row before its first step."""
    columns = row.columns
    asked = columns.get("prompt", columns.get("question", ""))
    prompt = encode_prompt(generator.tokenizer, asked, tools=columns.get("tools"))
    most = draw.max_completion_length
    # a prefix that fills the model's positions could not be a prompt any more
    positions: int | None = getattr(getattr(generator, "policy", None), "positions", None)
    if positions is not None:
        most = max(1, min(most, positions - len(prompt)))
    return Growth(row, prompt, shape, draw, most)


def go_deeper(
    generator: Generator, value: Value, growing: Sequence[Growth], file: TreeFile
) -> None:
    """One more step of each prefix of each question: drawn, valued, chosen from."""
    steps = known_steps(generator, growing, file)
    beams = grown_beams(generator, growing, steps)
    unknown = [i for i, one in enumerate(growing) if file.values(one.row.id, one.depth) is None]
    if unknown:
        places = [(growing[i].row.id, growing[i].depth) for i in unknown]
        file.keep_values(places, values_of([(growing[i], beams[i]) for i in unknown], value))
    for one, drawn, fresh in zip(growing, steps, beams, strict=True):
        results = file.values(one.row.id, one.depth) or []
        valued = [replace(beam, result=r) for beam, r in zip(fresh, results, strict=True)]
        one.take(valued, drawn)


def known_steps(
    generator: Generator, growing: Sequence[Growth], file: TreeFile
) -> list[list[Completion]]:
    """The steps that each question wants: those that are kept, and the others drawn and kept."""
    new = [one for one in growing if file.steps(one.row.id, one.depth) is None]
    # a call has equally many steps of each prompt: first steps and others are drawn apart
    for some in ([one for one in new if one.depth == 0], [one for one in new if one.depth]):
        if some:
            file.keep_steps([(g.row.id, g.depth) for g in some], draw_steps(generator, some))
    return [file.steps(one.row.id, one.depth) or [] for one in growing]


def draw_steps(generator: Generator, growing: Sequence[Growth]) -> list[list[Completion]]:
    """The steps that each question wants, in one call; prompts are shared by their branches."""
    first = growing[0]
    roots = first.depth == 0
    prompts = [
        one.prompt + beam.ids for one in growing for beam in (one.live[:1] if roots else one.live)
    ]
    wants = [one.wants() for one in growing]
    each = first.shape.beams if roots else first.shape.branches
    stop = tuple(filter(None, (*first.shape.delimiters, *first.draw.stop)))
    draw = replace(
        first.draw,
        stop=stop,
        num_generations=each,
        seeds=tuple(want.seed for some in wants for want in some),
        limits=tuple(want.limit for some in wants for want in some),
    )
    done = iter(generator.generate(prompts, draw))
    return [[next(done) for _ in some] for some in wants]


def grown_beams(
    generator: Generator, growing: Sequence[Growth], steps: Sequence[Sequence[Completion]]
) -> list[list[Beam]]:
    """The prefixes with their new steps, and their texts: decoded whole, in one call."""
    spoken = [
        want.beam.ids + step.spoken
        for one, drawn in zip(growing, steps, strict=True)
        for want, step in zip(one.wants(), drawn, strict=True)
    ]
    texts = iter(generator.tokenizer.batch_decode(spoken, skip_special_tokens=True))
    return [
        one.grown(drawn, [next(texts) for _ in drawn])
        for one, drawn in zip(growing, steps, strict=True)
    ]


def values_of(grown: Sequence[tuple[Growth, Sequence[Beam]]], value: Value) -> list[list[Result]]:
    """What the newest prefixes of each question are worth; equal ones are asked about once."""
    distinct = [{beam.text: beam for beam in reversed(beams)} for _, beams in grown]
    asked = [
        Question(growth.row.id, growth.row.columns, tuple(map(as_answer, some.values())))
        for (growth, _), some in zip(grown, distinct, strict=True)
    ]
    found = list[list[Result]]()
    for (_, beams), some, results in zip(grown, distinct, value(asked), strict=True):
        known = dict(zip(some, results, strict=True))
        found.append([known[beam.text] for beam in beams])
    return found


def as_answer(beam: Beam) -> Answer:
    """A prefix, or an answer, as what a scorer reads."""
    return Answer(beam.text, len(beam.ids), beam.logp, beam.finish or "stop", beam.ids)
