"""How good a trained scorer is on rows held out: beside chance and trivial baselines, with intervals and calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from laurel.core.sample import Batch, Group
from laurel.data.source import Row
from laurel.measure.calibration import length_direction, reliability_table, report_pairs
from laurel.measure.intervals import wilson
from laurel.objective.reward import last_score
from laurel.policy.scorer import Card
from laurel.rollout.given import GIVEN, encodings
from laurel.rollout.pack import pack

if TYPE_CHECKING:
    from laurel.train.setup import Setup


@torch.no_grad()
def held_out_report(setup: Setup) -> list[str]:
    """What the held-out rows say of the scorer, as lines; and the scorer remembers the mean and spread of its scores on them."""
    setup.policy.model.eval()
    found = [part for i in range(0, len(setup.held), 64) for part in scored(setup, setup.held[i : i + 64])]
    if setup.row.head == 1:
        scores = [float(last_score(score, batch)[n]) for batch, score, _ in found for n in range(len(batch))]
        setup.policy.card = Card.of(scores, setup.config.max_length)
    return REPORTS[setup.row.source](setup, found)


Part = tuple[Batch, torch.Tensor, Sequence[Group]]


def scored(setup: Setup, rows: Sequence[Row]) -> list[Part]:
    """Batch, scores and groups of some rows; one micro-batch per group keeps them together."""
    config = setup.config
    groups = GIVEN[setup.row.source](setup.policy, rows, run="eval", step=0, train_on=None, max_length=config.max_length)
    parts: list[Part] = []
    for group in groups:
        batch = pack([group])
        batch = batch.replace(weight_NT=torch.tensor(group.rewards, dtype=batch.weight_NT.dtype)[:, None].expand_as(batch.weight_NT))
        batch = setup.row.aim(setup, batch, [group]) if setup.row.aim else batch
        parts.append((batch, setup.policy.scores(batch.to(setup.policy.device)).cpu(), [group]))
    return parts


def of_comparisons(setup: Setup, found: Sequence[Part]) -> list[str]:
    """Pairs, all of a ranking: accuracy, calibration, and what preferring by length would get (its direction learnt on training pairs)."""
    ahead, behind, long, short, prompts = [], [], [], [], []
    for batch, score, (group,) in found:
        r = last_score(score, batch).tolist()
        for i, a in enumerate(group.rewards):
            for j, b in enumerate(group.rewards):
                if a > b:
                    ahead.append(r[i])
                    behind.append(r[j])
                    long.append(int(batch.length_N[i]))
                    short.append(int(batch.length_N[j]))
                    prompts.append(str(group.row["prompt"]))
    known = [row for row in setup.rows[:2000] if "chosen" in row.columns]
    lengths = [[e.supervised for e in encodings(setup.policy, row, train_on=None, max_length=None)] for row in known]
    direction = length_direction([a for a, _ in lengths], [b for _, b in lengths]) if lengths else 1
    report = report_pairs(ahead, behind, long, short, direction=direction, clusters=prompts)
    return [f"held-out pairs: {len(ahead)}; chance .500", *str(report).splitlines()]


def of_outcomes(setup: Setup, found: Sequence[Part]) -> list[str]:
    """The sign of the last score against the outcome, beside always saying the commoner one; and calibration."""
    chance = [float(last_score(score, batch)[0].sigmoid()) for batch, score, _ in found]
    came = [float(batch.target_NT[0, 0]) for batch, _, _ in found]
    right = sum((p > 0.5) == (y > 0.5) for p, y in zip(chance, came, strict=True))
    common = max(sum(came), len(came) - sum(came))
    lines = [f"accuracy {wilson(right, len(came))}", f"always the commoner outcome {wilson(common, len(came))}"]
    return [*lines, *map(str, reliability_table(chance, came, bins=5))]


def of_steps(setup: Setup, found: Sequence[Part]) -> list[str]:
    """Three-class accuracy of steps beside the majority class, and whether the first wrong step was found, beside "none is wrong"."""
    right = total = hit = none = 0
    classes: Counter[int] = Counter()
    for batch, score, _ in found:
        at = batch.loss_mask_NT[0]
        said, true = (score[0, at].argmax(1) - 1).tolist(), batch.target_NT[0, at].long().tolist()
        right, total = right + sum(a == b for a, b in zip(said, true, strict=True)), total + len(true)
        classes.update(true)
        first = [column.index(-1) if -1 in column else None for column in (said, true)]
        hit, none = hit + (first[0] == first[1]), none + (first[1] is None)
    return [
        f"step accuracy, three classes   {wilson(right, total)}",
        f"always the commonest class     {wilson(max(classes.values()), total)}",
        f"first error found (or none)    {wilson(hit, len(found))}",
        f'always "nothing is wrong"      {wilson(none, len(found))}',
    ]


REPORTS = {"rankings": of_comparisons, "outcomes": of_outcomes, "steps": of_steps}
"""source: what a scorer of it is held against."""
