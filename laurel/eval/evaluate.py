"""How good a policy is on rows with a verifier.

Greedy accuracy, pass@k and majority@k, always with intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.core.protocols import Env
from laurel.core.sample import Draw, Group, Key
from laurel.data.gsm8k import final_number, gold_number
from laurel.data.source import Row
from laurel.measure.intervals import Interval, cluster_bootstrap_mean, wilson
from laurel.measure.majority import mean_majority_at_k
from laurel.measure.pass_at_k import mean_pass_at_k
from laurel.model.policy import Policy
from laurel.reward.mixture import Mixture
from laurel.rollout.episode import load_env, play
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout

AT_ONCE = 256  # prompts per call: bounds memory, changes nothing else


@dataclass
class Evaluation:
    """The figures by name, each with its interval.

    Every sample that was scored is counted; `failed` is how many could not be scored.

    `greedy` and `sampled` are the scored groups themselves, for reports.
    """

    figures: dict[str, Interval]
    prompts: int
    failed: int
    greedy: list[Group] = field(default_factory=list[Group])
    sampled: list[Group] = field(default_factory=list[Group])

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: {"accuracy": {"value", "low", "high", "n"}, ...}."""
        figures = {
            name: {"value": i.value, "low": i.low, "high": i.high, "n": i.n, "level": i.level}
            for name, i in self.figures.items()
        }
        return {"figures": figures, "prompts": self.prompts, "failed": self.failed}


def evaluate(
    policy: Policy,
    rows: Sequence[Row],
    mixture: Mixture,
    config: EvalConfig,
    *,
    reference: Policy | None = None,
    watch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Greedy accuracy and mean reward on every row; with num_generations > 1 also what samples say.

    An answer is right when its reward is at least 1. A sample whose reward failed or abstained
    counts as wrong in accuracy, pass@k and majority@k (leaving it out would flatter), is left out
    of the mean reward, and is counted in `failed`.
    Of samples: pass@k, majority@k, `sampled/reward`, `sampled/distinct` (share of different
    completions), and with a reference `sampled/kl`, nats per completion.
    """
    ks = pass_at_ks(config)
    greedy = sample_and_score(policy, rows, mixture, config, count=1, temperature=0.0, watch=watch)
    right = [is_right(group.rewards[0]) for group in greedy]
    figures = {"accuracy": wilson(sum(right), len(right)), **mean_reward("reward", greedy)}
    sampled: list[Group] = []
    if ks:
        sampled = sample_and_score(
            policy,
            rows,
            mixture,
            config,
            count=config.num_generations,
            temperature=config.temperature,
            watch=watch,
        )
        figures |= sample_figures(sampled, ks)
        if reference is not None:
            figures |= sampled_kl(sampled, reference)
    failed = sum(reward is None for group in [*greedy, *sampled] for reward in group.rewards)
    return Evaluation(figures, len(rows), failed, greedy, sampled)


def pass_at_ks(config: EvalConfig) -> list[int]:
    """The k of pass@k and majority@k, in order; none where only greedy answers are asked for.
    Options that then say nothing are refused.
    """
    if config.num_generations == 1:
        for option in ("k", "reference", "temperature", "top_p", "top_k"):
            if getattr(config, option) != EvalConfig.model_fields[option].default:
                what = (
                    f"`{option}` is about samples, and num_generations=1 asks for greedy answers"
                    " only."
                )
                raise UsageError(
                    what, where=option, fix="Set num_generations to 2 or more, or leave it out."
                )
        return []
    ks = sorted(set(config.k or [1, config.num_generations]))
    if ks[0] < 1 or ks[-1] > config.num_generations:
        raise UsageError(
            f"k = {ks} needs 1 <= k <= num_generations = {config.num_generations}.",
            where="k",
            fix="Raise num_generations.",
        )
    return ks


def mean_reward(name: str, groups: Sequence[Group]) -> dict[str, Interval]:
    """The mean reward of the samples that have one.

    Prompts are resampled; samples where there is a single prompt.
    """
    values = [
        (reward, group.prompt) for group in groups for reward in group.rewards if reward is not None
    ]
    return {name: mean_by_prompt(values, len(groups))} if values else {}


def mean_by_prompt(values: Sequence[tuple[float, str]], prompts: int) -> Interval:
    """The mean of (value, prompt) pairs, one for each sample.

    Whole prompts are resampled; single samples where there is one prompt.
    """
    numbers, names = zip(*values, strict=True)
    return cluster_bootstrap_mean(numbers, names if prompts > 1 else range(len(numbers)))


def sample_figures(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, Interval]:
    """pass@k and majority@k over prompts, the mean reward, and the share of distinct completions.

    A completion is distinct where it repeats no earlier one of its prompt.
    """
    counts = [(len(group.rewards), sum(map(is_right, group.rewards))) for group in groups]
    ballots = [
        (
            [vote_key(s.answer, group.row) for s in group.samples],
            [is_right(r) for r in group.rewards],
        )
        for group in groups
    ]
    ids = [[s.completion_ids for s in group.samples] for group in groups]
    new = [
        (float(one not in earlier[:i]), group.prompt)
        for group, earlier in zip(groups, ids, strict=True)
        for i, one in enumerate(earlier)
    ]
    return {
        **{f"pass@{k}": mean_pass_at_k(counts, k) for k in ks},
        **{f"majority@{k}": mean_majority_at_k(ballots, k) for k in ks if k > 1},
        **mean_reward("sampled/reward", groups),
        "sampled/distinct": mean_by_prompt(new, len(groups)),
    }


def sampled_kl(groups: Sequence[Group], reference: Policy) -> dict[str, Interval]:
    """`sampled/kl`: the mean over completions of sum_t log pi(x_t) - log ref(x_t), in nats.

    An unbiased estimate of KL(pi || ref).
    """
    batch = pack([replace(group, rewards=()) for group in groups])
    gap: dict[Key, float] = {}
    with torch.no_grad():
        for micro in batch.to(reference.device).split(16_384):
            apart_NT = torch.where(
                micro.loss_mask_NT, micro.logp_old_NT - reference.logp(micro).logp, 0.0
            )
            apart_N: Any = apart_NT.sum(1)
            gap.update(zip(micro.keys, apart_N.tolist(), strict=True))
    return {
        "sampled/kl": mean_by_prompt([(gap[key], key.prompt) for key in batch.keys], len(groups))
    }


def sample_answers(
    policy: Policy,
    rows: Sequence[Row],
    draw: Draw,
    make_env: Callable[[], Env] | None,
    max_turns: int | None,
) -> list[Group]:
    """Groups of `draw.num_generations` completions per row: of one turn, or played in a world."""
    if make_env is None:
        return rollout(Sampler(policy), rows, draw)
    assert max_turns is not None
    return play(Sampler(policy), rows, draw, make_env, max_turns)


def sample_and_score(
    policy: Policy,
    rows: Sequence[Row],
    mixture: Mixture,
    config: EvalConfig,
    *,
    count: int,
    temperature: float,
    watch: Callable[[int], None] | None = None,
) -> list[Group]:
    """Groups of `count` completions per row with their rewards, in the order of the rows.

    watch: called with the number of rows of each portion done.
    """
    make_env = load_env(config.env) if config.env else None
    draw = Draw.of(config, "eval", 0, num_generations=count, temperature=temperature)
    groups: list[Group] = []
    for i in range(0, len(rows), AT_ONCE):
        part = rows[i : i + AT_ONCE]
        groups += mixture.score(sample_answers(policy, part, draw, make_env, config.max_turns))
        if watch is not None:
            watch(len(part))
    return groups


def is_right(reward: float | None) -> bool:
    """A full reward: at least 1, up to rounding."""
    return reward is not None and reward >= 1 - 1e-9


def vote_key(answer: str, row: Mapping[str, Any]) -> str | None:
    """What two answers must share to be the same vote, or None for a blank ballot.

    Where the row's gold answer is a number: the number that the answer ends on ("The total is
    1,200." and "1200.0" are one vote).
    Elsewhere: the text without case and spacing.
    """
    if gold_number(row) is not None:
        value, _ = final_number(answer)
        return None if value is None else str(value)
    return " ".join(answer.casefold().split()) or None
