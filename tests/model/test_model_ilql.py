"""Heads Q and V: where they are read, what follows what, and that the saved folder says log pi +
beta (Q - V).
"""

import json

import pytest
import torch
from arithmetic import agree
from test_model_critic import rows
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.model.ilql import fold_q_into_head, new_heads
from laurel.model.interface import PolicyWithAuxiliary
from laurel.model.policy import Policy, load_policy
from laurel.model.scratch import char_tokenizer, save_scratch

BATCH = rows((7, 8, 9, 10), (7, 11))
NAMES = ("logp_NT", "q_KNT", "logq_KNT", "target_q_NT", "value_NT")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_scratch(path, seed=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return str(path)


@pytest.fixture
def policy(folder):
    return load_policy(TrainConfig(model=folder, device="cpu"))


def outputs(policy, heads):
    """All that policy and heads compute of the batch."""
    return PolicyWithAuxiliary(policy, heads).forward(BATCH, NAMES)


def shaken(policy, **options):
    """Heads that say something, V too."""
    heads = new_heads(policy, **{"target_update": 0.1, "decode_beta": 1.5, **options})
    with torch.no_grad():
        for parameter in heads.trainable().values():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return heads


def test_heads_are_read_before_the_token_each_row_by_itself(policy):
    """Against the model asked without padding, one prefix at a time."""
    heads = shaken(policy)
    heads.follow()
    seen = outputs(policy, heads)
    for n, y in enumerate(((7, 8, 9, 10), (7, 11))):
        for t, token in enumerate(y):
            hidden = policy.causal.model(torch.tensor([[4, 5, 6, *y[:t]]])).last_hidden_state[0, -1]
            q, slow = (
                torch.stack([head(hidden) for head in heads.all(kind)]) for kind in ("q", "target")
            )
            agree(seen.q_KNT[:, n, t], q[:, token])
            agree(seen.logq_KNT[:, n, t], q.log_softmax(1)[:, token])
            agree(seen.target_q_NT[n, t], slow[:, token].min())
            agree(seen.value_NT[n, t], heads.model["v"](hidden)[0])
    torch.testing.assert_close(seen.logp_NT, policy.logp(BATCH).logp)
    assert all((x[..., 1, 2:] == 0).all() for x in seen.tensors(NAMES))


def test_the_body_runs_once(policy):
    """log pi, both Q, their copies and V come from one pass."""
    calls = []
    policy.causal.model.register_forward_hook(lambda *_: calls.append(1))
    outputs(policy, new_heads(policy, target_update=0.1, decode_beta=1.0))
    assert len(calls) == 1


def test_q_moves_the_body_and_the_copies_move_only_when_told(policy):
    heads = new_heads(policy, target_update=0.25, decode_beta=1.0)
    before = {name: p.clone() for name, p in heads.followers().items()}
    seen = outputs(policy, heads)
    assert not seen.target_q_NT.requires_grad
    (seen.q_KNT.sum() + seen.value_NT.sum()).backward()
    assert policy.causal.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for name, p in heads.trainable().items():
            p += 1.0 if "q_" in name else 0.0
    assert all(torch.equal(p, before[name]) for name, p in heads.followers().items())
    heads.follow()
    for name, p in heads.followers().items():
        torch.testing.assert_close(p, before[name] + 0.25)
    assert not heads.followers().keys() & heads.trainable().keys() and not any(
        p.requires_grad for p in heads.followers().values()
    )


def test_heads_start_small_different_and_from_the_seed_alone(policy):
    """Two heads that start equal would stay equal; V says exactly 0; the copies begin as the
    heads.
    """
    heads = new_heads(policy, target_update=0.1, decode_beta=1.0)
    seen = outputs(policy, heads)
    assert (seen.value_NT == 0).all() and not torch.equal(seen.q_KNT[0], seen.q_KNT[1])
    assert 0 < seen.q_KNT.abs().max() < 1
    torch.testing.assert_close(seen.target_q_NT, seen.q_KNT.amin(0))
    torch.randn(7)
    again = new_heads(policy, target_update=0.1, decode_beta=1.0)
    assert all(torch.equal(p, again.trainable()[name]) for name, p in heads.trainable().items())
    other = new_heads(policy, target_update=0.1, decode_beta=1.0, seed=1)
    assert not torch.equal(other.model["q_0"].weight, heads.model["q_0"].weight)


def test_folded_by_hand():
    W, first, second = (
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[4.0, 0.0]]),
        torch.tensor([[0.0, 2.0]]),
    )
    assert fold_q_into_head(W, [first, second], 0.5).tolist() == [[2.0, 2.5]]


def decodes_as_stated(heads, policy, folder):
    """transformers alone, as anybody would load it: softmax of its logits is that of log pi + beta
    (Q - V), to 1e-5.
    """
    ids = torch.tensor([[4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4]])
    hidden = policy.body(ids).last_hidden_state
    q = torch.stack([hidden @ head.weight.T for head in heads.all("q")]).mean(0)
    wanted = (
        policy.causal(ids).logits.log_softmax(-1)
        + heads.decode_beta * (q - heads.model["v"](hidden))
    ).softmax(-1)
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits.softmax(
        -1
    )
    agree(found, wanted)
    return found


@torch.no_grad()
@pytest.mark.parametrize("lora", [False, True])
def test_the_saved_folder_decodes_as_stated(folder, tmp_path, lora):
    policy = load_policy(TrainConfig(model=folder, device="cpu", use_peft=lora, lora_r=4))
    for name, p in policy.trainable().items():
        if "lora_B" in name:
            p.normal_(std=0.1)
    heads = shaken(policy)
    heads.save(policy, tmp_path / "out")
    found = decodes_as_stated(heads, policy, tmp_path / "out")
    assert (
        found
        - policy.causal(torch.tensor([[4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4]])).logits.softmax(-1)
    ).abs().max() > 0.1
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    causal = policy.causal  # the policy in memory is as it was: still tied, and trainable as before
    assert (
        causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
        and causal.config.tie_word_embeddings
    )


@torch.no_grad()
def test_beta_0_saves_the_policy_itself(policy, tmp_path):
    heads = shaken(policy, decode_beta=0.0)
    heads.save(policy, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[4, 5, 6]])
    agree(again(ids).logits, policy.causal(ids).logits)


@torch.no_grad()
def test_a_folder_that_would_not_decode_as_stated_is_not_passed_off(policy, tmp_path, monkeypatch):
    heads = shaken(policy)
    monkeypatch.setattr(
        "laurel.model.ilql.fold_q_into_head",
        lambda weight, q, beta: weight + 1.01 * beta * sum(w for w in q) / 2,
    )
    with pytest.raises(LaurelError, match=r"differs from .* should be log pi \+ beta"):
        heads.save(policy, tmp_path)
    assert not list(tmp_path.iterdir())


OTHERS = {
    "head with a bias": PhiForCausalLM(PhiConfig(vocab_size=100, **SMALL)),
    "head of its own": GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=100, **SMALL)),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_other_linear_heads_are_folded_too(kind, tmp_path):
    """A bias of the model's own stays where it is: Q has none."""
    model = OTHERS[kind].eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        head.bias.normal_()
    policy = Policy(model, char_tokenizer())
    heads = shaken(policy)
    heads.save(policy, tmp_path)
    decodes_as_stated(heads, policy, tmp_path)


REFUSED = {
    "soft-capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=100, head_dim=16, num_key_value_heads=2, **SMALL)
    ),
    "scaled": lambda: CohereForCausalLM(
        CohereConfig(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SMALL)
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_logits_that_are_no_linear_head_are_refused_before_training(kind, tmp_path):
    """They can be trained, and saved without Q."""
    policy = Policy(REFUSED[kind]().eval(), char_tokenizer())
    with pytest.raises(UsageError, match="decode_beta"):
        new_heads(policy, target_update=0.1, decode_beta=1.0)
    heads = new_heads(policy, target_update=0.1, decode_beta=0.0)
    torch.testing.assert_close(outputs(policy, heads).logp_NT, policy.logp(BATCH).logp)
    heads.save(policy, tmp_path)
    assert (tmp_path / "config.json").exists()


def test_float64_stays_float64(folder):
    policy = load_policy(TrainConfig(model=folder, device="cpu"))
    policy.model.double()
    assert all(
        x.dtype == torch.float64
        for x in outputs(policy, new_heads(policy, target_update=0.1, decode_beta=1.0)).tensors(
            NAMES
        )
    )
