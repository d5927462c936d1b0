"""One model interface: what is asked for is computed, each body once, and gradients of one pass are
those of two.
"""

import pytest
import torch
from test_model_critic import BATCH, shaken
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel

from laurel.core.config import TrainConfig
from laurel.core.sample import Outputs, Values
from laurel.model.critic import own_critic, shared_critic
from laurel.model.discriminator import make_discriminator
from laurel.model.ilql import new_heads
from laurel.model.interface import PolicyWithAuxiliary
from laurel.model.policy import Policy, load_policy
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.objective.ilql import implicit_q
from laurel.objective.policy import clip
from laurel.objective.value import value_loss

QS = ("logp_NT", "q_KNT", "logq_KNT", "target_q_NT", "value_NT")


@pytest.fixture
def policy(tmp_path):
    save_scratch(tmp_path, seed=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return load_policy(TrainConfig(model=str(tmp_path), device="cpu"))


def passes(body):
    """A list that grows by one with every pass of a body."""
    counted = []
    body.register_forward_hook(lambda *_: counted.append(1))
    return counted


def heads(policy):
    return new_heads(policy, target_update=0.1, decode_beta=0.0)


@pytest.mark.parametrize(
    "make, wanted",
    [
        (shared_critic, ("logp_NT", "entropy_NT", "value_NT", "value_after_N")),
        (heads, (*QS, "entropy_NT")),
        (own_critic, ("logp_NT", "value_NT")),
        (make_discriminator, ("logp_NT", "logit_N")),
    ],
)
def test_each_body_runs_once(policy, make, wanted):
    auxiliary = make(policy)
    reader = getattr(auxiliary, "reader", auxiliary)
    bodies = [policy.causal.model, *([reader.model["body"]] if "body" in reader.model else [])]
    counted = [passes(body) for body in bodies]
    outputs = PolicyWithAuxiliary(policy, auxiliary).forward(BATCH, wanted)
    assert [len(each) for each in counted] == [1] * len(bodies)
    assert {name for name in wanted if getattr(outputs, name) is None} == set()


def test_a_model_whose_logits_are_no_head_of_hidden_states_runs_once_too():
    """Cohere scales its logits: they are made by the whole model, and hidden states on the way."""
    config = CohereConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    policy = Policy(CohereForCausalLM(config).eval(), char_tokenizer())
    critic = shaken(shared_critic(policy))
    counted = passes(policy.causal.model)
    outputs = PolicyWithAuxiliary(policy, critic).forward(BATCH, ("logp_NT", "value_NT"))
    assert policy.whole_logits and len(counted) == 1
    torch.testing.assert_close(outputs.logp_NT, policy.logp(BATCH).logp)
    apart = critic.forward(BATCH, ["value_NT"], policy.hidden(BATCH))
    torch.testing.assert_close(outputs.value_NT, apart.value_NT)


def test_what_is_not_wanted_is_not_computed(policy):
    """A value alone: no pass of the policy where the critic has its own body. A missing field is an
    error, not None in a loss.
    """
    critic = own_critic(policy)
    counted = passes(policy.causal.model)
    outputs = PolicyWithAuxiliary(policy, critic).forward(BATCH, ("value_NT",))
    assert not counted and outputs.logp_NT is None and outputs.value_NT is not None
    with pytest.raises(ValueError, match="logp_NT was not asked"):
        outputs.tensors(["value_NT", "logp_NT"])
    assert policy.forward(BATCH, ["hidden_NLD"]).logp_NT is None


def gradients(policy, auxiliary, loss):
    every = [*policy.trainable().values(), *auxiliary.trainable().values()]
    return torch.autograd.grad(loss, every, allow_unused=True)


def ppo_loss(outputs):
    one_NT = torch.ones_like(BATCH.weight_NT)
    batch = BATCH.replace(values=Values(0 * one_NT, one_NT), weight_NT=one_NT)
    return (clip(outputs.logp_NT, batch) + value_loss(outputs.value_NT, batch)).sum()


def ilql_loss(outputs):
    batch = BATCH.replace(reward_N=torch.tensor([1.0, 2.0]))
    return implicit_q(*outputs.tensors(QS), batch, awac_beta=0.5).sum()


@pytest.mark.parametrize(
    "make, wanted, loss_of",
    [
        (shared_critic, ("logp_NT", "value_NT"), ppo_loss),
        (heads, QS, ilql_loss),
    ],
)
def test_one_pass_has_the_gradients_of_two(make, wanted, loss_of):
    """In float64, to its rounding: log-probabilities and the rest from a pass each, or from one.

    Of a GPT-2: the norm of a Llama is float32 inside, whatever its weights are.
    """
    torch.manual_seed(0)
    tokenizer = char_tokenizer()
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape))
    policy = Policy(model.double().eval(), tokenizer)
    auxiliary = make(policy)
    with torch.no_grad():
        for parameter in auxiliary.trainable().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    once = PolicyWithAuxiliary(policy, auxiliary).forward(BATCH, wanted)
    spoken = Outputs(logp_NT=policy.logp(BATCH).logp)
    apart = spoken.joined(auxiliary.forward(BATCH, wanted, policy.hidden(BATCH)))
    ours = gradients(policy, auxiliary, loss_of(once))
    theirs = gradients(policy, auxiliary, loss_of(apart))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
