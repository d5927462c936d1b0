"""GRPO on one page, of laurel's own functions: the same losses as `laurel train grpo`, bit for bit.

    python examples/one_page.py

A fresh character-level model of 0.8 million weights learns to answer every prompt with sevens.
What the page leaves out is what a run adds: a reference and its KL, several optimiser steps on one
batch, masks for truncated answers, evaluation, checkpoints, several processes.
"""

from dataclasses import replace

import torch

import laurel
from laurel.core.config import TrainConfig
from laurel.core.sample import Draw, take
from laurel.data.rows import read_rows
from laurel.objective.policy import clip
from laurel.objective.unit import reduce_loss, seq_mean_token_mean
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.sampler import Sampler, rollout
from laurel.train.loop import optimizer_step
from laurel.train.optimizer import make_optimizer
from laurel.train.options import resolve
from laurel.weight.group import standardised

OPTIONS = {
    "model": "scratch",
    "dataset": "addition",
    "dataset_size": 64,
    "eval_size": 0,
    "max_steps": 20,
    "prompts_per_step": 8,
    "num_generations": 8,
    "max_completion_length": 4,
    "learning_rate": 5e-4,
    "device": "cpu",
    "dtype": "float32",
    "token_budget": 2048,
}


def sevens(completions, **columns):
    """R(x): the share of four characters that are a 7."""
    return [text.count("7") / 4 for text in completions]


def main(**changes):
    """Train, print a line a step, return the lines."""
    config = resolve("grpo", TrainConfig(**{**OPTIONS, **changes}))
    policy = laurel.load(config.model, device=config.device, dtype=config.dtype, seed=config.seed)
    optimizer = make_optimizer(policy.trainable(), config)
    rows = read_rows(config.dataset, "rl", size=config.dataset_size, seed=config.seed)
    lines = []
    for step in range(config.max_steps):
        # The prompts of this step: the rows in a seeded order, which every epoch shuffles anew.
        start = step * config.prompts_per_step
        places = take(start, config.prompts_per_step, len(rows), config.seed)
        epochs = [(start + n) // len(rows) for n in range(config.prompts_per_step)]
        prompts = [
            replace(rows[place], id=f"{rows[place].id}~{epoch}")
            for place, epoch in zip(places, epochs, strict=True)
        ]

        # 1. Sample x ~ pi: P prompts, G completions of each, with the log-probability of every
        #    token. A seed is a function of (seed, prompt, sample, step).
        groups = rollout(Sampler(policy), prompts, Draw.of(config, "one page", step))

        # 2. Score R(x): [P, G].
        groups = [
            replace(group, rewards=tuple(sevens([sample.text for sample in group.samples])))
            for group in groups
        ]
        reward_PG = reward_matrix(groups)

        # 3. Weigh: A = (R - mean of the group) / (std of the group + 1e-4), one weight a
        #    completion, which every token of it gets: [P, G] -> [N, T] with N = P * G.
        batch = pack(groups)
        weight_N1 = standardised(reward_PG).reshape(-1, 1)
        weight_NT = weight_N1.expand_as(batch.weight_NT).to(batch.weight_NT.dtype).contiguous()
        batch = batch.replace(weight_NT=weight_NT)

        # 4. Maximise A log pi(x), clipped: mean over rows of the mean over tokens. The denominator
        #    is counted over the whole batch, before it is split into micro-batches and before rows
        #    of weight 0, which have no gradient, are left out. The loss itself is about 0: in a
        #    group the weights add up to 0, and the ratio is 1. Its gradient is not.
        count = seq_mean_token_mean(batch).count
        useful_N = (batch.weight_NT != 0).any(1)
        loss_sum = 0.0
        policy.model.eval()  # no dropout: the sampler has none, so the ratio starts at 1
        for micro in batch.rows(useful_N.nonzero()[:, 0].tolist()).split(
            config.token_budget, packed=policy.packs
        ):
            value_NT = clip(policy.logp(micro).logp, micro)
            loss = reduce_loss(value_NT, seq_mean_token_mean(micro), count)
            loss.backward()
            loss_sum += float(loss.detach())
        norm = optimizer_step(optimizer, policy.trainable(), step + 1, config)

        reward = float(reward_PG.mean())
        lines.append({"loss": loss_sum, "grad_norm": norm, "reward": reward})
        print(f"step {step + 1:3}  reward {reward:.3f}  loss {loss_sum:+.1e}  |grad| {norm:.3f}")
    return lines


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
