"""The auxiliary models that are trained together with a policy.

Each is made from the configuration and the policy.
"""

from __future__ import annotations

from typing import Any

from laurel.core.config import TrainConfig
from laurel.model.critic import Critic, own_critic, shared_critic
from laurel.model.discriminator import Discriminator, make_discriminator
from laurel.model.ilql import Heads, new_heads
from laurel.model.policy import Policy
from laurel.model.scorer import load_scorer
from laurel.reward.learned import PREFIX, parse


def load_critic(config: TrainConfig, policy: Policy) -> Critic:
    """The critic: its own body or the policy's, under a head of its own.

    It comes from a trained reward model, or has a head whose values are 0 at first.
    """
    make = own_critic if config.critic == "own" else shared_critic
    folder = critic_folder(config)
    if not folder:
        return make(policy)
    scorer = load_scorer(folder, num_labels=1, device=config.device, dtype=config.dtype)
    return make(policy, scorer.model, mean=scorer.card.mean)


def critic_folder(config: TrainConfig) -> str:
    """The reward model that `critic_model` means, or "" to start from the policy.

    It is a folder, or the first `model:` reward of the run. auto: the run's learned reward if it
    has one, else the policy.
    """
    learned = [name for name in config.rewards or () if str(name).startswith(PREFIX)]
    if config.critic_model == "policy" or (config.critic_model == "auto" and not learned):
        return ""
    if config.critic_model not in ("auto", "reward"):
        return str(config.critic_model)
    reward: Any = parse(learned[0])
    return reward.folders[0]


def load_discriminator(config: TrainConfig, policy: Policy) -> Discriminator:
    """The discriminator: the policy's body under a head that says D = 1/2."""
    return make_discriminator(policy, rate=config.discriminator_rate or 1.0)


def load_heads(config: TrainConfig, policy: Policy) -> Heads:
    """Q and V on the policy's last hidden state."""
    return new_heads(
        policy,
        target_update=config.target_update or 0.0,
        decode_beta=config.decode_beta or 0.0,
        seed=config.seed,
    )
