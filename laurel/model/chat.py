"""Encodes prompts, replies and supervised rows as token ids, with the spans that are trained on.

Ids that were sampled are kept as they are: they are never decoded and encoded again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from laurel.core.errors import UsageError
from laurel.core.sample import Message
from laurel.model.render import (
    Span,
    Tools,
    ensure_template,
    template_name,
    text_around_turn,
    text_before_turn,
    turn_spans,
)
from laurel.model.shown import REMEDY, messages_for_template, stands_in, with_marks
from laurel.model.turns import CALL, TEXT, as_tools, marked_as_trained, spoken, trained_flag

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
# the kinds of row, and what can be trained on in each; the first is the default
VARIANTS: dict[str, tuple[str, ...]] = {
    "messages": ("assistant", "last", "all", "no_tags"),
    "prompt and completion as messages": ("completion", "assistant", "last", "all", "no_tags"),
    "prompt and completion": ("completion", "all"),
    "text": ("all",),
}
ANCHORS = ("a", "\n", ".", ":", "1", ")")
Ids = tuple[int, ...]
Conversation = list[dict[str, Any]]
"""Messages with all of their fields, as `laurel.model.turns.spoken` gives them."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """A row to imitate, as ids with the mask of its targets.

    mask[i]: is ids[i] a target? The first never is, because nothing predicts it. `text` is the
    whole row as text; `spans` are its stretches that are trained on. With max_length, ids and mask
    are cut, and `cut` is True. `left_out` names what of the row the chat template does not show,
    though the row can be trained on.
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


class EncodedRow(NamedTuple):
    """A supervised row at its full length; see `Supervised` for the columns."""

    ids: Ids
    mask: list[bool]
    text: str
    spans: tuple[Span, ...]
    left_out: tuple[str, ...] = ()


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
    shown_tools = as_tools(tools)
    messages = messages_for_template(tokenizer, prompt, tools=shown_tools).messages
    text = text_before_turn(tokenizer, messages, speaker, tools=shown_tools)
    return _check_one_bos(tokenizer, _ids(tokenizer, text), template_name(tokenizer))


def encode_reply(
    tokenizer: Any,
    before: str | Sequence[Message],
    reply: Sequence[Message],
    *,
    sampled: Sequence[int],
    tools: Any = None,
) -> Ids:
    """The ids that the world's reply adds behind the policy's turn.

    They are what closes that turn, the reply, and the next turn's header.

    before: the conversation so far; its last message is the policy's turn as text. sampled: the ids
    of that turn (or of the episode); if they end with the template's closing token it is not
    written twice. With a string `before` (plain-text episodes) the reply's contents are encoded as
    they are. So prompt ids + sampled ids + these ids are what the template would render, wherever
    the sampled ids are. A reply that the template leaves out is a UsageError.
    """
    if isinstance(before, str):
        reply_text = "".join(message["content"] for message in reply)
        return encode_after(tokenizer, reply_text, before)
    if not before or before[-1]["role"] != "assistant":
        raise UsageError("a reply follows a turn of the assistant.", where="encode_reply")
    past = [spoken(message) for message in before]
    added = [spoken(message) for message in reply]
    closing, following = _behind_last_turn(tokenizer, past, added, as_tools(tools))
    _check_reply_shown(tokenizer, added, following)
    ids = encode_after(tokenizer, following)
    return _without_sampled_closing(tokenizer, ids, tuple(sampled), closing)


def _behind_last_turn(
    tokenizer: Any, past: Conversation, added: Conversation, tools: Tools
) -> tuple[str, str]:
    """What the template writes behind the last turn of `past`: by itself, and with a reply.

    With a reply it goes as far as the header of the next turn. UsageError where the template does
    not show the turn exactly once.
    """
    last = len(past) - 1
    whole = [*past, *added]
    with_reply = text_around_turn(tokenizer, whole, last, add_generation_prompt=True, tools=tools)
    alone = text_around_turn(tokenizer, past, last, tools=tools)
    if with_reply is None or alone is None:
        # if the template refuses these roles, this raises with its reason
        text_before_turn(tokenizer, whole, tools=tools)
        raise UsageError(
            "the template does not show the policy's turn just once.",
            where=template_name(tokenizer),
            fix="Give --chat_template FILE.",
        )
    return alone[1], with_reply[1]


def _check_reply_shown(tokenizer: Any, added: Conversation, text: str) -> None:
    """UsageError where the content or a call of a reply is not in the rendered text."""
    for piece in with_marks(added)[0]:
        if piece.kind in (TEXT, CALL) and not stands_in(piece.text, text):
            what = f"the template leaves out what the world said as {added[piece.turn]['role']}."
            fix = REMEDY.replace("take it out of the rows", "give it another role")
            raise UsageError(what, where=template_name(tokenizer), fix=fix)


def _without_sampled_closing(tokenizer: Any, ids: Ids, sampled: Ids, closing: str) -> Ids:
    """The ids behind a turn, less the closing token where the sampled ids end with it already."""
    # some templates write white space behind the closing token, which is never sampled
    for text in (closing, closing.rstrip()):
        end = encode_after(tokenizer, text)
        if end and ids[: len(end)] == end == sampled[-len(end) :]:
            return ids[len(end) :]
    return ids


def encode_after(tokenizer: Any, text: str, before: str = "") -> Ids:
    """The ids of `text` behind other text (`before`, if known), without BOS or added space.

    Encoding a piece by itself makes SentencePiece-like tokenizers begin it with a space; so it is
    encoded behind some text with which it does not merge, and that text's ids are taken away.
    """
    for anchor in (before, *ANCHORS) if text else ():
        head = _ids(tokenizer, anchor)
        whole = _ids(tokenizer, anchor + text)
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
    """A row of text or messages as ids with the mask of its targets.

    Its columns are `messages`, `prompt` and `completion` (strings or messages), or `text`.
    train_on: `assistant` turns, the `last` of them, the `completion` column (of messages: its
    assistant turns), `all`, or `no_tags` (the content of every role, only headers masked). Turns
    include the token that closes them. None: completion, assistant or all, by the columns. Plain
    text gets one EOS at its end, a target. Longer rows are cut on the right. A turn's own flag
    (`weight` 0, `train: false`, see `laurel.model.turns.trained_flag`) goes before that. The row's
    `tools` are shown to the template. A mask that does not apply to these columns is a UsageError,
    and so is a template that leaves out what would be trained on, or what it answers to.
    """
    kind = _kind(columns)
    train_on = VARIANTS[kind][0] if train_on is None else train_on
    if train_on not in VARIANTS[kind]:
        what = f"`{train_on}` does not apply to rows of {kind}."
        raise UsageError(what, where="train_on", fix=f"Choose from: {', '.join(VARIANTS[kind])}.")
    row = _encoded(tokenizer, columns, kind, train_on)
    cut = max_length is not None and len(row.ids) > max_length
    ids = row.ids[:max_length]
    mask = (False, *row.mask[1:max_length])
    return Supervised(ids, mask, row.text, row.spans, cut, row.left_out)


def _encoded(tokenizer: Any, columns: Mapping[str, Any], kind: str, train_on: str) -> EncodedRow:
    """A row of this kind (see VARIANTS), uncut."""
    if kind == "text":
        return _text_row(tokenizer, columns["text"])
    if kind == "prompt and completion":
        return _pair(tokenizer, columns["prompt"], columns["completion"], train_on)
    tools = as_tools(columns.get("tools"))
    if kind == "messages":
        return _conversation(tokenizer, columns["messages"], 0, train_on, tools)
    prompt: Sequence[Message] = columns["prompt"]
    messages = [*prompt, *columns["completion"]]
    return _conversation(tokenizer, messages, len(prompt), train_on, tools)


def _text_row(tokenizer: Any, text: str) -> EncodedRow:
    """Plain text and one EOS; every token but the first is a target."""
    ids = _plain(tokenizer, text)
    # the first id apart, since a text may be a BOS alone that is the EOS, too
    ids = ids[:1] + _with_one_eos(tokenizer, ids[1:])
    mask = [position > 0 for position in range(len(ids))]
    return EncodedRow(ids, mask, text, (Span("text", 0, len(text)),))


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


def _pair(tokenizer: Any, prompt: str, completion: str, train_on: str) -> EncodedRow:
    """The prompt as it is when sampled from, then the completion and one EOS.

    The mask is made from the numbers of tokens, so it cannot be off by a merge.
    """
    head = _plain(tokenizer, prompt)
    answer = encode_after(tokenizer, completion, prompt) if prompt else _ids(tokenizer, completion)
    tail = _with_one_eos(tokenizer, answer)
    everything = train_on == "all"
    mask = [everything] * len(head) + [True] * len(tail)
    text = prompt + completion
    span = Span("completion", 0 if everything else len(prompt), len(text))
    return EncodedRow(head + tail, mask, text, (span,))


def _conversation(
    tokenizer: Any, messages: Sequence[Message], first: int, train_on: str, tools: Tools
) -> EncodedRow:
    """The rendered conversation, tokenised once as a whole, and its targets.

    `first`: where the completion's turns begin.
    """
    wanted, silent, notes = _turns_to_train_on(messages, first, train_on)
    everything = train_on == "all"
    targets = range(len(messages)) if everything else wanted
    form = messages_for_template(
        tokenizer, messages, targets=targets, tools=tools, tools_needed=True
    )
    # with "all" the turns that are flagged off are what has to be found
    marked = silent if everything else wanted
    text, spans = turn_spans(tokenizer, form.messages, marked, tools=tools)
    if not everything:
        trained = "".join(text[span.start : span.end] for span in spans)
        _check_all_trained(tokenizer, messages, wanted, trained)
    ids, ranges = _token_ranges(tokenizer, text, spans)
    _check_one_bos(tokenizer, ids, template_name(tokenizer))
    mask = [everything] * len(ids)
    for start, end in ranges:
        mask[start:end] = [not everything] * (end - start)
    spans = (Span("all", 0, len(text)),) if everything else spans
    return EncodedRow(ids, mask, text, spans, (*form.left_out, *notes))


def _turns_to_train_on(
    messages: Sequence[Message], first: int, train_on: str
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """The turns to train on, the turns flagged not to be, and notes on flags without effect.

    Turns are chosen by `train_on` and by their own flags (`laurel.model.turns.trained_flag`).
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = {
        "assistant": turns,
        "last": turns[-1:],
        "completion": [i for i in turns if i >= first],
        "no_tags": list(range(len(messages))),
        "all": [],
    }[train_on]
    flags = {i: trained_flag(message, i + 1) for i, message in enumerate(messages)}
    asked = [
        i for i in flags if train_on == "assistant" and flags[i] and marked_as_trained(messages[i])
    ]
    silent = [i for i in flags if flags[i] is False]
    wanted = sorted({*wanted, *asked} - {*silent})
    ignored = [i for i in flags if flags[i] and i not in wanted and train_on != "all"]
    notes = dict.fromkeys(
        f"flags that ask to train on {messages[i]['role']} turns, which train_on={train_on}"
        " does not"
        for i in ignored
    )
    return wanted, silent, tuple(notes)


def _check_all_trained(
    tokenizer: Any, messages: Sequence[Message], wanted: Sequence[int], trained: str
) -> None:
    """UsageError where a text of a target turn is in none of the spans.

    {% generation %} blocks of a template can be too small.
    """
    for piece in with_marks([spoken(messages[i]) for i in wanted])[0]:
        if piece.kind in (TEXT, CALL) and not stands_in(piece.text, trained):
            what = (
                f"the {piece.kind} of turn {wanted[piece.turn] + 1} is shown, but not as a part of"
                " the turn that is trained on."
            )
            raise UsageError(what, where=template_name(tokenizer), fix=REMEDY)


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
    ids: Ids = tuple(encoded["input_ids"])
    offsets: list[tuple[int, int]] = encoded["offset_mapping"] if fast else []
    if _do_offsets_cover(offsets, len(text)):
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


def _do_offsets_cover(offsets: Sequence[tuple[int, int]], length: int) -> bool:
    """Do the offsets cover a text of this length in order, without a gap?"""
    reach = last = 0
    for start, end in offsets:
        if start > reach or start < last:
            return False
        reach, last = max(reach, end), start
    return reach == length and bool(offsets)


def _tokens_before(tokenizer: Any, text: str, border: int, ids: Ids) -> int:
    """How many tokens of `ids`, the encoding of `text`, start before a border.

    A token that straddles the border starts before it. The count is the fewest whose text holds all
    that the encoding of text[:border] holds: the two need not be the same tokens, since what
    follows can change how whitespace in front of it is cut.
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
    """The text of ids, special tokens included."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> Ids:
    """The ids of a text, without the tokenizer's special tokens unless `special`.

    Where transformers would only hand the text on to the tokenizers library, that is asked at once:
    the way there takes ten times as long as a short text.
    """
    if not text:
        return ()
    if _encodes_by_backend(tokenizer.__class__) and not tokenizer.split_special_tokens:
        backend = tokenizer.backend_tokenizer
        if (
            backend.truncation is None
            and backend.padding is None
            and not backend.encode_special_tokens
        ):
            return tuple(backend.encode(text, add_special_tokens=special).ids)
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


@cache
def _encodes_by_backend(kind: type) -> bool:
    """Does a tokenizer of this class encode exactly as its tokenizers-library backend does?

    Some classes override `__call__` or `_encode_plus`.
    """
    call, encode = (
        getattr(getattr(kind, name, None), "__qualname__", "")
        for name in ("__call__", "_encode_plus")
    )
    return (call, encode) == ("PreTrainedTokenizerBase.__call__", "TokenizersBackend._encode_plus")


def _plain(tokenizer: Any, text: str) -> Ids:
    """A string with the special tokens the tokenizer puts in front, without a final EOS."""
    ids = _ids(tokenizer, text, special=True)
    bare = _ids(tokenizer, text)
    eos = tokenizer.eos_token_id
    bos = tokenizer.bos_token_id
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
    return _check_one_bos(tokenizer, ids, "prompt")


def _with_one_eos(tokenizer: Any, ids: Ids) -> Ids:
    """The ids with exactly one EOS at their end."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UsageError(
            "the tokenizer has no EOS token, so a model could never learn to stop.",
            where="tokenizer",
            fix="Set eos_token.",
        )
    return ids if ids[-1:] == (eos,) else (*ids, eos)


def _check_one_bos(tokenizer: Any, ids: Ids, where: str) -> Ids:
    """The ids; UsageError where two BOS tokens are in front of them."""
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
    """The ids that end a text, by the tokenizer and by a configuration of a model or generation."""
    configured: Any = getattr(config, "eos_token_id", None)
    several: list[Any] = configured if type(configured) in (list, tuple) else [configured]
    return {int(i) for i in [*several, tokenizer.eos_token_id] if i is not None}
