"""The peers' side: `generate` of transformers, and TRL's trainers, which own their loops: a
callback waits for each turn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import models
import torch
from measure import Over, Turns, synchronise
from models import EOS, PAD, WORDS, Shape, text

from laurel.model.policy import pick_device


def generate(turns: Turns, shape: Shape, folder: Path, dtype: str, cache: str = "dynamic") -> None:
    """`model.generate`, every prompt repeated G times, each row stopped at its length."""
    from transformers import GenerationConfig, StoppingCriteriaList

    device = pick_device("auto")
    model = models.make_model(shape, torch.bfloat16 if dtype == "bf16" else torch.float32).to(
        device
    )
    ids, ends = (
        shape.prompt_ids().repeat_interleave(shape.each, 0).to(device),
        shape.lengths().to(device),
    )
    static = {"cache_implementation": "static"} if cache == "static" else {}
    how = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=shape.high,
        pad_token_id=PAD,
        eos_token_id=[],
        **static,
    )

    @torch.no_grad()
    def once() -> dict[str, Any]:
        stop = StoppingCriteriaList([AtLength(shape.prompt, ends)])
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=how,
            stopping_criteria=stop,
        )
        synchronise()
        return {"tokens": int(ends.sum())}

    turns.each(once)


class AtLength:
    """A stopping criterion: each row at its own length."""

    eos_token_id = torch.tensor([EOS])

    def __init__(self, prompt: int, ends: torch.Tensor) -> None:
        self.prompt, self.ends = prompt, ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt >= self.ends


def quieten() -> None:
    """Bars and notices belong to nobody's time."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def at_turns(turns: Turns, per: int, tokens: int) -> Any:
    """A callback: a turn begins with the first of `per` steps and ends with the last."""
    from transformers import TrainerCallback

    class AtTurns(TrainerCallback):
        """Waits at the first step of a turn, answers after the last."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % per == 0 and not turns.begin():
                raise Over

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % per == 0:
                synchronise()
                turns.end(tokens=tokens)

    return AtTurns()


def run(turns: Turns, trainer: Any) -> None:
    """Train until there are no more turns."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    turns.ready()
    with suppress(Over):
        trainer.train()


SETTINGS: dict[str, dict[str, bool]] = {
    "default": {"bf16": True, "gradient_checkpointing": True},
    "fp32": {"bf16": False, "gradient_checkpointing": False},
    "bf16": {"bf16": True, "gradient_checkpointing": False},
}
"""TRL's default, and the same without recomputing activations in either precision (its best
settings on a CPU).
"""


def arguments(setting: str, folder: Path) -> dict[str, Any]:
    """What all trainers are told."""
    return {
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-4,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "seed": 0,
        **SETTINGS[setting],
    }


def grpo(turns: Turns, shape: Shape, folder: Path, setting: str, micro: int = 64) -> None:
    """GRPOTrainer, one optimiser step a turn, completions cut at the lengths that everybody's
    have.
    """
    import datasets
    from ours import judge
    from transformers import StoppingCriteriaList
    from trl import GRPOConfig, GRPOTrainer

    quieten()
    model, tokenizer = models.make_model(shape), models.make_tokenizer(shape.vocabulary)
    rows = shape.prompts * shape.each
    micro = min(micro, rows)
    data = datasets.Dataset.from_dict({"prompt": [text(ids) for ids in shape.prompt_ids()]})
    with_lengths(model, shape, StoppingCriteriaList)
    config = GRPOConfig(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        num_generations=shape.each,
        max_completion_length=shape.high,
        max_steps=10**6,
        shuffle_dataset=False,
        **arguments(setting, folder),
    )
    callbacks = [at_turns(turns, 1, int(shape.lengths().sum()))]
    run(
        turns,
        GRPOTrainer(
            model,
            reward_funcs=judge,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=callbacks,
        ),
    )


def with_lengths(model: Any, shape: Shape, criteria: Any) -> None:
    """Row n of what the model generates has n's length: no word ends it before, and an end stands
    there.
    """
    original, ends = model.generate, shape.lengths()

    def generated(*args: Any, **options: Any) -> torch.Tensor:
        device = next(model.parameters()).device
        out = original(
            *args, stopping_criteria=criteria([AtLength(shape.prompt, ends.to(device))]), **options
        )
        said = out[:, shape.prompt :]
        said[said < WORDS] = WORDS
        said.masked_fill_(
            torch.arange(said.shape[1], device=device)[None] == ends.to(device)[:, None] - 1, EOS
        )
        return out

    model.generate = generated


def rows_of(shape: Shape, kind: str) -> Any:
    """The rows of data as TRL's trainers read them."""
    import datasets

    if kind == "sft":
        ids = [[int(word[1:]) for word in row["text"].split()] for row in models.texts(shape)]
        return datasets.Dataset.from_dict({"input_ids": ids})
    rows = models.pairs(shape)
    if kind == "reward":
        return datasets.Dataset.from_list(
            [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows]
        )
    return datasets.Dataset.from_list(rows)


def data(
    turns: Turns, shape: Shape, folder: Path, setting: str, kind: str, packing: bool = False
) -> None:
    """DPOTrainer, RewardTrainer or SFTTrainer: one pass over the rows a turn, tokenised before."""
    import trl

    quieten()
    tokenizer = models.make_tokenizer(shape.vocabulary)
    tokenizer.padding_side = "right"
    batch, own = shape.batch, dict[str, Any]()
    if kind == "dpo":
        own = {"ref_model": models.make_model(shape)}
    if packing:
        batch = max(1, shape.batch * (shape.low + shape.high) // 2 // 512)
    config = {"dpo": trl.DPOConfig, "reward": trl.RewardConfig, "sft": trl.SFTConfig}[kind]
    make = {"dpo": trl.DPOTrainer, "reward": trl.RewardTrainer, "sft": trl.SFTTrainer}[kind]
    packed = {"packing": True} if packing else {}
    args = config(
        per_device_train_batch_size=batch,
        num_train_epochs=10**4,
        max_length=512,
        **packed,
        **arguments(setting, folder),
    )
    model = scorer(shape) if kind == "reward" else models.make_model(shape)
    trainer = make(
        model=model,
        args=args,
        train_dataset=rows_of(shape, kind),
        processing_class=tokenizer,
        **own,
    )
    per = -(-len(trainer.train_dataset) // batch)
    total = sum(len(row["text"].split()) for row in models.texts(shape)) if kind == "sft" else 0
    trainer.add_callback(at_turns(turns, per, total))
    run(turns, trainer)


def scorer(shape: Shape) -> Any:
    """The same body under one number."""
    from transformers import Qwen3ForSequenceClassification

    model = models.make_model(shape)
    model.config.num_labels = 1
    made = Qwen3ForSequenceClassification(model.config)
    made.model.load_state_dict(model.model.state_dict())
    return made


def learn_trainer(
    model: str,
    folder: Path,
    seed: int,
    prompts: list[dict[str, str]],
    check: Callable[[Any], bool],
    hyper: dict[str, Any],
) -> Any:
    """GRPOTrainer on addition with TRL's defaults; `check` looks at the model every few steps and
    says whether it is done.
    """
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    quieten()

    class Check(TrainerCallback):
        """Asks every five steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % 5 == 0 and check(trainer.model):
                control.should_training_stop = True

    def exact(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [
            float(said.strip() == right) for said, right in zip(completions, answer, strict=True)
        ]

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = hyper["prompts"] * hyper["each"]
    told = arguments("default", folder) | {
        "learning_rate": hyper["learning_rate"],
        "seed": seed,
        "logging_steps": 10,
    }
    config = GRPOConfig(
        per_device_train_batch_size=rows,
        num_generations=hyper["each"],
        max_completion_length=hyper["length"],
        max_steps=hyper["steps"],
        **told,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=exact,
        args=config,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Check()],
    )
    return trainer
