"""Memory before the first step: what is there, what a step adds, and whether it is enough."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from laurel.core.errors import UsageError
from laurel.core.metrics import resident_bytes
from laurel.core.sample import Batch, Group, Key, Sample
from laurel.fast.decode import round_up_16, why_not_compact
from laurel.fast.inflight import memory_of
from laurel.fast.kernels import off_cpu
from laurel.fast.logprob import TILE, TILE_ON_GPU
from laurel.fast.room import device_memory
from laurel.fast.static import static_obstacle
from laurel.model.chat import encode_prompt
from laurel.model.narrow import weight_dtype_of
from laurel.model.turns import as_tools
from laurel.rollout.pack import pack
from laurel.train import masters, parallel
from laurel.train.activation_memory import (
    activations,
    count_computed_tokens,
    training_mode,
    weight_copies,
)
from laurel.train.optimizer import state_bytes
from laurel.train.session import Session

AT_ONCE = 1024  # rows that are sampled at once, as `laurel.rollout.sampler.sample` has it
# tiles of logits that are there at once: as they are, as log-probabilities, as probabilities, and
# their gradient
TILES = 4
# of activations, what a CPU's heap loses between tensors that stay and tensors that went: measured,
# .17 to .54
GAPS = 0.5
SURE = 0.85
"""A run is refused where even this share of what is foreseen is more than there is.

What is foreseen is within 15 % of what is taken.
"""
OPTIMISER = ("moments", "masters")


@dataclass(frozen=True)
class Work:
    """The largest pieces of a step: a micro-batch, and what is sampled, in rows and tokens.

    several: there are other micro-batches beside it.
    """

    micro: Batch
    several: bool
    prompts: int = 0
    each: int = 0
    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes by name.

    there: models; parts: what a step adds; phases: which of these are there at the same time.
    """

    there: dict[str, int]
    parts: dict[str, int]
    phases: dict[str, tuple[str, ...]]

    def of(self, phase: str) -> int:
        """Bytes that are there in a phase, models left out."""
        return sum(self.parts[name] for name in self.phases[phase])

    @property
    def fullest(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=self.of)

    @property
    def coming(self) -> int:
        """Bytes that come to those of the models, at most."""
        return self.of(self.fullest)


def forecast_bytes(
    policy: Any, reference: Any, auxiliary: Any, config: Any, row: Any, work: Work, kind: str
) -> MemoryForecast:
    """The bytes that a run takes on a device, of models that may be without memory.

    They follow from shapes, and from a pass over shapes. Activations go as gradients come, so both
    are there together only where gradients of an earlier micro-batch wait.
    """
    there = {"policy": weight_bytes(policy.model)}
    if reference is not None:
        there["reference"] = 0 if reference.adapters_off else weight_bytes(reference.policy.model)
    if auxiliary is not None:
        there[row.trained.auxiliary] = weight_bytes(auxiliary.model)
    trained: dict[str, Any] = {**policy.trainable(), **(auxiliary.trainable() if auxiliary else {})}
    weights = tensor_bytes(trained.values())
    parts = sampling_bytes(policy, work, kind)
    phases = {"sampling": (*OPTIMISER, *parts)} if parts else {}
    always = ("sampler's weights",) if parts else ()
    if row.source.population:
        parts |= {"moments": 0, "masters": 0, "a copy": weights}
        return MemoryForecast(there, parts, {"sampling": (*phases["sampling"], "a copy")})
    parts |= state_bytes(trained, config.optim)
    if config.optim.startswith("paged") and kind == "cuda":
        parts["moments"] = 0  # they leave a GPU that is full
    parts |= backward_bytes(policy, auxiliary, config, row, work, kind)
    parts["a tensor at a time"] = master_copy_bytes(trained)
    parts["what is saved"] = weights
    return MemoryForecast(there, parts, phases | phases_of(work.several, (*OPTIMISER, *always)))


def phases_of(several: bool, still: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Which parts are there at the same time while a batch is learned from.

    several: there are several micro-batches, so gradients of an earlier one wait. still: what is
    there all the time.
    """
    waiting = ("gradients",) if several else ()
    forward = ("activations", "gaps in the heap", "copies of weights", "logits")
    return {
        "the forward pass and the loss": (*still, *waiting, *forward, "gradient of the head"),
        "the backward pass": (*still, "gradients", "gradients twice"),
        "the optimiser's step": (*still, "gradients", "a tensor at a time"),
        "a checkpoint": (*still, "what is saved"),
    }


def weight_bytes(module: Any) -> int:
    """Bytes of a model's weights."""
    return tensor_bytes(module.parameters())


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def master_copy_bytes(trained: dict[str, Any]) -> int:
    """Bytes of the float32 copies that masters are put together in.

    These are the master, the gradient, and integers on the way.
    """
    narrow = [p.numel() for p in trained.values() if p.dtype == masters.NARROW]
    return 5 * 4 * min(max(narrow, default=0), masters.AT_ONCE)


def backward_bytes(
    policy: Any, auxiliary: Any, config: Any, row: Any, work: Work, kind: str
) -> dict[str, int]:
    """Bytes that a micro-batch adds.

    These are activations, logits, the gradient of the head, and gradients of which there are two
    for a while.
    """
    kept, copied = activation_bytes(policy, auxiliary, config, work, kind)
    learning = list(policy.trainable().values())
    if auxiliary is not None:
        learning += auxiliary.trainable().values()
    found = {
        "activations": kept - copied,
        "gaps in the heap": int(GAPS * kept) if kind == "cpu" else 0,
        "copies of weights": copied,
        "logits": 0,
        "gradient of the head": 0,
    }
    tied = False
    if not row.trained.head:
        head = policy.causal.get_output_embeddings().weight
        tied = head is policy.causal.get_input_embeddings().weight and head.requires_grad
        found |= head_bytes(policy, head, work.micro, kind)
    largest = max((tensor_bytes([p]) for p in learning), default=0)
    return found | {"gradients twice": (int(tied) + int(work.several)) * largest}


def activation_bytes(
    policy: Any, auxiliary: Any, config: Any, work: Work, kind: str
) -> tuple[int, int]:
    """Bytes that the forward pass of a micro-batch keeps, and the part that is copies of weights.

    Copies are made of weights that are held in another precision.
    """
    bodies = [getattr(policy, "causal", policy.model), *own_bodies(auxiliary)]
    bodies = [body_of(model) for model in bodies]
    weights = [*policy.model.parameters(), *(auxiliary.model.parameters() if auxiliary else ())]
    # a GPU that is not here computes otherwise
    there = nullcontext() if kind == "cpu" else off_cpu()
    with training_mode(policy.model, not config.disable_dropout), there:
        kept = sum(activations(body, work.micro, policy.autocast, weights) for body in bodies)
        if policy.dtype == weight_dtype_of(policy.model):
            return kept, 0
        return kept, sum(weight_copies(body, policy.autocast, weights) for body in bodies)


def head_bytes(policy: Any, head: Any, micro: Batch, kind: str) -> dict[str, int]:
    """Bytes of the logits of a micro-batch, and of the gradient of the output head [V, D]."""
    vocabulary, width = head.shape
    learns = bool(head.requires_grad)
    whole = int(micro.loss_mask_NT.sum()) * vocabulary * policy.dtype.itemsize
    tile = TILE if kind == "cpu" else TILE_ON_GPU
    logits = TILES * min(tile, whole) + (min(policy.room, whole) if learns else 0)
    if policy.whole_logits:
        logits = 3 * 4 * micro.ids_NL.numel() * vocabulary
    return {"logits": logits, "gradient of the head": 4 * vocabulary * width if learns else 0}


def body_of(model: Any) -> Any:
    """The transformer below the head."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def own_bodies(auxiliary: Any) -> list[Any]:
    """The body of a critic or discriminator that has one of its own."""
    model = getattr(auxiliary, "model", None)
    return [model["body"]] if isinstance(model, torch.nn.ModuleDict) and "body" in model else []


def sampling_bytes(policy: Any, work: Work, kind: str) -> dict[str, int]:
    """Bytes of sampling: keys and values, the sampler's weights, logits; {} where none is done.

    kind: of the device that it will be on, which need not be here.
    """
    if not work.each:
        return {}
    config, item = policy.causal.config.get_text_config(), policy.dtype.itemsize
    heads = getattr(config, "num_key_value_heads", None) or getattr(
        config, "num_attention_heads", 0
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // max(
        1, getattr(config, "num_attention_heads", 1)
    )
    a_token = 2 * config.num_hidden_layers * heads * width * item
    prompts = min(max(AT_ONCE // work.each, 1), work.prompts)
    rows, vocabulary = prompts * work.each, policy.causal.get_input_embeddings().weight.shape[0]
    if kind == "cpu" and policy.packs and not why_not_compact(policy):
        tokens = prompts * round_up_16(work.prompt) + rows * round_up_16(work.completion)
        return {
            "keys and values": a_token * tokens,
            "sampler's weights": fused_weight_bytes(policy),
            "sampled logits": 2 * rows * vocabulary * item,
        }
    if policy.packs and not static_obstacle(policy):
        return memory_of(policy, rows, work.prompt, work.completion)
    tokens = rows * (work.prompt + work.completion)
    return {
        "keys and values": a_token * tokens,
        "sampler's weights": 0,
        "sampled logits": 5 * 4 * rows * vocabulary,
    }


def fused_weight_bytes(policy: Any) -> int:
    """Bytes of the weights that the compact decoder copies.

    It copies several projections as one, and weights in another precision.
    """
    body, head = body_of(policy.causal), policy.causal.get_output_embeddings()
    together, alone = (
        ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
        ("o_proj", "down_proj", "qkv_proj", "gate_up_proj"),
    )
    count = 0
    for name, module in [*body.layers.named_modules(), ("lm_head", head)]:
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        last = name.rpartition(".")[2]
        if weight is None or last not in (*together, *alone, "lm_head"):
            continue
        own = hasattr(module, "base_layer")
        if last in together or own or weight.dtype != policy.dtype:
            count += weight.numel()
    return count * policy.dtype.itemsize


def work_of(session: Session) -> Work:
    """The largest pieces of the first step.

    These are prompts with the longest completion, or answers as they are.
    """
    config, policy = session.config, session.policy
    rows = session.drawn_rows(0, -(-(config.prompts_per_step or 1) // parallel.world_size()))
    if session.row.source.read is not None:
        how = {"train_on": config.train_on, "max_length": config.max_length}
        others = session.partner_rows(rows, config.prompts_per_step)
        groups = session.row.source.read(policy, rows, run="", step=0, **how, **others)
        return work_in(groups, config, session)
    prompts = [
        encode_prompt(
            policy.tokenizer, row.columns["prompt"], tools=as_tools(row.columns.get("tools"))
        )
        for row in rows
    ]
    more, each = (
        (config.max_completion_length or 1) * (config.max_turns or 1),
        config.num_generations or 1,
    )
    return work_in(
        longest_groups(prompts, each, more), config, session, each, max(map(len, prompts)), more
    )


def longest_groups(prompts: Any, each: int, length: int) -> list[Group]:
    """Groups of samples as long as they may be."""
    ids = (1,) * length
    how = (ids, (0.0,) * length, (True,) * length, 1.0, "length", "", ())
    return [
        Group(
            str(n),
            {},
            tuple(Sample(Key("", "", str(n), k, 0), tuple(prompt), *how) for k in range(each)),
        )
        for n, prompt in enumerate(prompts)
    ]


def work_in(
    groups: list[Group],
    config: Any,
    session: Any,
    each: int = 0,
    prompt: int = 0,
    completion: int = 0,
) -> Work:
    """The micro-batch that computes most tokens, by the way that a step is divided."""
    batch = pack(groups)
    micros = list(
        batch.split(config.token_budget, whole_groups=session.by_comparison, packed=session.packs)
    )
    micro = max(micros, key=lambda one: count_computed_tokens(one, packed=session.packs))
    return Work(micro, len(micros) > 1, len(groups), each, prompt, completion)


def memory(session: Session) -> str:
    """The forecast as a line; UsageError where it is more than the device has.

    The error says which options need less.
    """
    found = forecast_bytes(
        session.policy,
        session.reference,
        session.auxiliary,
        session.config,
        session.row,
        work_of(session),
        session.policy.device.type,
    )
    listed = format_parts(found)
    on_gpu = session.policy.device.type == "cuda"
    now = torch.cuda.memory_allocated(session.policy.device) if on_gpu else resident_bytes()
    both = device_memory(session.policy.device)
    if both is not None and SURE * found.coming > both[0]:
        what = (
            f"a step needs about {(now + found.coming) / 1e9:.1f} GB ({listed}, in MB), and"
            f" {(now + both[0]) / 1e9:.1f} GB are there."
        )
        raise UsageError(
            what,
            where="memory",
            fix=" ".join(memory_advice(session.config, session.row, found)[:3]),
        )
    largest = (
        f"at its largest about {(now + found.coming) / 1e6:.0f}, all that the process has counted,"
        f" in {found.fullest}"
    )
    return f"memory in MB: {listed}; {largest}"


def format_parts(found: MemoryForecast) -> str:
    """Every part that takes something, in MB."""
    every = {**found.there, **found.parts}
    return ", ".join(
        f"{name} {bytes_ / 1e6:.1f}"
        for name, bytes_ in every.items()
        if bytes_ or name in found.there
    )


def memory_advice(config: Any, row: Any, found: MemoryForecast) -> list[str]:
    """What to change so that a step takes less memory: what costs least first.

    It lists only what helps in the phase that takes most.
    """
    fullest, ways = found.phases[found.fullest], list[str]()
    many = "activations" in fullest and found.parts["activations"] > 0
    if many and config.token_budget > 256:
        ways.append(
            f"Lower token_budget (now {config.token_budget}): the same gradient in smaller parts."
        )
    if many and not config.gradient_checkpointing and not row.trained.head:
        ways.append("Set gradient_checkpointing: activations are computed twice.")
    if "keys and values" in fullest:
        ways.append(
            "Lower max_completion_length, num_generations or prompts_per_step: fewer keys and"
            " values."
        )
    if (
        config.optim == "adamw_torch"
        and found.parts.get("moments", 0) > sum(found.there.values()) / 4
    ):
        ways.append("Set optim to adamw_8bit: moments of 2 bytes a weight, not 8.")
    if config.param_dtype != "bfloat16" and not row.source.population:
        ways.append("Set param_dtype to bfloat16: half the memory of weights.")
    if not config.use_peft:
        ways.append("Set use_peft: adapters need hardly any gradients and optimiser state.")
    if (
        not many
        and not config.gradient_checkpointing
        and not row.trained.head
        and not row.source.population
    ):
        ways.append("Set gradient_checkpointing: activations are computed twice.")
    ways.append("Take a smaller model.")
    return ways
