"""A model folder of a real model's true shape, with random weights: what fits, and how fast,
without a download.

python bench/make_model.py qwen2.5-0.5b FOLDER [--dtype bfloat16]

The tokenizer is made here, too: a token for every byte, then names without a text up to the
vocabulary's size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

END = "<|endoftext|>"
QWEN: dict[str, Any] = {"rope_theta": 1e6, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
        **QWEN,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
        **QWEN,
    },
}
"""Name -> what its config.json says."""


def byte_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Every byte is a token; an end token; the rest of the vocabulary has names and no text."""
    known = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(vocab=known, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens([END])
    tokens.add_tokens([f"<|unused {at}|>" for at in range(size - len(known) - 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=END, pad_token=END)


def config_of(name: str) -> Qwen2Config:
    """The configuration of a shape; its end is the tokenizer's."""
    end = len(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Config(**SHAPES[name], eos_token_id=end, pad_token_id=end, bos_token_id=None)


def make(name: str, folder: Path, dtype: torch.dtype, seed: int = 0) -> None:
    """Write the folder: weights drawn as transformers draws them at the start of a training."""
    config = config_of(name)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    byte_tokenizer(config.vocab_size).save_pretrained(folder)


def main() -> None:
    """Write one folder."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    make(args.shape, args.folder, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
