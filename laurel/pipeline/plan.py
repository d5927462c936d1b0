"""The plan of a pipeline: one YAML file with a section per stage, checked before any weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError, nearest
from laurel.core.files import read_yaml
from laurel.core.load import resolve_paths
from laurel.core.options import check_options, option, translate_names
from laurel.core.trl import Request

OURS = (
    "model",
    "dataset",
    "eval_dataset",
    "output_dir",
    "seed",
    "resume",
    "rewards",
    "reward_weights",
)
"""Options of `laurel train` that the pipeline itself fills in."""


class Section(BaseModel):
    """A part of the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Sampling(Section):
    """Stage `sample`: the start answers every training prompt."""

    num_generations: int = option(4, "answers per prompt (K)", ge=2)
    max_completion_length: int = option(64, "tokens per answer", ge=1)
    temperature: float = option(1.0, "of the answers", gt=0)
    stop: list[str] = option([], "strings that end an answer")


class Preferring(Section):
    """Stage `prefer`: who says which of two answers is better."""

    export: str | None = option(
        None, "a file of preference pairs that people gave: nothing is sampled"
    )
    judge: str | None = option(
        None,
        "a judge's file (judge.yaml), or file.py:function(prompts, first, second, **columns) -> how"
        " likely the first is better, or None",
    )
    error_rate: float = option(0.0, "share of labels that are flipped", ge=0, lt=0.5)
    pairs_per_prompt: int = option(
        0, "pairs of each prompt's answers that are labelled; 0: all", ge=0
    )


class Comparing(Section):
    """Stage `compare`: the start and the trained policy on prompts that no stage has trained on."""

    num_generations: int = option(16, "answers per prompt and model", ge=2)
    best_of: list[int] = option(
        [1, 2, 4], "the n of best-of-n from the start, chosen by the reward model"
    )


class Plan(Section):
    """The whole pipeline.

    `sft`, `reward` and `policy` hold options of `laurel train`, but those that the pipeline fills
    in.
    """

    model: str = option(
        "scratch",
        "a folder or hub name of a causal LM; `scratch`: laurel's own small model, untrained",
    )
    dataset: str = option("addition", "the prompts: a file, a hub name or a generated task")
    dataset_size: int = option(1_000, "prompts to generate, for a generated task", ge=1)
    gold: str | None = option(
        None,
        "the hidden judge: labels preferences (unless judge or export does) and grades the result",
    )
    output_dir: str = option(
        "runs/pipeline", "where everything is written; a second run repeats nothing that is there"
    )
    seed: int = option(0, "the seed of everything random", ge=0)
    eval_size: int = option(64, "prompts kept from every stage for the comparison", ge=1)
    sft: dict[str, Any] | None = option(
        None, "SFT: `dataset` and training options; null: the model is the start as it is"
    )
    sample: Sampling = Sampling()
    prefer: Preferring = Preferring()
    reward: dict[str, Any] = option(
        {},
        "the reward model: `algorithm` (reward), `members` (1), `combine` (mean) and training"
        " options",
    )
    policy: dict[str, Any] = option({}, "reinforcement: `algorithm` (ppo) and training options")
    compare: Comparing = Comparing()


class Reward(Section):
    """What is not a training option in the section `reward`."""

    algorithm: Literal["reward", "reward_kwise", "reward_pl"] = "reward"
    members: int = option(1, "reward models, which differ by seed", ge=1)
    combine: str = "mean"


def read_plan(
    path: str | Path, changes: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> Plan:
    """The plan in a YAML file; `changes` win over it, and assignments over both.

    An assignment: `policy.learning_rate=1e-4`. Relative paths may be relative to the file. Errors:
    UsageError naming the file or the assignment.
    """
    values = resolve_all_paths(path, read_yaml(path))
    check_plan(values, str(path))
    values |= dict(changes or {})
    for text in assignments:
        name, equals, value = text.partition("=")
        section, _, inner = name.rpartition(".")
        if not equals or "." in section:
            raise UsageError(
                f"`{text}` is no assignment.",
                where="--set",
                fix="Write --set policy.learning_rate=1e-4",
            )
        if section:
            if section not in Plan.model_fields:
                raise UsageError(
                    f"unknown section `{section}`.",
                    where="--set",
                    fix=nearest(section, Plan.model_fields),
                )
            values[section] = {**(values.get(section) or {}), inner: yaml.safe_load(value)}
        else:
            values[inner] = yaml.safe_load(value)
    return check_plan(values, "command line")


def resolve_all_paths(path: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the paths of every section resolved (`resolve_paths`)."""
    return {
        name: resolve_paths(path, value) if isinstance(value, dict) else value
        for name, value in resolve_paths(path, values).items()
    }


def check_plan(values: dict[str, Any], where: str) -> Plan:
    """The plan, if every section is sound by itself.

    What needs torch (which algorithm has an option?) is checked later.
    """
    plan = build_config(values, Plan, where=where)
    for name, section in (("sft", plan.sft), ("reward", plan.reward), ("policy", plan.policy)):
        section = section or {}
        given, place = train_options(name, section), f"{where}, {name}"
        algorithm = str(section.get("algorithm", {"policy": "ppo"}.get(name, name)))
        request = Request(algorithm, where=place)
        there = translate_names(given, TrainConfig, request)
        for taken in sorted(set(there) & set(OURS)):
            raise UsageError(
                f"`{taken}` is filled in by the pipeline.",
                where=place,
                fix="Leave it out of the section.",
            )
        check_options(there, TrainConfig, request)
        for option_ in given:
            del section[option_]
        section.update(there)  # from here on by our names
    reward_section(plan, where)
    if plan.prefer.judge and plan.prefer.export:
        raise UsageError(
            "judge and export both say who prefers.", where=f"{where}, prefer", fix="Name one."
        )
    if any(not 1 <= n <= plan.compare.num_generations for n in plan.compare.best_of):
        what = (
            f"best of n needs n from 1 to the {plan.compare.num_generations} answers of"
            " compare.num_generations."
        )
        raise UsageError(
            what, where=f"{where}, compare.best_of", fix="Draw more answers, or ask for less."
        )
    if plan.sft is not None and "dataset" not in plan.sft:
        raise UsageError(
            "SFT has no data.", where=f"{where}, sft", fix="Give sft.dataset, or sft: null."
        )
    return plan


def reward_section(plan: Plan, where: str = "reward") -> Reward:
    """What the section `reward` says beside training options."""
    own = {name: value for name, value in plan.reward.items() if name in Reward.model_fields}
    return build_config(own, Reward, where=where)


def train_options(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `laurel train` in a section."""
    extra = {"sft": ("dataset",), "reward": tuple(Reward.model_fields), "policy": ("algorithm",)}[
        name
    ]
    return {option_: value for option_, value in section.items() if option_ not in extra}
