"""What every contender works on: Qwen3-shaped models with random weights, a tokenizer of words
`t17`, prompts, lengths and pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, int]] = {
    "a": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "vocab_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
    },
    "b": {
        "hidden_size": 320,
        "num_hidden_layers": 6,
        "vocab_size": 4096,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "intermediate_size": 960,
    },
    "c": {
        "hidden_size": 640,
        "num_hidden_layers": 10,
        "vocab_size": 16384,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "intermediate_size": 1728,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
    },
}
"""0.85 M, 9.3 M and 56 M parameters; `tiny` is for --quick."""
BOS, EOS, PAD, WORDS = 0, 1, 2, 3


@dataclass(frozen=True)
class Shape:
    """The size of a workload: model, prompts, samples per prompt, tokens of a prompt, new tokens
    drawn from low to high.
    """

    size: str = "a"
    prompts: int = 64
    each: int = 8
    prompt: int = 32
    low: int = 64
    high: int = 128
    rows: int = 256  # of data: pairs or texts
    batch: int = 32  # rows of data per step
    steps: int = 300

    def quick(self) -> Shape:
        """A few tokens of a model that is nothing: the path, not the time."""
        return replace(
            self, size="tiny", prompts=2, each=2, prompt=4, low=3, high=6, rows=8, batch=4, steps=12
        )

    @property
    def vocabulary(self) -> int:
        """Words the model knows."""
        return SIZES[self.size]["vocab_size"]

    def prompt_ids(self) -> torch.Tensor:
        """The prompts: [P, L]."""
        return torch.randint(
            WORDS,
            self.vocabulary,
            (self.prompts, self.prompt),
            generator=torch.Generator().manual_seed(1),
        )

    def lengths(self) -> torch.Tensor:
        """How many tokens each completion has: [P * G]."""
        return torch.randint(
            self.low,
            self.high + 1,
            (self.prompts * self.each,),
            generator=torch.Generator().manual_seed(2),
        )


def make_model(shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen3 with random weights, the same for everybody."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        **SIZES[shape.size],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="sdpa",
        use_cache=True,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()


def make_tokenizer(vocabulary: int) -> Any:
    """Words apart by spaces: `t3` is token 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        "<bos>": BOS,
        "<eos>": EOS,
        "<pad>": PAD,
        **{f"t{i}": i for i in range(WORDS, vocabulary)},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
    )


def save_model(shape: Shape, folder: Path) -> str:
    """Model and tokenizer as a Hugging Face folder."""
    make_model(shape).save_pretrained(folder)
    make_tokenizer(shape.vocabulary).save_pretrained(folder)
    return str(folder)


def text(ids: Any) -> str:
    """Ids as the tokenizer reads them back."""
    return " ".join(f"t{int(i)}" for i in ids)


def pairs(shape: Shape) -> list[dict[str, str]]:
    """Preference pairs: a prompt, two answers of different lengths."""
    generator = torch.Generator().manual_seed(3)

    def words(count: int) -> str:
        return text(torch.randint(WORDS, shape.vocabulary, (count,), generator=generator))

    def length() -> int:
        return int(torch.randint(shape.low, shape.high + 1, (), generator=generator))

    return [
        {
            "prompt": words(shape.prompt),
            "chosen": " " + words(length()),
            "rejected": " " + words(length()),
        }
        for _ in range(shape.rows)
    ]


def logged(shape: Shape) -> list[dict[str, Any]]:
    """Logged answers with rewards: the chosen ones of `pairs`."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "reward": i % 3}
        for i, row in enumerate(pairs(shape))
    ]


def texts(shape: Shape) -> list[dict[str, str]]:
    """Texts of low to high tokens."""
    generator = torch.Generator().manual_seed(4)
    sizes = torch.randint(shape.low, shape.high + 1, (shape.rows,), generator=generator).tolist()
    return [
        {"text": text(torch.randint(WORDS, shape.vocabulary, (size,), generator=generator))}
        for size in sizes
    ]


def write(rows: list[dict[str, str]], path: Path) -> str:
    """Rows as lines of JSON; the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
