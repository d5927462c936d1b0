"""Implicit Q-learning end to end: logged rows in, better than whoever logged them out; resumed
runs; the folder that is saved.
"""

import json
import math
import random

import pytest
import torch
from arithmetic import agree
from seeds import SEEDS
from test_train_resume import final_weights, same
from toy import make_toy, toy_config
from transformers import AutoModelForCausalLM

from laurel.core.errors import UsageError
from laurel.core.sample import Draw
from laurel.data.formats import rows_fit_for
from laurel.data.source import Row
from laurel.model.policy import Policy, load_causal, load_tokenizer
from laurel.rollout.data import logged
from laurel.rollout.sampler import Sampler, rollout
from laurel.train.loop import train

FAST = {
    "reward": None,
    "prompts_per_step": 32,
    "max_steps": 60,
    "target_update": 0.1,
    "gamma": 1.0,
    "logging_steps": 20,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Four digits each, a seven with probability .25, and one point for each: whoever wrote this
    gets about 1 of 4.
    """
    folder, dice = tmp_path_factory.mktemp("logged"), random.Random(0)
    options = make_toy(folder)
    rows = []
    for i in range(1200):
        text = "".join("7" if dice.random() < 0.25 else dice.choice("012345689") for _ in range(4))
        rows.append({"prompt": f"{i % 8}=", "completion": text, "reward": text.count("7")})
    (folder / "logged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**options, "dataset": str(folder / "logged.jsonl")}


def worth(folder, count=256):
    """Mean number of sevens in sampled answers of a saved model, at temperature 1."""
    policy = Policy(load_causal(str(folder), torch.float32).eval(), load_tokenizer(str(folder)))
    rows = [Row({"prompt": f"{i}="}, "", str(i)) for i in range(8)]
    groups = rollout(Sampler(policy), rows, Draw("test", 0, 0, count // 8, 4, 1.0))
    return sum(s.text.count("7") for g in groups for s in g.samples) / count


@pytest.mark.parametrize("seed", SEEDS)
def test_it_beats_the_behaviour_that_logged(seed, toy, tmp_path):
    """The log is worth 1 of 4; what is decoded with log pi + beta (Q - V) more than twice that. V
    stays near what the log shows.
    """
    run = train("ilql", toy_config(toy, tmp_path, seed=seed, decode_beta=8.0, **FAST), quiet=True)
    lines = run.metrics()
    assert worth(run.model) > 2, lines[-1]
    assert 0.5 < lines[-1]["implicit/value"] < 2.0 and lines[-1]["nll"] < lines[0]["nll"]


def test_without_q_it_is_a_clone(toy, tmp_path):
    run = train("ilql", toy_config(toy, tmp_path, decode_beta=0.0, **FAST), quiet=True)
    assert 0.6 < worth(run.model) < 1.4


def test_resume_is_bit_identical_slow_copies_and_all(toy, tmp_path):
    """T59: 5 steps against 2 + 2 + 1; the copies are not the heads, and come back as they were."""
    options = {**FAST, "prompts_per_step": 4, "logging_steps": 1, "awac_beta": 0.5}
    whole = train(
        "ilql", toy_config(toy, tmp_path / "whole", **{**options, "max_steps": 5}), quiet=True
    )
    for stop in (2, 4, 5):
        parts = train(
            "ilql",
            toy_config(toy, tmp_path / "parts", **{**options, "max_steps": stop, "resume": True}),
            quiet=True,
        )
    weights = final_weights(whole)
    assert same(weights, final_weights(parts))
    assert {
        f"heads.{kind}_{k}.weight" for kind in ("q", "target") for k in (0, 1)
    } <= weights.keys()
    assert not torch.equal(weights["heads.q_0.weight"], weights["heads.target_0.weight"])
    kept = ("implicit", "loss", "grad")
    told = [
        [{k: v for k, v in line.items() if k.startswith(kept)} for line in run.metrics()]
        for run in (whole, parts)
    ]
    assert told[0] == told[1] and len(told[0]) == 5 and "implicit/q" in told[0][0]
    saved = [(run.model / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("lora", [False, True])
def test_the_folder_of_a_run_is_its_checkpoint_with_q_inside(lora, toy, tmp_path):
    """From the checkpoint's own tensors: log pi + beta (mean Q - V), but for rounding (with
    adapters merged that of the weights, too).
    """
    run = train(
        "ilql",
        toy_config(
            toy, tmp_path, decode_beta=2.0, **{**FAST, "max_steps": 3}, use_peft=lora, lora_r=4
        ),
        quiet=True,
    )
    weights, ids = final_weights(run), torch.tensor([[1, 5, 6, 7, 8]])
    causal = load_causal(toy["model"], torch.float32).eval()
    if lora:
        from peft import LoraConfig, get_peft_model

        peft = get_peft_model(
            causal,
            LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        assert not peft.load_state_dict(
            {k: v for k, v in weights.items() if "lora" in k}, strict=False
        ).unexpected_keys
        peft.eval()
    else:
        causal.load_state_dict(
            {k: v for k, v in weights.items() if not k.startswith("heads.")}, strict=False
        )
    hidden, logp = (
        causal.model(ids).last_hidden_state.detach(),
        causal(ids).logits.detach().log_softmax(-1),
    )
    q = sum(hidden @ weights[f"heads.q_{k}.weight"].T for k in (0, 1)) / 2
    v = hidden @ weights["heads.v.weight"].T + weights["heads.v.bias"]
    wanted = (logp + 2.0 * (q - v)).softmax(-1)
    found = (
        AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)(ids)
        .logits.detach()
        .softmax(-1)
    )
    agree(found, wanted, units=1024 if lora else 256)


@pytest.mark.parametrize("reward", [None, "1", True, [1.0]])
def test_a_row_without_a_finite_reward_is_named(reward, toy, tmp_path):
    rows = [
        {"prompt": "1=", "completion": "7", "reward": 1},
        {"prompt": "2=", "completion": "7", "reward": reward},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = r"`reward` \(null\)" if reward is None else "field `reward`: expected a finite number"
    with pytest.raises(UsageError, match=rf"rows.jsonl:2.*{said}"):
        train(
            "ilql",
            toy_config({**toy, "dataset": str(tmp_path / "rows.jsonl")}, tmp_path / "run", **FAST),
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_no_rewards(reward):
    """JSON has no such numbers, other files do."""
    with pytest.raises(UsageError, match=r"x.parquet:2.*field `reward`: expected a finite number"):
        rows_fit_for(
            [Row({"prompt": "1=", "completion": "7", "reward": reward}, "x.parquet:2", "id")],
            "logged",
        )


def test_what_a_row_must_hold_and_what_becomes_of_it(toy):
    """A column that is missing, or called otherwise, is said; whatever stands in `reward` is
    nobody's business elsewhere.
    """
    row = Row({"prompt": "1=", "completion": "77", "reward": -2.5}, "x.jsonl:1", "id")
    with pytest.raises(UsageError, match="Rename `score` to `reward`"):
        rows_fit_for(
            [Row({"prompt": "1=", "completion": "7", "score": 1}, "x.jsonl:1", "id")], "logged"
        )
    assert rows_fit_for([Row({**row.columns, "reward": "good"}, "x.jsonl:1", "id")], "sft")
    assert rows_fit_for([Row({**row.columns, "label": True}, "x.jsonl:1", "id")], "logged")
    policy = Policy(load_causal(toy["model"], torch.float32), load_tokenizer(toy["model"]))
    (group,) = logged(
        policy, rows_fit_for([row], "logged"), run="r", step=0, train_on=None, max_length=None
    )
    assert group.rewards == (-2.5,) and len(group.samples) == 1
    ids = group.samples[0].completion_ids
    assert (
        len(ids) == 3 and ids[-1] == policy.tokenizer.eos_token_id
    )  # the end is a decision too, and the reward stands there


def test_held_out_rows_and_its_options(toy, tmp_path):
    held = {**toy, "eval_dataset": toy["dataset"], "eval_size": 16}
    run = train(
        "ilql", toy_config(held, tmp_path, **{**FAST, "max_steps": 2}, eval_steps=2), quiet=True
    )
    assert run.metrics()[-1]["eval/nll"] > 0
    with pytest.raises(UsageError, match="loss_aggregation"):
        train(
            "ilql",
            toy_config(toy, tmp_path / "a", loss_aggregation="token_sum_over_const", **FAST),
            quiet=True,
        )
    with pytest.raises(UsageError, match="does not apply to `sft`"):
        train("sft", toy_config(toy, tmp_path / "b", reward=None, expectile=0.9), quiet=True)
