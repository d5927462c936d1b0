"""Chat -> ids with spans: every template style, every mask, replies of a world, and the traps about
BOS, EOS and round trips.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import printed
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from laurel.core.errors import UsageError
from laurel.model import chat
from laurel.model.chat import (
    encode_after,
    encode_prompt,
    encode_reply,
    encode_supervised,
    ensure_template,
)
from laurel.model.render import DEFAULT_TEMPLATE, render, text_before_turn
from laurel.model.scratch import char_tokenizer

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<turn>",
    "</turn>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
]
LINES = [
    "How are you today?",
    "I am well, thank you!",
    "Tell me a joke.",
    "user assistant system model tool",
    "the sum of 12 and 30 is 42",
    "\n\n \n 日本 é",
]

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CHATML_MARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}
{{- '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
HEADERS = """{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}
{{- '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"""
TURNS = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '</turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
INST = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set sys = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}
{%- else %}{% set sys = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + (sys if m == rest[-1] or (loop.index0 == rest | length - 2) else '') + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
THINKING = """{% set ns = namespace(last=-1) %}{% for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}
{%- set thought = '' %}{% set said = m.content %}
{%- if '</think>' in m.content %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' + said }}{% else %}{{ said }}{% endif %}
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
OPEN_THOUGHT = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|head|>' + m.content }}
{%- else %}{{ '<|/head|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|/head|><think>\n' }}{% endif %}"""
BARS = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
NO_OPENING = (
    """{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"""
)
PLAIN = {
    "chatml": CHATML,
    "marked": CHATML_MARKED,
    "headers": HEADERS,
    "turns": TURNS,
    "inst": INST,
    "bars": BARS,
    "no_opening": NO_OPENING,
    "thinking": THINKING,
}
CLOSE = {
    "chatml": "<|im_end|>",
    "marked": "<|im_end|>",
    "headers": "<|eot|>",
    "turns": "</turn>",
    "thinking": "<|im_end|>",
}


def bpe(kind, template=None):
    """A small BPE tokenizer: `bytes` like Llama 3, `trim` like GPT-2 (trimmed offsets), `space`
    like SentencePiece.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>" if kind == "space" else None))
    if kind == "space":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=SPECIAL)
    else:
        words = pre_tokenizers.Split(
            Regex(r" ?[^\s\d]+|\d{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
        )
        modern = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.pre_tokenizer = (
            modern if kind == "bytes" else pre_tokenizers.ByteLevel(add_prefix_space=False)
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    backend.train_from_iterator(LINES * 3, trainer)
    steps = [processors.ByteLevel(trim_offsets=True)] if kind == "trim" else []
    steps.append(
        processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    )
    backend.post_processor = processors.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {kind: bpe(kind) for kind in ("bytes", "trim", "space")}


def with_template(kind, template):
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = template
    return tokenizer


def talk(*contents, system=None):
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


THREE = talk("How are you?", "I am well!", "Tell me a joke.", "the sum", "Hi 日本", "é 42.")
said = [turn["content"] for turn in THREE[1::2]]


def targets(tokenizer, row):
    """The targets as text, one string for each run of them."""
    runs, last = [], None
    for i, (token, on) in enumerate(zip(row.ids, row.mask, strict=True)):
        if on:
            runs = runs if last == i - 1 and runs else [*runs, []]
            runs[-1].append(token)
            last = i
    return [tokenizer.decode(run) for run in runs]


def whole_ids(tokenizer, messages, **options):
    return tuple(tokenizer.apply_chat_template(messages, return_dict=False, **options))


# the masks

EXPECTED = {
    "chatml": [s + "<|im_end|>" for s in said],
    "marked": [s + "<|im_end|>" for s in said],
    "headers": [s + "<|eot|>" for s in said],
    "turns": [s + "</turn>" for s in said],
    "inst": [" " + s + "</s>" for s in said],
    "bars": [s + "</s>" for s in said],
    "no_opening": [" " + s + "</s>" for s in said],
    "thinking": [
        said[0] + "<|im_end|>",
        said[1] + "<|im_end|>",
        "<think>\n\n</think>\n\n" + said[2] + "<|im_end|>",
    ],
}


@pytest.mark.parametrize("kind", ["bytes", "trim"])
@pytest.mark.parametrize("style", PLAIN)
def test_T31_assistant_turns_without_markers(kind, style):
    """T31: three turns, all supervised with their closing token, headers and user turns not; ids
    are the template's.
    """
    tokenizer = with_template(kind, PLAIN[style])
    row = encode_supervised(tokenizer, {"messages": THREE})
    assert targets(tokenizer, row) == EXPECTED[style]
    assert row.ids == whole_ids(tokenizer, THREE)
    assert [row.text[s.start : s.end] for s in row.spans] == EXPECTED[style]
    assert row.supervised == sum(len(encode_after(tokenizer, text)) for text in EXPECTED[style])
    assert (
        targets(tokenizer, encode_supervised(tokenizer, {"messages": THREE}, train_on="last"))
        == EXPECTED[style][-1:]
    )


@pytest.mark.parametrize("style", ["inst", "chatml", "headers", "bars"])
def test_T31_sentencepiece_style(style):
    """A tokenizer that writes spaces as part of words, and knows no 日: the same spans, by ids."""
    tokenizer = with_template("space", PLAIN[style])
    messages = talk("How are you?", "I am well!", "Hi 日x", "the sum 42")
    row = encode_supervised(tokenizer, {"messages": messages})
    assert row.ids == whole_ids(tokenizer, messages)
    runs = [re.sub(" ", "", text) for text in targets(tokenizer, row)]
    close = CLOSE.get(style, "</s>")
    assert runs == ["Iamwell!" + close, "thesum42" + close]


@pytest.mark.parametrize("style", ["chatml", "headers", "inst", "thinking", "bars", "no_opening"])
def test_system_turns_wherever_the_template_puts_them(style):
    """Folded into another turn, even the last one, a system prompt moves no target."""
    tokenizer = with_template("bytes", PLAIN[style])
    row = encode_supervised(
        tokenizer, {"messages": talk(*(turn["content"] for turn in THREE), system="Be brief.")}
    )
    assert targets(tokenizer, row) == EXPECTED[style]
    row = encode_supervised(
        tokenizer, {"messages": talk("a", "b", "c", "d", system="Be brief.")}, train_on="no_tags"
    )
    assert "".join(targets(tokenizer, row)).count("Be brief.") == 1


def test_reasoning_that_the_template_strips_from_earlier_turns():
    """Earlier turns: the answer alone. The last turn: the thought too, from where the model takes
    over.
    """
    thought = [f"<think>\nwhy {i}\n</think>\n\nanswer {i}" for i in (1, 2)]
    tokenizer = with_template("bytes", THINKING)
    row = encode_supervised(tokenizer, {"messages": talk("a", thought[0], "b", thought[1])})
    assert targets(tokenizer, row) == ["answer 1<|im_end|>", thought[1] + "<|im_end|>"]
    bare = OPEN_THOUGHT.replace(
        "<think>\n", ""
    )  # else it would open turns in sampling as it never does in training
    tokenizer = with_template("bytes", bare)
    row = encode_supervised(
        tokenizer, {"messages": talk("a", "<think>x</think>answer 1", "b", "answer 2")}
    )
    assert targets(tokenizer, row) == ["answer 1</s>", "answer 2</s>"]
    assert row.left_out == ("thoughts of earlier turns",)


def test_T31_no_span_is_an_error_not_a_guess():
    """A template that writes earlier turns in a form of their own, and one that repeats them:
    UsageError with the remedy.
    """
    counting = (
        "{% for m in messages %}{{ messages | length ~ m.role ~ ': ' ~ m.content ~ m.content ~"
        " eos_token }}{% endfor %}"
    )
    twice = (
        "{% for m in messages | reverse %}{{ m.role ~ m.content ~ m.content ~ eos_token }}{%"
        " endfor %}"
    )
    for template in (counting, twice):
        with pytest.raises(UsageError, match=r"generation.*--chat_template FILE"):
            encode_supervised(with_template("bytes", template), {"messages": THREE})


def test_no_tags_trains_everything_but_headers():
    """The lecture's variant: contents of all roles with what closes them."""
    tokenizer = with_template("bytes", CHATML)
    row = encode_supervised(
        tokenizer, {"messages": talk("hi", "yes", "more", system="sys")}, train_on="no_tags"
    )
    assert targets(tokenizer, row) == [text + "<|im_end|>" for text in ("sys", "hi", "yes", "more")]
    tokenizer = with_template("bytes", INST)
    row = encode_supervised(tokenizer, {"messages": talk("hi", "yes", "more")}, train_on="no_tags")
    assert targets(tokenizer, row) == [" hi [/INST] yes</s>", " more [/INST]"]


def test_markers_agree_with_transformers(shared):
    """With {% generation %} the mask is the one of return_assistant_tokens_mask; without them,
    derived, it is the same.
    """
    tokenizer, bare = char_tokenizer(), char_tokenizer()
    ensure_template(tokenizer)
    bare.chat_template = re.sub(r"\{% (end)?generation %\}", "", DEFAULT_TEMPLATE)
    for messages in [THREE, *chats(shared)[::10]]:
        theirs = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ours, derived = (
            encode_supervised(tokenizer, {"messages": messages}),
            encode_supervised(bare, {"messages": messages}),
        )
        assert ours.ids == tuple(theirs["input_ids"]) == derived.ids
        assert ours.mask == tuple(map(bool, theirs["assistant_masks"])) == derived.mask


def test_two_markers_in_a_turn():
    """All of them are `assistant`; a single turn cannot be chosen from them, and that is said."""
    whole, block = (
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}",
        "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}",
    )
    template = CHATML_MARKED.replace(whole, "{{ m.content }}{% endgeneration %}" + block)
    tokenizer = with_template("bytes", template)
    assert (
        targets(tokenizer, encode_supervised(tokenizer, {"messages": THREE})) == EXPECTED["chatml"]
    )
    with pytest.raises(UsageError, match=r"6 .*blocks for 3 turns"):
        encode_supervised(tokenizer, {"messages": THREE}, train_on="last")


def chats(shared):
    rows = json.loads(shared("data/chats/dummy_conversation.json").read_text())
    roles = {"human": "user", "gpt": "assistant"}
    return [
        [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        for row in rows
    ]


@pytest.mark.parametrize("model", ["tinystories", "scratch"])
def test_500_real_conversations_in_every_variant(shared, model):
    """assistant + its last turn, no_tags and all are nested; targets decode to what was said; ids
    are the template's.
    """
    tokenizer = (
        AutoTokenizer.from_pretrained(shared("models/tinystories-656k"))
        if model == "tinystories"
        else char_tokenizer()
    )
    ensure_template(tokenizer)
    for messages in chats(shared):
        rows = {
            name: encode_supervised(tokenizer, {"messages": messages}, train_on=name)
            for name in ("assistant", "last", "no_tags", "all")
        }
        assert {row.ids for row in rows.values()} == {rows["all"].ids}
        masks = [rows[name].mask for name in ("last", "assistant", "no_tags", "all")]
        assert all(
            big or not small
            for less, more in pairwise(masks)
            for small, big in zip(less, more, strict=True)
        )
        assert rows["all"].supervised == len(rows["all"].ids) - 1
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        assert targets(tokenizer, rows["assistant"]) == [
            tokenizer.decode(encode_after(tokenizer, a + tokenizer.eos_token)) for a in answers
        ]
        assert len(targets(tokenizer, rows["no_tags"])) == len(messages)
    assert rows["all"].ids == whole_ids(tokenizer, messages)


def test_dropped_characters_move_no_mask(shared):
    """tinystories' tokenizer drops characters that it does not know and shifts its offsets; the
    targets stay where they are.
    """
    tokenizer = AutoTokenizer.from_pretrained(shared("models/tinystories-656k"))
    ensure_template(tokenizer)
    row = encode_supervised(
        tokenizer, {"messages": talk("How é ☃☃ are\tyou", "Fine.", "☃", "é Good")}
    )
    close = tokenizer.eos_token
    assert [text.strip() for text in targets(tokenizer, row)] == ["Fine." + close, "Good" + close]


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.text(st.sampled_from("ab 1.\n日é<"), max_size=8), min_size=2, max_size=6),
    style=st.sampled_from(["chatml", "headers", "marked"]),
)
def test_any_contents_property(contents, style):
    """Whatever is said (empty, newlines, multi-byte): ids are the template's, and targets are the
    answers and their closing tokens.

    Where a content begins with a newline, its first token may start in the header and then is no
    target.
    """
    tokenizer, messages = with_template("bytes", PLAIN[style]), talk(*contents)
    row = encode_supervised(tokenizer, {"messages": messages})
    assert row.ids == whole_ids(tokenizer, messages)
    expected = [(c.strip() if style == "headers" else c) + CLOSE[style] for c in contents[1::2]]
    for got, want in zip(targets(tokenizer, row), expected, strict=True):
        assert want.endswith(got) and not want[: len(want) - len(got)].strip()


def test_the_picture_in_the_documentation():
    """docs/chat.md draws one conversation under every mask; the drawing is made from the masks."""
    tokenizer, messages = char_tokenizer(), talk("2+2?", "4", "And 3+3?", "6")
    lines = [
        " " * 12
        + render(tokenizer, messages)
        .removeprefix("<|start|>")
        .replace("<|stop|>", "#")
        .replace("\n", "|")
    ]
    for name in ("assistant", "last", "no_tags", "all"):
        row = encode_supervised(tokenizer, {"messages": messages}, train_on=name)
        lines.append(f"{name:12}" + "".join("^" if on else " " for on in row.mask[1:]).rstrip())
    assert "\n".join(lines) in (Path(__file__).parents[2] / "docs" / "chat.md").read_text()


# plain text


def test_T06_eos_is_a_target_though_pad_is_eos():
    """T06: prompt + completion with pad == eos: the last id is EOS and supervised, exactly once,
    even if the text spells it out.
    """
    tokenizer = with_template("bytes", None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for completion in ("42", "42</s>"):
        row = encode_supervised(tokenizer, {"prompt": "the sum", "completion": completion})
        assert (
            row.ids.count(tokenizer.eos_token_id) == 1
            and row.ids[-1] == tokenizer.eos_token_id
            and row.mask[-1]
        )
        assert targets(tokenizer, row) == ["42</s>"]
    text = encode_supervised(tokenizer, {"text": "the sum"})
    assert text.ids[-1] == tokenizer.eos_token_id and text.mask == (
        False,
        *[True] * (len(text.ids) - 1),
    )
    assert text.ids[0] == tokenizer.bos_token_id


def test_T07_masks_come_from_lengths():
    """T07: EOS ids inside the prompt and the completion change nothing: the mask is [prompt
    0s][completion 1s].
    """
    tokenizer = with_template("bytes", None)
    row = encode_supervised(tokenizer, {"prompt": "a</s></s>", "completion": "</s>b"})
    head = len(encode_prompt(tokenizer, "a</s></s>"))
    assert row.ids[head - 2 : head + 1] == (tokenizer.eos_token_id,) * 3
    assert row.mask == (False,) * head + (True,) * (len(row.ids) - head)


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer with a way of its own to encode."""

    def _encode_plus(self, text, *args, **how):
        return super()._encode_plus(text.upper(), *args, **how)


@pytest.mark.parametrize("kind", [*TOKENIZERS, "shared", "cuts", "pads", "splits", "shouts"])
def test_plain_text_is_encoded_as_transformers_does(kind, shared):
    """Short of transformers' own call, the ids are its ids: whatever a saved tokenizer cuts, pads
    or splits, or a class does itself.
    """
    if kind == "shared":
        tokenizer = AutoTokenizer.from_pretrained(shared("models/tinystories-656k"))
    else:
        tokenizer = bpe(kind if kind in TOKENIZERS else "bytes")
    if kind == "cuts":
        tokenizer.backend_tokenizer.enable_truncation(4)
    elif kind == "pads":
        tokenizer.backend_tokenizer.enable_padding(length=64)
    elif kind == "splits":
        tokenizer.split_special_tokens = True
    elif kind == "shouts":
        tokenizer = Shouting(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", bos_token="<s>"
        )
    texts = (*LINES, "</s> b<|eot|>", "<s>a")
    ours = [
        [chat._ids(tokenizer, text), chat._ids(tokenizer, text, special=True)] for text in texts
    ]
    theirs = [
        [
            tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
            for special in (False, True)
        ]
        for text in texts
    ]
    assert ours == theirs


@pytest.mark.parametrize("kind", ["bytes", "space"])
def test_completions_follow_the_prompt_as_sampled(kind):
    """The ids of prompt + completion begin with encode_prompt's, and no space appears between
    them.
    """
    tokenizer = with_template(kind, None)
    for prompt, completion in [
        ("the sum", "42"),
        ("the sum ", "42"),
        ("the su", "m is 42"),
        ("", "the sum"),
        ("a\n", "\nis"),
    ]:
        row = encode_supervised(
            tokenizer, {"prompt": prompt, "completion": completion}, train_on="all"
        )
        head = encode_prompt(tokenizer, prompt)
        assert row.ids[: len(head)] == head and row.text == prompt + completion
        assert tokenizer.decode(row.ids, skip_special_tokens=True) == prompt + completion


def test_completion_of_messages_is_its_assistant_turns():
    tokenizer, messages = with_template("bytes", CHATML), THREE
    row = encode_supervised(tokenizer, {"prompt": messages[:3], "completion": messages[3:]})
    assert row.ids == whole_ids(tokenizer, messages)
    assert targets(tokenizer, row) == EXPECTED["chatml"][1:]
    assert row.ids[: len(encode_prompt(tokenizer, messages[:3]))] == encode_prompt(
        tokenizer, messages[:3]
    )
    assert (
        targets(
            tokenizer,
            encode_supervised(
                tokenizer,
                {"prompt": messages[:3], "completion": messages[3:]},
                train_on="assistant",
            ),
        )
        == EXPECTED["chatml"]
    )


def test_T32_nothing_supervised_is_countable():
    """T32: a limit that cuts every target leaves `supervised` = 0, for the caller to refuse; a
    higher one keeps the rest.
    """
    tokenizer = with_template("bytes", CHATML)
    full = encode_supervised(tokenizer, {"messages": THREE})
    first = full.mask.index(True)
    assert encode_supervised(tokenizer, {"messages": THREE}, max_length=first).supervised == 0
    cut = encode_supervised(tokenizer, {"messages": THREE}, max_length=first + 1)
    assert (
        cut.supervised == 1 and cut.ids == full.ids[: first + 1] and len(cut.mask) == len(cut.ids)
    )
    assert (
        encode_supervised(
            tokenizer, {"prompt": "the sum", "completion": "42"}, max_length=2
        ).supervised
        == 0
    )
    assert encode_supervised(tokenizer, {"messages": THREE[:1]}).supervised == 0


@pytest.mark.parametrize(
    ("columns", "train_on"),
    [
        ({"messages": THREE}, "completion"),
        ({"text": "a"}, "assistant"),
        ({"text": "a"}, "completion"),
        ({"prompt": "a", "completion": "b"}, "no_tags"),
        ({"prompt": "a", "completion": "b"}, "last"),
        ({"messages": THREE}, "answers"),
        ({"prompt": "a"}, None),
        ({"prompt": THREE[:1], "completion": "b"}, None),
    ],
)
def test_masks_that_do_not_apply_are_refused(columns, train_on):
    with pytest.raises(UsageError):
        encode_supervised(with_template("bytes", CHATML), columns, train_on=train_on)


# prompts and templates


def test_T45_one_bos_for_every_path():
    """T45: a template that prints BOS with a tokenizer that adds BOS: one BOS in prompts and rows;
    the same with plain text.
    """
    tokenizer = with_template("bytes", HEADERS)
    bos = tokenizer.bos_token_id
    for ids in (
        encode_prompt(tokenizer, THREE[:1]),
        encode_supervised(tokenizer, {"messages": THREE}).ids,
        encode_prompt(tokenizer, "the sum"),
        encode_supervised(tokenizer, {"text": "the sum"}).ids,
        encode_supervised(tokenizer, {"prompt": "the", "completion": " sum"}).ids,
    ):
        assert ids[0] == bos and ids.count(bos) == 1
    assert encode_prompt(tokenizer, THREE[:1]) == whole_ids(
        tokenizer, THREE[:1], add_generation_prompt=True
    )


def test_A35_two_bos_are_an_error():
    """A35: BOS twice at the start is refused, and the template (or the text) is named."""
    tokenizer = with_template("bytes", "{{ bos_token }}" + HEADERS)
    for call in (
        lambda: encode_prompt(tokenizer, THREE[:1]),
        lambda: encode_supervised(tokenizer, {"messages": THREE}),
    ):
        with pytest.raises(UsageError, match=r"chat template of .*two BOS"):
            call()
    with pytest.raises(UsageError, match="text begins with '<s>'"):
        encode_prompt(tokenizer, "<s>the sum")


def test_plain_prompts_end_without_eos():
    """Even where the tokenizer puts an EOS behind; an EOS spelt in the prompt stays. Empty: BOS
    alone, or an error.
    """
    tokenizer = bpe("bytes")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    bare = tuple(tokenizer("the sum", add_special_tokens=False).input_ids)
    assert encode_prompt(tokenizer, "the sum") == (bos, *bare)
    assert encode_prompt(tokenizer, "the sum</s>") == (bos, *bare, eos)
    assert encode_prompt(tokenizer, "") == (bos,)
    assert encode_supervised(tokenizer, {"text": ""}).ids == (bos, eos)
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", eos)]
    )
    assert encode_prompt(tokenizer, "the sum") == bare
    with pytest.raises(UsageError, match="no BOS"):
        encode_prompt(tokenizer, "")


def test_the_users_next_question():
    """speaker="user" opens a user turn just as no_tags rows hold it: the same ids up to where the
    user's words begin.
    """
    for style, header in {
        "chatml": "<|im_start|>user\n",
        "inst": "[INST]",
        "headers": "<|head|>user<|/head|>\n\n",
    }.items():
        tokenizer = with_template("bytes", PLAIN[style])
        text = text_before_turn(tokenizer, THREE[:2], "user")
        assert text == render(tokenizer, THREE[:2]) + header
    tokenizer = char_tokenizer()
    ids = encode_prompt(tokenizer, THREE[:2], speaker="user")
    row = encode_supervised(tokenizer, {"messages": THREE[:3]}, train_on="no_tags")
    assert row.ids[: len(ids)] == ids and tokenizer.decode(ids).endswith("<|stop|>\n<User>\n")
    assert not row.mask[len(ids) - 1] and row.mask[len(ids)]
    assert tokenizer.decode(encode_prompt(tokenizer, [], speaker="user")) == "<|start|><User>\n"
    with pytest.raises(UsageError):
        encode_prompt(tokenizer, "text", speaker="user")


def test_a_template_without_an_opening_gets_one():
    """add_generation_prompt ignored, but turns have headers: the header is derived, so that
    sampling and training agree.
    """
    tokenizer = with_template("bytes", NO_OPENING)
    assert (
        tokenizer.decode(encode_prompt(tokenizer, THREE[:1]))
        == "user: How are you?</s>\nassistant:"
    )


def test_templates_that_refuse_say_so():
    """Roles the template does not take, no messages at all, broken files, several templates without
    a default, no EOS.
    """
    tokenizer = with_template("bytes", TURNS)
    with pytest.raises(UsageError, match=r"system, user.*no system turns here"):
        encode_prompt(tokenizer, talk("hi", system="x"))
    with pytest.raises(UsageError, match="no messages"):
        encode_prompt(tokenizer, [])
    tokenizer = bpe("bytes", {"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(UsageError, match="none named `default`"):
        ensure_template(tokenizer)
    tokenizer.chat_template = {"default": HEADERS, "rag": CHATML}
    assert encode_prompt(tokenizer, THREE[:1]) == encode_prompt(bpe("bytes", HEADERS), THREE[:1])
    assert ensure_template(tokenizer) == ensure_template(bpe("bytes", HEADERS))
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(UsageError, match="neither a chat template nor an EOS"):
        ensure_template(tokenizer)
    with pytest.raises(UsageError, match="no EOS"):
        encode_supervised(tokenizer, {"text": "a"})


def test_ensure_template_from_a_file(tmp_path):
    tokenizer, file = bpe("bytes"), tmp_path / "chat.jinja"
    with pytest.raises(UsageError, match="cannot read"):
        ensure_template(tokenizer, str(file))
    file.write_text("{% for m in %}")
    with pytest.raises(UsageError, match=r"chat\.jinja"):
        ensure_template(tokenizer, str(file))
    file.write_text(CHATML + "\n")
    digest = ensure_template(tokenizer, str(file))
    assert (
        tokenizer.chat_template == CHATML + "\n"
        and digest == ensure_template(tokenizer)
        and len(digest) == 64
    )


# replies


@pytest.mark.parametrize("kind", ["bytes", "space"])
@pytest.mark.parametrize("style", PLAIN)
def test_reply_completes_what_the_template_renders(kind, style):
    """prompt + sampled + reply ids == the template's ids, whether or not the policy closed its turn
    itself.
    """
    tokenizer = with_template(kind, PLAIN[style])
    messages, reply = (
        talk("How are you?", "I am well!"),
        [{"role": "user", "content": "Tell me 42"}],
    )
    prompt = encode_prompt(tokenizer, messages[:1])
    space = " " if style in ("inst", "no_opening") else ""
    whole = tuple(
        tokenizer(text_before_turn(tokenizer, messages + reply), add_special_tokens=False).input_ids
    )
    for close in (CLOSE.get(style, "</s>"), ""):
        sampled = encode_after(tokenizer, space + messages[1]["content"] + close)
        assert prompt + sampled + encode_reply(tokenizer, messages, reply, sampled=sampled) == whole


def test_reply_when_history_is_rewritten():
    """Thoughts stay in the sampled ids though the template would strip them; the closing token
    comes once; the next header opens.
    """
    tokenizer = with_template("bytes", OPEN_THOUGHT)
    messages, reply = (
        talk("a", "<think>\nwhy\n</think>answer"),
        [{"role": "user", "content": "more"}],
    )
    sampled = encode_after(tokenizer, "why\n</think>answer</s>")
    ids = encode_reply(tokenizer, messages, reply, sampled=sampled)
    assert tokenizer.decode(ids) == "<|head|>more<|/head|><think>\n"
    assert (
        tokenizer.decode(encode_reply(tokenizer, messages, reply, sampled=sampled[:-1]))
        == "</s><|head|>more<|/head|><think>\n"
    )


def test_A37_reply_does_not_depend_on_how_the_turn_was_tokenised():
    """A37: ids that no tokenizer would give for that text get the same reply, and are not
    touched.
    """
    tokenizer = char_tokenizer()
    messages, reply = talk("2*3=", "[2*3]"), [{"role": "tool", "content": "6"}]
    odd = (3, 3, *tokenizer("[2*3]", add_special_tokens=False).input_ids)
    closed = encode_reply(tokenizer, messages, reply, sampled=(*odd, tokenizer.eos_token_id))
    assert tokenizer.decode(closed) == "\n<Tool>\n6<|stop|>\n<Assistant>\n"
    assert encode_reply(tokenizer, messages, reply, sampled=odd) == (
        tokenizer.eos_token_id,
        *closed,
    )


def test_replies_in_plain_text_and_refusals():
    tokenizer = with_template("space", None)
    ids = encode_reply(
        tokenizer, "the sum [12+30]", [{"role": "tool", "content": "42\n"}], sampled=()
    )
    assert tokenizer.convert_ids_to_tokens(ids)[0] != "▁" and tokenizer.decode(ids) == "42\n"
    tokenizer = with_template("bytes", TURNS)
    with pytest.raises(UsageError, match="follows a turn of the assistant"):
        encode_reply(tokenizer, THREE[:1], THREE[2:3], sampled=())
    with pytest.raises(UsageError, match="roles must alternate"):
        encode_reply(tokenizer, THREE[:2], talk("a", "b", "c")[1:2], sampled=())


# round trip

TWENTY = [
    talk("hi", "yes"),
    talk("hi", ""),
    talk("", "x"),
    talk("hi", "yes", system="Be brief."),
    talk("日本 é ☃", "👍🏽"),
    talk("a\n\nb", " c "),
    talk("why", "<think>\nso\n</think>\n\n42"),
    talk("tag <User>", "<|im_end|>"),
    talk("{{ x }}", "{% y %}"),
    talk("tab\t", "\r\n"),
    talk(*"abcdefgh"),
    talk("q", "a", "q", ""),
    [
        *talk("2*3", "[2*3]"),
        {"role": "tool", "content": "6"},
        {"role": "assistant", "content": "6"},
    ],
    talk("x" * 300, "y" * 300),
    talk("'\"\\", "&amp;<b>"),
    talk("</s>", "<s>"),
    THREE,
    THREE[:1],
    THREE[:3],
    talk("∑ π ≈", "~1", system="日"),
]


def reload(folders):
    """What the process prints that loads saved tokenizers."""
    out = []
    for folder in folders:
        t = AutoTokenizer.from_pretrained(folder)
        rows = [encode_supervised(t, {"messages": m}, train_on="no_tags") for m in TWENTY]
        out.append(
            [
                ensure_template(t),
                [
                    [list(r.ids), list(r.mask), list(encode_prompt(t, m))]
                    for r, m in zip(rows, TWENTY, strict=True)
                ],
            ]
        )
    print(json.dumps(out))


def test_T46_A36_the_same_in_a_new_process(tmp_path):
    """T46, A36: saved and loaded elsewhere, templates hash alike and 20 conversations give the same
    ids, masks and prompts.
    """
    assert len(TWENTY) == 20
    here, folders = [], []
    for name, tokenizer in {
        "char": char_tokenizer(),
        "chatml": bpe("bytes", CHATML),
        "default": bpe("space"),
    }.items():
        digest = ensure_template(tokenizer)
        rows = [encode_supervised(tokenizer, {"messages": m}, train_on="no_tags") for m in TWENTY]
        here.append(
            [
                digest,
                [
                    [list(r.ids), list(r.mask), list(encode_prompt(tokenizer, m))]
                    for r, m in zip(rows, TWENTY, strict=True)
                ],
            ]
        )
        folders.append(str(tmp_path / name))
        tokenizer.save_pretrained(folders[-1])
    assert json.loads(printed(reload, folders, log=tmp_path / "said").splitlines()[-1]) == here
