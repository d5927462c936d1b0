"""Small start models of the experiments: fresh, then trained by imitation of written rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from laurel.core.config import TrainConfig
from laurel.model.scratch import save_scratch
from laurel.train.loop import train


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imitate(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    alphabet: str,
    seed: int,
    *,
    layers: int = 1,
    hidden: int = 32,
    heads: int = 2,
    **options: Any,
) -> Path:
    """The folder of a small character-level model after SFT on rows (prompt, completion).

    hidden, heads: the width. options: of the training: max_steps, prompts_per_step, learning_rate.
    """
    data = write_lines(folder / "sft.jsonl", rows)
    save_scratch(
        folder / "fresh",
        alphabet=alphabet,
        seed=seed,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    config = TrainConfig(
        model=str(folder / "fresh"),
        dataset=str(data),
        output_dir=str(folder / "sft"),
        eval_size=0,
        seed=seed,
        lr_scheduler_type="cosine",
        device="cpu",
        **options,
    )
    return train("sft", config, quiet=True).model
