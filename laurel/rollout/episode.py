"""x ~ policy in a world: many turns, where tokens of the world are attended to and never trained on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from laurel.core.errors import LaurelError, UsageError, nearest
from laurel.core.protocols import Env
from laurel.core.sample import Finish, Group, Key, Message, Sample
from laurel.data.source import Row
from laurel.policy.chat import encode_prompt, encode_reply
from laurel.policy.model import Policy
from laurel.policy.sampler import sample
from laurel.rollout.calculator import Calculator
from laurel.rollout.single import Draw

ENVS: dict[str, Callable[[], Env]] = {"calculator": Calculator}


@dataclass
class _Episode:
    """One sample while it grows. Ids are only ever appended: what was sampled is never tokenised again."""

    env: Env
    key: Key
    prompt_ids: tuple[int, ...]
    said: list[Message]
    plain: bool
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    finish: Finish = "length"
    open: bool = True

    def speak(self, ids: Sequence[int], logps: Sequence[float], text: str, finish: Finish) -> None:
        """The policy's turn."""
        self.ids += ids
        self.logps += logps
        self.mask += [True] * len(ids)
        self.turns.append(Message(role="assistant", content=text))
        self.finish = finish

    def hear(self, tokenizer, limit: int) -> None:
        """The world's turn: its reply is appended as context, or the episode ends."""
        try:
            reply = self.env.step(self.turns[-1]["content"])
        except Exception as error:
            raise LaurelError(f"the environment raised {type(error).__name__}: {error}", where=f"prompt {self.key.prompt}") from error
        if reply is None:
            self.open = False
            return
        said = "".join(turn["content"] for turn in self.turns) if self.plain else [*self.said, *self.turns]
        ids = encode_reply(tokenizer, said, reply, sampled=self.ids)
        if len(self.ids) + len(ids) >= limit:
            self.open, self.finish = False, "length"
            return
        self.ids += ids
        self.logps += [0.0] * len(ids)
        self.mask += [False] * len(ids)
        self.turns += reply


def load_env(name: str) -> Callable[[], Env]:
    """A way to make environments: a name, or file.py:Class. Checked before any weight is loaded."""
    if name in ENVS:
        return ENVS[name]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise UsageError(f"unknown environment `{name}`.", where="env", fix=f"{nearest(name, ENVS)} Or give file.py:Class.")
    if not Path(path).is_file():
        raise UsageError("no such file.", where=f"env={name}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, attribute, None)
    if make is None or not all(hasattr(make, method) for method in ("reset", "step")):
        raise UsageError(f"`{attribute}` is no class with reset(row) and step(text).", where=f"env={name}")
    return make


def play(policy: Policy, rows: Sequence[Row], draw: Draw, make_env: Callable[[], Env], max_turns: int) -> list[Group]:
    """One group per row: `num_generations` episodes of at most `max_turns` policy turns and max_completion_length tokens.

    A conversational prompt is continued through the chat template; after a plain-text prompt, turns and replies follow each
    other as text (use `stop` to end a turn).
    """
    tokenizer, limit = policy.tokenizer, draw.max_completion_length
    episodes: list[_Episode] = []
    for row in rows:
        for g in range(draw.num_generations):
            env = make_env()
            prompt = row.columns["prompt"]
            opening = env.reset(row.columns)
            plain = isinstance(prompt, str)
            said = opening if plain else [*prompt, *opening]
            ids = encode_prompt(tokenizer, prompt + "".join(m["content"] for m in opening) if plain else said)
            episodes.append(_Episode(env, Key(draw.run, row.where, row.id, g, draw.step), ids, said, plain))
    for turn in range(max_turns):
        seeds = dict(zip((e.key for e in episodes), draw.seeds(rows, turn), strict=True))
        live = [e for e in episodes if e.open]
        if not live:
            break
        done = sample(
            policy, [(*e.prompt_ids, *e.ids) for e in live], seeds=[seeds[e.key] for e in live],
            max_completion_length=[limit - len(e.ids) for e in live], temperature=draw.temperature, stop=draw.stop, top_k=draw.top_k, top_p=draw.top_p,
        )  # fmt: skip
        texts = tokenizer.batch_decode([c.ids for c in done], skip_special_tokens=True)
        for episode, completion, text in zip(live, done, texts, strict=True):
            episode.speak(completion.ids, completion.logps, text, completion.finish)
            if completion.finish == "length" or turn + 1 == max_turns:
                episode.open = False
            else:
                episode.hear(tokenizer, limit)
    return gather(rows, episodes, draw, tokenizer)


def gather(rows: Sequence[Row], episodes: Sequence[_Episode], draw: Draw, tokenizer) -> list[Group]:
    """Finished episodes as groups, in the order of the rows."""
    texts = tokenizer.batch_decode([e.ids for e in episodes], skip_special_tokens=True)
    samples = [
        Sample(e.key, e.prompt_ids, tuple(e.ids), tuple(e.logps), tuple(e.mask), draw.temperature, e.finish, text, tuple(e.turns))
        for e, text in zip(episodes, texts, strict=True)
    ]
    count = draw.num_generations
    return [Group(row.id, row.columns, tuple(samples[i * count : (i + 1) * count])) for i, row in enumerate(rows)]
