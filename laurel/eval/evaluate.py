"""How good is it: greedy accuracy, pass@k and majority@k of a policy on rows with a verifier, always with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.core.sample import Group
from laurel.data.gsm8k import final_number, gold_number
from laurel.data.source import Row
from laurel.measure.intervals import Interval, bootstrap_mean, wilson
from laurel.measure.passk import mean_pass_at_k
from laurel.measure.vote import mean_majority_at_k
from laurel.policy.model import Policy
from laurel.reward.mixture import Mixture
from laurel.rollout.episode import load_env, play
from laurel.rollout.single import Draw, rollout

AT_ONCE = 256  # prompts per call: bounds memory, changes nothing else


@dataclass
class Evaluation:
    """The figures by name, each with its interval; every sample scored is counted, and `failed` says how many could not be.

    `greedy` and `sampled` are the scored groups themselves, for reports.
    """

    figures: dict[str, Interval]
    prompts: int
    failed: int
    greedy: list[Group] = field(default_factory=list)
    sampled: list[Group] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: {"accuracy": {"value", "low", "high", "n"}, ...}."""
        figures = {name: {"value": i.value, "low": i.low, "high": i.high, "n": i.n, "level": i.level} for name, i in self.figures.items()}
        return {"figures": figures, "prompts": self.prompts, "failed": self.failed}


def evaluate(policy: Policy, rows: Sequence[Row], mixture: Mixture, config: EvalConfig, *, watch: Callable[[int], None] | None = None) -> Evaluation:
    """Greedy accuracy and mean reward on every row; with num_generations > 1 also pass@k and majority@k of samples.

    An answer is right when its reward is at least 1. A sample whose reward failed or abstained counts as wrong in accuracy, pass@k
    and majority@k (leaving it out would flatter), is left out of the mean reward, and is counted in `failed`.
    """
    ks = sorted(set(config.k or [1, config.num_generations]))
    if config.num_generations > 1 and (ks[0] < 1 or ks[-1] > config.num_generations):
        raise UsageError(f"k = {ks} needs 1 <= k <= num_generations.", where="k", fix="Raise num_generations.")
    greedy = scored(policy, rows, mixture, config, count=1, temperature=0.0, watch=watch)
    failed = sum(reward is None for group in greedy for reward in group.rewards)
    right = [is_right(group.rewards[0]) for group in greedy]
    figures = {"accuracy": wilson(sum(right), len(right))}
    judged = [group.rewards[0] for group in greedy if group.rewards[0] is not None]
    if judged:
        figures["reward"] = bootstrap_mean(judged)
    sampled: list[Group] = []
    if config.num_generations > 1:
        sampled = scored(policy, rows, mixture, config, count=config.num_generations, temperature=config.temperature, watch=watch)
        failed += sum(reward is None for group in sampled for reward in group.rewards)
        counts = [(len(group.rewards), sum(map(is_right, group.rewards))) for group in sampled]
        ballots = [([canonical(s.answer, group.row) for s in group.samples], [is_right(r) for r in group.rewards]) for group in sampled]
        for k in ks:
            figures[f"pass@{k}"] = mean_pass_at_k(counts, k)
        for k in ks:
            if k > 1:
                figures[f"majority@{k}"] = mean_majority_at_k(ballots, k)
    return Evaluation(figures, len(rows), failed, greedy, sampled)


def scored(
    policy: Policy, rows: Sequence[Row], mixture: Mixture, config: EvalConfig, *, count: int, temperature: float,
    watch: Callable[[int], None] | None = None,
) -> list[Group]:  # fmt: skip
    """Groups of `count` completions per row with their rewards, in the order of the rows; `watch` hears of each portion done."""
    make_env = load_env(config.env) if config.env else None
    draw = Draw("eval", 0, config.seed, count, config.max_completion_length, temperature, tuple(config.stop), config.top_k, config.top_p)
    groups: list[Group] = []
    for i in range(0, len(rows), AT_ONCE):
        part = rows[i : i + AT_ONCE]
        groups += mixture.score(play(policy, part, draw, make_env, config.max_turns) if make_env else rollout(policy, part, draw))
        if watch is not None:
            watch(len(part))
    return groups


def is_right(reward: float | None) -> bool:
    """A full reward: at least 1, up to rounding."""
    return reward is not None and reward >= 1 - 1e-9


def canonical(answer: str, row: Mapping[str, Any]) -> str | None:
    """What two answers must share to be the same vote, or None for a blank ballot.

    Where the row's gold answer is a number: the number that the answer ends on ("The total is 1,200." and "1200.0" are one vote).
    Elsewhere: the text without case and spacing.
    """
    if gold_number(row) is not None:
        value, _ = final_number(answer)
        return None if value is None else str(value)
    return " ".join(answer.casefold().split()) or None
