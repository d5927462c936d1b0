"""What a precision can give: how far two computations of the same number may be apart, by the size
of the numbers in between.
"""

from __future__ import annotations

import torch

STEPS = {torch.float64: 8.0, torch.float32: 8.0, torch.bfloat16: 0.5, torch.float16: 0.5}
"""The usual distance, in steps of the precision (eps) at the size of the numbers. Half precision
accumulates in float32.
"""
USUAL, WORST = 4.0, 16.0
"""Bounds of a check, as multiples of it: for 99 of 100 distances, and for every one."""


def slack(dtype: torch.dtype, size: float) -> float:
    """The usual distance between two computations of one number, where numbers of that size are
    added up. float32, 31: 3.0e-5.

    Measured, sampler against trainer on a CPU, 99th percentile and worst of 384 tokens, in steps at
    the size of the logits of a probe: Gemma 3 270M (31) 3.0 and 4.7 in float32, .51 and .66 in
    bfloat16; tinystories (16) 2.4 and 2.7, .64 and 1.1.
    """
    return STEPS[dtype] * torch.finfo(dtype).eps * size
