"""A log whose truth is known.

Six kinds of questions, six prompts each best for one of them, and a logger with known propensities.
"""

from __future__ import annotations

import numpy as np

from laurel_prompts.logs import Log, question_numbers

KINDS = (
    ("shop", "price", "discount"),
    ("train", "speed", "station"),
    ("garden", "rows", "seeds"),
    ("recipe", "cups", "flour"),
    ("team", "points", "match"),
    ("library", "shelves", "books"),
)
PROMPTS = (
    "The answer is:",
    "Let us go step by step:",
    "Write an equation first:",
    "Draw up a table of what is known:",
    "Name the parts of the question and answer each:",
    "Estimate first, then compute:",
)
OTHERWISE = (0.53, 0.47, 0.44, 0.42, 0.38, 0.34)
"""The mean reward of each prompt for the kinds that it is not made for; for its own it is RIGHT."""
RIGHT = 0.75
PEOPLE = ("Ada", "Ben", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana")


def synthetic_log(
    queries: int = 3000,
    seed: int = 0,
    *,
    every: bool = True,
    noisy: bool = True,
    test: float = 0.25,
) -> tuple[Log, np.ndarray]:
    """(log, true r(q, p) [S, P]).

    Questions differ in difficulty, which moves all prompts alike by up to .1.

    The best single prompt is worth about .57, the best for each query .75. every: each prompt is
    tried on each query; else one, by known propensities that lean towards the prompt's own kind.
    noisy: rewards are right or wrong, else the true r itself.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 6, queries)
    hard = rng.uniform(-1, 1, queries)
    best = np.eye(6, dtype=bool)[kind]  # the prompt of a question's own kind
    truth = np.where(best, RIGHT, np.array(OTHERWISE)) - 0.1 * hard[:, None]
    texts = [_question(k, h, rng) for k, h in zip(kind, hard, strict=True)]
    reward = (rng.random(truth.shape) < truth).astype(float) if noisy else truth.copy()
    propensity = None if every else _logged(reward, kind, rng)
    log = Log(
        name="synthetic",
        queries=tuple(texts),
        names=tuple(f"p{p}" for p in range(6)),
        prompts=PROMPTS,
        reward_SP=reward,
        test_S=np.arange(queries) >= round((1 - test) * queries),
        question_S=question_numbers(texts),
        propensity_SP=propensity,
    )
    return log, truth


def _question(kind: int, hard: float, rng: np.random.Generator) -> str:
    """A question of a kind, longer the harder it is."""
    first, second = rng.permutation(KINDS[kind])[:2]
    steps = " and then again" * round(2 + 2 * hard)
    person, a, b = rng.choice(PEOPLE), rng.integers(2, 90), rng.integers(2, 90)
    return (
        f"{person} looks at the {first}: {a} of one, {b} of the other{steps}. What is the"
        f" {second} worth?"
    )


def _logged(reward_SP: np.ndarray, kind_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep one reward of each query, drawn by known chances; their propensities [S, P].

    `reward_SP` is changed in place: what was not tried becomes nan.
    """
    lean_SP = np.exp(1.2 * np.eye(6)[kind_S] + 0.4 * np.arange(6)[::-1] / 5)
    chance_SP = lean_SP / lean_SP.sum(1, keepdims=True)
    tried_S = np.array([rng.choice(6, p=chance_P) for chance_P in chance_SP])
    reward_SP[~np.eye(6, dtype=bool)[tried_S]] = np.nan
    return np.where(np.isnan(reward_SP), np.nan, chance_SP)
