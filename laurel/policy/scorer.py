"""The scorer: the body of a language model with a linear head, for rewards, outcomes, steps and values."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import read_json, write_atomic
from laurel.core.sample import Batch
from laurel.policy.chat import encode_supervised, ensure_template
from laurel.policy.logprob import wide
from laurel.policy.model import LOADING, check_folder, first_line, load_causal, load_tokenizer, pick_device, pick_dtype

CARD = "laurel_scorer.json"
PAD = "<|pad|>"
SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
HEADS = ("score", "classifier")  # what transformers calls the linear layer
Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Card:
    """What a saved scorer says of itself: mean and deviation of its scores on `n` held-out answers, and where rows were cut."""

    mean: float = 0.0
    std: float = 1.0
    n: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UsageError(f"scores of mean {self.mean} and deviation {self.std} have no scale.", where=CARD)

    @classmethod
    def of(cls, scores: Sequence[float], max_length: int | None = None) -> Card:
        """From held-out scores. One score, or equal ones, have no spread: std stays 1. [1, 3]: mean 2, std 1 (ddof 0)."""
        values = torch.as_tensor(scores, dtype=torch.float64).flatten()
        if not len(values):
            raise UsageError("no held-out score to centre by.", where=CARD)
        spread = float(values.std(correction=0))
        return cls(float(values.mean()), spread if spread > 1e-9 * max(1.0, float(values.abs().max())) else 1.0, len(values), max_length)


@dataclass
class Scorer:
    """A language model's body and a linear head on its last hidden state. Its face is the policy's, as far as training needs it.

    `model` is a plain transformers model for sequence classification (one number) or token classification (several classes). The
    weights stay float32; `dtype` is the precision of computation. `template` is the hash of the chat template.
    """

    model: Any  # a PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    template: str = ""
    card: Card = Card()

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
        return ends(self.tokenizer, self.model.config)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of what the optimiser moves."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def autocast(self) -> Any:
        """bfloat16 arithmetic over float32 weights when asked for; nothing otherwise."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def hidden(self, ids_NL: Tensor, attention_NL: Tensor) -> Tensor:
        """Last hidden states [N, L, D] of rows padded on the right."""
        mask = None if bool(attention_NL.all()) else attention_NL.long()
        with self.autocast():
            body = getattr(self.model, self.model.base_model_prefix)
            return body(input_ids=ids_NL, attention_mask=mask, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> scores [...], of a several-class head [..., C]; float32 (float64 of a float64 model)."""
        with self.autocast():
            score = wide(head_of(self.model)(hidden))
        return score[..., 0] if self.num_labels == 1 else score

    def scores(self, batch: Batch) -> Tensor:
        """The head's output at every completion token's own position, 0 where there is no token: [N, T], of classes [N, T, C].

        Position start + t has read the tokens up to and with t. Rows are padded on the right and attention is causal, so padding
        reaches no real token.
        """
        time_T = torch.arange(batch.loss_mask_NT.shape[1], device=batch.start_N.device)
        there_NT = time_T < batch.length_N[:, None]
        at_NT = (batch.start_N[:, None] + time_T).clamp(max=batch.ids_NL.shape[1] - 1)
        hidden_NLD = self.hidden(batch.ids_NL, batch.attention_NL)
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
        was = self.model.training
        self.model.eval()
        try:
            for chunk in by_budget([len(ids) for ids in every], token_budget):
                ids_NL, attention_NL, last_N = right_padded([every[i] for i in chunk], self.device)
                hidden_NLD = self.hidden(ids_NL, attention_NL)
                score = self.head(hidden_NLD[torch.arange(len(chunk), device=self.device), last_N]).cpu()
                found.update(zip(chunk, score, strict=True))
        finally:
            self.model.train(was)
        shape = () if self.num_labels == 1 else (self.num_labels,)
        return torch.stack([found[i] for i in range(len(every))]) if every else torch.zeros(0, *shape)

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder and prove it: reload with plain transformers, same scores to 1e-5, or an error.

        The proof scores two rows of different length as anybody would: padded on the right with the tokenizer's padding token.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_atomic(folder / CARD, json.dumps(asdict(self.card), indent=1) + "\n")
        again = auto_class(self.num_labels).from_pretrained(folder, dtype=torch.float32).to(self.device).eval()
        plain = Scorer(self.model, self.tokenizer)  # full precision, whatever training computes in
        gap = plain.gap(again)
        if not gap < 1e-5:
            raise LaurelError(f"the saved scorer differs from the trained one by {gap:.2g} in its scores.", where=str(folder))

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
) -> Scorer:
    """A scorer from a folder or hub name: a trained one as it is, or the body of a causal language model under a new head.

    num_labels: 1 for rewards, outcomes and values, 3 for steps; None: what a trained folder has, else 1. The new head starts at a
    deviation of .1 / sqrt(hidden size), so first scores are small; it depends on `seed` alone, and torch's own generator is left as
    it was. A tokenizer that has no padding token, or pads with its EOS, is given one of its own (transformers finds the last token
    of a row by that id; laurel never does). An adapter's folder is merged into its base.
    Errors: UsageError for a model whose body, head or number of outputs does not fit.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_folder(name)
    place = pick_device(device)
    tokenizer = load_tokenizer(name)
    template = ensure_template(tokenizer, chat_template)
    trained = trained_labels(name)
    labels = num_labels or trained or 1
    if trained and trained != labels:
        what = f"its head has {trained} outputs, and {labels} are needed."
        raise UsageError(what, where=f"model={name}", fix="Start from a language model.")
    with LOADING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = load_trained(name, labels) if trained else new_head(load_causal(name, torch.float32), labels)
        own_padding(tokenizer, model)
    scorer = Scorer(model.to(place).eval(), tokenizer, pick_dtype(dtype, place), template, read_card(name) if trained else Card())
    if not Scorer(scorer.model, tokenizer).gap(scorer.model) < 1e-4:
        what = "its scores are not a linear head on the last hidden state."
        raise UsageError(what, where=f"model={name}", fix="Use a causal language model.")
    return scorer


def load_trained(name: str, labels: int) -> nn.Module:
    """A saved scorer's model, every weight of it."""
    try:
        model, report = auto_class(labels).from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot load a scorer: {first_line(error)}", where=f"model={name}") from error
    lost = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lost:
        raise UsageError(f"{len(lost)} weights are missing, such as {lost[0]}.", where=f"model={name}")
    return model


def new_head(causal: Any, labels: int) -> nn.Module:
    """A classification model around the body of a language model, adapters merged in.

    The body is taken over as it is. Loading the checkpoint into the other class would not do: where embeddings are tied and stored
    under the language head's name alone, transformers drops them and starts the body from random ones.
    """
    if hasattr(causal, "merge_and_unload"):
        causal = causal.merge_and_unload()
    config = copy.deepcopy(causal.config)
    config.num_labels = labels
    config.classifier_dropout = 0.0  # transformers' default of .1 would make scores of training and use differ
    try:
        model = auto_class(labels).from_config(config)
    except ValueError as error:
        raise UsageError(f"no such model with a head: {first_line(error)}", where=f"model={config.model_type}") from error
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
    from transformers import AutoConfig

    check_folder(name)
    if (Path(name) / "adapter_config.json").is_file():
        return 0
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a model: {first_line(error)}", where=f"model={name}") from error
    kind = (config.architectures or [""])[0]
    return int(config.num_labels or 0) if kind.endswith((SEQUENCE, TOKEN)) else 0


def own_padding(tokenizer: Any, model: Any) -> None:
    """Make padding a token that ends no text, in the tokenizer and in the configuration that transformers reads it from."""
    closing = {str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ends(tokenizer, model.config)))}
    if tokenizer.pad_token is None or str(tokenizer.pad_token) in closing:
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def ends(tokenizer: Any, config: Any) -> frozenset[int]:
    """The ids that end a text, by the tokenizer and the model's configuration."""
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)


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


def read_card(folder: str | Path) -> Card:
    """The card of a saved scorer; where there is none, scores stay as they are (mean 0, std 1)."""
    found = read_json(Path(folder) / CARD) if Path(folder).is_dir() else None
    if found is None:
        return Card()
    if not isinstance(found, dict) or not found.keys() <= {item.name for item in fields(Card)}:
        raise UsageError("not the card of a scorer.", where=f"{folder}/{CARD}", fix="It holds mean, std, n and max_length.")
    return Card(**found)
