"""The options of `laurel choose`."""

from __future__ import annotations

from typing import Literal

from laurel.core.http import KEY
from laurel.core.options import Options, option


class ChooseConfig(Options):
    """Everything `laurel choose` can be told."""

    pool: str | None = option(
        None,
        "answers that are there: rows with `responses`, samples.jsonl of a run; default: they are"
        " drawn",
        group="answers",
    )
    model: str = option(
        "starter", "a folder or hub name of a causal LM, or with url the model's name there"
    )
    url: str | None = option(None, "an OpenAI-compatible server that draws the answers")
    api: Literal["chat", "completions"] = option(
        "completions", "of the server: texts go to completions, messages to chat"
    )
    api_key: str = option(KEY, "the environment variable that holds the server's key")
    concurrency: int = option(16, "questions on their way to a server at once", ge=1)
    timeout: float = option(300.0, "seconds for an answer of a server", gt=0)

    dataset: str = option(
        "addition", "files, a folder, a hub name, or a generated task", group="questions"
    )
    dataset_split: str = option("test", "the split of a hub dataset or of a folder")
    dataset_size: int = option(500, "rows to generate, for a generated task", ge=1)
    limit: int = option(0, "the first so many questions; 0: all", ge=0)
    seed: int = option(1_000_000, "of generated rows and of sampling", ge=0)

    num_generations: int = option(
        16, "answers to a question, at most", ge=1, le=4096, group="drawing"
    )
    max_completion_length: int = option(256, "tokens of an answer", ge=1)
    temperature: float = option(1.0, "of the answers", gt=0)
    top_p: float = option(1.0, "keep the likeliest tokens that hold this much", gt=0, le=1)
    top_k: int = option(0, "keep the k likeliest tokens; 0: all", ge=0)
    stop: list[str] = option([], "strings that end an answer")

    scorers: list[str] = option(
        [],
        "by what answers are scored: model:FOLDER, prm:FOLDER, judge:FILE.yaml, a verifier,"
        " file.py:function",
        group="choosing",
    )
    kind: Literal["auto", "number", "math", "choice", "text"] = option(
        "auto", "when two answers are one vote; auto: by the row's gold answer, else as text"
    )
    weigh: Literal["none", "likelihood", "score"] = option(
        "none", "what a vote counts: 1, its likelihood per token, or the first scorer's score"
    )
    adaptive: bool = option(
        False, "stop drawing once the choice is sure, or cannot change, or is not worth more"
    )
    alpha: float = option(
        0.05,
        "with adaptive votes: the chance that the leader is not the most likely answer, however"
        " often one looks",
        gt=0,
        lt=1,
    )
    give_up: bool = option(
        False,
        "with adaptive votes: stop, too, where the leader cannot be announced any more, even if all"
        " answers that are left were for it",
    )
    worth: float = option(
        0.0,
        "with adaptive best-of-n: stop where one more answer is expected to raise the score by"
        " less",
        ge=0,
    )
    bar: float | None = option(
        None, "rejection sampling: take the first answer whose score reaches this"
    )
    rewards: list[str] | None = option(
        None, "what is right: a reward of 1 or more; default: the dataset's own verifier, if any"
    )
    k: list[int] = option([], "the k of curves; default: 1, 2, 4, ... and all")
    reward_timeout: float = option(600.0, "seconds that scoring a step may take", gt=0)

    output_dir: str = option("runs/choose", "answers, choices, figures", group="where")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "compute precision")
    num_threads: int = option(0, "CPU threads; 0: by rule", ge=0)
    chat_template: str | None = option(None, "a file with a Jinja chat template")
