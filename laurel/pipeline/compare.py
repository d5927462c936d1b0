"""The end of a pipeline: the trained policy beside its start on prompts nobody trained on, by the
hidden judge and the learned one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from laurel.core.config import EvalConfig, TrainConfig
from laurel.core.errors import UsageError
from laurel.core.files import write_atomic
from laurel.core.sample import Group
from laurel.data.source import Row
from laurel.eval.evaluate import divergence, scored
from laurel.measure.best_of_n import best_of_n, best_of_n_bound
from laurel.measure.intervals import Interval, bootstrap_mean, paired_difference
from laurel.model.policy import load_policy
from laurel.pipeline.plan import Plan
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel.reward.mixture import Mixture

COMMONEST = "share of the commonest answer"
BLOCKS = 12  # points of a curve over training: each the mean of so many steps' share
Point = tuple[float, float, float, float]


def compare(
    folder: Path,
    plan: Plan,
    models: Mapping[str, Path],
    rows: Sequence[Row],
    judges: Mixture,
    gold: str,
    proxy: str,
    watch: Callable[[int], None],
) -> list[str]:
    """`result.json`: figures with intervals, and best-of-n from the start. `judges` score by name;
    `watch` counts prompts.
    """
    how = EvalConfig(
        max_completion_length=plan.sample.max_completion_length,
        temperature=plan.sample.temperature,
        seed=plan.seed,
    )
    policies = {name: load_policy(TrainConfig(model=str(path))) for name, path in models.items()}
    said = {
        name: scored(
            policy,
            rows,
            judges,
            how,
            count=plan.compare.num_generations,
            temperature=how.temperature,
            watch=watch,
        )
        for name, policy in policies.items()
    }
    names = [name for name in (gold, proxy) if name]
    by_prompt = {
        model: {name: [by(group, name) for group in groups] for name in names}
        for model, groups in said.items()
    }
    figures: dict[str, Interval] = {}
    for judge in by_prompt["start"]:
        before, after = (
            [mean(values) for values in by_prompt[name][judge]] for name in ("start", "policy")
        )
        figures |= {
            f"{judge}, start": bootstrap_mean(before),
            f"{judge}, policy": bootstrap_mean(after),
        }
        figures[f"{judge}, gain"] = paired_difference(before, after)
    wins = [
        win_rate(first, second)
        for first, second in zip(by_prompt["policy"][gold], by_prompt["start"][gold], strict=True)
    ]
    figures["win rate against the start"] = bootstrap_mean(wins)
    figures["KL to the start, nats per answer"] = divergence(said["policy"], policies["start"])[
        "sampled/kl"
    ]
    for name, groups in said.items():
        figures[f"tokens per answer, {name}"] = bootstrap_mean(
            [mean(len(s.completion_ids) for s in group.samples) for group in groups]
        )
        different = [
            len({s.completion_ids for s in group.samples}) / len(group.samples) for group in groups
        ]
        figures[f"different answers, {name}"] = bootstrap_mean(different)
        figures[f"{COMMONEST}, {name}"] = bootstrap_mean(commonest(groups))
    curves = (
        {name: best_of(by_prompt["start"], proxy, name, plan.compare.best_of) for name in names}
        if proxy
        else {}
    )
    both = zip(said["start"], said["policy"], strict=True)
    answers = [
        [str(first.row["prompt"]), first.samples[0].text, last.samples[0].text]
        for first, last in both
    ]
    result = {
        "figures": {name: asdict(value) for name, value in figures.items()},
        "best_of_n": curves,
        "answers": answers[:6],
    }
    write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return ["result.json"]


def commonest(groups: Sequence[Group]) -> list[float]:
    """Of each prompt, which share of its answers is the one text that is the commonest of all: one
    sentence for everybody shows here.
    """
    texts = Counter(sample.text for group in groups for sample in group.samples)
    ((text, _),) = texts.most_common(1)
    return [mean(sample.text == text for sample in group.samples) for group in groups]


def by(group: Group, judge: str) -> list[float]:
    """What one judge said of a group's answers; one that could not say is a mistake here, not a
    zero.
    """
    values = [getattr(result, "value", None) for result in group.results[judge]]
    if any(value is None for value in values):
        raise UsageError(
            f"`{judge}` has no score for an answer.",
            where=f"prompt {group.prompt}",
            fix="The comparison needs every score.",
        )
    return [float(value) for value in values if value is not None]


def win_rate(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance that one of the first is above one of the second, ties half. (1, 2) against (1,
    0): (.5 + 1 + 1 + 1) / 4 = .875.
    """
    return mean(0.5 + 0.5 * ((a > b) - (a < b)) for a in first for b in second)


def best_of(
    start: Mapping[str, list[list[float]]], proxy: str, judge: str, ns: Sequence[int]
) -> list[Point]:
    """(KL bound, mean, low, high) of what `judge` says of the best of n by `proxy`, over
    prompts.
    """
    points = []
    for n in ns:
        found = bootstrap_mean(
            [best_of_n(p, v, n) for p, v in zip(start[proxy], start[judge], strict=True)]
        )
        points.append((best_of_n_bound(n), found.value, found.low, found.high))
    return points


def over_training(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """(KL per answer, mean reward, low, high) in BLOCKS blocks of steps, from what the run logged
    of `rewards/<name>/mean`.
    """
    lines = [
        (line["kl/sequence"], line[f"rewards/{name}/mean"])
        for line in metrics
        if line.get("kl/sequence") is not None
    ]
    size = max(1, -(-len(lines) // BLOCKS))
    points = []
    for i in range(0, len(lines), size):
        kl, values = zip(*lines[i : i + size], strict=True)
        half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        points.append((mean(kl), mean(values), mean(values) - half, mean(values) + half))
    return points


def fell_back(points: Sequence[Point]) -> tuple[Point, Point] | None:
    """(peak, end) of a curve over training whose end lies clearly below its peak, their intervals
    apart; None of any other.

    The peak of many noisy blocks is a little high by luck; that alone does not part the intervals.
    """
    if len(points) < 2:
        return None
    peak, end = max(points, key=lambda point: point[1]), points[-1]
    return (peak, end) if end[3] < peak[2] else None


def exhibit(
    plan: Plan,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    gold: str,
    proxy: str,
    stages: Table,
    made_from: Table,
) -> Exhibit:
    """What is shown: the figures, gold and learned reward against KL, and the claims that their
    intervals allow.
    """
    figures = {name: Interval(**value) for name, value in result["figures"].items()}
    table = Table(
        f"{len(result['answers']) and figures[f'{gold}, start'].n} held-out prompts,"
        f" {plan.compare.num_generations} answers each",
        ("figure", "value", "low", "high"),
        tuple((name, i.value, i.low, i.high) for name, i in figures.items()),
    )
    charts, lost = [], None
    for judge, about in ((gold, "the hidden judge"), (proxy, "the learned reward")):
        if not judge or judge not in result["best_of_n"]:
            continue
        curves = {
            "best of n from the start": [tuple(point) for point in result["best_of_n"][judge]]
        }
        if trained := (
            over_training(metrics, judge)
            if any(f"rewards/{judge}/mean" in line for line in metrics)
            else []
        ):
            curves[f"{plan.policy.get('algorithm', 'ppo')}, over training"] = trained
            lost = fell_back(trained) if judge == gold else lost
        charts.append(
            Chart(
                f"{about} ({judge}) against KL", "KL to the start, nats per answer", judge, curves
            )
        )
    gain = figures[f"{gold}, gain"]
    claims = [Claim(f"`{gold}`, which training never saw, rose", gain.low > 0, str(gain))]
    if proxy:
        claims.append(
            Claim(
                "the learned reward rose",
                figures[f"{proxy}, gain"].low > 0,
                str(figures[f"{proxy}, gain"]),
            )
        )
    if lost is not None:
        (far, peak, *_), (kl, end, *_) = lost
        said = f"{peak:.3f} at {far:.1f} nats, {end:.3f} at the end, {kl:.1f} nats"
        claims.append(
            Claim(
                f"`{gold}` kept what it had gained over training (else over-optimised: stop"
                " earlier, or raise beta)",
                False,
                said,
            )
        )
    before, after = (figures.get(f"{COMMONEST}, {name}") for name in ("start", "policy"))
    if before is not None and after is not None and after.low > max(0.1, 2 * before.high):
        claims.append(
            Claim(
                "different prompts still get different answers",
                False,
                f"{COMMONEST}: {before}, then {after}",
            )
        )
    texts = Table(
        "first answers",
        ("prompt", "start", "policy"),
        tuple(tuple(row) for row in result["answers"]),
    )
    about = (
        "From demonstrations to preferences to a reward model to a policy, and what became of it."
    )
    return Exhibit(
        "Pipeline",
        about,
        dict(result),
        tables=(made_from, table, stages, texts),
        charts=tuple(charts),
        claims=tuple(claims),
    )
