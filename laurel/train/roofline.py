"""The roofline: the time that the necessary work of a step takes at measured rates.

Work is products, attention and reading of memory; rates are measured at their own shapes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from laurel.core.sample import Batch
from laurel.core.tensors import ints

AT_ONCE = 2048
"""Tokens that go through a layer together, at most: more are not multiplied any faster."""
LARGEST = 256 << 20
"""Bytes beyond which no cache holds them: more are not read any slower."""


class ProductShape(NamedTuple):
    """[rows, inner] times [inner, columns], `number` of them.

    kind: `weights`, one after the other, or `heads` of attention, at once.
    """

    kind: Literal["weights", "heads"]
    number: int
    rows: int
    inner: int
    columns: int


class BodyCosts(NamedTuple):
    """What of a model costs time.

    matrices: (out, in, does it learn?) -> how many of them every token is multiplied by.
    vocabulary: a matrix with so many rows is a head, which only tokens that are drawn or trained on
    go through. windows: of each layer with attention, how many tokens a query sees, None for all
    before it.
    """

    matrices: Counter[tuple[int, int, bool]]
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]


@dataclass
class Work:
    """Floating-point operations of products by shape, and bytes read by size of memory."""

    products: defaultdict[ProductShape, float] = field(default_factory=lambda: defaultdict(float))
    reads: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def operations(self) -> float:
        """Of all products."""
        return sum(self.products.values())

    def multiply(self, product: ProductShape, operations: float) -> None:
        """Count operations, at the rate of this shape."""
        if operations:
            self.products[product] += operations

    def pass_through(
        self, body: BodyCosts, tokens: int, at_head: int, *, learns: bool, at_once: int = AT_ONCE
    ) -> None:
        """Count `tokens` through every matrix, `at_head` of them through heads.

        learns: and the gradients of input and weight.
        """
        for (out, into, moves), count in body.matrices.items():
            through = at_head if out == body.vocabulary else tokens
            rows, operations = (
                round_to_power_of_two(min(through, at_once)),
                2.0 * count * out * into * through,
            )
            self.multiply(ProductShape("weights", count, rows, into, out), operations)
            if learns:
                self.multiply(ProductShape("weights", count, rows, out, into), operations)
            if learns and moves:
                self.multiply(ProductShape("weights", count, out, rows, into), operations)

    def attend(self, heads: int, queries: int, width: int, keys: int, operations: float) -> None:
        """Attention: queries times keys, and as much for probabilities times values."""
        queries, keys = round_to_power_of_two(queries), round_to_power_of_two(keys)
        self.multiply(ProductShape("heads", heads, queries, width, keys), operations)
        self.multiply(ProductShape("heads", heads, queries, keys, width), operations)

    def read(self, there: float, often: float) -> None:
        """`often` bytes of memory in which `there` bytes lie."""
        if often:
            self.reads[min(round_to_power_of_two(int(there)), LARGEST)] += often


def round_to_power_of_two(tokens: int) -> int:
    """The nearest power of two: few shapes are to be measured then. Below eight as it is."""
    if tokens < 8:
        return tokens
    low = 1 << tokens.bit_length() - 1
    return low if tokens - low < 2 * low - tokens else 2 * low


def body_of(model: nn.Module) -> BodyCosts:
    """What of a Hugging Face model costs time.

    A auxiliary without a body has only its trained matrices, and no attention.
    """
    config: Any = getattr(model, "config", None)
    matrices = matrices_of(model, config)
    if config is None:
        return BodyCosts(matrices, max((out for out, _, _ in matrices), default=0), 0, 0, 0, ())
    config = config.get_text_config()
    heads, width = config.num_attention_heads, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return BodyCosts(
        matrices=matrices,
        vocabulary=config.vocab_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        windows=tuple(width if kind == "sliding_attention" else None for kind in kinds),
    )


def matrices_of(model: nn.Module, config: Any) -> Counter[tuple[int, int, bool]]:
    """(out, in, does it learn?) of every matrix that a token is multiplied by, with how many."""
    embeddings: Any = getattr(model, "get_output_embeddings", None)
    output = embeddings() if embeddings is not None else None
    head = getattr(output, "weight", None)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = Counter[tuple[int, int, bool]]()
    for p in model.parameters():
        if id(p) in tables or p is head or not (config or p.requires_grad):
            continue
        if p.ndim in (2, 3):  # [experts, out, in]: a token takes a few of them
            experts = 1 if p.ndim == 2 else getattr(config, "num_experts_per_tok", len(p))
            matrices[p.shape[-2], p.shape[-1], p.requires_grad] += experts
    if head is not None:
        matrices[head.shape[0], head.shape[1], head.requires_grad] += 1
    return matrices


def count_attention_pairs(first: int, last: int, body: BodyCosts) -> float:
    """Pairs of a query at first .. last - 1 with a key that it attends to, in all layers.

    A query attends to its own position, too.
    """
    found = 0.0
    for window in body.windows:
        full = max(first, min(last, window or last))  # queries from here on see `window` keys
        found += (full * (full + 1) - first * (first + 1)) / 2 + (last - full) * (window or 0)
    return found


def count_pass(work: Work, body: BodyCosts, batch: Batch, *, learns: bool) -> None:
    """Count a pass over a batch: real tokens only, a prompt once for all rows of its group.

    Heads are computed where a token is trained on. In the backward pass, attention has twice as
    many products as in the forward pass.
    """
    starts, lengths, rows = ints(batch.start_N), ints(batch.length_N), len(batch)
    prompts = dict(zip(ints(batch.group_N), starts, strict=True))
    if not rows:
        return
    work.pass_through(
        body, sum(prompts.values()) + sum(lengths), int(batch.loss_mask_NT.sum()), learns=learns
    )
    a_pair = 2.0 * body.heads * body.head_dim * (3 if learns else 1)
    own = sum(
        count_attention_pairs(start, start + length, body)
        for start, length in zip(starts, lengths, strict=True)
    )
    read = sum(count_attention_pairs(0, start, body) for start in prompts.values())
    long, wide = sum(lengths) // rows, sum(starts) // rows
    for queries, keys, count in ((long, wide + long, own), (wide, wide, read)):
        work.attend(
            body.heads * max(1, min(rows, AT_ONCE // max(keys, 1))),
            queries,
            body.head_dim,
            keys,
            a_pair * count,
        )


def count_sampling(
    work: Work,
    body: BodyCosts,
    itemsize: int,
    prompts: Sequence[int],
    lengths: Sequence[Sequence[int]],
) -> None:
    """Count the sampling of completions of these lengths, of each prompt some.

    A prompt is read once, and its keys once a token for all its rows. A row's own keys and values,
    numbers of `itemsize` bytes, are read once for each of its tokens, from memory that holds all
    rows'.
    """
    every = sorted(length for row in lengths for length in row)
    rows, wide = len(every), sum(prompts) // len(prompts)
    a_pair = 2.0 * body.heads * body.head_dim
    read_prompts(work, body, prompts)
    open_rows = rows
    for before, length in zip([1, *every], every, strict=False):
        new = open_rows * (length - before)  # what a row says last is never read
        work.pass_through(body, new, new, learns=False, at_once=open_rows)
        open_rows -= 1
    each = [
        (prompt, length - 1) for prompt, row in zip(prompts, lengths, strict=True) for length in row
    ]
    own = sum(count_attention_pairs(0, length, body) for _, length in each)
    shared = (
        sum(count_attention_pairs(prompt, prompt + length, body) for prompt, length in each) - own
    )
    queries = max(1, rows // len(prompts)) * body.heads // body.kv_heads
    work.attend(len(prompts) * body.kv_heads, queries, body.head_dim, wide, a_pair * shared)
    a_token = 2 * body.kv_heads * body.head_dim * itemsize
    work.read(a_token * len(body.windows) * sum(every), a_token * own)


def read_prompts(work: Work, body: BodyCosts, prompts: Sequence[int]) -> None:
    """Prompts of these lengths, each read once, before the first token is drawn."""
    wide = sum(prompts) // len(prompts)
    work.pass_through(body, sum(prompts), len(prompts), learns=False, at_once=4 * AT_ONCE)
    together = min(len(prompts), AT_ONCE // max(wide, 1)) or 1
    operations = (
        2.0
        * body.heads
        * body.head_dim
        * sum(count_attention_pairs(0, prompt, body) for prompt in prompts)
    )
    work.attend(body.heads * together, wide, body.head_dim, wide, operations)


Rates = dict[ProductShape | int, float]
"""What was measured: operations per second of a product, or bytes per second of so many bytes."""


@torch.no_grad()
def bound_seconds(work: Work, dtype: torch.dtype, device: torch.device, rates: Rates) -> float:
    """Seconds of the work at the rates of this machine.

    Rates that `rates` lacks are measured now, and added to it.
    """
    for shape in work.products.keys() - rates.keys():
        rates[shape] = product_rate(shape, dtype, device)
    for there in work.reads.keys() - rates.keys():
        rates[there] = read_rate(there, device)
    return sum(
        amount / rates[what]
        for kind in (work.products, work.reads)
        for what, amount in kind.items()
    )


def product_rate(
    shape: ProductShape, dtype: torch.dtype, device: torch.device, budget: float = 0.01
) -> float:
    """Operations per second of a product, into memory that is there.

    Weights take turns, so that they are read from memory as in a step.
    """
    kind, count, rows, inner, columns = shape
    many = count if kind == "heads" else 1
    left, into = (
        torch.ones(many, rows, width, dtype=dtype, device=device) for width in (inner, columns)
    )
    right = torch.ones(count, columns, inner, dtype=dtype, device=device)
    if kind == "heads":
        return (
            2.0
            * count
            * rows
            * inner
            * columns
            / median_seconds(lambda turn: torch.bmm(left, right.mT, out=into), device, budget)
        )
    one = median_seconds(
        lambda turn: torch.mm(left[0], right[turn % count].t(), out=into[0]), device, budget
    )
    return 2.0 * rows * inner * columns / one


def read_rate(there: int, device: torch.device, budget: float = 0.02) -> float:
    """Bytes per second when so many are read again and again."""
    numbers = torch.ones(max(1, there // 4), device=device)
    return 4.0 * len(numbers) / median_seconds(lambda turn: numbers.sum(), device, budget)


def median_seconds(call: Callable[[int], Tensor], device: torch.device, budget: float) -> float:
    """Seconds of one call: the median of as many as fit into the budget, at least three.

    A GPU is waited for after sixteen.
    """
    together = 16 if device.type == "cuda" else 1
    times, end = list[float](), time.perf_counter() + budget
    call(0)
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        for turn in range(together):
            call(len(times) * together + turn)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) / together)
    return median(times)
