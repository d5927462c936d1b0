"""x ~ policy in a world, in many turns.

Tokens of the world are attended to and never trained on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from laurel.core.bound_objects import bound_object, refuse_unbound
from laurel.core.errors import LaurelError, UsageError, nearest
from laurel.core.load import load_file
from laurel.core.protocols import Env, Generator
from laurel.core.result import ENVIRONMENT, Failed
from laurel.core.sample import Draw, Finish, Group, Key, Message, Sample
from laurel.data.formats import is_messages
from laurel.data.source import Row
from laurel.model.chat import encode_prompt, encode_reply
from laurel.rollout.calculator import Calculator

ENVS: dict[str, Callable[[], Env]] = {"calculator": Calculator}


class EnvError(LaurelError):
    """The world's own code raised, or answered with something that is no reply."""


@dataclass
class _Episode:
    """One sample while it grows.

    Ids are only ever appended: what was sampled is never tokenised again.

    `broken` says how its environment failed ("" where it did not): then it has no world any more,
    and ends with the policy's turn.
    """

    env: Env | None
    key: Key
    prompt_ids: tuple[int, ...]
    messages: list[Message]
    plain: bool
    tools: Any = None
    ids: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])
    mask: list[bool] = field(default_factory=list[bool])
    turns: list[Message] = field(default_factory=list[Message])
    finish: Finish = "length"
    open: bool = True
    broken: str = ""

    def speak(self, ids: Sequence[int], logps: Sequence[float], text: str, finish: Finish) -> None:
        """The policy's turn."""
        self.ids += ids
        self.logps += logps
        self.mask += [True] * len(ids)
        self.turns.append(Message(role="assistant", content=text))
        self.finish = finish

    def hear(self, tokenizer: Any, limit: int) -> None:
        """The world's turn: its reply is appended as context, or the episode ends.

        A reply that leaves no room ends it as `length`.
        """
        try:
            reply = (
                ask_env(self.env.step, self.turns[-1]["content"], self.key)
                if self.env is not None
                else None
            )
        except EnvError as error:
            self.broken, reply = str(error), None
        if reply is None:
            self.open = False
            return
        messages = (
            "".join(turn["content"] for turn in self.turns)
            if self.plain
            else [*self.messages, *self.turns]
        )
        ids = encode_reply(tokenizer, messages, reply, sampled=self.ids, tools=self.tools)
        if len(self.ids) + len(ids) >= limit:
            self.open, self.finish = False, "length"
            return
        self.ids += ids
        self.logps += [0.0] * len(ids)
        self.mask += [False] * len(ids)
        self.turns += reply


def load_env(name: str) -> Callable[[], Env]:
    """A way to make environments: a name, or file.py:Class.

    Checked before any weight is loaded; what is wrong is a UsageError.
    """
    if name in ENVS:
        return ENVS[name]
    where = f"env={name}"
    make, attribute, known = (
        (own, name, list[str]())
        if (own := bound_object(name)) is not None
        else named_env(name, where)
    )
    kind = make.func if isinstance(make, functools.partial) else make
    if not isinstance(kind, type) or not all(
        callable(getattr(kind, method, None)) for method in ("reset", "step")
    ):
        raise UsageError(
            f"`{attribute}` is no class with reset(row) and step(text).",
            where=where,
            fix=nearest(attribute, known),
        )
    try:
        inspect.signature(cast("Callable[[], Env]", make)).bind()
    except TypeError as error:
        what = f"`{attribute}` cannot be made without arguments: {error}."
        raise UsageError(
            what, where=where, fix="Give them defaults; the row comes with reset(row)."
        ) from None
    return cast("Callable[[], Env]", make)


def named_env(name: str, where: str) -> tuple[Any, str, list[str]]:
    """What `file.py:Class` names, the name of the class, and the classes that the file has."""
    refuse_unbound(name, "env")
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise UsageError(
            f"unknown environment `{name}`.",
            where="env",
            fix=f"{nearest(name, ENVS)} Or give file.py:Class.",
        )
    module = load_file(path, where)
    members = cast("dict[str, Any]", vars(module))
    known = [
        key
        for key, value in members.items()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return getattr(module, attribute, None), attribute, known


def ask_env(method: Callable[[Any], Any], argument: Any, key: Key) -> list[Message] | None:
    """What an environment's reset or step answers, copied.

    Anything but messages or None is an error that names the prompt.
    """
    reply = call_environment(method, argument, key=key)
    if reply is None:
        return None
    if reply != [] and not is_messages(reply):
        raise EnvError(
            f"returned {reply!r:.80}, not a list of messages with role and content.",
            where=error_place(method, key),
        )
    return [Message(**message) for message in reply]


def call_environment(function: Callable[..., Any], *arguments: Any, key: Key) -> Any:
    """The world's own code, run. What it raises becomes an error that names the prompt."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise EnvError(
            f"raised {type(error).__name__}: {error}.", where=error_place(function, key)
        ) from error


def error_place(function: Callable[..., Any], key: Key) -> str:
    """How errors of an environment call the episode, and what of the environment was running."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"{key.source} (prompt {key.prompt}, sample {key.sample}), environment, {name}"


def begin_episode(
    tokenizer: Any, row: Row, draw: Draw, g: int, make_env: Callable[[], Env]
) -> _Episode:
    """The episode of sample g of a row: its prompt, and what the environment adds to it."""
    prompt, key = row.columns["prompt"], Key(draw.run, row.where, row.id, g, draw.step)
    env, opening, broken = None, list[Message](), ""
    try:
        env = call_environment(make_env, key=key)
        opening = ask_env(env.reset, row.columns, key) or []
    except EnvError as error:
        env, broken = None, str(error)
    if isinstance(prompt, str):
        ids = encode_prompt(tokenizer, prompt + "".join(message["content"] for message in opening))
        return _Episode(env, key, ids, opening, plain=True, broken=broken)
    messages, tools = [*prompt, *opening], row.columns.get("tools")
    ids = encode_prompt(tokenizer, messages, tools=tools)
    return _Episode(env, key, ids, messages, plain=False, tools=tools, broken=broken)


def play(
    generator: Generator,
    rows: Sequence[Row],
    draw: Draw,
    make_env: Callable[[], Env],
    max_turns: int,
) -> list[Group]:
    """One group per row: `num_generations` episodes of at most `max_turns` turns of the policy.

    max_completion_length counts all tokens behind the prompt, the world's too. `finish` is that of
    the last turn, and `length` where the reply to it would leave no room for another. A
    conversational prompt is continued through the chat template; after a plain-text prompt, turns
    and replies follow each other as text (use `stop` to end a turn).

    A group in which an environment failed is played once more, all of it (the same seeds, new
    environments). If one fails again, the group has failed: its samples end as `error`, and their
    result is `Failed` with what was raised.
    """
    groups, broken = play_once(generator, rows, draw, make_env, max_turns)
    if not broken:
        return groups
    again, still = play_once(generator, [rows[i] for i in broken], draw, make_env, max_turns)
    for n, i in enumerate(broken):
        groups[i] = failed_group(again[n], still[n]) if n in still else again[n]
    return groups


def failed_group(group: Group, reason: str) -> Group:
    """The group with samples that end as `error`, because its environment failed."""
    samples = tuple(replace(sample, finish="error") for sample in group.samples)
    return replace(group, samples=samples, results={ENVIRONMENT: (Failed(reason),) * len(samples)})


def play_once(
    generator: Generator,
    rows: Sequence[Row],
    draw: Draw,
    make_env: Callable[[], Env],
    max_turns: int,
) -> tuple[list[Group], dict[int, str]]:
    """Every row played once; and the message of the first failed environment of a row, by row."""
    count, tokenizer = draw.num_generations, generator.tokenizer
    episodes = [
        begin_episode(tokenizer, row, draw, g, make_env) for row in rows for g in range(count)
    ]
    for turn in range(max_turns):
        seeds = draw.seeds_of([row.id for row in rows], turn)
        live = [(e, seed) for e, seed in zip(episodes, seeds, strict=True) if e.open]
        if not live:
            break
        # in the first turn a prompt's samples share it, where no environment added anything
        shared = turn == 0 and all(
            e.prompt_ids == episodes[i - i % count].prompt_ids for i, e in enumerate(episodes)
        )
        take_turn(generator, draw, live, count if shared else 1, last=turn + 1 == max_turns)
    broken: dict[int, str] = {}
    for n, episode in enumerate(episodes):
        if episode.broken:
            broken.setdefault(n // count, episode.broken)
    return gather(rows, episodes, draw, tokenizer), broken


def take_turn(
    generator: Generator,
    draw: Draw,
    live: Sequence[tuple[_Episode, int]],
    share: int,
    *,
    last: bool,
) -> None:
    """One turn of the policy in every open episode, each with its seed, and the worlds' replies.

    share: how many consecutive episodes have one prompt. last: no turn comes after it.
    """
    limit, tokenizer = draw.max_completion_length, generator.tokenizer
    prompts = [(*e.prompt_ids, *e.ids) for e, _ in live[::share]]
    seeds = tuple(seed for _, seed in live)
    limits = tuple(limit - len(e.ids) for e, _ in live)
    done = generator.generate(prompts, replace(draw, seeds=seeds, limits=limits))
    texts = tokenizer.batch_decode([c.spoken for c in done], skip_special_tokens=True)
    for (episode, _), completion, text in zip(live, done, texts, strict=True):
        episode.speak(completion.ids, completion.logps, text, completion.finish)
        if completion.finish == "length" or last or episode.broken:
            episode.open = False
        else:
            episode.hear(tokenizer, limit)


def gather(
    rows: Sequence[Row], episodes: Sequence[_Episode], draw: Draw, tokenizer: Any
) -> list[Group]:
    """Finished episodes as groups, in the order of the rows."""
    texts = tokenizer.batch_decode([e.ids for e in episodes], skip_special_tokens=True)
    samples = [
        Sample(
            e.key,
            e.prompt_ids,
            tuple(e.ids),
            tuple(e.logps),
            tuple(e.mask),
            draw.temperature,
            e.finish,
            text,
            tuple(e.turns),
        )
        for e, text in zip(episodes, texts, strict=True)
    ]
    count = draw.num_generations
    return [
        Group(row.id, row.columns, tuple(samples[i * count : (i + 1) * count]))
        for i, row in enumerate(rows)
    ]
