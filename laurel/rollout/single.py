"""x ~ policy, one turn: every prompt answered num_generations times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from laurel.core.protocols import Generator
from laurel.core.sample import Completion, Draw, Group, Key, Message, Sample
from laurel.data.source import Row
from laurel.model.chat import encode_prompt


def rollout(generator: Generator, rows: Sequence[Row], draw: Draw) -> list[Group]:
    """One group per row: `num_generations` completions of its prompt.

    With ids, log-probabilities, finish and text.
    """
    prompts = [
        encode_prompt(generator.tokenizer, row.columns["prompt"], tools=row.columns.get("tools"))
        for row in rows
    ]
    seeds = draw.seeds_of([row.id for row in rows])
    completions = generator.generate(prompts, replace(draw, seeds=seeds))
    texts = generator.tokenizer.batch_decode(
        [c.spoken for c in completions], skip_special_tokens=True
    )
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
