"""What is trained beside a policy, by the name that a row of the table gives: each is made from the configuration and the policy."""

from __future__ import annotations

from collections.abc import Callable

from laurel.core.config import TrainConfig
from laurel.core.protocols import Companion
from laurel.policy.critic import Critic, own_critic, shared_critic
from laurel.policy.model import Policy
from laurel.policy.scorer import load_scorer


def load_critic(config: TrainConfig, policy: Policy) -> Critic:
    """The critic: its own body or the policy's, from a trained reward model or with a head that says 0."""
    make = own_critic if config.critic == "own" else shared_critic
    if config.critic_model is None:
        return make(policy)
    scorer = load_scorer(config.critic_model, num_labels=1, device=config.device, dtype=config.dtype)
    return make(policy, scorer.model, mean=scorer.card.mean)


BESIDE: dict[str, Callable[[TrainConfig, Policy], Companion]] = {"critic": load_critic}
