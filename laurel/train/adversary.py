"""Adversarial imitation's part of a step.

A discriminator scores the samples, and each group gets its demonstration to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from laurel.core.metrics import Sums
from laurel.core.result import Abstain, Score
from laurel.core.sample import NOT_SAMPLED, Batch, Finish, Group, Key, Message, Sample
from laurel.core.tensors import floats
from laurel.data.source import Row
from laurel.model.chat import encode_supervised
from laurel.objective.discriminator import balanced_demonstrations, imitation
from laurel.rollout.data import as_sample
from laurel.rollout.pack import pack
from laurel.rollout.source import POLICY
from laurel.train.session import Session


@torch.no_grad()
def discriminator_scores(session: Session, groups: list[Group]) -> list[Group]:
    """The groups with the discriminator's reward of every sample, as it is now."""
    if not groups:
        return []
    kind = session.config.imitation_reward or "airl"
    rewards, chances = dict[Key, float](), dict[Key, float]()
    for micro in pack(groups).split(session.config.token_budget, packed=session.packs):
        outputs = session.model.forward(micro.to(session.policy.device), ("logit_N",))
        logit_N = outputs.tensors(["logit_N"])[0].cpu()
        reward_N = imitation(logit_N, imitation_reward=kind)
        rewards.update(zip(micro.keys, floats(reward_N), strict=True))
        chances.update(zip(micro.keys, floats(logit_N.sigmoid()), strict=True))
    scored = list[Group]()
    for group in groups:
        keys = [sample.key for sample in group.samples]
        verdicts = tuple(Score(rewards[key], f"D = {chances[key]:.3f}") for key in keys)
        results = {"discriminator": verdicts}
        scored.append(replace(group, results=results, rewards=tuple(rewards[key] for key in keys)))
    return scored


def with_demonstrations(
    session: Session, rows: Sequence[Row], groups: list[Group], sums: Sums
) -> list[Group]:
    """Each group with its row's demonstration as one more sample.

    `demonstrations/clipped_ratio`: the share of them that was cut at the limit.
    """
    shown = [demonstration(session, group) for group in groups]
    sums.add(
        "demonstrations/clipped_ratio",
        sum(sample.finish == "length" for sample in shown),
        len(shown),
    )
    return [
        append_demonstration(group, sample) for group, sample in zip(groups, shown, strict=True)
    ]


def demonstration(session: Session, group: Group) -> Sample:
    """The row's completion as the sampler would have left it.

    It follows the same prompt ids, and ends by the same strings and the same limit. Whatever else
    set it apart (an end token that samples cannot reach, say) the discriminator would find before
    it finds anything of use.
    """
    like, tokenizer = group.samples[0], session.policy.tokenizer
    shown = as_sample(
        encode_supervised(tokenizer, group.row),
        replace(like.key, sample=len(group.samples), version=NOT_SAMPLED),
    )
    # templates write a line end behind the last trained token
    trained = len(shown.loss_mask) - shown.loss_mask[::-1].index(True)
    ids = shown.completion_ids[:trained]
    stop, limit = session.config.stop or (), session.config.max_completion_length or 0
    end, finish = completion_end(tokenizer, ids, stop, limit)
    text = tokenizer.decode(list(ids[: end - (finish == "eos")]), skip_special_tokens=True)
    return replace(
        shown,
        prompt_ids=like.prompt_ids,
        completion_ids=ids[:end],
        logps=(0.0,) * end,
        loss_mask=shown.loss_mask[:end],
        temperature=like.temperature,
        finish=finish,
        text=text,
        turns=(Message(role="assistant", content=text),),
    )


def completion_end(
    tokenizer: Any, ids: Sequence[int], stop: Sequence[str], limit: int
) -> tuple[int, Finish]:
    """Where the sampler would have ended these ids, and why.

    It ends after a stop string, at the limit, else at their end token.
    """
    for end in range(1, min(len(ids), limit) + 1) if stop else ():
        text = tokenizer.decode(list(ids[:end]))
        if any(words in text for words in stop):
            return end, "stop"
    return min(len(ids), limit), "length" if len(ids) > limit else "eos"


def append_demonstration(group: Group, shown: Sample) -> Group:
    """The scored group with its demonstration, which has no reward.

    Without a reward the policy is not trained on it, and no sample is compared with it.
    """
    results = {
        name: (*column, Abstain("a demonstration")) for name, column in group.results.items()
    }
    return replace(
        group, samples=(*group.samples, shown), results=results, rewards=(*group.rewards, None)
    )


def side_targets(session: Session, batch: Batch, groups: Sequence[Group]) -> Batch:
    """The batch with which rows are demonstrations, and how much each counts."""
    demonstration_N = torch.tensor([key.version == NOT_SAMPLED for key in batch.keys])
    return batch.replace(demonstrations=balanced_demonstrations(demonstration_N, batch))


ADVERSARIAL = POLICY.without(
    "rewards",
    "reward_weights",
    "reward_timeout",
    "max_failed_fraction",
    "dynamic_sampling",
    "max_resamples",
    "env",
    "max_turns",
    name="demonstrated prompts",
    needs="imitation",
    judge=discriminator_scores,
    revise=with_demonstrations,
    verifiable=True,
)
"""x ~ policy on prompts with a demonstration, scored by the discriminator, which sees both."""
