"""Servers that fail, answers that are none: an error or invalid, never a tie, never a number."""

import json
import math
import time

import pytest
from judge_server import SAID, WIRE, clear_pairs, content, expected, shaped, status, whole_answer

from laurel.core.errors import LaurelError
from laurel.core.result import Failed
from laurel.judge import client
from laurel.judge.judge import Item, Judge, Pair

PAIRS = [Pair(f"p{i}", "a question", *both) for i, both in enumerate(clear_pairs(3))]
RIGHT = [expected(pair.first, pair.second)[0] for pair in PAIRS]
POISON = PAIRS[1].first


def about_poison(body):
    """Is it about the second pair?"""
    return POISON in json.dumps(body)


def statuses(judged):
    return [tuple(verdict.status for verdict in one.verdicts) for one in judged]


def no_number(judgement):
    """Nothing in it that a loss or a table could take for an answer."""
    assert judgement.status in ("error", "invalid") and not judgement.valid
    assert (judgement.soft_label, judgement.score, judgement.margin) == (None, None, None)
    assert isinstance(judgement.result(), Failed)
    failed = [one for one in judgement.verdicts if one.status in ("error", "invalid")]
    assert failed
    for one in failed:
        assert (one.chance, one.level, one.score, one.likely) == (None, None, None, None)
        assert one.reason


@pytest.mark.parametrize("name", WIRE)
def test_a_fault_that_passes(server, config, name):
    """Asked again, each question gets its own answer, once."""
    limit = 0.3 if name in ("silent", "drip") else 5.0
    server.fault = lambda body, digest, count: WIRE[name] if count == 1 else None
    with Judge(config(timeout=limit, retries=2)) as judge:
        found = judge.compare(PAIRS)
        assert statuses(found) == RIGHT
        assert set(server.answered.values()) == {1} and len(server.answered) == 6
        before = sum(server.asked.values())
        assert judge.compare(PAIRS) != found  # known now: `cached`
        assert sum(server.asked.values()) == before


@pytest.mark.parametrize("name", ["429", "500", "reset", "drip", "garbage"])
def test_a_fault_that_stays(server, config, name, tmp_path):
    """The one item is an error, the others are judged; later that one alone is asked."""
    server.fault = lambda body, digest, count: WIRE[name] if about_poison(body) else None
    with Judge(config(), cache=tmp_path / "cache") as judge:
        found = judge.compare(PAIRS)
    assert statuses(found) == [RIGHT[0], ("error", "error"), RIGHT[2]]
    no_number(found[1])
    server.fault = None
    server.bodies.clear()
    with Judge(config(), cache=tmp_path / "cache") as judge:
        assert statuses(judge.compare(PAIRS)) == RIGHT
    assert len(server.bodies) == 2 and all(map(about_poison, server.bodies))


@pytest.mark.parametrize("label", ["text", "samples"])
@pytest.mark.parametrize("name", SAID)
def test_an_answer_that_names_no_label(server, config, name, label):
    """It is invalid, quickly, and it is an answer: nobody asks for it again."""
    server.fault = lambda body, digest, count: SAID[name] if about_poison(body) else None
    begin = time.monotonic()
    with Judge(config(label=label, num_samples=2)) as judge:
        found = judge.compare(PAIRS)
        assert statuses(found) == [RIGHT[0], ("invalid", "invalid"), RIGHT[2]]
        no_number(found[1])
        before = len(server.bodies)
        assert statuses(judge.compare(PAIRS)) == statuses(found)
        assert len(server.bodies) == before
    assert time.monotonic() - begin < 2


def test_one_order_alone_is_no_judgement(server, config):
    """What cannot be read in one order leaves the pair without a label."""

    def fault(body, digest, count):
        said = json.dumps(body)
        swapped = said.index(PAIRS[1].second) < said.index(POISON) if POISON in said else False
        return SAID["prose"] if swapped else None

    server.fault = fault
    with Judge(config()) as judge:
        found = judge.compare(PAIRS)
    assert statuses(found)[1] == (RIGHT[1][0], "invalid")
    no_number(found[1])


def top(*rows, token="A", logprob=-0.1):
    """A chat's answer with these rows of log-probabilities in the first place."""
    entry = {"token": token, "logprob": logprob, "top_logprobs": list(rows)}
    choice = {"message": {"content": "A"}, "finish_reason": "length"}
    return shaped(whole_answer({**choice, "logprobs": {"content": [entry]}}))


def bare(logprobs):
    """A chat's answer with these log-probabilities."""
    choice = {"message": {"content": "A"}, "finish_reason": "length"}
    return shaped(whole_answer({**choice, "logprobs": logprobs}))


NAN, HUGE = float("nan"), -(10**400)
UNREAD = {
    "none": bare(None),
    "empty": bare({}),
    "a text": bare("A"),
    "a list": bare([1]),
    "content empty": bare({"content": []}),
    "content null": bare({"content": [None]}),
    "content numbers": bare({"content": [1, 2]}),
    "nan": top(token="A", logprob=NAN),
    "positive": top(token="A", logprob=3.0),
    "text": top(token="A", logprob="-0.1"),
    "true": top(token="A", logprob=True),
    "rows a text": bare({"content": [{"token": "x", "logprob": -1, "top_logprobs": "A"}]}),
    "rows a number": bare({"content": [{"token": "x", "logprob": -1, "top_logprobs": 7}]}),
    "rows of texts": top("A", "B", token="x"),
    "rows of null": top(None, token="x"),
    "no label": top({"token": "no", "logprob": -0.2}, token="The"),
    "hardly a label": top({"token": "A", "logprob": -9.0}, token="The"),
    "endless": top({"token": "A", "logprob": HUGE}, token="The"),
    "token null": top(token=None),
    "token a list": top(token=["A"]),
}


@pytest.mark.parametrize("name", UNREAD)
def test_log_probabilities_that_are_none(server, config, name):
    """Of the second pair: invalid, and the others keep the soft labels of their own."""
    with Judge(config(label="logprobs")) as judge:
        assert judge.compare(PAIRS[:1])[0].valid
        server.fault = lambda body, digest, count: UNREAD[name] if about_poison(body) else None
        found = judge.compare(PAIRS)
    assert judge.config.label == "logprobs"
    no_number(found[1])
    for pair, one in zip(PAIRS[::2], found[::2], strict=True):
        assert math.isclose(one.soft_label, expected(pair.first, pair.second)[1], rel_tol=1e-9)
        assert all(math.isclose(v.missing_mass, 0.1, rel_tol=1e-9) for v in one.verdicts)


@pytest.mark.parametrize("usage", [None, "x", [1], {"prompt_tokens": "9"}, {"prompt_tokens": -3}])
def test_a_usage_that_is_none(server, config, usage):
    """It counts nothing, and the verdict stands."""
    said = {"choices": [{"message": {"content": "A"}}], "usage": usage}
    server.fault = lambda body, digest, count: shaped(said)
    with Judge(config(orders="one")) as judge:
        (found,) = judge.compare(PAIRS[:1])
    assert found.status == "a" and found.verdicts[0].tokens == (0, 0)


@pytest.mark.parametrize("listed", [WIRE["500"], WIRE["garbage"], status(404), status(401)])
def test_a_server_that_cannot_list_its_models(server, config, listed):
    """As `transformers serve` without a cache: it lives, and is asked again."""
    server.models = listed
    server.fault = lambda body, digest, count: WIRE["500"] if count == 1 else None
    with Judge(config(retries=2)) as judge:
        assert statuses(judge.compare(PAIRS)) == RIGHT


@pytest.mark.parametrize("code", [400, 413, 422])
def test_one_item_that_the_server_refuses(server, config, code):
    """Too long for its context: an error with the server's words, at once."""
    server.fault = lambda body, digest, count: (
        status(code, said="too long a prompt") if about_poison(body) else None
    )
    with Judge(config()) as judge:
        found = judge.compare(PAIRS)
    assert statuses(found) == [RIGHT[0], ("error", "error"), RIGHT[2]]
    assert "too long a prompt" in found[1].reason
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_server_that_refuses_everybody(server, config, code):
    """A wrong key, a wrong name: one error that says so, and not one for each question."""
    server.fault = lambda body, digest, count: status(code, said="who are you")
    many = [Pair(str(i), "q", *both) for i, both in enumerate(clear_pairs(200))]
    with (
        Judge(config(api_key="MY_JUDGE_KEY")) as judge,
        pytest.raises(LaurelError, match="who are you") as caught,
    ):
        judge.compare(many)
    assert len(server.bodies) <= 2 * judge.config.concurrency
    assert server.url in str(caught.value)
    assert code != 401 or "MY_JUDGE_KEY" in str(caught.value)


@pytest.mark.parametrize("fault", [status(400, said="no such model"), WIRE["garbage"]])
def test_a_server_that_answers_nobody(server, config, fault):
    """A name that it refuses with 400, or nothing but noise: it is given up early."""
    server.fault = lambda body, digest, count: fault
    many = [Pair(str(i), "q", *both) for i, both in enumerate(clear_pairs(100))]
    with (
        Judge(config(retries=0)) as judge,
        pytest.raises(LaurelError, match="it answered none of 16 questions"),
    ):
        judge.compare(many)
    assert len(server.asked) <= 16 + judge.config.concurrency


def test_a_server_that_says_when_to_come_back(server, config):
    """Retry-After is kept to, as long as the question's time lasts; what is none is not."""
    for wait, least, most in (
        ("1", 0.95, 1.3),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.5),
        ("-4", 0, 0.5),
        ("86400", 1.3, 2.5),
    ):
        server.asked.clear()
        server.times.clear()
        later = status(429, [("retry-after", wait)])
        server.fault = lambda body, digest, count, later=later: later if count == 1 else None
        with Judge(config(orders="one", timeout=1.4)) as judge:
            assert judge.compare(PAIRS[:1])[0].valid
        assert least <= server.times[1] - server.times[0] < most


def test_a_hung_server_is_a_server_that_is_down(server, config, monkeypatch):
    """Silent to everything: one error after `patience`, not a time-out for each question."""
    monkeypatch.setattr(client, "PROBE", 0.2)
    server.hung = True
    many = [Pair(str(i), "q", *both) for i, both in enumerate(clear_pairs(100))]
    begin = time.monotonic()
    with (
        Judge(config(timeout=0.3, patience=0.5)) as judge,
        pytest.raises(LaurelError, match=r"down.*not asked twice"),
    ):
        judge.compare(many)
    assert time.monotonic() - begin < 4


def test_how_sure_is_not_settled_by_a_failure(server, config, tmp_path):
    """A first question that fails, or is refused for itself, does not cost the judge its
    log-probabilities, now or later.
    """
    for name, fault in {"down": WIRE["500"], "refused": status(400)}.items():
        server.fault = lambda body, digest, count, fault=fault: (
            fault if about_poison(body) else None
        )
        with Judge(config(label="logprobs"), cache=tmp_path / name) as judge:
            found = judge.compare([PAIRS[1], PAIRS[0]])
            assert judge.ways == {"m": "top_logprobs"}
        no_number(found[0])
        assert found[1].verdicts[0].missing_mass == pytest.approx(0.1)


def test_a_server_without_log_probabilities_is_asked_for_samples(server, config):
    """Whether it leaves the fields out or refuses them."""

    def leaves_out(body, digest, count):
        return content("A") if "logprobs" in body else None

    def refuses(body, digest, count):
        return status(400, said="unknown field") if "logprobs" in body else None

    for fault in (leaves_out, refuses):
        server.fault = fault
        server.bodies.clear()
        with Judge(config(label="logprobs", num_samples=4)) as judge:
            found = judge.compare(PAIRS)
            assert judge.ways == {"m": "samples"}
        assert statuses(found) == RIGHT
        plain = [body for body in server.bodies if "logprobs" not in body]
        assert len(plain) == 24 and {body["seed"] for body in plain} == {0, 1, 2, 3}
        assert {body["temperature"] for body in plain} == {1.0}


def test_fields_of_ones_own_are_part_of_the_question(server, config, tmp_path):
    """An answer to a request with other `extra_body` is no answer to this one."""
    for extra in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": 1}):
        with Judge(config(extra_body=extra), cache=tmp_path / "cache") as judge:
            judge.compare(PAIRS[:1])
    assert [body.get("top_k") for body in server.bodies] == [None, None, 1, 1, 2, 2]


def test_scores_fail_as_pairs_do(server, config):
    """A score that cannot be read, and one that got no answer, are Failed; a rubric with one."""
    items = [Item(str(i), "q", f"response {i}") for i in range(3)]
    faults = {"response 0": SAID["prose"], "response 1": status(500)}
    criteria = [{"name": "a", "question": "Is it?"}, {"name": "b", "question": "Was it?"}]
    server.fault = lambda body, digest, count: next(
        (fault for text, fault in faults.items() if text in json.dumps(body)), None
    )
    for more in ({"form": "score"}, {"form": "rubric", "criteria": criteria}):
        with Judge(config(**more)) as judge:
            found = judge.score(items)
        assert [one.status for one in found] == ["invalid", "error", "scored"]
        no_number(found[0]), no_number(found[1])
        with Judge(config(**more)) as judge:
            pairs = [Pair("0", "q", "response 0", "response 2"), Pair("1", "q", *items_text())]
            for one in judge.compare(pairs):
                no_number(one)


def items_text():
    return "response 1", "response 0"
