"""The compact decoder beside the models it imitates: same logits, same tokens, same log-probs; and
who it leaves to the general path.
"""

import logging
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from arithmetic import agree, near

from laurel.core.errors import UsageError
from laurel.core.sample import sample_seed
from laurel.fast import kernels
from laurel.fast.decode import KVCache, compact_of
from laurel.fast.static import static_because
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer
from laurel.rollout.general import sample_general
from laurel.rollout.sampler import choose_sampling_way, sample

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}  # small, so that they bite
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
KINDS = {
    "llama": lambda **k: hf.LlamaForCausalLM(hf.LlamaConfig(**k)),
    "llama with biases": lambda **k: hf.LlamaForCausalLM(
        hf.LlamaConfig(**k, attention_bias=True, mlp_bias=True)
    ),
    "llama 3 rope": lambda **k: hf.LlamaForCausalLM(hf.LlamaConfig(**k, rope_parameters=LLAMA3)),
    "mistral": lambda **k: hf.MistralForCausalLM(hf.MistralConfig(**k, sliding_window=None)),
    "qwen2": lambda **k: hf.Qwen2ForCausalLM(hf.Qwen2Config(**k)),
    "qwen3": lambda **k: hf.Qwen3ForCausalLM(hf.Qwen3Config(**k, tie_word_embeddings=True)),
    "qwen3 yarn": lambda **k: hf.Qwen3ForCausalLM(hf.Qwen3Config(**k, rope_parameters=YARN)),
    "gemma": lambda **k: hf.GemmaForCausalLM(hf.GemmaConfig(**k)),
    "mistral, window": lambda **k: hf.MistralForCausalLM(hf.MistralConfig(**k, sliding_window=6)),
    "gemma 3": lambda **k: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **k,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
        )
    ),
    "gemma 2": lambda **k: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**k, **CAPS, sliding_window=6, query_pre_attn_scalar=8)
    ),
    "phi 3": lambda **k: hf.Phi3ForCausalLM(hf.Phi3Config(**k, pad_token_id=0, sliding_window=9)),
    "phi 3, half rotary": lambda **k: hf.Phi3ForCausalLM(
        hf.Phi3Config(**k, pad_token_id=0, rope_parameters=HALF)
    ),
    "smollm 3": lambda **k: hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(**k, pad_token_id=0, no_rope_layers=[1, 0])
    ),
}
STRANGERS = {
    "gpt2": lambda **k: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=k["vocab_size"], n_embd=32, n_layer=2, n_head=4)
    ),
    "olmo-2": lambda **k: hf.Olmo2ForCausalLM(hf.Olmo2Config(**k)),
    "mixtral": lambda **k: hf.MixtralForCausalLM(hf.MixtralConfig(**k, num_local_experts=4)),
}
PROMPTS = [(4, 5, 6), (7,), tuple(range(4, 40)), (5, 5), (9, 8, 7, 6, 5), tuple(range(10, 29))]


def tiny(kind, seed=0, dtype=torch.float32):
    """A random model of that kind over the character tokenizer; norms and biases random too, so
    that a forgotten one shows.
    """
    tokenizer = char_tokenizer()
    torch.manual_seed(seed)
    model = {**KINDS, **STRANGERS}[kind](vocab_size=len(tokenizer), **SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model, tokenizer, dtype)


def both(policy, each=4, length=24, stop=(), rows_at_once=1024, **how):
    """What `sample` and the general sampler draw from the same seeds."""
    seeds = [sample_seed(0, str(i), g, 0) for i in range(len(PROMPTS)) for g in range(each)]
    limits = [length - 2 * (n % 5) for n in range(len(seeds))]
    ours = sample(
        policy,
        PROMPTS,
        seeds=seeds,
        max_completion_length=limits,
        stop=stop,
        rows_at_once=rows_at_once,
        **how,
    )
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **how}
    return ours, sample_general(
        policy, PROMPTS, each, seeds, limits, *how.values(), tuple(stop), 1024
    )


def same(ours, theirs):
    assert [(c.ids, c.finish) for c in ours] == [(c.ids, c.finish) for c in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.logps == near(b.logps)


pytestmark = pytest.mark.skipif(
    kernels.load_library() is None, reason="no C++ compiler (g++): the compact decoder is not built"
)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_model_s(kind):
    """A prefill of three lengths and twenty single tokens: the logits of the Hugging Face forward
    pass, to 1e-5 of the largest.
    """
    policy = tiny(kind)
    model, ids, starts = (
        compact_of(policy),
        torch.randint(4, 100, (3, 40)),
        torch.tensor([17, 3, 20]),
    )
    cache = KVCache(model, 3, 3, 20, 20)
    every = torch.arange(3)
    logits = [
        model.prefill(
            [row[:s].tolist() for row, s in zip(ids, starts, strict=True)], every, cache
        ).clone()
    ]
    for t in range(20):
        time = torch.full((3,), t)
        logits.append(model.step(ids[every, starts + t], every, starts, every, time, cache).clone())
    wanted = policy.causal(ids).logits
    for n, start in enumerate(starts):
        assert torch.allclose(
            torch.stack(logits)[:, n],
            wanted[n, start - 1 : start + 20],
            atol=1e-5 * float(wanted.abs().max()),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_completions_equal_the_general_sampler_s(kind):
    """Mixed prompt lengths, eight rows in flight of 24, limits per row: the same tokens, and
    log-probs to 1e-5.
    """
    same(*both(tiny(kind), rows_at_once=8))


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.3}],
)
def test_ways_to_draw(how):
    same(*both(tiny("qwen3"), rows_at_once=9, **how))


def test_stop_strings_end_rows_in_the_middle():
    policy = tiny("llama")
    free, _ = both(policy)
    stop = [policy.tokenizer.decode(free[n].ids[4:6]) for n in (0, 9, 22)]
    ours, theirs = both(policy, stop=stop, rows_at_once=12)
    assert sum(c.finish == "stop" for c in ours) >= 3 and {c.finish for c in ours} >= {
        "stop",
        "length",
    }
    same(ours, theirs)


def test_weights_changed_in_place_are_seen():
    """An optimiser's step (a fused one bumps no version counter), addition in place, a state dict
    loaded, a fresh tensor behind .data.
    """
    policy = tiny("qwen2")
    seen = [both(policy)[0]]
    for way in ("adamw", "fused", "add", "load", "data"):
        parameters = list(policy.model.parameters())
        if way in ("adamw", "fused"):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            torch.optim.AdamW(parameters, lr=0.05, fused=way == "fused").step()
        elif way == "load":
            policy.model.load_state_dict({k: 0.9 * v for k, v in policy.model.state_dict().items()})
        else:
            with torch.no_grad():
                for parameter in parameters:
                    if way == "add":
                        parameter.add_(0.05 * torch.randn_like(parameter))
                    else:
                        parameter.data = 1.1 * parameter.data
        ours, theirs = both(policy)
        same(ours, theirs)
        assert ours != seen[-1]
        seen.append(ours)


def test_adapters_are_merged_and_can_be_switched_off():
    from peft import LoraConfig, get_peft_model

    policy = tiny("llama")
    plain, _ = both(policy)
    policy.model = get_peft_model(
        policy.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    policy.model.eval()
    policy = Policy(policy.model, policy.tokenizer)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    ours, theirs = both(policy)
    same(ours, theirs)
    assert ours != plain and compact_of(policy) is not None
    with policy.model.disable_adapter():
        assert [c.ids for c in both(policy)[0]] == [c.ids for c in plain]


def test_bfloat16_is_as_near_to_the_trainer_as_the_general_sampler():
    """bfloat16: how far the log-probs lie from the autocast forward pass, on average, is at most 4
    times the general sampler's gap.
    """
    policy, gaps = tiny("qwen3", dtype=torch.bfloat16), []
    for done in both(policy):
        each = []
        for n, completion in enumerate(done):
            prompt = PROMPTS[n // 4]
            with torch.no_grad(), policy.autocast():
                logits = (
                    policy.model(torch.tensor([prompt + completion.ids]))
                    .logits[0, len(prompt) - 1 : -1]
                    .float()
                )
            logp = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            each.append((logp - torch.tensor(completion.logps)).abs())
        gaps.append(float(torch.cat(each).mean()))
    assert compact_of(policy) is not None and 0 < gaps[0] < 4 * gaps[1]


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_take_another_path_with_one_line(kind, caplog):
    policy = tiny(kind)
    with caplog.at_level(logging.WARNING, logger="laurel"):
        same(*both(policy, each=1, length=12))
        both(policy, each=1, length=12)
    way = "with static buffers" if policy.packs else "general path"
    lines = [record.message for record in caplog.records if way in record.message]
    assert len(lines) == 1 and compact_of(policy) is None


def test_a_model_that_computes_something_else_is_found_out(caplog):
    """A known type whose layers do more than their name says fails the self-check."""
    policy = tiny("llama")
    mlp = policy.causal.model.layers[1].mlp
    mlp.forward = lambda x, forward=mlp.forward: 1.01 * forward(x)
    with caplog.at_level(logging.WARNING, logger="laurel"):
        same(*both(policy, each=1, length=12))
    assert compact_of(policy) is None and "logits would differ" in caplog.text


def test_hooks_are_called():
    """A hook anywhere in the model is called: while there is one, the general path is taken."""
    policy, seen = tiny("llama"), []
    assert compact_of(policy) is not None
    hook = policy.causal.model.layers[1].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(1) or 1.01 * output
    )
    same(*both(policy, each=1, length=12))
    hook.remove()
    assert seen and compact_of(policy) is not None


def test_a_token_that_cannot_be_is_never_drawn():
    """Every block of the vocabulary ends with impossible tokens, uniforms stand at its edges and at
    both ends: none of those is drawn.
    """
    logits = torch.randn(4000, 300, generator=torch.Generator().manual_seed(0))
    logits[:, 120:128] = logits[:, 250:] = -torch.inf
    total = logits.double().softmax(1).cumsum(1)
    uniform = (
        torch.where(torch.arange(4000) % 2 == 0, total[:, 119], total[:, 249])
        - torch.arange(4000) % 5 * 1e-8
    )
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    ids, logp = compact_of(tiny("llama")).draw(logits, uniform.clamp(0, 1 - 2**-53), 1.0)
    agree(logp, logits.log_softmax(1).gather(1, ids[:, None])[:, 0])
    assert logp.isfinite().all()


def test_no_prompt_and_one_sample():
    """Nothing asked gives nothing; one row of one token is drawn as by the general sampler."""
    policy = tiny("qwen3")
    assert sample(policy, [], seeds=[], max_completion_length=4) == []
    one = {"seeds": [3], "max_completion_length": 1}
    same(
        sample(policy, [(4,)], **one),
        sample_general(policy, [(4,)], 1, [3], [1], 1.0, 0, 1.0, (), 8),
    )
    with pytest.raises(UsageError, match="without a token"):
        sample(policy, [(4,), ()], seeds=[1, 2], max_completion_length=4)


def test_the_table_of_families_is_true():
    """Every family of docs/performance.md, as a tiny random model: how it trains, how it is
    sampled, and why not the fast way.
    """
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\w+ \| [^|]+ \| \w+) \|$", page, re.MULTILINE))
    found = {}
    for kind in (*KINDS, *STRANGERS):
        policy = tiny(kind)
        way = choose_sampling_way(policy)
        reason = f": {way.why}" if policy.packs and way.why else ""
        here = f"{'fast' if way.name == 'compact' else way.name}{reason}"
        ways = (
            f"{'fast' if policy.packs else 'general'} | {here} |"
            f" {'general' if static_because(policy) else 'fast'}"
        )
        found.setdefault(policy.causal.config.model_type, set()).add(ways)
    assert {family: {ways} for family, ways in told.items()} == found
