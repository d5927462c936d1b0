"""By sampling: a real transformer, sampler and loop, against the model's distribution in full."""

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
from laurel.fast.static import static_decoder_of
from laurel.model.chat import encode_prompt, ensure_template
from laurel.model.critic import shared_critic
from laurel.model.discriminator import Discriminator, make_discriminator
from laurel.model.ilql import new_heads
from laurel.model.policy import Policy, Reference
from laurel.model.scratch import char_tokenizer, small_model
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout
from laurel.train import loop
from laurel.train.adversary import with_demonstrations
from laurel.train.algorithms import ALGORITHMS
from laurel.train.session import State
from laurel.verify.expected_gradients import PER_ROW, group_weight
from laurel.verify.finding import Finding, compare_equal, compare_sampled_mean
from laurel.verify.language import Language
from laurel.verify.world import Recorder, ascent_of, setup_of

TEMPERATURE, H, G = 0.7, 3, 4
GROUPS = 32  # of each prompt in one batch
TOGETHER = 500  # draws of one prompt at a time, where samples are only counted
PROMPTS = ("a", "abba")  # of unequal length: one of them is padded in every batch


@dataclass(frozen=True)
class Llama:
    """A Llama of one layer over six tokens, and its 156 completions of each prompt.

    reward: 0 or 1 of each prompt and completion.
    """

    policy: Policy
    completions: tuple[tuple[int, ...], ...]
    reward: dict[tuple[int, tuple[int, ...]], float]
    rows: tuple[Row, ...]

    def listed(self) -> list[Group]:
        """Every completion of every prompt, as groups."""
        groups: list[Group] = []
        for x, row in enumerate(self.rows):
            prompt_ids = encode_prompt(self.policy.tokenizer, row.columns["prompt"])
            samples = tuple(
                as_sample(prompt_ids, ids, x, n) for n, ids in enumerate(self.completions)
            )
            rewards = tuple(self.reward[x, ids] for ids in self.completions)
            groups.append(Group(row.id, {}, samples, rewards=rewards))
        return groups

    def reward_table(self) -> Tensor:
        """[X, N] the rewards."""
        X = range(len(self.rows))
        return torch.tensor([[self.reward[x, ids] for ids in self.completions] for x in X])

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
    eos: Any = tokenizer.eos_token_id
    completions = _completions(Language(len(tokenizer), H), eos)
    coin = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(PROMPTS), len(completions), generator=coin) < 0.4
    reward = {
        (x, ids): float(draws[x, n])
        for x in range(len(PROMPTS))
        for n, ids in enumerate(completions)
    }
    rows = tuple(Row({"prompt": prompt}, "", f"p{x}") for x, prompt in enumerate(PROMPTS))
    return Llama(Policy(model.train(False), tokenizer), completions, reward, rows)


def _completions(language: Language, eos: int) -> tuple[tuple[int, ...], ...]:
    """The language's completions, with the tokenizer's end token in the place of its own."""
    swap = {language.eos: eos, eos: language.eos}
    return tuple(tuple(swap.get(token, token) for token in y) for y in language.completions)


def sampled_rows(*, draws: int = 40_000, batches: int = 40, seed: int = 0) -> Iterator[Finding]:
    """The sampler's frequencies, its log-probabilities, and mean gradients.

    The gradients are those of every row that has a closed form.
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
    yield compare_equal(
        "transformer",
        "156 completions of each prompt sum to 1",
        logp.exp().sum(1),
        torch.ones(2),
        limit=1e-5,
    )
    # both are kept in `decoders` once they are made
    compact_of(llama.policy)
    static_decoder_of(llama.policy)
    decoders = llama.policy.decoders
    decoders["warned"] = True  # slower ones are asked for here
    compact = decoders["compact"]
    static = decoders["static"]
    for name, *ways in (
        ("sampler", compact, static),
        ("static sampler", None, static),
        ("general sampler", None, None),
    ):
        decoders["compact"], decoders["static"] = ways
        yield from sampler(name, llama, logp, draws, seed)


def transformer(*, seed: int = 0) -> Iterator[Finding]:
    """A transformer's steps in micro-batches of another size, and a discriminator's logits."""
    llama = make_llama(seed)
    groups = draw_groups(llama, 3, 0, seed)
    yield from check_microbatches(llama, groups)
    yield from check_discriminator(llama, groups)


def draw_groups(llama: Llama, count: int, step: int, seed: int, size: int = G) -> list[Group]:
    """`count` groups of `size` of each prompt from the library's sampler, rewarded."""
    rows = [replace(row, id=f"{row.id}.{i}") for i in range(count) for row in llama.rows]
    groups = rollout(Sampler(llama.policy), rows, Draw("verify", step, seed, size, H, TEMPERATURE))
    X = len(llama.rows)
    return [with_rewards(llama, group, i % X) for i, group in enumerate(groups)]


def with_rewards(llama: Llama, group: Group, x: int) -> Group:
    """A group of prompt x with its rewards."""
    rewards = tuple(llama.reward[x, sample.completion_ids] for sample in group.samples)
    return replace(group, rewards=rewards)


def sampler(name: str, llama: Llama, logp_XN: Tensor, draws: int, seed: int) -> Iterator[Finding]:
    """Counts and log-probabilities of this sampler's completions against the listed ones."""
    X = len(llama.rows)
    groups = draw_groups(llama, draws // TOGETHER // X, 0, seed, TOGETHER)
    where = {ids: n for n, ids in enumerate(llama.completions)}
    gaps: list[Tensor] = []
    for x in range(X):
        samples = [s for group in groups[x::X] for s in group.samples]
        index = torch.tensor([where[s.completion_ids] for s in samples])
        sampled_logp = torch.tensor([sum(s.logps) for s in samples], dtype=torch.float64)
        gaps.append(sampled_logp - logp_XN[x, index])
        count = torch.bincount(index, minlength=len(where)).double()
        expected = logp_XN[x].exp() * len(samples)
        yield chi_square(name, x, count, expected, len(samples))
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


def chi_square(name: str, x: int, count: Tensor, expected: Tensor, samples: int) -> Finding:
    """Chi-square of the counts of prompt x against the expected ones.

    Cells of fewer than 5 expected draws are pooled.
    """
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    count = torch.cat([count[~rare], count[rare].sum()[None]])
    square = float(((count - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    freedom = len(expected) - 1
    z = (square - freedom) / (2 * freedom) ** 0.5
    return Finding(
        name,
        f"chi-square of counts, prompt {x}",
        f"{freedom}",
        f"{square:.1f}",
        abs(z),
        4.0,
        samples,
        "float32",
    )


@dataclass(frozen=True)
class Expectation:
    """The exact mean gradient of a row with these options, and what it is in words."""

    name: str
    says: str
    truth: Tensor
    options: dict[str, Any]


def expectations(llama: Llama) -> list[Expectation]:
    """Every row whose mean gradient on whole batches has a closed form."""
    p_X = (llama.logp().detach().exp() * llama.reward_table()).sum(1)
    one = torch.ones(len(p_X))
    c = torch.tensor([group_weight(float(p), G) for p in p_X])
    grad_J = reward_gradient(llama, one)
    scaled = reward_gradient(llama, c)
    whole = {"mask_truncated_completions": False}
    own: tuple[tuple[str, str, Tensor, dict[str, Any]], ...] = (
        ("reinforce", "grad J", grad_J, {}),
        ("reinforce_baseline", "grad J", grad_J, {}),
        ("rloo", "grad J", grad_J, {}),
        ("dr_grpo", "(G-1)/(G H) grad J", reward_gradient(llama, one * (G - 1) / G / H), {}),
        ("grpo", "c_G(p) grad p, summed", scaled, PER_ROW),
        ("dapo", "c_G(p) grad p, summed", scaled, PER_ROW | whole),
        (
            "cispo",
            "(G-1)/G grad J, summed",
            reward_gradient(llama, one * (G - 1) / G),
            PER_ROW | {"scale_rewards": "none"},
        ),
        ("raft", "grad p, keep=above", grad_J, PER_ROW | {"keep": "above"}),
    )
    return [Expectation(*fields) for fields in own]


def reward_gradient(llama: Llama, factor_X: Tensor) -> Tensor:
    """The gradient of E[R], the expectation of each prompt times a factor, as one vector."""
    mean_X = (llama.logp().exp() * llama.reward_table()).sum(1)
    parameters = list(llama.policy.trainable().values())
    return flat_vector(torch.autograd.grad((mean_X * factor_X).mean(), parameters))


def flat_vector(tensors: Sequence[Tensor]) -> Tensor:
    """All entries as one vector, float64."""
    return torch.cat([x.flatten() for x in tensors]).double()


def gradients(llama: Llama, batches: int, seed: int) -> Iterator[Finding]:
    """Mean gradient over many batches, along the direction of theory: |z| of its length."""
    rows = expectations(llama)
    found: dict[str, list[float]] = {row.name: [] for row in rows}
    for step in range(1, batches + 1):
        groups = draw_groups(llama, GROUPS, step, seed)
        for row in rows:
            step_gradient = flat_gradient(llama, row.name, groups, running_mean=0.3, **row.options)
            found[row.name].append(float(step_gradient @ row.truth / row.truth.norm()))
    for row in rows:
        yield compare_sampled_mean(
            row.name,
            f"mean gradient along {row.says}",
            torch.tensor(found[row.name]),
            float(row.truth.norm()),
            samples=batches * GROUPS * G * len(llama.rows),
        )


SAMPLED: dict[str, Any] = {
    "temperature": TEMPERATURE,
    "max_completion_length": H,
    "num_generations": G,
}
"""Options of every row that samples."""


def flat_gradient(
    llama: Llama, name: str, groups: list[Group], *, running_mean: float = 0.0, **options: Any
) -> Tensor:
    """One step of the loop on the transformer: the ascent direction as one vector, float64."""
    row = ALGORITHMS[name]
    own = SAMPLED | options if row.source.sampled else options
    recorder = Recorder(list(llama.policy.trainable().values()))
    reference = lambda: Reference(llama.policy, adapters_off=False)  # noqa: E731
    setup = setup_of(name, llama.policy, reference, recorder, **own)
    if row.credit == "critic":
        setup.auxiliary = shared_critic(llama.policy)
    if row.trained.auxiliary == "heads":
        setup.auxiliary = new_heads(llama.policy, target_update=0.1, decode_beta=1.0)
    if row.trained.auxiliary == "discriminator":
        setup.auxiliary = make_discriminator(llama.policy)
    state = State(step=1, running_mean=running_mean)
    loop.update(setup, state, loop.weigh(setup, state, groups, Sums()), Sums())
    return flat_vector(ascent_of(setup))


def check_microbatches(llama: Llama, groups: list[Group]) -> Iterator[Finding]:
    """Micro-batches of a transformer, float32: prompts of unequal length share a batch or not."""
    for name, row in ALGORITHMS.items():
        if row.trained.head or row.source.population:
            continue
        whole = flat_gradient(llama, name, groups, token_budget=1 << 14)
        split = flat_gradient(llama, name, groups, token_budget=24)
        yield compare_float32("transformer: micro-batches of 24 tokens", split, whole, name)


def compare_float32(quantity: str, measured: Tensor, expected: Tensor, name: str) -> Finding:
    """Two tensors of a float32 model that must be equal to 1e-5."""
    found = compare_equal(name, quantity, measured, expected, limit=1e-5)
    return replace(found, precision="float32")


def check_discriminator(llama: Llama, groups: list[Group]) -> Iterator[Finding]:
    """A discriminator's body on demonstrations and samples of the loop.

    Each row goes by itself, unpadded, and a step in micro-batches of two sizes.
    """
    judge = make_discriminator(llama.policy)
    head: Any = judge.reader.model["head"]
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    demonstrated = [replace(group, row={"prompt": "a", "completion": "ab"}) for group in groups]
    alone = torch.cat([logit_alone(judge, s) for group in demonstrated for s in group.samples])
    together = judge.logits(pack(demonstrated))
    yield compare_float32("transformer: logits of each row alone", together, alone, "gail")
    split, whole = (
        imitation_gradient(llama, judge, demonstrated, budget) for budget in (24, 1 << 14)
    )
    yield compare_float32(
        "transformer: micro-batches, the discriminator's gradient too", split, whole, "gail"
    )


def logit_alone(judge: Discriminator, sample: Sample) -> Tensor:
    """A discriminator's logit of one row by itself."""
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
    hidden_1LD = judge.reader.model["body"](input_ids=ids, use_cache=False).last_hidden_state
    return judge.reader.head(hidden_1LD[:, -1])


def imitation_gradient(
    llama: Llama, judge: Discriminator, groups: list[Group], token_budget: int
) -> Tensor:
    """A step on groups with demonstrations: both networks' gradients as one vector."""
    parameters = [*llama.policy.trainable().values(), *judge.trainable().values()]
    options = SAMPLED | {"token_budget": token_budget}
    setup = setup_of("gail", llama.policy, None, Recorder(parameters), **options)
    setup.auxiliary = judge
    state = State(step=1)
    ready = with_demonstrations(setup, [], setup.score(groups), Sums())
    loop.update(setup, state, loop.weigh(setup, state, ready, Sums()), Sums())
    return torch.cat([g.flatten() for g in ascent_of(setup)])
