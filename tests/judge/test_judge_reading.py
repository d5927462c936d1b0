"""Answers read: a label, or none; soft labels from log-probabilities by hand."""

import math

import pytest

from laurel.judge.reading import (
    first_tokens,
    label_position,
    label_shares,
    read_label,
    read_number,
)

LABELS = ("A", "B", "C")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "A"),
        (" b.\n", "B"),
        ("**B**", "B"),
        ("[[C]]", "C"),
        ("Verdict: A", "A"),
        ("<think>B is worse. Verdict: B</think>\nA", "A"),
        ("A or B", None),
        ("both", None),
        ("", None),
        ("AB", None),
        ("D", None),
        ("A is better because it is right.", None),
        ("Verdict: A or B", None),
    ],
)
def test_an_answer_of_a_letter(text, label):
    assert read_label(text, LABELS, reasoning=False) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B is right.\nVerdict: B", "B"),
        ("It says\nVerdict: A\nbut that is its own claim.\nVerdict: B", "B"),
        ("It says\nVerdict: A\nVerdict: B\nand so on", None),
        ("Verdict: B\n\n***", "B"),
        ("Verdict: B\nThank you.", None),
        ("**Verdict:** C", "C"),
        ("A is better.", None),
        ("A", None),
        ("I think the verdict: A is what they want", None),
    ],
)
def test_a_reasoned_answer_ends_in_a_verdict_line(text, label):
    assert read_label(text, LABELS, reasoning=True) == label


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("7/10", 7), ("10", 10), ("11", None), ("7 or 8", None), ("", None)],
)
def test_a_number(text, number):
    assert read_number(text, 1, 10, reasoning=False) == number


def test_shares_by_hand():
    """P(A) = .3 + .1 (with a space), P(B) = .2: shares 2/3 and 1/3, .4 is missing."""
    tokens = [
        ("A", math.log(0.3)),
        (" A", math.log(0.1)),
        ("B", math.log(0.2)),
        ("C", math.log(0.05)),
    ]
    found = label_shares(tokens, ["A", "B"])
    assert found.shares["A"] == pytest.approx(2 / 3)
    assert found.missing == pytest.approx(0.4)


def test_a_label_that_is_not_listed_has_at_most_the_least():
    """A .6, others .2 and .1: B has at most .1, and P(A) is .6 / .7, not 1."""
    tokens = [("A", math.log(0.6)), ("x", math.log(0.2)), ("y", math.log(0.1))]
    found = label_shares(tokens, ["A", "B"])
    assert found.shares["A"] == pytest.approx(6 / 7)
    assert found.missing == pytest.approx(0.4)


@pytest.mark.parametrize(
    "tokens", [[("x", -0.1)], [("A", -math.inf), ("B", -math.inf)], [("AB", -0.1)]]
)
def test_no_label_is_no_share(tokens):
    assert label_shares(tokens, ["A", "B"]) is None


def test_both_shapes_of_logprobs():
    row = {"token": "A", "logprob": -0.5, "top_logprobs": [{"token": " A", "logprob": -2}]}
    assert first_tokens({"logprobs": {"content": [row]}}) == [(" A", -2.0)]
    del row["top_logprobs"]
    assert first_tokens({"logprobs": {"content": [row]}}) == [("A", -0.5)]
    assert first_tokens({"logprobs": {"top_logprobs": [{"A": -1}]}}) == [("A", -1.0)]
    for broken in ({}, {"logprobs": None}, {"logprobs": {"content": []}}, {"logprobs": "?"}):
        assert first_tokens(broken) is None
    odd = {"logprobs": {"content": [{"token": "A", "logprob": "x", "top_logprobs": None}]}}
    assert first_tokens(odd) == [("A", -math.inf)]


def test_the_label_of_a_reasoned_answer_is_the_last():
    content = [{"token": text} for text in ("A", " is", " fine", "Verdict", ":", " A")]
    assert label_position({"logprobs": {"content": content}}, "A") == 5
    assert label_position({"logprobs": None}, "A") is None
