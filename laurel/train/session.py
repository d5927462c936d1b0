"""What a run holds in memory, and the state that a checkpoint saves.

The session has the configuration, the row of the table, data, models, optimiser and clock. This
file is a leaf: the other files of the room import it, and it imports none of them but the row's
type.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn

from laurel.core import protocols
from laurel.core.bound_objects import qualified_name
from laurel.core.config import TrainConfig
from laurel.core.protocols import Env
from laurel.core.result import ENVIRONMENT
from laurel.core.run import Run
from laurel.core.sample import Batch, Group, take
from laurel.data.source import Row
from laurel.model.interface import AuxiliaryModel, Model, PolicyWithAuxiliary
from laurel.model.policy import Reference
from laurel.reward.mixture import Mixture
from laurel.rollout.data import mismatched_rows
from laurel.train.reference_cache import ReferenceCache
from laurel.train.roofline import Rates, Work, body_of, count_pass, count_sampling
from laurel.train.row import Algorithm, Credit

Options = ParamSpec("Options")
Made = TypeVar("Made")


@dataclass
class State:
    """What changes besides weights and optimiser, and is saved in a checkpoint.

    Seeds are functions of (seed, prompt, sample, step), so there is no generator to save.
    step: optimiser steps done. cursor: prompts drawn from the data. running_mean: the running
    baseline. beta: the KL coefficient where it is adapted. moments: count, mean and sum of squares
    of all rewards so far. reference: the hash of the frozen reference ("" without one). best,
    best_step, waited: the best value of metric_for_best_model, the step that had it, and the
    evaluations since.
    """

    step: int = 0
    cursor: int = 0
    running_mean: float = 0.0
    reference: str = ""
    beta: float = 0.0
    moments: tuple[int, float, float] = (0, 0.0, 0.0)
    best: float | None = None
    best_step: int = 0
    waited: int = 0


@dataclass(frozen=True)
class Observers:
    """What a Python program adds to a run: callbacks, a function of the evaluated groups, notes.

    callbacks: objects with any of on_step, on_evaluation, on_checkpoint.
    """

    callbacks: tuple[Any, ...] = ()
    compute_metrics: Callable[[list[Group]], Mapping[str, float]] | None = None
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, Any]:
        """Their names, for run.json."""
        found: dict[str, Any] = {}
        if self.callbacks:
            found["callbacks"] = [qualified_name(one) for one in self.callbacks]
        if self.compute_metrics:
            found["compute_metrics"] = qualified_name(self.compute_metrics)
        return found


class BoundTerm(NamedTuple):
    """One term of the loss with its options bound: objective(tensor, batch), and unit(batch).

    reads: the fields of a model's `Outputs` that the objective is a function of, such as logp_NT.
    """

    reads: tuple[str, ...]
    objective: Callable[..., Any]
    unit: Callable[..., Any]


@dataclass(frozen=True)
class BoundRow:
    """The functions of a row of the table, with their options taken from the configuration.

    terms: the loss, the row's own objective first. weigh: rewards -> weights, one for each of what
    `credit` says; running_mean: it takes the running baseline, too. measure: the objective's own
    metrics, a function of the tensor `measure_reads`.
    """

    terms: tuple[BoundTerm, ...]
    weigh: Callable[..., Any]
    credit: Credit
    running_mean: bool
    measure: Callable[..., Any] | None
    measure_reads: tuple[str, ...]


class Clock:
    """Seconds of a step by phase.

    A phase inside another interrupts it, so every moment belongs to one phase, and all add up to
    the step. What no phase claims is `other`. With `watch`, for a profile, the clock also waits for
    a GPU at every change of phase, and notes how long the main thread was not on a core (`idle`):
    it waited for rewards in other processes, for a disk, or for other programs.
    """

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.rates: Rates = {}
        self.work = Work()
        self.steps = 0
        self.totals = dict[str, float]()
        self.start()

    def watch(self, device: torch.device) -> None:
        """From now on keep what a profile needs."""
        self.device = device

    def start(self) -> None:
        """A step begins."""
        self.spent = dict[str, float]()
        self.idle = dict[str, float]()
        self.open = ["other"]
        if self.device is not None:
            self.work = Work()
        self.mark = time.perf_counter()
        self.on_core = time.thread_time()

    def stop(self) -> dict[str, float]:
        """The step ends: the seconds of each phase it went through."""
        self._turn()
        return self.spent

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """A context whose time belongs to the phase `name`."""
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def run(
        self,
        name: str,
        function: Callable[Options, Made],
        *args: Options.args,
        **options: Options.kwargs,
    ) -> Made:
        """function(...), as part of the phase `name`."""
        with self(name):
            return function(*args, **options)

    def passed(self, model: nn.Module, batch: Batch, *, learns: bool) -> None:
        """A model reads a batch in this step, and learns from it or not."""
        if self.device is not None:
            count_pass(self.work, body_of(model), batch, learns=learns)

    def drew(self, model: nn.Module, dtype: torch.dtype, groups: Sequence[Group]) -> None:
        """A model said the completions of these groups in this step."""
        if self.device is not None and groups:
            prompts = [len(group.samples[0].prompt_ids) for group in groups]
            lengths = [[sum(sample.loss_mask) for sample in group.samples] for group in groups]
            count_sampling(self.work, body_of(model), dtype.itemsize, prompts, lengths)

    def _turn(self) -> None:
        """The moment since the last turn belongs to the phase that is open."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, name = time.perf_counter(), self.open[-1]
        self.spent[name] = self.spent.get(name, 0.0) + now - self.mark
        if self.device is not None:
            on_core = time.thread_time()
            self.idle[name] = self.idle.get(name, 0.0) + max(
                0.0, now - self.mark - (on_core - self.on_core)
            )
            self.on_core = on_core
        self.mark = now


Timed = Callable[Concatenate[Any, Options], Made]


def phase(name: str) -> Callable[[Timed[Options, Made]], Timed[Options, Made]]:
    """A decorator for functions of a Session: what they do belongs to the phase `name`."""

    def decorate(
        function: Timed[Options, Made],
    ) -> Timed[Options, Made]:
        @wraps(function)
        def timed(session: Any, *args: Options.args, **options: Options.kwargs) -> Made:
            with session.clock(name):
                return function(session, *args, **options)

        return timed

    return decorate


@dataclass
class Session:
    """What the loop works with.

    rows are trained on, eval_rows are kept for evaluation. mixture: the rewards (None: the data
    has its own signal). generator: what samples. auxiliary: what is trained beside the policy.
    history and alarmed: metrics so far, and alarms that were raised. end_notes: who asked for the
    run's end. scored: has any reward judged any sample yet?
    """

    name: str
    row: Algorithm
    config: TrainConfig
    rows: list[Row]
    eval_rows: list[Row]
    mixture: Mixture | None
    make_env: Callable[[], Env] | None
    run: Run
    policy: Any  # Policy, or Scorer
    generator: protocols.Generator
    reference: Reference | None
    optimizer: Any  # of torch, of bitsandbytes, or Masters
    bound: BoundRow
    notes: list[str]
    reference_cache: ReferenceCache | None = None
    auxiliary: AuxiliaryModel | None = None
    pretraining: list[Row] = field(default_factory=list[Row])
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    alarmed: set[str] = field(default_factory=set[str])
    clock: Clock = field(default_factory=Clock)
    observers: Observers = field(default_factory=Observers)
    end_notes: list[str] = field(default_factory=list[str])
    scored: bool = False

    @property
    def model(self) -> Model:
        """What the loop trains, as one model: `forward(batch, wanted)`."""
        if self.auxiliary is None:
            return self.policy
        return PolicyWithAuxiliary(self.policy, self.auxiliary)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of everything the optimiser moves: policy and auxiliary."""
        own = self.policy.trainable()
        return {**own, **self.auxiliary.trainable()} if self.auxiliary else {**own}

    def saved_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of everything a checkpoint holds.

        These are what is trained, and the target networks that follow it.
        """
        own = self.trainable()
        return {**own, **self.auxiliary.followers()} if self.auxiliary else own

    def score(self, groups: list[Group]) -> list[Group]:
        """R(x): the groups with the results of rewards, the configuration's or the source's judge.

        Samples on which rewards fail are counted over the whole step, by
        `laurel.train.record.check_scored`.
        """
        if self.row.source.judge:
            judged = self.row.source.judge(self, groups)
            return [
                without_reward(new, old) if ENVIRONMENT in old.results else new
                for new, old in zip(judged, groups, strict=True)
            ]
        assert self.mixture is not None
        return self.mixture.score(groups, refuse=False)

    def save_model(self) -> list[str]:
        """Save the trained model in the run's `model`; returns lines for the user.

        Adapters are saved as a PEFT folder. A auxiliary with a `save` of its own (it changes how
        the policy decodes) saves both.
        """
        # from now on `model` is ours: a resumed run may write it again
        self.run.note({"saving": True})
        how: dict[str, Any] = {"merge": self.config.save_merged, "dtype": self.config.save_dtype}
        save = getattr(self.auxiliary, "save", None)
        if save:
            return save(self.policy, self.run.model, **how)
        return self.policy.save(self.run.model, **how)

    @property
    def terms(self) -> tuple[BoundTerm, ...]:
        """The terms of the loss, the row's own objective first."""
        return self.bound.terms

    @property
    def on_policy(self) -> bool:
        """The batch is what the policy just drew, so its ratio starts at 1."""
        return self.row.source.sampled and not self.row.source.off_policy

    @property
    def correction(self) -> str:
        """How samples of another sampler are corrected: `auto` is decided here.

        A comparison of answers has the same optimum whoever said them, so there it is none.
        """
        chosen = self.config.importance_sampling_correction or "none"
        if chosen != "auto":
            return chosen
        return "none" if self.generator.exact or self.by_comparison else "token_truncate"

    @property
    def recomputes(self) -> bool:
        """Does the trainer compute log pi_old itself, and not take the sampler's for it?"""
        return self.on_policy and (not self.generator.exact or self.correction != "none")

    @property
    def learns_from_data(self) -> bool:
        """Supervised: samples are the data itself."""
        return self.row.source.read is not None

    @property
    def by_comparison(self) -> bool:
        """The objective compares the rows of a group, so no micro-batch may part them."""
        return self.config.loss_aggregation == "comparison_mean"

    @property
    def packs(self) -> bool:
        """Does the model compute real tokens only, and shared prompts once?"""
        return bool(getattr(self.policy, "packs", False))

    @property
    def adjusts_rewards(self) -> bool:
        """Does any option ask for `laurel.train.rewards.adjust_rewards`?"""
        config = self.config
        return bool(config.kl_target or config.normalize_rewards or config.missing_eos_penalty)

    @property
    def learned_reward(self) -> bool:
        """Does a reward model, or a judge, score the samples?"""
        names = self.config.rewards or ()
        return any(str(name).startswith(("model:", "prm:", "judge:")) for name in names)

    @property
    def rewards_are_chances(self) -> bool:
        """Is the reward P(better than the others of its prompt), as a judge of pairs gives it?"""
        if self.mixture is None or self.adjusts_rewards:
            return False
        return self.mixture.win_chances

    @property
    def watches_collapse(self) -> bool:
        """Can the reward be exploited? A learned one, or any with a critic."""
        if self.learns_from_data:
            return False
        return self.learned_reward or self.auxiliary is not None

    def drawn_rows(self, start: int, count: int) -> list[Row]:
        """The rows of `count` draws after `start` earlier ones, in a seeded order.

        The epoch becomes part of a row's id (`row~epoch`): a prompt that two epochs bring into one
        step is two groups.
        """
        size = len(self.rows)
        positions = take(start, count, size, self.config.seed)
        draws = zip(range(start, start + count), positions, strict=True)
        return [replace(self.rows[i], id=f"{self.rows[i].id}~{draw // size}") for draw, i in draws]

    def partner_rows(self, rows: Sequence[Row], cursor: int) -> dict[str, list[Row]]:
        """The row whose answer is paired with each row's prompt in a step, on any process.

        Only labelled answers have partners; the step ends at `cursor`.
        """
        if not self.row.source.partners:
            return {}
        count = self.config.prompts_per_step
        together = self.drawn_rows(cursor - count, count)
        later = self.drawn_rows(cursor, len(self.rows))
        return {"others": mismatched_rows(rows, together, later)}

    def logs(self, step: int) -> bool:
        """Are the metrics of this step written, as far as can be said before it ends?"""
        config = self.config
        may_end = (
            config.stop_at or config.early_stopping_patience
        ) is not None and step % config.eval_steps == 0
        return step % config.logging_steps == 0 or step == config.max_steps or may_end

    def measures_kl(self, step: int) -> bool:
        """Does this step need log-probabilities of the reference?

        With beta > 0 always; else only to report KL, when metrics are written.
        """
        return self.reference is not None and (bool(self.config.beta) or self.logs(step))


def without_reward(judged: Group, played: Group) -> Group:
    """A judged group whose environment failed: its rewards are None, its results the failure."""
    return replace(
        judged,
        results=dict.fromkeys(judged.results, played.results[ENVIRONMENT]),
        rewards=(None,) * len(judged.samples),
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step 1, 2, ...

    Linear warm-up, then constant, linear or cosine down to 0 at max_steps.
    """
    assert config.learning_rate is not None
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = (config.max_steps - step + 1) / max(1, config.max_steps - config.warmup_steps)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return config.learning_rate * shape[config.lr_scheduler_type]
