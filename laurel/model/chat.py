"""Prompts, replies and supervised rows -> token ids, with the spans that are trained on. Sampled
ids are never made anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from laurel.core.errors import UsageError
from laurel.core.sample import Message
from laurel.model.render import Span, Tools, around, ensure_template, named, opened, turn_spans
from laurel.model.shown import REMEDY, exchanged, stands_in, written
from laurel.model.turns import CALL, TEXT, as_tools, flag, marked_as_trained, spoken

__all__ = [
    "Span",
    "Supervised",
    "encode_after",
    "encode_prompt",
    "encode_reply",
    "encode_supervised",
    "ensure_template",
]

TrainOn = Literal["assistant", "last", "completion", "all", "no_tags"]
VARIANTS: dict[
    str, tuple[str, ...]
] = {  # the kinds of row, and what can be trained on in each; the first is the default
    "messages": ("assistant", "last", "all", "no_tags"),
    "prompt and completion as messages": ("completion", "assistant", "last", "all", "no_tags"),
    "prompt and completion": ("completion", "all"),
    "text": ("all",),
}
ANCHORS = ("a", "\n", ".", ":", "1", ")")
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Supervised:
    """A row to imitate. mask[i]: is ids[i] a target? Never the first: nothing predicts it.

    `text` is the whole row as text; `spans` are its stretches that are trained on. With max_length,
    ids and mask are cut, and `cut` says so. `left_out` names what of the row the chat template does
    not show, though the row can be trained on.
    """

    ids: Ids
    mask: tuple[bool, ...]
    text: str
    spans: tuple[Span, ...]
    cut: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def supervised(self) -> int:
        """The number of targets; 0 means that this row teaches nothing."""
        return sum(self.mask)


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    speaker: str = "assistant",
    tools: Any = None,
) -> Ids:
    """A prompt as ids, ready to be continued.

    A string goes through the tokenizer with its usual special tokens but never an EOS at the end;
    an empty one is BOS alone. Messages go through the chat template, which also opens the next
    turn: the assistant's, or with speaker="user" the user's, for models that have learnt to propose
    questions (train_on="no_tags"). tools: the row's column of that name, for the template. BOS
    twice is a UsageError, and so is a message whose content the template leaves out.
    """
    if isinstance(prompt, str):
        if speaker != "assistant":
            raise UsageError(
                "a plain-text prompt has no speakers.",
                where="speaker",
                fix="Give a list of messages.",
            )
        return _plain(tokenizer, prompt)
    shown = as_tools(tools)
    said = written(tokenizer, prompt, tools=shown).messages
    return _one_bos(
        tokenizer, _ids(tokenizer, opened(tokenizer, said, speaker, tools=shown)), named(tokenizer)
    )


def encode_reply(
    tokenizer: Any,
    before: str | Sequence[Message],
    reply: Sequence[Message],
    *,
    sampled: Sequence[int],
    tools: Any = None,
) -> Ids:
    """The ids that the world's reply adds behind the policy's turn: what closes that turn, the
    reply, the next turn's header.

    before: the conversation so far; its last message is the policy's turn as text. sampled: the ids
    of that turn (or of the episode); if they end with the template's closing token it is not
    written twice. With a string `before` (plain-text episodes) the reply's contents are encoded as
    they are. So prompt ids + sampled ids + these ids are what the template would render, wherever
    the sampled ids are. A reply that the template leaves out is a UsageError.
    """
    if isinstance(before, str):
        return encode_after(tokenizer, "".join(message["content"] for message in reply), before)
    last = len(before) - 1
    if last < 0 or before[last]["role"] != "assistant":
        raise UsageError("a reply follows a turn of the assistant.", where="encode_reply")
    said, added, tools = (
        [spoken(message) for message in before],
        [spoken(message) for message in reply],
        as_tools(tools),
    )
    frame = around(tokenizer, [*said, *added], last, add_generation_prompt=True, tools=tools)
    closed = around(tokenizer, said, last, tools=tools)
    if frame is None or closed is None:
        opened(
            tokenizer, [*said, *added], tools=tools
        )  # says why, if the template refuses these roles
        raise UsageError(
            "the template does not show the policy's turn just once.",
            where=named(tokenizer),
            fix="Give --chat_template FILE.",
        )
    for piece in exchanged(added)[0]:
        if piece.kind in (TEXT, CALL) and not stands_in(piece.text, frame[1]):
            what = f"the template leaves out what the world said as {added[piece.turn]['role']}."
            raise UsageError(
                what,
                where=named(tokenizer),
                fix=REMEDY.replace("take it out of the rows", "give it another role"),
            )
    ids, sampled = encode_after(tokenizer, frame[1]), tuple(sampled)
    for closing in (closed[1], closed[1].rstrip()):
        end = encode_after(tokenizer, closing)
        if end and ids[: len(end)] == end == sampled[-len(end) :]:
            return ids[len(end) :]
    return ids


def encode_after(tokenizer: Any, text: str, before: str = "") -> Ids:
    """The ids of `text` as it stands behind other text (`before`, if known): no BOS, and no space
    put in front.

    Encoding a piece by itself makes SentencePiece-like tokenizers begin it with a space; so it is
    encoded behind some text with which it does not merge, and that text's ids are taken away.
    """
    for anchor in (before, *ANCHORS) if text else ():
        head, whole = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if head and whole[: len(head)] == head:
            return whole[len(head) :]
    return _ids(tokenizer, text)


def encode_supervised(
    tokenizer: Any,
    columns: Mapping[str, Any],
    *,
    train_on: TrainOn | str | None = None,
    max_length: int | None = None,
) -> Supervised:
    """A row with `messages`, `prompt` and `completion` (strings or messages), or `text`, as ids
    with the mask of its targets.

    train_on: `assistant` turns, the `last` of them, the `completion` column (of messages: its
    assistant turns), `all`, or
    `no_tags`: the content of every role, only headers masked. Turns include the token that closes
    them. None: completion, assistant or all, by the columns. Plain text gets one EOS at its end, a
    target. Longer rows are cut on the right. A turn's own flag (`weight` 0, `train: false`, see
    `laurel.model.turns.flag`) goes before that. The row's `tools` are shown to the template. A mask
    that does not apply to these columns is a UsageError, and so is a template that leaves out what
    would be trained on, or what it answers to.
    """
    kind = _kind(columns)
    train_on = VARIANTS[kind][0] if train_on is None else train_on
    if train_on not in VARIANTS[kind]:
        what = f"`{train_on}` does not apply to rows of {kind}."
        raise UsageError(what, where="train_on", fix=f"Choose from: {', '.join(VARIANTS[kind])}.")
    left_out: tuple[str, ...] = ()
    if kind == "text":
        ids, text = _plain(tokenizer, columns["text"]), columns["text"]
        ids, first, spans = ids[:1] + _closed(tokenizer, ids[1:]), 1, (Span("text", 0, len(text)),)
        mask = [position >= first for position in range(len(ids))]
    elif kind == "prompt and completion":
        ids, mask, text, spans = _pair(
            tokenizer, columns["prompt"], columns["completion"], train_on
        )
    else:
        past = [] if kind == "messages" else columns["prompt"]
        messages = columns["messages"] if kind == "messages" else [*past, *columns["completion"]]
        ids, mask, text, spans, left_out = _conversation(
            tokenizer, messages, len(past), train_on, as_tools(columns.get("tools"))
        )
    cut = max_length is not None and len(ids) > max_length
    return Supervised(
        tuple(ids[:max_length]), (False, *mask[1:max_length]), text, spans, cut, left_out
    )


def _kind(columns: Mapping[str, Any]) -> str:
    """Which of VARIANTS a row is."""
    if {"prompt", "completion"} <= columns.keys():
        texts = {isinstance(columns[name], str) for name in ("prompt", "completion")}
        if len(texts) > 1:
            raise UsageError(
                "prompt and completion are both text, or both messages.", where="prompt, completion"
            )
        return "prompt and completion" if texts == {True} else "prompt and completion as messages"
    if "messages" in columns or "text" in columns:
        return "messages" if "messages" in columns else "text"
    what = (
        "supervised rows need messages, prompt and completion, or text; these columns are"
        f" {', '.join(columns) or 'none'}."
    )
    raise UsageError(what, where="dataset")


def _pair(
    tokenizer: Any, prompt: str, completion: str, train_on: str
) -> tuple[Ids, list[bool], str, tuple[Span, ...]]:
    """The prompt as it is when sampled from, then the completion and one EOS. The mask is made from
    lengths.
    """
    head = _plain(tokenizer, prompt)
    tail = _closed(
        tokenizer,
        encode_after(tokenizer, completion, prompt) if prompt else _ids(tokenizer, completion),
    )
    everything = train_on == "all"
    span = Span("completion", 0 if everything else len(prompt), len(prompt) + len(completion))
    return head + tail, [everything] * len(head) + [True] * len(tail), prompt + completion, (span,)


def _conversation(
    tokenizer: Any, messages: Sequence[Message], first: int, train_on: str, tools: Tools
) -> tuple[Ids, list[bool], str, tuple[Span, ...], tuple[str, ...]]:
    """The rendered conversation, tokenised once as a whole, and its targets. `first`: where the
    completion's turns begin.
    """
    wanted, silent, notes = _chosen(messages, first, train_on)
    everything = train_on == "all"
    targets = range(len(messages)) if everything else wanted
    said, left_out = written(tokenizer, messages, targets=targets, tools=tools, tools_needed=True)
    text, spans = turn_spans(tokenizer, said, silent if everything else wanted, tools=tools)
    if not everything:
        _all_trained(
            tokenizer, messages, wanted, "".join(text[span.start : span.end] for span in spans)
        )
    ids, ranges = _token_ranges(tokenizer, text, spans)
    _one_bos(tokenizer, ids, named(tokenizer))
    mask = [everything] * len(ids)
    for start, end in ranges:
        mask[start:end] = [not everything] * (end - start)
    spans = (Span("all", 0, len(text)),) if everything else spans
    return ids, mask, text, spans, (*left_out, *notes)


def _chosen(
    messages: Sequence[Message], first: int, train_on: str
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """The turns to train on, by train_on and by their own flags; those that are told not to be; and
    flags without effect.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = {
        "assistant": turns,
        "last": turns[-1:],
        "completion": [i for i in turns if i >= first],
        "no_tags": list(range(len(messages))),
        "all": [],
    }[train_on]
    flags = {i: flag(message, i + 1) for i, message in enumerate(messages)}
    asked = [
        i for i in flags if train_on == "assistant" and flags[i] and marked_as_trained(messages[i])
    ]
    silent = [i for i in flags if flags[i] is False]
    wanted = sorted({*wanted, *asked} - {*silent})
    vain = [i for i in flags if flags[i] and i not in wanted and train_on != "all"]
    notes = dict.fromkeys(
        f"flags that ask to train on {messages[i]['role']} turns, which train_on={train_on}"
        " does not"
        for i in vain
    )
    return wanted, silent, tuple(notes)


def _all_trained(
    tokenizer: Any, messages: Sequence[Message], wanted: Sequence[int], trained: str
) -> None:
    """UsageError where a text of a target turn stands in none of the spans: {% generation %} blocks
    can be too small.
    """
    for piece in exchanged([spoken(messages[i]) for i in wanted])[0]:
        if piece.kind in (TEXT, CALL) and not stands_in(piece.text, trained):
            what = (
                f"the {piece.kind} of turn {wanted[piece.turn] + 1} is shown, but not as a part of"
                " the turn that is trained on."
            )
            raise UsageError(what, where=named(tokenizer), fix=REMEDY)


def _token_ranges(
    tokenizer: Any, text: str, spans: Sequence[Span]
) -> tuple[Ids, list[tuple[int, int]]]:
    """The ids of `text`, and for each span the tokens that start in it, as a range.

    Offsets say where tokens start, if they cover the text without a gap. Gaps mean that the
    tokenizer trims or drops characters (after a dropped one all offsets are off); then borders are
    found by encoding the text up to them.
    """
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids, offsets = tuple(encoded["input_ids"]), encoded["offset_mapping"] if fast else []
    if _cover(offsets, len(text)):
        starts = [start for start, _ in offsets]
        return ids, [
            (bisect_left(starts, span.start), bisect_left(starts, span.end)) for span in spans
        ]
    return ids, [
        (
            _tokens_before(tokenizer, text, span.start, ids),
            _tokens_before(tokenizer, text, span.end, ids),
        )
        for span in spans
    ]


def _cover(offsets: Sequence[tuple[int, int]], length: int) -> bool:
    reach = last = 0
    for start, end in offsets:
        if start > reach or start < last:
            return False
        reach, last = max(reach, end), start
    return reach == length and bool(offsets)


def _tokens_before(tokenizer: Any, text: str, border: int, ids: Ids) -> int:
    """How many tokens of `ids` (the encoding of `text`) start before a border; one that straddles
    it does.

    The fewest whose text holds all that the encoding of text[:border] holds: the two need not be
    the same tokens, since what follows can change how whitespace in front of it is cut.
    """
    head = _ids(tokenizer, text[:border]) if border < len(text) else ids
    same = next(
        (i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b),
        min(len(head), len(ids)),
    )
    if same == len(head):
        return same
    reached = _text(tokenizer, head)
    return next(
        (k for k in range(same, len(ids)) if _text(tokenizer, ids[:k]).startswith(reached)),
        len(ids),
    )


def _text(tokenizer: Any, ids: Ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> Ids:
    """The ids of a text, without or with the special tokens that the tokenizer puts around plain
    text.

    Where transformers would only hand the text on to the tokenizers library, that is asked at once:
    the way there takes ten times as long as a short text.
    """
    if not text:
        return ()
    if _hands_on(type(tokenizer)) and not tokenizer.split_special_tokens:
        backend = tokenizer.backend_tokenizer
        if (
            backend.truncation is None
            and backend.padding is None
            and not backend.encode_special_tokens
        ):
            return tuple(backend.encode(text, add_special_tokens=special).ids)
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


@cache
def _hands_on(kind: type) -> bool:
    """Does a tokenizer of this class encode as transformers' own fast ones do? Some classes have a
    way of their own.
    """
    call, encode = (
        getattr(getattr(kind, name, None), "__qualname__", "")
        for name in ("__call__", "_encode_plus")
    )
    return (call, encode) == ("PreTrainedTokenizerBase.__call__", "TokenizersBackend._encode_plus")


def _plain(tokenizer: Any, text: str) -> Ids:
    """A string with the special tokens the tokenizer puts in front; an EOS that it puts behind is
    taken away.
    """
    ids, bare = _ids(tokenizer, text, special=True), _ids(tokenizer, text)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if not bare:
        if bos is None:
            what = "an empty prompt, and the tokenizer has no BOS token to stand for it."
            raise UsageError(
                what,
                where=tokenizer.name_or_path or "prompt",
                fix="Give prompts at least one character.",
            )
        return (bos,)
    if eos is not None and ids[-1] == eos and len(ids) > len(bare) and ids[-len(bare) :] != bare:
        ids = ids[:-1]
    return _one_bos(tokenizer, ids, "prompt")


def _closed(tokenizer: Any, ids: Ids) -> Ids:
    """The ids with exactly one EOS at their end."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UsageError(
            "the tokenizer has no EOS token, so a model could never learn to stop.",
            where="tokenizer",
            fix="Set eos_token.",
        )
    return ids if ids[-1:] == (eos,) else (*ids, eos)


def _one_bos(tokenizer: Any, ids: Ids, where: str) -> Ids:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == (bos, bos):
        who = "the template writes" if where != "prompt" else "the text begins with"
        what = f"two BOS tokens in front: {who} {tokenizer.bos_token!r} once too often."
        raise UsageError(
            what,
            where=where,
            fix=(
                "Write it once: the tokenizer adds its own to plain text, and none to a template's."
            ),
        )
    return ids


def ends_of(tokenizer: Any, config: Any) -> set[int]:
    """The ids that end a text by the tokenizer and a configuration (of a model, or of its
    generation).
    """
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return {int(i) for i in [*several, tokenizer.eos_token_id] if i is not None}
