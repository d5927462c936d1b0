"""Memory that logits may take in a run: a number of bytes, chosen once."""

from __future__ import annotations

import torch

from laurel.core import machine

LEAST, MOST, MOST_OF_GPU = 32 << 20, 1 << 30, 4 << 30
"""Bytes between which it lies."""
SHARE = 32  # of all memory, a part in so many
SPARE = 4  # of what is free in the end, a part in so many


def logit_room(
    device: torch.device, coming: int, useful: int, memory: tuple[int, int] | None = None
) -> int:
    """Bytes for logits: a power of two, a thirty-second of the device's memory, less where little
    of it is free.

    coming: bytes that gradients and optimiser will take before logits do. useful: bytes of the
    largest micro-batch's logits; more
    would bring nothing. memory: (free, all) of a device that is not here. All memory, not what is
    free just now, as long as there
    is enough: so a run that is started twice on the same machine gets the same number.
    """
    most = MOST_OF_GPU if device.type == "cuda" else MOST
    memory = memory or device_memory(device)
    if memory is not None:
        free, every = memory
        most = min(most, every // SHARE, (free - coming) // SPARE)
    below = 1 << max(0, most.bit_length() - 1) if most > 0 else 0
    enough = 1 << max(0, useful - 1).bit_length()
    return max(LEAST, min(below, enough))


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes of memory where a device computes: (free, all); None where nobody tells.

    What torch holds and does not use counts as free: the next tensor takes it.
    """
    if device.type != "cuda":
        return machine.memory_sizes()
    free, every = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), every
