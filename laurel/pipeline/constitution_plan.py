"""The plan of `laurel constitution`: one YAML file, checked before any weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError, nearest
from laurel.core.files import read_yaml
from laurel.core.options import check_options, option, translate_names
from laurel.core.trl import Request
from laurel.measure.boilerplate import REFUSALS
from laurel.pipeline.constitution_text import HELPFULNESS, load_constitution
from laurel.pipeline.plan import OURS, Reward, Section

PATHS = ("model", "constitution", "judge", "critic", "red_team", "helpful", "dataset", "harm")
"""Options that may name a file beside the plan; also `gold.helpfulness`, see `placed`."""
TRAINED: Mapping[str, tuple[str, ...]] = {
    "sft": ("dataset",),
    "assistant": ("dataset",),
    "supervised": ("helpful",),
    "reward": tuple(Reward.model_fields),
    "policy": ("algorithm",),
    "baseline": ("algorithm",),
}
"""Sections of training options, and what else stands in them."""
ALGORITHM = {"policy": "ppo", "baseline": "dpo", "reward": "reward"}


class Gold(Section):
    """Scorers that no stage before the comparison sees: `module.function` or `FILE.py:function`."""

    harm: str = option(..., "how harmful an answer is, such as 0 or 1; higher is worse")
    helpfulness: str = option(..., "how helpful an answer is; higher is better")
    margin: float = option(0.05, "helpfulness may be so much below the start's", ge=0)
    factor: float = option(0.5, "harm is to fall to this share of the start's", gt=0, lt=1)


class Answering(Section):
    """Stage `sample`: the first answers, and all later ones."""

    max_completion_length: int = option(256, "tokens per answer", ge=1)
    temperature: float = option(1.0, "of the answers", gt=0)
    stop: list[str] = option([], "strings that end an answer")


class Revising(Section):
    """Stage `revise`: critiques and revisions by the critic."""

    rounds: int = option(
        4, "critiques and revisions of each answer, a principle drawn for each", ge=1
    )
    num_answers: int = option(1, "answers to each red-team prompt that are revised", ge=1)
    critique_tokens: int = option(200, "tokens of a critique", ge=1)
    revision_tokens: int = option(256, "tokens of a revision", ge=1)
    temperature: float = option(1.0, "of critiques and revisions", ge=0)
    stop: list[str] = option([], "strings that end a critique or a revision")


class Judging(Section):
    """Stage `judge`: pairs of the supervised model's answers, compared by principles."""

    num_generations: int = option(4, "answers to each prompt", ge=2)
    pairs_per_prompt: int = option(2, "pairs of them that are compared; 0: all", ge=0)
    principles_per_pair: int = option(
        1, "principles that each pair is compared by; their labels are averaged", ge=1
    )
    clamp: list[float] = option(
        [0.4, 0.6], "where a judge that reasons first has its labels cut off"
    )
    helpful: str | None = option(
        None,
        "people's preferences for helpfulness: a file of pairs, or FILE.py:function(model, seed);"
        " none: answers to helpful prompts are compared by the principles about helpfulness",
    )


class Ending(Section):
    """Stage `compare`: all models on prompts that no stage has trained on."""

    num_generations: int = option(8, "answers per prompt and model", ge=2)


class ConstitutionPlan(Section):
    """The whole plan. Sections of training hold options of `laurel train`."""

    model: str = option("scratch", "a folder or hub name of a causal LM")
    constitution: str | None = option(None, "a YAML file of principles; none: laurel's own")
    principles: list[str] = option([], "ids of the principles to use; none named: all")
    judge: str = option(..., "a judge's YAML file: compares answers")
    critic: str | None = option(
        None, "a judge's YAML file: writes critiques and revisions; none: the judge does"
    )
    red_team: str = option(..., "the prompts that provoke harm: a file or a hub name")
    helpful: str = option(..., "the prompts of ordinary use: a file or a hub name")
    gold: Gold
    output_dir: str = option(
        "runs/constitution", "where everything is written; a second run repeats nothing there"
    )
    seed: int = option(0, "the seed of everything random", ge=0)
    eval_size: int = option(
        64, "prompts of each kind kept from every stage for the comparison", ge=1
    )
    refusals: list[str] = option(
        list(REFUSALS), "regular expressions; an answer in which one is found is a refusal"
    )
    sft: dict[str, Any] | None = option(
        None, "the start: `dataset` and training options; null: the model as it is"
    )
    assistant: dict[str, Any] | None = option(
        None, "trains the judge and critic here: `dataset` and training options; null: they exist"
    )
    sample: Answering = Answering()
    revise: Revising = Revising()
    supervised: dict[str, Any] = option(
        {}, "SFT on revisions: `helpful` (demonstrations; none: the start's answers), options"
    )
    prefer: Judging = Judging()
    reward: dict[str, Any] = option({}, "the reward model: members, combine and training options")
    policy: dict[str, Any] = option({}, "reinforcement: `algorithm` (ppo) and training options")
    baseline: dict[str, Any] | None = option(
        None,
        "the cheap way, for comparison: `algorithm` (dpo) on first answer against first revision,"
        " preferences by construction; null: none",
    )
    compare: Ending = Ending()


def read_constitution_plan(
    path: str | Path, changes: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> ConstitutionPlan:
    """The plan in a YAML file; `changes` win over it, and assignments over both.

    Relative paths may be relative to the file. Errors: UsageError naming file or assignment.
    """
    values = placed(path, read_yaml(path))
    values |= dict(changes or {})
    for text in assignments:
        assign(values, text)
    return check_constitution_plan(values, str(path))


def assign(values: dict[str, Any], text: str) -> None:
    """Carry out `policy.learning_rate=1e-4` or `seed=1`."""
    name, equals, value = text.partition("=")
    section, _, inner = name.rpartition(".")
    if not equals or "." in section:
        fix = "Write --set policy.learning_rate=1e-4"
        raise UsageError(f"`{text}` is no assignment.", where="--set", fix=fix)
    if (section or inner) not in ConstitutionPlan.model_fields:
        fix = nearest(section or inner, ConstitutionPlan.model_fields)
        raise UsageError(f"unknown option `{section or inner}`.", where="--set", fix=fix)
    if section:
        values[section] = {**(values.get(section) or {}), inner: yaml.safe_load(value)}
    else:
        values[inner] = yaml.safe_load(value)


def placed(path: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values; a path that is there beside the file, and not in this folder, is made whole."""
    root = Path(path).resolve().parent

    def whole(name: str, value: Any, section: str = "") -> Any:
        if isinstance(value, dict):
            return {inner: whole(inner, one, name) for inner, one in value.items()}
        names = (*PATHS, HELPFULNESS) if section == "gold" else PATHS
        if name not in names or not isinstance(value, str):
            return value
        file, colon, function = value.partition(":") if ".py:" in value else (value, "", "")
        if Path(file).exists() or not (root / file).exists():
            return value
        return f"{root / file}{colon}{function}"

    return {name: whole(name, value) for name, value in values.items()}


def check_constitution_plan(values: dict[str, Any], where: str) -> ConstitutionPlan:
    """The plan, if every section is sound by itself and the constitution has what it names."""
    plan = build_config(values, ConstitutionPlan, where=where)
    for name, extra in TRAINED.items():
        section: dict[str, Any] | None = getattr(plan, name)
        if section is not None:
            check_training(name, section, extra, where)
    for name in ("sft", "assistant"):
        section = getattr(plan, name)
        if section is not None and "dataset" not in section:
            fix = f"Give {name}.dataset, or {name}: null."
            raise UsageError("no data is named.", where=f"{where}, {name}", fix=fix)
    law = load_constitution(plan.constitution, plan.principles)
    low_high = plan.prefer.clamp
    if len(low_high) != 2 or not 0 <= low_high[0] <= 0.5 <= low_high[1] <= 1:
        fix = "Two numbers around .5, such as [0.4, 0.6]."
        raise UsageError("clamp is no interval.", where=f"{where}, prefer.clamp", fix=fix)
    few = len(law.principles)
    for about in {one.about for one in law.principles}:
        few = min(few, len(law.about(about)))
    if plan.prefer.principles_per_pair > few:
        what = f"only {few} principles to draw {plan.prefer.principles_per_pair} from."
        raise UsageError(what, where=f"{where}, prefer.principles_per_pair")
    if plan.prefer.helpful is None and not law.about(HELPFULNESS):
        what = "nobody says which answer is more helpful."
        fix = "Give prefer.helpful, or a principle with `about: helpfulness`."
        raise UsageError(what, where=f"{where}, prefer", fix=fix)
    return plan


def check_training(name: str, section: dict[str, Any], extra: tuple[str, ...], where: str) -> None:
    """Training options of a section, from here on by our names."""
    given = {key: value for key, value in section.items() if key not in extra}
    place = f"{where}, {name}"
    request = Request(str(section.get("algorithm", ALGORITHM.get(name, "sft"))), where=place)
    there = translate_names(given, TrainConfig, request)
    for taken in sorted(set(there) & set(OURS)):
        fix = "Leave it out of the section."
        raise UsageError(f"`{taken}` is filled in by the plan.", where=place, fix=fix)
    check_options(there, TrainConfig, request)
    for key in given:
        del section[key]
    section.update(there)


def training(plan: ConstitutionPlan, name: str) -> dict[str, Any]:
    """The options of `laurel train` in a section."""
    section: dict[str, Any] = getattr(plan, name) or {}
    return {key: value for key, value in section.items() if key not in TRAINED[name]}
