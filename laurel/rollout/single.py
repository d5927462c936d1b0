"""x ~ policy, one turn: every prompt answered num_generations times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laurel.core.config import EvalConfig, TrainConfig
from laurel.core.sample import Group, Key, Message, Sample
from laurel.data.source import Row
from laurel.model.chat import encode_prompt
from laurel.model.policy import Policy
from laurel.model.sampler import Completion, sample, sample_seed


@dataclass(frozen=True, slots=True)
class Draw:
    """How samples are drawn, and the run, step and seed that their keys have.

    The step is also the policy's version.
    """

    run: str
    step: int
    seed: int
    num_generations: int
    max_completion_length: int
    temperature: float
    stop: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, config: TrainConfig | EvalConfig, run: str, step: int, **changes: Any) -> Draw:
        """As the configuration of a run, or of an evaluation, says; but for `changes`."""
        values: dict[str, Any] = {
            "seed": config.seed,
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "temperature": config.temperature,
            "stop": tuple(config.stop or ()),
            "top_k": config.top_k,
            "top_p": config.top_p,
        }
        return cls(run, step, **{**values, **changes})

    def seeds(self, rows: Sequence[Row], turn: int = 0) -> list[int]:
        """One seed per sample, from (seed, prompt, sample, step) and the turn of the episode."""
        count = self.num_generations
        return [
            sample_seed(self.seed, row.id, g + count * turn, self.step)
            for row in rows
            for g in range(count)
        ]


def rollout(policy: Policy, rows: Sequence[Row], draw: Draw) -> list[Group]:
    """One group per row: `num_generations` completions of its prompt.

    With ids, log-probabilities, finish and text.
    """
    prompts = [
        encode_prompt(policy.tokenizer, row.columns["prompt"], tools=row.columns.get("tools"))
        for row in rows
    ]
    completions = sample(
        policy,
        prompts,
        seeds=draw.seeds(rows),
        max_completion_length=draw.max_completion_length,
        temperature=draw.temperature,
        stop=draw.stop,
        top_k=draw.top_k,
        top_p=draw.top_p,
    )
    texts = policy.tokenizer.batch_decode([c.spoken for c in completions], skip_special_tokens=True)
    groups, count = list[Group](), draw.num_generations
    for i, (row, prompt_ids) in enumerate(zip(rows, prompts, strict=True)):
        samples = tuple(
            as_sample(draw, row, g, prompt_ids, completions[n], texts[n])
            for g, n in enumerate(range(i * count, (i + 1) * count))
        )
        groups.append(Group(row.id, row.columns, samples))
    return groups


def as_sample(
    draw: Draw, row: Row, g: int, prompt_ids: tuple[int, ...], done: Completion, text: str
) -> Sample:
    """Completion g of a row's prompt as a Sample of one turn."""
    return Sample(
        key=Key(draw.run, row.where, row.id, g, draw.step),
        prompt_ids=prompt_ids,
        completion_ids=done.ids,
        logps=done.logps,
        loss_mask=(True,) * len(done.ids),
        temperature=draw.temperature,
        finish=done.finish,
        text=text,
        turns=(Message(role="assistant", content=text),),
    )
