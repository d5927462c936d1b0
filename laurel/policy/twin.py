"""A body whose weights were cast once: the model's own layers, with its products and norms as they are computed in sampling."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laurel.policy.adapters import merged_weight
from laurel.policy.model import Policy
from laurel.policy.passes import FROM_ONE, NORMS


class Product(nn.Module):
    """A linear layer in the precision of its weight, whatever comes in: as under autocast, without a cast of weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias, self.in_features = weight, bias, weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Norm(nn.Module):
    """x / rms(x) * weight in one kernel. alike: in the precision of x (the Gemma family), else in the finer of both."""

    def __init__(self, weight: Tensor, eps: float, alike: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.alike = weight, eps, alike

    def forward(self, x: Tensor) -> Tensor:
        finer = torch.promote_types(x.dtype, self.weight.dtype)
        found = F.rms_norm(x.to(finer), self.weight.shape, self.weight.to(finer), self.eps)
        return found.to(x.dtype) if self.alike else found


class Unit(nn.Module):
    """The gated unit of an MLP, gate and up in one product."""

    def __init__(self, gate_up: Product, down: nn.Module, activation: Any) -> None:
        super().__init__()
        self.gate_up, self.down_proj, self.activation = gate_up, down, activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down_proj(self.activation(gate) * up)


class Twin:
    """Body and head of a policy as sampling computes them; `refresh` takes the weights as they are now.

    A weight that is in the policy's precision already, and has no adapter, is used where it lies. All others are copied, adapters merged
    in, to memory that stays the same from one refresh to the next; those that read the same input become one product.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.copies, self.used = policy, dict[str, Tensor](), list[Tensor]()
        self.body: Any = None
        self.head: Any = None
        self.cap = getattr(policy.causal.config, "final_logit_softcapping", None)

    @torch.no_grad()
    def refresh(self) -> None:
        """The weights as they are now."""
        own = getattr(self.policy.causal, self.policy.causal.base_model_prefix)
        self.used = [*own.embed_tokens.parameters()]
        self.body = hollow(own)
        layers = [self.layer(layer, f"layer {i}") for i, layer in enumerate(own.layers)]
        self.body._modules |= {"layers": nn.ModuleList(layers), "norm": self.made(own.norm, "norm")}
        self.head = self.made(self.policy.causal.get_output_embeddings(), "head")

    @property
    def places(self) -> tuple[int, ...]:
        """Where the weights lie: a CUDA graph holds as long as this stays the same."""
        return tuple(tensor.data_ptr() for tensor in self.used)

    @property
    def bytes(self) -> int:
        """Of the copies."""
        return sum(tensor.nbytes for tensor in self.copies.values())

    def release(self) -> None:
        """Give the copies' memory back; `refresh` makes them anew."""
        self.copies.clear()
        self.used, self.body, self.head = [], None, None

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """[M, D] -> [M, V], in the precision of the head."""
        logits = self.head(hidden_MD)
        return logits if self.cap is None else self.cap * torch.tanh(logits.float() / self.cap)

    def layer(self, layer: Any, name: str) -> Any:
        """One layer; where weights are copied anyway, queries, keys and values become one product, and gate and up."""
        own, unit = layer.self_attn, layer.mlp
        qkv = [getattr(own, f"{which}_proj", None) for which in "qkv"]
        gate_up = [getattr(unit, "gate_proj", None), getattr(unit, "up_proj", None)]
        together = dict[str, Any]()
        if self.copied(qkv):
            together["self_attn"] = hollow(own)
            inner = {n: self.made(m, f"{name} {n}") for n, m in own._modules.items() if m not in qkv}
            together["self_attn"]._modules = inner | {"qkv_proj": self.product(f"{name} qkv", *qkv)}
        if self.copied(gate_up):
            down = self.product(f"{name} down", unit.down_proj)
            together["mlp"] = Unit(self.product(f"{name} gate and up", *gate_up), down, unit.act_fn)
        twin = hollow(layer)
        twin._modules = {n: together[n] if n in together else self.made(m, f"{name} {n}") for n, m in layer._modules.items()}
        return twin

    def copied(self, linears: list[Any]) -> bool:
        """Are these linear layers, of which one at least must be copied?"""
        return all(map(linear, linears)) and any(hasattr(one, "base_layer") or self.cast(one.weight) for one in linears)

    def cast(self, weight: Tensor) -> bool:
        """Is a weight of another precision than its product?"""
        return self.precision(weight) != weight.dtype

    def precision(self, weight: Tensor) -> torch.dtype:
        """Of a product with a weight: what autocast makes of it, where there is one."""
        return weight.dtype if self.policy.dtype == torch.float32 else self.policy.dtype

    def made(self, module: Any, name: str) -> Any:
        """A module with its products and norms as sampling computes them; any other as it is."""
        if linear(module):
            return self.product(name, module)
        kind = type(module).__name__
        if kind in NORMS:
            return Norm(self.seen(module.weight.detach()), module.variance_epsilon, alike=False)
        if kind in FROM_ONE:
            weight = 1.0 + module.weight.detach().float()
            return Norm(self.kept(name, [weight], weight.dtype), module.eps, alike=True)
        if not getattr(module, "_modules", None):
            return module
        twin = hollow(module)
        twin._modules = {inner: self.made(own, f"{name} {inner}") for inner, own in module._modules.items()}
        return twin

    def product(self, name: str, *linears: Any) -> Product:
        """Linear layers that read the same input, as one."""
        bases = [getattr(one, "base_layer", one) for one in linears]
        weights, bias, alone = [merged_weight(one) for one in linears], None, len(linears) == 1
        dtype = self.precision(bases[0].weight)
        if any(base.bias is not None for base in bases):
            biases = [base.weight.new_zeros(base.out_features) if base.bias is None else base.bias.detach() for base in bases]
            bias = self.seen(biases[0]) if alone and not self.cast(biases[0]) else self.kept(f"{name}, bias", biases, dtype)
        if alone and linears[0] is bases[0] and not self.cast(weights[0]):
            return Product(self.seen(weights[0]), bias)
        return Product(self.kept(name, weights, dtype), bias)

    def seen(self, tensor: Tensor) -> Tensor:
        """A weight that is used where it lies."""
        self.used.append(tensor)
        return tensor

    def kept(self, name: str, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Parts, one below the other, cast and copied to where they were before."""
        shape, device = (sum(map(len, parts)), *parts[0].shape[1:]), parts[0].device
        found = self.copies.get(name)
        if found is None or (found.shape, found.dtype, found.device) != (shape, dtype, device):
            found = self.copies[name] = torch.empty(shape, dtype=dtype, device=device)
        for part, into in zip(parts, found.split([len(part) for part in parts]), strict=True):
            into.copy_(part)
        return self.seen(found)


def hollow(module: nn.Module) -> Any:
    """A copy of a module whose parts can be replaced without a change to it; what is not replaced is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def linear(module: Any) -> bool:
    """Is it a linear layer, or one with adapters?"""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)
