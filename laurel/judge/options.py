"""The options of a judge: one YAML file, `judge.yaml`, checked before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from laurel.core.config import build_config
from laurel.core.errors import UsageError
from laurel.core.files import read_yaml
from laurel.core.http import KEY, check_urls
from laurel.core.options import Options, option

PATHS = ("prompt", "cache")
"""Options that may name a file beside the YAML file."""


class Criterion(Options):
    """A criterion of a rubric: a question about the response that is answered yes, no or n/a."""

    name: str = option(..., "its name in the results", min_length=1)
    question: str = option(..., "what is asked of the response", min_length=1)
    weight: float = option(1.0, "what a yes counts; below 0: a yes is a fault", allow_inf_nan=False)


class JudgeConfig(Options):
    """Everything a judge can be told."""

    model: str = option(
        "", "the model's name on the server, or the folder of a model that is served here"
    )
    url: str | None = option(
        None, "an OpenAI-compatible server; none: `model` is a folder, and a server is started"
    )
    api: Literal["chat", "completions"] = option(
        "chat", "chat, or completions for a base model without a chat template"
    )
    system_role: bool = option(
        True, "with chat: instructions as a system message; false: before the user's text"
    )
    api_key: str = option(KEY, "the environment variable that holds the server's key")

    form: Literal["pair", "levels", "score", "rubric"] = option(
        "pair",
        "pair: A or B; levels: the annotators' four levels; score: a number; rubric: criteria",
        group="what is asked",
    )
    prompt: str | None = option(
        None, "a prompt of laurel's or a YAML file of your own; default: the one of the form"
    )
    ties: bool = option(True, "may a pair be called a tie?")
    reasoning: bool = option(False, "let the judge reason before its verdict")
    orders: Literal["both", "one"] = option("both", "ask of a pair in both orders, or as stored")
    scale: list[int] = option([1, 10], "of a score: the lowest and the highest number")
    criteria: list[Criterion] = option([], "of a rubric: name, question, weight")
    reference: str | None = option(None, "the column of a reference answer that the judge is shown")
    panel: list[str] = option([], "judge files that vote, in place of a model", max_length=32)

    label: Literal["text", "logprobs", "samples"] = option(
        "text",
        "how sure: text (not asked), logprobs (of the labels; samples where the server has none),"
        " samples (the share of num_samples answers)",
        group="how it is asked",
    )
    num_samples: int = option(8, "answers drawn where label is samples", ge=2, le=256)
    least_mass: float = option(
        0.01, "with logprobs: labels with less probability in all are no answer", ge=0, le=1
    )
    temperature: float | None = option(None, "default: 0, and 1 for samples", ge=0)
    max_tokens: int | None = option(None, "of an answer; default: 1024 to reason, else 8", ge=1)
    seed: int = option(0, "of what is drawn", ge=0)
    extra_body: dict[str, Any] = option({}, "more fields of each request, for this server")

    concurrency: int = option(8, "questions on their way at once", ge=1, le=1024, group="the wire")
    requests_per_minute: float | None = option(None, "questions begun in a minute at most", gt=0)
    timeout: float = option(120.0, "seconds for an answer", gt=0)
    retries: int = option(3, "how often a question is asked again that got no answer", ge=0)
    patience: float = option(120.0, "seconds to wait for a server that is down", ge=0)
    cache: str | None = option(
        None, "a file that keeps every answer; default: beside the results, none for a reward"
    )
    price: list[float] | None = option(
        None, "money for a million tokens read and written, such as [2.5, 10]"
    )

    max_pairs: int = option(
        0,
        "as a reward: pairs asked of each answer; 0: all of its prompt",
        ge=0,
        group="as a reward",
    )
    against: str | None = option(
        None, "as a reward: the column with an answer that each is compared with"
    )

    folder: str = Field(default="", exclude=True)

    @property
    def name(self) -> str:
        """What its verdicts are filed under: of a run's `model` the run's name."""
        if self.url is not None:
            return self.model
        path = Path(self.model)
        return path.parent.name if path.name == "model" else path.name

    @property
    def compares(self) -> bool:
        """Is it asked about pairs?"""
        return self.form in ("pair", "levels")

    @property
    def answer_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_tokens or (1024 if self.reasoning else 8)

    @property
    def heat(self) -> float:
        """The temperature of the answers."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.label == "samples" else 0.0


def read_judge(path: str | Path, changes: Mapping[str, Any] | None = None) -> JudgeConfig:
    """The judge in a YAML file; `changes` win over it.

    Paths in it are relative to it. Errors: UsageError naming file and option.
    """
    if not Path(path).is_file():
        raise UsageError("there is no such file.", where=f"judge {path}", fix="Write judge.yaml.")
    return make_judge({**read_yaml(path), **(changes or {})}, str(path))


def judges_pairs(config: JudgeConfig) -> bool:
    """Is it asked about pairs? A panel's judges must be of one kind: UsageError."""
    kinds = {read_judge(path).compares for path in config.panel} or {config.compares}
    if len(kinds) > 1:
        fix = "Take judges of pairs, or of single responses."
        raise UsageError("its judges judge different things.", where="panel", fix=fix)
    return kinds.pop()


def files_of(path: str | Path) -> list[Path]:
    """The files that a judge is made of: its own, its prompt, and those of its panel."""
    config = read_judge(path)
    prompts = [Path(config.prompt)] if config.prompt and Path(config.prompt).is_file() else []
    return [Path(path), *prompts, *(file for name in config.panel for file in files_of(name))]


def make_judge(values: Mapping[str, Any], where: str) -> JudgeConfig:
    """The judge with these options, checked. where: a file that paths are relative to."""
    root = Path(where).parent
    given = dict(values)
    for name in PATHS:
        if isinstance(given.get(name), str) and (root / given[name]).exists():
            given[name] = str(root / given[name])
    if isinstance(given.get("panel"), list):
        names = cast("list[Any]", given["panel"])
        given["panel"] = [str(root / str(name)) for name in names]
    model = given.get("model")
    if given.get("url") is None and model and (root / str(model)).is_dir():
        given["model"] = str(root / str(model))
    config = build_config(given, JudgeConfig, where=where)
    check_judge(config, where)
    return config


def check_judge(config: JudgeConfig, where: str) -> None:
    """UsageError for options that do not go together."""
    problem = problem_of(config)
    if problem:
        raise UsageError(problem[0], where=f"{where}, {problem[1]}", fix=problem[2])
    if config.url is not None:
        check_urls([config.url], "url")
    elif not config.panel and not Path(config.model).is_dir():
        fix = "Give url: http://HOST:PORT, or the folder of a model."
        raise UsageError(f"`{config.model}` is no folder.", where=f"{where}, model", fix=fix)


def problem_of(config: JudgeConfig) -> tuple[str, str, str] | None:
    """(what, option, fix) of the first thing that is wrong, if there is one."""
    if config.panel and (config.model or config.url):
        return "a panel has judges of its own.", "panel", "Leave model and url out."
    if not config.panel and not config.model:
        return "no model is named.", "model", "Name a model of the server, or a folder."
    if config.form == "rubric" and not config.criteria:
        return "a rubric needs criteria.", "criteria", "Give name, question and weight of each."
    if config.form == "rubric" and all(one.weight <= 0 for one in config.criteria):
        return "no criterion can be gained.", "criteria", "Give one a weight above 0."
    if config.form != "rubric" and config.criteria:
        return "criteria belong to a rubric.", "criteria", "Take form: rubric."
    if config.form == "score" and config.label == "logprobs" and config.scale[-1] > 9:
        return "numbers above 9 are no single tokens.", "scale", "Such as [1, 9], or label: text."
    names = [one.name for one in config.criteria]
    if len(set(names)) != len(names):
        return "two criteria have one name.", "criteria", "Name each differently."
    if len(config.scale) != 2 or config.scale[0] >= config.scale[1]:
        return "a scale is [lowest, highest].", "scale", "Such as [1, 10]."
    if config.price is not None and (len(config.price) != 2 or min(config.price) < 0):
        return "a price is [of tokens read, of tokens written].", "price", "Such as [2.5, 10]."
    return None
