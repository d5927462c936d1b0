"""One answer out of several, by the official client: the choice is that of the same completions."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import yaml
from serving import running, tiny
from test_serve_load import quiet
from test_serve_wire import ask

from laurel.cli.serve import load_chooser
from laurel.core.errors import UsageError
from laurel.core.serve_options import ServeConfig
from laurel.measure.stopping import LeaderTest
from laurel.model.scorer import load_scorer
from laurel.search.choices import vote
from laurel.search.pool import Answer, Question
from laurel.search.served import PlanChooser, ServedPlan, read_plan


@pytest.fixture(scope="module")
def served():
    with running(tiny(), chooser=PlanChooser(ServedPlan(num_generations=8)), places=64) as one:
        yield one


@pytest.fixture(scope="module")
def client(served):
    return client_of(served)


def client_of(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def asked(prompt, seed, n, **extra):
    """A request for completions, with so few different answers that some agree."""
    body = {"model": "m", "prompt": prompt, "seed": seed, "max_tokens": 2, "n": n}
    return body | {"extra_body": {"top_k": 3, **extra}}


def pool(client, prompt, seed, n, **how):
    """The completions that `n` gives, as a question, and all of their tokens."""
    found = client.completions.create(**asked(prompt, seed, n, return_token_ids=True, **how))
    answers = tuple(Answer(one.text, len(one.token_ids)) for one in found.choices)
    question = Question("q", {"prompt": prompt}, answers)
    assert question.tokens == found.usage.completion_tokens
    return question


def scored_by(folder, body, **plan):
    """A chooser by a function in a file beside the plan."""
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(f"import time\n\n\ndef own(completions, **columns):\n{body}\n")
    (folder / "plan.yaml").write_text(yaml.safe_dump({"scorers": ["own.py:own"], **plan}))
    return load_chooser(ServeConfig(choose=str(folder / "plan.yaml")))


@pytest.mark.parametrize("by", ["option", "name"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_client_gets_the_vote(client, by, seed):
    """What `laurel choose vote` says of the completions of n: 16; `usage` counts all of them."""
    wanted = pool(client, "12+34=", seed, 16)
    choice = vote(wanted, "text")
    extra = {"vote": 16} if by == "option" else {}
    body = asked("12+34=", seed, 1, **extra) | ({"model": "m:vote-16"} if by == "name" else {})
    found = client.completions.create(**body)
    assert found.choices[0].text == wanted.answers[choice.place].text
    assert len(found.choices) == 1 and found.usage.completion_tokens == wanted.tokens
    told = found.choice_details
    assert (told["way"], told["drawn"], told["of"], told["chosen"]) == (
        "vote",
        16,
        16,
        choice.place,
    )
    assert {one["vote"]: one["share"] for one in told["votes"]} == dict(choice.shares)
    assert sum(one["count"] for one in told["votes"]) == 16 - told["left_out"]
    assert 0 < choice.shares[choice.vote] < 1 and told["stopped"] == "all drawn"


def test_the_likeliest_of_eight(client):
    """Without a scorer the highest mean log-probability per token, as OpenAI's `best_of`."""
    body = {"model": "m", "prompt": "5+6=", "seed": 4, "max_tokens": 6, "logprobs": 0}
    many = client.completions.create(**body, n=8)
    means = [
        sum(one.logprobs.token_logprobs) / len(one.logprobs.token_logprobs) for one in many.choices
    ]
    found = client.completions.create(**body, best_of=8)
    told = found.choice_details
    assert told["scores"] == pytest.approx(means) and told["by"] == "logprob"
    best = many.choices[means.index(max(means))]
    assert found.choices[0].text == best.text
    assert found.choices[0].logprobs == best.logprobs
    assert found.usage == many.usage


def test_a_chat_and_its_stream(client):
    """Chunks say how far the drawing is; the text in pieces is the whole answer's."""
    body = {"model": "m:best-of-6", "messages": [{"role": "user", "content": "5+6="}]}
    body |= {"seed": 3, "max_tokens": 40, "logprobs": True}
    whole = client.chat.completions.create(**body)
    text, far, tokens, last = "", [], [], None
    usage = {"include_usage": True}
    for chunk in client.chat.completions.create(**body, stream=True, stream_options=usage):
        told = getattr(chunk, "choice_details", None)
        for one in chunk.choices:
            text += one.delta.content or ""
            tokens += [token.token for token in (one.logprobs.content if one.logprobs else [])]
            if one.finish_reason is None and told:
                assert not one.delta.content
                far.append(told["drawn"])
                assert told["of"] == 6
            elif one.finish_reason:
                assert one.finish_reason == whole.choices[0].finish_reason
                last = told
    assert text == whole.choices[0].message.content
    assert tokens == [token.token for token in whole.choices[0].logprobs.content]
    assert far == sorted(far) and far[-1] == 6 and last == whole.choice_details
    assert chunk.usage == whole.usage


def test_a_stream_of_completions(client):
    body = asked("7+8=", 9, 1, vote=16)
    whole = client.completions.create(**body)
    chunks = list(client.completions.create(**body, stream=True))
    assert "".join(one.choices[0].text for one in chunks) == whole.choices[0].text
    assert chunks[-1].choice_details == whole.choice_details


def test_thirty_two_questions_at_once(served, client):
    """Each gets the vote of its own completions; `usage` adds up to what the server drew."""
    prompts = [f"{n}+{n * n % 7}=" for n in range(32)]
    seeds = [100 * n + i for n in range(32) for i in range(16)]
    many = ask(
        served, prompt=prompts, n=16, seeds=seeds, max_tokens=2, top_k=3, return_token_ids=True
    )
    answers = [Answer(one["text"], len(one["token_ids"])) for one in many]
    wanted = [
        Question(str(n), {"prompt": prompts[n]}, tuple(answers[16 * n : 16 * n + 16]))
        for n in range(32)
    ]
    quiet(served.engine)
    before = served.engine.metrics.generated_tokens
    with ThreadPoolExecutor(32) as threads:
        found = list(
            threads.map(
                lambda n: client.completions.create(**asked(prompts[n], 100 * n, 1, vote=16)),
                range(32),
            )
        )
    for question, one in zip(wanted, found, strict=True):
        assert one.choices[0].text == question.answers[vote(question, "text").place].text
        assert one.usage.completion_tokens == question.tokens
    quiet(served.engine)
    drawn = served.engine.metrics.generated_tokens - before
    assert sum(one.usage.completion_tokens for one in found) == drawn


def test_an_adaptive_vote_stops_where_the_rule_says():
    """At the answer after which the leader is announced, or is out of reach: none is drawn more."""
    plan = ServedPlan(adaptive=True)
    with running(tiny(), chooser=PlanChooser(plan), places=64) as served:
        client = client_of(served)
        ways = Counter()
        for seed, temperature in enumerate((0.01, 0.02, 0.04, 0.1, 0.4, 1.0)):
            how = {"temperature": temperature, "max_tokens": 1}
            wanted = pool(client, "1+1=", seed, 32, **how)
            test = LeaderTest(plan.alpha)
            for drawn, one in enumerate(wanted.answers, start=1):
                test.add(" ".join(one.text.casefold().split()) or None)
                if test.decided or test.settled(32 - drawn):
                    break
            found = client.completions.create(**asked("1+1=", seed, 1, vote=32, **how))
            told = found.choice_details
            assert told["drawn"] == drawn and told["decided"] is test.decided
            assert told["vote"] == test.leader
            spent = sum(one.tokens for one in wanted.answers[:drawn])
            assert found.usage.completion_tokens == spent
            ways[told["stopped"]] += drawn < 32
        assert ways["sure"] >= 2 and ways["cannot change"] >= 1


def test_a_budget_is_kept(client):
    """No more tokens than it says, and no answer cut short by it: the first ones, whole."""
    wanted = pool(client, "3+4=", 5, 16)
    found = client.completions.create(**asked("3+4=", 5, 1, vote=16, budget=11))
    told = found.choice_details
    assert told["stopped"] == "budget" and 5 <= told["drawn"] < 16
    assert 9 < found.usage.completion_tokens <= 11
    some = wanted.answers[: told["drawn"]]
    assert sum(one.tokens for one in some) == told["tokens"] == found.usage.completion_tokens
    assert told["vote"] == vote(Question("q", wanted.row, some), "text").vote


def test_a_scorer_chooses_and_what_it_fails_on_is_left_out(tmp_path):
    """The longest text by a function; one that it raises on takes no part, and the reason is told
    without the paths of the server.
    """
    body = """    if any(len(one) == 7 for one in completions):
        raise ValueError("seven")
    return [float(one.count("1") - len(one)) for one in completions]"""
    with running(tiny(), chooser=scored_by(tmp_path, body), places=64) as served:
        client = client_of(served)
        ask_for = {"model": "m", "prompt": "5+6=", "seed": 2, "max_tokens": 7}
        texts = [one.text for one in client.completions.create(**ask_for, n=8).choices]
        scores = [None if len(one) == 7 else float(one.count("1") - len(one)) for one in texts]
        assert 0 < scores.count(None) < 8
        found = client.completions.create(**ask_for, best_of=8)
        told = found.choice_details
        assert told["scores"] == scores and told["left_out"] == scores.count(None)
        assert told["reason"] == "`own` failed: ValueError: seven"
        place = scores.index(max(one for one in scores if one is not None))
        assert told["chosen"] == place and found.choices[0].text == texts[place]
        assert (told["by"], told["value"]) == ("own", scores[place])


def test_a_reward_model_chooses_for_many_at_once(tmp_path):
    """`model:FOLDER`: the answer that it scores highest, of chats that come together."""
    tiny().save(tmp_path / "body")
    scorer = load_scorer(str(tmp_path / "body"), seed=3)
    scorer.save(tmp_path / "scorer")
    chooser = PlanChooser(ServedPlan(scorers=[f"model:{tmp_path / 'scorer'}"]))
    with running(tiny(), chooser=chooser, places=64) as served, ThreadPoolExecutor(8) as threads:
        client = client_of(served)

        def both(n):
            messages = [{"role": "user", "content": f"{n}+2="}]
            body = {"model": "m", "messages": messages, "seed": 10 * n, "max_tokens": 5}
            many = client.chat.completions.create(**body, n=6)
            rows = [
                {
                    "prompt": messages,
                    "completion": [{"role": "assistant", "content": one.message.content}],
                }
                for one in many.choices
            ]
            found = client.chat.completions.create(**body, extra_body={"best_of": 6})
            return rows, many, found

        for rows, many, found in threads.map(both, range(8)):
            scores = scorer.score(rows).tolist()
            assert found.choice_details["scores"] == pytest.approx(scores, abs=1e-5)
            place = scores.index(max(scores))
            assert found.choices[0].message.content == many.choices[place].message.content
            assert found.usage == many.usage


def test_a_scorer_that_fails_on_all_is_an_error(tmp_path):
    """422 with the reason and the tokens, whole and as a stream; a vote goes on without it."""
    with running(tiny(), chooser=scored_by(tmp_path, "    return [None, 1]"), places=64) as served:
        client = client_of(served)
        with pytest.raises(openai.UnprocessableEntityError, match=r"none of 4 answers .*2 values"):
            client.completions.create(**asked("1+1=", 1, 1, best_of=4))
        with pytest.raises(openai.APIError, match="none of 4 answers"):
            list(client.completions.create(**asked("1+1=", 1, 1, best_of=4), stream=True))
        assert client.completions.create(**asked("1+1=", 1, 1, vote=4)).choices


def test_a_slow_scorer_ends_and_holds_nobody_up(tmp_path):
    """Its time is over after `reward_timeout`; meanwhile others are answered."""
    chooser = scored_by(tmp_path, "    time.sleep(30)", reward_timeout=0.3)
    with running(tiny(), chooser=chooser, places=64) as served, ThreadPoolExecutor(1) as pool_of:
        client = client_of(served)
        began = time.monotonic()
        slow = pool_of.submit(client.completions.create, **asked("1+1=", 1, 1, best_of=4))
        while not slow.done():
            assert ask(served, prompt="1+1=", max_tokens=1)
        with pytest.raises(openai.UnprocessableEntityError, match="no answer within"):
            slow.result()
        assert time.monotonic() - began < 10


def test_a_request_has_its_time_while_it_chooses(tmp_path):
    """504 where the scorer takes longer than the request may."""
    chooser = scored_by(tmp_path, "    time.sleep(2)\n    return [1.0] * len(completions)")
    slow = pytest.raises(openai.InternalServerError, match="choosing took longer")
    with running(tiny(), chooser=chooser, seconds=0.4) as served, slow:
        client_of(served).completions.create(**asked("1+1=", 1, 1, best_of=4))


def test_votes_by_a_plan(tmp_path):
    """`kind` and `weigh` of a plan; the score weighs, so that one vote can win over two."""
    body = '    return [1.0 if one.startswith("1") else 0.01 for one in completions]'
    chooser = scored_by(tmp_path, body, weigh="score", kind="number", num_generations=16)
    with running(tiny(), chooser=chooser, places=64) as served:
        client = client_of(served)
        ask_for = {"model": "m", "prompt": "5+6=", "seed": 11, "max_tokens": 1}
        ask_for["extra_body"] = {"top_k": 40}
        texts = [one.text for one in client.completions.create(**ask_for, n=128).choices]
        ask_for["model"] = "m:vote-128"
        told = client.completions.create(**ask_for).choice_details
        assert told["by"] == "own"
        assert {one["vote"] for one in told["votes"]} == {one for one in texts if one.isdigit()}
        assert told["left_out"] == sum(not one.isdigit() for one in texts)
        assert told["vote"] == "1" and told["chosen"] == texts.index("1")


def test_where_no_answer_can_be_read_it_says_so():
    """The first completion, and `chosen` is null: nobody won."""
    chooser = PlanChooser(ServedPlan(kind="choice"))
    with running(tiny(), chooser=chooser, places=64) as served:
        client = client_of(served)
        stopped = {"max_tokens": 1, "stop": list("ABCDEFGHIJ")}
        body = asked("1+1=", 3, 1, vote=4) | stopped
        found = client.completions.create(**body)
        told = found.choice_details
        assert told["chosen"] is None and told["reason"] == "no answer can be read"
        assert told["left_out"] == 4 and told["votes"] == []
        first = client.completions.create(**(asked("1+1=", 3, 1) | stopped))
        assert found.choices[0].text == first.choices[0].text


def test_a_plan_may_choose_by_default():
    """Requests that do not say get the plan's choice; `vote`: 1 asks for plain completions."""
    plan = ServedPlan(default_choice="vote", num_generations=5)
    with running(tiny(), chooser=PlanChooser(plan)) as served:
        client = client_of(served)
        assert client.completions.create(**asked("1+1=", 1, 1)).choice_details["drawn"] == 5
        plain = client.completions.create(**asked("1+1=", 1, 2, vote=1))
        assert len(plain.choices) == 2 and not hasattr(plain, "choice_details")
        with pytest.raises(openai.BadRequestError, match="`vote`: 1 asks for plain"):
            client.completions.create(**asked("1+1=", 1, 2))


def test_names_stand_among_the_models(served, client):
    """Those of the plan's number; any other number can be asked for, too."""
    listed = {one.id: one.parent for one in client.models.list().data}
    assert listed == {"m": None, "m:best-of-8": "m", "m:vote-8": "m"}
    found = client.completions.create(**(asked("1+1=", 1, 1) | {"model": "m:vote-3"}))
    assert found.model == "m:vote-3" and found.choice_details["drawn"] == 3
    with pytest.raises(openai.NotFoundError, match="no model `x:vote-3`"):
        client.completions.create(**(asked("1+1=", 1, 1) | {"model": "x:vote-3"}))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"vote": 4, "best_of": 4}, "give `vote` or `best_of`"),
        ({"vote": 4, "n": 2}, "leave `n` out"),
        ({"best_of": 2, "n": 3}, "`best_of` 2 is less than `n` 3"),
        ({"vote": 4, "temperature": 0}, "all 4 answers would be the same: give a `temperature`"),
        ({"best_of": 4, "top_k": 1}, "give a `top_k`"),
        ({"vote": 4, "prompt": ["a", "b"]}, "for one prompt, not for 2"),
        ({"vote": 4, "max_tokens": 0, "echo": True}, "nothing to choose from"),
        ({"vote": 4, "budget": 3, "max_tokens": 4}, "one answer may take 4 tokens"),
        ({"budget": 30}, "`budget` is for"),
        ({"vote": 129}, "`vote`"),
        ({"vote": 0}, "`vote`"),
        ({"model": "m:vote-0"}, "1 to 128"),
        ({"model": "m:best-of-500"}, "1 to 128"),
        ({"model": "m:vote-4", "vote": 5}, "are two choices"),
        ({"vote": 4, "seeds": [1, 2]}, "2 seeds for 1 prompts with 4"),
        ({"vote": 4, "stream": True, "echo": True}, "do not go with `stream`"),
    ],
)
def test_refusals_say_what_to_do(served, body, words):
    answer = served.client.post("/v1/completions", json={"model": "m", "prompt": "a", **body})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_who_goes_away_is_forgotten(served):
    """In the middle of the drawing, streamed or not: all places are free again."""
    for stream in (True, False):
        body = {"model": "m", "prompt": [4], "vote": 60, "max_tokens": 250, "stream": stream}
        raw = json.dumps(body)
        with socket.create_connection(served.url[7:].split(":")) as one:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            one.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n{raw}".encode())
            until = time.monotonic() + 20
            while not served.engine.running:
                assert time.monotonic() < until
                time.sleep(0.001)
        quiet(served.engine)
    assert served.engine.metrics.finished["abort"] >= 1


def test_a_later_round_waits_where_the_queue_is_full():
    """A question that has begun is not refused; a new one is, also where it is to be a stream."""
    chooser = PlanChooser(ServedPlan(adaptive=True))
    with running(tiny(), chooser=chooser, places=2, queue=2) as served:
        with ThreadPoolExecutor(8) as threads:
            served.client.post("/pause?mode=keep")
            kept = threads.submit(ask, served, prompt=[4], n=2, max_tokens=1)
            until = time.monotonic() + 20
            while not served.engine.waiting:
                assert time.monotonic() < until
                time.sleep(0.005)
            with pytest.raises(openai.RateLimitError):
                client_of(served).completions.create(**asked("1+1=", 1, 1, best_of=8), stream=True)
            served.client.post("/resume")
            assert kept.result()
            stop = threading.Event()

            def crowd():
                while not stop.is_set():
                    served.client.post("/v1/completions", json={"prompt": [4], "n": 2})

            crowds = [threads.submit(crowd) for _ in range(3)]
            client = client_of(served)
            found, full = None, 0
            while found is None:
                try:
                    found = client.completions.create(**asked("1+1=", 1, 1, best_of=8))
                except openai.RateLimitError:
                    full += 1
            stop.set()
            for one in crowds:
                one.result()
        assert found.choice_details["drawn"] == 8


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"weigh": "score"}, "no scorer to weigh votes"),
        ({"adaptive": True, "weigh": "likelihood"}, "votes that count 1"),
        ({"kind": "auto"}, "kind"),
        ({"scorers": ["a.py:f", "b.py:f"]}, "scorers"),
        ({"scorers": ["gsm8k"]}, "answer"),
        ({"dataset": "x"}, "`dataset` is for `laurel choose`"),
        ({"alhpa": 0.1}, "Did you mean `alpha`"),
        ({"num_generations": 200}, "num_generations"),
    ],
)
def test_a_plan_is_checked_before_the_server_starts(tmp_path, plan, words):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(UsageError, match=words):
        PlanChooser(read_plan(path))


@pytest.mark.whole
def test_the_command_line(tmp_path):
    """`laurel serve starter --choose PLAN.yaml`: the official client gets the vote of a sum."""
    plan = tmp_path / "plan.yaml"
    plan.write_text("kind: number\nadaptive: true\n")
    words = ["serve", "starter", "--served_model_name", "m", "--port", "0", "--choose", str(plan)]
    process = subprocess.Popen(
        [sys.executable, "-m", "laurel", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert "m:vote-16" in [one.id for one in client.models.list().data]
        found = client.completions.create(model="m:vote-16", prompt="2+3=", seed=1, max_tokens=6)
        assert found.choice_details["vote"] == "5" and found.choice_details["drawn"] <= 16
    finally:
        process.terminate()
        assert process.wait(60) == 0
