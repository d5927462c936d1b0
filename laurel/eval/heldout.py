"""Metrics of a policy or scorer on held-out rows, as a run has them while it trains.

Greedy answers scored by rewards, or the loss of the rows as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.config import TrainConfig
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Group, Key
from laurel.data.source import Row
from laurel.eval.evaluate import is_right
from laurel.model.chat import encode_supervised
from laurel.objective.preference import preference_metrics
from laurel.rollout.pack import comparisons, pack
from laurel.rollout.source import Source

ROWS_AT_ONCE = 64
Metrics = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class EvalSubject:
    """What is evaluated on rows of data.

    with_targets: fills the targets that a scorer's metrics read. with_reference: log ref of a
    micro-batch, where metrics compare with a reference. measure: a scorer's metrics of its scores;
    None of a language model.
    """

    policy: Any
    source: Source
    config: TrainConfig
    with_targets: Callable[[Batch, Sequence[Group]], Batch]
    with_reference: Callable[[Batch], Batch]
    measure: Callable[[Tensor, Batch], Metrics] | None = None

    @property
    def by_comparison(self) -> bool:
        """The rows of a group are compared, so no micro-batch may part them."""
        return self.config.loss_aggregation == "comparison_mean"


def sets_by_prefix(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The evaluation sets, by the prefix of the names of their metrics.

    "" of the only one, else `NAME/`.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(f"{row.part}/" if row.part else "", []).append(row)
    return parts


def answer_metrics(groups: Sequence[Group], sums: Sums) -> None:
    """eval/reward and eval/accuracy of scored greedy answers.

    accuracy: the share with a reward of at least 1; unscored ones count as wrong, and are left out
    of the mean reward.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    scored = torch.tensor([r for r in rewards if r is not None], dtype=torch.float64)
    sums.add("eval/reward", float(scored.sum()), len(scored))
    sums.add("eval/accuracy", sum(map(is_right, rewards)), len(rewards))
    sums.total("eval/samples", len(rewards))


def longest_answer(tokenizer: Any, rows: Sequence[Row], config: TrainConfig) -> int:
    """The length in tokens of the longest answer of rows of data.

    It is the limit of greedy answers where training has none of its own.
    """
    encoded = (
        encode_supervised(
            tokenizer, row.columns, train_on=config.train_on, max_length=config.max_length
        )
        for row in rows
    )
    return max(row.supervised for row in encoded)


@torch.no_grad()
def data_metrics(subject: EvalSubject, rows: Sequence[Row], step: int, sums: Sums) -> list[Group]:
    """eval/nll: minus log-likelihood per supervised token of the rows, in nats, dropout off.

    Of preferences eval/rewards/... and eval/logps/... instead, of scorers their own metrics.
    Returned for metrics of the user's own: the rows as groups, whose rewards are what the model
    says of each answer: log pi summed over its tokens, of scorers the score at its last token.
    """
    subject.policy.model.eval()
    every, values = list[Group](), dict[Key, float | None]()
    for i in range(0, len(rows), ROWS_AT_ONCE):
        groups = groups_of(subject, rows[i : i + ROWS_AT_ONCE], step)
        every += groups
        for micro in micro_batches(subject, groups):
            if subject.measure is not None:
                found = scorer_metrics(subject, micro, sums)
            else:
                found = policy_metrics(subject, micro, sums)
            values.update(zip(micro.keys, found, strict=True))
    return [
        replace(group, rewards=tuple(values.get(sample.key) for sample in group.samples))
        for group in every
    ]


def groups_of(subject: EvalSubject, rows: Sequence[Row], step: int) -> list[Group]:
    """The rows as groups.

    Labelled answers without a partner, since only the labelled ones are reported.
    """
    read, config = subject.source.read, subject.config
    assert read is not None
    how: dict[str, Any] = {"others": ()} if subject.source.partners else {}
    cut = {"train_on": config.train_on, "max_length": config.max_length}
    return read(subject.policy, rows, run="eval", step=step, **how, **cut)


def micro_batches(subject: EvalSubject, groups: Sequence[Group]) -> Iterator[Batch]:
    """The groups in micro-batches: with their comparisons, or with a scorer's labels."""
    batch = pack(groups)
    if subject.by_comparison:
        batch = batch.replace(comparison=comparisons(groups))
    else:
        weights = [reward for group in groups for reward in group.rewards]
        weight_N = torch.tensor(weights, dtype=batch.weight_NT.dtype)
        batch = batch.replace(weight_NT=weight_N[:, None].expand_as(batch.weight_NT))
    if subject.measure is not None:
        batch = subject.with_targets(batch, groups)
    return batch.to(subject.policy.device).split(
        subject.config.token_budget or 0,
        whole_groups=subject.by_comparison,
        packed=bool(getattr(subject.policy, "packs", False)),
    )


def policy_metrics(subject: EvalSubject, micro: Batch, sums: Sums) -> list[float]:
    """eval/nll, or of comparisons the metrics of preferences; log pi of every row."""
    micro = subject.with_reference(micro)
    logp_NT = subject.policy.logp(micro).logp
    mask_NT = micro.loss_mask_NT
    if subject.by_comparison:
        beta = 1.0 if subject.config.beta is None else subject.config.beta
        for name, (total, count) in preference_metrics(logp_NT, micro, beta=beta).items():
            sums.add(f"eval/{name}", float(total), float(count))
    else:
        sums.add("eval/nll", float(-logp_NT[mask_NT].sum()), int(mask_NT.sum()))
    logp_N: Any = torch.where(mask_NT, logp_NT, 0).sum(1)
    return logp_N.tolist()


def scorer_metrics(subject: EvalSubject, micro: Batch, sums: Sums) -> list[float | None]:
    """Add the scorer's own metrics; returns the score at the last token of every row.

    None of a head with several classes.
    """
    assert subject.measure is not None
    scores = subject.policy.scores(micro)
    for name, (total, count) in subject.measure(scores, micro).items():
        sums.add(f"eval/{name}", float(total), float(count))
    if scores.ndim > 2:
        return [None] * len(micro)
    # the score at a row's last token: one index a row
    last_N = micro.length_N - 1
    return scores[torch.arange(len(micro), device=scores.device), last_N].tolist()
