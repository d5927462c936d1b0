"""New weights for servers: what breaks in the middle is finished or undone, and named.

A server that was paused goes on; no half-written folder stays; nothing is waited for without end.
"""

import copy
import json
import resource
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from peer import Peer, cut, nudge, once, policy_of, silent

from laurel.core.errors import LaurelError, UsageError
from laurel.core.http import ServerDown, ServerRefusal
from laurel.core.sample import Draw
from laurel.rollout.engine import Engine, EngineOptions
from laurel.rollout.sampler import Sampler

pytestmark = pytest.mark.usefixtures("hasty")
PROMPTS = [(4, 5, 6), (7,)]
DRAW = Draw("run", 0, 0, 2, 6, 1.0, seeds=(1, 2, 3, 4))


@contextmanager
def synced(policy, folder, *peers, timeout=60.0, weights="auto"):
    """An engine on peers that have its weights as version 0; then the policy moves."""
    options = EngineOptions(tuple(peer.url for peer in peers), timeout, weights)
    engine = Engine(policy, options, folder=folder, run="run")
    try:
        engine.sync(0)
        nudge(policy)
        yield engine
    finally:
        engine.close()


def refuse(peer, handler, body):
    """A fault: 400."""
    handler.send(b'{"error": {"message": "no such folder"}}', 400)


@pytest.mark.parametrize("kind", ["laurel", "vllm"])
def test_weights_that_are_refused_leave_those_of_before(model, tmp_path, kind):
    """The error names server and folder; the server goes on, with the weights of before, by their
    name; what it draws with them is as before.
    """
    with Peer(policy_of(model), kind) as peer, synced(policy_of(model), tmp_path, peer) as engine:
        before = engine.generate(PROMPTS, DRAW)
        reads = peer.reload

        def refuses_new(peer, handler, body):
            if kind == "vllm":  # half of them are there
                nudge(peer.policy, 5)
            refuse(peer, handler, body)

        peer.faults["/collective_rpc"] = once(refuses_new)
        with pytest.raises(ServerRefusal, match="no such folder") as raised:
            engine.sync(1)
        said = str(raised.value)
        assert peer.url in said and str(tmp_path / "run-1") in said and "weights of before" in said
        assert not peer.paused and peer.version == "run-0"
        assert engine.generate(PROMPTS, DRAW) == before
        engine.sync(1)
        assert peer.version == "run-1" and reads
        assert not (tmp_path / ".run-1").exists()


@pytest.mark.parametrize("fault", [cut, silent])
@pytest.mark.parametrize("weights", ["folder", "lora"])
def test_a_server_that_dies_while_it_reads(model, tmp_path, weights, fault):
    """Named, within its deadline; with another server the run goes on there."""
    path = "/collective_rpc" if weights == "folder" else "/v1/load_lora_adapter"
    mine = policy_of(model, weights == "lora")
    with (
        Peer(policy_of(model)) as one,
        Peer(policy_of(model)) as two,
        synced(mine, tmp_path, one, two) as engine,
    ):
        one.faults[path] = fault
        engine.servers[0].timeout = 0.6 if fault is silent else 60.0
        start = time.monotonic()
        engine.sync(1)
        assert time.monotonic() - start < 25
        assert engine.servers[0].down and not one.paused
        assert engine.generate(PROMPTS, DRAW) == Sampler(mine).generate(PROMPTS, DRAW)
        two.faults[path] = fault
        engine.servers[1].timeout = 0.6 if fault is silent else 60.0
        with pytest.raises(ServerDown) as raised:
            engine.sync(2)
        said = str(raised.value)
        assert one.url in said and two.url in said and "run-2" in said and not two.paused


@contextmanager
def full_disk(size):
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("weights", ["folder", "lora"])
def test_a_disk_that_is_full(model, tmp_path, weights):
    """No server is touched, no half of a folder stays, and the error names it."""
    mine = policy_of(model, weights == "lora")
    with Peer(policy_of(model)) as peer, synced(mine, tmp_path, peer) as engine:
        before = sorted(path.name for path in tmp_path.iterdir())
        calls = len(peer.asked("/pause") + peer.asked("/v1/load_lora_adapter"))
        with full_disk(9_000), pytest.raises(LaurelError) as raised:
            engine.sync(1)
        assert str(tmp_path) in str(raised.value) and "run-1" in str(raised.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert len(peer.asked("/pause") + peer.asked("/v1/load_lora_adapter")) == calls
        engine.sync(1)
        assert engine.generate(PROMPTS, DRAW) == Sampler(mine).generate(PROMPTS, DRAW)


def test_wrong_weights_after_a_sync(model, tmp_path):
    """By checksum, where the names are the trainer's; else by the log-probabilities of a prompt."""

    def spoils(peer, handler, body):
        peer.reload(body)
        nudge(peer.policy, 9, by=2.0)
        handler.send(b"{}")

    for kind, said in (("laurel", "tensors are not those of the trainer"), ("vllm", "nats from")):
        with (
            Peer(policy_of(model), kind) as peer,
            synced(policy_of(model), tmp_path / kind, peer) as engine,
        ):
            peer.faults["/collective_rpc"] = spoils
            with pytest.raises(LaurelError, match=said) as raised:
                engine.sync(1)
            assert peer.url in str(raised.value) and "`run-1`" in str(raised.value)


def test_servers_of_which_one_has_other_weights(model, tmp_path):
    """Of vLLM's servers the checksums are compared with each other."""
    with (
        Peer(policy_of(model), "vllm") as one,
        Peer(policy_of(model), "vllm") as two,
        synced(policy_of(model), tmp_path, one, two) as engine,
    ):

        def forgets(peer, handler, body):
            handler.send(b"{}")

        two.faults["/collective_rpc"] = forgets
        with pytest.raises(LaurelError, match=f"not those of {one.url}") as raised:
            engine.sync(1)
        assert two.url in str(raised.value)


def test_raw_log_probabilities_are_told_from_processed_ones(model, tmp_path):
    """A request at temperature .5 tells; the error says how to start the server."""
    spread = policy_of(model)
    with torch.no_grad():
        spread.causal.get_input_embeddings().weight.mul_(3)
    with Peer(copy.deepcopy(spread), "vllm") as peer:

        def raw(peer, handler, body):
            found = peer.complete(body)
            ids = [choice["token_ids"] for choice in found["choices"]]
            for choice, own in zip(found["choices"], ids, strict=True):
                row = torch.tensor([body["prompt"] + own])
                with torch.no_grad():
                    logp = peer.policy.causal(row).logits[0].log_softmax(1)
                at = range(len(body["prompt"]) - 1, len(body["prompt"]) + len(own) - 1)
                picked = [float(logp[i, token]) for i, token in zip(at, own, strict=True)]
                choice["logprobs"]["token_logprobs"] = picked
            handler.send(json.dumps(found).encode())

        peer.faults["/v1/completions"] = raw
        with (
            pytest.raises(UsageError, match="--logprobs-mode processed_logprobs") as raised,
            synced(spread, tmp_path, peer),
        ):
            pass
        assert peer.url in str(raised.value)


def test_another_model_under_the_adapters(model, tmp_path):
    """Adapters need the model that they are trained on; the server has another."""
    other = policy_of(model)
    nudge(other, 3, by=1.0)
    for kind, said in (("laurel", "from the model under them"), ("vllm", "nats from the trainer")):
        with Peer(copy.deepcopy(other), kind) as peer:
            peer.sampler = lambda model, peer=peer: Sampler(peer.policy)
            with (
                pytest.raises(LaurelError, match=said),
                synced(policy_of(model, True), tmp_path / kind, peer),
            ):
                pass


def test_a_server_that_somebody_paused(model, tmp_path):
    """The deadline ends it, and the error says why it waits."""
    with (
        Peer(policy_of(model)) as peer,
        synced(policy_of(model), tmp_path, peer) as engine,
    ):
        peer.paused = True
        engine.servers[0].timeout = 0.5
        peer.faults["/v1/completions"] = silent
        with pytest.raises(ServerDown, match="Somebody paused it") as raised:
            engine.generate(PROMPTS, DRAW)
        assert f"{peer.url}/resume" in str(raised.value)


def test_an_answer_that_was_lost_is_not_the_end_of_adapters(model, tmp_path):
    """The server loaded them, its answer never came, and asked again it says: already there."""
    mine = policy_of(model, True)

    def loads_and_dies(peer, handler, body):
        peer.load(body)
        cut(peer, handler, body)

    def knows(peer, handler, body):
        if body["lora_name"] not in peer.adapters:
            return False
        return handler.send(b'{"error": "already loaded"}', 400)

    with Peer(policy_of(model), "vllm") as peer, synced(mine, tmp_path, peer) as engine:
        faults = [loads_and_dies, knows]
        peer.faults["/v1/load_lora_adapter"] = lambda *args: faults.pop(0)(*args)
        engine.sync(1)
        assert not faults and "run-1" in peer.adapters
        assert len(engine.generate(PROMPTS, DRAW)) == 4


def test_the_other_processes_of_a_run_wait_for_the_first(model, tmp_path):
    """They sample once the weights are there, and no longer than they are told to."""
    mine = policy_of(model)
    with Peer(policy_of(model)) as peer:
        options, hasty = (EngineOptions((peer.url,), seconds) for seconds in (60.0, 0.5))
        second = Engine(mine, hasty, folder=tmp_path, run="run", leader=False)
        with pytest.raises(LaurelError, match="`run-0` did not come within"):
            second.sync(0)
        second.options, second.servers[0].timeout = options, 60.0
        first = Engine(mine, options, folder=tmp_path, run="run")
        timer = threading.Timer(0.1, first.sync, [0])
        timer.start()
        second.sync(0)
        assert second.generate(PROMPTS, DRAW) == Sampler(mine).generate(PROMPTS, DRAW)
        timer.join(60)
        first.close()
        second.close()


def test_ways_that_cannot_be(model, tmp_path):
    """Adapters without adapters; NCCL without CUDA, or for adapters."""
    with Peer(policy_of(model)) as peer:
        for weights, use_peft, said in (
            ("lora", False, "Set use_peft"),
            ("nccl", False, "NCCL needs CUDA"),
            ("nccl", True, "adapters do not go over NCCL"),
        ):
            options = EngineOptions((peer.url,), 60.0, weights)
            with pytest.raises(LaurelError, match=said):
                Engine(policy_of(model, use_peft), options, folder=tmp_path, run="run")


def test_merged_adapters_go_as_full_weights(model, tmp_path):
    """For a server that loads no adapters."""
    mine = policy_of(model, True)
    with (
        Peer(policy_of(model), "vllm") as peer,
        synced(mine, tmp_path, peer, weights="folder") as engine,
    ):
        engine.sync(1)
        head = peer.policy.causal.lm_head.weight
        assert not peer.adapters and peer.version == "run-1" and head.isfinite().all()
        assert len(engine.generate(PROMPTS, DRAW)) == 4
