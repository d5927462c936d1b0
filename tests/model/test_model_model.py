"""The policy as a model: log-probs of a batch, the reference, LoRA, and a saved folder that is what
was trained.
"""

import os
import subprocess
import sys

import pytest
import torch
from arithmetic import agree
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from laurel.core import machine
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.sample import Group, Key, Sample
from laurel.model.policy import Policy, load_policy, make_reference, pick_threads
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.rollout.pack import pack
from laurel.rollout.sampler import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_scratch(path, seed=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return str(path)


def sampled_batch(policy, temperature=1.0, count=3, seed=0):
    """Sampled rows of different length as a Batch."""
    prompts = [(4, 5, 6), (7,), (8, 9, 10, 11)]
    done = sample(
        policy,
        prompts,
        seeds=range(seed, seed + 3 * count),
        max_completion_length=9,
        temperature=temperature,
    )
    groups = []
    for i, prompt in enumerate(prompts):
        samples = tuple(
            Sample(
                Key("r", "s", str(i), g, 0),
                prompt,
                c.ids,
                c.logps,
                (True,) * len(c.ids),
                temperature,
                c.finish,
                "",
                (),
            )
            for g, c in enumerate(done[i * count : (i + 1) * count])
        )
        groups.append(Group(str(i), {}, samples, rewards=(1.0,) * count))
    return pack(groups)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("use_peft", [False, True])
def test_T10_ratio_is_one(folder, temperature, use_peft):
    """T10: sampler and trainer agree to 1e-4 in the ratio, with dropout in the config, for every
    micro-batch size.
    """
    policy = load_policy(
        TrainConfig(model=folder, use_peft=use_peft, lora_dropout=0.1 if use_peft else 0.0)
    )
    policy.model.config.attention_dropout = 0.1
    policy.model.eval()
    batch = sampled_batch(policy, temperature)
    for budget in (1, 20, 10_000):
        for micro in batch.split(budget):
            ratio = (policy.logp(micro).logp - micro.logp_old_NT).exp()
            assert float((ratio - 1)[micro.loss_mask_NT].abs().max()) < 1e-4


def test_padding_side_and_amount_change_nothing(folder):
    policy = load_policy(TrainConfig(model=folder))
    policy.model.eval()
    batch = sampled_batch(policy)
    whole = policy.logp(batch).logp
    for n in range(len(batch)):
        alone = policy.logp(batch.rows([n])).logp
        agree(alone[0], whole[n, : alone.shape[1]])
    assert float(whole[~batch.loss_mask_NT].abs().sum()) == 0


def test_split_keeps_every_row_once(folder):
    batch = sampled_batch(load_policy(TrainConfig(model=folder)))
    for budget in (1, 13, 30, 999):
        parts = list(batch.split(budget))
        assert sorted(key for part in parts for key in part.keys) == sorted(batch.keys)
        assert all(len(part) == 1 or part.ids_NL.numel() <= budget for part in parts)


@pytest.mark.parametrize("kind", ["full", "lora", "lora on a tuned adapter"])
def test_T20_reference_stays_where_it_was(folder, kind, tmp_path):
    """T20: at step 0 reference == policy; after training it is bit-identical to before, embeddings
    trained too.
    """
    policy = load_policy(TrainConfig(model=folder, use_peft=kind != "full", lora_dropout=0.1))
    if kind == "lora on a tuned adapter":
        shake(policy)
    reference = make_reference(policy, "start")
    batch = sampled_batch(policy)
    policy.model.eval()
    before = reference.logp(batch)
    agree(policy.logp(batch).logp, before)
    policy.model.train()
    shake(policy)
    policy.model.eval()
    assert torch.equal(reference.logp(batch), before)
    assert float((policy.logp(batch).logp - before).abs().max()) > 1e-3
    assert reference.adapters_off == (kind == "lora")


def shake(policy):
    """Move every trainable weight."""
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
            )


def test_base_reference_is_the_model_under_a_loaded_adapter(folder, tmp_path):
    policy = load_policy(TrainConfig(model=folder, use_peft=True))
    shake(policy)
    policy.model.save_pretrained(tmp_path / "adapter")
    again = load_policy(TrainConfig(model=str(tmp_path / "adapter")))
    plain = load_policy(TrainConfig(model=folder))
    for p in (again, plain):
        p.model.eval()
    batch = sampled_batch(plain)
    agree(make_reference(again, "base").logp(batch), plain.logp(batch).logp)
    assert float((again.logp(batch).logp - plain.logp(batch).logp).abs().max()) > 1e-3
    assert again.trainable().keys() == policy.trainable().keys()
    with pytest.raises(UsageError, match="adapters"):
        make_reference(plain, "base")


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(tokenizer("12+34=").input_ids)
    torch.save(model(torch.tensor([tokenizer("12+34=").input_ids])).logits, folder + ".pt")
"""


def test_T46_T62_saved_folder_is_the_trained_model(folder, tmp_path):
    """T46, T62: a new process loads the folder with plain transformers: same ids, same logits; a
    LoRA run is merged, not the base.
    """
    policies = {
        name: load_policy(TrainConfig(model=folder, use_peft=name == "merged"))
        for name in ("whole", "merged")
    }
    for name, policy in policies.items():
        shake(policy)
        policy.model.eval()
        policy.save(tmp_path / name, merge=True)
    command = [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in policies)]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=600
    ).stdout.splitlines()
    base = load_policy(TrainConfig(model=folder)).model.eval()
    for line, (name, policy) in zip(said, policies.items(), strict=True):
        ids = policy.tokenizer("12+34=").input_ids
        assert line == str(ids), name
        theirs = torch.load(tmp_path / f"{name}.pt")
        agree(
            theirs,
            policy.model(torch.tensor([ids])).logits,
            units=1024 if name == "merged" else 256,
        )  # merging rounds the weights, too
        assert float((base(torch.tensor([ids])).logits.detach() - theirs).abs().max()) > 1e-2, name


@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_architectures_with_something_between_head_and_logits(kind):
    """A soft cap is applied by our head; an unknown scale is noticed and the model's own logits are
    used.
    """
    tokenizer = char_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    if kind == "gemma2":
        model = Gemma2ForCausalLM(
            Gemma2Config(
                **shape,
                num_key_value_heads=2,
                head_dim=8,
                final_logit_softcapping=0.5,
                sliding_window=4,
            )
        )
    else:
        model = CohereForCausalLM(
            CohereConfig(**shape, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        )
    policy = Policy(model.eval(), tokenizer)
    assert policy.whole_logits == (kind == "cohere")
    batch = sampled_batch(policy)
    ratio = (policy.logp(batch).logp - batch.logp_old_NT).exp()
    assert float((ratio - 1)[batch.loss_mask_NT].abs().max()) < 1e-4


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match="no such model folder"):
        load_policy(TrainConfig(model="./nowhere/at/all"))
    with pytest.raises(UsageError, match=r"config\.json"):
        load_policy(TrainConfig(model=str(tmp_path)))


def test_thread_rule(monkeypatch):
    assert pick_threads(0, 1_000_000) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda *where: 4.0)
    for said, expected in {"2": 2, "99": 4}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert pick_threads(0, 10_000_000) == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pick_threads(0, 10_000_000) == 4
    assert pick_threads(3, 1) == 3


@pytest.mark.parametrize("whole_groups", [False, True])
def test_packed_split_counts_a_prompt_once_and_keeps_groups_together(folder, whole_groups):
    """Groups of three rows: a group's cost is its prompt and its completions; one that is too long
    is parted unless it must not be.
    """
    batch = sampled_batch(load_policy(TrainConfig(model=folder)))
    for budget in (1, 13, 30, 999):
        parts = list(batch.split(budget, whole_groups=whole_groups, packed=True))
        assert sorted(key for part in parts for key in part.keys) == sorted(batch.keys)
        for part in parts:
            prompts = dict(zip(part.group_N.tolist(), part.start_N.tolist(), strict=True))
            cost = int(part.length_N.sum()) + sum(prompts.values())
            assert cost <= budget or (len(prompts) == 1 if whole_groups else len(part) == 1)
        if whole_groups:
            assert sum(len(set(part.group_N.tolist())) for part in parts) == 3
    assert len(list(batch.split(999, packed=True))) == 1
