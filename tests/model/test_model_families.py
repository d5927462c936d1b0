"""What template families show and close, turns that are masked by their own flags, and the
positions of a model.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
)

from laurel.core.errors import UsageError
from laurel.fast.decode import compact_of
from laurel.model.chat import encode_after, encode_prompt, encode_reply, encode_supervised
from laurel.model.ends import learn_ends
from laurel.model.policy import Policy, load_policy, max_positions
from laurel.model.render import (
    DEFAULT_TEMPLATE,
    INVENTED,
    ensure_template,
    text_before_turn,
    without_template,
)
from laurel.model.scratch import char_tokenizer, save_scratch, small_model
from laurel.model.turns import as_tools, spoken, trained_flag
from laurel.rollout.general import sample_general
from laurel.rollout.sampler import sample

U, A = (
    (lambda text, **more: {"role": "user", "content": text, **more}),
    (lambda text, **more: {"role": "assistant", "content": text, **more}),
)
CALL = [
    {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 3}'},
    }
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
CALLING = [U("rain?"), A("", tool_calls=CALL), {"role": "tool", "content": "none"}, A("no")]
SINGLE, MULTI = [U("2+2?"), A("4")], [U("2+2?"), A("4"), U("3+3?"), A("6")]
INLINE = [U("2+2?"), A("<think>\ntwo and two\n</think>\n\n4")]
COLUMN = [U("2+2?"), A("4", reasoning_content="two and two")]
BOTH = [
    U("2+2?"),
    A("4", reasoning_content="two and two"),
    U("3+3?"),
    A("6", reasoning_content="thrice"),
]


def targets(tokenizer, row):
    """The targets as text, one string for each run of them."""
    runs, last = [], None
    for i, (token, on) in enumerate(zip(row.ids, row.mask, strict=True)):
        if on:
            runs = runs if last == i - 1 and runs else [*runs, []]
            runs[-1].append(token)
            last = i
    return [tokenizer.decode(run) for run in runs]


def verdict(family, messages, train_on=None, **columns):
    """What is trained on and what is named, or the error."""
    tokenizer = tokenizer_of(family)
    try:
        row = encode_supervised(tokenizer, {"messages": messages, **columns}, train_on=train_on)
    except UsageError as error:
        return str(error).partition(": ")[2]
    return targets(tokenizer, row), row.left_out


# what is shown


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("r1",)])
def test_K01_what_is_sampled_from_is_how_training_begins(family):
    """The prompt's ids begin the row's, in every family; where they cannot (R1 opens a thought that
    training drops) it is refused.
    """
    tokenizer = tokenizer_of(family)
    row, prompt = (
        encode_supervised(tokenizer, {"messages": SINGLE}),
        encode_prompt(tokenizer, SINGLE[:1]),
    )
    assert row.ids[: len(prompt)] == prompt and not any(row.mask[: len(prompt)])
    assert (
        tokenizer.decode(row.ids[len(prompt) :])
        .strip()
        .startswith(("4", "<|channel|>final", "<think>", "\n</think>", "</think>"))
    )


def test_K01_a_turn_that_begins_otherwise_in_training_is_refused():
    assert "begins turn 2 with '<|Assistant|><think>\\n' where it is sampled" in verdict(
        "r1", SINGLE
    )
    assert "--train_on last" in verdict(
        "opening", MULTI
    )  # only the last turn has the thought that sampling opens
    assert verdict("opening", MULTI, "last")[0] == ["\n</think>\n\n6<|im_end|>"]
    spaced = FAMILIES["zephyr"].replace("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n\n' }}")
    assert spaced != FAMILIES["zephyr"] and "begins turn 2" in verdict(spaced, SINGLE)


KEEPS_INLINE = {
    name for name in FAMILIES if name != "r1"
}  # as text of the answer, if not as a thought
READS_THOUGHTS = {"qwen3", "opening", "harmony"}
CALLS = {"chatml", "qwen3", "opening", "mistral", "harmony"}


@pytest.mark.parametrize("family", FAMILIES)
def test_K01_thoughts_are_trained_on_or_refused(family):
    inline, column = verdict(family, INLINE), verdict(family, COLUMN)
    if family in KEEPS_INLINE:
        assert "two and two" in "".join(inline[0])
    else:
        assert "the thought of turn 2 (assistant), which would be trained on" in inline
    if family in READS_THOUGHTS:
        assert "two and two" in "".join(column[0]) and column[1] == ()
        said, named = verdict(family, BOTH, "last")
        assert "thrice" in "".join(said) and named == ("thoughts of earlier turns",)
    else:
        assert "leaves out the thought of turn 2" in column and "--chat_template FILE" in column


@pytest.mark.parametrize("family", FAMILIES)
def test_K01_tool_calls_are_trained_on_or_refused(family):
    tools = {"tools": TOOLS} if family in ("chatml", "mistral") else {}
    found = verdict(family, CALLING, **tools)
    if family not in CALLS:
        assert (
            "tool call of turn 2 (assistant)" in found or "does not render these messages" in found
        )
        return
    said = "".join(found[0])
    assert all(word in said for word in ("weather", "Oslo", "3", "no")) and '\\"' not in said
    assert "`id` of assistant turns" in found[1] and not any("name" in what for what in found[1])
    nameless = [{**CALLING[2], "name": "weather"}]
    assert (
        "`name` of tool turns"
        in verdict(family, [*CALLING[:2], *nameless, *CALLING[3:]], **tools)[1]
    )


def test_K01_calls_take_the_form_that_a_template_wants():
    """R1 wants arguments as text and no content; OpenAI's text becomes an object for the others;
    old spellings are the same call.
    """
    template = FAMILIES["r1"].replace("{{ '<|Assistant|><think>\n' }}", "{{ '<|Assistant|>' }}")
    said = verdict(template, CALLING[:2])[0]
    assert said == ['<|call|>weather\n{"city": "Oslo", "days": 3}<|/call|><|stop|>']
    inner = CALL[0]["function"]
    for other in (
        {"function_call": inner},
        {"tool_calls": [inner]},
        {"tool_calls": json.dumps(CALL)},
    ):
        assert spoken(A(None, **other))["tool_calls"][0]["function"] == {
            "name": "weather",
            "arguments": {"city": "Oslo", "days": 3},
        }
    numbers = [{"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]
    hidden = FAMILIES["chatml"].replace("f.arguments | tojson", "'{}'")
    assert "tool call of turn 2" in verdict(hidden, [U("2+3=2 3"), A("", tool_calls=numbers)])


def test_K01_content_that_a_template_drops_is_refused():
    """Developer turns, tool results, a content beside a call, a cut content, and short words that
    stand elsewhere in the text.
    """
    developer = [{"role": "developer", "content": "Brief."}, *SINGLE]
    assert "content of turn 1 (developer). Call the role `system`" in verdict("chatml", developer)
    assert verdict("zephyr", developer)[0] == ["4<|stop|>"]
    assert "content of turn 2 (assistant)" in verdict(
        "mistral", [U("rain?"), A("let me see", tool_calls=CALL)]
    )
    assert "content of turn 3 (tool)" in verdict(
        "vicuna", [*SINGLE, {"role": "tool", "content": "x"}, A("y")]
    )
    cut = FAMILIES["zephyr"].replace("m.content", "m.content[:9]")
    assert "content of turn 1 (user)" in verdict(cut, [U("a long question"), A("4")])
    silent = FAMILIES["zephyr"].replace("m.content", "('' if m.role == 'system' else m.content)")
    assert "content of turn 1 (system)" in verdict(
        silent, [{"role": "system", "content": "4"}, *SINGLE]
    )
    narrow = (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{{ m.content }}{%"
        " generation %}{{ eos_token }}"
    )
    narrow += "{% endgeneration %}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    assert "not as a part of the turn that is trained on" in verdict(narrow, SINGLE)


def test_K01_tools_that_are_not_shown():
    """Refused for rows to imitate; of prompts they may be meant for the reward, so sampling goes
    on.
    """
    assert "leaves out `tools`" in verdict("zephyr", SINGLE, tools=TOOLS)
    assert verdict("chatml", SINGLE, tools=json.dumps(TOOLS))[0] == ["4<|im_end|>"]
    assert encode_prompt(tokenizer_of("zephyr"), SINGLE[:1], tools=TOOLS) == encode_prompt(
        tokenizer_of("zephyr"), SINGLE[:1]
    )
    tokenizer = tokenizer_of("chatml")
    assert "weather" in tokenizer.decode(encode_prompt(tokenizer, SINGLE[:1], tools=TOOLS))
    assert as_tools("a saw") is None and as_tools([]) is None and as_tools(None) is None
    with pytest.raises(UsageError, match=r"content of turn 1 \(tool"):
        encode_prompt(tokenizer_of("vicuna"), [{"role": "tool", "content": "x"}])


def test_K01_a_reply_of_the_world_that_is_not_shown_is_refused():
    with pytest.raises(UsageError, match="what the world said as tool"):
        encode_reply(tokenizer_of("vicuna"), SINGLE, [{"role": "tool", "content": "x"}], sampled=())
    tokenizer = tokenizer_of("mistral")
    assert "said" in tokenizer.decode(
        encode_reply(tokenizer, SINGLE, [{"role": "tool", "content": 'said "so"'}], sampled=())
    )


def test_laurels_own_template_shows_thoughts_calls_and_tools():
    """Every part of a row stands in the text, the call and the thought are targets, and the
    template says who made it.
    """
    tokenizer = char_tokenizer()
    assert (
        without_template(tokenizer, None) == [INVENTED]
        and without_template(tokenizer, "file") == []
    )
    ensure_template(tokenizer)
    assert (
        "Made by laurel" in tokenizer.chat_template.splitlines()[0]
        and without_template(tokenizer, None) == []
    )
    row = encode_supervised(
        tokenizer, {"messages": [*CALLING[:3], A("no", reasoning="none is no")], "tools": TOOLS}
    )
    call = (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days":'
        " 3}}\n</tool_call><|stop|>"
    )
    assert targets(tokenizer, row) == [call, "<think>\nnone is no\n</think>\n\nno<|stop|>"]
    assert row.text.startswith(
        '<|start|><Tools>\n{"type": "function", "function": {"name": "weather"'
    )
    plain = tokenizer.apply_chat_template(MULTI, tokenize=False)
    assert (
        plain
        == "<|start|><User>\n2+2?<|stop|>\n<Assistant>\n4<|stop|>\n<User>\n3+3?<|stop|>\n<Assistant>\n6<|stop|>\n"
    )
    assert (
        text_before_turn(tokenizer, MULTI[:1]) == "<|start|><User>\n2+2?<|stop|>\n<Assistant>\n"
        and tokenizer.chat_template == DEFAULT_TEMPLATE
    )


# turns that say themselves whether they are trained on


@pytest.mark.parametrize(
    "off",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"training": False},
        {"train_on_turn": False},
        {"trainable": False},
        {"loss": False},
        {"masked": True},
        {"loss_scale": 0},
    ],
)
@pytest.mark.parametrize("family", ["chatml", "gemma", "llama2", "qwen3"])
def test_K02_a_turns_own_flag_masks_it(family, off):
    """OpenAI's, axolotl's and others' names; the masked turn stays in the text, and the text is
    that of a row without flags.
    """
    tokenizer = tokenizer_of(family)
    messages = [U("a?"), A("WRONG", **off), U("sure?"), A("right", weight=1)]
    row = encode_supervised(tokenizer, {"messages": messages})
    bare = encode_supervised(
        tokenizer, {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
    )
    assert row.ids == bare.ids and "WRONG" in row.text
    assert targets(tokenizer, row) == targets(tokenizer, bare)[1:]


def test_K02_flags_and_train_on():
    """`train: true` trains a user's turn too (axolotl), a weight of 1 does not (OpenAI) and is
    named; `all` and `no_tags` leave out.
    """
    tokenizer = tokenizer_of("chatml")

    def said(train_on, *messages):
        row = encode_supervised(tokenizer, {"messages": messages}, train_on=train_on)
        return targets(tokenizer, row), row.left_out

    asked, off = U("a?", train=True), A("b", train=False)
    assert said("assistant", asked, off, U("c?"), A("d")) == (["a?<|im_end|>", "d<|im_end|>"], ())
    named = ("flags that ask to train on user turns, which train_on=assistant does not",)
    assert said("assistant", U("a?", weight=1), A("b")) == (["b<|im_end|>"], named)
    assert said("last", asked, A("b"), U("c?"), A("d"))[0] == ["d<|im_end|>"]
    assert said("no_tags", U("a?"), off) == (["a?<|im_end|>"], ())
    everything = "".join(said("all", U("a?"), off, U("c?"), A("d"))[0])
    assert "b<|im_end|>" not in everything and all(
        word in everything for word in ("a?", "c?", "d", "assistant")
    )
    assert encode_supervised(tokenizer, {"messages": [U("a?"), off]}).supervised == 0
    pair = {"prompt": [U("a?")], "completion": [A("b", weight=0), U("c?"), A("d")]}
    assert targets(tokenizer, encode_supervised(tokenizer, pair)) == ["d<|im_end|>"]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"weight": 0.5}, "`weight` 0.5, and a turn counts whole or not at all"),
        ({"weight": 2}, "`weight` 2"),
        ({"train": "no"}, "'no'"),
        ({"mask": True}, "which can mean"),
        ({"train_detail": [{"begin_offset": 0}]}, "single characters"),
        ({"weight": 1, "train": False}, "it is trained on and that it is not: weight, train"),
    ],
)
def test_K02_flags_that_cannot_be_followed_are_refused(message, says):
    with pytest.raises(UsageError, match=r"turn 2 \(assistant\)") as caught:
        encode_supervised(tokenizer_of("chatml"), {"messages": [U("a"), A("b", **message)]})
    assert says in str(caught.value)
    assert trained_flag(A("b"), 1) is None and trained_flag(A("b", weight=None), 1) is None


# where turns end

ENDS = {
    "chatml": ["<|im_end|>"],
    "qwen3": ["<|im_end|>"],
    "opening": ["<|im_end|>"],
    "r1": [],
    "llama3": ["<|eot|>"],
    "llama2": [],
    "gemma": ["<end_of_turn>"],
    "mistral": [],
    "phi3": ["<|end|>"],
    "zephyr": [],
    "vicuna": [],
    "command": ["<|END|>"],
    "harmony": ["<|return|>", "<|call|>"],
    "glm": None,
    "alpaca": None,
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_K08_the_token_that_closes_turns_is_an_end(family, special):
    """It joins the end tokens and nothing else does; where text or nothing closes turns, that is
    said with what to do.
    """
    tokenizer = tokenizer_of(family, special)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    notes, ends, wanted = (
        learn_ends(model, tokenizer),
        model.generation_config.eos_token_id,
        ENDS[family],
    )
    if family == "harmony" and not special:
        wanted = wanted[:1]  # a token behind a call must be one that the tokenizer calls special
    found = [ends] if isinstance(ends, int) else ends
    assert sorted(found) == sorted(
        [2, *(tokenizer.convert_tokens_to_ids(token) for token in wanted or [])]
    )
    assert len(notes) == (wanted != [])
    if wanted is None:
        assert (
            "no end token" in notes[0]
            and "--chat_template FILE" in notes[0]
            and ("--stop" in notes[0]) == (family == "alpaca")
        )
    assert learn_ends(model, tokenizer) == (notes if wanted is None else [])  # known by now


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A folder whose tokenizer ends with <|stop|> and whose template closes turns with <|im_end|>,
    loaded by laurel and saved again.
    """
    place, tokenizer = tmp_path_factory.mktemp("chatty"), tokenizer_of("chatml", special=False)
    small_model(
        tokenizer, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    options = {
        "device": "cpu",
        "dtype": "float32",
        "chat_template": None,
        "use_peft": False,
        "gradient_checkpointing": False,
        "param_dtype": "auto",
    }
    policy = load_policy(SimpleNamespace(model=str(place / "base"), **options))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():  # every token is followed by the closing one
        embedding = policy.causal.get_input_embeddings().weight
        embedding.copy_(torch.eye(*embedding.shape) * 0.1 + 1.0)
        embedding[end] = 9.0
    policy.save(place / "saved")
    return policy, place / "saved", end


def test_K08_sampling_stops_there_and_so_does_transformers(chatty):
    """Both samplers end with `eos` at the closing token, which is no part of the text; the saved
    folder's generate stops, too.
    """
    policy, saved, end = chatty
    assert end in policy.eos_ids and any("`<|im_end|>`" in note for note in policy.notes)
    prompt = encode_prompt(policy.tokenizer, SINGLE[:1])
    assert compact_of(policy) is not None
    (one,) = sample(policy, [prompt], seeds=[1], max_completion_length=8, temperature=0.01)
    (other,) = sample_general(policy, [prompt], 1, [1], [8], 0.01, 0, 1.0, (), 8)
    for done in (one, other):
        assert done.ids == (end,) and done.finish == "eos" and done.spoken == ()
    assert json.loads((saved / "generation_config.json").read_text())["eos_token_id"] == sorted(
        {2, end}
    )
    again = AutoModelForCausalLM.from_pretrained(saved)
    out = again.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )
    assert out[0, len(prompt) :].tolist() == [end]
    assert AutoTokenizer.from_pretrained(saved).chat_template == FAMILIES["chatml"]


# positions


def test_K23_how_many_positions_a_model_has():
    llama = {"max_position_embeddings": 64}
    stretched = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    yarn = {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 1e4,
    }
    assert max_positions(GPT2Config(n_positions=48)) == 48
    assert max_positions(LlamaConfig(**llama)) == 64
    assert max_positions(LlamaConfig(**llama, rope_parameters=stretched)) == 256
    assert max_positions(LlamaConfig(**llama, rope_parameters=yarn)) == 128
    assert max_positions(LlamaConfig(max_position_embeddings=128, rope_parameters=yarn)) == 128
    assert max_positions(SimpleNamespace(alibi=True, max_position_embeddings=64)) is None
    assert max_positions(SimpleNamespace(model_type="rwkv", max_position_embeddings=64)) is None
    assert max_positions(SimpleNamespace()) is None and max_positions(None) is None


@pytest.mark.parametrize("kind", ["learned", "rotary"])
def test_K23_sampling_stays_within_the_positions(kind):
    """A completion ends as `length` where positions end, each prompt at its own place; a prompt
    that fills them is refused.
    """
    tokenizer = char_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer), n_positions=12, n_embd=8, n_layer=1, n_head=1, **ids
    )
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = (
        GPT2LMHeadModel(gpt2)
        if kind == "learned"
        else small_model(tokenizer, **shape, max_position_embeddings=12)
    )
    policy = Policy(model.eval(), tokenizer)
    done = sample(policy, [(1, 5, 6), (1, *range(5, 13))], seeds=range(8), max_completion_length=20)
    for completions, room in ((done[:4], 9), (done[4:], 3)):
        assert any(c.finish == "length" for c in completions)
        assert all(
            len(c.ids) == room if c.finish == "length" else len(c.ids) <= room for c in completions
        )
    with pytest.raises(UsageError, match="a prompt of 12 tokens, and the model has 12 positions"):
        sample(policy, [(1, *range(5, 16))], seeds=[1], max_completion_length=1)


def test_scratch_models_bring_a_template_of_their_own(tmp_path):
    """laurel's own models are no tokenizer without a template, so nothing is announced."""
    tokenizer = AutoTokenizer.from_pretrained(
        save_scratch(
            tmp_path / "scratch", hidden_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    assert without_template(tokenizer, None) == [] and encode_after(tokenizer, "a") == encode_after(
        char_tokenizer(), "a"
    )
