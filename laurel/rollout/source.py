"""Where x comes from.

What the rows of a dataset must hold, how they become groups, and which options that brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from laurel.core.sample import Group
from laurel.data.formats import WEIGHED
from laurel.rollout import data


@dataclass(frozen=True, eq=False)
class Source:
    """One kind of x.

    needs: what its rows must hold, a key of `laurel.data.formats.USES`. options: what every
    algorithm with this source understands, with defaults.

    read: rows of data -> groups, of a source whose samples are the data itself (supervised);
    answers: how many answers such a row usually has; partners: each row is read with the answer of
    another row. sampled: x ~ the policy, scored by rewards, with a gradient; population: x ~
    perturbed copies of the policy, scored by rewards, without one.

    judge: scores sampled groups in place of the configuration's rewards. revise: changes scored
    groups before they are packed; off_policy: the revised groups are no longer what the policy
    drew. verifiable: answers of rows that name a task are checked by its verifier in evaluations.
    """

    name: str
    needs: str
    options: Mapping[str, Any]
    read: Callable[..., list[Group]] | None = None
    answers: int = 1
    partners: bool = False
    sampled: bool = False
    population: bool = False
    judge: Callable[..., list[Group]] | None = None
    revise: Callable[..., list[Group]] | None = None
    off_policy: bool = False
    verifiable: bool = False

    @property
    def prompts(self) -> bool:
        """Rows are prompts, which a policy answers; else they are trained on as they are."""
        return self.read is None

    @property
    def weighted(self) -> bool:
        """May a row have a `weight`, its reliability?"""
        return "weight" in WEIGHED.get(self.needs, ())

    def without(self, *options: str, **changes: Any) -> Source:
        """The same source without some options, and with some fields changed."""
        kept = {name: value for name, value in self.options.items() if name not in options}
        return replace(self, options=kept, **changes)

    def having(self, **options: Any) -> Source:
        """The same source with further options."""
        return replace(self, options={**self.options, **options})


ROWS: dict[str, Any] = {"max_length": 1024}
REWARDED: dict[str, Any] = {
    "env": None,
    "max_turns": 4,
    "rewards": None,
    "reward_weights": None,
    "reward_timeout": 60.0,
    "max_failed_fraction": 0.5,
}
DEMONSTRATIONS = Source(
    "data", "sft", {"train_on": None, **ROWS}, data.demonstrations, verifiable=True
)
PAIRS = Source("pairs", "preference", ROWS, data.rankings, answers=2)
LABELS = Source("labels", "label", ROWS, data.labelled, answers=2, partners=True)
RANKINGS = Source("rankings", "comparison", ROWS, data.rankings, answers=2)
OUTCOMES = Source("outcomes", "label", ROWS, data.graded)
STEPS = Source("steps", "steps", ROWS, data.graded)
LOGGED = Source("logged", "logged", ROWS, data.logged)
POLICY = Source(
    "policy",
    "rl",
    {
        "learning_rate": 1e-5,
        "num_generations": 8,
        "max_completion_length": 256,
        "temperature": 1.0,
        "stop": [],
        "engine": [],
        "engine_timeout": 600.0,
        "engine_weights": "auto",
        "num_iterations": 1,
        "importance_sampling_correction": "auto",
        "importance_sampling_cap": 3.0,
        "sampler_gap_limit": 0.0,
        **REWARDED,
        "beta": 0.0,
        "reference": None,
        "kl_placement": "loss",
        "kl_estimator": None,
        "entropy_coef": 0.0,
        "dynamic_sampling": False,
        "max_resamples": 3,
        "mask_truncated_completions": False,
        "overlong_buffer": 0,
        "on_alarm": "warn",
    },
    sampled=True,
)
POPULATION = Source(
    "parameters",
    "rl",
    {
        "learning_rate": 1e-6,
        "population": 30,
        "num_generations": 1,
        "max_completion_length": 256,
        "temperature": 0.0,
        "stop": [],
        **REWARDED,
    },
    population=True,
)
