"""A small untrained Llama and a character tokenizer, saved as an ordinary Hugging Face folder."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from laurel.core.tensors import forked_rng
from laurel.model.render import ensure_template

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"
PAD, START, STOP, UNKNOWN = "<|pad|>", "<|start|>", "<|stop|>", "<|unknown|>"


def char_tokenizer(alphabet: str = ALPHABET) -> PreTrainedTokenizerFast:
    """One token per character, after four special ones.

    They are pad 0, BOS 1, EOS 2 and unknown 3 (any character not in `alphabet`). BOS goes in front
    of plain text. Ids decode to the exact text, spaces and line ends included; the special tokens
    are read as such in a text that spells them out. The default alphabet is printable ASCII and the
    line end: 100 ids in all.
    """
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: i for i, token in enumerate(dict.fromkeys([PAD, START, STOP, UNKNOWN, *alphabet]))
    }
    # no merges: characters stay single
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=START,
        eos_token=STOP,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def small_model(
    tokenizer: Any,
    *,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 2048,
    seed: int = 0,
) -> LlamaForCausalLM:
    """An untrained Llama in float32 with tied embeddings; by default 0.87 M parameters for 100 ids.

    intermediate_size: default 3 * hidden_size. Weights start at a standard deviation of .9 /
    sqrt(hidden_size), four times Llama's .02 at 128: so small a model learns arithmetic several
    times sooner from there. They depend on `seed` alone, and torch's own generator is left as it
    was.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size if intermediate_size is None else intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.9 * hidden_size**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    with forked_rng():
        # the CPU's alone: torch.manual_seed would reach the GPUs too
        torch.default_generator.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        return model.float().eval()


def save_scratch(
    folder: str | Path, *, alphabet: str = ALPHABET, seed: int = 0, **shape: int
) -> Path:
    """Write model, tokenizer and chat template into `folder`, for transformers to load.

    `shape`: see `small_model`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = char_tokenizer(alphabet)
    ensure_template(tokenizer)
    parts: list[Any] = [small_model(tokenizer, seed=seed, **shape), tokenizer]
    for part in parts:
        part.save_pretrained(folder)
    return Path(folder)
