"""A body whose weights were cast once: the model's own layers, computed as in sampling."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.fast.decode import bias_of
from laurel.fast.lora import merged_weight
from laurel.fast.packed import GEMMA_NORMS, NORMS
from laurel.fast.policy_protocol import LanguageModel


class Linear(nn.Module):
    """A linear layer in the precision of its weight, whatever comes in: as autocast has it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.in_features = weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Norm(nn.Module):
    """x / rms(x) * weight in one kernel.

    alike: in the precision of x (the Gemma family), else in the finer one of x and weight.
    """

    def __init__(self, weight: Tensor, eps: float, alike: bool) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.alike = alike

    def forward(self, x: Tensor) -> Tensor:
        finer = torch.promote_types(x.dtype, self.weight.dtype)
        found = F.rms_norm(x.to(finer), self.weight.shape, self.weight.to(finer), self.eps)
        return found.to(x.dtype) if self.alike else found


class GatedMLP(nn.Module):
    """An MLP with a gate, gate and up in one product."""

    def __init__(self, gate_up: Linear, down: nn.Module, activation: Any) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down_proj = down
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down_proj(self.activation(gate) * up)


class SamplingCopy:
    """Body and head of a policy as sampling computes them; `refresh` takes the weights as they are.

    A weight that has the policy's precision already, and no adapter, is used where it lies. All
    others are copied, adapters merged in, to memory that stays the same from one refresh to the
    next; those that read the same input become one product.
    """

    def __init__(self, policy: LanguageModel) -> None:
        self.policy = policy
        self.copies = dict[str, Tensor]()
        self.used = list[Tensor]()
        self.body: Any = None
        self.head: Any = None
        self.cap = getattr(policy.causal.config, "final_logit_softcapping", None)

    @torch.no_grad()
    def refresh(self) -> None:
        """The weights as they are now."""
        own = getattr(self.policy.causal, self.policy.causal.base_model_prefix)
        self.used = [*own.embed_tokens.parameters()]
        layers = [self.layer(layer, f"layer {i}") for i, layer in enumerate(own.layers)]
        self.body = replaceable_copy(own)
        self.body._modules["layers"] = nn.ModuleList(layers)
        self.body._modules["norm"] = self.made(own.norm, "norm")
        self.head = self.made(self.policy.causal.get_output_embeddings(), "head")

    def release(self) -> None:
        """Give the copies' memory back; `refresh` makes them anew."""
        self.copies.clear()
        self.used, self.body, self.head = [], None, None

    @property
    def places(self) -> tuple[int, ...]:
        """Where the weights lie: a CUDA graph holds as long as this stays the same."""
        return tuple(tensor.data_ptr() for tensor in self.used)

    @property
    def bytes(self) -> int:
        """Of the copies."""
        return sum(tensor.nbytes for tensor in self.copies.values())

    @property
    def foreseen(self) -> int:
        """Bytes that the copies of products will take, from shapes alone."""
        own = getattr(self.policy.causal, self.policy.causal.base_model_prefix)
        found, counted = 0, set[int]()
        for module in (*own.layers.modules(), self.policy.causal.get_output_embeddings()):
            base = getattr(module, "base_layer", module)
            adapted = base is not module
            if not isinstance(base, nn.Linear) or id(base) in counted:
                continue
            # adapters are linear layers, too: they and their base count once
            counted |= {id(part) for part in module.modules()}
            if adapted or self.cast(base.weight):
                found += base.weight.numel() * self.precision(base.weight).itemsize
        return found

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """[M, D] -> [M, V], in the precision of the head."""
        logits = self.head(hidden_MD)
        return logits if self.cap is None else self.cap * torch.tanh(logits.float() / self.cap)

    def layer(self, layer: Any, name: str) -> Any:
        """One layer.

        Where weights are copied anyway, queries, keys and values become one product, and gate and
        up another.
        """
        attention, mlp = layer.self_attn, layer.mlp
        parts = dict[str, Any]()
        qkv: list[Any] = [getattr(attention, f"{which}_proj", None) for which in "qkv"]
        gate_up = [getattr(mlp, "gate_proj", None), getattr(mlp, "up_proj", None)]
        if self.copied(qkv):
            one = self.product(f"{name} qkv", *qkv)
            parts["self_attn"] = self.hollowed(attention, name, {"qkv_proj": one})
            # what was copied from the module's own parts
            for which in "qkv":
                del parts["self_attn"]._modules[f"{which}_proj"]
        if self.copied(gate_up):
            both = self.product(f"{name} gate and up", *gate_up)
            down = self.product(f"{name} down", mlp.down_proj)
            parts["mlp"] = GatedMLP(both, down, mlp.act_fn)
        return self.hollowed(layer, name, parts)

    def hollowed(self, module: Any, name: str, parts: dict[str, Any]) -> Any:
        """A copy of a module with these parts, and its others as sampling has them."""
        together = ("q_proj", "k_proj", "v_proj") if "qkv_proj" in parts else ()
        twin = replaceable_copy(module)
        for inner, own in module._modules.items():
            if inner not in parts and inner not in together:
                twin._modules[inner] = self.made(own, f"{name} {inner}")
        twin._modules |= parts
        return twin

    def copied(self, linears: list[Any]) -> bool:
        """Are these linear layers, of which one at least must be copied?"""
        if not all(map(is_linear, linears)):
            return False
        return any(hasattr(one, "base_layer") or self.cast(one.weight) for one in linears)

    def cast(self, weight: Tensor) -> bool:
        """Is a weight of another precision than its product?"""
        return self.precision(weight) != weight.dtype

    def precision(self, weight: Tensor) -> torch.dtype:
        """Of a product with a weight: what autocast makes of it, where there is one."""
        return weight.dtype if self.policy.dtype == torch.float32 else self.policy.dtype

    def made(self, module: Any, name: str) -> Any:
        """A module with its products and norms as sampling computes them; any other as it is."""
        if is_linear(module):
            return self.product(name, module)
        kind = type(module).__name__
        if kind in NORMS:
            return Norm(self.in_place(module.weight.detach()), module.variance_epsilon, alike=False)
        if kind in GEMMA_NORMS:
            weight = 1.0 + module.weight.detach().float()
            return Norm(self.kept(name, [weight], weight.dtype), module.eps, alike=True)
        return self.hollowed(module, name, {}) if getattr(module, "_modules", None) else module

    def product(self, name: str, *linears: Any) -> Linear:
        """Linear layers that read the same input, as one."""
        bases = [getattr(one, "base_layer", one) for one in linears]
        dtype = self.precision(bases[0].weight)
        weights = [merged_weight(one) for one in linears]
        weight = self.stored(name, weights, [base.weight for base in bases], dtype)
        if all(base.bias is None for base in bases):
            return Linear(weight, None)
        biases = [bias_of(base) for base in bases]
        own = [base.bias for base in bases]
        return Linear(weight, self.stored(f"{name}, bias", biases, own, dtype))

    def stored(
        self,
        name: str,
        parts: list[Tensor],
        own: list[Any],
        dtype: torch.dtype,
    ) -> Tensor:
        """The one part where it lies, if it is a weight and in this precision; or a copy."""
        weight: Tensor | None = own[0]
        alone = len(parts) == 1 and parts[0].dtype == dtype
        # a weight with adapters merged into it is in memory of its own
        if alone and weight is not None and parts[0].data_ptr() == weight.data_ptr():
            return self.in_place(parts[0])
        return self.kept(name, parts, dtype)

    def in_place(self, tensor: Tensor) -> Tensor:
        """A weight that is used where it lies."""
        self.used.append(tensor)
        return tensor

    def kept(self, name: str, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Parts, one below the other, cast and copied to where they were before."""
        heights = [len(part) for part in parts]
        shape = torch.Size((sum(heights), *parts[0].shape[1:]))
        device = parts[0].device
        found = self.copies.get(name)
        if found is None or (found.shape, found.dtype, found.device) != (shape, dtype, device):
            found = torch.empty(shape, dtype=dtype, device=device)
            self.copies[name] = found
        for part, into in zip(parts, found.split_with_sizes(heights), strict=True):
            into.copy_(part)
        return self.in_place(found)


def replaceable_copy(module: Any) -> Any:
    """A copy of a module whose parts can be replaced; what is not replaced is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def is_linear(module: Any) -> bool:
    """Is it a linear layer, or one with adapters?"""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)
