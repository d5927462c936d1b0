"""A compact decoder over the training weights of Llama-like models: fused projections, one prefix
per prompt, rows of any length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laurel.model.adapters import lora_terms, merge_into, plain_lora
from laurel.model.kernels import call, library
from laurel.model.packed import window_of
from laurel.model.policy import Policy

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

    def __init__(self, policy: Policy) -> None:
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


def obstacle(policy: Policy) -> str:
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


def listened(policy: Policy) -> bool:
    """Are there hooks in the model, below its embedding? A decoder that is written out would not
    call them.
    """
    inner = (
        module
        for module in policy.causal.modules()
        if module is not policy.causal.get_input_embeddings()
    )
    return any(module._forward_hooks or module._forward_pre_hooks for module in inner)


def compact_because(policy: Policy) -> str:
    """Why the compact decoder does not take a policy, "" where it does."""
    if compact_of(policy) is not None:
        return ""
    if not policy.packs:
        return "a family whose pass laurel does not write out"
    return obstacle(policy) or "its logits would differ"


@torch.no_grad()
def compact_of(policy: Policy) -> Compact | None:
    """The policy's compact decoder with its weights as they are now, or None: made, and checked
    against the model, once per policy.
    """
    made = vars(policy).get("compact", False)
    if listened(policy):  # they would not be called
        return None
    if made is False or (made and made.policy is not policy):
        made, why = None, ""
        if policy.packs and not (why := obstacle(policy)):
            made = Compact(policy)
            why = made.check()
        policy.compact = made = None if why else made
    elif made:
        made.refresh()
    return made
