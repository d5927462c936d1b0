"""The policy, a Hugging Face causal LM with its tokenizer, and the frozen reference of the KL."""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import math
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import UsageError
from laurel.core.machine import default_threads
from laurel.core.sample import Batch, Outputs
from laurel.fast.logprob import (
    ROOM,
    WORST,
    Entropy,
    TokenStats,
    chunked_kl,
    chunked_logprobs,
    rounding_tolerance,
    token_logprobs,
    upcast_logits,
)
from laurel.fast.packed import can_encode, hidden_states
from laurel.model.adapters import (
    HEAD,
    adapter_shapes,
    is_untrained,
    load_adapters,
    unties_head,
    with_lora,
)
from laurel.model.chat import ends_of, ensure_template
from laurel.model.ends import learn_ends
from laurel.model.folders import adapter_base, check_folder, is_adapter
from laurel.model.narrow import NARROW, autocast_for, cast_weights
from laurel.model.objects import given_model, given_tokenizer
from laurel.model.render import without_template
from laurel.model.saving import Origin, largest_entry, origin_of, save_causal
from laurel.model.weights import error_line, guard_ids, load_model

RECURRENT = ("mamba", "mamba2", "rwkv", "xlstm")
# for these a configuration may still name the length before stretching
STRETCHED = ("linear", "dynamic", "yarn")


@dataclass
class Policy:
    """A causal LM that can be trained, asked for log-probabilities, and saved.

    `model` is what is trained (a PeftModel with LoRA); `causal` is the language model inside it.
    `dtype` is the precision of computation; weights are float32, or bfloat16
    (`laurel.model.narrow`). `template` is the hash of the chat template; `notes` are lines for the
    user about it; `origin` is where it was loaded from; `room` how many bytes its logits may take;
    `whole_logits`: are logits made by the whole model only, not by its head? None: it is tried, and
    `logit_size`, the largest of a few of them, is found. `decoders`: what `laurel.fast` made to
    sample it with.
    """

    model: nn.Module
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    template: str = ""
    notes: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)
    room: int = ROOM
    whole_logits: bool | None = None
    logit_size: float = 0.0
    decoders: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)

    def __post_init__(self) -> None:
        forward = getattr(self.causal, self.causal.base_model_prefix).forward
        self.takes_positions = "position_ids" in inspect.signature(forward).parameters
        if self.whole_logits is None:
            self.whole_logits = not self._logits_are_head_of_body()

    @property
    def causal(self) -> Any:
        """The causal LM, without the PeftModel around it; its adapters stay in its layers."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def device(self) -> torch.device:
        """The device of the first weight."""
        return next(self.model.parameters()).device

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a completion: the tokenizer's and the generation config's."""
        return frozenset(ends_of(self.tokenizer, getattr(self.causal, "generation_config", None)))

    @property
    def positions(self) -> int | None:
        """The longest row it can read; None: any."""
        return max_positions(getattr(self.causal, "config", None))

    @property
    def num_parameters(self) -> int:
        """The number of weights, adapters included."""
        return sum(p.numel() for p in self.causal.parameters())

    @property
    def slack(self) -> float:
        """Nats by which two computations of a log-probability usually differ.

        By the precision and the size of logits: at least the log of the vocabulary's size.
        """
        vocabulary: int = self.causal.get_input_embeddings().weight.shape[0]
        return rounding_tolerance(self.dtype, max(self.logit_size, math.log(vocabulary)))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser updates, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def body(self, ids_NL: Tensor, **keywords: Any) -> Any:
        """Run the transformer below the head; its output has `last_hidden_state` [N, L, D]."""
        with self.autocast():
            return getattr(self.causal, self.causal.base_model_prefix)(input_ids=ids_NL, **keywords)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V], float32 (float64 of a float64 model)."""
        with self.autocast():
            logits = upcast_logits(self.causal.get_output_embeddings()(hidden))
        cap = getattr(self.causal.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def readout(self) -> Any:
        """What maps hidden states to logits: the output layer, or `head` where they are capped."""
        if getattr(self.causal.config, "final_logit_softcapping", None):
            return self.head
        return self.causal.get_output_embeddings()

    @property
    def packs(self) -> bool:
        """Are only real tokens computed, and shared prompts once?

        Then the size of a micro-batch may be counted in these tokens.
        """
        return not self.whole_logits and can_encode(
            getattr(self.causal, self.causal.base_model_prefix)
        )

    def autocast(self) -> Any:
        """A context for computations in `dtype`; it does nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def forward(
        self, batch: Batch, wanted: Collection[str], *, entropy_grad: bool = False
    ) -> Outputs:
        """logp_NT, entropy_NT and hidden_NLD, as far as they are wanted, from one pass of the body.

        entropy_grad: the entropy is differentiable, which takes more memory.
        """
        entropy: Entropy = "value" if "entropy_NT" in wanted else "none"
        if entropy_grad:
            entropy = "grad"
        logits_NLV = None
        if self.whole_logits:
            logits_NLV, hidden_NLD = self.logits_and_hidden(batch)
        else:
            hidden_NLD = self.hidden(batch)
        found = Outputs(hidden_NLD=hidden_NLD if "hidden_NLD" in wanted else None)
        if entropy == "none" and "logp_NT" not in wanted:
            return found
        stats = self.logp(batch, entropy=entropy, hidden_NLD=hidden_NLD, logits_NLV=logits_NLV)
        return replace(found, logp_NT=stats.logp, entropy_NT=stats.entropy)

    def logp(
        self,
        batch: Batch,
        *,
        entropy: Entropy = "none",
        hidden_NLD: Tensor | None = None,
        logits_NLV: Tensor | None = None,
    ) -> TokenStats:
        """log pi of the completion tokens, at the temperature that sampled them.

        [N, T] float32, 0 where not trained. Rows are padded on the right and attention is causal,
        so no real token sees padding; only trained tokens go through the head, a chunk at a time.
        hidden_NLD, logits_NLV: last hidden states of the batch, or logits of a model with
        `whole_logits`, if they are known already.
        """
        rows, times, at = trained_positions(batch)
        # the logits at the position before a token are those that chose it
        ids_M = batch.ids_NL[rows, at + 1]
        temperature_M = batch.temperature_N[rows]
        if self.whole_logits:
            if logits_NLV is None:
                logits_NLV, _ = self.logits_and_hidden(batch)
            stats = token_logprobs(logits_NLV[rows, at], ids_M, temperature_M, entropy=entropy)
        else:
            hidden_NLD = self.hidden(batch) if hidden_NLD is None else hidden_NLD
            hidden_MD = hidden_NLD[rows, at]
            with self.autocast():
                stats = chunked_logprobs(
                    self.readout,
                    hidden_MD,
                    ids_M,
                    temperature_M,
                    entropy=entropy,
                    room=self.room,
                )
        zeros_NT = torch.zeros(batch.loss_mask_NT.shape, device=self.device, dtype=stats.logp.dtype)
        logp_NT = zeros_NT.index_put((rows, times), stats.logp)
        if stats.entropy is None:
            return TokenStats(logp_NT, None)
        return TokenStats(logp_NT, zeros_NT.index_put((rows, times), stats.entropy))

    def kl(self, batch: Batch, reference: Reference, hidden_NLD: Tensor | None = None) -> Tensor:
        """Exact KL(pi || ref) of every trained token's distribution, differentiable in the policy.

        [N, T], 0 where not trained. hidden_NLD: last hidden states of the batch, if they are known
        already.
        """
        rows, times, at = trained_positions(batch)
        if self.whole_logits:
            raise UsageError(
                "kl_estimator=exact needs a model whose logits are head(hidden).", fix="Use k3."
            )
        with torch.no_grad(), reference.switched_off() as ref:
            hidden_ref = ref.hidden(batch)[rows, at]
        hidden_NLD = self.hidden(batch) if hidden_NLD is None else hidden_NLD
        hidden = hidden_NLD[rows, at]
        temperature_M = batch.temperature_N[rows]
        kl_M = chunked_kl(
            self.head, hidden, reference.head, hidden_ref, temperature_M, room=self.room
        )
        zeros_NT = torch.zeros(batch.loss_mask_NT.shape, device=self.device, dtype=kl_M.dtype)
        return zeros_NT.index_put((rows, times), kl_M)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [N, L, D] of a right-padded batch."""
        with self.autocast():
            body = getattr(self.causal, self.causal.base_model_prefix)
            return hidden_states(
                body, batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N
            )

    def save(
        self, folder: str | Path, *, merge: bool = False, dtype: str | None = None
    ) -> list[str]:
        """Write a Hugging Face folder, prove it, and return notes for the user.

        Proven: its logits, computed from the files, are the model's within rounding; else
        LaurelError. Adapters are written as adapters, a PEFT folder; merge: merged into the model
        instead, as where nothing else can hold them. dtype: the precision of the files; None: that
        of the files that the weights came from. No copy of the model is made. What was not proven
        does not come to `folder`: it is kept next to it, with adapters that were to be merged.
        """
        return save_causal(self, Path(folder), merge, dtype)

    @torch.no_grad()
    def probe_logits(self) -> Tensor:
        """The logits of the probe, without dropout, float64."""
        was = self.model.training
        self.model.eval()
        with autocast_for(self.causal):
            logits = self.causal(self.probe(), use_cache=False).logits.double()
        self.model.train(was)
        return logits

    def probe(self) -> Tensor:
        """Eight tokens from all over the vocabulary: [1, 8]."""
        size = self.causal.get_input_embeddings().weight.shape[0]
        return torch.arange(8, device=self.device)[None] * max(size // 8, 1) % size

    def logits_and_hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [N, L, V] of the whole model, and its last hidden states [N, L, D]."""
        body: nn.Module = getattr(self.causal, self.causal.base_model_prefix)
        given: list[Tensor] = []

        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            given.append(output.last_hidden_state)

        handle = body.register_forward_hook(keep)
        try:
            with self.autocast():
                mask = batch.attention_NL.long()
                found = self.causal(input_ids=batch.ids_NL, attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        return found.logits, given[0]

    @torch.no_grad()
    def _logits_are_head_of_body(self) -> bool:
        """Is model(ids).logits just head(body(ids))?

        Some architectures scale or cap in between: those compute all logits with the whole model.
        """
        was = self.model.training
        self.model.eval()
        try:
            probe = self.probe()
            ours = self.head(self.body(probe, use_cache=False).last_hidden_state)
            with self.autocast():
                theirs = upcast_logits(self.causal(probe, use_cache=False).logits)
            self.logit_size = float(theirs.abs().max())
            return ours.shape == theirs.shape and largest_entry(
                ours - theirs
            ) <= WORST * rounding_tolerance(torch.float32, self.logit_size)
        finally:
            self.model.train(was)


def trained_positions(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Where the trained tokens are, each [M].

    Their row, their place in the completion, and the position that predicts them.
    """
    rows, times = batch.loss_mask_NT.nonzero(as_tuple=True)
    # the hidden state of the position before a token predicts it
    return rows, times, batch.start_N[rows] + times - 1


class Reference:
    """The frozen reference of the KL: a copy of the policy, or the policy without its adapters.

    `hash` is a digest of its weights, taken at the start and stored with every checkpoint.
    """

    def __init__(self, policy: Policy, *, adapters_off: bool) -> None:
        self.adapters_off = adapters_off
        self.policy = policy
        if not adapters_off:
            model = copy.deepcopy(policy.model).eval().requires_grad_(False)
            self.policy = Policy(
                model,
                policy.tokenizer,
                policy.dtype,
                policy.template,
                room=policy.room,
                whole_logits=policy.whole_logits,
                logit_size=policy.logit_size,
            )
        with self.switched_off() as frozen:
            self.hash = weights_hash(frozen.causal, skip="lora_" if adapters_off else "")

    def switched_off(self) -> Any:
        """A context in which the returned policy is the reference."""
        return _AdaptersOff(self.policy) if self.adapters_off else nullcontext(self.policy)

    @torch.no_grad()
    def logp(self, batch: Batch) -> Tensor:
        """log ref of the completion tokens: [N, T] float32, no gradient."""
        with self.switched_off() as frozen:
            return frozen.logp(batch).logp

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """The reference's own head: hidden states to logits."""
        with self.switched_off() as frozen:
            return frozen.head(hidden)


class _AdaptersOff:
    """Evaluation mode without adapters, and back."""

    def __init__(self, policy: Policy) -> None:
        model: Any = policy.model
        self.policy = policy
        self.was_training = policy.model.training
        self.disabled: Any = model.disable_adapter()

    def __enter__(self) -> Policy:
        self.was_training = self.policy.model.training
        self.policy.model.eval()
        self.disabled.__enter__()
        return self.policy

    def __exit__(self, *error: Any) -> None:
        self.disabled.__exit__(*error)
        self.policy.model.train(self.was_training)


def load_policy(config: Any) -> Policy:
    """The policy that a TrainConfig describes: its model, precision, device and LoRA."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, config.param_dtype)
    weights_dtype = pick_param_dtype(config.param_dtype)
    model: Any = load_causal(config.model, weights_dtype)
    tokenizer = load_tokenizer(config.model)
    notes = without_template(tokenizer, config.chat_template)
    template = ensure_template(tokenizer, config.chat_template)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    notes += learn_ends(causal, tokenizer)
    if config.use_peft or hasattr(model, "peft_config"):
        model = cast_weights(with_lora(model, config), weights_dtype)
        if unties_head(model.get_base_model()):
            line = (
                "output head and embedding are one tensor, and LoRA changes them apart: the model"
                " that is saved has both"
            )
            logging.getLogger(__name__).warning(line)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
        model.enable_input_require_grads()
    policy = Policy(
        model.to(device).eval(), tokenizer, dtype, template, tuple(notes), origin_of(config.model)
    )
    guard_ids(policy)
    return policy


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass, instead of keeping them.

    transformers renamed the method during version 5.
    """
    named = getattr(model, "activation_checkpointing_enable", None)
    if named is not None:
        named(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def hide_progress_bars() -> None:
    """No bars of transformers: loading takes a moment; laurel has bars for what takes long."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_causal(name: str, dtype: torch.dtype = torch.float32, *, head: bool = True) -> Any:
    """A causal LM from a local folder or the hub, with the LoRA adapters of the folder, trainable.

    head: the output head is used, so it must be there; without it a body alone will do.
    """
    from transformers import AutoModelForCausalLM

    hide_progress_bars()
    given = given_model(name, dtype)
    if given is not None:
        return given
    check_folder(name)
    if is_adapter(name):
        return load_with_adapters(name, dtype, head=head)
    spare = () if head else ("lm_head", "embed_out")
    return load_model(AutoModelForCausalLM, name, "a causal language model", dtype, spare=spare)


def load_with_adapters(name: str, dtype: torch.dtype, *, head: bool) -> Any:
    """The causal LM under a folder of adapters, with them on it; see `load_causal`."""
    import transformers

    try:
        base = load_causal(adapter_base(name), dtype, head=head)
    except UsageError as error:
        raise UsageError(
            f"its base model cannot be loaded: {error}", where=f"model={name}"
        ) from error
    if any(HEAD.match(key) for key in adapter_shapes(name)):
        fix = "Give the language model that it was made from."
        raise UsageError(
            "the folder holds the adapters of a trained scorer.", where=f"model={name}", fix=fix
        )
    # it names the end tokens that training closed turns with
    if (Path(name) / "generation_config.json").is_file():
        config: Any = transformers.GenerationConfig
        base.generation_config = config.from_pretrained(name)
    return load_adapters(name, base)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub name; of an adapter folder without one, its base's."""
    import transformers

    given = given_tokenizer(name)
    if given is not None:
        return given
    check_folder(name)
    if is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter_base(name))
    auto: Any = transformers.AutoTokenizer
    try:
        return auto.from_pretrained(name)
    # another library may raise anything about a folder
    except Exception as error:
        fix = "Are all its files there, and whole?"
        raise UsageError(
            f"cannot load a tokenizer: {error_line(error)}", where=f"model={name}", fix=fix
        ) from error


def make_reference(policy: Policy, kind: str) -> Reference | None:
    """The reference of the KL, None of kind `none`.

    start: the weights as they are now. base: the model under a loaded adapter. Fresh LoRA adapters
    are zero, so `start` is the adapters switched off and costs no memory; tuned ones are copied.
    """
    if kind == "none":
        return None
    has_adapters = policy.causal is not policy.model
    if kind == "base" and not has_adapters:
        raise UsageError("reference=base needs a model with adapters.", fix="Use reference=start.")
    return Reference(
        policy, adapters_off=kind == "base" or (has_adapters and is_untrained(policy.model))
    )


def weights_hash(model: nn.Module, *, skip: str = "") -> str:
    """A digest of every parameter's bytes, in name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not skip or skip not in name:
            digest.update(name.replace(".base_layer", "").encode())
            bytes_ = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(bytes_.numpy().data)
    return digest.hexdigest()[:16]


def pick_device(name: str) -> torch.device:
    """auto: cuda, then mps, then cpu."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_param_dtype(name: str) -> torch.dtype:
    """auto: float32."""
    return torch.float32 if name == "auto" else getattr(torch, name)


def pick_dtype(name: str, device: torch.device, weights: str = "auto") -> torch.dtype:
    """The precision of computation that an option means.

    auto: bfloat16 where the GPU has it, float32 elsewhere. A CPU without bfloat16 products takes
    float32 for it: finer, and faster. weights: their own precision. Those in bfloat16 are
    multiplied in it, wherever they are.
    """
    if pick_param_dtype(weights) == NARROW:
        return NARROW
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    cpu: Any = torch.cpu
    if name == "bfloat16" and device.type == "cpu" and not cpu._is_avx512_bf16_supported():
        logging.getLogger(__name__).warning(
            "dtype bfloat16 is computed in float32, faster: this CPU has no products of bfloat16"
        )
        return torch.float32
    return getattr(torch, name)


def pick_threads(asked: int, parameters: int) -> int:
    """The number of CPU threads: what was asked for, else by the number of parameters.

    1 below 5 M parameters, where threads cost more than they bring; else all that may be used.
    """
    return asked or (1 if parameters < 5_000_000 else default_threads())


def max_positions(config: Any) -> int | None:
    """The longest row of a model with this configuration; None where it has no such bound.

    ALiBi and recurrent models have none. With learned positions there are no more; rotary ones go
    on, but nobody has trained them there. Rotary positions that are stretched (linear, dynamic,
    yarn) count as far as they are stretched; a sliding window is no bound.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    bound = getattr(config, "max_position_embeddings", None)
    unbound = getattr(config, "alibi", False) or getattr(config, "model_type", "") in RECURRENT
    if not isinstance(bound, int) or bound < 1 or unbound:
        return None
    rotary: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    # one kind for all layers, or several by the kind of layer
    kinds = [rotary, *rotary.values()] if rotary else []
    for kind in kinds:
        # other entries are numbers and names
        if not hasattr(kind, "get"):
            continue
        factor = kind.get("factor")
        name = kind.get("rope_type") or kind.get("type")
        if name in STRETCHED and isinstance(factor, int | float):
            unstretched = kind.get("original_max_position_embeddings")
            stretched = (unstretched or config.max_position_embeddings) * factor
            bound = max(bound, int(stretched))
    return bound


def least_limit(*limits: int | None) -> int | None:
    """The least of several limits, of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)
