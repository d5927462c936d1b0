"""Five short runs, and what they came to before the house was opened up. As a script: records them
on this machine.

A number is kept as Python writes the float, so that equal means equal to the last bit. Bits belong
to a kind of processor and a
build of torch: elsewhere the same numbers agree to rounding, and the weights' digest is not
compared.
"""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "golden.json"
STEPS = 10
COMMON = {
    "max_steps": STEPS,
    "prompts_per_step": 8,
    "eval_size": 0,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "dtype": "float32",
}
SAMPLED = {
    "rewards": [f"{HERE / 'golden.py'}:sevens"],
    "max_completion_length": 6,
    "num_generations": 4,
    "dataset": "prompts.jsonl",
}
RUNS = {
    "grpo": {**SAMPLED, "beta": 0.02, "reference": "start", "num_iterations": 2},
    "ppo": {**SAMPLED, "ptx_coef": 0.1, "ptx_dataset": "text.jsonl"},
    "dpo": {"dataset": "pairs.jsonl"},
    "reward": {"dataset": "ranks.jsonl", "imitation_coef": 0.1},
    "ilql": {"dataset": "logged.jsonl", "target_update": 0.1},
}
LEFT_OUT = ("run", "rss_mb", "time", "tokens_per_second")


def sevens(completions, **columns):
    """The share of characters that are 7, of six."""
    return [text.count("7") / 6 for text in completions]


def prepare(folder: Path) -> None:
    """A model of two layers, and rows of every kind."""
    from laurel.model.scratch import save_scratch

    save_scratch(
        folder / "model",
        alphabet="0123456789+=",
        seed=0,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    dice = random.Random(0)

    def text():
        return "".join(dice.choice("0123456789") for _ in range(dice.randint(2, 6)))

    files = {
        "prompts": [{"prompt": f"{i}="} for i in range(40)],
        "text": [{"text": text() + text()} for _ in range(40)],
        "pairs": [
            {"prompt": f"{i}=", "chosen": text() + "7", "rejected": text() + "1"} for i in range(80)
        ],
        "ranks": [
            {
                "prompt": f"{i}=",
                "chosen": text() + "7",
                "rejected": text() + "1",
                "margin": dice.choice([0.0, 1.0]),
            }
            for i in range(80)
        ],
        "logged": [
            {"prompt": f"{i}=", "completion": said, "reward": said.count("7")}
            for i in range(80)
            for said in [text()]
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def came_to(name: str, folder: Path) -> dict:
    """One run: its metrics a step, without what a clock or the memory says, and the digest of the
    weights it saved.
    """
    from laurel.core.config import TrainConfig
    from laurel.train.loop import train

    def there(value):
        return str(folder / value) if isinstance(value, str) and value.endswith(".jsonl") else value

    options = {key: there(value) for key, value in {**COMMON, **RUNS[name]}.items()}
    config = TrainConfig(
        model=str(folder / "model"), output_dir=str(folder / f"run-{name}"), **options
    )
    run = train(name, config, quiet=True)
    steps = [
        {
            key: value
            for key, value in line.items()
            if key not in LEFT_OUT and not key.startswith("seconds/")
        }
        for line in run.metrics()
    ]
    weights = hashlib.sha256()
    for file in sorted(Path(run.model).glob("*.safetensors")):
        weights.update(file.read_bytes())
    return {"steps": steps, "weights": weights.hexdigest()}


def machine() -> str:
    """What decides on bits: the processor's instructions and torch's build."""
    import torch

    from laurel.core.machine import cpu_name

    flags = sorted(
        flag for flag in cpu_name("flags").split() if flag.startswith(("avx", "amx", "fma"))
    )
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    return f"{cpu_name('model name')} {digest}, torch {torch.__version__}"


if __name__ == "__main__":
    import tempfile

    import torch

    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        found = {name: came_to(name, Path(made)) for name in sys.argv[1:] or RUNS}
    RECORDED.write_text(
        json.dumps({"machine": machine(), "commit": commit, "runs": found}, indent=1) + "\n"
    )
