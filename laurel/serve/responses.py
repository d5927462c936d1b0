"""From the events of the engine to what OpenAI's and vLLM's clients read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from laurel.core.sample import Completion
from laurel.fast.decode import TokenLogprobs
from laurel.serve.engine import Done, Drawn, Span
from laurel.serve.prepare import PreparedRequest

Json = dict[str, Any]
LEAST = -9999.0
"""What JSON has for minus infinity, as OpenAI writes it."""


@dataclass
class TextStream:
    """Text of a choice as its tokens come, without the beginning of a character or a stop string.

    ids: what was drawn; read, shown: tokens whose text is known, and the first of those that the
    next ones are decoded with; text: all of it; sent: the characters that were given out.
    """

    tokenizer: Any
    stop: tuple[str, ...] = ()
    skip_special: bool = True
    ids: list[int] = field(default_factory=list[int])
    shown: int = 0
    read: int = 0
    text: str = ""
    sent: int = 0

    def add(self, ids: Sequence[int]) -> str:
        """The text that is certain with these tokens and was not given out before."""
        self.ids += ids
        before = self.decode(self.ids[self.shown : self.read])
        whole = self.decode(self.ids[self.shown :])
        if len(whole) > len(before) and not whole.endswith("\ufffd"):
            self.text += whole[len(before) :]
            self.shown, self.read = self.read, len(self.ids)
        # what could be the beginning of a stop string waits
        spare = max((len(one) for one in self.stop), default=1) - 1
        return self.give(len(self.text) - spare)

    def end(self, text: str) -> str:
        """The rest of the text, which is known now."""
        self.text = text
        return self.give(len(text))

    def give(self, end: int) -> str:
        """The characters up to `end` that were not given out."""
        found = self.text[self.sent : max(end, self.sent)]
        self.sent += len(found)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=self.skip_special)


@dataclass(frozen=True)
class ResponseBuilder:
    """The answer to one request: `chat` is `/v1/chat/completions`, else `/v1/completions`."""

    asked: PreparedRequest
    tokenizer: Any
    model: str
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, done: Sequence[Done], prompt_logps: Sequence[Any] | None) -> Json:
        """All choices, and the numbers of tokens."""
        choices = list[Json]()
        for index in range(self.asked.count):
            prompt = index // self.asked.body.n
            own = prompt_logps[prompt] if prompt_logps else None
            choices.append(self.choice(index, done[index] if done else None, own))
        drawn = sum(len(one.completion.ids) for one in done)
        return {**self.head(chunk=False), "choices": choices, "usage": self.usage(drawn)}

    def head(self, *, chunk: bool) -> Json:
        """What every object of the answer begins with."""
        kind = ("chat.completion" + ".chunk" * chunk) if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def usage(self, drawn: int) -> Json:
        """Numbers of tokens: a prompt counts once, however many choices it has."""
        read = sum(map(len, self.asked.prompts))
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    def text_of(self, completion: Completion) -> tuple[str, str | None]:
        """The text of a completion, and the stop string that ended it.

        Without that string, unless the request says otherwise.
        """
        body = self.asked.body
        text = self.tokenizer.decode(
            list(completion.spoken), skip_special_tokens=body.skip_special_tokens
        )
        if completion.finish != "stop":
            return text, None
        found = {one: text.find(one) for one in body.stops if one in text}
        if not found:
            return text, body.stops[0]
        stop = min(found, key=lambda one: found[one])
        end = found[stop] + (len(stop) if body.include_stop_str_in_output else 0)
        return text[:end], stop

    def choice(self, index: int, done: Done | None, prompt_logps: Any) -> Json:
        """A choice of a whole answer; without `done` it is the prompt alone."""
        body, prompt = self.asked.body, self.asked.prompts[index // self.asked.body.n]
        text, stop = self.text_of(done.completion) if done else ("", None)
        before = self.tokenizer.decode(list(prompt), skip_special_tokens=True) if body.echo else ""
        found = self.ending(index, done, stop)
        found["logprobs"] = self.logprobs(done, prompt if body.echo else (), prompt_logps)
        if self.chat:
            found["message"] = {"role": "assistant", "content": before + text}
        else:
            found["text"] = before + text
        if body.return_token_ids:
            found["token_ids"] = list(done.completion.ids) if done else []
            found["prompt_token_ids"] = list(prompt)
        if body.prompt_logprobs is not None:
            found["prompt_logprobs"] = self.prompt_logprobs(prompt, prompt_logps)
        return found

    def ending(self, index: int, done: Done | None, stop: str | None) -> Json:
        """How a choice ended, and the weights that it was drawn under."""
        finish = done.completion.finish if done else "length"
        spans: list[Span] = done.spans if done else []
        return {
            "index": index,
            "finish_reason": "length" if finish == "length" else "stop",
            "stop_reason": stop,
            "finish_reason_detail": finish,
            "weight_versions": [span._asdict() for span in spans],
        }

    def logprobs(self, done: Done | None, prompt: Sequence[int], prompt_logps: Any) -> Json | None:
        """Log-probabilities of the tokens, where they are asked for."""
        if self.asked.logprobs is None:
            return None
        ids = list(done.completion.ids) if done else []
        logps = list(done.completion.logps) if done else []
        notes = done.notes if done else []
        if self.chat:
            return {"content": self.chat_tokens(ids, logps, notes)}
        front = [(None, {}), *prompt_logps] if prompt and prompt_logps is not None else []
        return self.token_columns(
            [*prompt, *ids],
            [*(own for own, _ in front), *logps],
            [*(note for _, note in front), *(notes or [{}] * len(ids))],
        )

    def token_columns(
        self, ids: list[int], logps: list[float | None], notes: list[TokenLogprobs]
    ) -> Json:
        """OpenAI's columns of a completion: tokens, log-probabilities, likeliest, places."""
        tokens = [self.token(one) for one in ids]
        offsets, place = list[int](), 0
        for token in tokens:
            offsets.append(place)
            place += len(token)
        top = list[Json | None]()
        for one, logp, note in zip(ids, logps, notes, strict=True):
            seen = note if logp is None else {**note, one: logp}
            top.append({self.token(i): finite(value) for i, value in seen.items()} or None)
        return {
            "tokens": tokens,
            "token_logprobs": [None if logp is None else finite(logp) for logp in logps],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def chat_tokens(
        self, ids: Sequence[int], logps: Sequence[float], notes: Sequence[TokenLogprobs]
    ) -> list[Json]:
        """OpenAI's rows of a chat: each token with its bytes, and the likeliest in its place."""
        found = list[Json]()
        for i, (one, logp) in enumerate(zip(ids, logps, strict=True)):
            note = notes[i] if notes else {}
            likeliest = [self.chat_token(other, value) for other, value in note.items()]
            found.append({**self.chat_token(one, logp), "top_logprobs": likeliest})
        return found

    def chat_token(self, one: int, logp: float) -> Json:
        """A token with its log-probability and its bytes."""
        token = self.token(one)
        return {"token": token, "logprob": finite(logp), "bytes": list(token.encode())}

    def token(self, one: int) -> str:
        """A token as text."""
        return self.tokenizer.decode([one])

    def prompt_logprobs(self, prompt: Sequence[int], prompt_logps: Any) -> list[Json | None]:
        """vLLM's rows of a prompt: none of the first token, then id -> log-probability."""
        found: list[Json | None] = [None]
        for one, (own, note) in zip(prompt[1:], prompt_logps, strict=True):
            row = {**note, one: own}
            found.append(
                {
                    str(i): {"logprob": finite(value), "decoded_token": self.token(i)}
                    for i, value in row.items()
                }
            )
        return found

    # streams

    def opening(self, index: int) -> Json:
        """The first chunk of a chat's choice: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk({"index": index, "delta": delta, "finish_reason": None})

    def piece(self, event: Drawn, text: str) -> Json:
        """A chunk with what was drawn."""
        return self.chunk(self.part(event.choice, text, event.ids, event.logps, event.notes))

    def last_piece(self, done: Done, text: str, sent: int) -> Json:
        """The last chunk of a choice: `sent` of its tokens were in chunks before."""
        completion = done.completion
        _, stop = self.text_of(completion)
        ids, logps = list(completion.ids[sent:]), list(completion.logps[sent:])
        part = self.part(done.choice, text, ids, logps, done.notes[sent:])
        return self.chunk({**part, **self.ending(done.choice, done, stop)})

    def part(
        self,
        index: int,
        text: str,
        ids: list[int],
        logps: Sequence[float],
        notes: Sequence[TokenLogprobs],
    ) -> Json:
        """What a chunk says of a choice."""
        found: Json = {"index": index, "finish_reason": None, "logprobs": None}
        if self.chat:
            found["delta"] = {"content": text}
        else:
            found["text"] = text
        if self.asked.logprobs is not None:
            if self.chat:
                found["logprobs"] = {"content": self.chat_tokens(ids, logps, notes)}
            else:
                given = list(notes) or [dict[int, float]() for _ in ids]
                found["logprobs"] = self.token_columns(ids, list(logps), given)
        if self.asked.body.return_token_ids:
            found["token_ids"] = ids
        return found

    def chunk(self, choice: Json) -> Json:
        """One object of a stream."""
        return {**self.head(chunk=True), "choices": [choice]}


def finite(logp: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logp, LEAST)
