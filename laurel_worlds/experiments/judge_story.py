"""Annotators against a judge: LLMFAO's votes, GPT-4's and GPT-3.5's verdicts, and their students.

What does a reward model trained on each of them prefer?

    python -m laurel_worlds.experiments.judge_story FOLDER_OF_LLMFAO [MODEL] [--html FILE]
        [--first-seed N] [--seeds K]

Prints the report card of the two judges and of reward models trained on people's votes and on each
judge's verdicts: linear ones in a dozen features of a text, which a person can read, and, where a
small causal MODEL is given, language models trained with `laurel train reward`. Every pair is
scored by students that saw no pair of its prompt: linear ones leave out one of the 13 prompts at a
time, the others a fourth of them. Intervals are by prompt; of language models all that is on the
card is by the mean of their scores over seeds. docs/judges.md records a run.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import comb
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.special import expit

from laurel.core.config import TrainConfig
from laurel.judge.published import with_makers
from laurel.measure.agreement import Agreement
from laurel.measure.intervals import Interval
from laurel.measure.judge_behaviour import share_of_hits
from laurel.measure.judge_card import Card, card
from laurel.measure.judge_records import JudgeAnswer, Judged, as_labels, final_statuses
from laurel.report.exhibit import Claim, Exhibit, Table
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
from laurel_worlds.linear_reward import FEATURES, LinearReward, fit_linear

FOLDS = 4
ASKED, ANSWERED = 150, 400  # characters of a prompt and of a response
SETTING = {"max_steps": 60, "prompts_per_step": 8, "learning_rate": 1e-3}
"""The same for both students; nothing was tuned on LLMFAO."""
PEOPLE, GPT4, GPT3 = "people", "GPT-4", "GPT-3.5"
LINEAR = {teacher: f"linear model of {teacher}" for teacher in (PEOPLE, GPT4, GPT3)}
STUDENTS = {teacher: f"small LM of {teacher}" for teacher in (PEOPLE, GPT4)}
Text = tuple[str, str, str]
Gaps = dict[str, float]  # pair -> reward of the first less that of the second


def texts(folder: Path, judged: Judged) -> dict[str, Text]:
    """Pair -> prompt and both responses."""
    found: dict[str, Text] = {}
    for line in (folder / "pairs-crowd.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        one, two = ((row[name] or "").strip() for name in ("result_x", "result_y"))
        if str(row["id"]) in judged.items:
            found[str(row["id"])] = row["text"], one, two
    return found


def cut(known: Mapping[str, Text]) -> dict[str, Text]:
    """The texts as a small model can read them; pairs that are equal or empty then are left out."""
    short = {
        item: (prompt[:ASKED] + "\n", one[:ANSWERED], two[:ANSWERED])
        for item, (prompt, one, two) in known.items()
    }
    return {
        item: text for item, text in short.items() if text[1] and text[2] and text[1] != text[2]
    }


def lessons(teacher: str, judged: Judged) -> dict[str, tuple[float, float]]:
    """Pair -> (share of wins of the first, how many votes decide), by people or a judge.

    Ties are left out, people's and the judge's.
    """
    if teacher != PEOPLE:
        labels = as_labels(final_statuses(judged.judges[teacher]))
        found = {item: float(label == "a") for item, label in labels.items() if label != "tie"}
        return {item: (share, 1.0) for item, share in found.items()}
    votes = {item: (v.count("a"), v.count("b")) for item, v in judged.ballots.items()}
    return {
        item: (wins / (wins + losses), float(wins + losses))
        for item, (wins, losses) in votes.items()
        if wins + losses
    }


def taught_by(teacher: str, judged: Judged, known: Mapping[str, Text]) -> LinearReward:
    """A linear student; all its teacher's pairs together count as much as there are pairs."""
    given = lessons(teacher, judged)
    mean = sum(count for _, count in given.values()) / len(given)
    taught = {item: (share, count / mean) for item, (share, count) in given.items()}
    prompts = {item: judged.items[item].prompt for item in known}
    return fit_linear(known, taught, prompts)


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
                item: (share * count + 1) / (count + 2)
                for item, (share, count) in lessons(teacher, judged).items()
                if share != 0.5 and item in known and judged.items[item].prompt not in out
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


def with_students(judged: Judged, gaps: Mapping[str, Gaps]) -> Judged:
    """The source with students as further judges: the sign of their gaps."""
    judges = {
        name: [
            JudgeAnswer(item, "a" if gap > 0 else "b", chance=float(expit(gap)))
            for item, gap in found.items()
        ]
        for name, found in gaps.items()
    }
    return replace(judged, judges={**judged.judges, **judges})


def mean_gaps(found: Sequence[dict[str, Gaps]], teacher: str) -> Gaps:
    """A teacher's language models together: the mean of their gaps over seeds."""
    return {item: float(np.mean([s[teacher][item] for s in found])) for item in found[0][teacher]}


def claims(found: Card, leads: Mapping[str, Interval]) -> tuple[Claim, ...]:
    """What the card says of annotators and judges, each of which it could contradict.

    leads: by how much people agree more with each other than with a judge.
    """
    judges = {judge.name: judge for judge in found.judges}
    gpt4, gpt3, people = judges[GPT4], judges[GPT3], found.people
    own, other, third = (judges[LINEAR[teacher]] for teacher in (PEOPLE, GPT4, GPT3))
    return (
        *(
            Claim(
                f"{name} agrees with a person less often than people agree with each other.",
                gap.low > 0,
                f"ties left out: {judges[name].people_no_ties} against {people.agreement_no_ties};"
                f" people's lead {gap}",
            )
            for name, gap in leads.items()
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
            "A reward model of people's votes agrees with people about new prompts.",
            (own.people_no_ties.low or 0) > 0.5,
            f"with a person's vote: {own.people_no_ties}; one of GPT-4's verdicts:"
            f" {other.people_no_ties}; GPT-4 itself: {gpt4.people_no_ties}",
        ),
        Claim(
            "A reward model takes over what its judge likes: that of GPT-3.5 likes length, those of"
            " people and GPT-4 do not.",
            (third.longer.low or 0) > max(own.longer.high or 1, other.longer.high or 1),
            f"P(longer): of GPT-3.5 {third.longer}, of people {own.longer}, of GPT-4"
            f" {other.longer}",
        ),
    )


def lead_of_people(judged: Judged, name: str, draws: int = 2000) -> Interval:
    """How much more often two people agree than a judge and a person, ties left out.

    The interval resamples prompts, with both shares drawn together.
    """
    labels = as_labels(final_statuses(judged.judges[name]))
    prompts = sorted({item.prompt for item in judged.items.values()})
    sums = np.zeros((len(prompts), 4))
    for item, votes in judged.ballots.items():
        counts = equal_pairs(votes, labels.get(item, "tie"))
        sums[prompts.index(judged.items[item].prompt)] += counts
    drawn = np.random.default_rng(0).integers(0, len(prompts), (draws, len(prompts)))
    found = np.vstack([sums.sum(0), sums[drawn].sum(1)])
    gap = found[:, 0] / found[:, 1] - found[:, 2] / found[:, 3]
    low, high = np.quantile(gap[1:], [0.025, 0.975])
    return Interval(float(gap[0]), float(low), float(high), len(prompts))


def equal_pairs(votes: Sequence[str], label: str) -> tuple[int, int, int, int]:
    """Of an item's decided votes: equal pairs of people, all; equal with the judge's, all."""
    wins, losses = votes.count("a"), votes.count("b")
    own = {"a": wins, "b": losses}.get(label, 0)
    met = 0 if label == "tie" else wins + losses
    return comb(wins, 2) + comb(losses, 2), comb(wins + losses, 2), own, met


def value(found: Agreement) -> float:
    """A figure's value; what is not known is not comparable."""
    return float("nan") if found.value is None else found.value


def weights_table(linear: Mapping[str, LinearReward]) -> Table:
    """What each linear student prefers: weights in logits a standard deviation, by feature."""
    rows = [
        (
            feature,
            *(f"{m.weights[k]:+.2f} ± {m.half[k]:.2f}" for m in linear.values()),
        )
        for k, feature in enumerate(FEATURES)
    ]
    heads = ("a linear reward model likes", *(f"of {teacher}" for teacher in linear))
    return Table("What the students prefer", heads, tuple(rows))


def agreement_rows(judged: Judged, gaps: Mapping[str, Gaps]) -> Table:
    """Each student's agreement with people and both judges on prompts that it has not seen."""
    rows: list[tuple[str, ...]] = []
    for name, found in gaps.items():
        row = [name]
        for other in (PEOPLE, GPT4, GPT3):
            row.append(str(agreement_with(judged, found, other)))
        rows.append(tuple(row))
    for name in (GPT4, GPT3):
        labels = as_labels(final_statuses(judged.judges[name]))
        sign = {item: {"a": 1.0, "b": -1.0}[v] for item, v in labels.items() if v != "tie"}
        row = [
            "itself" if other == name else str(agreement_with(judged, sign, other))
            for other in (PEOPLE, GPT4, GPT3)
        ]
        rows.append((f"{name} itself", *row))
    heads = ("agrees with, ties left out", "people's votes", "GPT-4", "GPT-3.5")
    return Table("Students on prompts that they have not seen", heads, tuple(rows))


def agreement_with(judged: Judged, gaps: Gaps, teacher: str) -> Agreement:
    """How often the sign of the gaps is a decided vote, or a judge's decided verdict."""
    votes = judged.ballots
    if teacher != PEOPLE:
        verdicts = as_labels(final_statuses(judged.judges[teacher]))
        votes = {item: [label] for item, label in verdicts.items()}
    decided = [
        (float(vote == ("a" if gap > 0 else "b")), item)
        for item, gap in gaps.items()
        for vote in votes.get(item, ())
        if vote != "tie"
    ]
    return share_of_hits([hit for hit, _ in decided], judged.prompts(i for _, i in decided), "none")


def measured(judged: Judged, gaps: Gaps, teacher: str) -> float:
    """One student's agreement with a teacher's decided votes."""
    return value(agreement_with(judged, gaps, teacher))


def print_seeds(judged: Judged, found: Sequence[dict[str, Gaps]]) -> None:
    """The language models over seeds, and the comparisons of their teachers."""
    on = {
        (teacher, of): [measured(judged, gaps[teacher], of) for gaps in found]
        for teacher in STUDENTS
        for of in STUDENTS
    }
    rows = [
        [STUDENTS[teacher], *(interval_text(on[teacher, of], 3) for of in STUDENTS)]
        for teacher in STUDENTS
    ]
    print("\n" + markdown_table(("over seeds, agrees with", *STUDENTS), rows) + "\n")
    gaps: dict[str, list[float]] = {}
    for of, other in ((PEOPLE, GPT4), (GPT4, PEOPLE)):
        pairs = zip(on[of, of], on[other, of], strict=True)
        gaps[f"on {of}, the model of {of} against that of {other}"] = [x - y for x, y in pairs]
    print_verdicts(gaps)


def main() -> None:
    """Train the students, print cards, claims and verdicts; with --html one page of it all."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("folder", type=Path, help="the folder of LLMFAO, with pairs-crowd.jsonl")
    parser.add_argument("model", nargs="?", help="a small causal model to begin from")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judged = with_makers(judged_of(file_polls(args.folder)[0]))
    known = texts(args.folder, judged)
    linear = {teacher: taught_by(teacher, judged, known) for teacher in LINEAR}
    gaps = {name: linear[teacher].gaps for teacher, name in LINEAR.items()}
    found: list[dict[str, Gaps]] = []
    if args.model:
        of = partial(of_seed, judged=judged, known=cut(known), model=args.model)
        found = run_seeds(seeds_of(args), of)
        gaps |= {name: mean_gaps(found, teacher) for teacher, name in STUDENTS.items()}
    shown = story(judged, gaps, linear)
    print_exhibit(shown, Console(width=100, highlight=False))
    if found:
        print(f"\n{SETTING}; {seeds_of(args)}.")
        print_seeds(judged, found)
    if args.html is not None:
        command = "python -m laurel_worlds.experiments.judge_story LLMFAO"
        write_page(shown, args.html, command=command + " tinystories-656k" * bool(found))


def story(judged: Judged, gaps: Mapping[str, Gaps], linear: Mapping[str, LinearReward]) -> Exhibit:
    """The card of judges and students, what the students learned, and the claims."""
    made = card(with_students(judged, gaps))
    shown = exhibit([made], "annotators against a judge, LLMFAO", whole=False)
    leads = {name: lead_of_people(judged, name) for name in (GPT4, GPT3)}
    kept = [table for table in shown.tables if not table.title.startswith("Win rates")]
    more = (agreement_rows(judged, gaps), weights_table(linear))
    dots = [one for one in shown.dots if not one.title.startswith("Win rates")]
    tables = (*more, *kept)
    return replace(shown, tables=tables, dots=tuple(dots), claims=claims(made, leads))


if __name__ == "__main__":
    main()
