"""What an evaluation, or sampling, loads: rows of prompts, the policy, a reference."""

from __future__ import annotations

from typing import Any

import torch

from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.data.rows import read_rows
from laurel.data.source import Row
from laurel.fast import products
from laurel.model.chat import ensure_template
from laurel.model.ends import learn_ends
from laurel.model.policy import (
    Policy,
    load_causal,
    load_tokenizer,
    pick_device,
    pick_dtype,
    pick_threads,
)
from laurel.model.render import without_template


def load_prompts(config: Any, by: str = "sampling") -> list[Row]:
    """The rows of `dataset`, the first `limit` of them.

    config: of an evaluation, or of choosing. by: what needs them, for errors.
    """
    rows = read_rows(
        config.dataset,
        "rl",
        split=config.dataset_split,
        seed=config.seed,
        size=config.dataset_size,
        by=by,
    )
    return rows[: config.limit or None]


def load_policies(
    config: EvalConfig, model: str, reference: str | None = None
) -> tuple[Policy, Policy | None]:
    """The policy in the folder (or of the hub's name) `model`, and the reference if one is named.

    Device, precision and template are the configuration's. A reference that numbers its tokens
    differently is a UsageError.
    """
    tokenizer = load_tokenizer(model)
    notes = without_template(tokenizer, config.chat_template)
    template = ensure_template(tokenizer, config.chat_template)
    if reference and load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            "the reference has another vocabulary than the model: no KL between them.",
            where=f"reference={config.reference}",
        )
    policy = as_policy(config, model, tokenizer, template, notes)
    torch.set_num_threads(pick_threads(config.num_threads, policy.num_parameters))
    products.choose_product_library(policy.model, policy.device, policy.dtype)
    if not reference:
        return policy, None
    return policy, as_policy(config, reference, tokenizer, template, notes)


def as_policy(
    config: EvalConfig, folder: str, tokenizer: Any, template: str, notes: list[str]
) -> Policy:
    """The model in a folder as a policy that is not trained."""
    device = pick_device(config.device)
    model: Any = load_causal(folder, torch.float32)
    bare: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    notes = [*notes, *learn_ends(bare, tokenizer)]
    dtype = pick_dtype(config.dtype, device)
    return Policy(model.to(device).eval(), tokenizer, dtype, template, tuple(notes))
