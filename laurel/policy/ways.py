"""Which way a policy is sampled: the compact decoder, static buffers, or the general path; and why nothing faster does it."""

from __future__ import annotations

import logging
from typing import NamedTuple

from laurel.policy.compact import Compact, compact_because, compact_of, listened
from laurel.policy.model import Policy
from laurel.policy.static import Static, static_because, static_of


class Way(NamedTuple):
    """name: `compact`, `static` or `general`. why: why not the one that is fastest on this device, "" where it is that."""

    name: str
    why: str


def way_of(policy: Policy) -> Way:
    """How a policy is sampled where it is: on a CPU compact, static, general, whichever can first; elsewhere static or general."""
    fastest = compact_because(policy) if policy.device.type == "cpu" else ""
    if policy.device.type == "cpu" and not fastest:
        return Way("compact", "")
    why = static_because(policy)
    return Way("general", fastest if why == "its logits would differ" and fastest else why) if why else Way("static", fastest)


def decoder_of(policy: Policy) -> Compact | Static | None:
    """The decoder that samples a policy, with its weights as they are now; None: the general path does.

    Where it is not the fastest of its device that is logged, in one line, when it is first found.
    """
    found = compact_of(policy) if policy.device.type == "cpu" else None
    found = static_of(policy) if found is None else found
    if not isinstance(found, Compact) and policy.packs and not listened(policy) and not vars(policy).get("way_told"):
        policy.way_told = True
        name, why = way_of(policy)
        how = {"static": "with static buffers", "general": "by the general path"}[name]
        if why:
            logging.getLogger(__name__).warning("%s is sampled %s: %s", type(policy.causal).__name__, how, why)
    return found
