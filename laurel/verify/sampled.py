"""By sampling: a real transformer, the real sampler and the loop, against the transformer's own
distribution, listed in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.core.sample import Draw, Group, Key, Sample
from laurel.data.source import Row
from laurel.fast.decode import compact_of
from laurel.fast.static import static_of
from laurel.model.chat import encode_prompt, ensure_template
from laurel.model.critic import shared_critic
from laurel.model.discriminator import make_discriminator
from laurel.model.implicit import new_heads
from laurel.model.policy import Policy, Reference
from laurel.model.scratch import char_tokenizer, small_model
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout
from laurel.train import loop
from laurel.train.adversary import with_demonstrations
from laurel.train.algorithms import ALGORITHMS
from laurel.train.session import State
from laurel.verify.expected_gradients import PER_ROW, group_weight
from laurel.verify.finding import Finding, same, sampled
from laurel.verify.language import Language
from laurel.verify.world import Recorder, ascent_of, setup_of

TEMPERATURE, H, G = 0.7, 3, 4
GROUPS = 32  # of each prompt in one batch
TOGETHER = 500  # draws of one prompt at a time, where samples are only counted
PROMPTS = ("a", "abba")  # of unequal length: one of them is padded in every batch


@dataclass(frozen=True)
class Llama:
    """A Llama of one layer over six tokens, its 156 completions of each prompt, and a 0/1 reward
    for each.
    """

    policy: Policy
    completions: tuple[tuple[int, ...], ...]
    reward: dict[tuple[int, tuple[int, ...]], float]
    rows: tuple[Row, ...]

    def listed(self) -> list[Group]:
        """Every completion of every prompt, as groups."""
        groups = []
        for x, row in enumerate(self.rows):
            prompt_ids = encode_prompt(self.policy.tokenizer, row.columns["prompt"])
            samples = tuple(
                as_sample(prompt_ids, ids, x, n) for n, ids in enumerate(self.completions)
            )
            groups.append(
                Group(
                    row.id,
                    {},
                    samples,
                    rewards=tuple(self.reward[x, ids] for ids in self.completions),
                )
            )
        return groups

    def logp(self) -> Tensor:
        """log pi of all of them at the temperature, differentiable: [X, N]."""
        return self.policy.logp(pack(self.listed())).logp.sum(1).view(len(self.rows), -1)


def as_sample(prompt_ids: Sequence[int], ids: tuple[int, ...], x: int, n: int) -> Sample:
    """A completion that was listed, not drawn."""
    zeros = (0.0,) * len(ids)
    key = Key("verify", "", f"p{x}", n, 0)
    return Sample(
        key, tuple(prompt_ids), ids, zeros, (True,) * len(ids), TEMPERATURE, "length", "", ()
    )


def make_llama(seed: int = 0) -> Llama:
    """The model and its world; nothing is loaded."""
    tokenizer = char_tokenizer("ab")
    ensure_template(tokenizer, None)
    model = small_model(
        tokenizer, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, seed=seed
    )
    language = Language(len(tokenizer), H)
    swap = {language.eos: tokenizer.eos_token_id, tokenizer.eos_token_id: language.eos}
    completions = tuple(tuple(swap.get(token, token) for token in y) for y in language.completions)
    coin = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(PROMPTS), len(completions), generator=coin) < 0.4
    reward = {
        (x, ids): float(draws[x, n])
        for x in range(len(PROMPTS))
        for n, ids in enumerate(completions)
    }
    rows = tuple(Row({"prompt": prompt}, "", f"p{x}") for x, prompt in enumerate(PROMPTS))
    return Llama(Policy(model.train(False), tokenizer), completions, reward, rows)


def sampled_rows(*, draws: int = 40_000, batches: int = 40, seed: int = 0) -> Iterator[Finding]:
    """The sampler's frequencies, its log-probabilities, and the mean gradient of every row that has
    a closed form.
    """
    yield from samplers(draws=draws, seed=seed)
    yield from gradients(make_llama(seed), batches, seed)
    yield from transformer(seed=seed)


def samplers(*, draws: int, seed: int = 0) -> Iterator[Finding]:
    """The three samplers against the listed distribution."""
    torch.manual_seed(seed)
    llama = make_llama(seed)
    with torch.no_grad():
        logp = llama.logp().double()
    yield same(
        "transformer",
        "156 completions of each prompt sum to 1",
        logp.exp().sum(1),
        torch.ones(2),
        limit=1e-5,
    )
    compact_of(llama.policy), static_of(llama.policy)
    decoders = llama.policy.decoders
    decoders["warned"] = True  # slower ones are asked for here
    compact, static = decoders["compact"], decoders["static"]
    for name, *ways in (
        ("sampler", compact, static),
        ("static sampler", None, static),
        ("general sampler", None, None),
    ):
        decoders["compact"], decoders["static"] = ways
        yield from sampler(name, llama, logp, draws, seed)


def transformer(*, seed: int = 0) -> Iterator[Finding]:
    """A transformer's steps in micro-batches of another size, and what a discriminator's body says
    of rows.
    """
    llama = make_llama(seed)
    groups = drawn(llama, 3, 0, seed)
    yield from splits(llama, groups)
    yield from discriminator(llama, groups)


def drawn(llama: Llama, count: int, step: int, seed: int, size: int = G) -> list[Group]:
    """`count` groups of `size` of each prompt from the library's sampler, rewarded."""
    rows = [replace(row, id=f"{row.id}.{i}") for i in range(count) for row in llama.rows]
    groups = rollout(Sampler(llama.policy), rows, Draw("verify", step, seed, size, H, TEMPERATURE))
    return [
        replace(
            group,
            rewards=tuple(
                llama.reward[i % len(llama.rows), s.completion_ids] for s in group.samples
            ),
        )
        for i, group in enumerate(groups)
    ]


def sampler(name: str, llama: Llama, logp_XN: Tensor, draws: int, seed: int) -> Iterator[Finding]:
    """Chi-square of the counts against the listed probabilities (cells of fewer than 5 expected
    draws are pooled).
    """
    groups = drawn(llama, draws // TOGETHER // len(llama.rows), 0, seed, TOGETHER)
    where = {ids: n for n, ids in enumerate(llama.completions)}
    gaps = []
    for x in range(len(llama.rows)):
        samples = [s for group in groups[x :: len(llama.rows)] for s in group.samples]
        index = torch.tensor([where[s.completion_ids] for s in samples])
        gaps.append(
            torch.tensor([sum(s.logps) for s in samples], dtype=torch.float64) - logp_XN[x, index]
        )
        expected, count = (
            logp_XN[x].exp() * len(samples),
            torch.bincount(index, minlength=len(where)).double(),
        )
        rare = expected < 5
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        count = torch.cat([count[~rare], count[rare].sum()[None]])
        square, freedom = (
            float(((count - expected) ** 2 / expected.clamp(min=1e-9)).sum()),
            len(expected) - 1,
        )
        z = (square - freedom) / (2 * freedom) ** 0.5
        yield Finding(
            name,
            f"chi-square of counts, prompt {x}",
            f"{freedom}",
            f"{square:.1f}",
            abs(z),
            4.0,
            len(samples),
            "float32",
        )
    worst = float(torch.cat(gaps).abs().max())
    yield Finding(
        name,
        "its log-probabilities are the trainer's",
        "0",
        f"{worst:.2g} nats",
        worst,
        1e-5,
        draws,
        "float32",
    )


def gradients(llama: Llama, batches: int, seed: int) -> Iterator[Finding]:
    """Mean gradient over many batches, along the direction that theory names: |z| against its exact
    length.
    """
    parameters = list(llama.policy.trainable().values())
    reward = torch.tensor(
        [[llama.reward[x, ids] for ids in llama.completions] for x in range(len(llama.rows))]
    )
    p_X = (llama.logp().detach().exp() * reward).sum(1)

    def exact(factor_X: Tensor) -> Tensor:
        found = torch.autograd.grad(
            ((llama.logp().exp() * reward).sum(1) * factor_X).mean(), parameters
        )
        return torch.cat([g.flatten() for g in found]).double()

    one = torch.ones(len(p_X))
    c = torch.tensor([group_weight(float(p), G) for p in p_X])
    whole = {"mask_truncated_completions": False}
    rows: tuple[tuple[str, str, Tensor, dict[str, Any]], ...] = (
        ("reinforce", "grad J", exact(one), {}),
        ("reinforce_baseline", "grad J", exact(one), {}),
        ("rloo", "grad J", exact(one), {}),
        ("dr_grpo", "(G-1)/(G H) grad J", exact(one * (G - 1) / G / H), {}),
        ("grpo", "c_G(p) grad p, summed", exact(c), PER_ROW),
        ("dapo", "c_G(p) grad p, summed", exact(c), PER_ROW | whole),
        (
            "cispo",
            "(G-1)/G grad J, summed",
            exact(one * (G - 1) / G),
            PER_ROW | {"scale_rewards": "none"},
        ),
        ("raft", "grad p, keep=above", exact(one), PER_ROW | {"keep": "above"}),
    )
    found: dict[str, list[float]] = {name: [] for name, *_ in rows}
    for step in range(1, batches + 1):
        groups = drawn(llama, GROUPS, step, seed)
        for name, _, truth, options in rows:
            step_gradient = flat_gradient(llama, name, groups, running_mean=0.3, **options)
            found[name].append(float(step_gradient @ truth / truth.norm()))
    for name, says, truth, _ in rows:
        yield sampled(
            name,
            f"mean gradient along {says}",
            torch.tensor(found[name]),
            float(truth.norm()),
            samples=batches * GROUPS * G * len(llama.rows),
        )


def flat_gradient(
    llama: Llama, name: str, groups: list[Group], *, running_mean: float = 0.0, **options: Any
) -> Tensor:
    """One step of the loop on the transformer: the ascent direction as one vector, float64."""
    recorder = Recorder(list(llama.policy.trainable().values()))
    own = (
        {"temperature": TEMPERATURE, "max_completion_length": H, "num_generations": G}
        if ALGORITHMS[name].source.sampled
        else {}
    )
    setup = setup_of(
        name,
        llama.policy,
        lambda: Reference(llama.policy, adapters_off=False),
        recorder,
        **own | options,
    )
    if ALGORITHMS[name].credit == "critic":
        setup.companion = shared_critic(llama.policy)
    if ALGORITHMS[name].trained.auxiliary == "heads":
        setup.companion = new_heads(llama.policy, target_update=0.1, decode_beta=1.0)
    if ALGORITHMS[name].trained.auxiliary == "discriminator":
        setup.companion = make_discriminator(llama.policy)
    state = State(step=1, running_mean=running_mean)
    loop.update(setup, state, loop.weigh(setup, state, groups, Sums()), Sums())
    return torch.cat([g.flatten() for g in ascent_of(setup)]).double()


def splits(llama: Llama, groups: list[Group]) -> Iterator[Finding]:
    """Micro-batches of a transformer, float32: prompts of unequal length share a batch or do
    not.
    """
    for name, row in ALGORITHMS.items():
        if row.trained.head or row.source.population:
            continue
        whole, split = (
            flat_gradient(llama, name, groups, token_budget=budget) for budget in (1 << 14, 24)
        )
        yield replace(
            same(name, "transformer: micro-batches of 24 tokens", split, whole, limit=1e-5),
            precision="float32",
        )


def discriminator(llama: Llama, groups: list[Group]) -> Iterator[Finding]:
    """A discriminator's body on demonstrations and samples of the loop: each row by itself,
    unpadded, or a step in micro-batches.
    """
    judge, name = make_discriminator(llama.policy), "gail"
    torch.nn.init.normal_(
        judge.reader.model["head"].weight, generator=torch.Generator().manual_seed(0)
    )
    shown = [replace(group, row={"prompt": "a", "completion": "ab"}) for group in groups]
    alone, found, batch = [], [], pack(shown)
    for group in shown:
        for sample in group.samples:
            ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
            alone.append(
                judge.reader.head(
                    judge.reader.model["body"](input_ids=ids, use_cache=False).last_hidden_state[
                        :, -1
                    ]
                )
            )
    whole = judge.logits(batch)
    yield replace(
        same(name, "transformer: logits of each row alone", whole, torch.cat(alone), limit=1e-5),
        precision="float32",
    )
    for budget in (24, 1 << 14):
        own = {
            "temperature": TEMPERATURE,
            "max_completion_length": H,
            "num_generations": G,
            "token_budget": budget,
        }
        setup = setup_of(
            name,
            llama.policy,
            None,
            Recorder([*llama.policy.trainable().values(), *judge.trainable().values()]),
            **own,
        )
        setup.companion, state = judge, State(step=1)
        ready = with_demonstrations(setup, [], setup.score(shown), Sums())
        loop.update(setup, state, loop.weigh(setup, state, ready, Sums()), Sums())
        found.append(torch.cat([g.flatten() for g in ascent_of(setup)]))
    yield replace(
        same(
            name, "transformer: micro-batches, the discriminator's gradient too", *found, limit=1e-5
        ),
        precision="float32",
    )
