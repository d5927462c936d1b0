"""Reward shaping: terms added to a reward before it is turned into a weight."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong(length_N: Tensor, *, max_completion_length: int, overlong_buffer: int) -> Tensor:
    """A penalty from 0 to -1 on completions near the length limit: [N] -> [N] float64.

        0                  l <= L - c
        (L - c - l) / c    in between
        -1                 l >= L

    L = max_completion_length, c = overlong_buffer, l the length. L = 10, c = 4: length 6 -> 0,
    8 -> -.5, 10 -> -1. c = 0: no penalty. DAPO's soft overlong punishment, Yu et al. 2025,
    arXiv:2503.14476.
    """
    assert 0 <= overlong_buffer <= max_completion_length, (overlong_buffer, max_completion_length)
    if overlong_buffer == 0:
        return torch.zeros_like(length_N, dtype=torch.float64)
    return ((max_completion_length - overlong_buffer - length_N.double()) / overlong_buffer).clamp(
        -1.0, 0.0
    )
