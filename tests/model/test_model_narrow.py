"""Weights held in bfloat16: half the memory, and bit by bit what float32 copies of them say under
autocast.
"""

import pytest
import torch
from peft import PeftModel
from test_model_weights import FAMILIES, make, save
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.sample import Group, Key, Sample
from laurel.fast.decode import compact_because
from laurel.model.critic import own_critic
from laurel.model.ilql import new_heads
from laurel.model.interface import PolicyWithAuxiliary
from laurel.model.objects import note_of_given
from laurel.model.policy import load_causal, load_policy, make_reference
from laurel.model.scorer import load_scorer
from laurel.rollout.pack import pack
from laurel.rollout.sampler import sample
from laurel.train.options import resolve

PROMPTS = [(5, 6, 7, 8), (9, 10, 11)]
FEW = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
MORE = {
    **FAMILIES,
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, FEW),  # biases
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family) -> a folder of bfloat16 files, written once; never to be changed."""
    made = {}

    def find(family="llama"):
        if family not in made:
            FAMILIES.setdefault(family, MORE[family])
            model = make(family, tied=family != "qwen2")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            made[family] = save(model.to(torch.bfloat16), tmp_path_factory.mktemp(family))
        return made[family]

    yield find
    for family in set(MORE) - set(list(MORE)[:5]):
        FAMILIES.pop(family, None)


def loaded(folder, held, **more):
    """A policy with its weights in a precision, its products in bfloat16, and adapters that say
    something.
    """
    policy = load_policy(
        TrainConfig(
            model=folder, device="cpu", lora_r=2, dtype="bfloat16", param_dtype=held, **more
        )
    )
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=noise))
    return policy


def drawn(policy):
    """Eight completions of two prompts, as a batch."""
    found = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=8)
    rows = [
        Sample(
            Key("", "", str(n // 4), n % 4, 0),
            PROMPTS[n // 4],
            one.ids,
            one.logps,
            (True,) * len(one.ids),
            1.0,
            one.finish,
            "",
            (),
        )
        for n, one in enumerate(found)
    ]
    return pack([Group(str(k), {}, tuple(rows[4 * k : 4 * k + 4])) for k in range(2)])


@pytest.mark.parametrize("family", MORE)
def test_they_say_what_float32_copies_of_them_say_under_autocast(saved, family):
    """Samples, log-probabilities, reference, and gradients of adapters: equal bit by bit, in half
    the memory; experts but for rounding.
    """
    wide, narrow = (loaded(saved(family), held, use_peft=True) for held in ("float32", "bfloat16"))
    batch = drawn(narrow)
    assert torch.equal(batch.ids_NL, drawn(wide).ids_NL) or family == "moe"
    assert narrow.packs == wide.packs and (
        not narrow.packs or compact_because(narrow) in ("", "its logits would differ")
    )
    assert compact_because(narrow) == compact_because(wide)
    ours, theirs = narrow.logp(batch), wide.logp(batch)
    bound = 0.05 if family == "moe" else 0.0
    assert (
        float((ours.logp - theirs.logp).abs().max().detach()) <= bound
        and ours.logp.dtype == torch.float32
    )
    for stats in (ours, theirs):
        stats.logp.sum().backward()
    for name, parameter in narrow.trainable().items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        torch.testing.assert_close(
            parameter.grad, wide.trainable()[name].grad, rtol=0, atol=3.0 if bound else 0.0
        )
    refs = [make_reference(policy, "base").logp(batch) for policy in (narrow, wide)]
    torch.testing.assert_close(*refs, rtol=0, atol=bound)
    assert not torch.equal(refs[0], ours.logp.detach())
    kinds = {(p.ndim > 1, p.dtype) for n, p in narrow.model.named_parameters() if "lora_" not in n}
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    size = [
        sum(p.numel() * p.element_size() for p in policy.causal.parameters())
        for policy in (narrow, wide)
    ]
    assert size[0] < 0.65 * size[1]  # at this width adapters are many


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_adapters_on_them_are_saved_as_ever(saved, family, tmp_path):
    """As adapters in the base's precision, and merged; both are read by PEFT and transformers, and
    both say what was trained.
    """
    policy = loaded(saved(family), "bfloat16", use_peft=True)
    batch = drawn(policy)
    wanted = policy.logp(batch).logp.detach()
    policy.save(tmp_path / "adapter", dtype="float32")
    again = load_policy(
        TrainConfig(
            model=str(tmp_path / "adapter"), device="cpu", dtype="bfloat16", param_dtype="bfloat16"
        )
    )
    assert torch.equal(again.logp(batch).logp.detach(), wanted)
    base = AutoModelForCausalLM.from_pretrained(saved(family))
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(
        torch.tensor([PROMPTS[0]])
    ).logits
    policy.save(tmp_path / "merged", merge=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(
        whole(torch.tensor([PROMPTS[0]])).logits.float(), theirs.float(), rtol=0, atol=0.08
    )


def test_all_of_them_trained_get_narrow_gradients_and_are_saved(saved, tmp_path):
    """Matrices have bfloat16 gradients, close to those of float32 weights; the folder is bfloat16,
    as its base.
    """
    wide, narrow = (loaded(saved("gemma3"), held) for held in ("float32", "bfloat16"))
    batch = drawn(narrow)
    for policy in (wide, narrow):
        policy.logp(batch).logp.sum().backward()
    for name, parameter in narrow.trainable().items():
        other = wide.trainable()[name].grad
        assert parameter.grad.dtype == (torch.bfloat16 if parameter.ndim > 1 else torch.float32)
        assert float((parameter.grad.float() - other).abs().max()) <= 2**-7 * float(
            other.abs().max()
        )
    assert narrow.save(tmp_path / "model") == []
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_a_scorer_on_a_narrow_body(saved, tmp_path):
    """The same scores as over float32 copies, new and read back; its head stays float32, bit by
    bit; its adapters, too.
    """
    wide, narrow = (
        load_scorer(saved("qwen3"), device="cpu", dtype="bfloat16", param_dtype=held, seed=1)
        for held in ("float32", "bfloat16")
    )
    rows = [PROMPTS[0], PROMPTS[1]]
    assert (
        torch.equal(wide.score(rows), narrow.score(rows))
        and narrow.model.score.weight.dtype == torch.float32
    )
    narrow.adapt(TrainConfig(use_peft=True, lora_r=2))
    with torch.no_grad():
        for parameter in narrow.trainable().values():
            parameter.add_(0.01)
    assert {p.dtype for p in narrow.trainable().values()} == {torch.float32}
    narrow.save(tmp_path / "merged", merge=True, dtype="float32")
    again = load_scorer(
        str(tmp_path / "merged"), device="cpu", dtype="bfloat16", param_dtype="bfloat16"
    )
    assert (
        torch.equal(again.model.score.weight, narrow.model.score.weight)
        and again.model.score.weight.dtype == torch.float32
    )
    torch.testing.assert_close(again.score(rows), narrow.score(rows), rtol=0, atol=0.02)


def test_what_stands_beside_a_narrow_policy(saved):
    """A critic's body is as narrow, from the policy or a scorer; values, Q and V are float32."""
    policy = loaded(saved(), "bfloat16")
    batch = drawn(policy)
    scorer = load_scorer(saved(), device="cpu", dtype="bfloat16", seed=1)
    for critic in (own_critic(policy), own_critic(policy, scorer.model)):
        assert critic.model["body"].embed_tokens.weight.dtype == torch.bfloat16
        values = critic.forward(batch, ["value_NT"]).value_NT
        assert values.dtype == torch.float32 and bool(values.any()) is (
            critic.model["head"].weight.any().item()
        )
    heads = new_heads(policy, target_update=0.1, decode_beta=1.0)
    names = ("logp_NT", "q_KNT", "logq_KNT", "target_q_NT", "value_NT")
    found = PolicyWithAuxiliary(policy, heads).forward(batch, names).tensors(names)
    assert all(x.dtype == torch.float32 for x in found)


def test_a_model_given_in_python_is_narrowed_in_place():
    """Without rounding what stays float32; and the run says so."""
    model = make("qwen3")
    before = model.model.norm.weight.detach().clone()
    assert note_of_given(model, "bfloat16").endswith(
        "(given in float32): at the end it holds the trained weights"
    )
    from laurel.core.bound_objects import bind_objects

    with bind_objects({"the model": model}):
        assert load_causal("the model", torch.bfloat16) is model
    assert model.lm_head.weight.dtype == torch.bfloat16 and torch.equal(
        model.model.norm.weight, before
    )


@pytest.mark.parametrize(
    ("algorithm", "options", "said"),
    [
        ("sft", {"dtype": "float32"}, "multiplied in bfloat16"),
        ("es", {}, "less than bfloat16 can tell apart"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(algorithm, options, said):
    with pytest.raises(UsageError, match=said):
        resolve(algorithm, TrainConfig(param_dtype="bfloat16", **options))
    resolve("es", TrainConfig(param_dtype="bfloat16", use_peft=True))
