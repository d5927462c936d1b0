"""What must not matter to a transformer: chunks of logits, kinds of heads, rows that share a batch.

A table has neither a body nor a head. Here whole rows, each by itself and unpadded, go through the
model's own forward pass, and that is compared with what training does: packed rows, prompts encoded
once, a few rows of logits at a time. All of it in the precision asked for, float64 included, so
that only rounding may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.sample import Batch, Group, Key, Sample
from laurel.fast import logprob
from laurel.fast.packed import KNOWN
from laurel.model.critic import Critic, shared_critic
from laurel.model.interface import PolicyWithAuxiliary
from laurel.model.policy import Policy, Reference
from laurel.model.scratch import char_tokenizer, small_model
from laurel.rollout.pack import pack
from laurel.verify.finding import Finding, compare_equal

NAME = "transformer"
CAP = 0.5  # much smaller than the logits, so that a forgotten cap shows
FEW = 3  # rows of logits at once


def with_bias(model: Any) -> Any:
    """A linear head with a bias of its own: its gradient is autograd's, chunk by chunk."""
    old = model.get_output_embeddings()
    new = nn.Linear(old.in_features, old.out_features)
    nn.init.normal_(new.bias, generator=torch.Generator().manual_seed(1))
    new.weight = nn.Parameter(old.weight.detach().clone())
    model.set_output_embeddings(new)
    return model


def soft_capped_model(size: int, seed: int) -> Any:
    """A Gemma 2, whose logits end at a soft cap; `packed` leaves it to its own forward pass."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=CAP,
        sliding_window=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Gemma2ForCausalLM(config)


HEADS = ("linear head", "head with a bias", "capped logits")


def make_policy(head: str, seed: int) -> Policy:
    """A model of one layer over the characters a and b, in the default precision."""
    tokenizer = char_tokenizer("ab")
    model: Any
    if head == "capped logits":
        model = soft_capped_model(len(tokenizer), seed)
    else:
        model = small_model(
            tokenizer, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, seed=seed
        )
        model = with_bias(model) if head == "head with a bias" else model
    return Policy(model.to(torch.get_default_dtype()).train(False), tokenizer)


PROMPTS = {
    "one": [(3, 4)] * 4,
    "relabelled": [(3, 4, 3, 5), (3, 4, 3, 4), (5, 4, 3, 4), (3, 4, 3, 4)],
    "long": [(4, 4, 3, 5, 3, 4)] * 3,
}
"""The prompt of every row of three groups."""
TEMPERATURES = (0.7, 1.0, 1.3)


def mixed_batch() -> Batch:
    """Eleven rows as they come in training, and at once what is rare there.

    Two groups under one prompt each, of unequal length; one group whose rows were relabelled, so
    that two of its prompts are equally long and different; a completion with a tool's tokens
    inside; a row that is not trained on; and as many temperatures as groups.
    """
    noise = torch.Generator().manual_seed(7)
    groups: list[Group] = []
    for g, (name, prompts) in enumerate(PROMPTS.items()):
        samples = tuple(mixed_sample(name, g, n, prompt, noise) for n, prompt in enumerate(prompts))
        untrained = ("long", 1)
        rewards = tuple(None if (name, n) == untrained else 1.0 for n in range(len(prompts)))
        groups.append(Group(name, {}, samples, rewards=rewards))
    return pack(groups)


def mixed_sample(
    name: str, g: int, n: int, prompt: tuple[int, ...], noise: torch.Generator
) -> Sample:
    """Row n of group g: one to five random tokens, of which the second of row 2 is a tool's."""
    length = 1 + (3 * n + 2 * g) % 5
    ids = tuple(torch.randint(3, 6, (length,), generator=noise).tolist())
    trained = tuple(not (n == 2 and t == 1) for t in range(length))
    return Sample(
        Key("verify", "", name, n, 0),
        prompt,
        ids,
        (0.0,) * length,
        trained,
        TEMPERATURES[g],
        "length",
        "",
        (),
    )


@contextmanager
def few_at_once(policy: Policy) -> Iterator[None]:
    """Chunks of FEW rows of logits, of which the last one is not full.

    Of a linear head FEW tiles along the vocabulary, too.
    """
    before = logprob.CHUNK, logprob.NARROW
    vocabulary = vocabulary_of(policy)
    logprob.CHUNK = FEW * vocabulary
    logprob.NARROW = -(-vocabulary // FEW)  # rounded up
    try:
        yield
    finally:
        logprob.CHUNK, logprob.NARROW = before


def vocabulary_of(policy: Policy) -> int:
    """V of a policy."""
    return policy.causal.get_input_embeddings().weight.shape[0]


def logprobs_row_by_row(policy: Policy, batch: Batch) -> Tensor:
    """log pi of every next token of every row: [N, T, V], 0 where not trained.

    Each row goes by itself through the model's own forward pass.
    """
    out = torch.zeros(*batch.loss_mask_NT.shape, vocabulary_of(policy))
    for n in range(len(batch)):
        start = int(batch.start_N[n])
        length = int(batch.length_N[n])
        ids_1L = batch.ids_NL[n : n + 1, : start + length]
        logits = policy.causal(input_ids=ids_1L, use_cache=False).logits
        # a token's logits stand at the position before it
        logp_TV = (logits[0, start - 1 : -1] / batch.temperature_N[n]).log_softmax(1)
        where = (torch.full((length,), n), torch.arange(length))
        out = torch.index_put(out, where, logp_TV)
    return torch.where(batch.loss_mask_NT[..., None], out, 0.0)


def chosen_logprobs(logp_NTV: Tensor, batch: Batch) -> Tensor:
    """The entries of the tokens that were chosen: [N, T]."""
    time_T = torch.arange(batch.loss_mask_NT.shape[1])
    # where in its row each token stands; past the end of a row: its last place
    at_NT = (batch.start_N[:, None] + time_T).clamp(max=batch.ids_NL.shape[1] - 1)
    token_NT = batch.ids_NL.gather(1, at_NT)
    return logp_NTV.gather(2, token_NT[..., None])[..., 0]


def gradient_of_weighted_sum(value_NT: Tensor, policy: Policy) -> Tensor:
    """The gradient of a sum of values, no two weighed alike, in every weight of the model."""
    weight_NT = torch.linspace(-1, 2, value_NT.numel()).view_as(value_NT)
    found = torch.autograd.grad(
        (weight_NT * value_NT).sum(), list(policy.model.parameters()), retain_graph=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def shapes(*, seed: int = 0) -> Iterator[Finding]:
    """Each head: what training computes in chunks and packed, against rows by themselves."""
    batch = mixed_batch()
    for head in HEADS:
        policy, other = make_policy(head, seed), make_policy(head, seed + 1)
        reference = Reference(other, adapters_off=False)
        if head == "capped logits":
            # `packed` would find out that it is no Llama, and say so in the log
            KNOWN.update({one.causal.model: False for one in (policy, reference.policy)})  # type: ignore[dict-item]
        with few_at_once(policy):
            yield from without_gradient(head, policy, reference, batch)
            yield from with_gradient(head, policy, reference, batch)
    yield from check_microbatches(make_policy("linear head", seed), batch)


def without_gradient(
    head: str, policy: Policy, reference: Reference, batch: Batch
) -> Iterator[Finding]:
    """What the sampler's check, the reference and metrics ask for."""
    with torch.no_grad():
        logp_NTV, ref_NTV = (
            logprobs_row_by_row(policy, batch),
            logprobs_row_by_row(reference.policy, batch),
        )
        stats = policy.logp(batch, entropy="value")
        yield compare_equal(
            NAME, f"{head}: log pi without a gradient", stats.logp, chosen_logprobs(logp_NTV, batch)
        )
        yield compare_equal(
            NAME,
            f"{head}: entropy without a gradient",
            require_entropy(stats.entropy),
            entropies(logp_NTV),
        )
        yield compare_equal(
            NAME, f"{head}: log ref", reference.logp(batch), chosen_logprobs(ref_NTV, batch)
        )
        yield compare_equal(
            NAME,
            f"{head}: exact KL without a gradient",
            policy.kl(batch, reference),
            divergences(logp_NTV, ref_NTV),
        )


def with_gradient(
    head: str, policy: Policy, reference: Reference, batch: Batch
) -> Iterator[Finding]:
    """What an update asks for: values, and what they pull at."""
    logp_NTV, ref_NTV = (
        logprobs_row_by_row(policy, batch),
        logprobs_row_by_row(reference.policy, batch).detach(),
    )
    shown, learned = (policy.logp(batch, entropy=how) for how in ("value", "grad"))
    for what, ours, theirs in (
        ("log pi", shown.logp, chosen_logprobs(logp_NTV, batch)),
        ("log pi beside an entropy", learned.logp, chosen_logprobs(logp_NTV, batch)),
        ("the entropy", require_entropy(learned.entropy), entropies(logp_NTV)),
        ("the exact KL", policy.kl(batch, reference), divergences(logp_NTV, ref_NTV)),
    ):
        yield compare_equal(NAME, f"{head}: {what}", ours, theirs)
        # Llama's norms compute in float32 whatever the model's precision: their gradient is exact
        # to that.
        pulls = [gradient_of_weighted_sum(value_NT, policy) for value_NT in (ours, theirs)]
        yield compare_equal(NAME, f"{head}: gradient of {what}", *pulls, limit=2e-6)
    yield compare_equal(
        NAME, f"{head}: entropy to look at", require_entropy(shown.entropy), entropies(logp_NTV)
    )


def check_microbatches(policy: Policy, batch: Batch) -> Iterator[Finding]:
    """Micro-batches by length, packed or padded, of whole groups or not.

    Every row comes once, and what belongs to a row stays its own.
    """
    critic = shared_critic(policy)
    head: Any = critic.model["head"]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(3))
    model = PolicyWithAuxiliary(policy, critic)

    def values(part: Batch) -> Tensor:
        return model.forward(part, ("value_NT",)).tensors(["value_NT"])[0]

    with torch.no_grad():
        logp_NT = chosen_logprobs(logprobs_row_by_row(policy, batch), batch)
        rows = [batch.rows([n]) for n in range(len(batch))]
        value_NT = torch.cat([padded(valued_alone(policy, critic, row), batch) for row in rows])
        for packed, whole_groups, budget in product((False, True), (False, True), (1, 17, 40)):
            parts = list(batch.split(budget, whole_groups=whole_groups, packed=packed))
            by_key = [
                join_parts(batch, parts, lambda part: policy.logp(part).logp),
                join_parts(batch, parts, values),
            ]
            layout = "packed" if packed else "padded"
            groups = ", whole groups" if whole_groups else ""
            yield compare_equal(
                NAME,
                f"micro-batches of {budget}, {layout}{groups}: log pi and V by key",
                torch.stack(by_key),
                torch.stack([logp_NT, value_NT]),
            )


def valued_alone(policy: Policy, critic: Critic, row: Batch) -> Tensor:
    """V of one row by itself, read before each token: [1, T], 0 where not trained.

    The hidden states are those of the body's own forward pass.
    """
    body = getattr(policy.causal, policy.causal.base_model_prefix)
    hidden_LD = body(input_ids=row.ids_NL, use_cache=False).last_hidden_state[0]
    value_1T = critic.model["head"](hidden_LD[int(row.start_N) - 1 : -1])[None, :, 0]
    return torch.where(row.loss_mask_NT, value_1T, 0.0)


def join_parts(batch: Batch, parts: Sequence[Batch], of: Callable[[Batch], Tensor]) -> Tensor:
    """Numbers of the parts' rows, added up in the places of their keys: [N, T].

    A row that comes twice counts twice.
    """
    row = {key: n for n, key in enumerate(batch.keys)}
    out = torch.zeros(batch.loss_mask_NT.shape)
    for part in parts:
        places = torch.tensor([row[key] for key in part.keys])
        out.index_add_(0, places, padded(of(part), batch))
    return out


def padded(x_NT: Tensor, batch: Batch) -> Tensor:
    """As wide as the batch, zeros at the end."""
    return nn.functional.pad(x_NT, (0, batch.loss_mask_NT.shape[1] - x_NT.shape[1]))


def require_entropy(entropy_NT: Tensor | None) -> Tensor:
    """An entropy that was asked for."""
    assert entropy_NT is not None
    return entropy_NT


def entropies(logp_NTV: Tensor) -> Tensor:
    """Of every state: [N, T]."""
    return -(logp_NTV.exp() * logp_NTV).sum(2)


def divergences(logp_NTV: Tensor, ref_NTV: Tensor) -> Tensor:
    """KL(pi || ref) of every state: [N, T]."""
    return (logp_NTV.exp() * (logp_NTV - ref_NTV)).sum(2)
