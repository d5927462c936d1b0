"""`laurel doctor --model M`: which way a model takes here, how fast, and in what memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

ROWS, PROMPT, SAMPLED = (
    8,
    32,
    16,
)  # of the measurement: rows, tokens of a prompt, tokens sampled for each


def model_lines(name: str) -> list[tuple[str, str]]:
    """(what, finding) of a model: size, sampling, training, memory.

    Weights are loaded; a few rows are sampled and trained on.
    """
    from laurel.core.config import TrainConfig
    from laurel.fast.packed import can_encode
    from laurel.fast.static import static_because
    from laurel.model.policy import load_policy
    from laurel.rollout.sampler import choose_sampling_way
    from laurel.train.memory import weight_bytes
    from laurel.train.optimizer import state_bytes

    policy = load_policy(TrainConfig(model=name))
    causal: Any = policy.causal
    vocabulary, width = causal.get_input_embeddings().weight.shape
    count = policy.num_parameters
    lines = [
        (
            "model",
            (
                f"{type(policy.causal).__name__}, {format_count(count)} weights,"
                f" {vocabulary:,} words, width {width}"
            ),
        )
    ]
    rate = measure_sampling_rate(policy)
    lines.append(
        (
            "sampling",
            (
                f"{describe_sampling(*choose_sampling_way(policy))}; {rate:,.0f} tokens/s,"
                f" {ROWS} rows at once"
            ),
        )
    )
    if policy.device.type != "cuda":
        lines.append(("on CUDA", describe_cuda_sampling(policy, static_because(policy))))
    packed = can_encode(getattr(causal, causal.base_model_prefix))
    way = (
        "fast: packed, no padding, shared prompts once"
        if packed
        else "general: padded rows, transformers' own forward"
    )
    lines.append(
        ("training", f"{way}; {measure_training_rate(policy):,.0f} tokens/s forward and backward")
    )
    weights = weight_bytes(policy.model)
    trained = weights + sum(state_bytes(policy.trainable(), "adamw_torch").values())
    lines.append(
        (
            "memory",
            (
                f"{format_bytes(weights)} of weights; all of them trained {format_bytes(trained)},"
                f" with a reference for KL {format_bytes(trained + weights)};"
                f" LoRA {format_bytes(weights)} and its adapters;"
                " activations beside that (--algorithm grpo: all of it)"
            ),
        )
    )
    return lines


def describe_sampling(name: str, why: str) -> str:
    """A way of sampling in words, and why it is not a faster one."""
    if name == "general":
        return f"general: {why}"
    fast = (
        "the compact decoder"
        if name == "compact"
        else "static buffers" + (f" ({why})" if why else "")
    )
    return f"fast: {fast}"


def describe_cuda_sampling(policy: Any, why: str) -> str:
    """How a policy would be sampled there, and the memory of some rows beside the weights."""
    from laurel.fast.inflight import memory_of

    if why:
        return describe_sampling("general", why)
    taken = format_bytes(sum(memory_of(policy, 64, 256, 768).values()))
    precision = str(policy.dtype).removeprefix("torch.")
    return f"{describe_sampling('static', '')}; 64 rows of 1,024 tokens take {taken} in {precision}"


def format_count(count: int) -> str:
    """1.2 billion, 34 million, 12 thousand."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return str(count)


def format_bytes(size: float) -> str:
    """3.2 GB, 14 MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def make_probe_prompts(policy: Any) -> list[tuple[int, ...]]:
    """Prompts that differ, of ids from the middle of the vocabulary."""
    size = policy.causal.get_input_embeddings().weight.shape[0]
    return [
        tuple((7 * row + at) % (size // 2) + size // 4 for at in range(PROMPT))
        for row in range(ROWS)
    ]


def measure_sampling_rate(policy: Any) -> float:
    """Tokens drawn in a second, after a first token that pays for what is made once."""
    from laurel.rollout.sampler import sample

    def draw(prompts: Sequence[tuple[int, ...]], tokens: int) -> int:
        found = sample(
            policy,
            prompts,
            seeds=list(range(len(prompts))),
            max_completion_length=tokens,
            temperature=1.0,
        )
        return sum(len(one.ids) for one in found)

    draw(make_probe_prompts(policy)[:1], 1)
    began = time.perf_counter()
    return draw(make_probe_prompts(policy), SAMPLED) / (time.perf_counter() - began)


def measure_training_rate(policy: Any) -> float:
    """Tokens of a forward and a backward pass in a second; the weights stay as they are."""
    from laurel.core.sample import Group, Key, Sample
    from laurel.rollout.pack import pack

    def group(at: int, ids: tuple[int, ...]) -> Group:
        completion = ids[PROMPT // 2 :]
        sample = Sample(
            Key("doctor", "", str(at), 0, 0),
            ids[: PROMPT // 2],
            completion,
            (0.0,) * len(completion),
            (True,) * len(completion),
            1.0,
            "length",
            "",
            (),
        )
        return Group(str(at), {}, (sample,))

    batch = pack([group(at, ids) for at, ids in enumerate(make_probe_prompts(policy))]).to(
        policy.device
    )
    began = time.perf_counter()
    policy.logp(batch).logp.sum().backward()
    seconds = time.perf_counter() - began
    policy.model.zero_grad()
    return int(batch.attention_NL.sum()) / seconds
