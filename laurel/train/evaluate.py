"""How the policy does on held-out rows while it trains: greedy answers scored by the same rewards, or loss per supervised token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from laurel.core.metrics import Sums
from laurel.rollout.episode import play
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.single import Draw, demonstrations, rollout
from laurel.train import parallel

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def evaluate(setup: Setup, step: int) -> Sums:
    """eval/reward and eval/accuracy (share of rewards of at least 1; unscored answers count as wrong), or eval/nll, over this rank's part of the held-out rows."""
    sums, config = Sums(), setup.config
    rows = setup.held[parallel.rank() :: parallel.world_size()]
    if not rows:
        return sums
    if setup.learns_from_data:
        return held_out_loss(setup, step, sums)
    draw = Draw("eval", step, config.seed, 1, config.max_completion_length, 0.0, tuple(config.stop))
    groups = play(setup.policy, rows, draw, setup.make_env, config.max_turns) if setup.make_env else rollout(setup.policy, rows, draw)
    reward_N = reward_matrix(setup.mixture.score(groups)).flatten()
    judged = reward_N[~reward_N.isnan()]
    sums.add("eval/reward", float(judged.sum()), len(judged))
    sums.add("eval/accuracy", int((judged >= 1 - 1e-9).sum()), len(reward_N))
    sums.total("eval/samples", len(reward_N))
    return sums


@torch.no_grad()
def held_out_loss(setup: Setup, step: int, sums: Sums) -> Sums:
    """eval/nll: minus log-likelihood per supervised token of the held-out rows, in nats, dropout off."""
    config, policy = setup.config, setup.policy
    policy.model.eval()
    for i in range(parallel.rank(), len(setup.held), 64 * parallel.world_size()):
        rows = setup.held[i : i + 64 * parallel.world_size() : parallel.world_size()]
        groups = demonstrations(policy, rows, run="eval", step=step, train_on=config.train_on, max_length=config.max_length)
        for micro in pack(groups).to(policy.device).split(config.token_budget):
            logp = policy.logp(micro).logp[micro.loss_mask_NT]
            sums.add("eval/nll", float(-logp.sum()), len(logp))
    return sums
