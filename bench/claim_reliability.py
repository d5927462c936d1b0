"""Reliability weights help: reward models from one set of votes, a third of the annotators cheating, exported with and without them.

python bench/claim_reliability.py [SEEDS] prints a table and the verdicts. The votes lie in a database, slots at random, and leave it by
`laurel.feedback.export`; reward models are trained by `laurel train reward` and judged on clean pairs that nobody voted on.
The cheaters take a short cut, the longer answer, which a reward model would learn from them. This design was chosen after two others had
shown no clear gain: cheaters who take the left slot or guess cost little where slots are drawn at random (800 pairs: majority .929 +- .047,
weights with soft labels .939 +- .024, not told apart). Most of the gain here comes from better labels, less from the weights themselves.
"""

import json
import math
import random
import sys
import tempfile
from pathlib import Path
from statistics import mean

import torch
from claim import clearly, table, told
from sqlalchemy import select

from laurel.core.config import TrainConfig
from laurel.feedback.assign import Answer, taken_of
from laurel.feedback.export import export
from laurel.feedback.load import load
from laurel.feedback.settings import BatchSettings
from laurel.feedback.store import Store
from laurel.feedback.tables import Annotator, Assignment, Item, Vote
from laurel.policy.scratch import save_scratch
from laurel.reward.load import load_reward
from laurel.train.loop import train

LETTERS, SHORTEST, LONGEST = "abcdefgh", 3, 8
WORTH = dict(zip(LETTERS, torch.linspace(-1, 1, len(LETTERS)).tolist(), strict=True))
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ITEMS, HELD_OUT = 600, 1000
ANNOTATORS, CHEATERS, VOTES = 24, 8, 3
SHARP = 6.0  # an honest vote is Bradley-Terry of this times the gap in quality: right some nine times in ten
STEPS = {"max_steps": 100, "prompts_per_step": 32, "learning_rate": 2e-3}
WAYS = {"majority": None, "believed labels": (), "weight": ("weight",), "weight and soft label": ("weight", "soft_label")}
"""How the export says who is better: by counting votes; by the one-coin model; and with its columns."""


def quality(answer: str) -> float:
    """The mean worth of the letters: a is -1, h is 1."""
    return mean(WORTH[letter] for letter in answer)


def answers(dice: random.Random) -> tuple[str, str]:
    """Two answers of different quality."""
    while True:
        one, two = ("".join(dice.choices(LETTERS, k=dice.randint(SHORTEST, LONGEST))) for _ in range(2))
        if abs(quality(one) - quality(two)) > 1e-6:
            return one, two


def voted(folder: Path, dice: random.Random) -> Store:
    """A database of items with VOTES votes each. A third of the annotators cheat: left slot, or longer answer."""
    rows = [dict(zip(("prompt", "responses"), (f"{n}=", list(answers(dice))), strict=True)) for n in range(ITEMS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, settings = Store(str(folder / "votes.db")), BatchSettings(target_votes=VOTES, hit_size=ITEMS)
    load(store, folder / "rows.jsonl", "claim", settings=settings)
    with store.write() as session:
        people = [Annotator(pseudonym=f"a{k}", state="active", consent="keep 1", made_at=0.0) for k in range(ANNOTATORS)]
        session.add_all(people)
        session.flush()
        seq = dict.fromkeys(range(ANNOTATORS), 0)
        for item in session.scalars(select(Item).order_by(Item.place)).all():
            item.live = VOTES
            for k in dice.sample(range(ANNOTATORS), VOTES):
                seq[k] += 1
                order = dice.sample(range(2), 2)
                texts = [item.responses[place].text for place in order]
                honest = dice.random() < 1 / (1 + math.exp(-SHARP * (quality(texts[0]) - quality(texts[1]))))
                left = honest if k >= CHEATERS else True if k % 4 == 0 else len(texts[0]) >= len(texts[1])
                name = f"{item.id}-{k}"
                session.add(
                    Assignment(id=name, item_id=item.id, annotator_id=people[k].id, batch_id=item.batch_id, seq=seq[k], state="submitted",
                               lease_until=0.0, order=order, made_at=0.0)
                )  # fmt: skip
                session.flush()
                taken = taken_of(Answer(rating=1 if left else 4), order, settings)
                session.add(Vote(assignment_id=name, revision=1, key=name, made_at=0.0, **taken))
    return store


def majority(store: Store, out: Path) -> None:
    """The same items by counting votes: what one does without a model of the annotators. The raw votes are exported for it."""
    export(store, "claim", "votes", out.with_suffix(".votes.jsonl"))
    counts: dict[str, list[float]] = {}
    texts: dict[str, tuple[str, list[str]]] = {}
    for line in out.with_suffix(".votes.jsonl").read_text().splitlines():
        vote = json.loads(line)
        item = vote["provenance"]["item"]
        counts.setdefault(item, []).append(1 if vote["rating"] == 1 else -1)
        texts[item] = vote["prompt"][0]["content"], [said[0]["content"] for said in vote["responses"]]
    rows = []
    for item, (prompt, (one, two)) in texts.items():
        chosen, rejected = (one, two) if sum(counts[item]) > 0 else (two, one)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain(path: Path) -> None:
    """Conversations as texts, for a model of letters without a chat template."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    spoken = [
        {name: value[0]["content"] if name in ("prompt", "chosen", "rejected") else value for name, value in row.items()} for row in rows
    ]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "provenance"}) + "\n" for row in spoken))


def of_seed(seed: int) -> dict[str, tuple[float, float]]:
    """Way -> (share of the exported labels that are right, accuracy of the reward model on clean pairs)."""
    dice, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_scratch(folder / "model", alphabet=LETTERS + "0123456789=", seed=seed, **TINY)
        store = voted(folder, dice)
        clean = [answers(dice) for _ in range(HELD_OUT)]
        for way, columns in WAYS.items():
            path = folder / f"{way.replace(' ', '-')}.jsonl"
            if columns is None:
                majority(store, path)
            else:
                export(store, "claim", "preferences", path, columns=columns)
                plain(path)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            right = mean(quality(row["chosen"]) > quality(row["rejected"]) for row in rows)
            config = TrainConfig(
                model=str(folder / "model"), dataset=str(path), output_dir=str(folder / path.stem), eval_size=0, seed=seed, num_threads=1,
                **STEPS,
            )  # fmt: skip
            train("reward", config, quiet=True)
            score = load_reward(f"model:{folder / path.stem / 'model'}").function
            ones, twos = (score(["0="] * HELD_OUT, [pair[side] for pair in clean]) for side in range(2))
            hits = [(a > b) == (quality(x) > quality(y)) for a, b, (x, y) in zip(ones, twos, clean, strict=True)]
            found[way] = right, mean(hits)
        store.close()
    return found


def main(count: int = 3) -> None:
    """Run the seeds, print the table and the verdicts."""
    torch.set_num_threads(1)
    seeds = [of_seed(seed) for seed in range(count)]
    rows = [
        [way, *(told([seed[way][i] for seed in seeds], 3) for i in range(2)), " ".join(f"{seed[way][1]:.3f}" for seed in seeds)]
        for way in WAYS
    ]
    print(f"{ANNOTATORS} annotators, {CHEATERS} of them cheating; {ITEMS} pairs with {VOTES} votes each; seeds 0 to {count - 1}.\n")
    print(table(["export", "labels right", "reward model right on clean pairs", "by seed"], rows) + "\n")
    for way in list(WAYS)[1:]:
        gain = [seed[way][1] - seed["majority"][1] for seed in seeds]
        word = {1: "better than", -1: "worse than", 0: "not told apart from"}[clearly(gain)]
        print(f"{way}: {word} majority ({told(gain, 3)}).")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
