"""How often do the verifiers take a wrong answer, or refuse a right one? Beside math-verify alone,
on answers written by hand.

    python bench/bench_verifiers.py            # the table
    python bench/bench_verifiers.py --show     # and every answer that was judged wrongly

The answers are `tests/reward/answers.txt` (337, written before the verifiers were tuned) and
`answers_later.txt`. math-verify alone is `verify(parse(gold), parse(answer))` with its defaults, on
the whole answer. `numeric` and `gsm8k` are measured where the gold is one number, kinds that they
refuse by design (2^3, sqrt 16, 5!) aside; gsm8k compares exactly, so 0.666667 is not 2/3 to it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from laurel.core.result import Failed, Score
from laurel.reward.verifiers import VERIFIERS

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "reward"
LISTS = ("answers.txt", "answers_later.txt")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a list: its kind, the row's gold, what was said, whether that is right, and
    whether it is one plain number.
    """

    kind: str
    gold: str
    said: str
    right: bool
    plain: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """How a judge did on a list. Shares are of all wrong answers, and of all right ones."""

    taken: tuple[Answer, ...]
    refused: tuple[Answer, ...]
    wrong: int
    right: int

    @property
    def false_accepts(self) -> float:
        """The share of the wrong answers that were taken."""
        return len(self.taken) / self.wrong

    @property
    def false_rejects(self) -> float:
        """The share of the right answers that were refused."""
        return len(self.refused) / self.right


def answers(name: str) -> Iterator[Answer]:
    """The answers of a list."""
    kind = ""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            kind = line[1:]
        elif line and not line.startswith("# "):
            gold, sign, said = line.split("|", 2)
            yield Answer(
                kind.lstrip("~"),
                gold,
                said.replace("↵", "\n"),
                sign == "+",
                not kind.startswith("~"),
            )


def ours(name: str) -> Callable[[Answer], bool | None]:
    """A built-in verifier as a judge; None where it says that the row's gold is nothing it can
    judge by.
    """

    def judge(answer: Answer) -> bool | None:
        result = VERIFIERS[name](answer.said, {"answer": answer.gold})
        if isinstance(result, Failed) and (name == "math" or not answer.plain):
            return False
        return result.value == 1 if isinstance(result, Score) else None

    return judge


def alone(answer: Answer) -> bool:
    """math-verify by itself."""
    from math_verify import parse, verify

    gold, said = (
        parse(text, parsing_timeout=5) for text in (rf"\boxed{{{answer.gold}}}", answer.said)
    )
    return bool(verify(gold, said, timeout_seconds=5))


JUDGES: dict[str, Callable[[Answer], bool | None]] = {
    "math-verify alone": alone,
    "math": ours("math"),
    "numeric": ours("numeric"),
    "gsm8k": ours("gsm8k"),
}


def tally(judge: str, name: str) -> Tally:
    """A judge on a list."""
    every = [
        answer for answer in answers(name) if answer.plain or judge not in ("numeric", "gsm8k")
    ]
    said = [(answer, verdict) for answer in every if (verdict := JUDGES[judge](answer)) is not None]
    return Tally(
        tuple(answer for answer, verdict in said if verdict and not answer.right),
        tuple(answer for answer, verdict in said if not verdict and answer.right),
        sum(not answer.right for answer, _ in said),
        sum(answer.right for answer, _ in said),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="False accepts and false rejects of the verifiers."
    )
    parser.add_argument(
        "--show", action="store_true", help="print the answers that were judged wrongly"
    )
    show = parser.parse_args().show
    logging.disable(logging.ERROR)
    for name in LISTS:
        every = list(answers(name))
        print(f"{name}: {len(every)} answers of {len({answer.kind for answer in every})} kinds\n")
        print("| judge | wrong ones taken | right ones refused |\n|---|--:|--:|")
        tallies = {judge: tally(judge, name) for judge in JUDGES}
        for judge, found in tallies.items():
            taken = f"{len(found.taken)} of {found.wrong} ({found.false_accepts:.1%})"
            refused = f"{len(found.refused)} of {found.right} ({found.false_rejects:.1%})"
            print(f"| {judge} | {taken} | {refused} |")
        print()
        for judge, found in tallies.items() if show else ():
            for word, items in (("taken", found.taken), ("refused", found.refused)):
                for item in items:
                    print(f"{judge}: {word}, {item.kind}: gold {item.gold!r}, answer {item.said!r}")


if __name__ == "__main__":
    main()
