"""Everything a run needs, made once.

The order finds mistakes early: options, data, rewards, then weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.named_datasets import format_named_sets
from laurel.core.protocols import Env, Generator
from laurel.core.run import Run
from laurel.data.rows import columns_note, read_rows
from laurel.data.source import Row
from laurel.fast import products
from laurel.fast.room import logit_room
from laurel.model.adapters import check_lora
from laurel.model.classifier import trained_labels
from laurel.model.folders import check_folder, is_adapter
from laurel.model.interface import AuxiliaryModel
from laurel.model.policy import (
    Policy,
    Reference,
    load_policy,
    make_reference,
    pick_device,
    pick_threads,
)
from laurel.model.scorer import Scorer, check_language_head, load_scorer
from laurel.reward.mixture import Mixture
from laurel.rollout.engine import Engine, EngineOptions
from laurel.rollout.episode import load_env
from laurel.rollout.sampler import Sampler
from laurel.rollout.source import RANKINGS
from laurel.train import parallel
from laurel.train.algorithms import ALGORITHMS
from laurel.train.best import check_best, check_evaluated
from laurel.train.binding import bind_row
from laurel.train.checkpoint import load_checkpoint, newest_checkpoint
from laurel.train.fitting import select_fitting_rows, with_mean_weight_1, with_position_limits
from laurel.train.input_digests import digest_inputs
from laurel.train.optimizer import check_optim, make_optimizer, state_bytes
from laurel.train.options import resolve
from laurel.train.reference import open_cache
from laurel.train.relabel import load_relabel
from laurel.train.row import Algorithm
from laurel.train.run_data import (
    column_notes,
    cut_sets,
    held_out_note,
    in_epochs,
    load_data,
    load_mixture,
)
from laurel.train.session import Observers, Session, State
from laurel.train.starter import STARTERS, build_starter, check_starter


@dataclass(frozen=True)
class Inputs:
    """What a run reads before any weight is loaded. notes: lines for the user."""

    rows: list[Row]
    eval_rows: list[Row]
    mixture: Mixture | None
    make_env: Callable[[], Env] | None
    pretraining: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Models:
    """What is loaded and trained: policy (or scorer), reference, auxiliary, optimiser.

    notes: lines for the user.
    """

    policy: Any
    reference: Reference | None
    auxiliary: AuxiliaryModel | None
    optimizer: Any
    notes: list[str]


def prepare_session(
    algorithm: str,
    config: TrainConfig,
    observers: Observers | None = None,
    train: Callable[..., Run] | None = None,
) -> tuple[Session, State]:
    """Options -> data -> rewards -> environment -> run directory -> weights -> checkpoint.

    Errors of the user come before weights. train: what trains the starter model where it is asked
    for and not built yet.
    """
    config, observers = resolve(algorithm, config), observers or Observers()
    row = ALGORITHMS[algorithm]
    parallel.join_process_group()
    if (config.population or config.prompts_per_step) < parallel.world_size():
        raise UsageError(
            "fewer of them per step than processes.",
            where="population" if config.population else "prompts_per_step",
        )
    found = read_inputs(algorithm, row, config, observers)
    check_optim(config, pick_device(config.device))
    check_model(config, row)
    run = open_run(algorithm, config, digest_inputs(config, rows_by_option(config, found)))
    try:
        cast("Any", torch).manual_seed(config.seed)
        if config.model in STARTERS:
            folder = build_starter(config.model, config.dataset, config.seed, train)
            config = config.model_copy(update={"model": str(folder)})
        config, models = load_models(config, row, run)
        session = make_session(algorithm, config, run, found, models, observers)
    except BaseException:
        run.withdraw()
        raise
    return session, restore(session) if config.resume else new_state(session)


def read_inputs(
    algorithm: str, row: Algorithm, config: TrainConfig, observers: Observers
) -> Inputs:
    """Rows, rewards, environment: read and checked against each other."""
    rows, eval_rows = load_data(config, row.source.needs, algorithm)
    if row.source.partners and all(
        one.columns["prompt"] == rows[0].columns["prompt"] for one in rows
    ):
        what = "answers to other prompts are needed, and every row asks the same."
        raise UsageError(what, where=config.dataset, fix="Add rows with other prompts.")
    eval_rows, notes = cut_sets(config, eval_rows)
    check_best(config, eval_rows, own=observers.compute_metrics is not None)
    mixture = load_mixture(config, row.source, rows, eval_rows)
    if "relabel" in row.source.options:
        load_relabel(config.relabel, {name for data in rows for name in data.columns} - {"prompt"})
    pretraining = list[Row]()
    if config.ptx_dataset:
        pretraining = read_rows(config.ptx_dataset, "sft", seed=config.seed, option="ptx_dataset")
    make_env = load_env(config.env) if config.env else None
    return Inputs(rows, eval_rows, mixture, make_env, pretraining, notes)


def rows_by_option(config: TrainConfig, found: Inputs) -> dict[str, list[Row]]:
    """The rows that were read, by the option that names them."""
    named = bool(config.eval_dataset)
    return {
        "dataset": found.rows if named else [*found.rows, *found.eval_rows],
        "eval_dataset": found.eval_rows if named else [],
        "ptx_dataset": found.pretraining,
    }


def check_model(config: TrainConfig, row: Algorithm) -> None:
    """What contradicts the model's folder is an error before the run's folder is made."""
    if config.model in STARTERS:
        check_starter(config.model, config.dataset)
        return
    check_folder(config.model)
    if config.use_peft:
        check_lora(config, headless=bool(row.trained.head))
    if config.imitation_coef:
        check_language_head(config.model)


def load_models(config: TrainConfig, row: Algorithm, run: Run) -> tuple[TrainConfig, Models]:
    """Load weights and make the optimiser over them.

    Returns the configuration, too, with the token budget and the limits that the models' positions
    allow.
    """
    policy: Any = load_head(config, row.trained.head) if row.trained.head else load_policy(config)
    torch.set_num_threads(pick_threads(config.num_threads, policy.num_parameters))
    library = choose_run_library(policy, run)
    budget = config.token_budget or (2048 if policy.device.type == "cpu" else 16_384)
    config = config.model_copy(update={"token_budget": budget})
    if isinstance(policy, Policy):
        policy.room = room_for_logits(policy, config, run)
    reference = make_reference(policy, config.reference) if config.reference else None
    auxiliary = row.trained.load(config, policy) if row.trained.load else None
    optimizer = make_optimizer(
        policy.trainable(),
        config,
        auxiliary.trainable() if auxiliary else {},
        getattr(auxiliary, "rate", 1.0),
    )
    bodies = getattr(policy, "causal", policy.model), getattr(auxiliary, "model", None)
    config = with_position_limits(config, row.source, *bodies)
    return config, Models(policy, reference, auxiliary, optimizer, [*policy.notes, *library])


def make_session(
    algorithm: str,
    config: TrainConfig,
    run: Run,
    found: Inputs,
    models: Models,
    observers: Observers,
) -> Session:
    """The session: rows that fit the models, and the notes for the user."""
    row, policy = ALGORITHMS[algorithm], models.policy
    generator = choose_generator(policy, config, run)
    rows, eval_rows, fit_notes = fitting_rows(policy, config, row, found)
    config, epochs = in_epochs(config, len(rows))
    check_evaluated(config)
    session = Session(
        name=algorithm,
        row=row,
        config=config,
        rows=rows,
        eval_rows=eval_rows,
        mixture=found.mixture,
        make_env=found.make_env,
        run=run,
        policy=policy,
        generator=generator,
        reference=models.reference,
        optimizer=models.optimizer,
        bound=bind_row(row, config, rounding=2 * getattr(policy, "slack", 0.0)),
        notes=[
            *observers.notes,
            *data_notes(config, row, found),
            *models.notes,
            *getattr(generator, "notes", ()),
            *fit_notes,
            epochs,
        ],
        auxiliary=models.auxiliary,
        pretraining=found.pretraining,
        observers=observers,
    )
    note_start(session)
    if config.profile:
        session.clock.watch(policy.device)
    if row.source.read and not row.source.partners and models.reference is not None:
        session.reference_cache = open_cache(session)
    return session


def choose_generator(policy: Any, config: TrainConfig, run: Run) -> Generator:
    """What samples: this process, or the servers of the option `engine`."""
    if not config.engine:
        return Sampler(policy)
    options = EngineOptions(
        tuple(config.engine), config.engine_timeout or 600.0, config.engine_weights or "auto"
    )
    leader = parallel.rank() == 0
    return Engine(policy, options, folder=run.folder / "engine", run=run.id, leader=leader)


def note_start(session: Session) -> None:
    """What the run is made with, in its record."""
    if parallel.rank() == 0:
        run = session.run
        run.facts.pop("stopped", None)  # of the part before a resumption
        run.note({"notes": list(session.notes), **session.observers.names()})
        run.update_config({"max_steps": session.config.max_steps})


def fitting_rows(
    policy: Any, config: TrainConfig, row: Algorithm, found: Inputs
) -> tuple[list[Row], list[Row], list[str]]:
    """The rows to train on and to evaluate on that fit the models, and notes on the others."""
    rows, notes = select_fitting_rows(policy, found.rows, config, row.source)
    if row.source.weighted:
        rows, left_out = with_mean_weight_1(rows)
        notes = [*notes, *left_out]
    if not found.eval_rows:
        return rows, [], [*notes, *found.notes]
    where = format_named_sets(config.eval_dataset or "")
    eval_rows, eval_notes = select_fitting_rows(policy, found.eval_rows, config, row.source, where)
    return rows, eval_rows, [*notes, *found.notes, *(f"held out: {note}" for note in eval_notes)]


def data_notes(config: TrainConfig, row: Algorithm, found: Inputs) -> list[str]:
    """Lines for the user on columns that nothing reads, and on rows held out."""
    use = row.source.needs
    whole_rows = bool(found.make_env or "relabel" in row.source.options)
    return [
        *column_notes(config, use, found.rows, found.mixture, whole_rows),
        *held_out_note(config, found.rows, found.eval_rows),
        *(f"ptx_dataset: {line}" for line in columns_note(found.pretraining, "sft")),
    ]


def choose_run_library(policy: Any, run: Run) -> list[str]:
    """Choose the library of this run's float32 products; returns lines for the user.

    It is the one the run began with, or rank 0's choice.
    """
    known = run.facts.get("products")
    if parallel.rank() == 0:
        known = products.choose_product_library(policy.model, policy.device, policy.dtype, known)
        run.note({"products": known})
    name = products.choose_product_library(
        policy.model, policy.device, policy.dtype, parallel.gather(known)[0]
    )
    return (
        []
        if name == products.DEFAULT
        else [f"float32 products by {name}: measured, exact, and faster here than torch's default"]
    )


def room_for_logits(policy: Policy, config: TrainConfig, run: Run) -> int:
    """Bytes that logits may take in this run, on the process that has least.

    They are chosen when the run starts, and kept when it is resumed: where logits are computed a
    few rows at a time, how many decides their last bits.
    """
    causal: Any = policy.causal
    vocabulary = causal.get_output_embeddings().weight.shape[0]
    coming = sum(state_bytes(policy.trainable(), config.optim).values())
    largest = (config.token_budget or 0) * vocabulary * policy.dtype.itemsize
    chosen = run.facts.get("logit_bytes") or logit_room(policy.device, coming, largest)
    chosen = min(parallel.gather(int(chosen)))
    if parallel.rank() == 0:
        run.note({"logit_bytes": chosen})
    return chosen


def load_head(config: TrainConfig, outputs: int) -> Scorer:
    """A language model's body under a head with so many outputs, or a trained scorer."""
    if config.gradient_checkpointing:
        raise UsageError(
            "a scorer is trained without it.", where="gradient_checkpointing", fix="Leave it out."
        )
    how: dict[str, Any] = {
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
        scorer.card, max_length=with_position_limits(config, RANKINGS, scorer.model).max_length
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


def new_state(session: Session) -> State:
    """Nothing done yet."""
    return State(
        reference=session.reference.hash if session.reference else "",
        beta=session.config.beta or 0.0,
    )


def restore(session: Session) -> State:
    """The state of the newest sound checkpoint; from the start if there is none.

    Files of the run are cut back to it.
    """
    checkpoint, damaged = newest_checkpoint(session.run.checkpoints)
    session.notes.extend(f"checkpoint {name} is damaged and was passed over" for name in damaged)
    reference = session.reference.hash if session.reference else ""
    what = (
        session.run.id,
        session.policy.template,
        session.saved_parameters(),
        session.optimizer,
        reference,
    )
    state = load_checkpoint(checkpoint, *what) if checkpoint else new_state(session)
    if parallel.rank() == 0:
        session.run.truncate(state.step)
        session.history.extend(session.run.metrics())
    session.notes.append(
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
