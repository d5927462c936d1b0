"""What PPO-max adds to PPO: text mixed in, the reward model's critic, and the way back from a
collapse.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.metrics import Sums, explain
from laurel.core.run import Run
from laurel.model.chat import encode_supervised
from laurel.train import loop
from laurel.train.loop import train
from laurel.train.options import resolve
from laurel.train.pretrain import add_pretraining_gradient
from laurel.train.setup import prepare_session

TEXT = "123456789"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    rows = [{"text": TEXT[i:] + TEXT[:i]} for i in range(6)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**make_toy(folder), "num_generations": 8, "missing_eos_penalty": 0.0}, str(
        folder / "text.jsonl"
    )


def test_the_gradient_mixed_in_is_that_of_the_texts_mean_loss_per_token(toy, tmp_path):
    options, text = toy
    setup, _ = prepare_session(
        "ppo",
        toy_config(
            {**options, "ptx_coef": 0.5, "ptx_dataset": text, "prompts_per_step": 6}, tmp_path
        ),
    )
    sums = Sums()
    add_pretraining_gradient(setup, setup.pretraining, 1, sums)
    mixed = {name: p.grad.clone() for name, p in setup.policy.trainable().items()}
    setup.policy.model.zero_grad()
    total, count = 0.0, 0
    for row in setup.pretraining:
        ids = torch.tensor([encode_supervised(setup.policy.tokenizer, row.columns).ids])
        logp = setup.policy.causal(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
        total, count = total - logp.sum(), count + logp.numel()
    (0.5 * total / count).backward()
    for name, p in setup.policy.trainable().items():
        torch.testing.assert_close(mixed[name], p.grad, rtol=1e-4, atol=1e-6)
    assert sums.means()["ptx/nll"] == pytest.approx(float(total.detach()) / count, rel=1e-5)


def test_what_is_mixed_in_is_not_forgotten(toy, tmp_path):
    """Reward alone drives the policy to sevens, and the text becomes unlikely; mixed in, it stays,
    and the reward is still won.
    """
    options, text = toy
    options = {**options, "ptx_dataset": text, "max_steps": 60}
    mixed, weak = (
        train(
            "ppo", toy_config({**options, "ptx_coef": coef}, tmp_path / str(coef)), quiet=True
        ).metrics()
        for coef in (1.0, 1e-9)
    )
    assert (
        mixed[-1]["ptx/nll"] < mixed[0]["ptx/nll"] - 0.5
        and weak[-1]["ptx/nll"] > mixed[-1]["ptx/nll"] + 1
    )
    assert all(explain(name) for name in mixed[-1] if name not in ("run", "step", "time"))
    assert mixed[-1]["reward"] > mixed[0]["reward"] + 0.4


def test_a_run_that_mixes_in_resumes_to_the_same_bits(toy, tmp_path):
    options, text = toy
    both = {**options, "ptx_coef": 1.0, "ptx_dataset": text, "max_steps": 4}
    whole = train("ppo", toy_config(both, tmp_path / "whole"), quiet=True)
    train("ppo", toy_config({**both, "max_steps": 2}, tmp_path / "cut"), quiet=True)
    again = train("ppo", toy_config({**both, "resume": True}, tmp_path / "cut"), quiet=True)
    same(final_weights(whole), final_weights(again))


def test_nothing_is_mixed_in_while_the_critic_warms_up_alone(toy, tmp_path):
    """Four steps of warm-up with text to mix in leave the policy's weights as they were, bit for
    bit.
    """
    options, text = toy
    options = {
        **options,
        "ptx_coef": 1.0,
        "ptx_dataset": text,
        "critic_warmup_steps": 4,
        "max_steps": 4,
    }
    run = train("ppo", toy_config(options, tmp_path), quiet=True)
    start, end = (
        load_file(folder / "model.safetensors") for folder in (Path(options["model"]), run.model)
    )
    assert start.keys() == end.keys() and all(torch.equal(start[name], end[name]) for name in start)
    assert "ptx/nll" not in run.metrics()[-1]


def test_half_an_arrangement_is_refused(toy, tmp_path):
    options, text = toy
    for wrong in ({"ptx_coef": 1.0}, {"ptx_dataset": text}):
        with pytest.raises(UsageError, match="ptx_coef, ptx_dataset"):
            resolve("ppo", toy_config({**options, **wrong}, tmp_path))
    with pytest.raises(UsageError, match="save_steps"):
        resolve(
            "grpo",
            toy_config(
                {"model": options["model"], "dataset": options["dataset"], "on_alarm": "return"},
                tmp_path,
            ),
        )


def test_a_collapse_ends_the_run_with_the_weights_from_before(toy, tmp_path):
    """The toy is won by saying one thing only, which to the watch is a collapse: the run returns to
    the checkpoint before it.
    """
    options, _ = toy
    config = toy_config(
        {**options, "on_alarm": "return", "save_steps": 5, "learning_rate": 3e-2},
        tmp_path,
        max_steps=80,
    )
    run = train("ppo", config, quiet=True)
    went = Run(tmp_path).facts["returned"]
    assert went["from"] < 80 and went["to"] == (went["from"] - 1) // 5 * 5
    assert run.metrics()[-1]["step"] == went["from"]
    stopped = toy_config(
        {**options, "learning_rate": 3e-2, "save_steps": 5},
        tmp_path / "short",
        max_steps=went["to"],
    )
    same(final_weights(run), final_weights(train("ppo", stopped, quiet=True)))


def test_a_critic_from_no_learned_reward_is_refused_before_weights(toy, tmp_path):
    with pytest.raises(UsageError, match="critic_model=reward"):
        train("ppo", toy_config({**toy[0], "critic_model": "reward"}, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_a_cut_row_is_worth_what_the_critic_expects_behind_it(critic, toy, tmp_path):
    """The return of the last token: the reward of a row that ended, of one that was cut off the
    critic's value behind its last token, whatever its reward.
    """
    options = {**toy[0], "bootstrap_truncated": True, "critic": critic, "beta": 0.0}
    setup, state = prepare_session("ppo", toy_config({**options, "token_budget": 40}, tmp_path))
    head = setup.auxiliary.model["head"].weight
    torch.nn.init.normal_(head, generator=torch.Generator().manual_seed(0))
    groups = loop.collect(setup, state, Sums())
    first, *others = groups[0].samples
    groups[0] = replace(groups[0], samples=(replace(first, finish="eos"), *others))
    batch = loop.weigh(setup, state, groups, Sums())
    after_N = setup.model.forward(batch, ["value_after_N"]).value_after_N.detach()
    rewards = [reward for group in groups for reward in group.rewards]
    cut = [sample.finish == "length" for group in groups for sample in group.samples]
    assert any(cut) and not all(cut)
    for n, (reward, goes_on) in enumerate(zip(rewards, cut, strict=True)):
        last = batch.values.return_NT[n, batch.length_N[n] - 1]
        expected = float(after_N[n]) if goes_on else reward
        assert float(last) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("option", ["missing_eos_penalty", "mask_truncated_completions"])
def test_bootstrapping_and_ending_a_row_contradict_each_other(option):
    options = {"bootstrap_truncated": True, "missing_eos_penalty": 0.0}
    resolve("ppo", TrainConfig(**options))
    options[option] = {"missing_eos_penalty": 1.0}.get(option, True)
    with pytest.raises(UsageError, match=f"bootstrap_truncated, {option}"):
        resolve("ppo", TrainConfig(**options))
