"""Everything a run needs, made once and in the order that finds mistakes first: options, data,
rewards, then weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.named_datasets import format_named_sets
from laurel.core.protocols import Companion
from laurel.core.result import ENVIRONMENT
from laurel.core.run import Run
from laurel.core.sample import Group
from laurel.data.rows import columns_note, read_rows
from laurel.data.source import Row
from laurel.model import products
from laurel.model.adapters import check_lora
from laurel.model.classifier import trained_labels
from laurel.model.folders import check_folder, is_adapter
from laurel.model.policy import (
    Policy,
    Reference,
    load_policy,
    make_reference,
    pick_device,
    pick_threads,
)
from laurel.model.room import logit_room
from laurel.model.scorer import Scorer, check_language_head, load_scorer
from laurel.objective.unit import AGGREGATIONS, UNITS
from laurel.reward.mixture import Mixture
from laurel.rollout.episode import load_env
from laurel.train import parallel
from laurel.train.algorithms import ALGORITHMS, Algorithm
from laurel.train.best import check_best, check_evaluated
from laurel.train.callbacks import Watching
from laurel.train.checkpoint import State, load_checkpoint, newest_checkpoint
from laurel.train.companions import BESIDE
from laurel.train.fitting import bounded, fitting, weighed
from laurel.train.inputs import inputs
from laurel.train.optimizer import check_optim, make_optimizer, state_bytes
from laurel.train.options import bind, reads, resolve
from laurel.train.profile import Clock
from laurel.train.reference import Remembered
from laurel.train.relabel import load_relabel
from laurel.train.starter import STARTERS, build_starter, check_starter
from laurel.train.supply import (
    cut_sets,
    held_note,
    in_epochs,
    load_data,
    load_mixture,
    told_columns,
)

USES = {
    "data": "sft",
    "pairs": "preference",
    "labels": "label",
    "rankings": "comparison",
    "outcomes": "label",
    "steps": "steps",
    "policy": "rl",
    "parameters": "rl",
    "logged": "logged",
}
"""source of a row of the table: what its rows of data must hold."""
WEIGHED = ("pairs", "labels", "rankings", "outcomes", "steps")
"""sources whose rows may have a `weight`."""


@dataclass
class Setup:
    """What the loop works with. `objective` and `unit` have their options bound; `held` are rows
    kept for evaluation.
    """

    name: str
    row: Algorithm
    config: TrainConfig
    rows: list[Row]
    held: list[Row]
    mixture: Mixture | None
    make_env: Callable | None
    run: Run
    policy: Policy
    reference: Reference | None
    optimizer: Any  # of torch, of bitsandbytes, or Masters
    objective: Callable
    unit: Callable
    notes: list[str]
    remembered: Remembered | None = None
    companion: Companion | None = None
    pretraining: list[Row] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    alarmed: set[str] = field(default_factory=set)
    clock: Clock = field(default_factory=Clock)
    watching: Watching = field(default_factory=Watching)
    asked: list[str] = field(default_factory=list)  # who asked for the run's end
    judged: bool = False  # has any reward judged any sample yet?

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter, of everything the optimiser moves: the policy, and what is trained
        beside it.
        """
        return {**self.policy.trainable(), **(self.companion.trainable() if self.companion else {})}

    def moving(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter, of everything a checkpoint must hold: what is trained, and what
        follows it.
        """
        return {**self.trainable(), **(self.companion.followers() if self.companion else {})}

    def score(self, groups: list[Group]) -> list[Group]:
        """R(x): the groups with the verdicts of the configuration's rewards, or of the row's own
        judge.

        How many of them failed is judged over the whole step, by `laurel.train.checks.judged`.
        """
        if not self.row.judge:
            return self.mixture.score(groups, refuse=False)
        judged = self.row.judge(self, groups)
        return [
            without_reward(new, old) if ENVIRONMENT in old.results else new
            for new, old in zip(judged, groups, strict=True)
        ]

    def save_model(self) -> list[str]:
        """The trained model (adapters: a PEFT folder) in the run's `model`, and what is to be said
        of it.

        A companion that shapes how it decodes says how it is saved.
        """
        self.run.note(
            {"saving": True}
        )  # from now on `model` is ours: a resumed run may write it again
        how: dict[str, Any] = {"merge": self.config.save_merged, "dtype": self.config.save_dtype}
        save = getattr(self.companion, "save", None)
        return (
            save(self.policy, self.run.model, **how)
            if save
            else self.policy.save(self.run.model, **how)
        )

    @property
    def on_policy(self) -> bool:
        """The batch is what the policy just drew, so its ratio starts at 1."""
        return self.row.source == "policy" and not self.row.off_policy

    @property
    def learns_from_data(self) -> bool:
        """Supervised: samples are the data itself."""
        return self.row.source not in ("policy", "parameters")

    @property
    def by_comparison(self) -> bool:
        """The objective compares the rows of a group, so no micro-batch may part them."""
        return self.config.loss_aggregation == "comparison_mean"

    def terms(self) -> list[tuple[str, Callable, Callable]]:
        """The loss: (what it reads, objective, unit) of the row itself, then of its further
        terms.
        """
        used = [t for t in self.row.terms if not t.option or getattr(self.config, t.option)]
        further = [
            (reads(t.objective), bind(t.objective, self.config), bind(UNITS[t.unit], self.config))
            for t in used
        ]
        return [(reads(self.row.objective), self.objective, self.unit), *further]

    @property
    def packs(self) -> bool:
        """Does the model compute real tokens only, and shared prompts once?"""
        return bool(getattr(self.policy, "packs", False))

    def logs(self, step: int) -> bool:
        """Are the metrics of this step written, as far as can be said before it ends?"""
        config = self.config
        may_end = (
            config.stop_at or config.early_stopping_patience
        ) is not None and step % config.eval_steps == 0
        return step % config.logging_steps == 0 or step == config.max_steps or may_end

    def measures_kl(self, step: int) -> bool:
        """Does this step need log-probabilities of the reference? With beta > 0 always; else to
        report KL, when metrics are written.
        """
        return self.reference is not None and (bool(self.config.beta) or self.logs(step))


def prepare(
    algorithm: str, config: TrainConfig, watching: Watching | None = None
) -> tuple[Setup, State]:
    """Options -> data -> rewards -> environment -> run directory -> weights -> checkpoint. Errors
    of the user come before weights.
    """
    config, watching = resolve(algorithm, config), watching or Watching()
    row = ALGORITHMS[algorithm]
    parallel.join()
    if (config.population or config.prompts_per_step) < parallel.world_size():
        raise UsageError(
            "fewer of them per step than processes.",
            where="population" if config.population else "prompts_per_step",
        )
    use = row.use or USES[row.source]
    rows, held = load_data(config, use, algorithm)
    if row.source == "labels" and all(
        one.columns["prompt"] == rows[0].columns["prompt"] for one in rows
    ):
        what = "answers to other prompts are needed, and every row asks the same."
        raise UsageError(what, where=config.dataset, fix="Add rows with other prompts.")
    held, cut = cut_sets(config, held)
    check_best(config, held, own=watching.compute_metrics is not None)
    mixture = load_mixture(
        config, "data" if row.judge else row.source, rows, held
    )  # a judge of the row's own leaves them to evaluation
    if "relabel" in row.defaults:
        load_relabel(config.relabel, {name for data in rows for name in data.columns} - {"prompt"})
    pretraining = (
        read_rows(config.ptx_dataset, "sft", seed=config.seed, option="ptx_dataset")
        if config.ptx_dataset
        else []
    )
    split_off = [] if config.eval_dataset else held
    read = {
        "dataset": [*rows, *split_off],
        "eval_dataset": held if config.eval_dataset else [],
        "ptx_dataset": pretraining,
    }
    make_env = load_env(config.env) if config.env else None
    check_optim(config, pick_device(config.device))
    if config.model in STARTERS:
        check_starter(config.model, config.dataset)
    else:
        check_folder(config.model)
        if config.use_peft:
            check_lora(config, headless=bool(row.head))
        if config.imitation_coef:
            check_language_head(config.model)
    run = open_run(algorithm, config, inputs(config, read))
    try:
        return loaded(
            algorithm, config, run, rows, held, mixture, make_env, pretraining, cut, watching
        )
    except BaseException:
        run.withdraw()
        raise


def loaded(
    algorithm: str,
    config: TrainConfig,
    run: Run,
    rows: list[Row],
    held: list[Row],
    mixture: Mixture | None,
    make_env: Callable | None,
    pretraining: list[Row],
    cut: list[str],
    watching: Watching,
) -> tuple[Setup, State]:
    """The second half of `prepare`: weights, and what depends on them."""
    row = ALGORITHMS[algorithm]
    torch.manual_seed(config.seed)
    if config.model in STARTERS:
        config = config.model_copy(
            update={"model": str(build_starter(config.model, config.dataset, config.seed))}
        )
    policy: Any = load_head(config, row.head) if row.head else load_policy(config)
    torch.set_num_threads(pick_threads(config.num_threads, policy.num_parameters))
    library = library_of(policy, run)
    config = config.model_copy(
        update={
            "token_budget": config.token_budget or (2048 if policy.device.type == "cpu" else 16_384)
        }
    )
    if isinstance(policy, Policy):
        policy.room = room_for_logits(policy, config, run)
    reference = make_reference(policy, config.reference) if config.reference else None
    companion = BESIDE[row.beside](config, policy) if row.beside else None
    optimizer = make_optimizer(
        policy.trainable(),
        config,
        companion.trainable() if companion else {},
        getattr(companion, "rate", 1.0),
    )
    told = told_columns(
        config,
        row.use or USES[row.source],
        rows,
        mixture,
        bool(make_env or "relabel" in row.defaults),
    )
    told += held_note(config, rows, held)
    config = bounded(
        config,
        row.source,
        getattr(policy, "causal", policy.model),
        getattr(companion, "model", None),
    )
    told += [f"ptx_dataset: {line}" for line in columns_note(pretraining, "sft")]
    rows, notes = fitting(policy, rows, config, row.source)
    rows, left_out = weighed(rows) if row.source in WEIGHED else (rows, [])
    held, held_notes = (
        fitting(policy, held, config, row.source, format_named_sets(config.eval_dataset or ""))
        if held
        else ([], [])
    )
    config, long = in_epochs(config, len(rows))
    check_evaluated(config)
    notes = [
        *watching.notes,
        *told,
        *policy.notes,
        *library,
        *notes,
        *left_out,
        *cut,
        *(f"held out: {note}" for note in held_notes),
        long,
    ]
    setup = Setup(
        algorithm,
        row,
        config,
        rows,
        held,
        mixture,
        make_env,
        run,
        policy,
        reference,
        optimizer,
        bind(row.objective, config, rounding=2 * getattr(policy, "slack", 0.0)),
        bind(AGGREGATIONS[config.loss_aggregation], config),
        notes,
    )
    setup.companion, setup.pretraining, setup.watching = companion, pretraining, watching
    if parallel.rank() == 0:
        run.facts.pop("stopped", None)  # of the part before a resumption
        run.note({"notes": list(notes), **watching.names()})
        run.update_config({"max_steps": config.max_steps})
    if config.profile:
        setup.clock.watch(policy.device)
    if row.source == "pairs" and reference is not None:
        setup.remembered = Remembered(setup)
    return setup, restore(setup) if config.resume else fresh(setup)


def library_of(policy: Any, run: Run) -> list[str]:
    """Take the library of this run's float32 products: the one it began with, or rank 0's choice.
    What is to be said of it.
    """
    known = run.facts.get("products")
    if parallel.rank() == 0:
        known = products.choose(policy.model, policy.device, policy.dtype, known)
        run.note({"products": known})
    name = products.choose(policy.model, policy.device, policy.dtype, parallel.gather(known)[0])
    return (
        []
        if name == products.DEFAULT
        else [f"float32 products by {name}: measured, exact, and faster here than torch's default"]
    )


def room_for_logits(policy: Policy, config: TrainConfig, run: Run) -> int:
    """Bytes that logits may take in this run, on the process that has least: chosen when it starts,
    and kept when it is resumed.

    Where logits are computed a few rows at a time, how many decides their last bits.
    """
    vocabulary = policy.causal.get_output_embeddings().weight.shape[0]
    coming = sum(state_bytes(policy.trainable(), config.optim).values())
    largest = (config.token_budget or 0) * vocabulary * policy.dtype.itemsize
    chosen = run.facts.get("logit_bytes") or logit_room(policy.device, coming, largest)
    chosen = min(parallel.gather(int(chosen)))
    if parallel.rank() == 0:
        run.note({"logit_bytes": chosen})
    return chosen


def without_reward(judged: Group, played: Group) -> Group:
    """A group whose environment failed, as judged: whatever the judge said of it counts for
    nothing.
    """
    return replace(
        judged,
        results=dict.fromkeys(judged.results, played.results[ENVIRONMENT]),
        rewards=(None,) * len(judged.samples),
    )


def load_head(config: TrainConfig, outputs: int) -> Scorer:
    """A language model's body under a head with so many outputs, or a trained scorer to go on
    with.
    """
    if config.gradient_checkpointing:
        raise UsageError(
            "a scorer is trained without it.", where="gradient_checkpointing", fix="Leave it out."
        )
    how = {
        "device": config.device,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "chat_template": config.chat_template,
        "seed": config.seed,
    }
    keep = config.use_peft or bool(is_adapter(config.model) and trained_labels(config.model))
    scorer = load_scorer(
        config.model, num_labels=outputs, language=bool(config.imitation_coef), adapters=keep, **how
    )
    if keep:
        scorer.adapt(config)
    scorer.card = replace(
        scorer.card, max_length=bounded(config, "rankings", scorer.model).max_length
    )
    return scorer


def open_run(algorithm: str, config: TrainConfig, read: dict[str, str]) -> Run:
    """The run directory: rank 0 makes or continues it, and holds it; the others read it."""
    values = {"algorithm": algorithm, **config.model_dump()}
    place, model = Path(config.output_dir).resolve(), Path(config.model)
    if model.is_dir() and place.is_relative_to(model.resolve()):
        what = "this is the folder of the model that is trained from."
        raise UsageError(what, where=f"output_dir {config.output_dir}", fix="Name another.")
    if config.num_train_epochs and "max_steps" not in config.model_fields_set:
        values["max_steps"] = (
            None  # known when it is known which rows can be trained on: `Run.settle` writes it then
        )
    run = None
    if parallel.rank() == 0:
        run = Run.create(config.output_dir, values, resume=config.resume, inputs=read)
    folder = parallel.gather(run.folder if run else None)[0]
    return run or Run(folder)


def fresh(setup: Setup) -> State:
    """Nothing done yet."""
    return State(
        reference=setup.reference.hash if setup.reference else "", beta=setup.config.beta or 0.0
    )


def restore(setup: Setup) -> State:
    """The state of the newest sound checkpoint; from the start if there is none. Files of the run
    are cut back to it.
    """
    checkpoint, damaged = newest_checkpoint(setup.run.checkpoints)
    setup.notes.extend(f"checkpoint {name} is damaged and was passed over" for name in damaged)
    reference = setup.reference.hash if setup.reference else ""
    what = (setup.run.id, setup.policy.template, setup.moving(), setup.optimizer, reference)
    state = load_checkpoint(checkpoint, *what) if checkpoint else fresh(setup)
    if parallel.rank() == 0:
        setup.run.truncate(state.step)
        setup.history.extend(setup.run.metrics())
    setup.notes.append(
        f"resumed at step {state.step}" if checkpoint else "no checkpoint yet: starting from step 0"
    )
    return state


def versions() -> dict[str, Any]:
    """What the run was made with, for its record."""
    import transformers

    import laurel

    return {
        "laurel": laurel.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
