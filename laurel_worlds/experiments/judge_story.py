"""Annotators against a judge: LLMFAO's votes, GPT-4's and GPT-3.5's verdicts, and their students.

What does a reward model trained on each of them prefer?

    python -m laurel_worlds.experiments.judge_story FOLDER_OF_LLMFAO MODEL [--html FILE]
        [--first-seed N] [--seeds K]

Prints the report card of the two judges and of two students: reward models trained from MODEL, a
small causal model, on people's votes and on GPT-4's verdicts with `laurel train reward`. Every pair
is scored by students that saw no pair of its prompt (four folds of the 13 prompts). Intervals are
by prompt; what holds for all students together is by the mean of their scores over seeds.
docs/judges.md records a run.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.special import expit

from laurel.core.config import TrainConfig
from laurel.judge.published import with_makers
from laurel.measure.agreement import Agreement
from laurel.measure.judge_card import Card, JudgeCard, card
from laurel.measure.judge_records import JudgeAnswer, Judged, as_labels, final_statuses
from laurel.report.exhibit import Claim
from laurel.report.exhibit_page import write_page
from laurel.report.exhibit_text import print_exhibit
from laurel.report.judge_card import exhibit
from laurel.reward.load import load_reward
from laurel.train.loop import train
from laurel_feedback.statistics.judges import judged_of
from laurel_feedback.statistics.votes import file_polls
from laurel_worlds.experiments.comparison import (
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    run_seeds,
    seeds_of,
)

FOLDS = 4
ASKED, ANSWERED = 150, 400  # characters of a prompt and of a response
SETTING = {"max_steps": 60, "prompts_per_step": 8, "learning_rate": 1e-3}
"""The same for both students; nothing was tuned on LLMFAO."""
PEOPLE, GPT4 = "people", "GPT-4"
STUDENTS = {PEOPLE: "reward model of people", GPT4: "reward model of GPT-4"}
Text = tuple[str, str, str]
Gaps = dict[str, float]  # pair -> reward of the first less that of the second


def texts(folder: Path, judged: Judged) -> dict[str, Text]:
    """Pair -> prompt and both responses, cut; pairs that are equal or empty then are left out."""
    found: dict[str, Text] = {}
    for line in (folder / "pairs-crowd.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        one, two = ((row[name] or "").strip()[:ANSWERED] for name in ("result_x", "result_y"))
        if one and two and one != two and str(row["id"]) in judged.items:
            found[str(row["id"])] = row["text"][:ASKED] + "\n", one, two
    return found


def lessons(teacher: str, judged: Judged) -> dict[str, float]:
    """Pair -> P(the first is better) by a teacher: shares of people's votes, GPT-4's verdicts.

    Of people (wins + 1) / (votes + 2), ties left out; an even split, like a tie, teaches nothing.
    """
    if teacher == GPT4:
        labels = as_labels(final_statuses(judged.judges[GPT4]))
        return {item: float(label == "a") for item, label in labels.items() if label != "tie"}
    found: dict[str, float] = {}
    for item, votes in judged.ballots.items():
        wins, losses = votes.count("a"), votes.count("b")
        if wins != losses:
            found[item] = (wins + 1) / (wins + losses + 2)
    return found


def of_seed(
    seed: int, folder: Path, judged: Judged, known: dict[str, Text], model: str
) -> dict[str, Gaps]:
    """Teacher -> reward gaps of every pair, by students that never saw its prompt."""
    prompts = sorted({judged.items[item].prompt for item in known})
    random.Random(seed).shuffle(prompts)
    gaps: dict[str, Gaps] = {teacher: {} for teacher in STUDENTS}
    for fold in range(FOLDS):
        out = set(prompts[fold::FOLDS])
        held = [item for item in known if judged.items[item].prompt in out]
        for teacher in STUDENTS:
            taught = {
                item: chance
                for item, chance in lessons(teacher, judged).items()
                if item in known and judged.items[item].prompt not in out
            }
            scorer = student(taught, known, model, folder / f"{teacher}-{fold}", seed)
            gaps[teacher] |= reward_gaps(scorer, held, known)
    return gaps


def student(
    taught: Mapping[str, float], known: Mapping[str, Text], model: str, folder: Path, seed: int
) -> Path:
    """The folder of a reward model that learned these chances."""
    folder.mkdir()
    rows: list[str] = []
    for item, chance in taught.items():
        prompt, *both = known[item]
        chosen, rejected = both if chance > 0.5 else both[::-1]
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append(json.dumps(row | {"soft_label": max(chance, 1 - chance)}) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    config = TrainConfig(
        model=model,
        dataset=str(folder / "rows.jsonl"),
        output_dir=str(folder / "run"),
        eval_size=0,
        seed=seed,
        num_threads=1,
        **SETTING,
    )
    train("reward", config, quiet=True)
    return folder / "run" / "model"


def reward_gaps(scorer: Path, items: Sequence[str], known: Mapping[str, Text]) -> Gaps:
    """The reward of the first response less that of the second."""
    score = load_reward(f"model:{scorer}").function
    prompts = [known[item][0] for item in items]
    one, two = (np.array(score(prompts, [known[item][side] for item in items])) for side in (1, 2))
    return dict(zip(items, (one - two).tolist(), strict=True))


def with_students(judged: Judged, found: Sequence[dict[str, Gaps]]) -> Judged:
    """The source with two more judges: the students, by the mean of their gaps over seeds."""
    judges = dict(judged.judges)
    for teacher, name in STUDENTS.items():
        gaps = {
            item: float(np.mean([s[teacher][item] for s in found])) for item in found[0][PEOPLE]
        }
        judges[name] = [
            JudgeAnswer(item, "a" if gap > 0 else "b", chance=float(expit(gap)))
            for item, gap in gaps.items()
        ]
    return replace(judged, judges=judges)


def measured(judged: Judged, gaps: Gaps) -> tuple[float, float, float]:
    """Agreement of one student with people's decided votes and GPT-4's, and share of the longer."""
    labels = {item: "a" if gap > 0 else "b" for item, gap in gaps.items()}
    other = as_labels(final_statuses(judged.judges[GPT4]))
    people = [
        float(vote.label == labels[vote.item])
        for vote in judged.votes
        if vote.label != "tie" and vote.item in labels
    ]
    gpt4 = [float(other[i] == label) for i, label in labels.items() if other.get(i, "tie") != "tie"]
    longer = [
        float((label == "a") == (sizes[0] > sizes[1]))
        for item, label in labels.items()
        if (sizes := judged.items[item].lengths) is not None and sizes[0] != sizes[1]
    ]
    return float(np.mean(people)), float(np.mean(gpt4)), float(np.mean(longer))


def claims(found: Card) -> tuple[Claim, ...]:
    """What the card says of annotators and the judge, each of which it could contradict."""
    judges = {judge.name: judge for judge in found.judges}
    gpt4, gpt3, people = judges[GPT4], judges["GPT-3.5"], found.people
    own, other = judges[STUDENTS[PEOPLE]], judges[STUDENTS[GPT4]]
    return (
        Claim(
            "GPT-4 agrees with a person less often than people agree with each other.",
            value(gpt4.people_no_ties) < value(people.agreement_no_ties),
            f"ties left out: {gpt4.people_no_ties} against {people.agreement_no_ties}",
        ),
        Claim(
            "GPT-3.5 goes by the place: the first slot wins.",
            (gpt3.first_slot.low or 0) > 0.5,
            f"GPT-3.5 {gpt3.first_slot}, GPT-4 {gpt4.first_slot}",
        ),
        Claim(
            "GPT-4 prefers its maker's models more than people do.",
            (gpt4.self_preference.low or 0) > 0,
            f"GPT-4 {gpt4.self_preference}, GPT-3.5 {gpt3.self_preference}",
        ),
        Claim(
            "GPT-4 puts the systems in an order like people's.",
            (gpt4.rho.low or 0) > 0,
            f"rho {gpt4.rho}, tau-b {gpt4.tau}",
        ),
        Claim(
            "A student of people's votes learns to agree with people about new prompts.",
            (own.people_no_ties.low or 0) > 0.5,
            f"with a person's vote: {own.people_no_ties}; a student of GPT-4:"
            f" {other.people_no_ties}",
        ),
        Claim(
            "A student of GPT-4 learns to agree with GPT-4 about new prompts.",
            (with_gpt4(found, other).low or 0) > 0.5,
            f"with GPT-4: {with_gpt4(found, other)}; a student of people: {with_gpt4(found, own)}",
        ),
    )


def value(found: Agreement) -> float:
    """A figure's value; what is not known is not comparable."""
    return float("nan") if found.value is None else found.value


def with_gpt4(found: Card, student: JudgeCard) -> Agreement:
    """How often a student says the same as GPT-4."""
    return next(
        pair.agreement for pair in found.pairs if (pair.first, pair.second) == (GPT4, student.name)
    )


def print_seeds(judged: Judged, found: Sequence[dict[str, Gaps]]) -> None:
    """Each kind of student over seeds, and the comparisons of the two."""
    by = {t: [measured(judged, gaps[t]) for gaps in found] for t in STUDENTS}
    heads = ("reward model of", "people's decided votes", "GPT-4's", "prefers the longer")
    rows = [
        [teacher, *(interval_text([one[k] for one in seeds], 3) for k in range(3))]
        for teacher, seeds in by.items()
    ]
    print("\n" + markdown_table(heads, rows) + "\n")
    pairs = list(zip(by[PEOPLE], by[GPT4], strict=True))
    print_verdicts(
        {
            "on people's votes, their own student against GPT-4's": [
                own[0] - other[0] for own, other in pairs
            ],
            "on GPT-4's verdicts, its own student against people's": [
                other[1] - own[1] for own, other in pairs
            ],
        }
    )


def main() -> None:
    """Train the students, print cards, claims and verdicts; with --html one page of it all."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("folder", type=Path, help="the folder of LLMFAO, with pairs-crowd.jsonl")
    parser.add_argument("model", help="a small causal model to begin from")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    poll = file_polls(args.folder)[0]
    judged = with_makers(judged_of(poll))
    known = texts(args.folder, judged)
    asked = seeds_of(args)
    of = partial(of_seed, judged=judged, known=known, model=args.model)
    found = run_seeds(asked, of)
    made = card(with_students(judged, found))
    shown = exhibit([made], "annotators against a judge, LLMFAO", whole=False)
    shown = replace(shown, claims=claims(made))
    print_exhibit(shown, Console(width=100, highlight=False))
    print(f"\n{len(known)} pairs; {SETTING}; {asked}.", file=sys.stderr)
    print_seeds(judged, found)
    if args.html is not None:
        command = "python -m laurel_worlds.experiments.judge_story LLMFAO tinystories-656k"
        write_page(shown, args.html, command=command)


if __name__ == "__main__":
    main()
