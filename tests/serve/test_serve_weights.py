"""New weights and adapters: whole or not at all, spans of versions, nothing opened outside."""

import hashlib
import json
import os
import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import running, tiny
from test_serve_wire import PROMPTS, ask, refused

from laurel.core.config import TrainConfig
from laurel.model.adapters import with_lora
from laurel.model.policy import Policy, load_causal
from laurel.model.saving import origin_of
from laurel.rollout.sampler import sample


@pytest.fixture
def folders(tmp_path):
    """An allowed folder with the weights of another model, and one that is not allowed."""
    other = tiny(seed=1)
    other.save(tmp_path / "allowed" / "new")
    other.save(tmp_path / "secret")
    return tmp_path


@pytest.fixture
def served(folders):
    with running(tiny(), roots=[folders / "allowed"]) as found:
        yield found


def rpc(folder, **more):
    return {"method": "reload_weights", "kwargs": {"weights_path": str(folder), **more}}


def drawn(served, **body):
    how = {"seeds": list(range(8)), "n": 2, "max_tokens": 12, "logprobs": 0}
    found = ask(served, prompt=[list(p) for p in PROMPTS], return_token_ids=True, **{**how, **body})
    return [(tuple(o["token_ids"]), tuple(o["logprobs"]["token_logprobs"])) for o in found]


def by_sampler(policy):
    done = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=12)
    # so few rows take products of their own: as many as the server has beside them
    more = sample(policy, PROMPTS * 5, seeds=list(range(40)), max_completion_length=12)
    assert [one.ids for one in more[:8]] == [one.ids for one in done]
    return [(one.ids, one.logps) for one in more[:8]]


def test_weights_from_a_folder(served, folders):
    """As a sampler of the other model says it; version, spans and checksums follow."""
    assert drawn(served) == by_sampler(tiny())
    answer = served.client.post("/collective_rpc", json=rpc(folders / "allowed" / "new"))
    assert answer.status_code == 200, answer.text
    assert served.client.get("/weight_info").json()["weight_version"] == "0+"
    served.client.post("/update_weight_version", json={"new_version": "7"})
    assert drawn(served) == by_sampler(tiny(seed=1))
    assert ask(served, prompt="1", seed=1)[0]["weight_versions"][0]["version"] == "7"
    told = served.client.post("/weight_checker", json={"action": "checksum"}).json()["checksums"]
    for name, parameter in tiny(seed=1).causal.named_parameters():
        raw = parameter.detach().numpy().tobytes()
        assert told[name] == hashlib.sha256(raw).hexdigest()
    same = {"action": "compare", "baseline": told}
    assert served.client.post("/weight_checker", json=same).json()["match"] is True
    told[name] = "0" * 64
    assert served.client.post("/weight_checker", json=same).json()["mismatches"] == [name]


def test_spans_of_versions(served, folders):
    """Frozen in the middle, given new weights, and let go on: tokens before and after say so."""
    found = []
    body = {"prompt": [4, 5, 6], "seed": 1, "max_tokens": 200, "return_token_ids": True}
    # an end token would end it too soon for a change in its middle: seeds are tried for length
    seed = next(
        n
        for n in range(400)
        if len(sample(tiny(), [(4, 5, 6)], seeds=[n], max_completion_length=200)[0].ids) > 60
    )
    slow = served.engine.metrics.steps
    thread = threading.Thread(target=lambda: found.extend(ask(served, **{**body, "seed": seed})))
    thread.start()
    while served.engine.metrics.steps < slow + 10:
        time.sleep(0.0005)
    served.client.post("/pause?mode=keep")
    assert served.client.get("/is_paused").json() == {"is_paused": True}
    before = served.engine.metrics.steps
    time.sleep(0.05)
    assert served.engine.metrics.steps == before
    served.client.post("/collective_rpc", json=rpc(folders / "allowed" / "new", version="1"))
    served.client.post("/resume")
    thread.join(30)
    spans = found[0]["weight_versions"]
    assert [span["version"] for span in spans] == ["0", "1"]
    assert spans[0]["start"] == 0 and spans[0]["end"] == spans[1]["start"] >= 10
    assert spans[1]["end"] == len(found[0]["token_ids"])


def spoil(folder, kind):
    """Make a model folder one that must not be taken."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if kind == "cut":
        os.truncate(file, file.stat().st_size - 8)
    elif kind == "shape":
        save_file({**tensors, name: tensors[name][:-1].clone()}, file, {"format": "pt"})
    elif kind == "infinite":
        save_file({**tensors, name: tensors[name] / 0}, file, {"format": "pt"})
    elif kind == "lost":
        del tensors[name]
        save_file(tensors, file, {"format": "pt"})
    elif kind == "empty":
        file.unlink()
    elif kind == "other":
        tiny("gpt2").save(folder)


@pytest.mark.parametrize("kind", ["cut", "shape", "infinite", "lost", "empty", "other"])
def test_weights_that_do_not_fit_leave_the_old_ones(served, folders, kind):
    """Refused with what is wrong; tokens, version and checksums stay."""
    before = drawn(served)
    sums = served.client.post("/weight_checker", json={"action": "checksum"}).json()
    spoil(folders / "allowed" / "new", kind)
    answer = served.client.post("/collective_rpc", json=rpc(folders / "allowed" / "new"))
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]
    assert drawn(served) == before
    assert served.client.get("/weight_info").json()["weight_version"] == "0"
    assert served.client.post("/weight_checker", json={"action": "checksum"}).json() == sums


def adapters(folder, seed):
    """A folder of LoRA adapters on `tiny`, and the policy with them."""
    base = folder / "base"
    if not base.exists():
        tiny().save(base)
    torch.manual_seed(seed)
    model = with_lora(load_causal(str(base)), TrainConfig(use_peft=True, lora_r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    policy = Policy(model.eval(), tiny().tokenizer, origin=origin_of(str(base)))
    policy.save(folder / f"adapter-{seed}")
    return policy


def test_adapters_by_name(served, folders):
    """Two adapters and the base beside each other, each as the trainer's own sampler says it; one
    that is unloaded is unknown.
    """
    policies = {f"run-{seed}": adapters(folders / "allowed", seed) for seed in (1, 2)}
    for seed in (1, 2):
        folder = folders / "allowed" / f"adapter-{seed}"
        body = {"lora_name": f"run-{seed}", "lora_path": str(folder)}
        assert served.client.post("/v1/load_lora_adapter", json=body).status_code == 200
    for name, policy in policies.items():
        assert drawn(served, model=name) == by_sampler(policy)
        spans = ask(served, model=name, prompt="1", seed=1)[0]["weight_versions"]
        assert spans[0]["version"] == name
    assert drawn(served) == by_sampler(tiny())
    parents = {one["id"]: one["parent"] for one in served.client.get("/v1/models").json()["data"]}
    assert parents == {"m": None, "run-1": "m", "run-2": "m"}
    assert "already" in refused(served, "/v1/load_lora_adapter", **body)
    gone = served.client.post("/v1/unload_lora_adapter", json={"lora_name": "run-1"})
    assert gone.status_code == 200
    assert "no model" in refused(served, model="run-1", prompt="1", status=404)


def test_an_adapter_does_not_open_the_base_that_it_names(served, folders):
    """Its configuration may name any folder: what it is put on is what is served."""
    adapters(folders / "allowed", 1)
    config = folders / "allowed" / "adapter-1" / "adapter_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "base_model_name_or_path": str(folders / "nowhere")}))
    body = {"lora_name": "a", "lora_path": str(config.parent)}
    assert served.client.post("/v1/load_lora_adapter", json=body).status_code == 200


def test_folders_outside_are_not_opened(served, folders):
    """By path, by dots, by link of the folder or of a file, by an index; and it is not told
    whether they are there.
    """
    allowed = folders / "allowed"
    (allowed / "link").symlink_to(folders / "secret")
    inside = allowed / "inside"
    shutil.copytree(allowed / "new", inside)
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(folders / "secret" / "model.safetensors")
    index = allowed / "index"
    shutil.copytree(allowed / "new", index)
    (index / "model.safetensors").rename(index / "x.safetensors")
    (index / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "../../secret/model.safetensors"}})
    )
    before = drawn(served)
    told = set()
    for path in (
        "secret",
        "allowed/../secret",
        "allowed/link",
        "nowhere",
        "allowed/new/config.json",
    ):
        answer = served.client.post("/collective_rpc", json=rpc(folders / path))
        assert answer.status_code == 404, path
        told.add(answer.json()["error"]["message"])
    assert len(told) == 1
    for path in (inside, index):
        assert served.client.post("/collective_rpc", json=rpc(path)).status_code == 403
    body = {"lora_name": "a", "lora_path": str(folders / "secret")}
    assert served.client.post("/v1/load_lora_adapter", json=body).status_code == 404
    assert drawn(served) == before


def test_without_a_folder_nothing_is_opened(folders):
    """A server that was started without --allow_folder."""
    with running(tiny()) as served:
        answer = served.client.post("/collective_rpc", json=rpc(folders / "allowed" / "new"))
        assert answer.status_code == 403 and "--allow_folder" in answer.text
