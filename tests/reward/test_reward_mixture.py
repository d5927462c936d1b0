"""Mixtures: names, signatures, failures that stay where they belong, deadlines, gates, joining by
key.
"""

import asyncio
import functools
import math
import time

import pytest

from laurel.core.errors import LaurelError, UsageError
from laurel.core.result import Abstain, Failed, Score
from laurel.core.sample import Group, Key, Sample
from laurel.reward.load import load_reward
from laurel.reward.mixture import Mixture, load_rewards, metrics


def make_sample(prompt, index, text):
    turns = ({"role": "assistant", "content": text},)
    return Sample(
        Key("run", "data", prompt, index, 0),
        (1,),
        (7, 8),
        (-0.1, -0.2),
        (True, True),
        1.0,
        "eos",
        text,
        turns,
    )


def make_groups(*texts, row=None, prompts=1):
    """`prompts` groups with the same texts."""
    row = {"prompt": "12+34=", "answer": "46", "task": "addition"} if row is None else row
    return [
        Group(f"p{p}", row, tuple(make_sample(f"p{p}", i, text) for i, text in enumerate(texts)))
        for p in range(prompts)
    ]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def mix(*functions, weights=None, rows=None, **options):
    return load_rewards(list(functions), weights, rows or [], **options)


def rewards_of(groups):
    return [reward for group in groups for reward in group.rewards]


def test_T29_failed_grade_keeps_alignment():
    """T29: the verifier raises on sample 1 of 4: rewards 0, 2 and 3 are unchanged, none is
    shifted.
    """

    def grade(completions, **columns):
        if "bad" in completions:
            raise ValueError("cannot grade")
        return [float(text) for text in completions]

    (group,) = mix(grade).score(make_groups("0.5", "bad", "2", "3"))
    assert group.rewards == (0.5, None, 2.0, 3.0)
    assert (
        isinstance(group.results["grade"][1], Failed)
        and "ValueError: cannot grade" in group.results["grade"][1].reason
    )


@pytest.mark.parametrize("count", [0, 3, 5])
def test_T29_wrong_length_fails_every_sample_and_shifts_none(count):
    """T29: another number of values than completions: nothing can be joined, so everything failed,
    with both lengths named.
    """
    mixture = mix(lambda completions: [1.0] * count, max_failed_fraction=1.0)
    (group,) = mixture.score(make_groups("a", "b", "c", "d"))
    assert group.rewards == (None,) * 4
    assert {result.reason for result in group.results["lambda"]} == {
        f"returned {count} values for 4 completions"
    }


def test_T52_exception_for_one_of_eight():
    """T52: the run goes on, the sample is excluded, the reason is kept, the metric counts it."""

    def picky(completions, **columns):
        return [1.0 / len(text) for text in completions]

    groups = mix(picky).score(make_groups("a", "", "abcd", "ab", prompts=2))
    assert rewards_of(groups) == [1.0, None, 0.25, 0.5] * 2
    found = metrics(groups)
    assert found["rewards/picky/failed"] == (2, 8) and found["rewards/picky/mean"] == (3.5, 6)
    assert (
        "ZeroDivisionError" in groups[0].results["picky"][1].reason
        and "test_reward_mixture.py" in groups[0].results["picky"][1].reason
    )


def test_T52_more_than_half_failed_stops_the_run_with_the_sample():
    """T52: above max_failed_fraction the step raises, with the reward, the error and the first
    sample's text.
    """

    def broken(completions, **columns):
        raise KeyError("no such column")

    with pytest.raises(LaurelError) as caught:
        mix(broken).score(make_groups("first text", "second"))
    assert (
        "2 of 2" in str(caught.value)
        and "broken" in str(caught.value)
        and "first text" in str(caught.value)
        and "KeyError" in str(caught.value)
    )
    half = mix(lambda completions: [None if text else math.nan for text in completions])
    assert rewards_of(half.score(make_groups("x", ""))) == [
        None,
        None,
    ]  # exactly half failed: not more


def test_values_become_results():
    """NaN and infinity are failures, None abstains, a Result passes through, text is a failure:
    never a silent zero.
    """
    values = [1, math.nan, math.inf, None, Score(0.5, "so"), "3.5", "many"]
    (group,) = mix(lambda completions: values, max_failed_fraction=1.0).score(
        make_groups(*"abcdefg")
    )
    kinds = [type(result) for result in group.results["lambda"]]
    assert kinds == [Score, Failed, Failed, Abstain, Score, Score, Failed]
    assert group.rewards == (1.0, None, None, None, 0.5, 3.5, None)
    (group,) = mix(lambda completions: 1.0, max_failed_fraction=1.0).score(make_groups("a"))
    assert group.results["lambda"][0] == Failed("returned float, not a list of numbers")


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **columns):
        self.calls += 1
        return [1.0] * len(completions)


class AsyncObject:
    async def __call__(self, completions, **columns):
        await asyncio.sleep(0)
        return [2.0] * len(completions)


async def slow(completions, bonus=0.0, **columns):
    await asyncio.sleep(0.01)
    return [3.0 + bonus] * len(completions)


def test_T53_every_kind_of_callable_under_a_stable_name():
    """T53: partial, lambda, callable object, async def and async object; duplicates told apart."""
    counter = Counter()
    mixture = mix(
        length,
        functools.partial(length),
        counter,
        AsyncObject(),
        slow,
        functools.partial(slow, bonus=1.0),
        lambda completions: [5.0] * len(completions),
        lambda completions, **columns: [6.0] * len(completions),
    )
    assert mixture.names == (
        "length",
        "length_2",
        "Counter",
        "AsyncObject",
        "slow",
        "slow_2",
        "lambda",
        "lambda_2",
    )
    groups = mixture.score(make_groups("a", "b", prompts=3))
    assert rewards_of(groups) == [1.0 + 1.0 + 1.0 + 2.0 + 3.0 + 4.0 + 5.0 + 6.0] * 6
    assert counter.calls == 1


def test_T53_a_name_that_looks_like_a_duplicate_is_kept():
    def f(completions):
        return [0.0] * len(completions)

    def f_2(completions):
        return [1.0] * len(completions)

    assert mix(f, f, f_2, f).names == ("f", "f_3", "f_2", "f_4")


def test_functions_get_columns_repeated_per_completion():
    seen = {}

    def look(prompts, completions, completion_ids, answer, **columns):
        seen.update(locals())
        return [0.0] * len(completions)

    groups = [
        *make_groups("x", "y"),
        Group("q", {"prompt": "2+2=", "answer": "4", "extra": 1}, (make_sample("q", 0, "4"),)),
    ]
    mix(look).score(groups)
    assert (
        seen["prompts"] == ["12+34=", "12+34=", "2+2="]
        and seen["answer"] == ["46", "46", "4"]
        and seen["completions"] == ["x", "y", "4"]
    )
    assert seen["completion_ids"] == [[7, 8]] * 3 and seen["columns"] == {
        "task": ["addition", "addition", None],
        "extra": [None, None, 1],
    }


def test_conversational_rows_get_messages():
    row = {"prompt": [{"role": "user", "content": "hi"}]}
    mixture = mix(
        lambda prompts, completions: [
            float(len(p) + len(c[0]["content"])) for p, c in zip(prompts, completions, strict=True)
        ]
    )
    assert rewards_of(mixture.score(make_groups("abc", row=row))) == [4.0]


def test_a_reward_cannot_change_what_the_next_one_sees():
    def vandal(completions, **columns):
        completions.clear()
        return [0.0, 0.0]

    (group,) = mix(vandal, length).score(make_groups("a", "bb"))
    assert group.results["length"] == (Score(1.0), Score(2.0))


def test_a_reward_that_hangs_does_not_hang_the_run():
    """Pure Python, asleep, and a coroutine that never ends or blocks the loop: Failed within the
    deadline; finished rewards count.
    """

    def hang(completions, **columns):
        while len(completions) < 10:
            time.sleep(0.001)
        return []

    async def never(completions, **columns):
        await asyncio.sleep(3600)

    began = time.monotonic()
    mixture = mix(hang, never, slow, length, timeout=0.4, max_failed_fraction=1.0)
    (group,) = mixture.score(make_groups("a", "b"))
    assert time.monotonic() - began < 3
    assert {result.reason for name in ("hang", "never") for result in group.results[name]} == {
        "no answer within 0.4 s (reward_timeout)"
    }
    assert (
        group.results["slow"] == (Score(3.0),) * 2
        and group.results["length"] == (Score(1.0),) * 2
        and group.rewards == (None, None)
    )
    with pytest.raises(LaurelError, match="could not be scored"):
        mix(hang, timeout=0.1).score(make_groups("a"))


def test_a_reward_that_hangs_on_one_sample_loses_that_one_only():
    """After the list raised, samples are tried one by one; those done before the deadline keep
    their scores.
    """

    def sticky(completions, **columns):
        if len(completions) > 1:
            raise RuntimeError("one at a time, please")
        while completions == ["hang"]:
            time.sleep(0.001)
        return [1.0]

    (group,) = mix(sticky, timeout=0.4, max_failed_fraction=1.0).score(
        make_groups("a", "b", "hang")
    )
    assert group.rewards == (1.0, 1.0, None)


def test_weights_and_abstentions():
    """1 * length + 10 * even, worked by hand: "ab" 2 + 10, "a" 1 + 0; the abstention leaves length
    alone.
    """

    def even(completions, **columns):
        return [None if text == "" else float(len(text) % 2 == 0) for text in completions]

    mixture = mix(length, even, weights=[1.0, 10.0])
    assert rewards_of(mixture.score(make_groups("ab", "a", ""))) == [12.0, 1.0, 0.0]
    (alone,) = mix(even).score(make_groups(""))
    assert alone.rewards == (None,)


def test_gates_multiply_and_never_add():
    """A gate closes good and bad alike to 0 at best: it never lifts a negative reward."""

    def gate(completions, **columns):
        return [float(text.startswith("ok")) for text in completions]

    gate.gate = True
    good = mix(lambda completions: [3.0] * len(completions), gate)
    assert rewards_of(good.score(make_groups("ok", "no"))) == [3.0, 0.0]
    bad = mix(lambda completions: [-3.0] * len(completions), gate)
    assert rewards_of(bad.score(make_groups("ok", "no"))) == [-3.0, -3.0]
    assert rewards_of(mix(gate).score(make_groups("ok", "no"))) == [1.0, 0.0]
    assert mix("format", "addition", rows=[{"prompt": "1+1=", "task": "addition"}]).rewards[0].gate
    with pytest.raises(UsageError, match="gate"):
        mix(length, gate, weights=[1.0, 0.5])


def test_results_join_by_key_whatever_the_order():
    """Invariance: the order of groups and of samples changes no sample's reward."""
    groups = make_groups("a", "bb", "ccc", prompts=3)
    straight = {
        s.key: r
        for g in mix(length).score(groups)
        for s, r in zip(g.samples, g.rewards, strict=True)
    }
    turned = [Group(g.prompt, g.row, g.samples[::-1]) for g in groups[::-1]]
    assert straight == {
        s.key: r
        for g in mix(length).score(turned)
        for s, r in zip(g.samples, g.rewards, strict=True)
    }
    with pytest.raises(LaurelError, match="same key"):
        mix(length).score([groups[0], groups[0]])
    assert mix(length).score([]) == []


# Names and signatures


ROWS = [{"prompt": "12+34=", "answer": "46", "task": "addition"}]


def test_the_default_is_the_verifier_of_the_rows_task():
    mixture = load_rewards(None, None, ROWS)
    assert mixture.names == ("addition",) and rewards_of(
        mixture.score(make_groups("46", "47"))
    ) == [1.0, 0.0]
    both = load_rewards(None, None, [*ROWS, {"prompt": "q", "answer": "#### 5", "task": "gsm8k"}])
    other = make_groups(
        "so 5", row={"prompt": "q", "question": "q", "answer": "#### 5", "task": "gsm8k"}
    )
    assert (
        both.names == ("task",)
        and rewards_of(both.score([*make_groups("46")])) == [1.0]
        and rewards_of(both.score(other)) == [1.0]
    )


@pytest.mark.parametrize(
    ("names", "rows", "says"),
    [
        (None, [{"prompt": "x"}], "no column `task`"),
        (None, [{"prompt": "x", "task": "aditon"}], "Did you mean `addition`"),
        (None, [], "no rows"),
        ([], ROWS, "no reward"),
        (["exatc"], ROWS, "Did you mean `exact`"),
        (["exact"], [{"prompt": "x"}], "`answer`"),
        (["no.such.module.f"], ROWS, "does not load"),
        (["missing.py:f"], ROWS, "no file"),
        (["json.dumpz"], ROWS, "Did you mean `dump`"),
        ([lambda completions, answr: []], ROWS, "Did you mean `answer`"),
        ([lambda completion: []], ROWS, "takes none of prompts, completions"),
        ([lambda prompts, completions, /: []], ROWS, "positional only"),
        (
            [lambda completions: []],
            [{"prompt": "x", "completions": []}],
            "has the name of an argument",
        ),
    ],
)
def test_mistakes_are_found_before_any_weight_is_loaded(names, rows, says):
    with pytest.raises(UsageError) as caught:
        load_rewards(names, None, rows)
    assert says in str(caught.value)


def test_weights_must_match():
    with pytest.raises(UsageError, match="2 weights for 1 rewards"):
        load_rewards(["exact"], [1.0, 2.0], ROWS)
    with pytest.raises(UsageError, match="nan"):
        load_rewards(["exact"], [math.nan], ROWS)


def test_rewards_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\ndef shout(completions, **columns):\n    return"
        " [float(text.isupper()) for text in completions]\ndef judge(answer, row):\n    return 1.0"
        " if answer == row['answer'] else 0.0\n@dataclass\nclass Box:\n    x: int = 0\n"
    )
    mixture = load_rewards(
        [f"{file}:shout", f"{file}:judge", f"{file}:shout"], [1.0, 2.0, 4.0], ROWS
    )
    assert mixture.names == ("shout", "judge", "shout_2") and mixture.rewards[1].judges
    assert rewards_of(mixture.score(make_groups("46", "AB"))) == [2.0, 5.0]
    with pytest.raises(UsageError, match="Did you mean `shout`"):
        load_reward(f"{file}:shoot")
    (tmp_path / "broken.py").write_text("1/0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        load_reward(f"{tmp_path / 'broken.py'}:f")


def test_rows_of_the_data_room_are_understood():
    from laurel.data.formats import rows_fit_for
    from laurel.data.source import load_rows

    rows = rows_fit_for(load_rows("addition", size=3), "rl")
    mixture = load_rewards(None, None, rows)
    groups = [
        Group(row.id, row.columns, (make_sample(row.id, 0, row.columns["completion"]),))
        for row in rows
    ]
    assert isinstance(mixture, Mixture) and rewards_of(mixture.score(groups)) == [1.0] * 3


def test_the_sentiment_example_scores_in_its_range():
    pytest.importorskip("vaderSentiment")
    mixture = load_rewards(["examples/rewards/sentiment.py:vader"], None, [{"prompt": "Once"}])
    happy, sad = rewards_of(
        mixture.score(
            make_groups(
                "What a wonderful, happy day!", "Horrible, sad and cruel.", row={"prompt": "Once"}
            )
        )
    )
    assert mixture.names == ("vader",) and -1 <= sad < -0.5 < 0.5 < happy <= 1


def test_verifiers_that_raise_or_are_late_fail_alone():
    def judge(answer, row):
        if answer == "bad":
            raise ValueError("no")
        if answer == "slow":
            time.sleep(0.3)
        return 1.0

    (group,) = mix(judge, timeout=5).score(make_groups("a", "bad", "c"))
    assert group.rewards == (1.0, None, 1.0)
    (group,) = mix(judge, timeout=0.2, max_failed_fraction=1.0).score(
        make_groups("slow", "slow", "a", "b")
    )
    assert group.rewards == (
        1.0,
        1.0,
        None,
        None,
    )  # two at a time; nothing starts after the deadline
