"""A compact decoder for Llama-like models over the training weights: fused projections, one prefix per prompt, rows of any length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.policy.kernels import kernels_for
from laurel.policy.model import Policy

FAMILIES = {"llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0, "gemma": 1.0}
"""Model types this file knows -> what is added to the weight of a norm."""
STATIC_ROPES = ("default", "linear", "llama3", "yarn")
FEWEST = 16
"""A matrix product has at least so many rows: with fewer, libraries take other kernels, and a sample's last bits tell of its neighbours."""
log = logging.getLogger(__name__)


class Unknown(Exception):
    """Why a model is not for the compact decoder."""


@dataclass(slots=True)
class Block:
    """One layer's weights in the precision of computation; `q_norm` and `k_norm` are None where the family has none."""

    norm_1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm_2: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Cache:
    """Keys and values: `prefix` [layers, 2, groups, K, W, h], one entry a prompt, and `suffix` [layers, 2, rows, K, S, h]."""

    def __init__(self, model: Compact, rows: int, each: int, width: int, longest: int) -> None:
        self.each, self.longest = each, rounded(longest)
        self.make = lambda count, length: model.embedding.new_zeros(
            len(model.blocks), 2, count, model.kv_heads, length, model.head_dim, dtype=model.work
        )
        self.prefix, self.suffix = self.make(rows // each, width), self.make(rows, min(64, self.longest))

    def reserve(self, groups: int, length: int) -> None:
        """Room for so many prompts and so long a row: doubled when it does not suffice."""
        if groups > self.prefix.shape[2]:
            old, self.prefix = self.prefix, self.make(max(groups, 2 * self.prefix.shape[2]), self.prefix.shape[4])
            self.prefix[:, :, : old.shape[2]] = old
        if length > self.suffix.shape[4]:
            old, self.suffix = self.suffix, self.make(self.suffix.shape[2], min(self.longest, 2 * self.suffix.shape[4]))
            self.suffix[:, :, :, :, : old.shape[4]] = old

    def move(self, source: Tensor, target: Tensor, length: int) -> None:
        """Rows `source` take the places `target` of rows that ended; no row is longer than `length`."""
        for layer in self.suffix:
            for part in layer:
                part[target, :, : rounded(length)] = part[source, :, : rounded(length)]


class Compact:
    """The forward pass of a Llama-like model, for sampling only: no gradient, no dropout, weights as the policy has them now.

    In bfloat16 the residual stream, norms and softmax stay float32, as under autocast. A CPU without bfloat16 arithmetic multiplies
    the rounded numbers in float32: the same products, several times sooner.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.require(policy)
        config, body = policy.causal.config, getattr(policy.causal, policy.causal.base_model_prefix)
        first = body.layers[0]
        self.body, self.head_dim, self.scaling = body, first.self_attn.head_dim, first.self_attn.scaling
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.activation, self.plus = config.rms_norm_eps, first.mlp.act_fn, FAMILIES[config.model_type]
        self.scale = float(getattr(body.embed_tokens, "scalar_embed_scale", 1.0))
        self.half = policy.dtype == torch.bfloat16
        native = policy.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        self.work = torch.bfloat16 if self.half and native else torch.float32
        self.kernels = kernels_for(policy.device, self.work, self.half) if self.head_dim <= 512 and self.head_dim % 4 == 0 else None
        self.refresh()

    @staticmethod
    def require(policy: Policy) -> None:
        """Raise Unknown, with the reason, unless the model is of a known family and has nothing the decoder leaves out."""
        config, causal = policy.causal.config, policy.causal
        if config.model_type not in FAMILIES:
            raise Unknown(f"model type {config.model_type}")
        body = getattr(causal, causal.base_model_prefix)
        types = set(getattr(config, "layer_types", None) or ["full_attention"])
        if types != {"full_attention"} or (config.model_type == "mistral" and config.sliding_window):
            raise Unknown("sliding-window attention")
        if body.rotary_emb.rope_type not in STATIC_ROPES or 2 * body.rotary_emb.inv_freq.numel() != body.layers[0].self_attn.head_dim:
            raise Unknown(f"rotary embedding {body.rotary_emb.rope_type}")
        if policy.dtype not in (torch.float32, torch.bfloat16) or {p.dtype for p in policy.model.parameters()} != {torch.float32}:
            raise Unknown("precision")
        if policy.whole_logits or getattr(config, "final_logit_softcapping", None):
            raise Unknown("a head that is more than a product")
        for lora in getattr(policy.model, "peft_config", {}).values():
            extras = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens")
            if lora.peft_type != "LORA" or any(getattr(lora, name, None) for name in extras):
                raise Unknown("adapters other than plain LoRA")

    @torch.no_grad()
    def refresh(self) -> None:
        """Fuse the weights anew. Nothing tells for certain whether they moved: a fused AdamW leaves their version counters alone."""
        self.blocks = [self.block(layer) for layer in self.body.layers]
        self.embedding, self.norm = self.body.embed_tokens.weight.detach(), self.body.norm.weight.detach() + self.plus
        self.head, self.head_bias = self.fused(self.policy.causal.get_output_embeddings())

    def block(self, layer: nn.Module) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        return Block(
            layer.input_layernorm.weight.detach() + self.plus,
            *self.fused(attention.q_proj, attention.k_proj, attention.v_proj),
            *(None if norm is None else norm.weight.detach() + self.plus for norm in norms),
            *self.fused(attention.o_proj),
            layer.post_attention_layernorm.weight.detach() + self.plus,
            *self.fused(mlp.gate_proj, mlp.up_proj),
            *self.fused(mlp.down_proj),
        )

    def fused(self, *linears: Any) -> tuple[Tensor, Tensor | None]:
        """The weights of several projections of one input as one matrix, adapters merged in, and their biases as one vector."""
        weights, biases = [], []
        for linear in linears:
            base = getattr(linear, "base_layer", linear)
            weight = base.weight.detach()
            if base is not linear and not linear.merged and not linear.disable_adapters:
                for name in linear.active_adapters:
                    weight = weight + linear.get_delta_weight(name) if name in linear.lora_A else weight
            weights.append(weight)
            biases.append(base.weight.new_zeros(base.out_features) if base.bias is None else base.bias.detach())
        bias = None if all(getattr(linear, "base_layer", linear).bias is None for linear in linears) else self.cast(torch.cat(biases))
        return self.cast(weights[0] if len(weights) == 1 else torch.cat(weights)), bias

    def cast(self, x: Tensor) -> Tensor:
        """Numbers as a matrix product takes them."""
        return x.bfloat16().to(self.work) if self.half else x

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., D] times weight [E, D], plus bias, by the kernel for at least FEWEST rows."""
        x, short = x if self.kernels else self.cast(x), FEWEST - x.numel() // x.shape[-1]
        if short >= 0 and self.kernels:
            y = (weight @ F.pad(x, (0, 0, 0, short)).mT).mT[: len(x)]  # for few rows a third sooner than F.linear
            return (y if bias is None else y + bias).contiguous()
        y = F.linear(F.pad(x, (0, 0, 0, short)) if short > 0 else x, weight, bias)[: len(x)]
        return y if self.kernels else self.cast(y)

    def rotations(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., h / 2] of the model's own rotary embedding, scaling included."""
        rotary = self.body.rotary_emb
        angle = position[..., None].float() * rotary.inv_freq.to(position.device).float()
        return angle.cos() * rotary.attention_scaling, angle.sin() * rotary.attention_scaling

    def heads_of(self, block: Block, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections [..., (H + 2K) h] -> turned queries [..., H, h] and keys, and values [..., K, h]; cos and sin [..., h / 2]."""
        several = qkv.unflatten(-1, (-1, self.head_dim)).split([self.heads, self.kv_heads, self.kv_heads], -2)
        q, k = (
            self.cast(turned(x.float(), norm, cos, sin, self.eps))
            for x, norm in zip(several[:2], (block.q_norm, block.k_norm), strict=True)
        )
        return q, k, several[2]

    def layers(self, ids: Tensor, attend: Callable[[int, Block, Tensor], Tensor]) -> Tensor:
        """Ids [...] -> last hidden states [..., D]; `attend` maps a layer's projections [..., (H + 2K) h] to its heads' answers."""
        x, y = self.embedding[ids] * self.scale, None
        for i, block in enumerate(self.blocks):
            h = attend(i, block, self.product(self.add_norm(x, y, block.norm_1), block.qkv, block.qkv_bias))
            y = self.product(h, block.out, block.out_bias)
            h = self.gated(self.product(self.add_norm(x, y, block.norm_2), block.gate_up, block.gate_up_bias))
            y = self.product(h, block.down, block.down_bias)
        return self.add_norm(x, y, self.norm)

    def add_norm(self, x: Tensor, y: Tensor | None, weight: Tensor) -> Tensor:
        """x += y, in place; x / rms(x) * weight."""
        if self.kernels:
            h = torch.empty(x.shape, dtype=self.work)
            self.kernels.call("add_norm", x, y, weight, h, x.numel() // x.shape[-1], x.shape[-1], self.eps)
            return h
        return F.rms_norm(x if y is None else x.add_(y), x.shape[-1:], weight, self.eps)

    def gated(self, gate_up: Tensor) -> Tensor:
        """[..., 2 F] -> activation(gate) * up [..., F]."""
        if self.kernels and type(self.activation).__name__ in ("SiLU", "SiLUActivation"):
            h = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
            self.kernels.call("silu_times", gate_up, h, h.numel() // h.shape[-1], h.shape[-1])
            return h
        gate, up = gate_up.chunk(2, -1)
        return self.cast(self.activation(gate)) * up

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, D] -> logits [n, V]."""
        return self.product(hidden, self.head, self.head_bias)

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """`sampler.draw` without truncation: what the kernel draws, in one pass."""
        ids, logp = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
        sharp = 1.0 / (temperature or 1.0)
        self.kernels.call("draw", logits, uniform, ids, logp, *logits.shape, sharp, int(temperature == 0))
        return ids, logp

    def prefill(self, prompts: Sequence[Sequence[int]], groups: Tensor, cache: Cache) -> Tensor:
        """Read each prompt once, padded on the right (causal attention never looks there): logits [P, V] after its last token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids_PL = torch.zeros(len(prompts), rounded(int(lengths.max())), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_PL[row, : len(prompt)] = torch.tensor(prompt)
        ids_PL, width = ids_PL.to(self.embedding.device), ids_PL.shape[1]
        cos, sin = self.rotations(torch.arange(width, device=ids_PL.device)[:, None])

        def attend(i: int, block: Block, qkv: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in self.heads_of(block, qkv, cos, sin))
            kept = k.unflatten(2, (-1, 16)).mT.reshape(k.shape) if self.kernels else k
            cache.prefix[i, 0, groups, :, :width], cache.prefix[i, 1, groups, :, :width] = kept, v
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scaling, enable_gqa=self.heads != self.kv_heads)
            return o.transpose(1, 2).flatten(2)

        hidden_PLD = self.layers(ids_PL, attend)
        return self.logits(hidden_PLD[torch.arange(len(prompts)), lengths - 1])

    def step(self, token: Tensor, cell: Tensor, start: Tensor, time: Tensor, cache: Cache) -> Tensor:
        """One token more for rows 0 .. n of the cache: logits [n, V].

        token, cell, start, time [n], on the CPU: what each row said last; its prompt's entry in the cache times `each`, plus its
        number in the group; the length of its prompt; how many of its own tokens the cache holds.
        """
        count, length, device = len(token), int(time.max()) + 1, self.embedding.device
        token, cell, start, time = torch.stack([token, cell, start, time]).to(device)
        cos, sin = self.rotations((start + time)[:, None])
        if self.kernels:
            group = cell // cache.each
            return self.logits(self.layers(token, partial(self.attend_compiled, cache, group, start, time, cos, sin)))
        width, rows = cache.prefix.shape[4], torch.arange(count, device=device)
        unseen = torch.cat([torch.arange(width, device=device) >= start[:, None], torch.arange(length, device=device) > time[:, None]], 1)

        def fold(x: Tensor) -> Tensor:
            grid = x.new_zeros(cache.prefix.shape[2] * cache.each, *x.shape[1:])
            grid[cell] = x
            return grid.unflatten(0, (-1, cache.each)).transpose(1, 2).flatten(2, 3)

        def unfold(x: Tensor) -> Tensor:
            return x.unflatten(2, (cache.each, -1)).transpose(1, 2).flatten(0, 1)[cell]

        def attend(i: int, block: Block, qkv: Tensor) -> Tensor:
            q, k, v = self.heads_of(block, qkv, cos, sin)
            k_prefix, v_prefix, k_own, v_own = *cache.prefix[i], *cache.suffix[i, :, :count, :, :length]
            k_own[rows, :, time], v_own[rows, :, time] = k, v
            q = q.unflatten(1, (self.kv_heads, -1))
            scores = torch.cat([unfold(fold(q) @ k_prefix.mT), q @ k_own.mT], -1).float() * self.scaling
            share = scores.masked_fill(unseen[:, None, None], -torch.inf).softmax(-1).to(self.work)
            return (unfold(fold(share[..., :width]) @ v_prefix) + share[..., width:] @ v_own).flatten(1)

        return self.logits(self.layers(token, attend))

    def attend_compiled(
        self, cache: Cache, group: Tensor, start: Tensor, time: Tensor, cos: Tensor, sin: Tensor, i: int, block: Block, qkv: Tensor
    ) -> Tensor:
        """`step`'s attention by the kernel."""
        out, sizes = qkv.new_empty(len(qkv), self.heads * self.head_dim), (cache.prefix.shape[4], cache.suffix.shape[4])
        self.kernels.call(
            "attend", qkv, block.q_norm, block.k_norm, cos, sin, *cache.prefix[i], *cache.suffix[i], group, start, time, out,
            len(qkv), self.heads, self.kv_heads, self.head_dim, *sizes, float(self.scaling), self.eps,
        )  # fmt: skip
        return out

    def check(self) -> float:
        """max |logit difference| to the Hugging Face forward pass over max |logit|: a prefill of two lengths, then three single tokens."""
        size = self.embedding.shape[0]
        ids_NL = torch.arange(16).view(2, 8) * max(size // 17, 1) % size
        cache, starts, found = Cache(self, 2, 1, FEWEST, 3), torch.tensor([5, 2]), []
        found.append(self.prefill([ids_NL[0, :5].tolist(), ids_NL[1, :2].tolist()], torch.arange(2), cache))
        for t in range(3):
            token = ids_NL[torch.arange(2), starts + t]
            found.append(self.step(token, torch.arange(2), starts, torch.full((2,), t), cache))
        with self.policy.autocast():
            logits = self.policy.causal(ids_NL.to(self.embedding.device), use_cache=False).logits.float()
        wanted = torch.stack([logits[n, int(s) - 1 : int(s) + 3] for n, s in enumerate(starts)], 1)
        return float((torch.stack(found) - wanted).abs().max() / wanted.abs().max())


def rounded(length: int) -> int:
    """Up to a multiple of 16: how many rows of a product are the fewest, and how many keys a kernel reads at once."""
    return -(-length // FEWEST) * FEWEST


def turned(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Heads [..., h], normed where the family does so, turned by their position."""
    a, b = (x if weight is None else F.rms_norm(x, x.shape[-1:], weight, eps)).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@torch.no_grad()
def compact_of(policy: Policy) -> Compact | None:
    """The policy's compact decoder with its weights as they are now, or None: made, and checked against the model, once per policy.

    Why a transformers model is left to the general sampler is logged, in one line, when that is first found.
    """
    made = vars(policy).get("compact", False)
    if made is False or (made is not None and (made.policy is not policy or made.policy.dtype != policy.dtype)):
        made = None
        try:
            if hasattr(policy.causal.config, "model_type"):
                made = Compact(policy)
                gap, bound = made.check(), 0.05 if made.half else 1e-4
                if not gap < bound:
                    made = None
                    raise Unknown(f"its logits would differ by {gap:.2g}, more than {bound:g} of the largest")
        except Unknown as reason:
            log.warning("%s is sampled by the general path: %s", type(policy.causal).__name__, reason)
        policy.compact = made
    if made is not None:
        made.refresh()
    return made
