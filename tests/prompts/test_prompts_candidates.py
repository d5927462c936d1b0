"""More prompts: templates, examples from the log, and rewrites of a real OpenAI-like server
(`transformers serve`) with a tiny model.
"""

import socket
import subprocess
import sys
import time
from dataclasses import replace
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from laurel.core.errors import LaurelError, UsageError
from laurel_prompts.candidates import (
    TEMPLATES,
    ape_request,
    ask_model,
    few_shot,
    first_line,
    generate_prompts,
    opro_request,
    rank_candidates,
)
from laurel_prompts.synthetic import synthetic_log


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, model): `transformers serve` over a model that writes a few random characters."""
    pytest.importorskip("openai", reason="transformers serve needs the package openai")
    from laurel.model.scratch import save_scratch

    folder = save_scratch(
        tmp_path_factory.mktemp("served") / "tiny",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = open(folder / "serve.log", "w")  # noqa: SIM115
    process = subprocess.Popen([*words, "--device", "cpu"], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                break
            except (URLError, OSError):
                assert process.poll() is None, (folder / "serve.log").read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail((folder / "serve.log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def test_a_server_writes_prompts_that_differ(server):
    url, model = server
    log, _ = synthetic_log(40)
    found = generate_prompts(
        url, model, {"ape": ape_request(log), "opro": opro_request({"Go:": 0.4})}, count=3
    )
    assert (
        found
        and len(set(found.values())) == len(found)
        and all(text.strip() == text and text for text in found.values())
    )
    assert {name.split("-")[0] for name in found} <= {"ape", "opro"}


def test_a_server_that_refuses_or_is_not_there_is_an_error_that_says_so(server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(LaurelError, match=r"the server answered [45]\d\d"):
        ask_model(url, "no/such-model", "Hello", temperature=1.0, seed=0)
    with pytest.raises(LaurelError, match="the server answered 404"):
        ask_model(url + "/nowhere", "m", "Hello", temperature=1.0, seed=0)
    with pytest.raises(LaurelError, match="no answer"):
        ask_model("http://127.0.0.1:9/v1", "m", "Hello", temperature=1.0, seed=0)
    with pytest.raises(UsageError, match="no address"):
        ask_model("127.0.0.1:9", "m", "Hello", temperature=1.0, seed=0)


def test_an_answer_becomes_a_prompt():
    assert first_line('\n1. "Count every step."\nAnd more.') == "Count every step."
    assert first_line("New instruction: - Work it out.") == "Work it out."
    assert (
        first_line("* Prompt: “Go.”") == "Go."
        and first_line(" \n ") == ""
        and len(first_line("x" * 900)) == 500
    )


def test_requests_show_what_they_must():
    log, _ = synthetic_log(40)
    asked = ape_request(log, count=4)
    assert (
        sum(query in asked for query, test in zip(log.queries, log.test_S, strict=True) if not test)
        == 4
    )
    assert not any(
        query in asked for query, test in zip(log.queries, log.test_S, strict=True) if test
    )
    told = opro_request({"good": 0.9, "bad": 0.1})
    assert told.index("bad") < told.index("good") and "90%" in told
    assert few_shot(log) is None
    answers = {(s, 0): f"It is {s}." for s in range(40)}
    shots = few_shot(replace(log, responses=answers), count=2)
    shown = [s for s in range(40) if f"It is {s}." in shots]
    assert len(shown) == 2 and all(log.reward_SP[s, 0] == 1 and not log.test_S[s] for s in shown)
    assert len(TEMPLATES) == len(set(TEMPLATES.values())) >= 6


def test_candidates_are_ranked_by_what_is_predicted():
    assert rank_candidates(np.array([0.2, 0.9]), ["a", "b"], [True, False]) == [
        ("b", 0.9, False),
        ("a", 0.2, True),
    ]
