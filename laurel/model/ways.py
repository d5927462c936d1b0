"""Which way a policy is sampled: compact decoder, static buffers, general path; and why."""

from __future__ import annotations

import logging
from typing import NamedTuple

from laurel.model.compact import Compact, compact_because, compact_of, listened
from laurel.model.policy import Policy
from laurel.model.static import Static, static_because, static_of


class Way(NamedTuple):
    """name: `compact`, `static` or `general`. why: why it is not what is fastest on this device."""

    name: str
    why: str


def way_of(policy: Policy) -> Way:
    """How a policy is sampled where it is.

    On a CPU compact, static, general: the first that can; elsewhere static or general.
    """
    on_cpu = policy.device.type == "cpu"
    faster = compact_because(policy) if on_cpu else ""
    if on_cpu and not faster:
        return Way("compact", "")
    why = static_because(policy)
    return Way("general", why) if why else Way("static", faster)


def decoder_of(policy: Policy) -> Compact | Static | None:
    """The decoder that samples a policy, with its weights now; None: the general path does."""
    found = compact_of(policy) if policy.device.type == "cpu" else None
    found = static_of(policy) if found is None else found
    if not isinstance(found, Compact) and policy.packs and not listened(policy):
        tell(policy)
    return found


def tell(policy: Policy) -> None:
    """Log, once and in one line, why a policy is not sampled in its device's fastest way."""
    if vars(policy).get("way_told"):
        return
    policy.way_told = True
    name, why = way_of(policy)
    how = "with static buffers" if name == "static" else "by the general path"
    if why:
        kind = type(policy.causal).__name__
        logging.getLogger(__name__).warning("%s is sampled %s: %s", kind, how, why)
