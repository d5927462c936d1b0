"""Sampling on a CPU: random numbers, a compact forward pass over the training weights of Llama-like
models, and continuous batching over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laurel.core.sample import Completion
from laurel.fast.kernels import call, library
from laurel.fast.logprob import wide
from laurel.fast.lora import lora_terms, merge_into, plain_lora
from laurel.fast.packed import window_of
from laurel.fast.protocol import LanguageModel


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """[N, count] numbers in [0, 1): row n is a stream of its own, splitmix64 (Steele et al. 2014)
    from seeds[n].

    Counter-based, so a sample's numbers do not depend on its neighbours, and nothing has to be
    saved to resume.
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        z = (
            np.asarray(seeds, dtype=np.uint64)[:, None]
            + np.arange(1, count + 1, dtype=np.uint64)[None] * golden
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


WORDS = 256
"""Words that are added up together before the one that a uniform number points at is looked for
among them.
"""


def draw(
    logits_NV: Tensor, uniform_N: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF: ids [N], and their log-probabilities [N] under the
    distribution drawn from.

    temperature 0 is greedy (log-probabilities at temperature 1). top_k keeps the k likeliest
    tokens, top_p the smallest set of likeliest tokens that holds that much probability. Nothing is
    asked of the device, so a CUDA graph can hold it.
    """
    scaled_NV = logits_NV if temperature in (0, 1) else wide(logits_NV) / temperature
    p_NV = scaled_NV.softmax(1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature == 0:
        ids = logits_NV.argmax(1)
        return ids, p_NV.gather(1, ids[:, None])[:, 0].log()
    if top_k or top_p < 1:
        likeliest, order = p_NV.sort(dim=1, descending=True, stable=True)
        drop = likeliest.cumsum(1) - likeliest >= top_p
        if top_k:
            drop[:, top_k:] = True
        p_NV = p_NV.masked_fill(drop.scatter(1, order, drop), 0.0)
        p_NV = p_NV / p_NV.sum(1, keepdim=True)
    ids = inverse(p_NV, uniform_N)
    return ids, p_NV.gather(1, ids[:, None])[:, 0].log()


def inverse(p_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token of each row whose probability and all before it make more than the uniform
    number: [N]. Never one of probability 0.

    Sums of WORDS words first, then the words of one sum: a matrix as wide as the vocabulary is read
    once, and no second one made.
    """
    whole, rest = divmod(p_NV.shape[1], WORDS)
    blocks = p_NV[:, : whole * WORDS].unflatten(1, (whole, WORDS)).sum(2) if whole else p_NV[:, :0]
    part_NB = (
        torch.cat([blocks, p_NV[:, whole * WORDS :].sum(1, keepdim=True)], 1) if rest else blocks
    )
    block_N, left_N = beyond(part_NB.double(), uniform_N.double() * part_NB.double().sum(1))
    at_NW = block_N[:, None] * WORDS + torch.arange(WORDS, device=p_NV.device)
    p_NW = p_NV.gather(1, at_NW.clamp(max=p_NV.shape[1] - 1)) * (at_NW < p_NV.shape[1])
    return block_N * WORDS + beyond(p_NW.double(), left_N)[0]


def beyond(part_NB: Tensor, point_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first part with which the sum is more than a point, and what of the point is left before
    it: [N] each. Parts are float64.
    """
    total_NB = part_NB.cumsum(1)
    point_N = point_N.minimum(total_NB[:, -1] * (1 - 2.0**-50)).clamp(
        min=0
    )  # rounding may have taken it to the end
    which_N = (total_NB <= point_N[:, None]).sum(1)
    return which_N, point_N - (total_NB - part_NB).gather(1, which_N[:, None])[:, 0]


def holding(stop: Sequence[str], tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Which rows of ids end in text that holds a stop string: [N]. Only the tail that could hold
    one is decoded.
    """
    texts = tokenizer.batch_decode([row[-max(map(len, stop)) - 9 :] for row in rows])
    return torch.tensor([any(s in text for s in stop) for text in texts], dtype=torch.bool)


def chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive slices of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


STATIC_ROPES = ("default", "linear", "llama3", "yarn")
FROM_ONE = ("gemma", "gemma2", "gemma3_text")
"""Families whose norms multiply by 1 + w."""
NONE = "none"
"""The kind of a layer that no rotary embedding turns."""
FEW = 16
"""Products of so few rows are our own: the library's read weights a third slower, and a row's last
bits tell of its neighbours.
"""
ROOM = 1 << 30
"""Bytes of memory that are asked for at once for what rows will say."""


class Block(NamedTuple):
    """One layer: weights of its norms (None where the family has none), and of its products with
    their biases (or None).

    said_1, said_2: norms of what attention and the gated unit say, before it is added (Gemma 3).
    window: how many tokens a query sees,
    0 for all. kind: which rotary embedding turns it; None: none does.
    """

    norm_1: Tensor
    qkv: tuple[Tensor, Tensor | None]
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: tuple[Tensor, Tensor | None]
    said_1: Tensor | None
    norm_2: Tensor
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    said_2: Tensor | None
    window: int
    kind: str


class Cache:
    """Keys and values: `prefix` [layers, 2, groups, K, W, h], one entry a prompt, and `suffix`
    [layers, 2, slots, K, T, h].

    Values lie as [T, h], keys as blocks of sixteen tokens [h, 16]: so the kernels read them. Memory
    that no token was written to is asked for and not used.
    """

    def __init__(self, model: Compact, slots: int, groups: int, width: int, longest: int) -> None:
        config = len(model.blocks), 2, model.kv_heads, model.head_dim
        self.longest, a_token = rounded(longest), 4 * slots * math.prod(config)
        self.make = lambda count, length: torch.empty(
            *config[:2], count, config[2], length, config[3], dtype=model.policy.dtype
        )
        self.prefix = self.make(groups, rounded(width))
        self.suffix = self.make(slots, min(self.longest, max(64, rounded(ROOM // a_token))))

    def reserve(self, groups: int, length: int) -> None:
        """Room for so many prompts and so long a row: doubled when it does not suffice."""
        if groups > self.prefix.shape[2]:
            old, self.prefix = (
                self.prefix,
                self.make(max(groups, 2 * self.prefix.shape[2]), self.prefix.shape[4]),
            )
            self.prefix[:, :, : old.shape[2]] = old
        if length > self.suffix.shape[4]:
            old, self.suffix = (
                self.suffix,
                self.make(self.suffix.shape[2], min(self.longest, 2 * self.suffix.shape[4])),
            )
            self.suffix[:, :, :, :, : old.shape[4]] = old


class Compact:
    """The forward pass of a Llama-like model on a CPU, for sampling only: no gradient, no dropout,
    weights as the policy has them now.

    In bfloat16 the residual stream, norms and softmax stay float32, as under autocast.
    """

    def __init__(self, policy: LanguageModel) -> None:
        self.policy = policy
        config, self.body = (
            policy.causal.config,
            getattr(policy.causal, policy.causal.base_model_prefix),
        )
        self.head_dim, self.scaling = (
            (first := self.body.layers[0]).self_attn.head_dim,
            float(first.self_attn.scaling),
        )
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.plus = config.rms_norm_eps, float(config.model_type in FROM_ONE)
        self.activation = getattr(first.mlp, "act_fn", None) or first.mlp.activation_fn
        self.scale = float(getattr(self.body.embed_tokens, "scalar_embed_scale", 1.0))
        self.cap = float(getattr(first.self_attn, "attn_logit_softcapping", None) or 0.0)
        self.head_cap = getattr(config, "final_logit_softcapping", None)
        self.turns, self.rooms, self.copies = (
            dict[str, tuple[Tensor, Tensor]](),
            dict[str, Tensor](),
            dict[str, Tensor](),
        )
        self.norms = dict[int, Tensor]()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fuse the weights anew. Nothing tells for certain whether they moved: a fused AdamW leaves
        their version counters alone.
        """
        self.blocks = [self.block(str(i), layer) for i, layer in enumerate(self.body.layers)]
        self.embedding, self.norm = (
            self.body.embed_tokens.weight.detach(),
            self.weight(self.body.norm),
        )
        self.head = self.fused("head", self.policy.causal.get_output_embeddings())

    def weight(self, norm: Any) -> Tensor | None:
        """What a norm multiplies by, float32, in memory that is used again; None where there is no
        such norm.
        """
        if norm is None:
            return None
        kept = self.norms.setdefault(id(norm), torch.empty(norm.weight.shape, dtype=torch.float32))
        return kept.copy_(norm.weight.detach()).add_(self.plus)

    def block(self, name: str, layer: Any) -> Block:
        own, mlp = layer.self_attn, layer.mlp
        sandwich = hasattr(layer, "post_feedforward_layernorm")
        qkv = [own.qkv_proj] if hasattr(own, "qkv_proj") else [own.q_proj, own.k_proj, own.v_proj]
        gate_up = (
            [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
        )
        return Block(
            self.weight(layer.input_layernorm),
            self.fused(f"qkv {name}", *qkv),
            self.weight(getattr(own, "q_norm", None)),
            self.weight(getattr(own, "k_norm", None)),
            self.fused(f"out {name}", own.o_proj),
            self.weight(layer.post_attention_layernorm) if sandwich else None,
            self.weight(
                layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
            ),
            self.fused(f"gate_up {name}", *gate_up),
            self.fused(f"down {name}", mlp.down_proj),
            self.weight(layer.post_feedforward_layernorm) if sandwich else None,
            window_of(own) or 0,
            own.layer_type
            if "" not in ropes(self.body)
            else ""
            if getattr(own, "use_rope", True)
            else NONE,
        )

    def fused(self, name: str, *linears: Any) -> tuple[Tensor, Tensor | None]:
        """The weights of several projections of one input as one matrix, adapters merged in, and
        their biases as one vector.
        """
        bases, bias = [getattr(linear, "base_layer", linear) for linear in linears], None
        if any(base.bias is not None for base in bases):
            bias = torch.cat(
                [
                    base.weight.new_zeros(base.out_features)
                    if base.bias is None
                    else base.bias.detach()
                    for base in bases
                ]
            )
            bias = bias.to(self.policy.dtype)
        if (
            len(bases) == 1
            and not lora_terms(linears[0])
            and bases[0].weight.dtype == self.policy.dtype
        ):
            return bases[0].weight.detach(), bias
        if name not in self.copies:
            self.copies[name] = torch.empty(
                sum(base.out_features for base in bases),
                bases[0].in_features,
                dtype=self.policy.dtype,
            )
        rows = self.copies[name].split([base.out_features for base in bases])
        for into, linear in zip(rows, linears, strict=True):
            merge_into(into, linear)
        return self.copies[name], bias

    def rotate(self, longest: int) -> None:
        """cos and sin [positions, R / 2] of the model's own rotary embeddings, scaling included,
        for so many positions at least.
        """
        if self.turns and longest <= len(next(iter(self.turns.values()))[0]):
            return
        for kind, (frequency, scaling, _) in ropes(self.body).items():
            angle = torch.arange(2.0 * longest)[:, None] * frequency.float()
            self.turns[kind] = angle.cos() * scaling, angle.sin() * scaling
        self.turns[NONE] = torch.ones_like(angle), torch.zeros_like(angle)

    def room(self, name: str, rows: int, width: int) -> Tensor:
        """[rows, width] of memory that is used again under this name: fresh pages cost as much as a
        product does.
        """
        if name not in self.rooms or len(self.rooms[name]) < rounded(rows):
            self.rooms[name] = torch.empty(rounded(rows), width, dtype=self.policy.dtype)
        return self.rooms[name][:rows]

    def product(self, name: str, x: Tensor, weights: tuple[Tensor, Tensor | None]) -> Tensor:
        """x [n, D] times weight [E, D], plus bias, in memory that is used again under that name."""
        (weight, bias), rows = weights, len(x)
        out = self.room(name, rows, len(weight))
        if rows <= FEW <= len(weight):
            call("product", x.dtype, x, weight, out, *x.shape, len(weight))
            return out if bias is None else out.add_(bias)
        if (
            x.dtype == torch.bfloat16
            and x.untyped_storage().nbytes() >= 2 * rounded(rows) * x.shape[1]
            and not x.storage_offset()
        ):
            x = x.as_strided(
                (rounded(rows), x.shape[1]), x.stride()
            )  # a room has them: oneDNN compiles a kernel for every number of rows
            out = self.room(name, len(x), len(weight))
        said = (
            torch.mm(x, weight.mT, out=out)
            if bias is None
            else torch.addmm(bias, x, weight.mT, out=out)
        )
        return said[:rows]

    def add_norm(self, x: Tensor, y: Tensor | None, weight: Tensor) -> Tensor:
        """x += y, in place; x / rms(x) * weight."""
        h = self.room("norm", *x.shape)
        call("add_norm", h.dtype, x, y, weight, h, *x.shape, self.eps)
        return h

    def normed(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """y / rms(y) * weight; y itself without a weight."""
        if weight is None:
            return y
        h = self.room("said", *y.shape)
        call("add_norm", h.dtype, y.float(), None, weight, h, *y.shape, self.eps)
        return h

    def gated(self, gate_up: Tensor) -> Tensor:
        """[n, 2 F] -> activation(gate) * up [n, F]."""
        if type(self.activation).__name__ not in ("SiLU", "SiLUActivation"):
            return self.activation(gate_up.chunk(2, -1)[0]) * gate_up.chunk(2, -1)[1]
        h = self.room("gated", len(gate_up), gate_up.shape[1] // 2)
        call(
            "silu_times", h.dtype, gate_up, gate_up[:, h.shape[1] :], h, *h.shape, gate_up.shape[1]
        )
        return h

    def hidden(
        self,
        ids: Tensor,
        position: Tensor,
        group: Tensor,
        start: Tensor,
        slot: Tensor | None,
        time: Tensor,
        cache: Cache,
    ) -> Tensor:
        """Last hidden states [n, D] of n new tokens; token n sees `start` tokens of prompt `group`
        and `time` of row `slot`, itself one.

        All of shape [n]. slot: None while prompts are read.
        """
        x, y, prefix, suffix, width = (
            self.embedding[ids].float() * self.scale,
            None,
            cache.prefix,
            cache.suffix,
            self.heads * self.head_dim,
        )
        sizes = (
            len(ids),
            self.heads,
            self.kv_heads,
            self.head_dim,
            prefix.shape[4],
            suffix.shape[4],
            int(slot is not None),
        )
        for i, block in enumerate(self.blocks):
            qkv, h = (
                self.product("qkv", self.add_norm(x, y, block.norm_1), block.qkv),
                self.room("heads", len(ids), width),
            )
            norms, cache_i, whose = (
                (block.q_norm, block.k_norm),
                (*prefix[i], *suffix[i]),
                (position, group, start, slot, time),
            )
            (cos, sin), near = (
                self.turns[block.kind],
                (self.turns[block.kind][0].shape[1], block.window),
            )
            call(
                "attend",
                h.dtype,
                qkv,
                *cache_i,
                h,
                *norms,
                cos,
                sin,
                *whose,
                *sizes,
                *near,
                self.scaling,
                self.eps,
                self.cap,
            )
            y = self.normed(self.product("out", h, block.out), block.said_1)
            h = self.gated(
                self.product("gate_up", self.add_norm(x, y, block.norm_2), block.gate_up)
            )
            y = self.normed(self.product("out", h, block.down), block.said_2)
        return self.add_norm(x, y, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of last hidden states [n, D]: [n, V], which live until the next call."""
        found = self.product("logits", hidden, self.head)
        return (
            found
            if self.head_cap is None
            else found.div_(self.head_cap).tanh_().mul_(self.head_cap)
        )

    def prefill(self, prompts: Sequence[Sequence[int]], groups: Tensor, cache: Cache) -> Tensor:
        """Read each prompt once into its entry of the cache: logits [P, V] after its last token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.rotate(int(lengths.max()))
        position, group = (
            torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
            groups.repeat_interleave(lengths),
        )
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        hidden = self.hidden(ids, position, group, position + 1, None, torch.zeros_like(ids), cache)
        return self.logits(hidden[lengths.cumsum(0) - 1])

    def step(
        self, token: Tensor, group: Tensor, start: Tensor, slot: Tensor, time: Tensor, cache: Cache
    ) -> Tensor:
        """One token more: logits [n, V], which live until the next call.

        All [n]: what each row said last, its prompt's entry in the cache, that prompt's length, the
        row's slot in the cache, how many of its own tokens that holds.
        """
        position = start + time
        self.rotate(int(position.max()) + 1)
        return self.logits(self.hidden(token, position, group, start, slot, time + 1, cache))

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """`sampler.draw` without truncation: what the kernel draws, in one pass."""
        ids, logp = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
        call(
            "draw",
            logits.dtype,
            logits,
            uniform,
            ids,
            logp,
            *logits.shape,
            1.0 / (temperature or 1.0),
            int(temperature == 0),
        )
        return ids, logp

    def check(self) -> str:
        """Why not to use it, "" where a prefill of two lengths and three single tokens have the
        logits of the Hugging Face forward pass.
        """
        size, bound = len(self.embedding), 1e-4 if self.policy.dtype == torch.float32 else 0.05
        ids_NL = torch.arange(16).view(2, 8) * max(size // 17, 1) % size
        cache, starts, every = Cache(self, 2, 2, 8, 3), torch.tensor([5, 2]), torch.arange(2)
        found = [
            self.prefill([ids_NL[0, :5].tolist(), ids_NL[1, :2].tolist()], every, cache).clone()
        ]
        for t in range(3):
            found.append(
                self.step(
                    ids_NL[every, starts + t], every, starts, every, torch.full((2,), t), cache
                ).clone()
            )
        with self.policy.autocast():
            logits = self.policy.causal(ids_NL, use_cache=False).logits.float()
        wanted = torch.stack([logits[n, int(s) - 1 : int(s) + 3] for n, s in enumerate(starts)], 1)
        gap = float((torch.stack(found) - wanted).abs().max() / wanted.abs().max())
        return (
            ""
            if gap < bound
            else f"its logits would differ by {gap:.2g}, more than {bound:g} of the largest"
        )


def obstacle(policy: LanguageModel) -> str:
    """Why the compact decoder is not for a policy that `packs`, "" if it is."""
    if policy.device.type != "cpu":
        return "it is not on a CPU"
    if library() is None:
        return "there is no C++ compiler (g++) to build the decoder with"
    body = getattr(policy.causal, policy.causal.base_model_prefix)
    if type(body.embed_tokens).__module__.partition(".")[0] == "peft":
        return "adapters on its embedding"
    own, width = body.layers[0].self_attn, body.layers[0].self_attn.head_dim
    for frequency, _, kind in ropes(body).values():
        if kind not in STATIC_ROPES or 2 * frequency.numel() > width or width > 512 or width % 4:
            return f"rotary embedding {kind} of {width}"
    if not hasattr(body.layers[0], "input_layernorm") or (
        hasattr(own, "q_norm") and own.q_norm.weight.numel() != width
    ):
        return "its norms are another family's"
    held = {p.dtype for p in policy.model.parameters()}
    if policy.dtype not in (torch.float32, torch.bfloat16) or not held <= {
        torch.float32,
        policy.dtype,
    }:
        return f"precision {policy.dtype}"
    return "" if plain_lora(policy.model) else "adapters other than plain LoRA"


def ropes(body: Any) -> dict[str, tuple[Tensor, float, str]]:
    """kind of layer ("" where all are alike): frequencies, scaling and type of its rotary
    embedding.
    """
    rope = body.rotary_emb
    if not isinstance(rope.rope_type, dict):
        return {"": (rope.inv_freq, rope.attention_scaling, rope.rope_type)}
    return {
        kind: (getattr(rope, f"{kind}_inv_freq"), getattr(rope, f"{kind}_attention_scaling"), name)
        for kind, name in rope.rope_type.items()
    }


def rounded(length: int) -> int:
    """Up to a multiple of 16: so many keys a kernel reads at once."""
    return -(-length // 16) * 16


def listened(policy: LanguageModel) -> bool:
    """Are there hooks in the model, below its embedding? A decoder that is written out would not
    call them.
    """
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
    return obstacle(policy) or "its logits would differ"


@torch.no_grad()
def compact_of(policy: LanguageModel) -> Compact | None:
    """The policy's compact decoder with its weights as they are now, or None: made, and checked
    against the model, once per policy.
    """
    made = policy.decoders.get("compact", False)
    if listened(policy):  # they would not be called
        return None
    if made is False or (made and made.policy is not policy):
        made, why = None, ""
        if policy.packs and not (why := obstacle(policy)):
            made = Compact(policy)
            why = made.check()
        policy.decoders["compact"] = made = None if why else made
    elif made:
        made.refresh()
    return made


SAMPLE, GROUP, START, SLOT, TIME, TOKEN = range(6)  # what `rows` says of each row in flight
PREFILL = 8192  # prompt tokens read at once


class Decoder:
    """Samples `each` completions of every prompt; completion i belongs to prompt i // each. See
    `sampler.sample`.

    A prompt's completions enter together, shortest prompts first, when an eighth of the places is
    free.
    """

    def __init__(
        self,
        model: Compact,
        prompts: Sequence[tuple[int, ...]],
        each: int,
        seeds: Sequence[int],
        limits: Sequence[int],
        rows_at_once: int,
    ) -> None:
        self.model, self.prompts, self.each, self.tokenizer = (
            model,
            prompts,
            each,
            model.policy.tokenizer,
        )
        self.queue = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        self.size, longest = min(max(rows_at_once // each, 1), len(prompts)) * each, max(limits)
        self.cache = Cache(model, self.size, self.size // each, max(map(len, prompts)), longest)
        self.rows = torch.zeros(6, 0, dtype=torch.long)
        self.limits, self.finish, self.uniforms = (
            torch.tensor(limits),
            ["length"] * len(limits),
            torch.from_numpy(uniforms(seeds, longest)),
        )
        self.out_ids = torch.zeros(len(limits), longest, dtype=torch.long)
        self.out_logp, self.length = (
            torch.zeros(len(limits), longest),
            torch.zeros(len(limits), dtype=torch.long),
        )
        self.eos = torch.tensor(sorted(model.policy.eos_ids), dtype=torch.long)

    @torch.no_grad()
    def run(
        self, temperature: float, top_k: int, top_p: float, stop: tuple[str, ...]
    ) -> list[Completion]:
        """Draw token after token until every row has ended."""
        how = (temperature, top_k, top_p, stop)
        while self.queue or self.rows.shape[1]:
            room = self.size - self.rows.shape[1]
            if self.queue and room >= max(self.size // 8, self.each):
                self.admit(min(room // self.each, len(self.queue)), how)
            if self.rows.shape[1]:
                self.cache.reserve(0, int(self.rows[TIME].max()) + 1)
                logits = self.model.step(
                    *(self.rows[what] for what in (TOKEN, GROUP, START, SLOT, TIME)), self.cache
                )
                self.rows[TIME] += 1
                self.take(0, logits, how)
        self.model.rooms.clear()
        ids, logps = self.out_ids.tolist(), self.out_logp.tolist()
        return [
            Completion(tuple(ids[n][:k]), tuple(logps[n][:k]), self.finish[n])
            for n, k in enumerate(self.length.tolist())
        ]

    def admit(self, count: int, how: tuple) -> None:
        """The next `count` prompts: read, and the first token of each of their completions
        drawn.
        """
        chosen, each = [self.queue.pop() for _ in range(count)], self.each
        for part in chunks(chosen, max(1, PREFILL // len(self.prompts[chosen[-1]]))):
            groups, prompts = self.unused(GROUP, len(part)), [self.prompts[i] for i in part]
            self.cache.reserve(int(groups.max()) + 1, 0)
            logits = self.model.prefill(prompts, groups, self.cache)
            new = torch.zeros(6, len(part) * each, dtype=torch.long)
            new[SAMPLE] = (torch.tensor(part)[:, None] * each + torch.arange(each)).flatten()
            new[GROUP], new[SLOT] = groups.repeat_interleave(each), self.unused(SLOT, new.shape[1])
            new[START] = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(each)
            first, self.rows = self.rows.shape[1], torch.cat([self.rows, new], 1)
            self.take(first, logits.repeat_interleave(each, 0), how)

    def unused(self, what: int, count: int) -> Tensor:
        """The lowest numbers that no row in flight has as its `what`: [count]."""
        used = set(self.rows[what].tolist())
        return torch.tensor([n for n in range(count + len(used)) if n not in used][:count])

    def take(self, first: int, logits: Tensor, how: tuple) -> None:
        """Draw a token for the rows from `first` on from their logits, note it, and let rows that
        end with it leave.
        """
        temperature, top_k, top_p, stop = how
        rows = self.rows[:, first:]
        sample, time = rows[SAMPLE], self.length[rows[SAMPLE]]
        point = self.uniforms[sample, time]
        if top_k or top_p < 1:
            ids, logp = draw(logits, point, temperature, top_k=top_k, top_p=top_p)
        else:
            ids, logp = self.model.draw(logits, point, temperature)
        self.out_ids[sample, time], self.out_logp[sample, time], rows[TOKEN] = ids, logp, ids
        self.length[sample] = time + 1
        ended = self.limits[sample] == time + 1
        for why, which in (
            ("stop", self.stopped(sample, stop)),
            ("eos", torch.isin(ids, self.eos)),
        ):
            ended |= which
            for n in sample[which].tolist():
                self.finish[n] = why
        if ended.any():
            self.rows = self.rows[:, torch.cat([torch.ones(first, dtype=torch.bool), ~ended])]

    def stopped(self, sample: Tensor, stop: tuple[str, ...]) -> Tensor:
        """Which of these completions now hold a stop string."""
        if not stop:
            return torch.zeros(len(sample), dtype=torch.bool)
        rows = zip(self.out_ids[sample].tolist(), self.length[sample].tolist(), strict=True)
        return holding(stop, self.tokenizer, [ids[:length] for ids, length in rows])
