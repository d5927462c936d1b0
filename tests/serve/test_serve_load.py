"""Many at once: nothing is mixed up, who leaves is forgotten, and the end is orderly."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from serving import running, tiny
from test_serve_wire import ask, refused

from laurel.rollout.sampler import sample

STREAMS = 64


def stream_of(url, body, *, leave_after=None):
    """The token ids of a stream, as far as it was read, and the seconds to its first token."""
    ids, first, began = [], None, time.perf_counter()
    body = {"model": "m", "stream": True, "return_token_ids": True, **body}
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            (choice,) = json.loads(line[6:])["choices"]
            first = first or time.perf_counter() - began
            ids += choice["token_ids"]
            if leave_after is not None and len(ids) >= leave_after:
                break
    return ids, first


def quiet(engine):
    """Wait until nothing waits and nothing runs; all places are free."""
    until = time.monotonic() + 20
    while engine.busy or engine.commands:
        assert time.monotonic() < until
        time.sleep(0.01)
    for served in engine.served.values():
        assert served.sampler.running == 0
        assert sorted(served.sampler.free) == list(range(engine.limits.places))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sixty_four_streams_with_cancellations(kind, record_property):
    """Each stream that is read to its end has the tokens that `laurel sample` draws with its seed;
    one that is left in the middle had the first of them; then all places are free again.
    """
    policy = tiny(kind)
    chance = random.Random(0)
    prompts = [
        tuple(chance.randrange(4, 40) for _ in range(chance.randrange(1, 30)))
        for _ in range(STREAMS)
    ]
    limits = [chance.randrange(5, 60) for _ in range(STREAMS)]
    leave = [chance.randrange(1, 8) if n % 3 == 0 else None for n in range(STREAMS)]
    wanted = sample(policy, prompts, seeds=list(range(STREAMS)), max_completion_length=limits)
    with running(policy, places=24) as served, ThreadPoolExecutor(STREAMS) as pool:
        futures = [
            pool.submit(
                stream_of,
                served.url,
                {"prompt": list(prompts[n]), "seed": n, "max_tokens": limits[n]},
                leave_after=leave[n],
            )
            for n in range(STREAMS)
        ]
        found = [one.result() for one in futures]
        quiet(served.engine)
    for n, (ids, _) in enumerate(found):
        own = list(wanted[n].ids)
        assert ids == (own if leave[n] is None else own[: len(ids)]), n
        assert leave[n] is None or len(ids) >= min(leave[n], len(own))
    times = sorted(first for _, first in found)
    print(f"first token: p50 {times[32] * 1e3:.0f} ms, p99 {times[62] * 1e3:.0f} ms")


def test_who_goes_away_is_forgotten():
    """A client that waits for a whole answer and closes: its places are free before its time."""
    with running(tiny(), places=2) as served:
        body = json.dumps({"model": "m", "prompt": [4], "n": 2, "max_tokens": 250, "seed": 1})
        for _ in range(6):
            with socket.create_connection(served.url[7:].split(":")) as client:
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(0.01)
        quiet(served.engine)
        assert served.engine.metrics.finished["abort"] >= 1
        assert ask(served, prompt=[4], seed=1, max_tokens=3)


def test_a_full_queue_refuses():
    """429 with when to come again; what was taken on is answered."""
    with running(tiny(), places=1, queue=4) as served:
        served.client.post("/pause?mode=keep")
        with ThreadPoolExecutor(8) as pool:
            taken = [pool.submit(ask, served, prompt=[4], seed=n, max_tokens=4) for n in range(4)]
            until = time.monotonic() + 20
            while len(served.engine.waiting) < 4:
                assert time.monotonic() < until
                time.sleep(0.005)
            answer = served.client.post("/v1/completions", json={"prompt": [4], "max_tokens": 4})
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            served.client.post("/resume")
            assert all(one.result() for one in taken)


def test_a_request_out_of_time():
    """504, whole or as a stream, also in a pause; its places are free."""
    with running(tiny(), seconds=0.3) as served:
        served.client.post("/pause?mode=keep")
        assert "longer than 0.3 s" in refused(served, prompt=[4], max_tokens=4, status=504)
        with served.client.stream(
            "POST", "/v1/completions", json={"prompt": [4], "stream": True}
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert "longer than" in lines[-2] and lines[-1] == "data: [DONE]"
        served.client.post("/resume")
        quiet(served.engine)


def test_pauses(capsys):
    """wait: what runs ends first; abort: it ends with an error; both stand until resume."""
    with running(tiny()) as served, ThreadPoolExecutor(2) as pool:
        for mode in ("wait", "abort"):
            body = {"prompt": [4], "max_tokens": 200, "n": 8, "seed": 3}
            future = pool.submit(served.client.post, "/v1/completions", json=body)
            while not served.engine.running and not future.done():
                time.sleep(0.001)
            assert served.client.post(f"/pause?mode={mode}").status_code == 200
            assert served.client.get("/is_paused").json()["is_paused"] is True
            answer = future.result()
            assert answer.status_code == 200 or (mode == "abort" and answer.status_code == 500)
            served.client.post("/resume")
        assert served.client.post("/pause?mode=never").status_code == 400


def test_more_choices_than_places():
    """A prompt with more choices than the server draws at once, and requests that wait for it."""
    policy = tiny()
    wanted = sample(policy, [(4, 5)], seeds=list(range(20)), max_completion_length=12)
    with running(policy, places=3) as served, ThreadPoolExecutor(4) as pool:
        many = pool.submit(
            ask, served, prompt=[4, 5], n=20, seed=0, max_tokens=12, return_token_ids=True
        )
        few = [pool.submit(ask, served, prompt=[9], n=3, seed=n, max_tokens=3) for n in range(3)]
        assert [tuple(one["token_ids"]) for one in many.result()] == [one.ids for one in wanted]
        assert all(len(one.result()) == 3 for one in few)
        quiet(served.engine)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_failure_of_the_sampler_ends_its_requests_alone(kind, monkeypatch, caplog):
    """Those that run get 500, with nothing of the inside told; the next one is answered, and all
    places are free.
    """
    with running(tiny(kind), places=4) as served, ThreadPoolExecutor(3) as pool:
        right = ask(served, prompt=[4], seed=1, max_tokens=6)
        sampler = served.engine.served["m"].sampler

        def breaks():
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(sampler, "advance", breaks)
        body = {"prompt": [4], "n": 2, "max_tokens": 200, "seed": 1}
        asked = [pool.submit(served.client.post, "/v1/completions", json=body) for _ in range(3)]
        for one in asked:
            if one.result().status_code == 500:
                assert "secret" not in one.result().text
        assert 500 in [one.result().status_code for one in asked]
        assert "a secret of the inside" in caplog.text
        assert ask(served, prompt=[4], seed=1, max_tokens=6) == right
        quiet(served.engine)


def requests_in(url):
    """Completions that wait or run on a server."""
    text = httpx2.get(f"{url}/metrics", timeout=60).text
    return sum(int(n) for n in re.findall(r"^laurel:num_requests_\w+ (\d+)$", text, re.MULTILINE))


def test_the_end_is_orderly(tmp_path):
    """`laurel serve` on SIGTERM: who was taken on is answered, who comes later is not, exit 0."""
    tiny().save(tmp_path / "model")
    command = [sys.executable, "-m", "laurel", "serve", str(tmp_path / "model"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    url = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
    found = []
    body = {"prompt": [4], "max_tokens": 250, "n": 64, "seed": 1}

    def whole():
        answer = httpx2.post(f"{url}/v1/completions", json=body, timeout=120)
        found.append((answer.status_code, len(answer.json()["choices"])))

    threads = [threading.Thread(target=whole) for _ in range(3)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(found) < 3 and requests_in(url) < (3 - len(found)) * 64:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert found == [(200, 64)] * 3
    assert process.wait(30) == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/health")
