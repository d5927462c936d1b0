"""Many turns: ids that are never made anew, tokens of the world that are seen and not trained on,
budgets, and worlds that break.
"""

import dataclasses
from functools import partial

import pytest
import torch
from arithmetic import agree, rounding
from hypothesis import given
from hypothesis import strategies as st
from scripted import babbling, drawing, row, scripted, text_of, user
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from laurel.core.errors import UsageError
from laurel.core.protocols import Env
from laurel.core.result import Failed
from laurel.core.sample import Message
from laurel.data.tasks import TASKS
from laurel.model.policy import Policy
from laurel.model.scratch import small_model
from laurel.rollout.calculator import Calculator
from laurel.rollout.episode import load_env, play
from laurel.rollout.pack import k1_of, pack
from laurel.rollout.sampler import Sampler


def tool(text):
    """The world's reply of one message."""
    return [Message(role="tool", content=text)]


class Echo:
    """A world that always answers, with how much it has heard; it may open the episode, and end it
    after `turns` replies.
    """

    def __init__(self, reply="({})", opening=(), turns=99):
        self.reply, self.opening, self.turns, self.heard = reply, list(opening), turns, []

    def reset(self, row):
        self.row = row
        return self.opening

    def step(self, text):
        self.heard.append(text)
        return tool(self.reply.format(len(text))) if len(self.heard) <= self.turns else None


def samples(groups):
    return [s for group in groups for s in group.samples]


def plain_logps(policy, sample):
    """log pi of every completion token by a plain forward pass over the ids as they are stored."""
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
    logp = policy.model(ids).logits[0, len(sample.prompt_ids) - 1 : -1].float().log_softmax(-1)
    return logp.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]


def seen(policy, sample):
    """The stored ids are what the policy saw: a plain forward pass over them gives the
    log-probabilities it sampled with.
    """
    mask = torch.tensor(sample.loss_mask)
    return torch.allclose(
        plain_logps(policy, sample)[mask],
        torch.tensor(sample.logps)[mask],
        rtol=0,
        atol=rounding(torch.tensor(sample.logps)[mask]),
    )


@pytest.mark.parametrize(
    ("limit", "max_turns", "stop", "completion", "mask", "finish", "answer"),
    [
        (20, 4, ("]",), "[7*8]56\ny<|stop|>", "111110 0011", "eos", "y"),
        (10, 4, ("]",), "[7*8]56\ny<|stop|>", "1111100011", "eos", "y"),
        (9, 4, ("]",), "[7*8]56\ny", "111110001", "length", "y"),
        (
            8,
            4,
            ("]",),
            "[7*8]",
            "11111",
            "length",
            "[7*8]",
        ),  # the reply would fit, an answer to it would not
        (5, 4, ("]",), "[7*8]", "11111", "length", "[7*8]"),
        (4, 4, ("]",), "[7*8", "1111", "length", "[7*8"),
        (
            20,
            1,
            ("]",),
            "[7*8]",
            "11111",
            "stop",
            "[7*8]",
        ),  # nobody hears the call of the last turn
        (20, 2, ("]",), "[7*8]56\ny<|stop|>", "1111100011", "eos", "y"),
        (
            20,
            4,
            (),
            "[7*8]<|stop|>56\ny<|stop|>",
            "11111100011",
            "eos",
            "y",
        ),  # a turn may also end with its own token
    ],
)
def test_the_calculator_s_episode_to_the_token(
    limit, max_turns, stop, completion, mask, finish, answer
):
    policy = scripted()
    (group,) = play(Sampler(policy), [row("2=")], drawing(limit, stop=stop), Calculator, max_turns)
    (sample,) = group.samples
    assert (text_of(policy, sample.completion_ids), sample.finish, sample.answer) == (
        completion,
        finish,
        answer,
    )
    assert "".join("01"[on] for on in sample.loss_mask) == mask.replace(" ", "")
    assert [turn["role"] for turn in sample.turns] == (
        ["assistant", "tool", "assistant"] if "0" in mask else ["assistant"]
    )
    assert sample.text == completion.replace("<|stop|>", "")
    assert len(sample.completion_ids) <= limit and seen(policy, sample)


def test_the_demonstrations_show_what_the_calculator_says():
    """What the task's demonstrations write is what call and reply will be."""
    rows = TASKS["calculator"].generate(0, 200)
    shown = [r["completion"] for r in rows if "[" in r["completion"]]
    assert 60 < len(shown) < 140
    for text in shown:
        call, after = text.split("]")
        assert Calculator().step(f"{call}]") == tool(after.split("\n")[0] + "\n")


def test_messages_are_continued_through_the_template():
    """Prompt, turns and replies are together what the template renders, and what closes a turn is
    written once.
    """
    policy = scripted()
    env = Echo("ok {}", opening=user("more"), turns=2)
    (group,) = play(Sampler(policy), [row(user("hi"))], drawing(99), lambda: env, 4)
    (sample,) = group.samples
    talk = [
        *user("hi"),
        *user("more"),
        *[
            turn
            for _ in range(2)
            for turn in (Message(role="assistant", content="y"), *tool("ok 1"))
        ],
    ]
    talk.append(Message(role="assistant", content="y"))
    whole = policy.tokenizer.apply_chat_template(talk, tokenize=False)
    assert text_of(policy, sample.prompt_ids + sample.completion_ids) == whole.rstrip("\n")
    assert list(sample.turns) == talk[2:] and sample.finish == "eos" and seen(policy, sample)
    trained = [i for i, on in zip(sample.completion_ids, sample.loss_mask, strict=True) if on]
    assert text_of(policy, trained) == "y<|stop|>" * 3
    assert env.heard == ["y"] * 3 and env.row == {"prompt": user("hi")}


def test_a_turn_that_a_stop_string_ended_is_closed_by_the_world():
    """In a conversation the token that closes a turn cut short by `stop` is context, not a
    target.
    """
    policy = scripted({"\n": "[", "[": "]"})
    (group,) = play(
        Sampler(policy), [row(user("hi"))], drawing(60, stop=["]"]), lambda: Echo("a", turns=1), 4
    )
    (sample,) = group.samples
    assert (
        text_of(policy, sample.completion_ids) == "[]<|stop|>\n<Tool>\na<|stop|>\n<Assistant>\n[]"
    )
    assert [sum(sample.loss_mask), sample.finish] == [4, "stop"] and seen(policy, sample)


def test_plain_text_gets_the_opening_behind_the_prompt():
    policy = scripted()
    (group,) = play(
        Sampler(policy), [row("2")], drawing(9, stop=["]"]), lambda: Echo(opening=user(" + 2=")), 1
    )
    assert text_of(policy, group.samples[0].prompt_ids) == "<|start|>2 + 2="
    (group,) = play(Sampler(policy), [row("2=")], drawing(9), lambda: Echo(turns=0), 3)
    assert group.samples[0].text == "[7*8]" and len(group.samples[0].turns) == 1


def merging():
    """An untrained policy over a tokenizer with merges: almost nothing that it says is spelt as the
    tokenizer would spell it.
    """
    pieces = ["<s>", "</s>", *"ab]!", "ab", "ba", "aa", "bb", "abab", "b]"]
    merges = [("a", "b"), ("b", "a"), ("a", "a"), ("b", "b"), ("ab", "ab"), ("b", "]")]
    backend = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    return Policy(
        small_model(tokenizer, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
        tokenizer,
    )


@pytest.mark.parametrize("prompt", ["aab", user("aab")])
def test_T47_sampled_ids_are_trained_on_as_they_were_sampled(prompt):
    """T47: turns whose decode -> encode differs, with replies between them: the training ids are
    the sampled ids, column by column.
    """
    policy = merging()
    groups = play(
        Sampler(policy), [row(prompt)], drawing(40, count=32, stop=["]"]), lambda: Echo("ba!"), 3
    )
    strange = 0
    for sample in samples(groups):
        assert len(sample.completion_ids) == len(sample.logps) == len(sample.loss_mask) <= 40
        assert seen(policy, sample)
        own = [i for i, on in zip(sample.completion_ids, sample.loss_mask, strict=True) if on]
        strange += policy.tokenizer(sample.text, add_special_tokens=False)["input_ids"] != list(
            sample.completion_ids
        )
        spoken = "".join(turn["content"] for turn in sample.turns if turn["role"] == "assistant")
        assert policy.tokenizer.decode(own, skip_special_tokens=True) == spoken
    assert strange > 16
    batch = pack(groups)
    for n, sample in enumerate(samples(groups)):
        whole = sample.prompt_ids + sample.completion_ids
        assert tuple(batch.ids_NL[n, : len(whole)].tolist()) == whole
        assert batch.loss_mask_NT[n].sum() == sum(sample.loss_mask)
    gap = (policy.logp(batch).logp - batch.logp_old_NT)[batch.loss_mask_NT]
    assert gap.abs().max() < rounding(batch.logp_old_NT)


def test_T48_the_world_is_seen_and_not_trained_on():
    """T48: another reply of the same length changes the log-probs after it and none before; no
    gradient flows from predicting it.
    """
    policy = babbling("ab]()0123456789")
    groups = play(
        Sampler(policy),
        [row("a"), row("bb", "b")],
        drawing(60, count=8, stop=["]"]),
        lambda: Echo("(12)"),
        3,
    )
    batch = pack(groups)
    world_NT = (
        torch.arange(batch.loss_mask_NT.shape[1])[None] < batch.length_N[:, None]
    ) & ~batch.loss_mask_NT
    assert world_NT.any(1).sum() >= 8
    whole = policy.logp(batch).logp
    assert not whole[world_NT].any() and not batch.logp_old_NT[world_NT].any()

    rows, times = world_NT.nonzero(as_tuple=True)
    ids_NL = batch.ids_NL.clone()
    ids_NL[rows, batch.start_N[rows] + times] = policy.tokenizer.convert_tokens_to_ids("9")
    other = policy.logp(batch.replace(ids_NL=ids_NL)).logp
    first_N = torch.where(world_NT.any(1), world_NT.int().argmax(1), 10**6)
    before_NT = batch.loss_mask_NT & (torch.arange(world_NT.shape[1])[None] < first_N[:, None])
    after_NT = batch.loss_mask_NT & ~before_NT
    agree(whole[before_NT], other[before_NT])
    assert after_NT.any() and (whole - other)[after_NT].abs().median() > 1e-4

    kept = []
    hook = policy.causal.base_model.register_forward_hook(
        lambda module, args, out: kept.append(out.last_hidden_state)
    )
    logp = policy.logp(batch).logp
    hook.remove()
    kept[0].retain_grad()
    (logp * torch.linspace(0.5, 1, logp.numel()).view_as(logp)).sum().backward()
    size_NL = kept[0].grad.abs().sum(-1)
    at = batch.start_N[rows] + times - 1  # the position that predicts a token of the world
    assert torch.equal(size_NL[rows, at], torch.zeros(len(rows)))
    rows, times = batch.loss_mask_NT.nonzero(as_tuple=True)
    assert (size_NL[rows, batch.start_N[rows] + times - 1] > 0).all()


def test_T48_kl_leaves_the_world_out_and_both_ways_of_scoring_agree():
    policy = babbling("ab]()0123456789")
    groups = play(Sampler(policy), [row("a")], drawing(40, count=8, stop=["]"]), Echo, 3)
    batch = pack(groups)
    batch = batch.replace(logp_ref_NT=torch.full_like(batch.logp_old_NT, -50.0))
    assert torch.equal(k1_of(batch) != 0, batch.loss_mask_NT)
    fused = policy.logp(batch).logp
    for n, sample in enumerate(samples(groups)):
        apart = fused[n, : len(sample.logps)] - plain_logps(policy, sample)
        assert apart[torch.tensor(sample.loss_mask)].abs().max() < rounding(
            torch.tensor(sample.logps)
        )


def test_budgets_and_endings_hold_for_anything_a_policy_says():
    """Whatever is said: never a token too many, and the finish names what happened."""
    policy = babbling("ab]()0123456789")
    for limit in (1, 2, 7, 8, 9, 23):
        for sample in samples(
            play(
                Sampler(policy),
                [row("a"), row(user("b"), "b")],
                drawing(limit, count=16, stop=["]"]),
                Echo,
                3,
            )
        ):
            assert (
                1 <= len(sample.completion_ids) <= limit
                and sample.loss_mask[0]
                and sample.loss_mask[-1]
            )
            assert (
                sample.turns[-1]["role"] == "assistant"
                and sum(t["role"] == "assistant" for t in sample.turns) <= 3
            )
            spoken = sum(t["role"] == "assistant" for t in sample.turns)
            if sample.finish == "eos":
                assert sample.completion_ids[-1] in policy.eos_ids and spoken == 3
            elif sample.finish == "stop":
                assert sample.answer.endswith("]") and spoken == 3
            else:
                assert sample.finish == "length"
            assert all(
                logp == 0 for logp, on in zip(sample.logps, sample.loss_mask, strict=True) if not on
            )


def test_episodes_depend_on_their_seeds_alone():
    policy, rows = babbling(), [row("a"), row("ab", "b")]
    draw = drawing(30, count=6, stop=["]"])
    once = play(Sampler(policy), rows, draw, Echo, 3)
    assert once == play(Sampler(policy), rows, draw, Echo, 3)
    alone = play(Sampler(policy), rows[1:], draw, Echo, 3)[0]
    assert [(s.key, s.completion_ids) for s in once[1].samples] == [
        (s.key, s.completion_ids) for s in alone.samples
    ]
    assert (
        len({s.completion_ids for s in once[0].samples}) > 3
        and len({s.key for s in samples(once)}) == 12
    )
    later = play(Sampler(policy), rows, dataclasses.replace(draw, step=1), Echo, 3)
    assert [s.completion_ids for s in samples(once)] != [s.completion_ids for s in samples(later)]


def test_every_turn_has_chances_of_its_own():
    """A policy to which all characters are alike draws other ones in its second turn than in its
    first.
    """
    policy = babbling("ab]()0123456789")
    with torch.no_grad():
        policy.causal.get_output_embeddings().weight.zero_()
    for sample in samples(play(Sampler(policy), [row("a")], drawing(200, count=6), Echo, 2)):
        first, _, second = (turn["content"] for turn in sample.turns)
        assert first[:8] != second[:8]


def test_a_prompt_is_read_once_for_its_group():
    policy, sizes = babbling(), []
    policy.causal.base_model.register_forward_hook(
        lambda module, args, out: sizes.append(len(out.last_hidden_state))
    )
    play(Sampler(policy), [row("ab"), row("b", "b")], drawing(4, count=8, stop=["]"]), Echo, 2)
    assert sizes[0] == 2 and 8 < sizes[1] <= 16


def test_turns_are_kept_as_they_were_said():
    """An environment that uses one message again and again changes none that it has sent before."""
    one = tool("")[0]

    def step(text):
        one["content"] += "\n"
        return [one]

    env = Echo()
    env.step = step
    (group,) = play(Sampler(scripted()), [row("2=")], drawing(20), lambda: env, 3)
    assert [turn["content"] for turn in group.samples[0].turns] == ["[7*8]", "\n", "y", "\n\n", "y"]


def test_episodes_of_a_group_may_open_differently():
    """An environment with chance in it: each episode keeps its own opening, and prompts are shared
    only where they are equal.
    """
    made = iter("89" * 20)
    policy = scripted({"8": "a", "9": "b", "a": "<|stop|>", "b": "<|stop|>"})
    groups = play(
        Sampler(policy),
        [row("2"), row("3", "b")],
        drawing(5, count=2),
        lambda: Echo(opening=user(next(made)), turns=0),
        2,
    )
    assert [s.text for s in samples(groups)] == ["a", "b", "a", "b"]


class Raises(Echo):
    """Breaks in step."""

    def step(self, text):
        raise KeyError("lost")


class Mumbles(Echo):
    """Replies with a string."""

    def step(self, text):
        return "56"


class Unready(Echo):
    """Breaks in reset."""

    def reset(self, row):
        return row["board"]


class Unborn(Echo):
    """Breaks when made."""

    def __init__(self):
        raise OSError("no game server")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (Raises, "step: raised KeyError: 'lost'"),
        (Mumbles, "step: returned '56', not a list of messages"),
        (lambda: Echo(opening=["hello"]), "reset: returned ['hello'], not a list of messages"),
        (Unready, "reset: raised KeyError: 'board'"),
        (partial(Echo, "{}", None), ": raised TypeError"),
        (Unborn, ": raised OSError: no game server"),
    ],
)
def test_K17_a_world_that_breaks_fails_its_group_and_names_the_prompt(env, said):
    """The kind: an environment that raises ends the run. It is tried again; then the group has
    failed, and its neighbours have not.
    """

    def world():
        made.append(1)
        return env() if len(made) % 2 else Echo()

    made = []
    broken, sound = play(
        Sampler(scripted()),
        [row("2=", "games"), row("7*8=", "others")],
        drawing(20, stop=["]"]),
        world,
        3,
    )
    (verdict,) = broken.results["environment"]
    assert (
        isinstance(verdict, Failed)
        and broken.samples[0].finish == "error"
        and broken.samples[0].completion_ids
    )
    assert said in verdict.reason and "games.jsonl:1 (prompt games-0, sample 0)" in verdict.reason
    assert not sound.results and sound.samples[0].finish != "error"


class Flaky(Echo):
    """Breaks the first time."""

    broke = 0

    def step(self, text):
        Flaky.broke += 1
        if Flaky.broke == 1:
            raise ConnectionError("connection reset by peer")
        return super().step(text)


def test_K17_a_world_that_breaks_once_is_as_if_it_never_had():
    rows, draw = [row("2=", "games"), row("7*8=", "others")], drawing(20, stop=["]"])
    assert (
        play(Sampler(scripted()), rows, draw, Flaky, 3)
        == play(Sampler(scripted()), rows, draw, Echo, 3)
        and Flaky.broke > 1
    )


def test_a_world_may_have_nothing_to_say():
    """An empty reply gives the policy another turn; reset may return None."""
    policy = scripted()
    env = Echo(turns=1)
    env.reset, env.step = lambda row: None, lambda text: [] if text == "[7*8]" else None
    (group,) = play(Sampler(policy), [row("2=")], drawing(20, stop=["]"]), lambda: env, 3)
    assert (
        group.samples[0].text == "[7*8]"
        and group.samples[0].finish == "eos"
        and len(group.samples[0].turns) == 2
    )


GAME = '''
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Game:
    """Says `more` once."""

    heard: list[str] = field(default_factory=list)

    def reset(self, row):
        return []

    def step(self, text):
        self.heard.append(text)
        return [{"role": "user", "content": "?"}] if len(self.heard) == 1 else None


class Half:
    def reset(self, row):
        return []


class Needy(Game):
    def __init__(self, size):
        self.size = size


game = Game()
'''


def test_an_environment_from_a_file(tmp_path):
    (tmp_path / "game.py").write_text(GAME)
    make = load_env(f"{tmp_path}/game.py:Game")
    assert isinstance(make(), Env) and load_env(f"{tmp_path}/game.py:Game") is make
    (group,) = play(Sampler(scripted()), [row("2=")], drawing(20, stop=["]"]), make, 4)
    assert group.samples[0].text == "[7*8]?#!" and group.samples[0].answer == "#!"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("calculater", "unknown environment `calculater`. Did you mean `calculator`?"),
        ("game.py", "unknown environment `game.py`. Known: calculator. Or give file.py:Class."),
        ("{}/none.py:Game", "no file"),
        (
            "{}/game.py:Gane",
            "`Gane` is no class with reset(row) and step(text). Did you mean `Game`?",
        ),
        ("{}/game.py:Half", "`Half` is no class with reset(row) and step(text)."),
        ("{}/game.py:game", "`game` is no class"),
        (
            "{}/game.py:Needy",
            "`Needy` cannot be made without arguments: missing a required argument: 'size'",
        ),
        (
            "{}/broken.py:Game",
            "broken.py does not load: ModuleNotFoundError: No module named 'nowhere'",
        ),
    ],
)
def test_environments_that_cannot_be_had(tmp_path, name, said):
    (tmp_path / "game.py").write_text(GAME)
    (tmp_path / "broken.py").write_text("import nowhere\n")
    with pytest.raises(UsageError) as error:
        load_env(name.format(tmp_path))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("[34*27]", "918"),
        ("so [1/3 + 1/6] \n", "1/2"),
        ("[-(2 - 5) * 4 / 6]", "2"),
        ("[1][2+2]", "4"),
        ("[9**9**9]", "error"),
        ("[9//2]", "error"),
        ("[1/0]", "error"),
        ("[" + "(" * 64 + "]", "error"),
        ("[" + "(" * 20 + "7" + ")" * 20 + "]", "7"),
        ("[" + "-" * 63 + "1]", "-1"),
        ("[" + "9*" * 31 + "9]", str(9**32)),
        ("[__import__('os')]", "error"),
        ("[007]", "error"),
        ("[1 2]", "error"),
        ("[ ]", "error"),
        ("[2\n+2]", "error"),
        ("[\u0665]", "error"),
        ("918", None),
        ("[34*27]918", None),
        ("[]", None),
        ("[" + "1" * 65 + "]", None),
        ("[[[[", None),
        ("", None),
    ],
)
def test_the_calculator_by_hand(text, reply):
    calculator = Calculator()
    assert calculator.reset({"prompt": "2="}) == []
    assert calculator.step(text) == (None if reply is None else tool(reply + "\n"))


@given(st.text(alphabet="[]()0123456789+-*/. \n", max_size=80))
def test_no_call_makes_the_calculator_raise_or_run_on(text):
    reply = Calculator().step(text)
    assert reply is None or (reply[0]["role"] == "tool" and 1 < len(reply[0]["content"]) < 200)
