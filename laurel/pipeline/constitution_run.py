"""`laurel constitution`: principles in words -> revisions, preferences, a policy, a comparison.

    start -> answers -> (critique, revision) x n -> supervised model -> pairs -> judge
          -> reward model -> policy -> comparison with the start

Both stages of Bai et al. 2022, arXiv:2212.08073. Each step is an artefact kept by its content.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from laurel.core.errors import UsageError
from laurel.core.files import read_json, read_lines, write_atomic
from laurel.core.run import Run
from laurel.data.rows import read_rows
from laurel.data.source import Row, load_rows
from laurel.data.split import split_rows
from laurel.judge.options import JudgeConfig, read_judge
from laurel.judge.template import load_prompt
from laurel.pipeline import constitution_stages as stages
from laurel.pipeline.constitution_compare import (
    BASELINE,
    POLICY,
    RED,
    START,
    SUPERVISED,
    USUAL,
    compare_models,
    exhibit,
    revision_figures,
)
from laurel.pipeline.constitution_plan import ConstitutionPlan, training
from laurel.pipeline.constitution_text import HARM, HELPFULNESS, load_constitution
from laurel.pipeline.plan import Reward, Sampling
from laurel.pipeline.runner import Runner, check_section
from laurel.pipeline.stages import answer, write_rows
from laurel.pipeline.store import Artefact, source
from laurel.report.exhibit import Claim, Table
from laurel.report.exhibit_page import write_page
from laurel.reward.mixture import load_rewards
from laurel.rollout.source import PAIRS
from laurel.train.algorithms import ALGORITHMS

WIRE = (
    "model",
    "url",
    "api_key",
    "prompt",
    "panel",
    "concurrency",
    "requests_per_minute",
    "timeout",
    "retries",
    "patience",
    "cache",
    "price",
)
"""Options of a judge that say how it is reached; what else they name counts by its content."""
KINDS = {"red": RED, "helpful": USUAL}
Model = tuple[str, Any]
"""(folder, content) of a model."""


class ConstitutionRun(Runner):
    """One plan being carried out."""

    def __init__(self, plan: ConstitutionPlan, *, quiet: bool = False) -> None:
        super().__init__(plan.output_dir, quiet=quiet)
        self.plan = plan
        self.law = load_constitution(plan.constitution, plan.principles)
        self.reward = Reward(**{k: v for k, v in plan.reward.items() if k in Reward.model_fields})
        self.algorithm = str(plan.policy.get("algorithm", "ppo"))
        self.check()

    # before any weight

    def check(self) -> None:
        """Every section as its stage will use it, and every file in it."""
        plan = self.plan
        name = self.algorithm
        if name not in ALGORITHMS or not ALGORITHMS[name].source.prompts:
            what = f"`{name}` does not learn from a reward."
            raise UsageError(what, where="policy.algorithm", fix="Take ppo, grpo or raft.")
        check_section("policy", name, {**training(plan, "policy"), "rewards": ["model:"]})
        check_section("reward", self.reward.algorithm, training(plan, "reward"))
        for name in ("sft", "assistant", "supervised"):
            check_section(name, "sft", training(plan, name))
        if plan.baseline is not None:
            cheap = str(plan.baseline.get("algorithm", "dpo"))
            if cheap not in ALGORITHMS or ALGORITHMS[cheap].source is not PAIRS:
                what = f"`{cheap}` does not learn from pairs."
                raise UsageError(what, where="baseline.algorithm", fix="Take dpo.")
            check_section("baseline", cheap, training(plan, "baseline"))
        self.judges = {"judge": self.judge_of(plan.judge, "judge")}
        self.judges["critic"] = self.judge_of(plan.critic or plan.judge, "critic")
        if not self.judges["judge"].compares and self.judges["judge"].form != "score":
            what = "the judge does not compare."
            raise UsageError(what, where=plan.judge, fix="Take form: pair, levels or score.")
        self.read_prompts()
        self.check_data()

    def read_prompts(self) -> None:
        """The prompts of both kinds and the scorers, as the stages will find them."""
        plan = self.plan
        self.rows = {
            "red": read_rows(plan.red_team, "rl", option="red_team"),
            "helpful": read_rows(plan.helpful, "rl", option="helpful"),
        }
        for name, rows in self.rows.items():
            if len(rows) <= plan.eval_size:
                what = f"{len(rows)} prompts, and {plan.eval_size} are to be kept."
                raise UsageError(what, where=f"{name} prompts", fix="Lower eval_size.")
        every = [row for rows in self.rows.values() for row in rows]
        named = {HARM: plan.gold.harm, HELPFULNESS: plan.gold.helpfulness}
        self.gold = {
            what: load_rewards([name], None, every, max_failed_fraction=0.0)
            for what, name in named.items()
        }

    def check_data(self) -> None:
        """Files of rows that the plan names; what a function makes is seen when it is made."""
        plan = self.plan
        for name, section in (("sft", plan.sft), ("assistant", plan.assistant)):
            if section is not None and ".py:" not in str(section["dataset"]):
                read_rows(str(section["dataset"]), "sft", option=f"{name}.dataset")
        shown = plan.supervised.get("helpful")
        if shown and ".py:" not in shown:
            read_rows(shown, "sft", option="supervised.helpful")
        if plan.prefer.helpful and ".py:" not in plan.prefer.helpful:
            read_rows(plan.prefer.helpful, "comparison", option="prefer.helpful")

    def judge_of(self, path: str, role: str) -> JudgeConfig:
        """A judge's file, checked; where the plan trains the assistant, its folder comes later."""
        if self.plan.assistant is None:
            config = read_judge(path)
        else:
            config = read_judge(path, {"model": str(Path(path).parent.resolve())})
            given = yaml.safe_load(Path(path).read_text()) or {}
            if given.get("model") or given.get("url") or given.get("panel"):
                what = "it names a model, and the plan trains one (section assistant)."
                raise UsageError(what, where=f"{role} {path}", fix="Leave one of them out.")
        if not config.panel:
            load_prompt(config.prompt or config.form)
        return config

    # the stages

    def run_stages(self) -> dict[str, Any]:
        """The stages one after the other."""
        began, plan = time.perf_counter(), self.plan
        prompts = self.prompts()
        start = self.start()
        self.assist(start)
        revised = self.revised(prompts, start)
        supervised = self.supervised(prompts, start, revised)
        judged = self.judged(prompts, supervised)
        rewards = self.reward_models(supervised, judged)
        policy = self.policy(prompts, supervised, rewards)
        models = {START: start, SUPERVISED: supervised, POLICY: of(policy)}
        if plan.baseline is not None:
            models[BASELINE] = of(self.baseline(start, revised))
        final = self.compared(prompts, models)
        result = read_json(final.folder / "result.json")
        return self.finish(result, revised, judged, rewards, time.perf_counter() - began)

    def prompts(self) -> Artefact:
        """Prompts of both kinds to train on, and those that are kept."""
        plan = self.plan
        parts = {
            "red": source(plan.red_team),
            "helpful": source(plan.helpful),
            "held": plan.eval_size,
            "seed": plan.seed,
        }

        def build(folder: Path) -> list[str]:
            both: list[dict[str, Any]] = []
            for name, rows in self.rows.items():
                kept, held = split_rows(rows, plan.eval_size, plan.seed)
                write_rows(folder / f"{name}.jsonl", [dict(row.columns) for row in kept])
                write_rows(folder / f"held-{name}.jsonl", [dict(row.columns) for row in held])
                both += [dict(row.columns) for row in kept]
            write_rows(folder / "train.jsonl", both)
            names = [f"{front}{name}.jsonl" for name in self.rows for front in ("", "held-")]
            return [*names, "train.jsonl"]

        return self.stage("prompts", parts, build)

    def data(self, section: str, name: str, model: Model) -> tuple[str, Any]:
        """(file, content) of rows: a file of the user's, or what FILE.py:function makes."""
        if ".py:" not in name:
            return name, source(name)
        parts = {
            "made by": source(name),
            "model": model[1],
            "seed": self.plan.seed,
            "constitution": self.law.title,
            "prompt": source(self.judges["judge"].prompt),
        }

        def build(folder: Path) -> list[str]:
            write_rows(folder / "rows.jsonl", stages.made_rows(name, model[0], self.plan.seed))
            return ["rows.jsonl"]

        made = self.stage(f"{section}-data", parts, build)
        return str(made.folder / "rows.jsonl"), made.digest

    def sft(self, name: str, model: Model, data: tuple[str, Any]) -> Artefact:
        """A stage of supervised training."""
        options = {**training(self.plan, name), "model": model[0], "dataset": data[0]}
        inputs = {"model": model[1], "dataset": data[1]}
        return self.trained(name, "sft", options, inputs, self.plan.seed)

    def start(self) -> Model:
        """The model that answers first: after SFT, or as given."""
        plan = self.plan
        given = (plan.model, source(plan.model))
        if plan.sft is None:
            return given
        return of(self.sft("sft", given, self.data("sft", str(plan.sft["dataset"]), given)))

    def assist(self, start: Model) -> None:
        """Train the judge and critic, where the plan says how; else they are there."""
        plan = self.plan
        self.author = {
            role: config.name or "+".join(Path(one).stem for one in config.panel)
            for role, config in self.judges.items()
        }
        if plan.assistant is None:
            return
        given = (plan.model, source(plan.model))
        data = self.data("assistant", str(plan.assistant["dataset"]), start)
        made = self.sft("assistant", given, data)
        folder = str(made.folder / "model")
        self.judges = {
            role: config.model_copy(update={"model": folder})
            for role, config in self.judges.items()
        }
        self.author = dict.fromkeys(self.judges, made.folder.name)

    def answers(self, name: str, model: Model, file: Path, count: int) -> Artefact:
        """A model's answers to the prompts of a file."""
        plan, rows = self.plan, load_rows(str(file))
        how = Sampling(
            num_generations=max(2, count),
            max_completion_length=plan.sample.max_completion_length,
            temperature=plan.sample.temperature,
            stop=plan.sample.stop,
        )
        parts = {"model": model[1], "prompts": source(str(file)), "how": how, "seed": plan.seed}
        with self.counted("prompts answered", len(rows)) as watch:
            return self.stage(
                name,
                parts,
                lambda folder: answer(folder, model[0], rows, how, plan.seed, watch),
            )

    def revised(self, prompts: Artefact, start: Model) -> Artefact:
        """First answers to the red-team prompts, and their critiques and revisions."""
        plan, critic = self.plan, self.judges["critic"]
        first = self.answers("sample", start, prompts.folder / "red.jsonl", plan.revise.num_answers)
        file = first.folder / "answers.jsonl"
        parts = {
            "answers": first.digest,
            "critic": judge_content(critic),
            "constitution": self.law,
            "how": plan.revise,
            "seed": plan.seed,
        }
        total = len(list(stages.each_answer(file, plan.revise.num_answers)))
        with self.counted("answers revised", total) as watch:
            made = self.stage(
                "revise",
                parts,
                lambda folder: stages.revise(
                    folder,
                    file,
                    critic,
                    self.author["critic"],
                    self.law,
                    plan.revise,
                    plan.seed,
                    watch,
                ),
            )
        facts = read_json(made.folder / "facts.json")
        self.console.print(
            "{revised} of {answers} answers revised, {failed} failed, {unchanged} left as they"
            " were".format(**facts)
        )
        return made

    def supervised(self, prompts: Artefact, start: Model, revised: Artefact) -> Model:
        """SFT on the last revisions, mixed with helpful demonstrations."""
        name = self.plan.supervised.get("helpful")
        if name:
            file, content = self.data("helpful", str(name), start)
            shown = [dict(row.columns) for row in read_rows(file, "sft")]
        else:
            own = self.answers("help", start, prompts.folder / "helpful.jsonl", 1)
            content = own.digest
            every = stages.each_answer(own.folder / "answers.jsonl", 1)
            shown = [
                {"prompt": prompt, "completion": stages.reply_as(prompt, text)}
                for _, prompt, text in every
                if text.strip()
            ]
        parts = {"revised": revised.digest, "helpful": content}
        final = revised.folder / "final.jsonl"
        mixed = self.stage("mix", parts, lambda folder: stages.supervise(folder, final, shown))
        self.console.print(
            "{revisions} revisions, {helpful} helpful demonstrations".format(
                **read_json(mixed.folder / "facts.json")
            )
        )
        data = (str(mixed.folder / "train.jsonl"), mixed.digest)
        return of(self.sft("supervised", start, data))

    def judged(self, prompts: Artefact, model: Model) -> Artefact:
        """Pairs of the supervised model's answers, compared by principles; and people's pairs."""
        plan, how, judge = self.plan, self.plan.prefer, self.judges["judge"]
        facts = {"same": 0}
        pairs, answers = self.pairs(prompts, model, "red", facts)
        more: Sequence[Row] = ()
        if how.helpful:
            given, content = self.data("preferences", how.helpful, model)
            more = read_rows(given, "comparison")
        else:
            others, content = self.pairs(prompts, model, "helpful", facts)
            pairs += others
        parts = {
            "answers": answers,
            "helpful": content,
            "judge": judge_content(judge),
            "constitution": self.law,
            "how": how,
            "seed": plan.seed,
        }
        with self.counted("pairs judged", len(pairs)) as watch:
            made = self.stage(
                "judge",
                parts,
                lambda folder: stages.judge_pairs(
                    folder,
                    pairs,
                    judge,
                    self.author["judge"],
                    how,
                    [row.columns for row in more],
                    dict(facts),
                    watch,
                ),
            )
        self.console.print(
            "{kept} pairs judged, {dropped} dropped for want of a verdict, {same} equal; {given}"
            " given".format(**read_json(made.folder / "facts.json"))
        )
        return made

    def pairs(
        self, prompts: Artefact, model: Model, kind: str, facts: dict[str, int]
    ) -> tuple[list[dict[str, Any]], Any]:
        """Pairs of a model's answers to one kind of prompts, and the content of these."""
        how, about = self.plan.prefer, {"red": HARM, "helpful": HELPFULNESS}[kind]
        own = self.answers("pairs", model, prompts.folder / f"{kind}.jsonl", how.num_generations)
        file = own.folder / "answers.jsonl"
        drawn = stages.drawn_pairs(file, self.law.about(about), how, self.plan.seed, facts)
        return drawn, own.digest

    def reward_models(self, model: Model, judged: Artefact) -> list[Artefact]:
        """One reward model per member, on the supervised model's body."""
        options = {
            **training(self.plan, "reward"),
            "model": model[0],
            "dataset": str(judged.folder / "preferences.jsonl"),
        }
        inputs = {"model": model[1], "dataset": judged.digest}
        return [
            self.trained("reward", self.reward.algorithm, options, inputs, self.plan.seed + i)
            for i in range(self.reward.members)
        ]

    def policy(self, prompts: Artefact, model: Model, rewards: list[Artefact]) -> Artefact:
        """Reinforcement from the learned reward alone, on the prompts of both kinds."""
        folders = "+".join(str(one.folder / "model") for one in rewards)
        combine = f":{self.reward.combine}" if len(rewards) > 1 else ""
        options = {
            "eval_size": 0,
            **training(self.plan, "policy"),
            "model": model[0],
            "dataset": str(prompts.folder / "train.jsonl"),
            "rewards": [f"model:{folders}{combine}"],
        }
        inputs = {
            "model": model[1],
            "dataset": prompts.digest,
            "rewards": [[one.digest for one in rewards], combine],
        }
        return self.trained("policy", self.algorithm, options, inputs, self.plan.seed)

    def baseline(self, start: Model, revised: Artefact) -> Artefact:
        """The cheap way: the first revision preferred to the answer by construction."""
        options = {
            **training(self.plan, "baseline"),
            "model": start[0],
            "dataset": str(revised.folder / "first.jsonl"),
        }
        inputs = {"model": start[1], "dataset": revised.digest}
        algorithm = str((self.plan.baseline or {}).get("algorithm", "dpo"))
        return self.trained("baseline", algorithm, options, inputs, self.plan.seed)

    def compared(self, prompts: Artefact, models: Mapping[str, Model]) -> Artefact:
        """All models on the prompts that were kept, by the hidden scorers."""
        plan = self.plan
        parts = {
            "models": {name: content for name, (_, content) in models.items()},
            "prompts": prompts.digest,
            "gold": plan.gold,
            "scorers": [source(plan.gold.harm), source(plan.gold.helpfulness)],
            "sample": plan.sample,
            "compare": plan.compare,
            "refusals": plan.refusals,
            "seed": plan.seed,
        }
        rows = {
            kind: load_rows(str(prompts.folder / f"held-{name}.jsonl"))
            for name, kind in KINDS.items()
        }
        folders = {name: Path(folder) for name, (folder, _) in models.items()}
        with self.counted("prompts", len(models) * sum(map(len, rows.values()))) as watch:
            return self.stage(
                "compare",
                parts,
                lambda folder: compare_models(folder, plan, folders, rows, self.gold, watch),
            )

    # the end

    def made_from(self, revised: Artefact, judged: Artefact, rewards: list[Artefact]) -> Table:
        """Which model, whose principles, who judged, and what came of it."""
        plan = self.plan
        rows = [
            ("model", plan.model),
            ("constitution", self.law.title),
            ("principles", ", ".join(one.id for one in self.law.principles)),
            ("critic", self.author["critic"]),
            ("judge", self.author["judge"]),
            ("red-team prompts", plan.red_team),
            ("helpful prompts", plan.helpful),
            ("revise", said(read_json(revised.folder / "facts.json"))),
            ("judge's pairs", said(read_json(judged.folder / "facts.json"))),
        ]
        for one in rewards:
            held = [
                line for line in Run(one.folder).facts.get("held_out", []) if line.startswith("acc")
            ]
            rows.append((one.folder.name, " ".join(held[0].split()) if held else "none held out"))
        return Table("made from", ("what", "which"), tuple(rows))

    def finish(
        self,
        result: Mapping[str, Any],
        revised: Artefact,
        judged: Artefact,
        rewards: list[Artefact],
        seconds: float,
    ) -> dict[str, Any]:
        """Write plan.yaml, the page and summary.json; print the tables and claims."""
        path, page = self.root / "plan.yaml", self.root / "report.html"
        values = self.plan.model_dump()
        write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        texts = revision_figures(revised.folder / "final.jsonl", self.plan.refusals)
        revisions = [line for _, line in read_lines(revised.folder / "revisions.jsonl")]
        shown = exhibit(
            self.plan,
            result,
            revisions,
            texts,
            self.made_from(revised, judged, rewards),
            Table("stages", ("stage", "folder", "", "seconds"), tuple(self.stages)),
        )
        write_page(shown, page, command=f"laurel constitution {path}")
        summary = self.summary(result, texts, shown.claims, seconds)
        tables = [shown.tables[i] for i in (0, 1, 2, -1)]
        self.show(tables, shown.claims, page, seconds)
        return summary

    def summary(
        self,
        result: Mapping[str, Any],
        texts: Mapping[str, Any],
        claims: Sequence[Claim],
        seconds: float,
    ) -> dict[str, Any]:
        """Write summary.json; returns what is in it."""
        found = {
            "figures": result["figures"],
            "texts": {**result["texts"], "revisions": texts},
            "claims": {one.text: one.holds for one in claims},
            "stages": {folder: how for _, folder, how, _ in self.stages},
            "seconds": round(seconds, 1),
        }
        write_atomic(self.root / "summary.json", json.dumps(found, indent=1) + "\n")
        return found


def of(made: Artefact) -> Model:
    """The model of a stage that trained."""
    return str(made.folder / "model"), made.digest


def said(facts: Mapping[str, Any]) -> str:
    """Counts in words."""
    return ", ".join(
        f"{value} {name}" for name, value in facts.items() if not isinstance(value, dict)
    )


def judge_content(config: JudgeConfig) -> dict[str, Any]:
    """What a judge's answers depend on: a folder by its content, a server's model by its name."""
    how = {name: value for name, value in config.model_dump().items() if name not in WIRE}
    who = source(config.model) if config.url is None else config.model
    prompt = "" if config.panel else load_prompt(config.prompt or config.form).digest
    panel = [judge_content(read_judge(path)) for path in config.panel]
    return {"how": how, "model": who, "prompt": prompt, "panel": panel}


def constitution(plan: ConstitutionPlan, *, quiet: bool = False) -> dict[str, Any]:
    """Carry out a plan; returns what it writes to output_dir/summary.json."""
    return ConstitutionRun(plan, quiet=quiet).run()
