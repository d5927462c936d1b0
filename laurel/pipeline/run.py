"""`pipeline`: SFT, answers, preferences, reward model, reinforcement, comparison.

Each stage is an artefact kept by its content.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.files import read_json, write_atomic
from laurel.core.run import Run
from laurel.data.rows import read_rows
from laurel.data.source import Row, load_rows
from laurel.judge.options import files_of
from laurel.pipeline import stages
from laurel.pipeline.compare import compare, exhibit
from laurel.pipeline.plan import Plan, reward_section, train_options
from laurel.pipeline.runner import Runner, check_section
from laurel.pipeline.store import Artefact, source
from laurel.report.exhibit import Exhibit, Table
from laurel.report.exhibit_page import write_page
from laurel.reward.mixture import Mixture, load_rewards
from laurel.rollout.source import LABELS, PAIRS
from laurel.train.algorithms import ALGORITHMS
from laurel.train.loop import train
from laurel.train.options import resolve
from laurel.train.starter import STARTERS, build_starter

FILES = {PAIRS: "pairs.jsonl", LABELS: "labels.jsonl"}
"""source of a row of the table that learns from preferences: the file of stage `prefer` that it
reads.
"""


class Pipeline(Runner):
    """One plan being carried out."""

    def __init__(self, plan: Plan, *, quiet: bool = False) -> None:
        super().__init__(plan.output_dir, quiet=quiet)
        self.plan = plan
        self.algorithm = plan.policy.get("algorithm", "ppo")
        self.check()

    def check(self) -> None:
        """Every section as its stage will use it, and every name in it, before the first weight."""
        plan, name = self.plan, self.algorithm
        if name not in ALGORITHMS:
            resolve(name, TrainConfig())  # says which names there are
        source = ALGORITHMS[name].source
        if not source.prompts and source not in FILES:
            what = f"`{name}` learns from other data than prompts or preferences."
            raise UsageError(
                what, where="policy.algorithm", fix="Take one such as ppo, grpo, raft or dpo."
            )
        rewards = {"rewards": ["model:"]} if self.learns_reward else {}
        check_section("policy", name, {**train_options("policy", plan.policy), **rewards})
        if self.learns_reward:
            options = train_options("reward", plan.reward)
            check_section("reward", reward_section(plan).algorithm, options)
        if plan.sft is not None:
            check_section("sft", "sft", train_options("sft", plan.sft))
        rows = read_rows(
            plan.dataset, "rl", seed=plan.seed, size=plan.dataset_size, by="the pipeline"
        )
        self.gold = load_rewards(
            [plan.gold] if plan.gold else None, None, rows, max_failed_fraction=0.0
        )
        tasks = {str(row.columns["task"]) for row in rows} if plan.gold is None else {plan.gold}
        # several verifiers cannot watch as one
        self.watched = tasks.pop() if len(tasks) == 1 else None
        if plan.prefer.export:
            read_rows(plan.prefer.export, "comparison", option="export")
        if plan.prefer.judge:
            judge_source(plan.prefer.judge)

    @property
    def learns_reward(self) -> bool:
        """The policy is trained on a learned reward, not on the preferences themselves."""
        return ALGORITHMS[self.algorithm].source not in FILES

    def run_stages(self) -> dict[str, Any]:
        """The stages one after the other."""
        began, plan = time.perf_counter(), self.plan
        prompts = self.prompts()
        rows = load_rows(str(prompts.folder / "train.jsonl"))
        held_out = load_rows(str(prompts.folder / "held.jsonl"))
        start = self.start()
        preferred, pairs = self.preferences(prompts, start, rows)
        rewards = self.reward_models(start, preferred, pairs) if self.learns_reward else []
        policy = self.policy(prompts, start, preferred, pairs, rewards)
        gold, proxy, judges = self.judges(rewards, held_out)
        models = {"start": start[1], "policy": policy.digest}
        parts = self.compared(models, prompts, rewards)
        folders = {"start": Path(start[0]), "policy": policy.folder / "model"}
        with self.counted("prompts", 2 * len(held_out)) as watch:
            final = self.stage(
                "compare",
                parts,
                lambda folder: compare(folder, plan, folders, held_out, judges, gold, proxy, watch),
            )
        result = read_json(final.folder / "result.json")
        shown = self.shown(result, policy, rewards, gold, proxy)
        return self.finish(result, shown, time.perf_counter() - began)

    def prompts(self) -> Artefact:
        """The prompts to train on, and those that are held out."""
        plan = self.plan
        parts = {
            "dataset": source(plan.dataset),
            "size": plan.dataset_size,
            "held": plan.eval_size,
            "seed": plan.seed,
        }
        return self.stage("prompts", parts, lambda folder: stages.split_prompts(folder, plan))

    def compared(
        self, models: Mapping[str, Any], prompts: Artefact, rewards: list[Artefact]
    ) -> dict[str, Any]:
        """What the comparison depends on, by content."""
        plan = self.plan
        return {
            "models": list(models.values()),
            "rewards": [one.digest for one in rewards],
            "combine": reward_section(plan).combine,
            "prompts": prompts.digest,
            "gold": source(plan.gold),
            "seed": plan.seed,
            "sample": plan.sample,
            "compare": plan.compare,
        }

    def start(self) -> tuple[str, Any]:
        """(folder or name, content) of the model that answers and is trained.

        That is the model after SFT, or as given.
        """
        plan = self.plan
        if plan.sft is None:
            folder = (
                str(build_starter(plan.model, plan.dataset, plan.seed, train))
                if plan.model in STARTERS
                else plan.model
            )
            return folder, source(folder)
        dataset = str(plan.sft["dataset"])
        options = {**plan.sft, "model": plan.model, "dataset": dataset}
        made = self.trained(
            "sft",
            "sft",
            options,
            {"model": source(plan.model), "dataset": source(dataset)},
            plan.seed,
        )
        return str(made.folder / "model"), made.digest

    def preferences(
        self, prompts: Artefact, start: tuple[str, Any], rows: list[Row]
    ) -> tuple[Any, Path]:
        """(content of the preferences, the file of pairs): a given export, or made from answers."""
        plan = self.plan
        if plan.prefer.export:
            return source(plan.prefer.export), Path(plan.prefer.export)
        parts = {
            "model": start[1],
            "prompts": prompts.digest,
            "how": plan.sample,
            "seed": plan.seed,
        }
        with self.counted("prompts answered", len(rows)) as watch:
            answers = self.stage(
                "sample",
                parts,
                lambda folder: stages.answer(folder, start[0], rows, plan.sample, plan.seed, watch),
            )
        judge = (
            {"judge": judge_source(plan.prefer.judge)}
            if plan.prefer.judge
            else {"gold": source(plan.gold)}
        )
        mixture = None if plan.prefer.judge else self.gold
        groups = stages.as_groups(answers.folder / "answers.jsonl")
        parts = {"answers": answers.digest, "how": plan.prefer, "seed": plan.seed, **judge}
        made = self.stage(
            "prefer",
            parts,
            lambda folder: stages.prefer(folder, groups, plan.prefer, mixture, plan.seed),
        )
        self.console.print(
            "{pairs} pairs, {flipped} of them flipped; {ties} ties and {unjudged} unjudged are"
            " dropped".format(**read_json(made.folder / "facts.json"))
        )
        return made.digest, made.folder / FILES[PAIRS]

    def reward_models(self, start: tuple[str, Any], preferred: Any, pairs: Path) -> list[Artefact]:
        """One reward model per member of the ensemble, on the start's body."""
        how = reward_section(self.plan)
        options = {
            **train_options("reward", self.plan.reward),
            "model": start[0],
            "dataset": str(pairs),
        }
        inputs = {"model": start[1], "dataset": preferred}
        return [
            self.trained("reward", how.algorithm, options, inputs, self.plan.seed + i)
            for i in range(how.members)
        ]

    def named(self, rewards: list[Artefact]) -> list[str]:
        """The learned reward and the hidden judge, as `laurel train` names them."""
        folders = "+".join(str(one.folder / "model") for one in rewards)
        learned = f"model:{folders}" + (
            f":{reward_section(self.plan).combine}" if len(rewards) > 1 else ""
        )
        return [learned, self.watched] if self.watched else [learned]

    def policy(
        self,
        prompts: Artefact,
        start: tuple[str, Any],
        preferred: Any,
        pairs: Path,
        rewards: list[Artefact],
    ) -> Artefact:
        """Reinforcement from the learned reward, or learning from the pairs themselves.

        The hidden judge only watches, with weight 0.
        """
        options = {"eval_size": 0, **train_options("policy", self.plan.policy), "model": start[0]}
        inputs: dict[str, Any] = {"model": start[1]}
        if self.learns_reward:
            names = self.named(rewards)
            options |= {
                "dataset": str(prompts.folder / "train.jsonl"),
                "rewards": names,
                "reward_weights": [1.0, 0.0][: len(names)],
            }
            inputs |= {
                "dataset": prompts.digest,
                "rewards": [[one.digest for one in rewards], source(self.plan.gold)],
            }
            inputs["combine"] = reward_section(self.plan).combine
        else:
            options["dataset"] = str(pairs.parent / FILES[ALGORITHMS[self.algorithm].source])
            inputs["dataset"] = preferred
        return self.trained("policy", self.algorithm, options, inputs, self.plan.seed)

    def judges(self, rewards: list[Artefact], held_out: list[Row]) -> tuple[str, str, Mixture]:
        """(name of the gold, of the learned reward or "", both as one mixture)."""
        gold = self.gold.rewards[0].name
        if not rewards:
            return gold, "", self.gold
        learned = load_rewards(
            self.named(rewards)[:1], None, held_out, max_failed_fraction=0.0
        ).rewards
        return (
            gold,
            learned[0].name,
            Mixture((*learned, *self.gold.rewards), self.gold.timeout, 0.0),
        )

    def made_from(self, rewards: list[Artefact], policy: Artefact, gold: str) -> Table:
        """Which model, which data, who prefers, and how good the reward models are."""
        plan = self.plan
        who = (
            plan.prefer.export
            or plan.prefer.judge
            or f"{gold}, {plan.prefer.error_rate:.0%} of the labels flipped"
        )
        rows = [
            ("model", plan.model),
            ("dataset", plan.dataset),
            ("who prefers", who),
            ("the hidden judge", gold),
        ]
        for reward in rewards:
            lines = [
                line
                for line in Run(reward.folder).facts.get("held_out", [])
                if line.startswith("accuracy")
            ]
            rows.append(
                (
                    f"reward model {reward.folder.name}, held out",
                    " ".join(lines[0].split()) if lines else "no pair was held out",
                )
            )
        rows.append(("policy", f"{self.algorithm}, {policy.folder.name}"))
        return Table("made from", ("what", "which"), tuple(rows))

    def shown(
        self,
        result: Mapping[str, Any],
        policy: Artefact,
        rewards: list[Artefact],
        gold: str,
        proxy: str,
    ) -> Exhibit:
        """What was found, as tables, charts and claims."""
        return exhibit(
            self.plan,
            result,
            Run(policy.folder).metrics(),
            gold,
            proxy,
            Table("stages", ("stage", "folder", "", "seconds"), tuple(self.stages)),
            self.made_from(rewards, policy, gold),
        )

    def finish(self, result: Mapping[str, Any], shown: Exhibit, seconds: float) -> dict[str, Any]:
        """Write plan.yaml, the page and summary.json; print the tables and claims."""
        plan, page = self.root / "plan.yaml", self.root / "report.html"
        values = self.plan.model_dump()
        write_atomic(plan, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        write_page(shown, page, command=f"laurel pipeline {plan}")
        summary = {
            "figures": result["figures"],
            "stages": {folder: how for _, folder, how, _ in self.stages},
            "seconds": round(seconds, 1),
        }
        write_atomic(self.root / "summary.json", json.dumps(summary, indent=1) + "\n")
        self.show(shown.tables[:3], shown.claims, page, seconds)
        return summary


def judge_source(name: str) -> Any:
    """What a judge's name stands for, by content; UsageError for a file that is wrong."""
    if not stages.is_judge_file(name):
        return source(name)
    return [source(str(path)) for path in files_of(name)]


def pipeline(plan: Plan, *, quiet: bool = False) -> dict[str, Any]:
    """Carry out a plan; returns what it writes to output_dir/summary.json."""
    return Pipeline(plan, quiet=quiet).run()
