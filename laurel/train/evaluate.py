"""How the policy does on held-out rows while it trains: greedy answers scored by the same rewards,
or loss per supervised token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Draw, Group, Key
from laurel.data.source import Row
from laurel.model.chat import encode_supervised
from laurel.objective.metrics import preference_metrics
from laurel.rollout.episode import play
from laurel.rollout.given import GIVEN
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.sampler import Sampler
from laurel.rollout.single import rollout
from laurel.train import checks, parallel
from laurel.train.best import check_measured
from laurel.train.callbacks import add_own
from laurel.train.record import add_scores, scale
from laurel.train.reference import with_reference

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def evaluate(setup: Setup, step: int) -> Sums:
    """What this rank's part of the held-out rows says.

    eval/reward and eval/accuracy (share of greedy answers with a reward of at least 1; unscored
    ones count as wrong), where rows have a prompt and rewards are known; eval/nll, where the
    algorithm learns from data. Of several sets eval/NAME/... each.
    """
    whole = Sums()
    for name, rows in parts_of(setup.held).items():
        whole.merge(
            one_set(setup, rows, step).renamed(
                lambda metric, name=name: f"eval/{name}{metric.removeprefix('eval/')}"
            )
        )
    return whole


def check_names(setup: Setup) -> None:
    """Before the first step: is the metric among those that an evaluation gives? A few rows of each
    set are asked.

    Rewards that fail on these few are no reason to end here: the first evaluation tells of all
    rows.
    """
    if not setup.config.metric_for_best_model:
        return
    few = [
        row
        for rows in parts_of(setup.held).values()
        for row in rows[: max(4, parallel.world_size())]
    ]
    try:
        sums = evaluate(replace(setup, held=few), 0)
    except UsageError:
        raise
    except LaurelError:
        return
    check_measured(
        setup.config,
        {name for part in parallel.gather(sums) for name in part.sums.keys() | part.totals.keys()},
    )


def parts_of(held: Sequence[Row]) -> dict[str, list[Row]]:
    """The evaluation sets, by what stands before the names of their metrics: "" of the only one,
    else `NAME/`.
    """
    parts: dict[str, list[Row]] = {}
    for row in held:
        parts.setdefault(f"{row.part}/" if row.part else "", []).append(row)
    return parts


def one_set(setup: Setup, rows: Sequence[Row], step: int) -> Sums:
    """What this rank's part of one evaluation set says."""
    sums, rows = Sums(), rows[parallel.rank() :: parallel.world_size()]
    groups = held_out_loss(setup, rows, step, sums) if rows and setup.learns_from_data else []
    if setup.mixture is not None:
        groups = greedy_answers(setup, rows, step, sums) if rows else []
        checks.few_failed(setup, groups)
    add_own(setup, groups, step, sums)
    return sums


def greedy_answers(setup: Setup, rows: Sequence[Row], step: int, sums: Sums) -> list[Group]:
    """Greedy completions of the rows' prompts, scored by the run's own rewards."""
    config = setup.config
    length = config.max_completion_length or longest_completion(setup)
    draw = Draw("eval", step, config.seed, 1, length, 0.0, tuple(config.stop or ()))
    groups = (
        play(Sampler(setup.policy), rows, draw, setup.make_env, config.max_turns)
        if setup.make_env
        else rollout(Sampler(setup.policy), rows, draw)
    )
    scored = setup.mixture.score(groups, refuse=False)
    reward_N = reward_matrix(scored).flatten()
    judged = reward_N[~reward_N.isnan()]
    sums.add("eval/reward", float(judged.sum()), len(judged))
    sums.add("eval/accuracy", int((judged >= 1 - 1e-9).sum()), len(reward_N))
    sums.total("eval/samples", len(reward_N))
    return scored


def longest_completion(setup: Setup) -> int:
    """Supervised learning has no length limit of its own: the longest held-out answer's length, in
    tokens, on whatever process.
    """
    config, tokenizer = setup.config, setup.policy.tokenizer
    encoded = (
        encode_supervised(
            tokenizer, row.columns, train_on=config.train_on, max_length=config.max_length
        )
        for row in setup.held
    )
    return max(row.supervised for row in encoded)


@torch.no_grad()
def held_out_loss(setup: Setup, rows: Sequence[Row], step: int, sums: Sums) -> list[Group]:
    """eval/nll: minus log-likelihood per supervised token of the rows, in nats, dropout off.

    Of preferences eval/rewards/... and eval/logps/... instead, of scorers their own metrics.
    Returned for metrics of the user's own: the rows as groups, whose rewards are what the model
    says of each answer: log pi summed over its tokens, of scorers the score at its last token.
    """
    config, policy, every, said = (
        setup.config,
        setup.policy,
        list[Group](),
        dict[Key, float | None](),
    )
    policy.model.eval()
    for i in range(0, len(rows), 64):
        how: dict[str, Any] = (
            {"others": ()} if setup.row.source == "labels" else {}
        )  # what is reported is said of the labelled alone
        how |= {"train_on": config.train_on, "max_length": config.max_length}
        groups = GIVEN[setup.row.source](policy, rows[i : i + 64], run="eval", step=step, **how)
        every += groups
        batch = pack(groups)
        grade_N = torch.tensor(
            [r for group in groups for r in group.rewards], dtype=batch.weight_NT.dtype
        )
        batch = batch.replace(weight_NT=grade_N[:, None].expand_as(batch.weight_NT))
        batch = setup.row.aim(setup, batch, groups) if setup.row.head and setup.row.aim else batch
        for micro in batch.to(policy.device).split(
            config.token_budget, whole_groups=setup.by_comparison, packed=setup.packs
        ):
            if setup.row.head:
                scores = policy.scores(micro)
                add_scores(setup, {"": scores}, micro, sums, "eval/")
                said.update(zip(micro.keys, last_scores(scores, micro), strict=True))
                continue
            micro = with_reference(setup, micro) if setup.reference else micro
            logp_NT = policy.logp(micro).logp
            said.update(
                zip(
                    micro.keys,
                    torch.where(micro.loss_mask_NT, logp_NT, 0).sum(1).tolist(),
                    strict=True,
                )
            )
            if not setup.by_comparison:
                sums.add(
                    "eval/nll",
                    float(-logp_NT[micro.loss_mask_NT].sum()),
                    int(micro.loss_mask_NT.sum()),
                )
            else:
                for name, (total, count) in preference_metrics(
                    logp_NT, micro, beta=scale(setup)
                ).items():
                    sums.add(f"eval/{name}", float(total), float(count))
    return [
        replace(group, rewards=tuple(said.get(sample.key) for sample in group.samples))
        for group in every
    ]


def last_scores(scores: torch.Tensor, micro: Batch) -> list[float | None]:
    """A scorer's number at the last token of each row; None of a head with several classes."""
    if scores.ndim > 2:
        return [None] * len(micro)
    return scores[torch.arange(len(micro), device=scores.device), micro.length_N - 1].tolist()
