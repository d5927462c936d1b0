"""The scorer: the body of a language model with a linear head, for rewards, outcomes, steps and values."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import whole_folder, write_atomic
from laurel.core.sample import Batch
from laurel.policy.adapters import merged, with_lora
from laurel.policy.card import CARD, Card, read_card
from laurel.policy.chat import encode_supervised, ensure_template
from laurel.policy.ends import ends_of
from laurel.policy.folders import check_folder, is_adapter
from laurel.policy.logprob import wide
from laurel.policy.model import Policy, load_causal, load_tokenizer, pick_device, pick_dtype
from laurel.policy.objects import config_of, given_model
from laurel.policy.packed import hidden_states, packs
from laurel.policy.positions import positions_of, shorter
from laurel.policy.render import without_template
from laurel.policy.weights import LOADING, guard_ids, load_model, told

PAD = "<|pad|>"
SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
HEADS = ("score", "classifier")  # what transformers calls the linear layer
Ids = Sequence[int]


@dataclass
class Scorer:
    """A language model's body and a linear head on its last hidden state. Its face is the policy's, as far as training needs it.

    `model` is a plain transformers model for sequence classification (one number) or token classification (several classes). The
    weights stay float32; `dtype` is the precision of computation. `template` is the hash of the chat template. `language` is the
    language model around the same body, where its head is kept for training; no folder that is saved holds it.
    """

    model: Any  # a PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    template: str = ""
    card: Card = field(default_factory=Card)
    language: Policy | None = None
    notes: tuple[str, ...] = ()

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
        moved = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.language is not None:  # a tied head is the body's embedding, and is there already
            body = {id(p) for p in self.model.parameters()}
            further = self.language.causal.get_output_embeddings().named_parameters()
            moved |= {f"language.{name}": p for name, p in further if p.requires_grad and id(p) not in body}
        return moved

    def autocast(self) -> Any:
        """bfloat16 arithmetic over float32 weights when asked for; nothing otherwise."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    @property
    def packs(self) -> bool:
        """Are only real tokens computed, and shared prompts once? Then micro-batches may be counted so."""
        return packs(getattr(self.model, self.model.base_model_prefix))

    def hidden(self, ids_NL: Tensor, attention_NL: Tensor, start_N: Tensor | None = None, group_N: Tensor | None = None) -> Tensor:
        """Last hidden states [N, L, D] of rows padded on the right. start_N, group_N: what rows may share, as in a Batch."""
        with self.autocast():
            return hidden_states(getattr(self.model, self.model.base_model_prefix), ids_NL, attention_NL, start_N, group_N)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> scores [...], of a several-class head [..., C]; float32 (float64 of a float64 model)."""
        with self.autocast():
            score = wide(head_of(self.model)(hidden))
        return score[..., 0] if self.num_labels == 1 else score

    def seen(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """What objectives are functions of, by name, from one pass of the body: `logp_NT` by the language head, all else `scores`."""
        hidden_NLD = self.hidden(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N)
        return {name: self.logp(batch, hidden_NLD) if name == "logp_NT" else self.scores(batch, hidden_NLD) for name in wanted}

    def logp(self, batch: Batch, hidden_NLD: Tensor) -> Tensor:
        """log pi of the trained tokens by the language head on this body: [N, T], 0 elsewhere."""
        assert self.language is not None
        return self.language.logp(batch, hidden_NLD=hidden_NLD).logp

    def scores(self, batch: Batch, hidden_NLD: Tensor | None = None) -> Tensor:
        """The head's output at every completion token's own position, 0 where there is no token: [N, T], of classes [N, T, C].

        Position start + t has read the tokens up to and with t. Rows are padded on the right and attention is causal, so padding
        reaches no real token. hidden_NLD: last hidden states of the batch, if they are at hand.
        """
        time_T = torch.arange(batch.loss_mask_NT.shape[1], device=batch.start_N.device)
        there_NT = time_T < batch.length_N[:, None]
        at_NT = (batch.start_N[:, None] + time_T).clamp(max=batch.ids_NL.shape[1] - 1)
        if hidden_NLD is None:
            hidden_NLD = self.hidden(batch.ids_NL, batch.attention_NL, batch.start_N, batch.group_N)
        score = self.head(hidden_NLD[torch.arange(len(batch), device=at_NT.device)[:, None], at_NT])
        return torch.where(there_NT if score.ndim == 2 else there_NT[..., None], score, 0.0)

    def encode(self, columns: Mapping[str, Any]) -> tuple[int, ...]:
        """A row (prompt and completion, messages, or text) as it is in training: its special tokens, its EOS, its cut."""
        return encode_supervised(self.tokenizer, columns, max_length=self.card.max_length).ids

    @torch.no_grad()
    def score(self, rows: Sequence[Mapping[str, Any] | Ids], *, token_budget: int = 8192) -> Tensor:
        """The score of each row, at its last token: [N], of classes [N, C]. On the CPU, in the order given.

        A row is a mapping (see `encode`) or ids taken as they are. Dropout is off; at most `token_budget` padded tokens a pass.
        """
        every = [self.encode(row) if isinstance(row, Mapping) else tuple(row) for row in rows]
        if not all(every):
            raise UsageError("a row without a token has no score.", where=f"row {every.index(()) + 1}")
        found: dict[int, Tensor] = {}
        for chunk, hidden_NLD in self._passes(every, token_budget):
            last_N = torch.tensor([len(every[i]) - 1 for i in chunk], device=self.device)
            score = self.head(hidden_NLD[torch.arange(len(chunk), device=self.device), last_N]).cpu()
            found.update(zip(chunk, score, strict=True))
        shape = () if self.num_labels == 1 else (self.num_labels,)
        return torch.stack([found[i] for i in range(len(every))]) if every else torch.zeros(0, *shape)

    @torch.no_grad()
    def score_at(self, rows: Sequence[tuple[Ids, Sequence[int]]], *, token_budget: int = 8192) -> list[Tensor]:
        """For each row, ids and positions, the head's output at these positions: [S], of classes [S, C]. On the CPU, dropout off."""
        found: dict[int, Tensor] = {}
        for chunk, hidden_NLD in self._passes([ids for ids, _ in rows], token_budget):
            found.update({i: self.head(hidden_NLD[n, list(rows[i][1])]).cpu() for n, i in enumerate(chunk)})
        return [found[i] for i in range(len(rows))]

    def _passes(self, every: Sequence[Ids], token_budget: int) -> Iterator[tuple[list[int], Tensor]]:
        """Which rows, and their last hidden states, a pass at a time with dropout off."""
        was = self.model.training
        self.model.eval()
        try:
            for chunk in by_budget([len(ids) for ids in every], token_budget):
                ids_NL, attention_NL, _ = right_padded([every[i] for i in chunk], self.device)
                yield chunk, self.hidden(ids_NL, attention_NL)
        finally:
            self.model.train(was)

    def adapt(self, config: Any) -> None:
        """LoRA adapters in the body, which is frozen, the language head too; the scorer's own head stays whole. Scores do not change."""
        prefix = self.model.base_model_prefix
        setattr(self.model, prefix, with_lora(getattr(self.model, prefix), config, task=None).to(self.device).eval())
        if self.language is not None:
            self.language.causal.get_output_embeddings().requires_grad_(False)

    def merged(self) -> Any:
        """The transformers model as it is saved: a copy with the adapters in its weights, or itself where there are none."""
        prefix = self.model.base_model_prefix
        if not hasattr(getattr(self.model, prefix), "merge_and_unload"):
            return self.model
        model = copy.deepcopy(self.model)
        setattr(model, prefix, getattr(model, prefix).merge_and_unload())
        return model

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder and prove it: reload with plain transformers, same scores to 1e-5, or an error.

        Adapters are merged in, and a language head stays behind. The proof scores two rows of different length as anybody would: padded
        on the right with the tokenizer's padding token.
        """
        with whole_folder(folder) as made:
            self.merged().save_pretrained(made)
            self.tokenizer.save_pretrained(made)
            write_atomic(made / CARD, json.dumps(asdict(self.card), indent=1) + "\n")
            again = auto_class(self.num_labels).from_pretrained(made, dtype=torch.float32).to(self.device).eval()
            plain = Scorer(self.model, self.tokenizer)  # full precision, whatever training computes in
            gap = plain.gap(again)
            if not gap < 1e-5:
                what = f"the saved scorer differs from the trained one by {gap:.2g} of its largest score."
                fix = "The last checkpoint is kept: continue with --resume true to save again."
                raise LaurelError(what, where=str(folder), fix=fix)

    @torch.no_grad()
    def gap(self, plain: nn.Module) -> float:
        """The largest difference between our scores and those of a transformers model called in the usual way, on a small batch."""
        size = self.model.get_input_embeddings().weight.shape[0]
        end = min(self.eos_ids, default=size - 2)
        rows = [(*(k * max(size // 9, 1) % size for k in range(1, length)), end) for length in (8, 5)]
        ids_NL, attention_NL, last_N = right_padded(rows, self.device)
        padded_NL = torch.where(attention_NL, ids_NL, self.tokenizer.pad_token_id)
        was = (self.model.training, plain.training)
        self.model.eval()
        plain.eval()
        theirs = plain(input_ids=padded_NL, attention_mask=attention_NL.long()).logits.to(torch.float64)
        ours = self.head(self.hidden(ids_NL, attention_NL))
        ours = (ours[torch.arange(2), last_N][:, None] if self.num_labels == 1 else ours).to(torch.float64)
        self.model.train(was[0])
        plain.train(was[1])
        if ours.shape != theirs.shape:
            return math.inf
        real = slice(None) if self.num_labels == 1 else attention_NL
        return float((ours - theirs)[real].abs().max() / max(1.0, float(ours[real].abs().max())))


def load_scorer(
    name: str,
    *,
    num_labels: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str | None = None,
    seed: int = 0,
    language: bool = False,
) -> Scorer:
    """A scorer from a folder or hub name: a trained one as it is, or the body of a causal language model under a new head.

    num_labels: 1 for rewards, outcomes and values, 3 for steps; None: what a trained folder has, else 1. The new head starts at a
    deviation of .1 / sqrt(hidden size), so first scores are small; it depends on `seed` alone, and torch's own generator is left as
    it was. A tokenizer that has no padding token, or pads with its EOS, is given one of its own (transformers finds the last token
    of a row by that id; laurel never does). An adapter's folder is merged into its base. language: keep the language model's head.
    Errors: UsageError for a model whose body, head or number of outputs does not fit.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_folder(name)
    place = pick_device(device)
    tokenizer = load_tokenizer(name)
    notes = without_template(tokenizer, chat_template)
    template = ensure_template(tokenizer, chat_template)
    trained = trained_labels(name)
    labels = num_labels or trained or 1
    if trained and trained != labels:
        what = f"its head has {trained} outputs, and {labels} are needed."
        raise UsageError(what, where=f"model={name}", fix="Start from a language model.")
    with LOADING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        causal = None if trained else merged(load_causal(name, torch.float32, head=language))
        model = load_trained(name, labels) if causal is None else new_head(causal, labels)
        tied = causal is not None and causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
        own_padding(tokenizer, model)
    card = read_card(name) if trained else Card()
    card = replace(card, max_length=shorter(card.max_length, positions_of(model.config)))
    scorer = Scorer(model.to(place).eval(), tokenizer, pick_dtype(dtype, place), template, card, notes=tuple(notes))
    guard_ids(scorer)
    if language:
        scorer.language = language_of(scorer, causal, tied, name)
    if not Scorer(scorer.model, tokenizer).gap(scorer.model) < 1e-4:
        what = "its scores are not a linear head on the last hidden state."
        raise UsageError(what, where=f"model={name}", fix="Use a causal language model.")
    return scorer


def load_trained(name: str, labels: int) -> nn.Module:
    """A saved scorer's model, every weight of it."""
    own = given_model(name)
    return own if own is not None else load_model(auto_class(labels), name, "a scorer", torch.float32, spare=("lm_head",))


def language_of(scorer: Scorer, causal: Any, tied: bool, name: str) -> Policy:
    """The language model around the scorer's own body: its head says what stands in `imitation`. Padding may have grown the body."""
    if causal is None:
        raise UsageError("a trained scorer keeps no language-model head.", where=f"model={name}", fix="Start from a language model.")
    if tied:
        causal.get_output_embeddings().weight = scorer.model.get_input_embeddings().weight
    policy = Policy(causal.to(scorer.device).eval(), scorer.tokenizer, scorer.dtype, scorer.template)
    if policy.whole_logits:
        raise UsageError("its logits are not head(hidden).", where=f"model={name}", fix="Set imitation_coef=0.")
    return policy


def new_head(causal: Any, labels: int) -> nn.Module:
    """A classification model around the body of a language model.

    The body is taken over as it is. Loading the checkpoint into the other class would not do: where embeddings are tied and stored
    under the language head's name alone, transformers drops them and starts the body from random ones.
    """
    config = copy.deepcopy(causal.config)
    config.num_labels = labels
    config.classifier_dropout = 0.0  # transformers' default of .1 would make scores of training and use differ
    try:
        model = auto_class(labels).from_config(config)
    except ValueError as error:
        raise UsageError(f"no such model with a head: {told(error)}", where=f"model={config.model_type}") from error
    body = getattr(causal, causal.base_model_prefix)
    if type(body) is not type(getattr(model, model.base_model_prefix, None)):
        what = f"transformers builds {type(model).__name__} around another body than {type(body).__name__}."
        raise UsageError(what, where=f"model={config.model_type}", fix="Use another language model.")
    setattr(model, model.base_model_prefix, body)
    head = head_of(model).float()
    with torch.no_grad():
        head.weight.normal_(0.0, 0.1 * head.in_features**-0.5)
        if head.bias is not None:
            head.bias.zero_()
    return model


def auto_class(labels: int) -> Any:
    """The transformers class of a folder: one number per row, or several classes per token."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    return AutoModelForSequenceClassification if labels == 1 else AutoModelForTokenClassification


def head_of(model: Any) -> nn.Linear:
    """The linear layer on top."""
    found = next((layer for name in HEADS if isinstance(layer := getattr(model, name, None), nn.Linear)), None)
    if found is None:
        raise UsageError(f"{type(model).__name__} has no linear head.", where="model", fix="Use a causal language model.")
    return found


def trained_labels(name: str) -> int:
    """How many outputs the head of a saved scorer has, by the configuration of its folder; 0 for a model without such a head."""
    check_folder(name)
    if is_adapter(name):
        return 0
    try:
        config = config_of(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a model: {told(error)}", where=f"model={name}") from error
    kind = (config.architectures or [""])[0]
    return int(config.num_labels or 0) if kind.endswith((SEQUENCE, TOKEN)) else 0


def check_language_head(name: str) -> None:
    """UsageError for a folder that holds no language model: a trained scorer, or a body alone. Only its configuration is read."""
    if is_adapter(name):
        return
    kind = (config_of(name).architectures or [""])[0] if not trained_labels(name) else SEQUENCE
    if kind and not any(part in kind for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        what = f"imitation_coef needs a language model's head, and {kind or 'this folder'} has none."
        raise UsageError(what, where=f"model={name}", fix="Start from a causal language model, or set imitation_coef=0.")


def own_padding(tokenizer: Any, model: Any) -> None:
    """Make padding a token that ends no text, in the tokenizer and in the configuration that transformers reads it from."""
    closing = {str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ends_of(tokenizer, model.config)))}
    if tokenizer.pad_token is None or str(tokenizer.pad_token) in closing:
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:  # to resize would give the tokens between them random rows
            what = f"the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows, and a padding token must come behind both."
            fix = "Resize the embedding (`resize_token_embeddings`) and save the model first."
            raise UsageError(what, where=f"model={tokenizer.name_or_path}", fix=fix)
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def right_padded(rows: Sequence[Ids], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ids as ids_NL, attention_NL (bool) and the index of each row's last token [N]. By length, whatever the ids are."""
    length_N = torch.tensor([len(row) for row in rows], device=device)
    wide_L = torch.arange(max(map(len, rows)), device=device)
    ids_NL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    return ids_NL, wide_L < length_N[:, None], length_N - 1


def by_budget(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows of similar length together, longest first, at most `token_budget` padded tokens in each chunk (a longer row goes alone)."""
    chunks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not chunks or lengths[chunks[-1][0]] * (len(chunks[-1]) + 1) > token_budget:
            chunks.append([])
        chunks[-1].append(i)
    return chunks
