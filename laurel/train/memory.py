"""Memory before the first step: what stands there, what the step will add, and whether the device has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from laurel.core.errors import UsageError
from laurel.core.machine import resident
from laurel.core.sample import Batch, Group, Key, Sample
from laurel.policy.chat import encode_prompt
from laurel.policy.room import device_memory
from laurel.policy.rows import encodings
from laurel.policy.turns import as_tools
from laurel.rollout.pack import pack
from laurel.train import parallel
from laurel.train.draws import drawn

if TYPE_CHECKING:
    from laurel.train.setup import Setup

PROBE = 64  # tokens of the row that activations are measured with
SURE = 0.85
"""A run is refused where even so much of what is foreseen is more than there is: foreseen is within 15 % of what is taken."""


def standing(setup: Setup) -> dict[str, int]:
    """Bytes of the models, and of what is kept of those that are trained: what no step can do without."""

    def size(module: Any) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    models = {"policy": size(setup.policy.model)}
    if setup.reference is not None:
        models["reference"] = 0 if setup.reference.adapters_off else size(setup.reference.policy.model)
    if setup.companion is not None:
        models[setup.row.beside] = size(setup.companion.model)
    trained = sum(p.numel() * p.element_size() for p in setup.trainable().values())
    return models | ({"a copy": trained} if setup.row.source == "parameters" else {"gradients and optimiser": 3 * trained})


def passing(setup: Setup) -> dict[str, int]:
    """Bytes that come and go in a step: activations of the largest micro-batch, its logits, gradients before they are added up."""
    if setup.row.source == "parameters":
        return {}
    tokens, trained = largest(setup), setup.trainable().values()
    bodies = [setup.policy.scores if setup.row.head else setup.policy.hidden]
    if getattr(setup.companion, "policy", setup.policy) is None:  # a body of its own
        bodies.append(setup.companion.hidden)
    logits = 0
    if room := getattr(setup.policy, "room", 0):
        vocabulary = setup.policy.causal.get_output_embeddings().weight.shape[0]
        logits = min(room, tokens * vocabulary * setup.policy.dtype.itemsize)
    return {
        "activations": tokens * sum(saved(setup, body) for body in bodies) // PROBE,
        "logits": logits,
        "the largest gradient twice": max((p.numel() * p.element_size() for p in trained), default=0),
    }


def largest(setup: Setup) -> int:
    """Tokens of the largest micro-batch, by the rows of the first step: prompts with the longest completion, or answers as they are."""
    config, policy = setup.config, setup.policy
    rows = drawn(setup, 0, -(-(config.prompts_per_step or 1) // parallel.world_size()))
    if setup.learns_from_data:
        how = {"train_on": config.train_on, "max_length": config.max_length}
        lengths = [len(one.ids) for row in rows for one in encodings(policy, row, **how)]
    else:
        prompts = (encode_prompt(policy.tokenizer, row.columns["prompt"], tools=as_tools(row.columns.get("tools"))) for row in rows)
        more = (config.max_completion_length or 0) * (config.max_turns or 1)
        lengths = [len(prompt) + more for prompt in prompts for _ in range(config.num_generations or 1)]
    together = sum(lengths) if setup.packs else len(lengths) * max(lengths)
    return min(together, max(config.token_budget or together, max(lengths)))


def saved(setup: Setup, body: Any) -> int:
    """Bytes that a forward pass of PROBE tokens keeps for the backward pass, weights not counted: measured."""
    weights = {p.untyped_storage().data_ptr() for p in [*setup.policy.model.parameters(), *setup.trainable().values()]}
    kept: dict[int, int] = {}
    held = list[Tensor]()  # so that no address is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    setup.policy.model.train(not setup.config.disable_dropout)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        body(probe().to(setup.policy.device))
    setup.policy.model.eval()
    return sum(kept.values())


def probe() -> Batch:
    """One row of PROBE tokens, all but the first of them trained on."""
    ids = (1,) * (PROBE - 1)
    sample = Sample(Key("memory", "", "probe", 0, 0), (1,), ids, (0.0,) * len(ids), (True,) * len(ids), 1.0, "length", "", ())
    return pack([Group("probe", {}, (sample,), rewards=(1.0,))])


def memory(setup: Setup) -> str:
    """What is foreseen, as a line; more than the device has is an error that says how to need less."""
    stands, passes = standing(setup), passing(setup)
    told = ", ".join(f"{name} {bytes_ / 1e6:.1f}" for name, bytes_ in {**stands, **passes}.items())
    models = sum(bytes_ for name, bytes_ in stands.items() if name != "gradients and optimiser")
    on_gpu = setup.policy.device.type == "cuda"
    now = torch.cuda.memory_allocated(setup.policy.device) if on_gpu else resident()
    coming = sum(stands.values()) - models + sum(passes.values())
    both = device_memory(setup.policy.device)
    if both is not None and SURE * coming > both[0]:
        what = f"a step needs about {(now + coming) / 1e9:.1f} GB ({told}, in MB), and {(now + both[0]) / 1e9:.1f} GB are there."
        raise UsageError(what, where="memory", fix=" ".join(ways_out(setup, passes)[:3]))
    return f"memory in MB: {told}; at its largest about {(now + coming) / 1e6:.0f}, all that the process has counted"


def ways_out(setup: Setup, passes: dict[str, int]) -> list[str]:
    """What to change so that a step takes less, what costs least first."""
    config, ways = setup.config, list[str]()
    if passes.get("activations", 0) and largest(setup) > 256:
        ways.append(f"Lower token_budget (now {config.token_budget}): the same gradient in smaller parts.")
    if not config.gradient_checkpointing and not setup.row.head:
        ways.append("Set gradient_checkpointing: activations are computed twice.")
    if not config.use_peft:
        ways.append("Set use_peft: adapters need hardly any gradients and optimiser state.")
    ways.append("Take a smaller model.")
    return ways
