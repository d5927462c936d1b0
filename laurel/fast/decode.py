"""Sampling on a CPU: random numbers, a compact forward pass, and continuous batching over it.

The forward pass reads the training weights of Llama-like models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laurel.core.sample import Completion, Finish
from laurel.core.tensors import float_rows, int_rows, ints
from laurel.fast.autograd import from_numpy, unflatten
from laurel.fast.kernels import call_kernel, load_library
from laurel.fast.logprob import upcast_logits
from laurel.fast.lora import lora_terms, merge_into, plain_lora
from laurel.fast.packed import window_of
from laurel.fast.policy_protocol import LanguageModel

GOLDEN = 0x9E3779B97F4A7C15
"""What the state of splitmix64 grows by with each number."""


def uniform_numbers(seeds: Sequence[int], count: int) -> np.ndarray:
    """[N, count] numbers in [0, 1), row n by splitmix64 (Steele et al. 2014) from seeds[n].

    Counter-based, so a sample's numbers do not depend on its neighbours, and nothing has to be
    saved to resume.
    """
    golden = np.uint64(GOLDEN)
    first = np.uint64(0xBF58476D1CE4E5B9)
    second = np.uint64(0x94D049BB133111EB)
    # arithmetic modulo 2^64 is what the generator is defined by: an overflow is no mistake
    with np.errstate(over="ignore"):
        counter = np.arange(1, count + 1, dtype=np.uint64)
        z = np.asarray(seeds, dtype=np.uint64)[:, None] + counter[None] * golden
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        z = z ^ (z >> np.uint64(31))
        # the upper 53 bits: as many as a float64 holds exactly
        return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def later_seed(seed: int, count: int) -> int:
    """The seed whose numbers are those of `seed` without the first `count`.

    A sample that is continued with it has the numbers it would have had in one go.
    """
    return (seed + count * GOLDEN) % 2**64


WORDS = 256
"""The number of probabilities in a block of `inverse_cdf`."""


def sample_tokens(
    logits_NV: Tensor, uniform_N: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF: ids [N], and their log-probabilities [N].

    The log-probabilities are under the distribution that is drawn from. temperature 0 is greedy
    (log-probabilities at temperature 1). top_k keeps the k likeliest tokens, top_p the smallest set
    of likeliest tokens that holds that much probability. Nothing is asked of the device, so a CUDA
    graph can hold it.
    """
    p_NV = scaled_probabilities(logits_NV, temperature, top_k=top_k, top_p=top_p)
    ids = logits_NV.argmax(1) if temperature == 0 else inverse_cdf(p_NV, uniform_N)
    return ids, p_NV.gather(1, ids[:, None])[:, 0].log()


def scaled_probabilities(
    logits_NV: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """The distribution that `sample_tokens` draws from: [N, V], at least float32.

    Of temperature 0 that at temperature 1, whole.
    """
    scaled_NV = logits_NV if temperature in (0, 1) else upcast_logits(logits_NV) / temperature
    p_NV = scaled_NV.softmax(1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature and (top_k or top_p < 1):
        p_NV = truncate_to_top(p_NV, top_k, top_p)
    return p_NV


def truncate_to_top(p_NV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities of the likeliest tokens only, summing to 1; see `draw`."""
    likeliest_NV, order_NV = p_NV.sort(dim=1, descending=True, stable=True)
    # a token stays where what is likelier than it does not yet make top_p
    drop_NV = likeliest_NV.cumsum(1) - likeliest_NV >= top_p
    if top_k:
        drop_NV[:, top_k:] = True
    # drop_NV is in order of probability: scatter takes it back to the order of the vocabulary
    p_NV = p_NV.masked_fill(drop_NV.scatter(1, order_NV, drop_NV), 0.0)
    return p_NV / p_NV.sum(1, keepdim=True)


def inverse_cdf(p_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token of each row at which the sum of probabilities exceeds a uniform number: [N].

    Never a token of probability 0. Blocks of WORDS tokens are added up first, and the token is then
    looked for in one block: the matrix is read once, and no second one as large is made.
    """
    size = p_NV.shape[1]
    blocks, rest = divmod(size, WORDS)
    whole = blocks * WORDS
    part_NB = p_NV[:, :0]
    if blocks:
        part_NB = unflatten(p_NV[:, :whole], 1, (blocks, WORDS)).sum(2)
    if rest:
        part_NB = torch.cat([part_NB, p_NV[:, whole:].sum(1, keepdim=True)], 1)
    part_NB = part_NB.double()
    # rounding: the probabilities add up to almost 1
    point_N = uniform_N.double() * part_NB.sum(1)
    block_N, left_N = first_part_beyond(part_NB, point_N)
    # the words of that block; the last block may be shorter: words behind the end count nothing
    at_NW = block_N[:, None] * WORDS + torch.arange(WORDS, device=p_NV.device)
    p_NW = p_NV.gather(1, at_NW.clamp(max=size - 1)) * (at_NW < size)
    return block_N * WORDS + first_part_beyond(p_NW.double(), left_N)[0]


def first_part_beyond(part_NB: Tensor, point_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first part at which the sum exceeds a point, and how far into it the point is: [N] each.

    Parts are float64.
    """
    total_NB = part_NB.cumsum(1)
    # rounding may have taken the point to the very end, where no part exceeds it
    point_N = point_N.minimum(total_NB[:, -1] * (1 - 2.0**-50)).clamp(min=0)
    which_N = (total_NB <= point_N[:, None]).sum(1)
    before_NB = total_NB - part_NB
    return which_N, point_N - before_NB.gather(1, which_N[:, None])[:, 0]


def rows_with_stop(stop: Sequence[str], tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Which rows of ids end in text that holds a stop string: [N].

    Only the tail that could hold one is decoded.
    """
    # a token has a character at least; nine more, for characters that are several tokens
    tail = max(map(len, stop)) + 9
    texts = tokenizer.batch_decode([row[-tail:] for row in rows])
    return torch.tensor([any(s in text for s in stop) for text in texts], dtype=torch.bool)


def chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive slices of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


STATIC_ROPES = ("default", "linear", "llama3", "yarn")
GEMMA = ("gemma", "gemma2", "gemma3_text")
"""Families whose norms multiply by 1 + w."""
NO_ROPE = "none"
"""The kind of a layer without rotary positions."""
FEW = 16
"""Products of so few rows are our own: the library reads weights a third slower, and there the last
bits of a row depend on how many rows there are.
"""
LEAST = 32
"""Rows of a product in an invariant batch, at least: from here on a row's last bits are its own."""
CACHE_BYTES = 1 << 30
"""Memory that is asked for at once for the keys and values of completions."""
Weights = tuple[Tensor, Tensor | None]
"""The matrix [E, D] and the bias [E] of a product."""


class LayerWeights(NamedTuple):
    """The weights of one layer: of its norms (None where the family has none) and its products.

    post_attention, post_mlp: norms of an output before it is added to the residual stream (Gemma).
    window: how many tokens a query sees, 0 for all. kind: which rotary embedding it has.
    """

    pre_attention: Tensor
    qkv: Weights
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Weights
    post_attention: Tensor | None
    pre_mlp: Tensor
    gate_up: Weights
    down: Weights
    post_mlp: Tensor | None
    window: int
    kind: str


class NewTokens(NamedTuple):
    """Where n new tokens are in their rows and in the cache, [n] each.

    position: in the row. group, start: the prompt's entry in the cache and how many of its tokens
    are read. slot, time: the row's slot in the cache and how many of its tokens are read, this one
    among them; slot is None while prompts are read.
    """

    position: Tensor
    group: Tensor
    start: Tensor
    slot: Tensor | None
    time: Tensor


class KVCache:
    """Keys and values of prompts and completions.

    `prefix` [layers, 2, groups, K, W, h] has one entry a prompt, `suffix` [layers, 2, slots, K, T,
    h] one a completion. Values lie as [T, h], keys as blocks of sixteen tokens [h, 16]: so the
    kernels read them. Memory that no token was written to is asked for and not used.
    """

    def __init__(
        self, model: CompactDecoder, slots: int, groups: int, width: int, longest: int
    ) -> None:
        self.layers = len(model.blocks)
        self.heads = model.kv_heads
        self.width = model.head_dim
        self.dtype = model.policy.dtype
        self.longest = round_up_16(longest)
        # 4 bytes a number, keys and values: what one token of every slot takes
        a_token = 4 * slots * self.layers * 2 * self.heads * self.width
        at_once = max(64, round_up_16(CACHE_BYTES // a_token))
        self.prefix = self.make(groups, round_up_16(width))
        self.suffix = self.make(slots, min(self.longest, at_once))

    def make(self, count: int, length: int) -> Tensor:
        """Memory for the keys and values of `count` rows of so many tokens."""
        return torch.empty(self.layers, 2, count, self.heads, length, self.width, dtype=self.dtype)

    def reserve(self, groups: int, length: int, width: int) -> None:
        """Room for so many prompts, so long a row, and so long a prompt.

        Doubled when it does not suffice.
        """
        old = self.prefix
        if groups > old.shape[2] or width > old.shape[4]:
            more = old.shape[2] if groups <= old.shape[2] else max(groups, 2 * old.shape[2])
            wider = old.shape[4] if width <= old.shape[4] else max(width, 2 * old.shape[4])
            self.prefix = self.make(more, round_up_16(wider))
            # keys lie in blocks of sixteen tokens: the first ones stay the first ones
            self.prefix[:, :, : old.shape[2], :, : old.shape[4]] = old
        old = self.suffix
        if length > old.shape[4]:
            self.suffix = self.make(old.shape[2], min(self.longest, 2 * old.shape[4]))
            self.suffix[:, :, :, :, : old.shape[4]] = old


class CompactDecoder:
    """The forward pass of a Llama-like model on a CPU, for sampling only.

    It has no gradient and no dropout, and the policy's weights as of the last `refresh`. In
    bfloat16 the residual stream, norms and softmax stay float32, as under autocast.
    """

    def __init__(self, policy: LanguageModel) -> None:
        self.policy = policy
        config = policy.causal.config
        self.body = getattr(policy.causal, policy.causal.base_model_prefix)
        first = self.body.layers[0]
        self.head_dim = int(first.self_attn.head_dim)
        self.scaling = float(first.self_attn.scaling)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.eps = float(config.rms_norm_eps)
        self.plus = float(config.model_type in GEMMA)
        self.activation = getattr(first.mlp, "act_fn", None) or first.mlp.activation_fn
        self.scale = float(getattr(self.body.embed_tokens, "scalar_embed_scale", 1.0))
        self.cap = float(getattr(first.self_attn, "attn_logit_softcapping", None) or 0.0)
        self.head_cap = getattr(config, "final_logit_softcapping", None)
        self.rotary = dict[str, tuple[Tensor, Tensor]]()
        self.buffers = dict[str, Tensor]()
        self.copies = dict[str, Tensor]()
        self.norms = dict[int, Tensor]()
        # set by who samples: no product's last bits depend on how many rows there are
        self.invariant = False
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fuse the weights anew.

        Nothing tells for certain whether they have changed: a fused AdamW leaves their version
        counters alone.
        """
        self.blocks = [self.block(str(i), layer) for i, layer in enumerate(self.body.layers)]
        self.embedding = self.body.embed_tokens.weight.detach()
        self.norm = self.norm_weight(self.body.norm)
        self.head = self.fused("head", self.policy.causal.get_output_embeddings())

    def norm_weight(self, norm: Any) -> Tensor:
        """What a norm multiplies by, float32, in memory that is used again."""
        kept = self.norms.get(id(norm))
        if kept is None:
            kept = torch.empty(norm.weight.shape, dtype=torch.float32)
            self.norms[id(norm)] = kept
        return kept.copy_(norm.weight.detach()).add_(self.plus)

    def optional_norm(self, module: Any, name: str) -> Tensor | None:
        """The same of a norm that a family may not have."""
        norm = getattr(module, name, None)
        return None if norm is None else self.norm_weight(norm)

    def block(self, name: str, layer: Any) -> LayerWeights:
        """The weights of one layer as they are now."""
        attention, mlp = layer.self_attn, layer.mlp
        # with norms on both sides of a part, the norm named post_attention is that of its output
        sandwich = hasattr(layer, "post_feedforward_layernorm")
        pre_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        return LayerWeights(
            pre_attention=self.norm_weight(layer.input_layernorm),
            qkv=self.fused(
                f"qkv {name}", *fused_projections(attention, "qkv_proj", "q_proj k_proj v_proj")
            ),
            q_norm=self.optional_norm(attention, "q_norm"),
            k_norm=self.optional_norm(attention, "k_norm"),
            out=self.fused(f"out {name}", attention.o_proj),
            post_attention=self.norm_weight(layer.post_attention_layernorm) if sandwich else None,
            pre_mlp=self.norm_weight(getattr(layer, pre_mlp)),
            gate_up=self.fused(
                f"gate_up {name}", *fused_projections(mlp, "gate_up_proj", "gate_proj up_proj")
            ),
            down=self.fused(f"down {name}", mlp.down_proj),
            post_mlp=self.norm_weight(layer.post_feedforward_layernorm) if sandwich else None,
            window=window_of(attention) or 0,
            kind=self.rope_kind(attention),
        )

    def rope_kind(self, attention: Any) -> str:
        """Which of the model's rotary embeddings a layer has."""
        if "" not in rotary_parameters(self.body):
            return attention.layer_type
        return "" if getattr(attention, "use_rope", True) else NO_ROPE

    def fused(self, name: str, *linears: Any) -> Weights:
        """Several projections of one input as one matrix, adapters merged in, and their biases as
        one vector.
        """
        bases = [getattr(linear, "base_layer", linear) for linear in linears]
        bias = self.fused_bias(bases)
        alone = linears[0] is bases[0] or not lora_terms(linears[0])
        if len(bases) == 1 and alone and bases[0].weight.dtype == self.policy.dtype:
            return bases[0].weight.detach(), bias
        heights = [base.out_features for base in bases]
        if name not in self.copies:
            self.copies[name] = torch.empty(
                sum(heights), bases[0].in_features, dtype=self.policy.dtype
            )
        rows = self.copies[name].split_with_sizes(heights)
        for into, linear, base in zip(rows, linears, bases, strict=True):
            if linear is base:
                into.copy_(base.weight.detach())
            else:
                merge_into(into, linear)
        return self.copies[name], bias

    def fused_bias(self, bases: list[Any]) -> Tensor | None:
        """The biases of several linear layers, one after the other; None where none has one."""
        if all(base.bias is None for base in bases):
            return None
        return torch.cat([bias_of(base) for base in bases]).to(self.policy.dtype)

    def rotate(self, longest: int) -> None:
        """Compute cos and sin [positions, R / 2] of the model's rotary embeddings, with scaling.

        For so many positions at least.
        """
        if self.rotary and longest <= len(next(iter(self.rotary.values()))[0]):
            return
        for kind, (frequency, scaling, _) in rotary_parameters(self.body).items():
            angle = torch.arange(2.0 * longest)[:, None] * frequency.float()
            self.rotary[kind] = angle.cos() * scaling, angle.sin() * scaling
            # cos 1 and sin 0: a layer without rotary positions is not turned
            self.rotary[NO_ROPE] = torch.ones_like(angle), torch.zeros_like(angle)

    def buffer(self, name: str, rows: int, width: int) -> Tensor:
        """[rows, width] of memory that is used again under this name.

        Fresh pages cost as much as a product does.
        """
        height = max(LEAST, round_up_16(rows))
        if name not in self.buffers or len(self.buffers[name]) < height:
            self.buffers[name] = torch.empty(height, width, dtype=self.policy.dtype)
        return self.buffers[name][:rows]

    def product(self, name: str, x: Tensor, weights: Weights) -> Tensor:
        """x [n, D] times weight [E, D], plus bias, in memory that is used again under that name."""
        weight, bias = weights
        rows = len(x)
        if self.invariant and rows < LEAST:
            x = self.padded(x)
        out = self.buffer(name, len(x), len(weight))
        if len(x) <= FEW <= len(weight):
            call_kernel("product", x.dtype, x, weight, out, *x.shape, len(weight))
            return out if bias is None else out.add_(bias)
        if x.dtype == torch.bfloat16 and has_rows(x, round_up_16(rows)):
            # oneDNN compiles a kernel for every number of rows: a multiple of 16, few numbers.
            # What the rows behind hold does not matter: no row's product reads another's
            x = x.as_strided((round_up_16(rows), x.shape[1]), x.stride())
            out = self.buffer(name, len(x), len(weight))
        if bias is None:
            return torch.mm(x, weight.mT, out=out)[:rows]
        return torch.addmm(bias, x, weight.mT, out=out)[:rows]

    def few_are_as_many(self) -> bool:
        """Have products of few rows, which are our own, the bits of the library's of many rows?

        Tried with every matrix of a layer and the head: the library adds up long rows in parts, of
        a length that depends on the processor.
        """
        block = self.blocks[0]
        for weight, _ in (block.qkv, block.out, block.gate_up, block.down, self.head):
            if len(weight) < FEW:
                return False
            x = torch.linspace(-1, 1, LEAST * weight.shape[1]).sin().view(LEAST, -1)
            x = x.to(weight.dtype)
            own = torch.empty(FEW, len(weight), dtype=weight.dtype)
            call_kernel("product", x.dtype, x, weight, own, FEW, weight.shape[1], len(weight))
            if not torch.equal(own, torch.mm(x, weight.mT)[:FEW]):
                return False
        return True

    def padded(self, x: Tensor) -> Tensor:
        """x [n, D] with rows behind it, to LEAST; what they hold does not matter."""
        if has_rows(x, LEAST):
            return x.as_strided((LEAST, x.shape[1]), x.stride())
        wide = self.buffer(f"padded {x.shape[1]}", LEAST, x.shape[1])
        wide[: len(x)] = x
        return wide

    def add_norm(self, x: Tensor, y: Tensor | None, weight: Tensor) -> Tensor:
        """x += y in place, then x / rms(x) * weight."""
        h = self.buffer("norm", *x.shape)
        call_kernel("add_norm", h.dtype, x, y, weight, h, *x.shape, self.eps)
        return h

    def normed(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """y / rms(y) * weight; y itself without a weight."""
        if weight is None:
            return y
        h = self.buffer("normed", *y.shape)
        call_kernel("add_norm", h.dtype, y.float(), None, weight, h, *y.shape, self.eps)
        return h

    def gated(self, gate_up: Tensor) -> Tensor:
        """[n, 2 F] -> activation(gate) * up [n, F]."""
        if type(self.activation).__name__ not in ("SiLU", "SiLUActivation"):
            gate, up = gate_up.chunk(2, -1)
            return self.activation(gate) * up
        size = len(gate_up)
        width = gate_up.shape[1] // 2
        h = self.buffer("gated", size, width)
        # gate and up lie beside each other: the second address is where the first row's up begins
        up = gate_up[:, width:]
        call_kernel("silu_times", h.dtype, gate_up, up, h, size, width, gate_up.shape[1])
        return h

    def hidden(self, ids: Tensor, at: NewTokens, cache: KVCache) -> Tensor:
        """Last hidden states [n, D] of n new tokens, ids [n].

        Each sees `at.start` tokens of its prompt and `at.time` of its own row.
        """
        x = self.embedding[ids].float() * self.scale
        # an output that is not yet added to the residual stream: the next norm adds it
        y = None
        for i, block in enumerate(self.blocks):
            h = self.add_norm(x, y, block.pre_attention)
            h = self.attended(block, i, h, at, cache)
            y = self.product("out", h, block.out)
            y = self.normed(y, block.post_attention)
            h = self.add_norm(x, y, block.pre_mlp)
            h = self.product("gate_up", h, block.gate_up)
            h = self.gated(h)
            y = self.product("out", h, block.down)
            y = self.normed(y, block.post_mlp)
        return self.add_norm(x, y, self.norm)

    def attended(
        self, block: LayerWeights, layer: int, x: Tensor, at: NewTokens, cache: KVCache
    ) -> Tensor:
        """The outputs of a layer's heads: [n, H h].

        Keys and values of the new tokens are written to the cache before.
        """
        qkv = self.product("qkv", x, block.qkv)
        out = self.buffer("heads", len(x), self.heads * self.head_dim)
        prefix = cache.prefix[layer]
        suffix = cache.suffix[layer]
        cos, sin = self.rotary[block.kind]
        call_kernel(
            "attend",
            out.dtype,
            qkv,
            *prefix,
            *suffix,
            out,
            block.q_norm,
            block.k_norm,
            cos,
            sin,
            *at,
            len(x),
            self.heads,
            self.kv_heads,
            self.head_dim,
            # the tokens that an entry of each cache has room for
            prefix.shape[3],
            suffix.shape[3],
            int(at.slot is not None),
            cos.shape[1],
            block.window,
            self.scaling,
            self.eps,
            self.cap,
        )
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Of last hidden states [n, D]: [n, V], which live until the next call."""
        found = self.product("logits", hidden, self.head)
        if self.head_cap is None:
            return found
        return found.div_(self.head_cap).tanh_().mul_(self.head_cap)

    def prefill(self, prompts: Sequence[Sequence[int]], groups: Tensor, cache: KVCache) -> Tensor:
        """Read each prompt once into its entry of the cache: logits [P, V] after its last token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.rotate(int(lengths.max()))
        position = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        group = groups.repeat_interleave(lengths)
        at = NewTokens(position, group, position + 1, None, torch.zeros_like(ids))
        hidden = self.hidden(ids, at, cache)
        # of all tokens, one prompt behind the other, the last one of each prompt
        last = lengths.cumsum(0) - 1
        return self.logits(hidden[last])

    def step(
        self,
        token: Tensor,
        group: Tensor,
        start: Tensor,
        slot: Tensor,
        time: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """One token more: logits [n, V], which live until the next call.

        All [n]: the last token of each row, its prompt's entry in the cache, that prompt's length,
        the row's slot in the cache, and how many of its own tokens that holds.
        """
        position = start + time
        self.rotate(int(position.max()) + 1)
        at = NewTokens(position, group, start, slot, time + 1)
        return self.logits(self.hidden(token, at, cache))

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """`draw` without truncation, by a kernel in one pass."""
        ids = torch.empty(len(logits), dtype=torch.long)
        logp = torch.empty(len(logits))
        inverse_temperature = 1.0 / (temperature or 1.0)
        greedy = int(temperature == 0)
        call_kernel(
            "draw",
            logits.dtype,
            logits,
            uniform,
            ids,
            logp,
            *logits.shape,
            inverse_temperature,
            greedy,
        )
        return ids, logp

    def check(self) -> str:
        """Why not to use it, "" where its logits are those of the Hugging Face forward pass.

        Compared after prompts of two lengths and after each of three tokens.
        """
        bound = 1e-4 if self.policy.dtype == torch.float32 else 0.05
        ids_NL = probe_ids(len(self.embedding))
        starts = torch.tensor(PROBE_STARTS)
        rows = torch.arange(2)
        cache = KVCache(self, 2, 2, 8, 3)
        prompts = [ints(ids[:start]) for ids, start in zip(ids_NL, PROBE_STARTS, strict=True)]
        found = [self.prefill(prompts, rows, cache).clone()]
        for t in range(3):
            time = torch.full((2,), t)
            logits = self.step(ids_NL[rows, starts + t], rows, starts, rows, time, cache)
            found.append(logits.clone())
        wanted = probe_logits(self.policy, ids_NL).float()
        gap = float((torch.stack(found) - wanted).abs().max() / wanted.abs().max())
        if gap < bound:
            return ""
        return f"its logits would differ by {gap:.2g}, more than {bound:g} of the largest"


PROBE_STARTS = (5, 2)
"""Lengths of the two prompts of a check."""


def probe_ids(vocabulary: int) -> Tensor:
    """Two rows of eight tokens from all over the vocabulary, for checks: [2, 8]."""
    return torch.arange(16).view(2, 8) * max(vocabulary // 17, 1) % vocabulary


def probe_logits(policy: LanguageModel, ids_NL: Tensor) -> Tensor:
    """The model's own logits after the prompts of a check and each of three tokens: [4, 2, V]."""
    with policy.autocast():
        logits = policy.causal(ids_NL, use_cache=False).logits
    # the logits at a position are those of the next token
    rows = [logits[n, start - 1 : start + 3] for n, start in enumerate(PROBE_STARTS)]
    return torch.stack(rows, 1)


def why_not_compact(policy: LanguageModel) -> str:
    """Why the compact decoder is not for a policy that `packs`, "" if it is."""
    if policy.device.type != "cpu":
        return "it is not on a CPU"
    if load_library() is None:
        return "there is no C++ compiler (g++) to build the decoder with"
    body = getattr(policy.causal, policy.causal.base_model_prefix)
    if type(body.embed_tokens).__module__.partition(".")[0] == "peft":
        return "adapters on its embedding"
    first = body.layers[0]
    width = first.self_attn.head_dim
    for frequency, _, kind in rotary_parameters(body).values():
        if kind not in STATIC_ROPES or 2 * frequency.numel() > width or width > 512 or width % 4:
            return f"rotary embedding {kind} of {width}"
    q_norm = getattr(first.self_attn, "q_norm", None)
    by_head = q_norm is None or q_norm.weight.numel() == width
    if not hasattr(first, "input_layernorm") or not by_head:
        return "its norms are another family's"
    precisions = {p.dtype for p in policy.model.parameters()}
    known = policy.dtype in (torch.float32, torch.bfloat16)
    if not known or not precisions <= {torch.float32, policy.dtype}:
        return f"precision {policy.dtype}"
    return "" if plain_lora(policy.model) else "adapters other than plain LoRA"


def fused_projections(module: Any, whole: str, names: str) -> list[Any]:
    """The projections of a module: one that is fused already, or several by name."""
    if hasattr(module, whole):
        return [getattr(module, whole)]
    return [getattr(module, name) for name in names.split()]


def bias_of(base: Any) -> Tensor:
    """The bias of a linear layer; zeros where it has none."""
    return base.weight.new_zeros(base.out_features) if base.bias is None else base.bias.detach()


def has_rows(x: Tensor, count: int) -> bool:
    """Does the memory that x [n, D] begins in hold so many rows?"""
    needed = x.element_size() * count * x.shape[1]
    return not x.storage_offset() and x.untyped_storage().nbytes() >= needed


def rotary_parameters(body: Any) -> dict[str, tuple[Tensor, float, str]]:
    """Frequencies, scaling and type of the rotary embedding, by kind of layer.

    The kind is "" where all layers are alike.
    """
    rope = body.rotary_emb
    types: Any = rope.rope_type
    if not hasattr(types, "items"):
        return {"": (rope.inv_freq, rope.attention_scaling, rope.rope_type)}
    found = dict[str, tuple[Tensor, float, str]]()
    for kind, name in types.items():
        frequency: Tensor = getattr(rope, f"{kind}_inv_freq")
        scaling: float = getattr(rope, f"{kind}_attention_scaling")
        found[kind] = frequency, scaling, name
    return found


def round_up_16(length: int) -> int:
    """Up to a multiple of 16: so many keys a kernel reads at once."""
    return -(-length // 16) * 16


def has_hooks(policy: LanguageModel) -> bool:
    """Are there hooks in the model, but for its embedding? A decoder would not call them."""
    inner = (
        module
        for module in policy.causal.modules()
        if module is not policy.causal.get_input_embeddings()
    )
    return any(module._forward_hooks or module._forward_pre_hooks for module in inner)


def compact_because(policy: LanguageModel) -> str:
    """Why the compact decoder does not take a policy, "" where it does."""
    if compact_of(policy) is not None:
        return ""
    if not policy.packs:
        return "a family whose pass laurel does not write out"
    return why_not_compact(policy) or "its logits would differ"


@torch.no_grad()
def compact_of(policy: LanguageModel) -> CompactDecoder | None:
    """The policy's compact decoder with its weights as they are now, or None.

    It is made, and checked against the model, once per policy.
    """
    made = policy.decoders.get("compact", False)
    # hooks would not be called
    if has_hooks(policy):
        return None
    if made is False or (made and made.policy is not policy):
        made, why = None, ""
        if policy.packs and not (why := why_not_compact(policy)):
            made = CompactDecoder(policy)
            why = made.check()
        policy.decoders["compact"] = made = None if why else made
    elif made:
        made.refresh()
    return made


PREFILL = 8192
"""Prompt tokens that are read at once."""
GROUP, START, SLOT, TIME, TOKEN, HOW = range(6)
"""The rows of `ContinuousBatch.rows`, which has a column for each completion in flight.

They are its prompt's entry in the cache, that prompt's length, the completion's slot, how many of
its tokens the cache holds, its last token, and how it is drawn.
"""


class SamplingOptions(NamedTuple):
    """How the tokens of a completion are drawn, and what else is noted of each.

    top: so many of the likeliest tokens are lists_logprobs with their log-probabilities; ids: the
    log-probabilities of these tokens are.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    top: int = 0
    ids: tuple[int, ...] = ()

    @property
    def lists_logprobs(self) -> bool:
        """Is more noted of a token than its own log-probability?"""
        return bool(self.top or self.ids)


@dataclass(frozen=True, eq=False)
class Job:
    """Completions of one prompt that enter together: the prompt is read once for all of them.

    seeds, limits: of each completion the seed and the most tokens.
    """

    prompt: tuple[int, ...]
    seeds: tuple[int, ...]
    limits: tuple[int, ...]
    options: SamplingOptions


TokenLogprobs = dict[int, float]
"""Token -> log-probability: the likeliest tokens, and those that were asked for."""


class ContinuousBatch:
    """Samples completions of a model with its weights as they are when a token is drawn.

    `places`: so many completions at once, each in a slot. `admit` takes jobs in, `advance` draws
    one token more of every completion, `collect` takes out what has ended, `drop` what nobody wants
    any more. `longest`: the most tokens of a completion.
    """

    def __init__(
        self, model: CompactDecoder, places: int, groups: int, width: int, longest: int
    ) -> None:
        self.model = model
        self.tokenizer = model.policy.tokenizer
        self.cache = KVCache(model, places, groups, width, longest)
        self.rows = torch.zeros(6, 0, dtype=torch.long)
        self.free = list(range(places))[::-1]
        self.ended: list[int] = []
        self.options: list[SamplingOptions] = []
        self.finish: list[Finish] = ["length"] * places
        self.limits = torch.zeros(places, dtype=torch.long)
        self.length = torch.zeros(places, dtype=torch.long)
        self.uniforms = torch.zeros(places, longest, dtype=torch.float64)
        self.out_ids = torch.zeros(places, longest, dtype=torch.long)
        self.out_logp = torch.zeros(places, longest)
        self.logprobs_listed: dict[int, list[TokenLogprobs]] = {}
        self.eos = torch.tensor(sorted(model.policy.eos_ids), dtype=torch.long)

    @property
    def running(self) -> int:
        """Completions in flight."""
        return self.rows.shape[1]

    @torch.no_grad()
    def admit(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Read prompts, and draw the first token of each completion: the slots of each job.

        There must be a free place for every completion.
        """
        taken = list[list[int]]()
        longest = max((len(job.prompt) for job in jobs), default=1)
        for part in chunks(range(len(jobs)), max(1, PREFILL // longest)):
            taken += self.prefill_jobs([jobs[i] for i in part])
        return taken

    def prefill_jobs(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Jobs whose prompts are read in one pass."""
        groups = self.unused_groups(len(jobs))
        self.cache.reserve(int(groups.max()) + 1, 0, max(len(job.prompt) for job in jobs))
        logits = self.model.prefill([job.prompt for job in jobs], groups, self.cache)
        slots = [[self.free.pop() for _ in job.seeds] for job in jobs]
        counts = torch.tensor([len(job.seeds) for job in jobs])
        first = self.running
        self.rows = torch.cat([self.rows, self.new_rows(jobs, slots, groups, counts)], 1)
        self.draw_tokens(first, logits.repeat_interleave(counts, 0))
        return slots

    def new_rows(
        self, jobs: Sequence[Job], slots: list[list[int]], groups: Tensor, counts: Tensor
    ) -> Tensor:
        """Columns of `rows` for completions that enter, with their slots prepared: [6, n]."""
        slot = torch.tensor([one for part in slots for one in part])
        limits = [limit for job in jobs for limit in job.limits]
        seeds = [seed for job in jobs for seed in job.seeds]
        self.limits[slot] = torch.tensor(limits)
        self.length[slot] = 0
        drawn = from_numpy(uniform_numbers(seeds, max(limits)))
        self.uniforms[slot, : drawn.shape[1]] = drawn
        for one in ints(slot):
            self.finish[one] = "length"
        new = torch.zeros(6, len(slot), dtype=torch.long)
        new[SLOT] = slot
        new[GROUP] = groups.repeat_interleave(counts)
        new[START] = torch.tensor([len(job.prompt) for job in jobs]).repeat_interleave(counts)
        hows = torch.tensor([self.options_index(job.options) for job in jobs])
        new[HOW] = hows.repeat_interleave(counts)
        for job, part in zip(jobs, slots, strict=True):
            if job.options.lists_logprobs:
                self.logprobs_listed |= {one: [] for one in part}
        return new

    def options_index(self, options: SamplingOptions) -> int:
        """The place of some options among those in use."""
        if options not in self.options:
            if not self.running:
                self.options.clear()
            self.options.append(options)
        return self.options.index(options)

    def unused_groups(self, count: int) -> Tensor:
        """The lowest entries of the prompts' cache that no completion in flight reads: [count]."""
        used = set(ints(self.rows[GROUP]))
        free = [n for n in range(count + len(used)) if n not in used]
        return torch.tensor(free[:count])

    @torch.no_grad()
    def advance(self) -> None:
        """One token more of every completion in flight."""
        if not self.running:
            return
        rows = self.rows
        time = rows[TIME]
        self.cache.reserve(0, int(time.max()) + 1, 0)
        logits = self.model.step(
            rows[TOKEN], rows[GROUP], rows[START], rows[SLOT], time, self.cache
        )
        time += 1
        self.draw_tokens(0, logits)

    def draw_tokens(self, first: int, logits: Tensor) -> None:
        """Draw a token for the rows from `first` on, and take out the rows that end with it."""
        rows = self.rows[:, first:]
        slot = rows[SLOT]
        time = self.length[slot]
        ids, logp = self.draw(logits, rows[HOW], slot, self.uniforms[slot, time])
        self.out_ids[slot, time] = ids
        self.out_logp[slot, time] = logp
        rows[TOKEN] = ids
        self.length[slot] = time + 1
        ended = self.limits[slot] == time + 1
        # an end token is the stronger reason: it is lists_logprobs last
        ended |= self.set_finish("stop", slot, self.at_stop(rows))
        ended |= self.set_finish("eos", slot, torch.isin(ids, self.eos))
        if ended.any():
            self.ended += ints(slot[ended])
            before = torch.ones(first, dtype=torch.bool)
            self.rows = self.rows[:, torch.cat([before, ~ended])]

    def draw(
        self, logits: Tensor, how: Tensor, slot: Tensor, point: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A token for each row, and its log-probability, by the options of the row."""
        kinds = sorted(set(ints(how)))
        if len(kinds) == 1:
            return self.draw_alike(self.options[kinds[0]], logits, slot, point)
        ids = torch.zeros(len(logits), dtype=torch.long)
        logp = torch.zeros(len(logits))
        for kind in kinds:
            these = (how == kind).nonzero()[:, 0]
            found = self.draw_alike(self.options[kind], logits[these], slot[these], point[these])
            ids[these], logp[these] = found
        return ids, logp

    def draw_alike(
        self, options: SamplingOptions, logits: Tensor, slot: Tensor, point: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens for rows that are drawn in the same way."""
        cut: dict[str, Any] = {"top_k": options.top_k, "top_p": options.top_p}
        if options.lists_logprobs:
            logp_NV = scaled_probabilities(logits, options.temperature, **cut).log()
            for one, note in zip(ints(slot), listed_logprobs(logp_NV, options), strict=True):
                self.logprobs_listed[one].append(note)
        if options.top_k or options.top_p < 1:
            return sample_tokens(logits, point, options.temperature, **cut)
        return self.model.draw(logits, point, options.temperature)

    def set_finish(self, why: Finish, slot: Tensor, which: Tensor) -> Tensor:
        """Set why some of these completions end; returns `which` as it was given."""
        for n in ints(slot[which]):
            self.finish[n] = why
        return which

    def at_stop(self, rows: Tensor) -> Tensor:
        """Which of these completions now hold one of their stop strings."""
        found = torch.zeros(rows.shape[1], dtype=torch.bool)
        for kind, options in enumerate(self.options):
            if not options.stop:
                continue
            these = (rows[HOW] == kind).nonzero()[:, 0]
            slot = rows[SLOT, these]
            lengths = ints(self.length[slot])
            every = int_rows(self.out_ids[slot, : max(lengths, default=0)])
            drawn = [ids[:length] for ids, length in zip(every, lengths, strict=True)]
            if drawn:
                found[these] = rows_with_stop(options.stop, self.tokenizer, drawn)
        return found

    def collect(self) -> dict[int, tuple[Completion, list[TokenLogprobs]]]:
        """The completions that have ended since, by slot; their slots are free again."""
        if not self.ended:
            return {}
        slot = torch.tensor(self.ended)
        lengths = ints(self.length[slot])
        longest = max(lengths)
        rows_ids = int_rows(self.out_ids[slot, :longest])
        rows_logps = float_rows(self.out_logp[slot, :longest])
        found = dict[int, tuple[Completion, list[TokenLogprobs]]]()
        for one, count, ids, logps in zip(self.ended, lengths, rows_ids, rows_logps, strict=True):
            done = Completion(tuple(ids[:count]), tuple(logps[:count]), self.finish[one])
            found[one] = done, self.logprobs_listed.pop(one, [])
        self.release(self.ended)
        self.ended = []
        return found

    def drawn(self, slot: int, start: int) -> tuple[list[int], list[float], list[TokenLogprobs]]:
        """What was drawn of a completion in flight, from token `start` on."""
        end = int(self.length[slot])
        ids = ints(self.out_ids[slot, start:end])
        (logps,) = float_rows(self.out_logp[slot, start:end][None])
        return ids, logps, self.logprobs_listed.get(slot, [])[start:]

    def drop(self, slots: Sequence[int]) -> None:
        """Take completions out that have not been collected; nothing of them is kept."""
        gone = torch.tensor(list(slots), dtype=torch.long)
        self.rows = self.rows[:, ~torch.isin(self.rows[SLOT], gone)]
        self.ended = [one for one in self.ended if one not in slots]
        for one in slots:
            self.logprobs_listed.pop(one, None)
        self.release(slots)

    def release(self, slots: Sequence[int]) -> None:
        """Slots are free again; memory of the pass is given back when nothing flies."""
        self.free += list(slots)
        if not self.running:
            self.model.buffers.clear()


def listed_logprobs(logp_NV: Tensor, options: SamplingOptions) -> list[TokenLogprobs]:
    """Of each row the likeliest tokens and those that were asked for, with log-probabilities."""
    found: list[TokenLogprobs] = [{} for _ in range(len(logp_NV))]
    if options.top:
        logps, ids = logp_NV.topk(min(options.top, logp_NV.shape[1]), dim=1)
        for note, some, values in zip(found, int_rows(ids), float_rows(logps), strict=True):
            note.update(zip(some, values, strict=True))
    if options.ids:
        asked = float_rows(logp_NV[:, list(options.ids)])
        for note, values in zip(found, asked, strict=True):
            note.update(zip(options.ids, values, strict=True))
    return found


class PromptBatch(NamedTuple):
    """`each` completions of every prompt; completion i belongs to prompt i // each."""

    prompts: Sequence[tuple[int, ...]]
    each: int
    seeds: Sequence[int]
    limits: Sequence[int]
    options: SamplingOptions

    def job(self, prompt: int) -> Job:
        """The completions of one prompt."""
        first = prompt * self.each
        end = first + self.each
        seeds = tuple(self.seeds[first:end])
        limits = tuple(self.limits[first:end])
        return Job(self.prompts[prompt], seeds, limits, self.options)


def sample_compact(
    model: CompactDecoder, prompt_batch: PromptBatch, rows_at_once: int
) -> list[Completion]:
    """`laurel.rollout.sampler.sample` on a CPU.

    A prompt's completions enter together, shortest prompts first, when an eighth of the places is
    free.
    """
    prompts, each = prompt_batch.prompts, prompt_batch.each
    # the last is the next: the shortest prompt enters first
    queue = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    at_once = min(max(rows_at_once // each, 1), len(prompts))
    places = at_once * each
    # the last few rows of a batch take the fast products, whose last bits may be others
    model.invariant = False
    batch = ContinuousBatch(
        model, places, at_once, max(map(len, prompts)), max(prompt_batch.limits)
    )
    numbers = [0] * places
    done: dict[int, Completion] = {}
    while queue or batch.running:
        batch.advance()
        if queue and len(batch.free) + len(batch.ended) >= max(places // 8, each):
            collect_completions(batch, numbers, done)
            chosen = [queue.pop() for _ in range(min(len(batch.free) // each, len(queue)))]
            admit_prompts(batch, prompt_batch, chosen, numbers)
    collect_completions(batch, numbers, done)
    return [done[n] for n in range(len(prompt_batch.seeds))]


def admit_prompts(
    batch: ContinuousBatch, prompt_batch: PromptBatch, chosen: Sequence[int], numbers: list[int]
) -> None:
    """Begin the completions of some prompts; `numbers` says which one each slot has."""
    slots = batch.admit([prompt_batch.job(i) for i in chosen])
    for i, own in zip(chosen, slots, strict=True):
        for g, slot in enumerate(own):
            numbers[slot] = i * prompt_batch.each + g


def collect_completions(
    batch: ContinuousBatch, numbers: list[int], done: dict[int, Completion]
) -> None:
    """Put the completions that have ended into `done`, by their numbers."""
    for slot, (completion, _) in batch.collect().items():
        done[numbers[slot]] = completion
