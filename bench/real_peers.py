"""What bench/real.py compares with: the same way to use the same model on the same rows, by plain
transformers and by TRL.

python bench/real_peers.py WAY MODEL FOLDER STEPS        prints one line of JSON: tokens a second,
seconds of the last step

TRL trains in float32 without recomputing activations, its fastest setting on a CPU, with laurel's
LoRA. Tokens are those drawn, or those of the answers; rows lie in FOLDER, where bench/real.py made
them. There is no PPO in TRL.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

BATCH, EACH, LENGTH, PROMPTS = 4, 4, 16, 24


def main() -> None:
    """The way's figures."""
    way, model, folder, steps = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    name = way.removeprefix("lora:")
    found = (
        sampled(name, model, folder)
        if name in ("ours", "generate")
        else trained(name, way != name, model, folder, steps)
    )
    print(json.dumps(found))


def prompts(folder: Path) -> list[str]:
    """The prompts of every row."""
    return [
        json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()
    ]


def sampled(who: str, model: str, folder: Path) -> dict[str, float]:
    """All prompts, EACH answers of LENGTH tokens, by laurel's sampler or by `generate`: the second
    of two times. No token ends a row.
    """
    from laurel.core.config import TrainConfig
    from laurel.model.policy import Policy, load_policy
    from laurel.rollout.sampler import sample

    class Endless(Policy):
        eos_ids = frozenset[int]()  # type: ignore[assignment]

    loaded = load_policy(TrainConfig(model=model))
    policy = Endless(
        loaded.model, loaded.tokenizer, loaded.dtype, loaded.template, room=loaded.room
    )
    ids = [tuple(row) for row in policy.tokenizer(prompts(folder))["input_ids"]]
    rows = len(ids) * EACH
    policy.tokenizer.padding_side = "left"
    padded = policy.tokenizer.pad(
        {"input_ids": [list(row) for row in ids for _ in range(EACH)]}, return_tensors="pt"
    )
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        if who == "ours":
            sample(policy, ids, seeds=list(range(rows)), max_completion_length=LENGTH)
        else:
            with torch.no_grad():
                policy.model.generate(
                    **padded, do_sample=True, top_k=0, max_new_tokens=LENGTH, min_new_tokens=LENGTH
                )
        seconds = time.perf_counter() - began
    return {"speed": rows * LENGTH / seconds, "seconds": seconds}


def trained(name: str, lora: bool, model: str, folder: Path, steps: int) -> dict[str, float]:
    """So many steps of TRL's trainer: the last one's seconds."""
    import datasets
    import transformers
    import trl
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )

    class Watch(TrainerCallback):
        """When the newest step began, and how long it took."""

        began, seconds = 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    transformers.logging.set_verbosity_error()
    watch, tokenizer = Watch(), AutoTokenizer.from_pretrained(model)
    file = {"sft": "shown", "dpo": "pairs", "reward": "pairs"}.get(name, "prompts")
    rows = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text().splitlines()]
    answers = [
        row[column]
        for row in rows
        for column in ("completion", "chosen", "rejected")
        if column in row
    ]
    tokens = (
        BATCH
        * sum(len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"])
        / len(rows)
        if answers
        else 0.0
    )
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH,
    }
    adapters = {
        "task_type": "SEQ_CLS" if name == "reward" else "CAUSAL_LM",
        "target_modules": "all-linear",
        "r": 16,
        "lora_alpha": 32,
    }
    more: dict[str, Any] = {"peft_config": LoraConfig(**adapters)} if lora else {}
    if name == "reward":
        loaded = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=torch.float32
        )
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if name == "grpo":
        sys.path.insert(0, str(folder))
        from reward import short_words  # type: ignore[import-not-found]

        common |= {
            "per_device_train_batch_size": BATCH * EACH,
            "num_generations": EACH,
            "max_completion_length": LENGTH,
        }
        more |= {"reward_funcs": short_words}
    config = {
        "sft": trl.SFTConfig,
        "grpo": trl.GRPOConfig,
        "dpo": trl.DPOConfig,
        "reward": trl.RewardConfig,
    }[name]
    make = {
        "sft": trl.SFTTrainer,
        "grpo": trl.GRPOTrainer,
        "dpo": trl.DPOTrainer,
        "reward": trl.RewardTrainer,
    }[name]
    data = datasets.Dataset.from_list(rows)
    trainer = make(
        model=loaded,
        args=config(**common),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[watch],
        **more,
    )
    trainer.train()
    if name == "grpo":
        lengths = [
            line["completions/mean_length"]
            for line in trainer.state.log_history
            if "completions/mean_length" in line
        ]
        tokens = BATCH * EACH * lengths[-1]
    return {"speed": tokens / watch.seconds, "seconds": watch.seconds}


if __name__ == "__main__":
    main()
