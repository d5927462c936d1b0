"""How the policy does on held-out rows while it trains: greedy answers scored by the same rewards, or loss per supervised token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from laurel.core.metrics import Sums
from laurel.data.source import Row
from laurel.policy.chat import encode_supervised
from laurel.rollout.episode import play
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.single import Draw, demonstrations, rollout
from laurel.train import parallel

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def evaluate(setup: Setup, step: int) -> Sums:
    """What this rank's part of the held-out rows says.

    eval/reward and eval/accuracy (share of greedy answers with a reward of at least 1; unscored ones count as wrong), where rows have
    a prompt and rewards are known; eval/nll, where the algorithm learns from data.
    """
    sums = Sums()
    rows = setup.held[parallel.rank() :: parallel.world_size()]
    if rows and setup.learns_from_data:
        held_out_loss(setup, rows, step, sums)
    if rows and setup.mixture is not None:
        greedy_answers(setup, rows, step, sums)
    return sums


def greedy_answers(setup: Setup, rows: Sequence[Row], step: int, sums: Sums) -> None:
    """Greedy completions of the rows' prompts, scored by the run's own rewards."""
    config = setup.config
    length = config.max_completion_length or longest_completion(setup, rows)
    draw = Draw("eval", step, config.seed, 1, length, 0.0, tuple(config.stop or ()))
    groups = play(setup.policy, rows, draw, setup.make_env, config.max_turns) if setup.make_env else rollout(setup.policy, rows, draw)
    reward_N = reward_matrix(setup.mixture.score(groups)).flatten()
    judged = reward_N[~reward_N.isnan()]
    sums.add("eval/reward", float(judged.sum()), len(judged))
    sums.add("eval/accuracy", int((judged >= 1 - 1e-9).sum()), len(reward_N))
    sums.total("eval/samples", len(reward_N))


def longest_completion(setup: Setup, rows: Sequence[Row]) -> int:
    """Supervised learning has no length limit of its own: the longest held-out answer's length, in tokens."""
    config, tokenizer = setup.config, setup.policy.tokenizer
    encoded = (encode_supervised(tokenizer, row.columns, train_on=config.train_on, max_length=config.max_length) for row in rows)
    return max(row.supervised for row in encoded)


@torch.no_grad()
def held_out_loss(setup: Setup, rows: Sequence[Row], step: int, sums: Sums) -> None:
    """eval/nll: minus log-likelihood per supervised token of the rows, in nats, dropout off."""
    config, policy = setup.config, setup.policy
    policy.model.eval()
    for i in range(0, len(rows), 64):
        groups = demonstrations(policy, rows[i : i + 64], run="eval", step=step, train_on=config.train_on, max_length=config.max_length)
        for micro in pack(groups).to(policy.device).split(config.token_budget):
            logp = policy.logp(micro).logp[micro.loss_mask_NT]
            sums.add("eval/nll", float(-logp.sum()), len(logp))
