"""The authors' logs and the figures they published (Sun et al. 2023, arXiv:2309.06553).

Llama-2-7b-chat on GSM8K and MAWPS.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from laurel.core.errors import UsageError, nearest
from laurel_prompts.logs import Log, question_numbers

MODEL = "llama2-7b"
PUBLISHED = (
    "best train prompt",
    "IRL 0",
    "IRL 10",
    "IRL 100",
    "all mixed",
    "LLM confidence",
    "RM acc held-out query",
    "RM acc held-out prompt",
)


def is_published(path: Path) -> bool:
    """Is this a folder of the authors' logs?"""
    return (path / "prompts_and_summary.json").is_file()


def _check(folder: Path, dataset: str) -> None:
    """UsageError where the folder has no such data set, or none is named."""
    known = sorted(
        path.name.removeprefix("labels_llama2_").removesuffix(".npz")
        for path in folder.glob("labels_llama2_*.npz")
    )
    if dataset not in known:
        fix = nearest(dataset, known) if dataset else f"Name one: --dataset {'|'.join(known)}."
        what = f"no data set `{dataset}` in this folder." if dataset else "which data set?"
        raise UsageError(what, where="--dataset", fix=fix)


def read_published(folder: Path, dataset: str) -> tuple[Log, dict[str, float]]:
    """(the log, published figures by name) of one data set.

    Training queries have the 6 training prompts, test queries 10 more, too.
    """
    _check(folder, dataset)
    prompts = json.loads((folder / "prompts_and_summary.json").read_text(encoding="utf-8"))
    labels = np.load(folder / f"labels_llama2_{dataset}.npz")
    rows = list(_lines(folder / f"questions_{dataset}.jsonl.gz"))
    asked = [row["question"] for row in rows]
    train, test = labels["train"], labels["test"]
    first = train.shape[1]  # the first test query
    if len(rows) != first + test.shape[1]:
        what = f"{len(rows)} questions and labels of {first + test.shape[1]}."
        raise UsageError(what, where=str(folder))
    reward = np.full((len(rows), len(prompts["prompts"])), np.nan)
    reward[:first, : len(train)] = train.T
    reward[first:] = test.T
    names = tuple(map(str, prompts["aliases"]))
    held_out = [row["split"] == "test" for row in rows]
    log = Log(
        name=dataset,
        queries=tuple(asked),
        names=names,
        prompts=tuple(prompts["prompts"]),
        reward_SP=reward,
        test_S=np.array(held_out),
        question_S=question_numbers(asked),
        confidence_SP=_confidence(folder, dataset, reward.shape, first),
        responses=_responses(folder, dataset, names),
    )
    return log, _figures(folder, dataset, len(train))


def _confidence(
    folder: Path, dataset: str, shape: tuple[int, int], first: int
) -> np.ndarray | None:
    """The language model's verdicts on its own answers to the test queries, if that file exists."""
    path = folder / "self_critic_all_llms.npz"
    if not path.is_file():
        return None
    table = np.full(shape, np.nan)
    table[first:] = np.load(path)[f"llama_{dataset}_confidence"].T
    return table


def _responses(folder: Path, dataset: str, names: tuple[str, ...]) -> dict[tuple[int, int], str]:
    """Answers by (query, prompt).

    All of the test queries, and others where a file was small enough to be kept.
    """
    found = {}
    for p, name in enumerate(names):
        for path in sorted((folder / "responses_llama2").glob(f"{dataset}_*_{name}.jsonl.gz")):
            found.update({(row["q_idx"], p): row["response"] for row in _lines(path)})
    return found


def _figures(folder: Path, dataset: str, count: int) -> dict[str, float]:
    """The row of the published table for all training prompts, from RESULTS.md."""
    path = folder / "RESULTS.md"
    row = re.search(
        rf"^\| {MODEL}/{dataset} \| {count} \|(.*)\|\s*$",
        path.read_text(encoding="utf-8") if path.is_file() else "",
        re.MULTILINE,
    )
    cells = [cell.strip() for cell in row[1].split("|")] if row else []
    return {name: float(cell) for name, cell in zip(PUBLISHED, cells, strict=False) if cell != "-"}


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
