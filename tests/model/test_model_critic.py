"""The critic: where a value is read, what it depends on, what it shares, and how it starts."""

import pytest
import torch
from arithmetic import agree
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.sample import Group, Key, Sample, Values
from laurel.model.critic import Critic, own_critic, shared_critic
from laurel.model.interface import PolicyWithAuxiliary
from laurel.model.policy import Policy, load_policy
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.objective.value import value_loss
from laurel.rollout.pack import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_scratch(path, seed=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return str(path)


@pytest.fixture
def policy(folder):
    return load_policy(TrainConfig(model=folder, device="cpu"))


def rows(*ids, prompt=(4, 5, 6), temperature=1.0, mask=None):
    """A batch of completions of one prompt."""
    samples = tuple(
        Sample(
            Key("r", "s", "0", g, 0),
            prompt,
            y,
            (-1.0,) * len(y),
            mask or (True,) * len(y),
            temperature,
            "eos",
            "",
            (),
        )
        for g, y in enumerate(ids)
    )
    return pack([Group("0", {}, samples, rewards=(1.0,) * len(samples))])


def shaken(critic: Critic, seed=0):
    """A head that is not zero, so that values depend on something."""
    with torch.no_grad():
        critic.model["head"].weight.normal_(generator=torch.Generator().manual_seed(seed))
    return critic


def both(policy, critic, batch):
    """The values of a batch, and those of the states behind its rows."""
    names = ("value_NT", "value_after_N")
    return PolicyWithAuxiliary(policy, critic).forward(batch, names).tensors(names)


def values(policy, critic, batch):
    return both(policy, critic, batch)[0]


KINDS = {"own": own_critic, "shared": shared_critic}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
BATCH = rows((7, 8, 9, 10), (7, 11))


@kinds
def test_values_start_at_zero(policy, make):
    value_NT = values(policy, make(policy), BATCH)
    assert value_NT.dtype == torch.float32 and value_NT.tolist() == [[0] * 4, [0] * 4]


@kinds
def test_a_value_is_read_before_its_token(policy, make):
    """Changing token 2 leaves V_0 to V_2 as they were, to the bit, and moves V_3; the padding of
    the second row is 0.
    """
    critic = shaken(make(policy))
    before, after = (
        values(policy, critic, BATCH).detach(),
        values(policy, critic, rows((7, 8, 50, 10), (7, 11))).detach(),
    )
    assert (
        torch.equal(before[0, :3], after[0, :3])
        and float((before[0, 3] - after[0, 3]).abs()) > 1e-3
    )
    assert before[1, 2:].tolist() == [0, 0] and bool((before[1, :2] != 0).all())


@kinds
def test_it_is_the_hidden_state_times_the_head(policy, make):
    critic = shaken(make(policy))
    hidden = policy.hidden(BATCH)
    weight = critic.model["head"].weight[0]
    value_NT, after_N = both(policy, critic, BATCH)
    agree(value_NT[0], hidden[0, 2:6] @ weight)
    agree(after_N, torch.stack([hidden[0, 6], hidden[1, 4]]) @ weight)
    if critic.shares_body:
        assert torch.equal(critic.forward(BATCH, ["value_NT"], hidden).value_NT, value_NT)


@kinds
def test_T12_temperature_does_not_matter(policy, make):
    critic = shaken(make(policy))
    assert torch.equal(
        values(policy, critic, rows((7, 8, 9), temperature=0.5)),
        values(policy, critic, rows((7, 8, 9), temperature=1.0)),
    )


@kinds
def test_padding_changes_nothing_and_tool_tokens_are_seen_but_not_valued(policy, make):
    critic = shaken(make(policy))
    alone = values(policy, critic, BATCH.rows([1]))
    agree(values(policy, critic, BATCH)[1, :2], alone[0])
    tool = values(policy, critic, rows((7, 8, 9, 10), mask=(True, False, False, True))).detach()
    assert tool[0, 1:3].tolist() == [0, 0]
    other = values(policy, critic, rows((7, 8, 60, 10), mask=(True, False, False, True))).detach()
    assert torch.equal(other[0, 0], tool[0, 0]) and float((other[0, 3] - tool[0, 3]).abs()) > 1e-3


def test_training_a_critic_of_its_own_leaves_the_policy_alone(policy):
    """It finds the best values there are. Both rows begin with token 7, so (1, -1) and (2, -2) each
    share a state: value 0.
    """
    critic, before = own_critic(policy), policy.logp(BATCH).logp.detach()
    return_NT = torch.tensor([[1.0, 2, 3, 4], [-1, -2, 0, 0]])
    batch = BATCH.replace(values=Values(torch.zeros_like(return_NT), return_NT))
    optimiser = torch.optim.Adam(critic.trainable().values(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = value_loss(values(policy, critic, batch), batch, cliprange_value=0.0).sum()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(
        values(policy, critic, batch).detach(),
        torch.tensor([[0.0, 0, 3, 4], [0, 0, 0, 0]]),
        atol=0.02,
        rtol=0,
    )
    assert torch.equal(policy.logp(BATCH).logp, before) and all(
        p.grad is None for p in policy.model.parameters()
    )


def test_a_shared_critic_adds_one_head_and_pulls_at_the_policys_body(policy):
    critic = shaken(shared_critic(policy))
    assert (
        set(critic.trainable()) == {"critic.head.weight", "critic.head.bias"}
        and critic.num_parameters == 33
    )
    values(policy, critic, BATCH).sum().backward()
    assert float(policy.causal.model.layers[0].mlp.up_proj.weight.grad.abs().max()) > 0
    assert own_critic(policy).num_parameters > 0.9 * sum(
        p.numel() for p in policy.causal.model.parameters()
    )


@kinds
def test_state_goes_out_and_comes_back(policy, folder, make):
    critic = shaken(make(policy), seed=1)
    other = load_policy(TrainConfig(model=folder, device="cpu"))
    again = make(other)
    assert set(critic.trainable()) <= set(critic.state_dict()) and all(
        name.startswith("critic.") for name in critic.state_dict()
    )
    again.load_state_dict({name: tensor.clone() for name, tensor in critic.state_dict().items()})
    assert torch.equal(values(other, again, BATCH), values(policy, critic, BATCH))
    with pytest.raises(RuntimeError):
        again.load_state_dict({"critic.head.weight": critic.model["head"].weight})


def scorer(policy, labels=1):
    config = policy.causal.config.__class__(
        **policy.causal.config.to_dict() | {"num_labels": labels}
    )
    torch.manual_seed(5)
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(policy.causal.model.state_dict())
    return model.requires_grad_(False)


@kinds
def test_from_a_reward_model_the_last_value_is_its_score(policy, make):
    """What lies behind the last token is worth exactly what the reward model says of the whole; the
    copy can be trained.
    """
    model = scorer(policy)
    critic = make(policy, model)
    with torch.no_grad():
        ids = BATCH.ids_NL[:1]
        score = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        agree(both(policy, critic, BATCH)[1][0], score)
    scaled = make(policy, model, mean=0.5, std=2.0)
    agree(values(policy, scaled, BATCH)[0], (values(policy, critic, BATCH)[0] - 0.5) / 2)
    assert len(critic.trainable()) == len(list(critic.model.parameters()))
    assert critic.model["head"].weight is not model.score.weight


def test_a_classifier_is_no_reward_model(policy):
    with pytest.raises(UsageError, match="3 of 32 numbers"):
        own_critic(policy, scorer(policy, labels=3))


def test_a_lora_policy_gives_a_lora_critic(folder):
    policy = load_policy(TrainConfig(model=folder, use_peft=True, device="cpu"))
    critic = own_critic(policy)
    names = [name for name in critic.trainable() if "head" not in name]
    assert names and all("lora_" in name for name in names)
    values(policy, shaken(critic), BATCH).sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())


def test_float64_all_the_way(folder):
    policy = load_policy(TrainConfig(model=folder, device="cpu"))
    policy.model.double()
    for make in KINDS.values():
        assert values(policy, shaken(make(policy)), BATCH).dtype == torch.float64


def test_bfloat16_arithmetic_gives_float32_values(folder):
    plain = load_policy(TrainConfig(model=folder, device="cpu", dtype="float32"))
    half = load_policy(TrainConfig(model=folder, device="cpu", dtype="bfloat16"))
    for make in KINDS.values():
        value, rough = (values(one, shaken(make(one)), BATCH) for one in (plain, half))
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, value, atol=0.3, rtol=0.1)


MODELS = {
    "gpt2": lambda n: GPT2LMHeadModel(
        GPT2Config(vocab_size=n, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    ),
    "opt with a narrower output": lambda n: OPTForCausalLM(
        OPTConfig(
            vocab_size=n,
            hidden_size=32,
            word_embed_proj_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
        )
    ),
    "gemma2": lambda n: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=n,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ),
}


@kinds
@pytest.mark.parametrize("name", MODELS)
def test_other_architectures(name, make):
    tokenizer = char_tokenizer()
    policy = Policy(MODELS[name](len(tokenizer)).eval(), tokenizer)
    critic = shaken(make(policy))
    value_NT, after_N = both(policy, critic, BATCH)
    assert (
        value_NT.shape == (2, 4)
        and value_NT[1, 2:].tolist() == [0, 0]
        and bool((value_NT[0] != 0).all())
    )
    alone = [both(policy, critic, BATCH.rows([n])) for n in range(2)]
    torch.testing.assert_close(
        after_N, torch.cat([after for _, after in alone]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(value_NT[1, :2], alone[1][0][0], atol=1e-5, rtol=1e-5)
