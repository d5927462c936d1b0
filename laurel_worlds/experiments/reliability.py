"""Do reliability weights help?

Reward models from one set of votes, a third of the annotators cheating, exported with and without.

    python -m laurel_worlds.experiments.reliability [--first-seed N] [--seeds K]

Prints a table and the verdicts of three designs: cheaters who guess, who take the left slot, or who
take the longer answer, a short cut that a reward model would learn from them. The votes lie in a
database, slots at random, and leave it by `laurel_feedback.exchange.export`; reward models are
trained by `laurel train reward` and judged on clean pairs that X (with `--first-seed 0 --seeds 2`).
"""

import json
import math
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.core.config import TrainConfig
from laurel.model.scratch import save_scratch
from laurel.reward.load import load_reward
from laurel.train.loop import train
from laurel_feedback.exchange.export import export
from laurel_feedback.exchange.load import import_file
from laurel_feedback.store.assign import Answer, vote_columns
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Item, Vote
from laurel_worlds.experiments.comparison import (
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    run_seeds,
    seeds_of,
)

LETTERS, SHORTEST, LONGEST = "abcdefgh", 3, 8
WORTH = dict(zip(LETTERS, torch.linspace(-1, 1, len(LETTERS)).tolist(), strict=True))
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ITEMS, HELD_OUT = 600, 1000
ANNOTATORS, CHEATERS, VOTES = 24, 8, 3
# an honest vote is Bradley-Terry of this times the gap in quality: right some nine times in ten
SHARP = 6.0
STEPS: dict[str, Any] = {"max_steps": 60, "prompts_per_step": 32}
BOTH = "weight and soft label"
WAYS = {"majority": None, "weight": ("weight",), BOTH: ("weight", "soft_label")}
"""How the export says who is better: by counting votes, or by laurel's labels and their columns.

Chosen is the same, with three votes.
"""
DESIGNS = ("guess", "left slot", "longer answer")
"""What cheaters do. In the last a quarter of them takes the left slot."""
Setting = tuple[float, float]  # learning rate and label smoothing
SETTINGS: tuple[Setting, ...] = ((3e-4, 0.0), (1e-3, 0.0), (3e-3, 0.0), (1e-3, 0.2), (3e-3, 0.2))
TUNED = range(2)
SETTING: dict[str, Setting] = {
    "majority": (1e-3, 0.2),
    "weight": (3e-3, 0.0),
    BOTH: (3e-3, 0.0),
}
"""What `--tune --first-seed 0 --seeds 2` found best."""
PAIRED = (("weight", "majority"), (BOTH, "majority"), (BOTH, "weight"))
Measured = tuple[
    float, float
]  # share of the exported labels that are right, accuracy of the reward model on clean pairs


def quality(answer: str) -> float:
    """The mean worth of the letters: a is -1, h is 1."""
    return mean(WORTH[letter] for letter in answer)


def answers(dice: random.Random) -> tuple[str, str]:
    """Two answers of different quality."""
    while True:
        one, two = (
            "".join(dice.choices(LETTERS, k=dice.randint(SHORTEST, LONGEST))) for _ in range(2)
        )
        if abs(quality(one) - quality(two)) > 1e-6:
            return one, two


def cheater_takes_left(design: str, who: int, texts: list[str], dice: random.Random) -> bool:
    """Does this cheater take the left answer?"""
    if design == "guess":
        return dice.random() < 0.5
    if design == "left slot" or who % 4 == 0:
        return True
    return len(texts[0]) >= len(texts[1])


def make_voted_store(folder: Path, dice: random.Random, design: str) -> Store:
    """A database of items with VOTES votes each.

    A third of the annotators cheat as the design says.
    """
    rows = [
        dict(zip(("prompt", "responses"), (f"{n}=", list(answers(dice))), strict=True))
        for n in range(ITEMS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, settings = Store(str(folder / "votes.db")), pair_settings()
    import_file(store, folder / "rows.jsonl", "claim", settings=settings)
    with store.write() as session:
        people = [
            Annotator(pseudonym=f"a{k}", state="active", consent="keep 1", made_at=0.0)
            for k in range(ANNOTATORS)
        ]
        session.add_all(people)
        session.flush()
        seq = dict.fromkeys(range(ANNOTATORS), 0)
        for item in session.scalars(select(Item).order_by(Item.place)).all():
            item.live = VOTES
            for k in dice.sample(range(ANNOTATORS), VOTES):
                seq[k] += 1
                order = dice.sample(range(2), 2)
                left = takes_left(design, k, [item.responses[i].text for i in order], dice)
                add_vote(session, item, people[k], seq[k], order, left)
    return store


def pair_settings() -> BatchSettings:
    """The settings of the batch."""
    return BatchSettings(target_votes=VOTES, hit_size=ITEMS)


def takes_left(design: str, who: int, texts: list[str], dice: random.Random) -> bool:
    """Does this annotator take the left answer? The first CHEATERS of them cheat."""
    gap = quality(texts[0]) - quality(texts[1])
    honest = dice.random() < 1 / (1 + math.exp(-SHARP * gap))
    return honest if who >= CHEATERS else cheater_takes_left(design, who, texts, dice)


def add_vote(
    session: Session, item: Item, voter: Annotator, seq: int, order: list[int], left: bool
) -> None:
    """A vote as the pages store it, with its assignment."""
    name = f"{item.id}-{voter.pseudonym.removeprefix('a')}"
    session.add(
        Assignment(
            id=name,
            item_id=item.id,
            annotator_id=voter.id,
            batch_id=item.batch_id,
            seq=seq,
            state="submitted",
            lease_until=0.0,
            order=order,
            made_at=0.0,
        )
    )
    session.flush()
    taken = vote_columns(Answer(rating=1 if left else 4), order, pair_settings())
    session.add(Vote(assignment_id=name, revision=1, key=name, made_at=0.0, **taken))


def majority(store: Store, out: Path) -> None:
    """The same items by counting votes: what one does without a model of the annotators.

    The raw votes are exported for it.
    """
    export(store, "claim", "votes", out.with_suffix(".votes.jsonl"))
    counts: dict[str, list[float]] = {}
    texts: dict[str, tuple[str, list[str]]] = {}
    for line in out.with_suffix(".votes.jsonl").read_text().splitlines():
        vote = json.loads(line)
        item = vote["provenance"]["item"]
        counts.setdefault(item, []).append(1 if vote["rating"] == 1 else -1)
        texts[item] = (
            vote["prompt"][0]["content"],
            [response[0]["content"] for response in vote["responses"]],
        )
    rows = []
    for item, (prompt, (one, two)) in texts.items():
        chosen, rejected = (one, two) if sum(counts[item]) > 0 else (two, one)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flatten_conversations(path: Path) -> None:
    """Conversations as texts, for a model of letters without a chat template."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    spoken = [
        {
            name: value[0]["content"] if name in ("prompt", "chosen", "rejected") else value
            for name, value in row.items()
        }
        for row in rows
    ]
    path.write_text(
        "".join(
            json.dumps({k: v for k, v in row.items() if k != "provenance"}) + "\n" for row in spoken
        )
    )


def settings_for(way: str) -> tuple[Setting, ...]:
    """Soft labels are smooth already."""
    return tuple(setting for setting in SETTINGS if not (way == BOTH and setting[1]))


def of_design(
    seed: int, folder: Path, design: str, tried: dict[str, tuple[Setting, ...]]
) -> dict[tuple[str, Setting], Measured]:
    """(way, setting) -> what was measured, all from the same votes."""
    dice, found = random.Random(seed), {}
    folder.mkdir()
    save_scratch(folder / "model", alphabet=LETTERS + "0123456789=", seed=seed, **TINY)
    store = make_voted_store(folder, dice, design)
    clean = [answers(dice) for _ in range(HELD_OUT)]
    for way, columns in WAYS.items():
        path = folder / f"{way.replace(' ', '-')}.jsonl"
        if columns is None:
            majority(store, path)
        else:
            export(store, "claim", "preferences", path, columns=columns)
            flatten_conversations(path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        right = mean(quality(row["chosen"]) > quality(row["rejected"]) for row in rows)
        for number, setting in enumerate(tried[way]):
            scorer = reward_model(path, folder / f"{path.stem}-{number}", setting, seed)
            found[way, setting] = right, accuracy(scorer, clean)
    store.close()
    return found


def reward_model(rows: Path, output: Path, setting: Setting, seed: int) -> Path:
    """The folder of a reward model that is trained on these rows."""
    rate, smoothing = setting
    config = TrainConfig(
        model=str(rows.parent / "model"),
        dataset=str(rows),
        output_dir=str(output),
        eval_size=0,
        seed=seed,
        num_threads=1,
        learning_rate=rate,
        label_smoothing=smoothing,
        **STEPS,
    )
    train("reward", config, quiet=True)
    return output / "model"


def accuracy(scorer: Path, clean: list[tuple[str, str]]) -> float:
    """The share of pairs in which a reward model prefers the better answer."""
    score = load_reward(f"model:{scorer}").function
    ones, twos = (score(["0="] * len(clean), [pair[side] for pair in clean]) for side in range(2))
    return mean(
        (a > b) == (quality(x) > quality(y)) for a, b, (x, y) in zip(ones, twos, clean, strict=True)
    )


def of_seed(
    seed: int, folder: Path, designs: Sequence[str], tuning: bool
) -> dict[tuple[str, str, Setting], Measured]:
    """(design, way, setting) -> what was measured."""
    found = {}
    for design in designs:
        tried = {way: settings_for(way) if tuning else (SETTING[way],) for way in WAYS}
        for (way, setting), measured in of_design(
            seed, folder / design.replace(" ", "-"), design, tried
        ).items():
            found[design, way, setting] = measured
            print(
                f"seed {seed}, {design}, {way}: right {measured[0]:.3f}, {measured[1]:.3f}",
                file=sys.stderr,
                flush=True,
            )
    return found


def tune(seeds: range) -> None:
    """Print the mean accuracy of every way at every setting, and its best setting.

    In the design in which cheaters take the longer answer.
    """
    found, rows = run_seeds(seeds, partial(of_seed, designs=DESIGNS[-1:], tuning=True)), []
    for way in WAYS:
        got = {
            setting: mean(seed[DESIGNS[-1], way, setting][1] for seed in found)
            for setting in settings_for(way)
        }
        cells = [f"{got[setting]:.3f}" if setting in got else "" for setting in SETTINGS]
        rows.append([way, *cells, str(max(got, key=got.__getitem__))])
    print(
        markdown_table(
            ["export", *(f"{rate:g}, {eps:g}" for rate, eps in SETTINGS), "best: rate, smoothing"],
            rows,
        )
    )


def main() -> None:
    """Run the seeds, print the table and the verdicts. Or search for the settings."""
    parser = make_parser(__doc__, seeds=8)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="search for every way's learning rate and smoothing instead",
    )
    parser.add_argument(
        "--designs",
        nargs="+",
        choices=DESIGNS,
        default=DESIGNS,
        help="what the cheaters do (default: each in turn)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = seeds_of(args)
    if args.tune:
        return tune(asked)
    if set(asked) & set(TUNED):
        raise SystemExit(
            f"settings were chosen on seeds {TUNED[0]} to {TUNED[-1]}: take others, such as"
            " --first-seed 100."
        )
    seeds = [
        {(d, w): measured for (d, w, _), measured in seed.items()}
        for seed in run_seeds(asked, partial(of_seed, designs=args.designs, tuning=False))
    ]
    rows = [
        [
            design,
            way,
            "{:g}, {:g}".format(*SETTING[way]),
            *(interval_text([s[design, way][i] for s in seeds], 3) for i in range(2)),
        ]
        for design in args.designs
        for way in WAYS
    ]
    print(
        f"{ANNOTATORS} annotators, {CHEATERS} of them cheating; {ITEMS} pairs with {VOTES} votes"
        f" each; {asked}.\n"
    )
    print(
        markdown_table(
            [
                "cheaters",
                "export",
                "rate, smoothing",
                "labels right",
                "reward model right on clean pairs",
            ],
            rows,
        )
        + "\n"
    )
    gaps = {
        f"{design}: {better} against {worse}": [
            s[design, better][1] - s[design, worse][1] for s in seeds
        ]
        for design in args.designs
        for better, worse in PAIRED
    }
    print_verdicts(gaps)


if __name__ == "__main__":
    main()
