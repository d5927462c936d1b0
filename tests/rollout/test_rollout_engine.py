"""Sampling on servers: the rows, where they go, what servers answer, and every way they fail.

Each fault is ended by an error that names the server, or by another server, within its deadline.
"""

import json
import socket
import time

import pytest
from peer import Peer, change_answer, change_choice, cut, drip, nudge, once, policy_of, silent

from laurel.core.errors import LaurelError, UsageError
from laurel.core.http import ServerDown, ServerTimeout
from laurel.core.sample import Draw
from laurel.rollout.engine import Engine, EngineOptions
from laurel.rollout.sampler import Sampler

pytestmark = pytest.mark.usefixtures("hasty")
PROMPTS = [(4, 5, 6), (7,), (8, 9, 10, 11), (5, 5), (12, 4), (6, 6, 6)]


def engine_on(policy, folder, *peers, timeout=60.0, **options):
    """An engine on these peers."""
    urls = tuple(getattr(peer, "url", peer) for peer in peers)
    return Engine(policy, EngineOptions(urls, timeout, **options), folder=folder, run="run")


def draw_of(prompts, each=3, limit=8, **changes):
    """A draw with a seed for each completion, unsigned and of 64 bits."""
    seeds = tuple((1 << 63) + 7 * n for n in range(len(prompts) * each))
    return Draw("run", 0, 0, each, limit, 1.0, seeds=seeds, **changes)


def test_rows_are_those_of_this_process_wherever_they_are_drawn(model, tmp_path):
    """Two servers, limits that differ within a prompt, stop strings, unsigned seeds: every row is
    the in-process sampler's, and a prompt's rows stay on one server.
    """
    mine = policy_of(model)
    with Peer(policy_of(model)) as one, Peer(policy_of(model)) as two:
        engine = engine_on(mine, tmp_path, one, two)
        assert engine.exact
        engine.sync(0)
        draw = draw_of(PROMPTS, limits=(8, 3, 8) * len(PROMPTS), stop=("7",))
        assert engine.generate(PROMPTS, draw) == Sampler(mine).generate(PROMPTS, draw)
        asked = [body["prompt"] for peer in (one, two) for body in peer.asked("/v1/completions")]
        assert all(asked)
        homes = [
            {tuple(ids) for body in peer.asked("/v1/completions")[1:] for ids in body["prompt"]}
            for peer in (one, two)
        ]
        assert not homes[0] & homes[1] and homes[0] | homes[1] == set(PROMPTS)
        engine.close()


def test_vllm_is_asked_in_its_own_dialect(model, tmp_path):
    """One prompt a request, one signed seed that its children add to, the trainer's end tokens, and
    a salt that is the version's.
    """
    mine = policy_of(model)
    with Peer(policy_of(model), "vllm") as peer:
        engine = engine_on(mine, tmp_path, peer)
        assert not engine.exact
        engine.sync(0)
        done = engine.generate(PROMPTS, draw_of(PROMPTS))
        assert len(done) == 18
        bodies = peer.asked("/v1/completions")[1:]
        assert sorted(tuple(body["prompt"]) for body in bodies) == sorted(PROMPTS)
        for body in bodies:
            place = 3 * PROMPTS.index(tuple(body["prompt"]))
            assert body["seed"] == (7 * place) and body["n"] == 3
            assert body["stop_token_ids"] == sorted(mine.eos_ids)
            assert body["cache_salt"].startswith("run-0-") and "seeds" not in body
            seeds = tuple(body["seed"] + i for i in range(3))
            alone = Draw("run", 0, 0, 3, 8, 1.0, seeds=seeds)
            want = Sampler(mine).generate([tuple(body["prompt"])], alone)
            assert done[place : place + 3] == want
        engine.close()


@pytest.mark.parametrize("weights", ["folder", "lora"])
def test_weights_of_every_version_are_on_the_servers(model, tmp_path, weights):
    """Full weights and adapters: after each sync the servers sample with the policy's; the folders
    of old versions go, but for the last.
    """
    mine = policy_of(model, use_peft=weights == "lora")
    with Peer(policy_of(model)) as one, Peer(policy_of(model)) as two:
        engine = engine_on(mine, tmp_path / "engine", one, two)
        for version in range(3):
            nudge(mine, version)
            engine.sync(version)
            draw = draw_of(PROMPTS)
            assert engine.generate(PROMPTS, draw) == Sampler(mine).generate(PROMPTS, draw)
            before = len(one.calls)
            engine.sync(version)
            assert len(one.calls) == before
        kept = sorted(path.name for path in (tmp_path / "engine").iterdir())
        prefix = "adapter-" if weights == "lora" else ""
        assert kept == [f"{prefix}run-1", f"{prefix}run-2"]
        if weights == "lora":
            assert set(one.adapters) == {"run-1", "run-2"}
        engine.close()


WRONG = {
    "missing": (lambda c: c.pop("logprobs"), "choices.1.logprobs: Field required"),
    "short": (lambda c: c["logprobs"]["token_logprobs"].pop(), "ids and"),
    "nan": (
        lambda c: c["logprobs"].update(token_logprobs=[float("nan")] * 8),
        "nan is no log-prob",
    ),
    "null": (lambda c: c["logprobs"].update(token_logprobs=[None] * 8), "None is no log-prob"),
    "above 0": (lambda c: c["logprobs"].update(token_logprobs=[0.5] * 8), "0.5 is no log-prob"),
    "no vocabulary": (lambda c: c.update(token_ids=[10**6] * 8), "it serves another model"),
    "negative": (lambda c: c.update(token_ids=[-1] * 8), "no id -1"),
    "no ids": (lambda c: c.update(token_ids=None), "token_ids"),
    "nothing": (lambda c: c.update(token_ids=[]), "has no token"),
    "text": (lambda c: c.update(text="+=+=+=+="), "another tokenizer"),
    "index": (lambda c: c.update(index=0), "3 completions were asked for"),
    "aborted": (lambda c: c.update(finish_reason="abort"), "ended by `abort`"),
    "version": (lambda c: c["weight_versions"][0].update(version="other-9"), "another run"),
    "span": (lambda c: c["weight_versions"][0].update(end=3), "of 3 tokens only"),
    "untold": (lambda c: c.pop("weight_versions"), "does not tell the version"),
    "ended": (lambda c: c.update(finish_reason="stop"), "other end tokens"),
}


@pytest.fixture(scope="module")
def synced(model, tmp_path_factory):
    """An engine on two servers that have its weights, and the servers."""
    peers = Peer(policy_of(model)), Peer(policy_of(model))
    engine = engine_on(policy_of(model), tmp_path_factory.mktemp("sync"), *peers)
    engine.sync(0)
    yield engine, *peers
    engine.close()
    for peer in peers:
        peer.close()


@pytest.fixture
def pair(synced):
    """The same, with everything well."""
    engine, *peers = synced
    for peer, server in zip(peers, engine.servers, strict=True):
        peer.faults, peer.calls = {}, []
        server.down, server.timeout = None, 60.0
    return engine, *peers


@pytest.fixture
def alone(pair):
    """The same, of which the second server is down for good."""
    engine, peer, other = pair
    other.faults["/version"] = GARBAGE["500"][0]
    engine.servers[1].down = ServerTimeout("gone", where=other.url)
    return engine, peer


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_is_wrong_is_an_error_that_says_how(alone, what):
    """Ids, log-probabilities, ends, texts, versions, counts: nothing is taken on trust."""
    engine, peer = alone
    change, said = WRONG[what]
    peer.faults = {"/v1/completions": change_choice(change)}
    prompt, seeds = PROMPTS[0], long_seeds(engine.policy)
    draw = Draw("run", 0, 0, 3, 8, 1.0, seeds=seeds)
    with pytest.raises(LaurelError, match=said) as raised:
        engine.generate([prompt], draw)
    assert peer.url in str(raised.value)
    peer.faults = {}
    assert len(engine.generate([prompt], draw)) == 3


def long_seeds(policy):
    """Three seeds whose completions of the first prompt have all eight tokens."""
    seeds = tuple(range(200))
    done = Sampler(policy).generate([PROMPTS[0]], Draw("", 0, 0, 200, 8, 1.0, seeds=seeds))
    return tuple(seed for seed, one in zip(seeds, done, strict=True) if one.finish == "length")[:3]


GARBAGE = {
    "no JSON": (change_answer(lambda data: b"<html>"), "no JSON: <html>"),
    "half": (cut, "connection failed"),
    "deep": (change_answer(lambda data: b"[" * 100_000), "no JSON"),
    "not UTF-8": (change_answer(lambda data: b'{"\xff": 1}'), "no JSON"),
    "endless": (change_answer(lambda data: b" " * (20 << 20)), "longer than"),
    "silent": (silent, "no answer within 0.6 seconds"),
    "drip": (drip, "no answer within 0.6 seconds"),
    "503": (lambda p, h, b: h.send(b'{"error": {"message": "full"}}', 503), "no answer within"),
    "500": (lambda p, h, b: h.send(b'{"error": {"message": "boom"}}', 500), "boom"),
    "400": (lambda p, h, b: h.send(b'{"error": {"message": "64 tokens"}}', 400), "64 tokens"),
    "401": (lambda p, h, b: h.send(b"{}", 401), "LAUREL_API_KEY"),
}


SLOW = ("silent", "drip", "503")
"""What only a deadline ends."""


@pytest.mark.parametrize("what", GARBAGE)
def test_a_server_that_fails_is_named_within_its_deadline(alone, what):
    """Half-closed, silent, dripping, garbage, busy for ever, refusing."""
    engine, peer = alone
    fault, said = GARBAGE[what]
    peer.faults["/v1/completions"] = fault
    engine.servers[0].timeout = 0.6 if what in SLOW else 60.0
    start = time.monotonic()
    with pytest.raises(LaurelError, match=said) as raised:
        engine.generate(PROMPTS, draw_of(PROMPTS))
    assert time.monotonic() - start < 20
    assert peer.url in str(raised.value)


@pytest.mark.parametrize("what", ["half", "no JSON", "silent", "500"])
def test_the_rows_of_a_server_that_fails_are_drawn_by_another(pair, what):
    """None lost, none doubled, and the same as before."""
    engine, one, _ = pair
    one.faults["/v1/completions"] = GARBAGE[what][0]
    engine.servers[0].timeout = 0.6 if what in SLOW else 60.0
    draw = draw_of(PROMPTS)
    want = Sampler(engine.policy).generate(PROMPTS, draw)
    assert engine.generate(PROMPTS, draw) == want
    assert engine.servers[0].down and not engine.servers[1].down


def test_a_hiccup_is_asked_again_with_the_same_seeds(alone):
    engine, peer = alone
    for fault in (cut, GARBAGE["500"][0]):
        peer.faults["/v1/completions"] = once(fault)
        draw = draw_of(PROMPTS)
        want = Sampler(engine.policy).generate(PROMPTS, draw)
        assert engine.generate(PROMPTS, draw) == want
        first, again = peer.asked("/v1/completions")[-2:]
        assert first == again


def test_a_server_killed_in_the_middle_of_a_step_is_named(model, tmp_path):
    """Its connection breaks, nobody listens there any more, and there is no other."""
    with Peer(policy_of(model)) as peer:

        def dies(peer, handler, body):
            handler.connection.shutdown(socket.SHUT_RDWR)
            peer.http.socket.close()

        engine = engine_on(policy_of(model), tmp_path, peer)
        engine.sync(0)
        peer.faults["/v1/completions"] = dies
        with pytest.raises(ServerDown, match="connection failed") as raised:
            engine.generate(PROMPTS, draw_of(PROMPTS))
        assert peer.url in str(raised.value)
        engine.close()


@pytest.mark.parametrize("weights", ["folder", "lora"])
@pytest.mark.parametrize("kind", ["laurel", "vllm"])
def test_a_server_started_anew_gets_the_weights_again(model, tmp_path, kind, weights):
    """In the middle of a step: the same place, the weights it began with, no adapters. Its rows are
    drawn with the policy's weights all the same.
    """
    mine = policy_of(model, use_peft=weights == "lora")
    with Peer(policy_of(model), kind) as peer:
        engine = engine_on(mine, tmp_path, peer)
        nudge(mine)
        engine.sync(0)
        draw = draw_of(PROMPTS)
        before = engine.generate(PROMPTS, draw)
        peer.version, peer.adapters = peer.untouched, {}
        for name, value in peer.base.items():
            peer.policy.causal.get_parameter(name).data.copy_(value)
        if kind == "laurel" and weights == "folder":
            peer.faults["/v1/completions"] = once(cut)
            engine.servers[0].down = ServerDown("gone", where=peer.url)
        assert engine.generate(PROMPTS, draw) == before
        engine.close()


def test_two_trainers_on_one_server(model, tmp_path):
    """The one whose weights are not there any more stops, in sampling or at its next step."""
    for kind in ("laurel", "vllm"):
        with Peer(policy_of(model), kind) as peer:
            engine = engine_on(policy_of(model), tmp_path / kind, peer)
            engine.sync(0)
            options = EngineOptions((peer.url,), 60.0)
            other = Engine(policy_of(model), options, folder=tmp_path / "other", run="b")
            other.sync(0)
            with pytest.raises(LaurelError, match="another run train on the same server"):
                engine.generate(PROMPTS, draw_of(PROMPTS))
            with pytest.raises(LaurelError, match="weights `b-0`, and this run left `run-0`"):
                engine.sync(1)
            assert len(other.generate(PROMPTS, draw_of(PROMPTS))) == 18
            engine.close()
            other.close()


def test_what_it_is_is_read_at_the_start(model, tmp_path):
    """Versions that are not known to work are refused, with those that are."""
    mine = policy_of(model)
    with Peer(policy_of(model)) as peer:
        for said in ({"version": "1.2.0"}, {"version": "0.31.9"}, {"version": "9", "engine": "x"}):
            peer.faults["/version"] = change_answer(lambda _, said=said: json.dumps(said).encode())
            with pytest.raises(UsageError, match=r"0\.32 and later") as raised:
                engine_on(mine, tmp_path, peer)
            assert peer.url in str(raised.value)
        peer.faults["/version"] = change_answer(lambda _: b"[]")
        with pytest.raises(LaurelError, match="no object with fields"):
            engine_on(mine, tmp_path, peer)
    with pytest.raises(ServerDown, match="connection failed") as raised:
        engine_on(mine, tmp_path, peer)
    assert peer.url in str(raised.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000", "no address of a server"),
        ("http://me:secret@host:1", "LAUREL_API_KEY"),
        ("http://host:1/?key=secret", "LAUREL_API_KEY"),
        ("ftp://host", "no address of a server"),
    ],
)
def test_addresses(model, tmp_path, url, said):
    with pytest.raises(UsageError, match=said) as raised:
        engine_on(policy_of(model), tmp_path, url)
    assert "secret" not in str(raised.value) or "?" in url
