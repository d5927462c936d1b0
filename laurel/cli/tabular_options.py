"""The experiments of `laurel tabular` and their options, as data: help needs no numpy.

A test holds every row equal to the signature and the docstring of its function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One parameter of an experiment. A default that is a tuple: several values between commas."""

    name: str
    default: Any
    meaning: str = ""
    choices: tuple[Any, ...] = ()
    positional: bool = False
    of_type: type | None = None
    """The type of a value, where the default does not show it."""

    @property
    def many(self) -> bool:
        """Does it take several values?"""
        return isinstance(self.default, tuple)

    @property
    def kind(self) -> type:
        """The type of one value."""
        if self.of_type is not None:
            return self.of_type
        return type(self.default[0] if self.many else self.default)


@dataclass(frozen=True)
class Experiment:
    """A verb: "module:function" that returns an Exhibit, its line of help, and its options."""

    target: str
    line: str
    about: str
    options: tuple[Option, ...]


FIRST_SEED = Option("seed", 0)
GAMMA = Option("gamma", 0.9)
SLIP = Option("slip", 0.2)

EXPERIMENTS: dict[str, Experiment] = {
    "solve": Experiment(
        "laurel_worlds.solve:solve",
        "the optimal values and actions of a world, planned and learned",
        "The best values and actions of a world, planned with the dynamics known and learned"
        " without.",
        (
            Option(
                "world",
                "gridworld",
                "the world to solve",
                choices=("gridworld", "cliff", "corridor"),
                positional=True,
            ),
            Option("step_reward", -0.04, "paid on every move, the one into an exit included"),
            Option("slip", 0.0, "the chance to go off at a right angle, half to each side"),
            Option("gamma", 1.0, "the discount"),
            Option(
                "seeds",
                5,
                "Q-learning and SARSA are run with seeds 0 to this, less one; 0 leaves them out",
            ),
            Option(
                "steps",
                0,
                "moves that each run may make; 0: 8400 for every state and action, 1100 where"
                " moves never slip",
            ),
            Option(
                "thresholds",
                False,
                "also the step rewards from -3 to 0 at which the best policy changes",
            ),
        ),
    ),
    "compare": Experiment(
        "laurel_worlds.compare:compare",
        "learning on-policy against off-policy: cost and stability",
        "What on-policy and off-policy learning cost, and how stable they are.",
        (
            Option("seeds", 6, "runs of every arm, on which the intervals rest"),
            Option("seed", 0, "the first of them"),
            Option("epsilon", 0.1, "the share of random moves on the cliff"),
            Option("rounds", 60, "batches of 8 episodes for the policy gradients"),
            Option(
                "every_world",
                False,
                "also Q-learning and SARSA on the gridworld at six step rewards and two slips"
                " (two minutes)",
            ),
        ),
    ),
    "imitate": Experiment(
        "laurel_worlds.imitate:imitate",
        "behaviour cloning against an interactive expert: how errors grow with the horizon",
        "Imitation: error against the horizon for behaviour cloning and an interactive learner,"
        " and imitation against optimisation.",
        (
            Option("horizons", (16, 32, 64, 128, 256)),
            Option("labels", 24_000),
            Option("rounds", 10),
            Option("fog", 0.00075),
            Option("mistakes", 0.3),
            Option("seeds", 8),
            FIRST_SEED,
        ),
    ),
    "gail": Experiment(
        "laurel_worlds.adversarial:gail",
        "imitation by matching occupancies: a discriminator as the reward",
        "Adversarial imitation: it reaches the expert's occupancy, and a policy class too small"
        " shows mode seeking against covering.",
        (Option("rounds", 400), Option("mistakes", 0.2), SLIP, GAMMA),
    ),
    "irl": Experiment(
        "laurel_worlds.irl:irl",
        "a reward that explains demonstrations, by maximum entropy",
        "Maximum-entropy inverse RL: a reward from demonstrations, whether its optimal policy is"
        " the expert's, and what is not identified.",
        (
            Option("demonstrations", (10, 100, 1000)),
            SLIP,
            Option("step_reward", -0.04),
            GAMMA,
            Option("sharpness", 10.0),
            Option("decay", 0.3),
            Option("seeds", 5),
            FIRST_SEED,
        ),
    ),
    "offline": Experiment(
        "laurel_worlds.offline:offline",
        "learning from logs alone: cloning against cautious Q-values",
        "Offline RL from logs: behaviour cloning against fitted Q iteration, with none, a little"
        " and enough caution, on good and mixed logs.",
        (
            Option("episodes", (10, 40, 160)),
            Option("mistakes", 0.02),
            Option("noise", 0.5),
            Option("little", 1.0),
            Option("caution", 3.0),
            Option("lowest", -2.0),
            Option("seeds", 30),
            FIRST_SEED,
        ),
    ),
    "her": Experiment(
        "laurel_worlds.hindsight:her",
        "flipping bits towards a goal, with and without hindsight",
        "Hindsight experience replay on bit flipping: success against the number of bits, with"
        " and without.",
        (
            Option("bits", (2, 5, 8, 11, 15)),
            Option("rounds", 120),
            Option("episodes", 16),
            Option("updates", 20),
            Option("seeds", 2),
            Option("trials", 500),
            FIRST_SEED,
        ),
    ),
}
