"""Packed tokens and shared prompts against the model's own forward: values, gradients, families,
and what falls back.
"""

import logging

import pytest
import torch
import transformers as hf

from laurel.fast import packed
from laurel.model.policy import checkpoint_activations

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 4}
"""Rows are up to twelve tokens long, so every window bites, in prompts and behind shared ones."""
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
PARTIAL = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
FAMILIES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, sliding_window=None)),
    "mistral, window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, **WINDOW)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SHAPE)),
    "qwen2, windows": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**SHAPE, **WINDOW, **KINDS, use_sliding_window=True)
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE, head_dim=16)),
    "qwen3, windows": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**SHAPE, **WINDOW, **KINDS, use_sliding_window=True, head_dim=16)
    ),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**SHAPE, head_dim=8)),
    "gemma 2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **SHAPE, **WINDOW, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=0.1
        )
    ),
    "gemma 3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SHAPE, **WINDOW, **KINDS, head_dim=8, query_pre_attn_scalar=8)
    ),
    "phi 3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SHAPE)),
    "phi 3, window, half rotary": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(**SHAPE, **WINDOW, **PARTIAL)
    ),
    "olmo 2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**SHAPE)),
    "smollm 3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**SHAPE, no_rope_layers=[1, 0])),
}
START_N, GROUP_N, LENGTH_N = (
    torch.tensor([3, 3, 3, 5, 5, 4, 3]),
    torch.tensor([7, 7, 7, 2, 2, 9, 7]),
    torch.tensor([8, 12, 6, 7, 9, 5, 7]),
)


def rows():
    """Three rows of one prompt, two of a longer one, one alone, and one of the first group whose
    prompt ends with another token.
    """
    ids_NL = torch.randint(1, 64, (7, 12), generator=torch.Generator().manual_seed(0))
    ids_NL[1:3, :3], ids_NL[4, :5] = ids_NL[0, :3], ids_NL[3, :5]
    ids_NL[6, :3] = ids_NL[0, :3]
    ids_NL[6, 2] = ids_NL[0, 2] % 63 + 1
    return ids_NL, torch.arange(12) < LENGTH_N[:, None]


def model_of(family):
    """A random model whose norms are random, too, so that one that is forgotten shows."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outcome(model, call, attention_NL):
    """Hidden states of the real tokens, and the gradient of a random function of them."""
    model.zero_grad()
    hidden_NLD = call()
    weight_NLD = (
        torch.randn(hidden_NLD.shape, generator=torch.Generator().manual_seed(1))
        * attention_NL[..., None]
    )
    (hidden_NLD * weight_NLD).sum().backward()
    return hidden_NLD[attention_NL].detach(), torch.cat(
        [p.grad.flatten() for p in model.model.parameters()]
    )


def close(ours, theirs):
    return all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [True, False])
def test_hidden_states_and_gradients_are_the_models_own(family, shared):
    model, (ids_NL, attention_NL) = model_of(family), rows()
    assert packed.can_encode(model.model)
    may_share = (START_N, GROUP_N) if shared else ()
    ours = outcome(
        model,
        lambda: packed.hidden_states(model.model, ids_NL, attention_NL, *may_share),
        attention_NL,
    )
    mask = attention_NL.long()
    theirs = outcome(
        model,
        lambda: model.model(ids_NL, attention_mask=mask, use_cache=False).last_hidden_state,
        attention_NL,
    )
    assert close(ours, theirs)


def test_a_shared_prompt_is_computed_once():
    ids_NL, attention_NL = rows()
    layout = packed.arrange_rows(ids_NL, attention_NL, START_N, GROUP_N)
    assert len(layout.ids_M) == int(attention_NL.sum()) - 3 * 2 - 5
    assert torch.equal(layout.ids_M[layout.place_NL][attention_NL], ids_NL[attention_NL])


def test_gradient_checkpointing_changes_nothing():
    model, (ids_NL, attention_NL) = model_of("qwen3"), rows()

    def ours():
        return outcome(
            model,
            lambda: packed.hidden_states(model.model, ids_NL, attention_NL, START_N, GROUP_N),
            attention_NL,
        )

    kept = ours()
    checkpoint_activations(model)
    assert close(ours(), kept)


@pytest.mark.parametrize("kind", ["gpt2", "mixture", "another formula"])
def test_other_models_take_the_general_path_and_say_so(kind, caplog):
    model = model_of("qwen3")
    if kind == "gpt2":
        model = hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
        ).eval()
    if kind == "mixture":
        model = hf.MixtralForCausalLM(hf.MixtralConfig(**SHAPE, num_local_experts=4)).eval()
    if kind == "another formula":
        own = model.model.layers[0].forward
        model.model.layers[0].forward = lambda x, **keywords: 2 * own(x, **keywords)
    body, (ids_NL, attention_NL) = getattr(model, model.base_model_prefix), rows()
    with caplog.at_level(logging.WARNING, logger="laurel"):
        ours = [
            packed.hidden_states(body, ids_NL, attention_NL, START_N, GROUP_N) for _ in range(2)
        ]
    assert sum("takes the general path" in record.message for record in caplog.records) == 1
    theirs = body(
        input_ids=ids_NL, attention_mask=attention_NL.long(), use_cache=False
    ).last_hidden_state
    assert torch.equal(ours[1], theirs)


def test_bfloat16_stays_near_float32():
    model, (ids_NL, attention_NL) = model_of("qwen3"), rows()
    exact = outcome(
        model,
        lambda: packed.hidden_states(model.model, ids_NL, attention_NL, START_N, GROUP_N),
        attention_NL,
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = outcome(
            model,
            lambda: packed.hidden_states(
                model.model, ids_NL, attention_NL, START_N, GROUP_N
            ).float(),
            attention_NL,
        )
    assert all(float((a - b).norm() / b.norm()) < 0.03 for a, b in zip(half, exact, strict=True))
