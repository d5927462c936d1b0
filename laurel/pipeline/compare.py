"""The end of a pipeline: the trained policy and its start on held-out prompts.

Both are scored by the hidden judge and by the learned one.
"""

from __future__ import annotations

import json
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
from laurel.eval.evaluate import sample_and_score, sampled_kl
from laurel.measure.best_of_n import best_of_n, best_of_n_bound
from laurel.measure.curves import commonest_text, fall_from_peak
from laurel.measure.intervals import Interval, bootstrap_mean, paired_difference
from laurel.model.policy import Policy, load_policy
from laurel.pipeline.plan import Plan
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel.reward.mixture import Mixture

RESULT = "result.json"
COMMONEST = "share of the commonest answer"
BLOCKS = 12  # points of a curve over training: each the mean of so many steps' share
Point = tuple[float, float, float, float]
PromptScores = Mapping[str, list[list[float]]]
"""judge -> of each prompt, the scores of its answers."""


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
    """Write `result.json`: figures with intervals, best-of-n from the start, a few answers.

    models: the folders of `start` and `policy`. gold: the hidden judge, proxy: the learned one (""
    for none), both by their names in `judges`. watch: called with the prompts done.
    """
    config = sampling(plan)
    policies = {name: load_policy(TrainConfig(model=str(path))) for name, path in models.items()}
    count = plan.compare.num_generations
    answers = {
        name: sample_and_score(
            policy, rows, judges, config, count=count, temperature=config.temperature, watch=watch
        )
        for name, policy in policies.items()
    }
    names = [name for name in (gold, proxy) if name]
    scores = {
        model: {name: [by(group, name) for group in groups] for name in names}
        for model, groups in answers.items()
    }
    figures = score_figures(scores, gold) | answer_figures(answers, policies["start"])
    result = {
        "figures": {name: asdict(value) for name, value in figures.items()},
        "best_of_n": best_of_judges(scores["start"], proxy, plan.compare.best_of),
        "answers": first_answers(answers)[:6],
    }
    write_atomic(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return [RESULT]


def sampling(plan: Plan) -> EvalConfig:
    """How answers are drawn for the comparison: as for the preferences."""
    return EvalConfig(
        max_completion_length=plan.sample.max_completion_length,
        temperature=plan.sample.temperature,
        seed=plan.seed,
    )


def score_figures(scores: Mapping[str, PromptScores], gold: str) -> dict[str, Interval]:
    """Each judge's mean score of the start and of the policy, the gain, and the win rate."""
    figures: dict[str, Interval] = {}
    for judge in scores["start"]:
        before = [mean(values) for values in scores["start"][judge]]
        after = [mean(values) for values in scores["policy"][judge]]
        figures[f"{judge}, start"] = bootstrap_mean(before)
        figures[f"{judge}, policy"] = bootstrap_mean(after)
        figures[f"{judge}, gain"] = paired_difference(before, after)
    pairs = zip(scores["policy"][gold], scores["start"][gold], strict=True)
    wins = [win_rate(first, second) for first, second in pairs]
    figures["win rate against the start"] = bootstrap_mean(wins)
    return figures


def answer_figures(answers: Mapping[str, Sequence[Group]], start: Policy) -> dict[str, Interval]:
    """How far the policy's answers are from the start, and what each model's answers are like."""
    drift = sampled_kl(answers["policy"], start)
    figures = {"KL to the start, nats per answer": drift["sampled/kl"]}
    for name, groups in answers.items():
        figures |= text_figures(groups, name)
    return figures


def text_figures(groups: Sequence[Group], name: str) -> dict[str, Interval]:
    """How long a model's answers are, how many of a prompt's differ, and how alike all are."""
    lengths = [mean(len(s.completion_ids) for s in group.samples) for group in groups]
    different = [
        len({s.completion_ids for s in group.samples}) / len(group.samples) for group in groups
    ]
    return {
        f"tokens per answer, {name}": bootstrap_mean(lengths),
        f"different answers, {name}": bootstrap_mean(different),
        f"{COMMONEST}, {name}": bootstrap_mean(commonest(groups)),
    }


def first_answers(answers: Mapping[str, Sequence[Group]]) -> list[list[str]]:
    """[prompt, the start's first answer, the policy's] of every prompt."""
    both = zip(answers["start"], answers["policy"], strict=True)
    return [
        [str(first.row["prompt"]), first.samples[0].text, last.samples[0].text]
        for first, last in both
    ]


def commonest(groups: Sequence[Group]) -> list[float]:
    """The share of each prompt's answers that are the commonest text of all prompts.

    A policy that says one sentence to everybody shows here.
    """
    text, _ = commonest_text(sample.text for group in groups for sample in group.samples)
    return [mean(sample.text == text for sample in group.samples) for group in groups]


def by(group: Group, judge: str) -> list[float]:
    """One judge's scores of a group's answers; UsageError where one is missing."""
    values = [getattr(result, "value", None) for result in group.results[judge]]
    if any(value is None for value in values):
        raise UsageError(
            f"`{judge}` has no score for an answer.",
            where=f"prompt {group.prompt}",
            fix="The comparison needs every score.",
        )
    return [float(value) for value in values if value is not None]


def win_rate(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance that one of the first is above one of the second, ties half.

    (1, 2) against (1, 0): (.5 + 1 + 1 + 1) / 4 = .875.
    """
    return mean(0.5 + 0.5 * ((a > b) - (a < b)) for a in first for b in second)


def best_of(
    start: Mapping[str, list[list[float]]], proxy: str, judge: str, ns: Sequence[int]
) -> list[Point]:
    """(KL bound, mean, low, high) of `judge`'s score of the best of n by `proxy`."""
    points = []
    for n in ns:
        found = bootstrap_mean(
            [best_of_n(p, v, n) for p, v in zip(start[proxy], start[judge], strict=True)]
        )
        points.append((best_of_n_bound(n), found.value, found.low, found.high))
    return points


def best_of_judges(
    start: Mapping[str, list[list[float]]], proxy: str, ns: Sequence[int]
) -> dict[str, list[Point]]:
    """`best_of` by every judge; nothing where there is no learned reward to choose by."""
    return {name: best_of(start, proxy, name, ns) for name in start} if proxy else {}


def over_training(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """(KL per answer, mean reward, low, high) in BLOCKS blocks of steps.

    None where nothing of `rewards/<name>/mean` was logged.
    """
    reward = f"rewards/{name}/mean"
    lines = [
        (line["kl/sequence"], line[reward])
        for line in metrics
        if line.get("kl/sequence") is not None and reward in line
    ]
    size = max(1, -(-len(lines) // BLOCKS))
    points: list[Point] = []
    for start in range(0, len(lines), size):
        kl, values = zip(*lines[start : start + size], strict=True)
        half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        points.append((mean(kl), mean(values), mean(values) - half, mean(values) + half))
    return points


def fell_back(points: Sequence[Point]) -> tuple[Point, Point] | None:
    """(peak, end) of a curve whose end lies below its peak by more than both intervals."""
    return fall_from_peak(points, lambda point: point[1], lambda end, peak: end[3] < peak[2])


def exhibit(
    plan: Plan,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    gold: str,
    proxy: str,
    stages: Table,
    made_from: Table,
) -> Exhibit:
    """The figures, both rewards against KL, and the claims that the intervals allow."""
    figures = {name: Interval(**value) for name, value in result["figures"].items()}
    prompts = len(result["answers"]) and figures[f"{gold}, start"].n
    title = f"{prompts} held-out prompts, {plan.compare.num_generations} answers each"
    rows = tuple((name, i.value, i.low, i.high) for name, i in figures.items())
    texts = tuple(tuple(row) for row in result["answers"])
    claims = gain_claims(figures, gold, proxy)
    claims += lost_claims(metrics, gold) if gold in result["best_of_n"] else []
    claims += sameness_claims(figures)
    about = (
        "From demonstrations to preferences to a reward model to a policy, and what became of it."
    )
    return Exhibit(
        "Pipeline",
        about,
        dict(result),
        tables=(
            made_from,
            Table(title, ("figure", "value", "low", "high"), rows),
            stages,
            Table("first answers", ("prompt", "start", "policy"), texts),
        ),
        charts=tuple(kl_charts(plan, result["best_of_n"], metrics, gold, proxy)),
        claims=tuple(claims),
    )


def kl_charts(
    plan: Plan,
    best_of_n: Mapping[str, Sequence[Sequence[float]]],
    metrics: Sequence[Mapping[str, Any]],
    gold: str,
    proxy: str,
) -> list[Chart]:
    """What each judge says against the KL to the start: of best-of-n, and over training."""
    charts: list[Chart] = []
    for judge, about in ((gold, "the hidden judge"), (proxy, "the learned reward")):
        if not judge or judge not in best_of_n:
            continue
        points = [(kl, value, low, high) for kl, value, low, high in best_of_n[judge]]
        curves: dict[str, Sequence[Point]] = {"best of n from the start": points}
        if trained := over_training(metrics, judge):
            curves[f"{plan.policy.get('algorithm', 'ppo')}, over training"] = trained
        title = f"{about} ({judge}) against KL"
        charts.append(Chart(title, "KL to the start, nats per answer", judge, curves))
    return charts


def gain_claims(figures: Mapping[str, Interval], gold: str, proxy: str) -> list[Claim]:
    """Both judges' scores rose."""
    gain = figures[f"{gold}, gain"]
    claims = [Claim(f"{gold}, which training never saw, rose", gain.low > 0, str(gain))]
    if proxy:
        learned = figures[f"{proxy}, gain"]
        claims.append(Claim("the learned reward rose", learned.low > 0, str(learned)))
    return claims


def lost_claims(metrics: Sequence[Mapping[str, Any]], gold: str) -> list[Claim]:
    """The hidden judge's score over training fell from its peak: over-optimised."""
    lost = fell_back(over_training(metrics, gold))
    if lost is None:
        return []
    (far, peak, *_), (kl, end, *_) = lost
    text = (
        f"`{gold}` kept what it had gained over training (else over-optimised: stop earlier, or"
        " raise beta)"
    )
    evidence = f"{peak:.3f} at {far:.1f} nats, {end:.3f} at the end, {kl:.1f} nats"
    return [Claim(text, False, evidence)]


def sameness_claims(figures: Mapping[str, Interval]) -> list[Claim]:
    """The policy gives many prompts one answer, and the start did not."""
    before, after = (figures.get(f"{COMMONEST}, {name}") for name in ("start", "policy"))
    if before is None or after is None or after.low <= max(0.1, 2 * before.high):
        return []
    text = "different prompts still get different answers"
    return [Claim(text, False, f"{COMMONEST}: {before}, then {after}")]
