"""PPO's part of a step: what a critic says of the batch, what steers rewards over many steps, and
what is watched meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from laurel.core.sample import Batch, Group
from laurel.measure.collapse import alarms
from laurel.rollout.pack import k1_of
from laurel.train import parallel
from laurel.train.checkpoint import load_checkpoint, newest_checkpoint
from laurel.weight.control import Moments, missing_eos, next_beta

if TYPE_CHECKING:
    from laurel.train.checkpoint import State
    from laurel.train.setup import Setup


def watch(setup: Setup, means: Mapping[str, float]) -> list[str]:
    """Signs of collapse that are new after this step, where a reward can be exploited: a learned
    one, or any with a critic.
    """
    learned = any(str(name).startswith(("model:", "prm:")) for name in setup.config.rewards or ())
    if setup.learns_from_data or not (learned or setup.companion is not None):
        return []
    setup.history.append(dict(means))
    judge = "" if learned else "eval/accuracy"
    found = alarms(
        setup.history, max_completion_length=setup.config.max_completion_length or 0, held_out=judge
    )
    new = [line for line in found if line.partition(":")[0] not in setup.alarmed]
    setup.alarmed.update(line.partition(":")[0] for line in new)
    return [f"warning: {line}" for line in new]


def return_to_good(setup: Setup, state: State) -> str:
    """Weights, optimiser and state of the newest checkpoint, which was written before the alarm;
    what to say of it.

    The run ends there: going on from it would draw the same samples and collapse again.
    """
    checkpoint, _ = newest_checkpoint(setup.run.checkpoints)
    step = state.step
    if checkpoint is None:
        return f"no checkpoint to return to at step {step}: the run ends with the weights it has"
    reference = setup.reference.hash if setup.reference else ""
    good = load_checkpoint(
        checkpoint, setup.run.id, setup.policy.template, setup.moving(), setup.optimizer, reference
    )
    vars(state).update(vars(good))
    if parallel.rank() == 0:
        setup.run.note({"returned": {"from": step, "to": state.step}})
    return (
        f"returned from step {step} to the checkpoint of step {state.step}, before the alarm; the"
        " run ends there"
    )


@torch.no_grad()
def with_values(setup: Setup, batch: Batch) -> Batch:
    """The batch with the critic's value of every trained token's state, as it is before the
    update.
    """
    rows, value_NT = {key: n for n, key in enumerate(batch.keys)}, torch.zeros_like(batch.value_NT)
    if setup.clock.device is not None:  # somebody watches
        critic: Any = setup.companion
        body = setup.policy.causal if critic.shares_body else critic.model["body"]
        setup.clock.passed(
            body, batch.replace(loss_mask_NT=torch.zeros_like(batch.loss_mask_NT)), learns=False
        )
    for micro in batch.split(setup.config.token_budget, packed=setup.packs):
        outputs = setup.model.forward(micro.to(setup.policy.device), ("value_NT",))
        value = outputs.tensors(["value_NT"])[0].to(value_NT)
        value_NT[[rows[key] for key in micro.keys], : value.shape[1]] = value
    return batch.replace(value_NT=value_NT)


def steer(
    setup: Setup, state: State, groups: Sequence[Group], batch: Batch, reward_PG: Tensor
) -> Tensor:
    """Rewards normalised and clipped by their history, then less the penalty for completions that
    were cut off; and beta's next value.

    beta follows the mean KL of the rows that are trained on; where there is none, it stays.

    All processes see the same history and the same KL, so they keep the same state.
    """
    config = setup.config
    if config.kl_target and setup.reference is not None:
        counts_N = batch.loss_mask_NT.any(
            1
        )  # a row that is masked says nothing of the KL; it does not say 0
        k1_N = torch.cat(parallel.gather(k1_of(batch).sum(1)[counts_N]))
        state.beta = next_beta(
            state.beta,
            float(k1_N.mean()),
            target=config.kl_target,
            horizon=config.kl_horizon,
            n=len(k1_N),
        )
    if config.normalize_rewards:
        moments = Moments(*state.moments).update(torch.cat(parallel.gather(reward_PG)))
        state.moments = (moments.count, moments.mean, moments.square)
        reward_PG = moments.normalise(reward_PG, config.reward_clip)
    if config.missing_eos_penalty:
        cut_PG = torch.tensor(
            [[sample.finish == "length" for sample in group.samples] for group in groups]
        )
        reward_PG = missing_eos(reward_PG, cut_PG, missing_eos_penalty=config.missing_eos_penalty)
    return reward_PG
