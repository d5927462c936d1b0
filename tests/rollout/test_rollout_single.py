"""One turn: who a sample is, which seed it gets, and what it holds; and rows of data as samples."""

from dataclasses import replace

import pytest
import torch
from scripted import SCRIPT, babbling, drawing, row, scripted, text_of, user

from laurel.core.errors import UsageError
from laurel.core.sample import Key
from laurel.data.source import Row, load_rows
from laurel.model.chat import encode_prompt, encode_supervised
from laurel.rollout.data import as_sample, demonstrations
from laurel.rollout.pack import pack, reward_matrix
from laurel.rollout.sampler import Sampler, rollout
from laurel.weight.group import standardised


def samples(groups):
    return [s for group in groups for s in group.samples]


def test_T28_same_text_twice_stays_two_groups(tmp_path):
    """T28: a prompt that occurs twice, in one file or in two, is two groups: other keys, other
    seeds, advantages of its own.
    """
    (tmp_path / "x.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "ab"}\n')
    (tmp_path / "y.jsonl").write_text('{"prompt": "ab"}\n')
    rows = load_rows(str(tmp_path / "x.jsonl")) + load_rows(str(tmp_path / "y.jsonl"))
    groups = rollout(Sampler(babbling()), rows, drawing(12, count=4))
    assert len({s.key for s in samples(groups)}) == 12
    assert (
        groups[0].prompt != groups[1].prompt
        and groups[0].samples[0].key.source != groups[2].samples[0].key.source
    )
    assert [s.completion_ids for s in groups[0].samples] != [
        s.completion_ids for s in groups[1].samples
    ]
    batch = pack(groups)
    assert batch.group_N.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    rewards = [(1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 1.0)]
    weight_PG = standardised(
        reward_matrix(
            [replace(group, rewards=given) for group, given in zip(groups, rewards, strict=True)]
        )
    )
    assert torch.equal(weight_PG[1], torch.zeros(4)) and weight_PG[0, 0] != weight_PG[2, 3]


def test_every_sample_has_a_seed_of_its_own():
    rows = ["one-0", "two-0"]
    draw = drawing(4, count=3)
    seeds = [
        *draw.seeds_of(rows),
        *draw.seeds_of(rows, turn=1),
        *drawing(4, count=3, step=1).seeds_of(rows),
        *drawing(4, count=3, seed=1).seeds_of(rows),
    ]
    assert len(set(seeds)) == 24
    assert draw.seeds_of(rows) == draw.seeds_of([rows[0]]) + draw.seeds_of(
        [rows[1]]
    )  # whatever the neighbours


def test_the_same_seed_gives_the_same_samples_and_another_step_others():
    policy, rows = babbling(), [row("ab", "one"), row("b", "two")]
    once = rollout(Sampler(policy), rows, drawing(12, count=4))
    assert once == rollout(Sampler(policy), rows, drawing(12, count=4))
    alone = rollout(Sampler(policy), rows[1:], drawing(12, count=4))[0]
    assert [(s.key, s.completion_ids) for s in once[1].samples] == [
        (s.key, s.completion_ids) for s in alone.samples
    ]
    for other in (drawing(12, count=4, step=1), drawing(12, count=4, seed=1)):
        assert [s.completion_ids for s in samples(once)] != [
            s.completion_ids for s in samples(rollout(Sampler(policy), rows, other))
        ]


@pytest.mark.parametrize(
    ("limit", "stop", "completion", "text", "finish"),
    [
        (20, (), "[7*8]<|stop|>", "[7*8]", "eos"),
        (6, (), "[7*8]<|stop|>", "[7*8]", "eos"),
        (5, (), "[7*8]", "[7*8]", "length"),
        (1, (), "[", "[", "length"),
        (20, ("]",), "[7*8]", "[7*8]", "stop"),
        (5, ("]",), "[7*8]", "[7*8]", "stop"),
        (20, ("7*", "zz"), "[7*", "[7*", "stop"),
    ],
)
def test_where_a_completion_ends(limit, stop, completion, text, finish):
    """By its end-of-sequence token (kept, and a target), a stop string (kept) or the limit, never a
    token later.
    """
    policy = scripted()
    (group,) = rollout(Sampler(policy), [row("2=")], drawing(limit, stop=stop))
    (sample,) = group.samples
    assert (text_of(policy, sample.completion_ids), sample.text, sample.finish) == (
        completion,
        text,
        finish,
    )
    assert sample.loss_mask == (True,) * len(sample.completion_ids)
    assert sample.turns == ({"role": "assistant", "content": text},) and sample.answer == text
    assert sample.key == Key("run", "a.jsonl:1", "a-0", 0, 0) and group.row["prompt"] == "2="
    assert sample.prompt_ids == encode_prompt(policy.tokenizer, "2=")


def test_messages_are_asked_through_the_chat_template():
    policy = scripted()
    (group,) = rollout(Sampler(policy), [row(user("hi"))], drawing(9))
    assert (
        text_of(policy, group.samples[0].prompt_ids) == "<|start|><User>\nhi<|stop|>\n<Assistant>\n"
    )
    assert group.samples[0].text == "y"


def test_a_demonstration_is_the_row_itself():
    """Prompt and completion join to the encoded row, whatever is masked; what lies in front of the
    first target is the prompt.
    """
    policy = scripted()
    chat = [
        *user("a?"),
        {"role": "assistant", "content": "#!"},
        *user("b"),
        {"role": "assistant", "content": "y"},
    ]
    for columns in ({"prompt": "2=", "completion": "[7"}, {"messages": chat}, {"text": "abc"}):
        encoded = encode_supervised(policy.tokenizer, columns)
        (group,) = demonstrations(
            policy,
            [Row(columns, "a.jsonl:1", "a-0")],
            run="run",
            step=3,
            train_on=None,
            max_length=None,
        )
        (sample,) = group.samples
        assert sample.prompt_ids + sample.completion_ids == encoded.ids and group.rewards == (1.0,)
        assert (False,) * len(sample.prompt_ids) + sample.loss_mask == encoded.mask
        assert sample.loss_mask[0] and sample.key.version == 3


def test_T32_a_row_without_targets_is_an_error():
    """T32: nothing supervised is never a loss of 0."""
    policy = scripted()
    encoded = encode_supervised(
        policy.tokenizer, {"prompt": "2=", "completion": "[7"}, max_length=3
    )
    with pytest.raises(UsageError, match=r"a.jsonl:1: no token of this row is supervised"):
        as_sample(encoded, Key("run", "a.jsonl:1", "a-0", 0, 0))


def test_the_scripted_policy_never_strays():
    policy = scripted()
    logits = policy.model(torch.tensor([encode_prompt(policy.tokenizer, "".join(SCRIPT))])).logits[
        0
    ]
    assert logits.softmax(-1).max(-1).values.min() > 0.9999
