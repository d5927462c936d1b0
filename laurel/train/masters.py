"""Float32 masters of weights held in bfloat16.

The weight is the master's upper half; the optimiser keeps the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NARROW = torch.bfloat16
AT_ONCE = 1 << 24
"""Numbers that a master is put together for at once."""

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def join_float32(weight: Tensor, rest: Tensor) -> Tensor:
    """The float32 master of a bfloat16 weight and its rest (int16).

    The weight's bits above, the rest added below.
    """
    return (weight.view(torch.int16).to(torch.int32).bitwise_left_shift_(16) + rest).view(
        torch.float32
    )


def split_float32(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 number as the nearest bfloat16 and the rest (`join_float32` gives it back)."""
    bits = master.view(torch.int32)
    upper = (bits + 0x8000).bitwise_right_shift_(16)
    rest = bits - (upper << 16)
    return upper.to(torch.int16).view(NARROW), rest.to(torch.int16)


class Masters:
    """An optimiser over parameters of which some are bfloat16.

    Those move as if they were float32, and are the masters rounded.

    A step of 1e-6 is far below what bfloat16 can tell apart at 0.1 (5e-4); in the master it adds
    up. `make` builds the optimiser of float32 parameters that does the work. It sees a part of a
    tensor at a time, so float32 copies are small; what it remembers is kept part by part. 2 bytes a
    weight in place of the 4 of a separate master, and exactly its numbers.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], make: Make) -> None:
        self.param_groups = [dict(group) for group in groups]
        self.parts = [
            MasterPart(p, make, group)
            for group in self.param_groups
            for p in group["params"]
            if p.dtype == NARROW
        ]
        wide = [
            {**group, "params": [p for p in group["params"] if p.dtype != NARROW]}
            for group in self.param_groups
        ]
        self.place = [n for n, group in enumerate(wide) if group["params"]]
        self.plain = make([wide[n] for n in self.place]) if self.place else None

    def step(self) -> None:
        """One step of everything that has a gradient, at the rates that `param_groups` say."""
        if self.plain is not None:
            for group, n in zip(self.plain.param_groups, self.place, strict=True):
                group.update(group_settings(self.param_groups[n]))
            self.plain.step()
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = (
                    None if set_to_none or parameter.grad is None else parameter.grad.zero_()
                )

    def state_dict(self) -> dict[str, Any]:
        """Rests of masters, and the states of the optimisers: all that changes but the weights."""
        return {
            "rests": [part.rest for part in self.parts],
            "parts": [[inner.state_dict() for inner in part.inner] for part in self.parts],
            "plain": self.plain.state_dict() if self.plain is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit by bit."""
        for part, rest, inner in zip(self.parts, state["rests"], state["parts"], strict=True):
            part.rest.copy_(rest)
            for one, kept in zip(part.inner, inner, strict=True):
                one.load_state_dict(kept)
        if self.plain is not None:
            self.plain.load_state_dict(state["plain"])


class MasterPart:
    """One bfloat16 parameter: the rest of its master, and its optimisers.

    One optimiser for every AT_ONCE numbers of it.
    """

    def __init__(self, parameter: nn.Parameter, make: Make, group: dict[str, Any]) -> None:
        self.parameter, self.group = parameter, group
        parameter.data = parameter.data.contiguous()  # its pieces are views of it
        self.rest = torch.zeros(parameter.numel(), dtype=torch.int16, device=parameter.device)
        nothing = torch.empty(0, device=parameter.device)
        self.inner = [
            make([{**group, "params": [nn.Parameter(nothing)]}])
            for _ in range(0, parameter.numel(), AT_ONCE)
        ]

    @torch.no_grad()
    def step(self) -> None:
        """master - what the optimiser takes away, a piece after the other."""
        if self.parameter.grad is None:
            return
        grad, weight = self.parameter.grad.reshape(-1), self.parameter.view(-1)
        for at, inner in enumerate(self.inner):
            piece = slice(at * AT_ONCE, (at + 1) * AT_ONCE)
            stand_in = inner.param_groups[0]["params"][0]
            stand_in.data, stand_in.grad = (
                join_float32(weight[piece], self.rest[piece]),
                grad[piece].float(),
            )
            inner.param_groups[0].update(group_settings(self.group))
            inner.step()
            weight[piece], self.rest[piece] = split_float32(stand_in.data)
            stand_in.data, stand_in.grad = stand_in.data.new_empty(0), None


def group_settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a group says besides its parameters."""
    return {name: value for name, value in group.items() if name != "params"}
