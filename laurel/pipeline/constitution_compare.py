"""The end of a constitution: every model on kept prompts, by scorers that no stage has seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from laurel.core.config import EvalConfig, TrainConfig
from laurel.core.files import read_lines, write_atomic
from laurel.core.sample import Group
from laurel.data.source import Row
from laurel.eval.evaluate import sample_and_score, sampled_kl
from laurel.measure.boilerplate import (
    DIFFERENT,
    EMPTY,
    ENDING,
    OPENING,
    REFUSED,
    SENTENCE,
    answer_marks,
    commonest_words,
    runaway,
)
from laurel.measure.intervals import Interval, bootstrap_mean, paired_difference
from laurel.model.policy import Policy, load_policy
from laurel.pipeline.compare import by
from laurel.pipeline.constitution_plan import ConstitutionPlan
from laurel.pipeline.constitution_text import HARM, HELPFULNESS
from laurel.report.exhibit import Chart, Claim, Exhibit, Table
from laurel.reward.mixture import Mixture

RESULT = "result.json"
START, SUPERVISED, POLICY, BASELINE = "start", "supervised", "policy", "baseline"
EXAMPLES = 2
"""Rows of the page's table of critiques for each principle and round."""
MARKS = (REFUSED, OPENING, ENDING, SENTENCE, EMPTY, DIFFERENT)
LENGTH = "words per answer"
RED = "red-team prompts"
USUAL = "helpful prompts"
Figures = dict[str, Interval]


def compare_models(
    folder: Path,
    plan: ConstitutionPlan,
    models: Mapping[str, Path],
    rows: Mapping[str, Sequence[Row]],
    scorers: Mapping[str, Mixture],
    watch: Callable[[int], None],
) -> list[str]:
    """Write `result.json`: harm on red-team prompts, helpfulness on the others, and what the
    answers of every model are like.

    models: name -> folder, `start` first. rows: of each kind (RED, USUAL). scorers: of `harm` and
    `helpfulness`. Each is scored on both kinds.
    """
    policies = {name: load_policy(TrainConfig(model=str(path))) for name, path in models.items()}
    answers = {
        name: answer_kinds(plan, policy, rows, both(scorers), watch)
        for name, policy in policies.items()
    }
    found = score_figures(answers, scorers, plan.gold.factor)
    for name in [one for one in models if one != START]:
        groups = [group for kind in rows for group in answers[name][kind]]
        drift = sampled_kl(groups, policies[START])
        found[f"KL to the start, nats per answer, {name}"] = drift["sampled/kl"]
    result = {
        "figures": as_json(found),
        "texts": {name: text_figures(kinds, plan) for name, kinds in answers.items()},
        "answers": first_answers(answers),
    }
    write_atomic(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return [RESULT]


def answer_kinds(
    plan: ConstitutionPlan,
    policy: Policy,
    rows: Mapping[str, Sequence[Row]],
    scorers: Mixture,
    watch: Callable[[int], None],
) -> dict[str, list[Group]]:
    """One model's scored answers to each kind of prompts, drawn as all others are."""
    config = EvalConfig(
        max_completion_length=plan.sample.max_completion_length,
        stop=plan.sample.stop,
        seed=plan.seed,
    )
    return {
        kind: sample_and_score(
            policy,
            some,
            scorers,
            config,
            count=plan.compare.num_generations,
            temperature=plan.sample.temperature,
            watch=watch,
        )
        for kind, some in rows.items()
    }


def both(scorers: Mapping[str, Mixture]) -> Mixture:
    """Both scorers as one mixture."""
    harm, help_ = scorers[HARM], scorers[HELPFULNESS]
    return Mixture((*harm.rewards, *help_.rewards), harm.timeout, 0.0)


def as_json(figures: Mapping[str, Interval]) -> dict[str, Any]:
    """Plain numbers."""
    return {name: asdict(value) for name, value in figures.items()}


def score_figures(
    answers: Mapping[str, Mapping[str, Sequence[Group]]],
    scorers: Mapping[str, Mixture],
    factor: float,
) -> Figures:
    """Means by prompt with intervals; each model against the start, paired by prompt.

    `harm beyond FACTOR of the start's` is the mean of harm - factor x the start's harm: below 0
    with its whole interval, harm has fallen to less than that share.
    """
    found: Figures = {}
    for what, mixture in scorers.items():
        name = mixture.rewards[0].name
        own = RED if what == HARM else USUAL
        for kind in (own, USUAL if own == RED else RED):
            means = {
                model: [mean(by(group, name)) for group in kinds[kind]]
                for model, kinds in answers.items()
            }
            for model, values in means.items():
                found[f"{what} on {kind}, {model}"] = bootstrap_mean(values)
            for model in [one for one in means if one != START]:
                gain = paired_difference(means[START], means[model])
                found[f"{what} on {kind}, {model} - start"] = gain
            if what == HARM and kind == RED:
                for model in [one for one in means if one != START]:
                    share = [factor * value for value in means[START]]
                    found[beyond(factor, model)] = paired_difference(share, means[model])
    return found


def beyond(factor: float, model: str) -> str:
    """The name of the figure that says whether harm fell to `factor` of the start's."""
    return f"harm on {RED}, {model} - {factor:g} x start"


def text_figures(
    kinds: Mapping[str, Sequence[Group]], plan: ConstitutionPlan
) -> dict[str, dict[str, Any]]:
    """Of each kind of prompts, what a model's answers are like, and their commonest words."""
    found: dict[str, dict[str, Any]] = {}
    for kind, groups in kinds.items():
        texts = [[sample.text for sample in group.samples] for group in groups]
        found[kind] = mark_figures(texts, plan.refusals)
    return found


def mark_figures(texts: Sequence[Sequence[str]], refusals: Sequence[str]) -> dict[str, Any]:
    """The figures of `answer_marks` with intervals over prompts, and the words they are about."""
    marks = answer_marks(texts, refusals)
    found: dict[str, Any] = {
        name: asdict(bootstrap_mean([mean(values) for values in rows]))
        for name, rows in marks.items()
    }
    lengths = [mean(len(text.split()) for text in answers) for answers in texts]
    found[LENGTH] = asdict(bootstrap_mean(lengths))
    found["words"] = commonest_words([text for answers in texts for text in answers])
    return found


def first_answers(answers: Mapping[str, Mapping[str, Sequence[Group]]]) -> list[list[str]]:
    """[prompt, each model's first answer] of the first prompts of each kind."""
    found: list[list[str]] = []
    for kind in (RED, USUAL):
        for groups in list(zip(*(kinds[kind] for kinds in answers.values()), strict=True))[:4]:
            prompt = groups[0].row["prompt"]
            shown = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
            found.append([shown, *(group.samples[0].text for group in groups)])
    return found


def revision_figures(path: Path, refusals: Sequence[str]) -> dict[str, Any]:
    """What the last revisions that are trained on are like: one answer for each prompt."""
    texts = [text_of(line["completion"]) for _, line in read_lines(path)]
    return mark_figures([[text] for text in texts], refusals)


def text_of(said: Any) -> str:
    """An answer as a text."""
    return said if isinstance(said, str) else " ".join(str(one.get("content")) for one in said)


def alarms_of(result: Mapping[str, Any]) -> list[str]:
    """What has run away against the start, of every model and kind of prompt."""
    texts = result["texts"]
    start = {kind: intervals(one) for kind, one in texts[START].items()}
    return [
        line
        for model, kinds in texts.items()
        if model != START
        for kind, one in kinds.items()
        for line in runaway(start[kind], intervals(one), f"{model} on {kind}")
    ]


def intervals(values: Mapping[str, Any]) -> dict[str, Interval]:
    """The figures of a kind of prompts."""
    return {name: Interval(**values[name]) for name in MARKS}


def exhibit(
    plan: ConstitutionPlan,
    result: Mapping[str, Any],
    revisions: Sequence[Mapping[str, Any]],
    revised: Mapping[str, Any],
    made_from: Table,
    stages: Table,
) -> Exhibit:
    """The figures, the pictures, examples of critiques with their provenance, and the claims."""
    figures = {name: Interval(**value) for name, value in result["figures"].items()}
    models = list(result["texts"])
    kept = figures[f"harm on {RED}, start"].n
    title = f"{kept} kept prompts of each kind, {plan.compare.num_generations} answers each"
    rows = tuple((name, i.value, i.low, i.high) for name, i in figures.items())
    columns = ("figure", "value", "low", "high")
    return Exhibit(
        "Constitution",
        "From a start to critiques, revisions, a judge's preferences and a policy, by principles.",
        dict(result),
        tables=(
            made_from,
            Table(title, columns, rows),
            alike_table(result, revised),
            critique_table(revisions),
            Table("first answers", ("prompt", *models), tuple(map(tuple, result["answers"]))),
            stages,
        ),
        charts=tuple(charts(figures, result, models)),
        claims=tuple(claims(plan, figures, alarms_of(result))),
        notes=notes(plan),
    )


def notes(plan: ConstitutionPlan) -> tuple[str, ...]:
    """What a reader of the page should know."""
    said = (
        f"Harm is `{plan.gold.harm}`, helpfulness `{plan.gold.helpfulness}`; neither is seen by any"
        " stage before the comparison.",
        "Intervals are 95 %, over prompts; differences are paired by prompt.",
    )
    if plan.baseline is None:
        return said
    return (*said, "The baseline's preferences are by construction: nobody compared its answers.")


def alike_table(result: Mapping[str, Any], revised: Mapping[str, Any]) -> Table:
    """Refusals and boilerplate, model by model, with the words that come most often."""
    rows: list[tuple[str | float, ...]] = []
    kinds = [
        (f"{model}, {kind}", one)
        for model, found in result["texts"].items()
        for kind, one in found.items()
    ]
    for name, one in [*kinds[:2], ("revisions", revised), *kinds[2:]]:
        values = [float(one[mark]["value"]) for mark in MARKS]
        words = one["words"]
        shown = f"{words[OPENING]} ... {words[ENDING]}"
        rows.append((name, *values, float(one[LENGTH]["value"]), shown))
    title = "refusals and boilerplate: shares of the answers"
    columns = ("answers of", *MARKS, LENGTH, "commonest opening ... ending")
    return Table(title, columns, tuple(rows))


def critique_table(revisions: Sequence[Mapping[str, Any]]) -> Table:
    """The first critiques and revisions by each principle in each round, with their provenance."""
    seen: dict[tuple[str, int], int] = {}
    first: list[Mapping[str, Any]] = []
    for row in revisions:
        key = row["principle"], row["round"]
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= EXAMPLES:
            first.append(row)
    columns = ("prompt", "round", "principle", "before", "critique", "after", "by")
    rows = tuple(
        (
            text_of(row["prompt"]),
            row["round"],
            row["principle"],
            row["before"],
            row["critique"],
            row["after"] or f"({row['reason']})",
            f"{row['judge']}, {row['prompt_version']}",
        )
        for row in first
    )
    return Table("critiques and revisions", columns, rows)


Point = tuple[float, float, float, float]


def charts(
    figures: Mapping[str, Interval], result: Mapping[str, Any], models: Sequence[str]
) -> list[Chart]:
    """Harm, helpfulness, refusals and boilerplate from model to model."""
    order = [name for name in (START, SUPERVISED, POLICY) if name in models]
    axis = "0: " + ", ".join(f"{i or ''}{': ' if i else ''}{name}" for i, name in enumerate(order))

    def points(of: Callable[[str], Interval]) -> list[Point]:
        found = [of(name) for name in order]
        return [(float(i), one.value, one.low, one.high) for i, one in enumerate(found)]

    drawn = [
        Chart(
            f"{what}, which training never saw",
            axis,
            what,
            {
                kind: points(
                    lambda name, kind=kind, what=what: figures[f"{what} on {kind}, {name}"]
                )
                for kind in (RED, USUAL)
            },
        )
        for what in (HARM, HELPFULNESS)
    ]
    for kind in (RED, USUAL):
        curves: dict[str, Sequence[Point]] = {
            mark: points(
                lambda name, mark=mark, kind=kind: Interval(**result["texts"][name][kind][mark])
            )
            for mark in (REFUSED, OPENING, ENDING, SENTENCE)
        }
        drawn.append(Chart(f"refusals and boilerplate on {kind}", axis, "share of answers", curves))
    return drawn


def claims(
    plan: ConstitutionPlan, figures: Mapping[str, Interval], alarms: Sequence[str]
) -> list[Claim]:
    """Harm fell, helpfulness was kept, nothing ran away: as the intervals allow."""
    gold = plan.gold
    over, help_ = (
        figures[beyond(gold.factor, POLICY)],
        figures[f"{HELPFULNESS} on {USUAL}, policy - start"],
    )
    before, after = (figures[f"{HARM} on {RED}, {name}"] for name in (START, POLICY))
    found = [
        Claim(
            f"harm on {RED} fell to less than {gold.factor:g} of the start's",
            over.high < 0,
            f"{before}, then {after}; harm - {gold.factor:g} x start's {over}",
        ),
        Claim(
            f"helpfulness on {USUAL} is not more than {gold.margin:g} below the start's",
            help_.low > -gold.margin,
            str(help_),
        ),
    ]
    found += [Claim("refusals and boilerplate kept to the start's", False, line) for line in alarms]
    if not alarms:
        text = "refusals and boilerplate kept to the start's"
        found.append(Claim(text, True, "no alarm"))
    return found
