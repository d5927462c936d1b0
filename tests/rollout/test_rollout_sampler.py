"""The sampler: its distribution, its log-probabilities, its seeds, and rows that come and go."""

import numpy as np
import pytest
import torch
from arithmetic import agree
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from laurel.core.sample import sample_seed
from laurel.fast.decode import sample_tokens, uniform_numbers
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer, small_model
from laurel.rollout.sampler import sample


def tiny(kind="llama", vocabulary=None, seed=0):
    """A random model of a given architecture over the character tokenizer."""
    tokenizer = char_tokenizer()
    size = vocabulary or len(tokenizer)
    torch.manual_seed(seed)
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
            )
        )
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        )
    else:
        model = MistralForCausalLM(
            MistralConfig(
                vocab_size=size,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                sliding_window=6,
            )
        )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model.eval(), tokenizer)


PROMPTS = [(4, 5, 6), (7,), (8, 9, 10, 11, 12, 13, 14), (5, 5)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_equal_a_plain_forward_pass(kind, temperature):
    """Left padding, shared prefill and rows that leave change nothing: log-probs are those of the
    model on the row alone, to 1e-5.
    """
    policy = tiny(kind)
    done = sample(
        policy, PROMPTS, seeds=list(range(12)), max_completion_length=20, temperature=temperature
    )
    assert {c.finish for c in done} <= {"eos", "length"}
    for n, completion in enumerate(done):
        prompt = PROMPTS[n // 3]
        logits = (
            policy.model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
            / temperature
        )
        logp = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        agree(logp, torch.tensor(completion.logps))


def test_a_model_without_a_usable_cache_reads_the_row_again(monkeypatch):
    """The slow way gives the same tokens as the cached one."""
    policy = tiny("gpt2")
    fast = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=12)
    monkeypatch.setattr("laurel.rollout.general.can_lose_rows", lambda cache: False)
    slow = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=12)
    assert [c.ids for c in fast] == [c.ids for c in slow]


def test_samples_do_not_depend_on_their_neighbours():
    policy = tiny()
    seeds = [sample_seed(0, str(i), g, 3) for i in range(4) for g in range(2)]
    together = sample(policy, PROMPTS, seeds=seeds, max_completion_length=15)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(policy, [prompt], seeds=seeds[2 * i : 2 * i + 2], max_completion_length=15)
        assert [c.ids for c in alone] == [c.ids for c in together[2 * i : 2 * i + 2]]


def test_chunks_of_rows_change_nothing():
    policy = tiny()
    whole = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=10)
    parts = sample(policy, PROMPTS, seeds=list(range(8)), max_completion_length=10, rows_at_once=2)
    assert [c.ids for c in whole] == [c.ids for c in parts]


def test_distribution_by_chi_square():
    """First two tokens of 20,000 samples against the enumerated probabilities: chi-square within 5
    sigma.
    """
    policy = tiny(vocabulary=7)
    policy.model.generation_config.eos_token_id = 6
    policy.tokenizer.eos_token_id = 6
    done = sample(
        policy, [(1, 2)], seeds=list(range(20_000)), max_completion_length=2, rows_at_once=20_000
    )
    with torch.no_grad():
        first = policy.model(torch.tensor([[1, 2]])).logits[0, -1].softmax(-1).double()
        second = torch.stack(
            [
                policy.model(torch.tensor([[1, 2, a]])).logits[0, -1].softmax(-1).double()
                for a in range(7)
            ]
        )
    expected = {(a, b): float(first[a] * second[a, b]) for a in range(6) for b in range(7)} | {
        (6,): float(first[6])
    }
    counts = dict.fromkeys(expected, 0)
    for completion in done:
        counts[completion.ids] += 1
    chi = sum((counts[k] - 20_000 * p) ** 2 / (20_000 * p) for k, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5


def test_T13_truncation_returns_the_truncated_log_probability():
    """T13: p = [.5, .3, .2], top_p .75 keeps 2: log p(0) = log(.5/.8) = -0.4700036."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    ids, logp = sample_tokens(logits, torch.tensor([0.1]), 1.0, top_p=0.75)
    assert ids.item() == 0 and logp.item() == pytest.approx(-0.4700036, abs=1e-6)
    ids, logp = sample_tokens(logits, torch.tensor([0.99]), 1.0, top_k=1)
    assert ids.item() == 0 and logp.item() == pytest.approx(0.0, abs=1e-6)


def test_truncation_keeps_the_likeliest_wherever_they_stand():
    """p = [.1, .5, .15, .25]: top_p .7 and top_k 2 keep tokens 1 and 3, at 2/3 and 1/3, whatever is
    drawn.
    """
    logits, points = (
        torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(4, 4),
        torch.tensor([0.01, 0.6, 0.7, 0.99]),
    )
    for how in ({"top_p": 0.7}, {"top_k": 2}):
        ids, logp = sample_tokens(logits, points, 1.0, **how)
        assert ids.tolist() == [1, 1, 3, 3]
        assert logp.exp().tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3], abs=1e-6)


def test_greedy_takes_the_likeliest():
    ids, logp = sample_tokens(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.0]), 0.0)
    assert ids.item() == 1 and logp.item() == pytest.approx(-0.4076060, abs=1e-6)


def test_T56b_uniforms_are_uniform_and_streams_differ():
    """A56: samples of a group must differ, so their streams must; and 1e5 draws look uniform (mean,
    variance, lag-1 correlation).
    """
    streams = uniform_numbers([sample_seed(0, "p", g, 0) for g in range(100)], 1000)
    flat = streams.ravel()
    assert abs(flat.mean() - 0.5) < 5 / (12 * flat.size) ** 0.5
    assert abs(flat.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 5 / flat.size**0.5
    assert len({tuple(row) for row in streams.tolist()}) == 100
    assert (uniform_numbers([3], 5) == uniform_numbers([3], 9)[:, :5]).all()


def test_stop_strings_end_a_row_and_stay_in_its_text():
    policy = tiny()
    tokenizer = policy.tokenizer
    free = sample(policy, [(4, 5)], seeds=[1], max_completion_length=30)[0]
    text = tokenizer.decode(free.ids[3:5])
    stopped = sample(policy, [(4, 5)], seeds=[1], max_completion_length=30, stop=[text])[0]
    assert stopped.finish == "stop"
    assert free.ids[: len(stopped.ids)] == stopped.ids
    assert tokenizer.decode(stopped.ids).endswith(text)


def test_limits_per_row_and_eos_kept():
    policy = tiny()
    done = sample(policy, PROMPTS, seeds=list(range(4)), max_completion_length=[1, 5, 2, 9])
    for completion, limit in zip(done, [1, 5, 2, 9], strict=True):
        assert len(completion.ids) <= limit
        assert completion.finish == "eos" or len(completion.ids) == limit
    many = sample(policy, [(4,)], seeds=list(range(200)), max_completion_length=40)
    ended = [c for c in many if c.finish == "eos"]
    assert ended and all(
        c.ids[-1] in policy.eos_ids and not set(c.ids[:-1]) & policy.eos_ids for c in ended
    )


def test_small_model_samples():
    tokenizer = char_tokenizer()
    policy = Policy(small_model(tokenizer), tokenizer)
    assert (
        len(
            sample(
                policy, [tuple(tokenizer("1+1=").input_ids)], seeds=[0, 1], max_completion_length=4
            )
        )
        == 2
    )
