"""Evolution strategies on a real model: it learns, differentiates nothing, gives weights back bit
by bit, and is one run however split.
"""

from dataclasses import replace

import pytest
import torch
from seeds import SEEDS
from test_train_ranks import in_ranks
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.metrics import Sums, explain
from laurel.core.run import Run
from laurel.train import loop
from laurel.train.evolve import evolve, parameter_noise, perturbed_parameters
from laurel.train.loop import train
from laurel.train.options import resolve
from laurel.train.setup import prepare_session

SMALL = {
    "population": 4,
    "sigma": 0.1,
    "learning_rate": 1e-3,
    "prompts_per_step": 2,
    "max_steps": 3,
}
SMALL |= {"temperature": 1.0, "num_generations": 6}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("seed", SEEDS)
def test_learns_the_toy(seed, toy, tmp_path):
    """Rule 17: greedy answers of the members, ranks: the last five steps beat the first by .4."""
    options = {
        "population": 20,
        "sigma": 0.05,
        "learning_rate": 0.015,
        "prompts_per_step": 2,
        "max_steps": 30,
    }
    rewards = [
        line["reward"]
        for line in train(
            "es", toy_config(toy, tmp_path, seed=seed, **options), quiet=True
        ).metrics()
    ]
    assert sum(rewards[-5:]) / 5 - rewards[0] > 0.4, rewards


class NoWayBack(torch.autograd.Function):
    """Forwards, it is nothing; backwards, an error."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("somebody differentiates")


@pytest.mark.parametrize("name", ["es", "reinforce"])
def test_a_model_that_cannot_be_differentiated_is_trained(name, toy, tmp_path):
    """No backward pass, no gradient, no state of AdamW: the same model stops a row that
    differentiates.
    """
    own = SMALL if name == "es" else {"prompts_per_step": 2, "num_generations": 2}
    setup, state = prepare_session(name, toy_config(toy, tmp_path, **own))
    setup.policy.causal.base_model.register_forward_hook(
        lambda module, inputs, out: type(out)(
            last_hidden_state=NoWayBack.apply(out.last_hidden_state),
            past_key_values=out.past_key_values,
        )
    )
    before = {key: p.detach().clone() for key, p in setup.policy.trainable().items()}
    if name == "reinforce":
        with pytest.raises(RuntimeError, match="somebody differentiates"):
            loop.step(setup, state, Sums())
        return
    sums = Sums()
    loop.step(setup, state, sums)
    assert sums.means()["es/step_norm"] > 0 and not same(before, setup.policy.trainable())
    assert (
        all(p.grad is None for p in setup.policy.model.parameters())
        and setup.optimizer.state_dict()["state"] == {}
    )


def test_members_lie_around_the_weights_and_give_them_back(toy, tmp_path):
    """theta + sigma eps and theta - sigma eps; afterwards theta to the bit, also where the member
    fails.
    """
    setup, _ = prepare_session("es", toy_config(toy, tmp_path, **SMALL))
    parameters = list(setup.policy.trainable().values())
    start, seen = [p.detach().clone() for p in parameters], []
    for member in (0, 1):
        with perturbed_parameters(parameters, 5, 0, member, 0.1):
            seen.append([p.detach().clone() for p in parameters])
        assert all(torch.equal(a, b) for a, b in zip(start, parameters, strict=True))
    with pytest.raises(ZeroDivisionError), perturbed_parameters(parameters, 5, 0, 2, 0.1):
        assert not torch.equal(start[0], parameters[0])
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(start, parameters, strict=True))
    for i, (plus, minus, centre) in enumerate(zip(*seen, start, strict=True)):
        assert torch.allclose((plus + minus) / 2, centre, atol=1e-6)
        assert torch.allclose(plus - centre, 0.1 * parameter_noise(5, 0, i, centre, 0), atol=1e-6)


def test_noise_is_a_function_of_four_numbers(toy, tmp_path):
    """Seed, step, tensor, pair: each makes another stream, the same four the same; standard
    normal.
    """
    like = torch.zeros(400, 100)
    first = parameter_noise(0, 1, 2, like, 3)
    assert torch.equal(first, parameter_noise(0, 1, 2, like, 3))
    for other in ((1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4)):
        correlation = float((first * parameter_noise(*other[:3], like, other[3])).mean())
        assert abs(correlation) < 0.02, other
    assert float(first.mean()) == pytest.approx(0, abs=0.02) and float(
        first.std()
    ) == pytest.approx(1, abs=0.02)
    assert parameter_noise(0, 1, 2, like.double(), 3).dtype == torch.float64


def test_members_answer_the_same_prompts_with_the_same_luck(toy, tmp_path):
    """Common random numbers: with next to no noise every member samples the very same tokens; the
    next step asks other prompts.
    """
    run = train(
        "es", toy_config(toy, tmp_path, **SMALL | {"sigma": 1e-9, "num_generations": 3}), quiet=True
    )
    for step in (1, 2):
        lines = [line for line in run.samples() if line["step"] == step]
        said = {
            m: [(x["prompt_id"], x["sample"], x["ids"]) for x in lines if x["member"] == m]
            for m in range(4)
        }
        assert len(said[0]) == 6 and said[0] == said[1] == said[2] == said[3]
        assert len({tuple(ids) for _, _, ids in said[0]}) > 1
    prompts = [
        {line["prompt_id"] for line in run.samples() if line["step"] == step} for step in (1, 2)
    ]
    assert prompts[0] != prompts[1]


def test_one_step_is_the_formula(toy, tmp_path):
    """theta += learning_rate / (M sigma) sum w eps, with rewards that only the member decides: 1,
    0, 0, 0.
    """
    setup, state = prepare_session(
        "es", toy_config(toy, tmp_path, **SMALL | {"shape_returns": "raw"})
    )
    start, rewards = (
        [p.detach().clone() for p in setup.policy.trainable().values()],
        iter([1.0, 0.0, 0.0, 0.0]),
    )
    groups = loop.sample_and_score(setup, state, setup.rows[:2], Sums())

    def answer():
        reward = next(rewards)
        return [replace(group, rewards=(reward,) * len(group.samples)) for group in groups]

    evolve(setup, state, answer, Sums())
    assert state.step == 1
    for i, (before, after) in enumerate(zip(start, setup.policy.trainable().values(), strict=True)):
        assert torch.allclose(
            after, before + 1e-3 / (4 * 0.1) * parameter_noise(0, 0, i, before, 0), atol=1e-7
        )


@pytest.mark.parametrize("options", [{}, {"use_peft": True, "lora_r": 4}])
def test_T59_resume_is_bit_identical(options, toy, tmp_path):
    """4 steps against 2 + 2: weights, metrics and samples; with adapters, only they move."""
    own = SMALL | options | {"max_steps": 4}
    whole = train("es", toy_config(toy, tmp_path / "whole", **own), quiet=True)
    for stop in (2, 4):
        parts = train(
            "es",
            toy_config(toy, tmp_path / "parts", **own | {"max_steps": stop, "resume": True}),
            quiet=True,
        )
    assert same(final_weights(whole), final_weights(parts))
    assert all("lora" in name for name in final_weights(whole)) == ("use_peft" in options)
    for key in ("reward", "es/reward_std", "es/step_norm"):
        assert [line[key] for line in whole.metrics()] == [line[key] for line in parts.metrics()]
    ids = [[(line["member"], line["ids"]) for line in run.samples()] for run in (whole, parts)]
    assert ids[0] == ids[1] and all(line["es/step_norm"] > 0 for line in whole.metrics())


def test_members_over_two_processes_are_one_run_bit_by_bit(toy, tmp_path):
    """Six members over two processes, one prompt per step: the weights and metrics of one process,
    equal to the bit.
    """
    own = SMALL | {"population": 6, "prompts_per_step": 1, "max_steps": 2}
    alone = train("es", toy_config(toy, tmp_path / "one", **own), quiet=True)
    in_ranks(2, "es", toy, tmp_path / "two", own)
    split = Run(tmp_path / "two")
    assert same(final_weights(alone), final_weights(split))
    for key in ("reward", "es/reward_best", "es/step_norm", "tokens"):
        assert [line[key] for line in alone.metrics()] == [
            pytest.approx(line[key]) for line in split.metrics()
        ]


def test_equal_rewards_move_nothing_and_say_so(toy, tmp_path):
    setup, state = prepare_session("es", toy_config(toy, tmp_path, reward="constant", **SMALL))
    before, sums = {key: p.detach().clone() for key, p in setup.policy.trainable().items()}, Sums()
    loop.step(setup, state, sums)
    assert (
        same(before, setup.policy.trainable())
        and sums.means()["zero_signal"] == 1
        and sums.means()["es/reward_std"] == 0
    )
    assert all(explain(name) for name in sums.means())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.1}, "does not apply to `es`"),
        ({"entropy_coef": 0.1}, "does not apply to `es`"),
        ({"num_iterations": 2}, "does not apply to `es`"),
        ({"dynamic_sampling": True}, "does not apply to `es`"),
        ({"weight_decay": 0.1}, "no gradient"),
        ({"max_grad_norm": 0.5}, "no gradient"),
        ({"gradient_checkpointing": True}, "no gradient"),
        ({"population": 5}, "pairs"),
        ({"num_generations": 4}, "greedy"),
        ({"temperature": -1.0}, "temperature"),
        ({"loss_aggregation": "token_mean"}, "loss_aggregation"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        resolve("es", TrainConfig(**options))


def test_options_of_a_population_belong_to_it_alone():
    assert (
        resolve("es", TrainConfig()).population == 30
        and resolve("es", TrainConfig()).temperature == 0
    )
    for option in ({"population": 4}, {"sigma": 0.1}, {"shape_returns": "raw"}):
        with pytest.raises(UsageError, match="does not apply to `rloo`"):
            resolve("rloo", TrainConfig(**option))
