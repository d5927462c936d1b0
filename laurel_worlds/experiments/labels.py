"""Do reward models like the export's labels?

LLMFAO's votes as majority, as shares, and as laurel exports them; judged by votes held out.

    python -m laurel_worlds.experiments.labels FOLDER_OF_LLMFAO MODEL [--first-seed N] [--seeds K]

Prints a table and the verdicts. A seed holds a fifth of the pairs out, makes labels from the votes
on the others (`laurel_feedback.statistics.labels`, by which the export writes), and trains a reward
model on each kind of them with `laurel train reward` from MODEL, a small causal model. The held-out
pairs' decisive votes are the judge: how often the response that the reward model prefers got the
vote, and the log loss of sigmoid(difference of rewards). Texts are cut to their beginning.
"""

import json
import random
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from laurel.core.config import TrainConfig
from laurel.reward.load import load_reward
from laurel.train.loop import train
from laurel_feedback.statistics.labels import labels_of
from laurel_feedback.statistics.votes import Poll, file_polls
from laurel_worlds.experiments.comparison import (
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    run_seeds,
    seeds_of,
)

HELD_OUT = 0.2
ASKED, ANSWERED = 150, 300  # characters of a prompt and of a response
EXPORT, SHARES, MAJORITY = "export: weight and soft label", "shares as soft labels", "majority"
WAYS = (MAJORITY, SHARES, EXPORT)
SETTING = {"max_steps": 50, "prompts_per_step": 8, "learning_rate": 1e-3}
"""The same for all ways; nothing was tuned on LLMFAO."""
PAIRED = ((EXPORT, MAJORITY), (EXPORT, SHARES), (SHARES, MAJORITY))
MEASURED = ("agrees with a held-out vote", "log loss of it")
Text = tuple[str, str, str]
Votes = dict[str, list[bool]]  # pair -> was the vote for the first?


def texts(folder: Path) -> dict[str, Text]:
    """Pair -> prompt, first and second response, cut."""
    found = {}
    for line in (folder / "pairs-crowd.jsonl").read_text().splitlines():
        row = json.loads(line)
        one, two = ((row[name] or "").strip()[:ANSWERED] for name in ("result_x", "result_y"))
        if one and two and one != two:
            found[str(row["id"])] = row["text"][:ASKED] + "\n", one, two
    return found


def rows(way: str, poll: Poll, votes: Votes, known: dict[str, Text]) -> list[dict[str, object]]:
    """The rows to train on. Pairs without a majority have no label but the export's."""
    made, labels = [], labels_of(poll).by_unit
    for item, given in votes.items():
        wins, losses = sum(given), len(given) - sum(given)
        label = labels[item, 0, 1]
        lead = label.lead if way == EXPORT else (wins > losses) - (wins < losses)
        if not lead:
            continue
        prompt, one, two = known[item]
        chosen, rejected = (one, two) if lead > 0 else (two, one)
        row: dict[str, object] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if way == SHARES:
            row["soft_label"] = (max(wins, losses) + 1) / (len(given) + 2)
        if way == EXPORT:
            row |= {
                "soft_label": label.first if lead > 0 else 1 - label.first,
                "weight": label.weight,
            }
        made.append(row)
    return made


def of_seed(seed: int, folder: Path, source: Path, model: str) -> dict[str, tuple[float, ...]]:
    """Way -> what was measured on the held-out pairs' votes."""
    whole, known = file_polls(source)[0], texts(source)
    names = sorted({b.item for b in whole.ballots} & set(known))
    random.Random(seed).shuffle(names)
    out = set(names[: int(HELD_OUT * len(names))])
    poll = Poll("train", [b for b in whole.ballots if b.item in known and b.item not in out])
    votes: Votes = defaultdict(list)
    judge: Votes = defaultdict(list)
    for c in whole.choices:
        if c.label != "tie" and c.unit[0] in known:
            (judge if c.unit[0] in out else votes)[c.unit[0]].append(c.label == "a")
    found = {}
    for number, way in enumerate(WAYS):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(way, poll, votes, known)))
        scorer = reward_model(path, model, folder / str(number), seed)
        found[way] = on_held_out(scorer, judge, known)
        print(
            f"seed {seed}, {way}: right {found[way][0]:.3f}, log loss {found[way][1]:.3f}",
            file=sys.stderr,
            flush=True,
        )
    return found


def reward_model(rows: Path, model: str, output: Path, seed: int) -> Path:
    """The folder of a reward model that is trained on these rows."""
    config = TrainConfig(
        model=model,
        dataset=str(rows),
        output_dir=str(output),
        eval_size=0,
        seed=seed,
        num_threads=1,
        **SETTING,
    )
    train("reward", config, quiet=True)
    return output / "model"


def on_held_out(scorer: Path, judge: Votes, known: dict[str, Text]) -> tuple[float, float]:
    """(share of votes agreed with, log loss) of a reward model on held-out votes."""
    score = load_reward(f"model:{scorer}").function
    items = list(judge)
    prompts = [known[item][0] for item in items]
    one, two = (np.array(score(prompts, [known[item][side] for item in items])) for side in (1, 2))
    # a pair's chance stands once for every vote on it
    chance = np.repeat(expit(one - two), [len(judge[item]) for item in items])
    first = np.array([vote for item in items for vote in judge[item]])
    right = np.where(chance == 0.5, 0.5, (chance > 0.5) == first)
    loss = -np.log(np.where(first, chance, 1 - chance)).mean()
    return float(right.mean()), float(loss)


def main() -> None:
    """Run the seeds, print the table and the verdicts."""
    parser = make_parser(__doc__, seeds=8)
    parser.add_argument(
        "folder",
        type=Path,
        help="the folder of LLMFAO: crowd-comparisons.csv and pairs-crowd.jsonl",
    )
    parser.add_argument("model", help="a small causal model to begin from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = seeds_of(args)
    seeds = run_seeds(asked, partial(of_seed, source=args.folder, model=args.model))
    print(f"LLMFAO, {HELD_OUT:.0%} of the pairs held out; {SETTING}; {asked}.\n")
    print(
        markdown_table(
            ["labels", *MEASURED],
            [
                [way, *(interval_text([s[way][k] for s in seeds], 3) for k in range(2))]
                for way in WAYS
            ],
        )
        + "\n"
    )
    gaps = {
        f"{better} against {worse}, {what}": [
            (1 - 2 * k) * (s[better][k] - s[worse][k]) for s in seeds
        ]
        for k, what in enumerate(MEASURED)
        for better, worse in PAIRED
    }
    print_verdicts(gaps)


if __name__ == "__main__":
    main()
