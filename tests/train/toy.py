"""A toy that every algorithm must learn in seconds: answer with sevens. And rewards that
misbehave.
"""

import json
import time

from laurel.core.config import TrainConfig
from laurel.model.scratch import save_scratch

HERE = __file__


def sevens(completions, **columns):
    """The share of characters that are 7, of four."""
    return [text.count("7") / 4 for text in completions]


def constant(completions, **columns):
    """No signal at all."""
    return [0.5] * len(completions)


def raises_once(completions, completion_ids, **columns):
    """Breaks on completions that hold an 8."""
    if any("8" in text for text in completions):
        raise ValueError("an eight")
    return [text.count("7") / 4 for text in completions]


def too_short(completions, **columns):
    """Loses a result."""
    return [1.0] * (len(completions) - 1)


def not_a_number(completions, **columns):
    """NaN for completions that begin with 1."""
    return [float("nan") if text.startswith("1") else 1.0 for text in completions]


def hangs(completions, **columns):
    """Never answers."""
    time.sleep(3600)


def no_opinion(completions, **columns):
    """Abstains everywhere."""
    return [None] * len(completions)


def make_toy(folder, *, dropout=0.0):
    """A tiny character model and eight prompts; returns options for TrainConfig."""
    save_scratch(
        folder / "model",
        alphabet="0123456789+=",
        seed=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    if dropout:
        config = json.loads((folder / "model/config.json").read_text())
        (folder / "model/config.json").write_text(
            json.dumps({**config, "attention_dropout": dropout})
        )
    rows = [{"prompt": f"{i}=", "completion": "7777", "answer": "7777"} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": str(folder / "model"), "dataset": str(folder / "rows.jsonl"), "eval_size": 0}


def toy_config(toy, output_dir, reward="sevens", **options):
    """A configuration on the toy; sampling options only where asked for."""
    base = {
        "prompts_per_step": 4,
        "max_steps": 30,
        "learning_rate": 1e-2,
        "output_dir": str(output_dir),
        **toy,
    }
    if reward:
        base |= {"rewards": [f"{HERE}:{reward}"], "max_completion_length": 4}
    return TrainConfig(**{**base, **options})
