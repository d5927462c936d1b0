"""The scorer: the body of a language model with a linear head, for rewards, outcomes, steps and
values.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import write_atomic
from laurel.core.sample import Batch, Outputs
from laurel.core.tensors import forked_rng, row_norms
from laurel.fast.logprob import WORST, rounding_tolerance, upcast_logits
from laurel.fast.packed import can_encode, hidden_states
from laurel.model.adapters import with_lora
from laurel.model.card import CARD, Card, read_card
from laurel.model.chat import encode_supervised, ensure_template
from laurel.model.classifier import (
    HEADS,
    SEQUENCE,
    auto_class,
    head_of,
    load_with_head,
    own_padding,
    trained_labels,
)
from laurel.model.ends import ends_of
from laurel.model.folders import check_folder, is_adapter
from laurel.model.narrow import autocast_for, cast_weights, weight_dtype_of
from laurel.model.objects import config_of
from laurel.model.policy import (
    Policy,
    hide_progress_bars,
    least_limit,
    load_tokenizer,
    max_positions,
    pick_device,
    pick_dtype,
    pick_param_dtype,
)
from laurel.model.render import without_template
from laurel.model.saving import (
    Origin,
    SavedAdapters,
    adapters_gap,
    as_saved,
    largest_entry,
    model_gap,
    origin_of,
    rounding_note,
    saving_precision,
    verified_folder,
    why_no_adapter,
    write_adapters,
)
from laurel.model.weights import LOADING, guard_ids
from laurel.model.written import write_model

Ids = Sequence[int]


@dataclass
class Scorer:
    """A language model's body and a linear head on its last hidden state. Its face is the policy's,
    as far as training needs it.

    `model` is a plain transformers model for sequence classification (one number) or token
    classification (several classes). Its weights are float32, or its body's bfloat16
    (`laurel.model.narrow`); `dtype` is the precision of computation. `template` is the hash of the
    chat template. `language` is the language model around the same body, where its head is kept for
    training; no folder that is saved holds it. `origin` is where the body was loaded from.
    """

    model: Any  # a PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    template: str = ""
    card: Card = field(default_factory=Card)
    language: Policy | None = None
    notes: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def num_labels(self) -> int:
        return int(self.model.config.num_labels)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a text: the tokenizer's and the configuration's."""
        return frozenset(ends_of(self.tokenizer, self.model.config))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of what the optimiser moves."""
        learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.language is not None:  # a tied head is the body's embedding, and is there already
            body = {id(p) for p in self.model.parameters()}
            further = self.language.causal.get_output_embeddings().named_parameters()
            learning |= {
                f"language.{name}": p
                for name, p in further
                if p.requires_grad and id(p) not in body
            }
        return learning

    def autocast(self) -> Any:
        """bfloat16 arithmetic when asked for; nothing otherwise."""
        return (
            nullcontext()
            if self.dtype == torch.float32
            else torch.autocast(self.device.type, self.dtype)
        )

    @property
    def packs(self) -> bool:
        """Are only real tokens computed, and shared prompts once? Then micro-batches may be counted
        so.
        """
        return can_encode(getattr(self.model, self.model.base_model_prefix))

    def hidden(
        self,
        ids_NL: Tensor,
        attention_NL: Tensor,
        start_N: Tensor | None = None,
        group_N: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [N, L, D] of rows padded on the right. start_N, group_N: what rows may
        share, as in a Batch.
        """
        with self.autocast():
            return hidden_states(
                getattr(self.model, self.model.base_model_prefix),
                ids_NL,
                attention_NL,
                start_N,
                group_N,
            )

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> scores [...], of a several-class head [..., C]; float32
        (float64 of a float64 model).
        """
        with self.autocast():
            score = upcast_logits(head_of(self.model)(hidden))
        return score[..., 0] if self.num_labels == 1 else score

    def forward(
        self, batch: Batch, wanted: Collection[str], *, entropy_grad: bool = False
    ) -> Outputs:
        """score_NT (of classes score_NTC), and logp_NT by the language head, as far as they are
        wanted, from one pass of the body.
        """
        assert not entropy_grad, "a scorer has no entropy"
        hidden_NLD = self.hidden(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N)
        found: dict[str, Tensor] = {}
        for name in wanted:
            read = self.logp if name == "logp_NT" else self.scores
            found[name] = read(batch, hidden_NLD)
        return Outputs(**found)

    def logp(self, batch: Batch, hidden_NLD: Tensor) -> Tensor:
        """log pi of the trained tokens by the language head on this body: [N, T], 0 elsewhere."""
        assert self.language is not None
        return self.language.logp(batch, hidden_NLD=hidden_NLD).logp

    def scores(self, batch: Batch, hidden_NLD: Tensor | None = None) -> Tensor:
        """The head's output at every completion token's own position, 0 where there is no token:
        [N, T], of classes [N, T, C].

        Position start + t has read the tokens up to and with t. Rows are padded on the right and
        attention is causal, so padding reaches no real token. hidden_NLD: last hidden states of the
        batch, if they are at hand.
        """
        time_T = torch.arange(batch.loss_mask_NT.shape[1], device=batch.start_N.device)
        there_NT = time_T < batch.length_N[:, None]
        at_NT = (batch.start_N[:, None] + time_T).clamp(max=batch.ids_NL.shape[1] - 1)
        if hidden_NLD is None:
            hidden_NLD = self.hidden(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N)
        score = self.head(hidden_NLD[torch.arange(len(batch), device=at_NT.device)[:, None], at_NT])
        return torch.where(there_NT if score.ndim == 2 else there_NT[..., None], score, 0.0)

    def encode(self, columns: Mapping[str, Any]) -> tuple[int, ...]:
        """A row (prompt and completion, messages, or text) as it is in training: its special
        tokens, its EOS, its cut.
        """
        return encode_supervised(self.tokenizer, columns, max_length=self.card.max_length).ids

    @torch.no_grad()
    def score(self, rows: Sequence[Mapping[str, Any] | Ids], *, token_budget: int = 8192) -> Tensor:
        """The score of each row, at its last token: [N], of classes [N, C]. On the CPU, in the
        order given.

        A row is a mapping (see `encode`) or ids taken as they are. Dropout is off; at most
        `token_budget` padded tokens a pass.
        """
        every = [self.encode(row) if isinstance(row, Mapping) else tuple(row) for row in rows]
        if not all(every):
            raise UsageError(
                "a row without a token has no score.", where=f"row {every.index(()) + 1}"
            )
        found: dict[int, Tensor] = {}
        for chunk, hidden_NLD in self._passes(every, token_budget):
            last_N = torch.tensor([len(every[i]) - 1 for i in chunk], device=self.device)
            score = self.head(
                hidden_NLD[torch.arange(len(chunk), device=self.device), last_N]
            ).cpu()
            found.update(zip(chunk, score, strict=True))
        shape = () if self.num_labels == 1 else (self.num_labels,)
        return (
            torch.stack([found[i] for i in range(len(every))]) if every else torch.zeros(0, *shape)
        )

    @torch.no_grad()
    def score_at(
        self, rows: Sequence[tuple[Ids, Sequence[int]]], *, token_budget: int = 8192
    ) -> list[Tensor]:
        """For each row, ids and positions, the head's output at these positions: [S], of classes
        [S, C]. On the CPU, dropout off.
        """
        found: dict[int, Tensor] = {}
        for chunk, hidden_NLD in self._passes([ids for ids, _ in rows], token_budget):
            found.update(
                {i: self.head(hidden_NLD[n, list(rows[i][1])]).cpu() for n, i in enumerate(chunk)}
            )
        return [found[i] for i in range(len(rows))]

    def _passes(
        self, every: Sequence[Ids], token_budget: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Which rows, and their last hidden states, a pass at a time with dropout off."""
        was = self.model.training
        self.model.eval()
        try:
            for chunk in batches_by_budget([len(ids) for ids in every], token_budget):
                ids_NL, attention_NL, _ = right_padded([every[i] for i in chunk], self.device)
                yield chunk, self.hidden(ids_NL, attention_NL)
        finally:
            self.model.train(was)

    def adapt(self, config: Any) -> None:
        """LoRA adapters in the body, which is frozen, the language head too; the scorer's own head
        stays whole. Scores do not change.
        """
        prefix, kept = self.model.base_model_prefix, weight_dtype_of(self.model)
        adapters = cast_weights(with_lora(getattr(self.model, prefix), config, task=None), kept)
        setattr(self.model, prefix, adapters.to(self.device).eval())
        if self.language is not None:
            self.language.causal.get_output_embeddings().requires_grad_(False)

    @property
    def adapters(self) -> Any:
        """The PeftModel around the body; None without adapters."""
        body = getattr(self.model, self.model.base_model_prefix)
        return body if hasattr(body, "peft_config") else None

    def save(
        self, folder: str | Path, *, merge: bool = False, dtype: str | None = None
    ) -> list[str]:
        """Write a Hugging Face folder and prove it: what it scores is what was trained, within
        rounding, or an error. What is to be said.

        Adapters are written as adapters with the head beside them, a PEFT folder; merge, dtype and
        what is kept of a failure: as of `Policy.save`. A language head stays behind. The proof
        scores two rows of different length as anybody would: padded on the right with the
        tokenizer's padding token.
        """
        folder, kind = (
            Path(folder),
            saving_precision(weight_dtype_of(self.model), self.origin, dtype),
        )
        fix = "The disk may be at fault: continue with --resume true to save again."
        if self.adapters is None:
            return self._save_whole(folder, kind, fix)
        why = why_no_adapter(self.adapters, self.origin)
        if why:
            note = f"the whole scorer is saved, with the adapters merged in: {why}"
            return [note, *self._save_whole(folder, kind, fix)]
        if not merge:
            return self._save_adapters(folder, kind, fix)
        fix = (
            f"The adapters, for peft, are in {folder.parent / 'adapter'}; --resume true"
            " --save_merged false saves them."
        )
        try:
            return self._save_whole(folder, kind, fix)
        except LaurelError:
            write_adapters(self._as_saved(), folder.parent / "adapter", torch.float32)
            raise

    def _save_adapters(self, folder: Path, kind: torch.dtype, fix: str) -> list[str]:
        """Adapters and head as a PEFT folder, proven."""
        saved = self._as_saved()
        with verified_folder(folder, "scorer", fix) as (made, gaps):
            self._write_files(made)
            write_adapters(saved, made, kind)
            gaps.append(adapters_gap(saved, made, kind, lambda: self.probe_scores()[0]))
        ours, _, _ = self.probe_scores()
        return rounding_note(
            "scores", gaps[0][0], largest_entry(ours), weight_dtype_of(self.model), kind
        )

    def _save_whole(self, folder: Path, kind: torch.dtype, fix: str) -> list[str]:
        """The whole model, adapters merged in, proven."""
        live = weight_dtype_of(self.model)
        with verified_folder(folder, "scorer", fix) as (made, gaps):
            self._write_files(made)
            write_model(self.model, made, kind)
            ours, inputs, real = self.probe_scores()
            kept = auto_class(self.num_labels)
            gaps.append(model_gap(made, kept, ours, live, inputs, compared=real))
        return rounding_note("scores", gaps[0][0], largest_entry(ours), live, kind)

    def _as_saved(self) -> SavedAdapters:
        """Adapters and head as PEFT names them."""
        head = next(
            name for name in HEADS if isinstance(getattr(self.model, name, None), nn.Linear)
        )
        tensors = {
            f"{head}.{name}": tensor
            for name, tensor in getattr(self.model, head).state_dict().items()
        }
        task = "SEQ_CLS" if self.num_labels == 1 else "TOKEN_CLS"
        return as_saved(
            self.adapters, self.origin, inside=self.model.base_model_prefix, task=task, head=tensors
        )

    def _write_files(self, folder: Path) -> None:
        """What is no weight: the tokenizer, and the card."""
        self.tokenizer.save_pretrained(folder)
        write_atomic(folder / CARD, json.dumps(asdict(self.card), indent=1) + "\n")

    @torch.no_grad()
    def probe_scores(self) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Scores of a small batch in full precision, float64, as transformers shapes them; its
        inputs; which scores are real.
        """
        size = self.model.get_input_embeddings().weight.shape[0]
        end = min(self.eos_ids, default=size - 2)
        rows = [
            (*(k * max(size // 9, 1) % size for k in range(1, length)), end) for length in (8, 5)
        ]
        ids_NL, attention_NL, last_N = right_padded(rows, self.device)
        padded_NL = torch.where(attention_NL, ids_NL, self.tokenizer.pad_token_id)
        was = self.model.training
        self.model.eval()
        plain = Scorer(self.model, self.tokenizer)  # whatever training computes in
        with autocast_for(self.model):
            ours = plain.head(plain.hidden(ids_NL, attention_NL))
        self.model.train(was)
        ours = (ours[torch.arange(2), last_N][:, None] if self.num_labels == 1 else ours).to(
            torch.float64
        )
        inputs = {"input_ids": padded_NL, "attention_mask": attention_NL.long()}
        return ours, inputs, (slice(None) if self.num_labels == 1 else attention_NL)

    @torch.no_grad()
    def linear(self) -> bool:
        """Are the model's scores, called in the usual way, its head times the last hidden state, as
        far as the precision goes?
        """
        ours, inputs, real = self.probe_scores()
        was = self.model.training
        self.model.eval()
        with autocast_for(self.model):
            theirs = self.model(**inputs).logits.to(torch.float64)
        self.model.train(was)
        if ours.shape != theirs.shape:
            return False
        head = head_of(self.model)
        hidden = self.hidden(inputs["input_ids"], inputs["attention_mask"].bool())
        # no score is larger than the product of the two norms
        largest_hidden = float(row_norms(hidden.double()).max())
        largest_row = float(row_norms(head.weight.double()).max())
        size = largest_hidden * largest_row
        return largest_entry((ours - theirs)[real]) <= WORST * rounding_tolerance(
            weight_dtype_of(self.model), size
        )


def load_scorer(
    name: str,
    *,
    num_labels: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    param_dtype: str = "auto",
    chat_template: str | None = None,
    seed: int = 0,
    language: bool = False,
    adapters: bool = False,
) -> Scorer:
    """A scorer from a folder or hub name: a trained one as it is, or the body of a causal language
    model under a new head.

    num_labels: 1 for rewards, outcomes and values, 3 for steps; None: what a trained folder has,
    else 1. The new head starts at a deviation of .1 / sqrt(hidden size), so first scores are small;
    it depends on `seed` alone, and torch's own generator is left as it was. A tokenizer that has no
    padding token, or pads with its EOS, is given one of its own (transformers finds the last token
    of a row by that id; laurel never does). An adapter's folder is merged into its base; adapters:
    they stay, to be trained on, if they are the body's alone. language: keep the language model's
    head.
    Errors: UsageError for a model whose body, head or number of outputs does not fit.
    """
    hide_progress_bars()
    check_folder(name)
    place = pick_device(device)
    tokenizer = load_tokenizer(name)
    notes = without_template(tokenizer, chat_template)
    template = ensure_template(tokenizer, chat_template)
    trained = trained_labels(name)
    labels = outputs_of(name, trained, num_labels)
    with LOADING, forked_rng():
        torch.default_generator.manual_seed(seed)
        stored = pick_param_dtype(param_dtype)
        causal, model, kept = load_with_head(
            name, labels, bool(trained), language, adapters, stored
        )
        tied = causal is not None and is_tied(causal)
        own_padding(tokenizer, model)
    origin = origin_of(name)
    if is_adapter(name) and not kept:  # what adapters would belong on is in no folder
        origin = replace(origin, base="")
    computed = pick_dtype(dtype, place, param_dtype)
    card = card_of(name, bool(trained), model)
    scorer = Scorer(
        model.to(place).eval(), tokenizer, computed, template, card, None, tuple(notes), origin
    )
    guard_ids(scorer)
    if language:
        scorer.language = language_of(scorer, None if trained else causal, tied, name)
    check_linear(scorer, name)
    return scorer


def check_linear(scorer: Scorer, name: str) -> None:
    """UsageError for a model whose scores are more than a linear head on the last hidden state."""
    if not scorer.linear():
        what = "its scores are not a linear head on the last hidden state."
        raise UsageError(what, where=f"model={name}", fix="Use a causal language model.")


def is_tied(causal: Any) -> bool:
    """Are a language model's head and its embedding one tensor?"""
    return causal.get_output_embeddings().weight is causal.get_input_embeddings().weight


def outputs_of(name: str, trained: int, wanted: int | None) -> int:
    """How many outputs the head has: those of a trained one, which must be the wanted ones."""
    if trained and wanted and trained != wanted:
        what = f"its head has {trained} outputs, and {wanted} are needed."
        raise UsageError(what, where=f"model={name}", fix="Start from a language model.")
    return wanted or trained or 1


def card_of(name: str, trained: bool, model: Any) -> Card:
    """The folder's card, or a new one, with a length that the model has positions for."""
    card = read_card(name) if trained else Card()
    return replace(card, max_length=least_limit(card.max_length, max_positions(model.config)))


def language_of(scorer: Scorer, causal: Any, tied: bool, name: str) -> Policy:
    """The language model around the scorer's own body: its head says what stands in `imitation`.
    Padding may have grown the body.
    """
    if causal is None:
        raise UsageError(
            "a trained scorer keeps no language-model head.",
            where=f"model={name}",
            fix="Start from a language model.",
        )
    if tied:
        causal.get_output_embeddings().weight = scorer.model.get_input_embeddings().weight
    policy = Policy(
        causal.to(scorer.device).eval(), scorer.tokenizer, scorer.dtype, scorer.template
    )
    if policy.whole_logits:
        raise UsageError(
            "its logits are not head(hidden).", where=f"model={name}", fix="Set imitation_coef=0."
        )
    return policy


def check_language_head(name: str) -> None:
    """UsageError for a folder that holds no language model: a trained scorer, or a body alone. Only
    its configuration is read.
    """
    if is_adapter(name) and not trained_labels(name):
        return
    kind = (config_of(name).architectures or [""])[0] if not trained_labels(name) else SEQUENCE
    if kind and not any(part in kind for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        what = (
            f"imitation_coef needs a language model's head, and {kind or 'this folder'} has none."
        )
        raise UsageError(
            what,
            where=f"model={name}",
            fix="Start from a causal language model, or set imitation_coef=0.",
        )


def right_padded(rows: Sequence[Ids], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ids as ids_NL, attention_NL (bool) and the index of each row's last token [N]. By
    length, whatever the ids are.
    """
    length_N = torch.tensor([len(row) for row in rows], device=device)
    wide_L = torch.arange(max(map(len, rows)), device=device)
    ids_NL = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True
    ).to(device)
    return ids_NL, wide_L < length_N[:, None], length_N - 1


def batches_by_budget(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows of similar length together, longest first, at most `token_budget` padded tokens in each
    chunk (a longer row goes alone).
    """
    chunks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not chunks or lengths[chunks[-1][0]] * (len(chunks[-1]) + 1) > token_budget:
            chunks.append([])
        chunks[-1].append(i)
    return chunks
