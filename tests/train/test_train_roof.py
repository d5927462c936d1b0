"""The roofline: work counted by hand and as torch counts it on the plain model, rates that are
measured, a run that is held against it.
"""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy import make_toy, toy_config
from transformers import LlamaConfig, LlamaForCausalLM

from laurel.core.metrics import Sums
from laurel.core.sample import Group, Key, Sample
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer
from laurel.rollout.pack import pack
from laurel.train import loop
from laurel.train.roofline import (
    ProductShape,
    Work,
    body_of,
    bound_seconds,
    count_attention_pairs,
    count_pass,
    count_sampling,
    product_rate,
    read_rate,
)
from laurel.train.setup import prepare_session

CPU = torch.device("cpu")


def llama(**more):
    """Width 8, 2 heads of 4, one of keys, MLP of 12, 2 layers, 20 words."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=20, attn_implementation="eager", **shape, **more)
    )


LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12
"""Weights of q, k and v, o, and of the gated unit."""


def batch_of(*rows):
    """A batch of (group, tokens of the prompt, tokens of the completion)."""
    groups = {}
    for n, (group, start, length) in enumerate(rows):
        key = Key("r", "", f"g{group}", n, 0)
        sample = Sample(
            key, (1,) * start, (2,) * length, (0.0,) * length, (True,) * length, 1.0, "eos", "", ()
        )
        groups.setdefault(group, []).append(sample)
    return pack(
        [
            Group(f"g{group}", {}, tuple(samples), rewards=(1.0,) * len(samples))
            for group, samples in groups.items()
        ]
    )


def test_a_pass_is_counted_by_hand():
    """Two rows of one prompt of 3 tokens, of 2 and 4 tokens: 9 tokens, of which 6 go through the
    head.

    Forward 2 (9 x 2 layers + 6 heads); backward twice that. Pairs of a layer: the prompt's 6, and 4
    + 5, 4 + 5 + 6 + 7 of the rows.
    """
    work, body = Work(), body_of(llama())
    count_pass(work, body, batch_of((0, 3, 2), (0, 3, 4)), learns=False)
    attention = 2 * (6 + 9 + 22) * 2 * (2 * 2 * 4)
    assert work.operations == 2 * (9 * 2 * LAYER + 6 * 8 * 20) + attention
    learnt = Work()
    count_pass(learnt, body, batch_of((0, 3, 2), (0, 3, 4)), learns=True)
    assert learnt.operations == 3 * work.operations and not learnt.reads
    assert (
        ProductShape("weights", 4, 8, 8, 12) in learnt.products
    )  # gate and up of two layers, nine tokens as eight
    assert (
        ProductShape("weights", 2, 8, 8, 12) in learnt.products
    )  # the gradient of `down`'s weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_a_pass_is_what_torch_counts_on_the_plain_model(tied, learns):
    """One row of 11 tokens, 7 of them trained on. The plain model multiplies all 11 x 11 pairs; 66
    are before it or itself.
    """
    model, batch = llama(tie_word_embeddings=tied), batch_of((0, 4, 7))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
        hidden = model.model(input_ids=batch.ids_NL, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, 3:10])
        if learns:
            logits.logsumexp(-1).sum().backward()
    work, body = Work(), body_of(model)
    count_pass(work, body, batch, learns=learns)
    masked = 2 * 2 * 2 * 4 * 2 * (11 * 11 - 66) * (3 if learns else 1)
    rotary = sum(
        count
        for name, ops in counter.get_flop_counts().items()
        if name.endswith("rotary_emb")
        for count in ops.values()
    )
    assert work.operations == counter.get_total_flops() - masked - rotary


def test_frozen_weights_have_no_gradient_of_their_own():
    model = llama()
    model.model.layers[0].mlp.requires_grad_(False)
    work, whole = Work(), Work()
    count_pass(whole, body_of(llama()), batch_of((0, 3, 5)), learns=True)
    count_pass(work, body_of(model), batch_of((0, 3, 5)), learns=True)
    assert whole.operations - work.operations == 2 * 8 * 3 * 8 * 12


def test_sampling_is_counted_by_hand():
    """One prompt of 5 tokens, completions of 2, 4 and 4: read once, then 3, 2 and 2 rows; what a
    row says last is never read.

    A row reads its own 1 + .. + (L - 1) tokens, 1 + 6 + 6; beside them the prompt's 5 for each of
    seven tokens.
    """
    work, body = Work(), body_of(llama())
    count_sampling(work, body, 4, [5], [[4, 2, 4]])
    passes = 2 * ((5 + 7) * 2 * LAYER + (1 + 7) * 8 * 20)
    assert work.operations == passes + 2 * (15 + 7 * 5) * 2 * (2 * 2 * 4)
    assert sum(work.reads.values()) == 13 * 2 * (2 * 4 * 4)
    assert {shape.rows for shape in work.products if shape.kind == "weights"} == {5, 3, 2, 1}


def test_a_window_cuts_what_a_query_sees():
    """Layers that see 3 tokens and all: 1 + 2 + 3 + 3 + 3 beside 1 + .. + 5; queries 3 and 4 alone:
    6 beside 9.
    """
    body = body_of(llama())._replace(windows=(3, None))
    assert (
        count_attention_pairs(0, 5, body) == 12 + 15 and count_attention_pairs(3, 5, body) == 6 + 9
    )


def test_the_bound_is_work_over_measured_rates():
    """Rates that are given are used, those that are missing are measured: and are plausible."""
    work, shape = Work(), ProductShape("weights", 2, 8, 16, 32)
    work.multiply(shape, 3e9)
    work.read(1 << 20, 4e9)
    assert (
        bound_seconds(work, torch.float32, CPU, rates := {shape: 1e9, 1 << 20: 2e9}) == 5.0
        and len(rates) == 2
    )
    assert bound_seconds(work, torch.float32, CPU, rates := {}) > 0 and set(rates) == {
        shape,
        1 << 20,
    }
    assert 1e7 < product_rate(shape, torch.bfloat16, CPU, 1e-3) < 1e15
    assert 1e7 < product_rate(ProductShape("heads", 4, 8, 16, 32), torch.float32, CPU, 1e-3) < 1e15
    assert 1e7 < read_rate(1 << 20, CPU, 1e-3) < 1e14


@pytest.mark.parametrize("name", ["grpo", "sft", "ppo", "dpo", "ilql"])
def test_a_step_is_held_against_its_own_work(name, tmp_path):
    """What the clock counted is what the step's rows say, policy and reference and what learns
    beside it.
    """
    rows = {
        "dpo": {"prompt": "1=", "chosen": "77", "rejected": "12"},
        "ilql": {"prompt": "1=", "completion": "77", "reward": 1.0},
    }
    toy, more = make_toy(tmp_path / "toy"), {}
    if name in rows:
        (tmp_path / "rows.jsonl").write_text((json.dumps(rows[name]) + "\n") * 8)
        more = {"dataset": str(tmp_path / "rows.jsonl"), "reward": None}
    more = {"reward": None} if name == "sft" else more
    setup, state = prepare_session(name, toy_config(toy, tmp_path / "run", profile=True, **more))
    setup.clock.start()
    loop.step(setup, state, Sums())
    work = setup.clock.work
    assert work.operations > 0 and bool(work.reads) == (name in ("grpo", "ppo"))
    assert bound_seconds(work, torch.float32, CPU, {}) > 0


def test_the_policy_of_an_adapter_counts_its_small_matrices():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    policy = Policy(model, char_tokenizer(), torch.float32)
    matrices = body_of(policy.causal).matrices
    assert matrices[2, 8, True] == 2 and matrices[8, 2, True] == 2 and matrices[8, 8, False] == 4
    assert sum(count for (_, _, learns), count in matrices.items() if learns) == 4
