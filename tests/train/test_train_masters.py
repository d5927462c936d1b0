"""Weights in bfloat16 that learn: float32 masters, their optimisers, and runs that go on as if they
had never stopped.
"""

import io
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.model.policy import load_policy
from laurel.model.scratch import save_scratch
from laurel.train import masters, setup
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.loop import optimizer_step, total_norm, train
from laurel.train.masters import Masters, join_float32, split_float32
from laurel.train.optimizer import check_optim, make_optimizer, state_bytes
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_a_weight_and_its_rest_are_the_master_bit_by_bit():
    """For numbers of every size and sign, ties and the smallest among them; the weight is the
    nearest bfloat16.
    """
    torch.manual_seed(0)
    numbers = torch.randn(100_000) * 10.0 ** torch.randint(-30, 30, (100_000,))
    odd = torch.tensor(
        [0.0, -0.0, 1e-40, -1e-40, 3.38e38, -3.38e38, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]
    )
    master = torch.cat([numbers, odd])
    weight, rest = split_float32(master)
    assert torch.equal(join_float32(weight, rest).view(torch.int32), master.view(torch.int32))
    gap, nearest = (weight.double() - master).abs(), (master.bfloat16().double() - master).abs()
    assert torch.equal(gap, nearest)  # of a tie either neighbour


def steps(count, parameters, config, gradient):
    """Optimiser steps over copies of the same gradients."""
    moved = make_optimizer(parameters, config)
    for step in range(1, count + 1):
        for n, parameter in enumerate(parameters.values()):
            parameter.grad = gradient(step, n, parameter.shape).to(parameter.dtype)
        optimizer_step(moved, parameters, step, config)
    return moved


def gradient(step, n, shape):
    """Small, with a drift, exact in bfloat16."""
    noise = torch.Generator().manual_seed(100 * step + n)
    return (0.01 * torch.randn(shape, generator=noise) + 0.01).bfloat16()


def test_small_steps_add_up_as_in_float32_and_not_in_bfloat16(monkeypatch):
    """lr 1e-6: plain AdamW over bfloat16 moves nothing at all; ours moves the masters exactly as
    float32 weights, piece by piece.
    """
    monkeypatch.setattr(masters, "AT_ONCE", 100)
    start, config = (
        torch.randn(20, 30).bfloat16(),
        TrainConfig(learning_rate=1e-6, weight_decay=0.01, max_grad_norm=0),
    )
    naive, ours, wide = (
        torch.nn.Parameter(start.clone().to(kind))
        for kind in (torch.bfloat16, torch.bfloat16, torch.float32)
    )
    beside = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    plain = torch.optim.AdamW([naive], lr=1e-6, weight_decay=0.01)
    for step in range(1, 301):
        naive.grad = gradient(step, 0, naive.shape)
        plain.step()
    made = steps(300, {"a": ours, "v": beside[0]}, config, gradient)
    steps(300, {"a": wide, "v": beside[1]}, config, gradient)
    assert torch.equal(naive, start)
    assert torch.equal(
        join_float32(ours.data.view(-1), made.parts[0].rest).view(20, 30), wide
    ) and torch.equal(*beside)
    assert float((ours != start).float().mean()) > 0.02 and torch.equal(
        ours, split_float32(wide.data)[0]
    )
    assert made.parts[0].inner[0].param_groups[0]["params"][0].numel() == 0  # no float32 copy stays


def test_masters_go_on_from_their_state_and_take_what_groups_say(monkeypatch):
    """Written, read and continued: the same bits. Another weight decay or beta reaches every piece
    of every tensor.
    """
    config = TrainConfig(learning_rate=1e-3, max_grad_norm=0)
    ends = []
    for stop in (False, True):
        parameter = {"a": torch.nn.Parameter(torch.ones(20, 30, dtype=torch.bfloat16))}
        made = steps(3, parameter, config, gradient)
        if stop:
            file = io.BytesIO()
            torch.save(made.state_dict(), file)
            file.seek(0)
            made = make_optimizer(parameter, config)
            made.load_state_dict(torch.load(file, weights_only=True))
        parameter["a"].grad = gradient(4, 0, (20, 30))
        made.param_groups[0].update(betas=(0.5, 0.9), weight_decay=0.1)
        optimizer_step(made, parameter, 4, config)
        ends.append((parameter["a"].data, made.parts[0].rest))
        assert made.parts[0].inner[0].param_groups[0]["betas"] == (0.5, 0.9)
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_a_norm_of_narrow_gradients_is_added_up_in_float32():
    """And clipping brings them to it. torch's own norm of them has three digits."""
    grads = [torch.full((1000, 30), 0.1).bfloat16(), torch.ones(7)]
    exact = math.sqrt(30_000 * float(grads[0][0, 0]) ** 2 + 7)
    assert total_norm(grads) == pytest.approx(exact, rel=1e-5)
    assert float(torch.nn.utils.get_total_norm(grads)) != pytest.approx(exact, rel=1e-4)
    assert total_norm([]) == 0.0


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [("sft", {"reward": None}), ("grpo", {"beta": 0.05, "num_iterations": 2})],
)
def test_a_resumed_run_over_narrow_weights_is_the_uninterrupted_one(algorithm, more, toy, tmp_path):
    """All weights trained, in bfloat16 with masters: losses, weights and the optimiser's state are
    equal, and it moves at 1e-6.
    """
    how = {"param_dtype": "bfloat16", "learning_rate": 1e-6, **more}
    whole = train(algorithm, toy_config(toy, tmp_path / "whole", max_steps=5, **how), quiet=True)
    for stop in (2, 5):
        parts = train(
            algorithm,
            toy_config(toy, tmp_path / "parts", max_steps=stop, resume=True, **how),
            quiet=True,
        )
    losses = [[line["loss"] for line in run.metrics()] for run in (whole, parts)]
    assert losses[0] == losses[1] and len(set(losses[0])) > 1
    folders = [finished_checkpoints(run.checkpoints)[0] for run in (whole, parts)]
    first, second = (load_file(folder / "weights.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rests = [torch.load(folder / "optimizer.pt", weights_only=True)["rests"] for folder in folders]
    assert all(torch.equal(*pair) and bool(pair[0].any()) for pair in zip(*rests, strict=True))


def test_adapters_over_a_narrow_base_train_as_over_a_wide_one(toy, tmp_path):
    """A seeded GRPO run through LoRA in bfloat16: the same losses, bit by bit, whatever the base is
    held in, if its files are bfloat16.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(toy["model"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(toy["model"]).save_pretrained(tmp_path / "model")
    fresh = load_policy(
        TrainConfig(model=str(tmp_path / "model"), use_peft=True, lora_r=4, device="cpu")
    )
    fresh.save(
        tmp_path / "adapter", dtype="float32"
    )  # peft draws new ones in the precision of what they are put on
    found = []
    for held in ("float32", "bfloat16"):
        own = {**toy, "model": str(tmp_path / "adapter")}
        how = {"dtype": "bfloat16", "param_dtype": held, "beta": 0.05, "max_steps": 3}
        run = train("grpo", toy_config(own, tmp_path / held, **how), quiet=True)
        found.append([(line["loss"], line["grad_norm"]) for line in run.metrics()])
    assert found[0] == found[1] and len(found[0]) == 3


# -------------------------------------------------------------------------------------------------
# bitsandbytes


def test_a_library_that_is_not_there_is_told_before_weights_are_loaded(toy, tmp_path, monkeypatch):
    """With what to install; pages want a GPU."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(setup, "load_policy", lambda config: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=r"bitsandbytes is not installed.*laurel-rl\[optim\]"):
        prepare_session("sft", toy_config(toy, tmp_path, reward=None, optim="adamw_8bit"))
    with pytest.raises(UsageError, match=r"pages move between a GPU and main memory.*adamw_8bit"):
        check_optim(TrainConfig(optim="paged_adamw_8bit"), torch.device("cpu"))
    with pytest.raises(UsageError, match="no AdamW"):
        prepare_session("es", toy_config(toy, tmp_path, optim="adamw_8bit"))


def test_what_an_optimiser_takes_is_known_before():
    """Gradients, moments, masters, of every precision: as many bytes as are there after a step."""
    for kind in (torch.float32, torch.bfloat16):
        parameters = {
            "a": torch.nn.Parameter(torch.ones(100, 64, dtype=kind)),
            "v": torch.nn.Parameter(torch.ones(64)),
        }
        told = state_bytes(parameters, "adamw_torch")
        made = make_optimizer(parameters, TrainConfig(learning_rate=1e-3))
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        assert told["gradients"] == sum(p.grad.nbytes for p in parameters.values())
        optimizer_step(made, parameters, 1, TrainConfig(learning_rate=1e-3))
        inner = (
            [one for part in made.parts for one in part.inner] + [made.plain]
            if isinstance(made, Masters)
            else [made]
        )
        kept = [
            value
            for one in inner
            for state in one.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        assert told["moments"] == sum(value.nbytes for value in kept)
        assert told["masters"] == (
            sum(part.rest.nbytes for part in made.parts) if isinstance(made, Masters) else 0
        )


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_moments_of_eight_bits_learn_and_are_resumed(held, toy, tmp_path):
    """The toy is learnt as with torch's AdamW; a resumed run is the uninterrupted one; bytes are as
    foreseen.
    """
    pytest.importorskip("bitsandbytes", reason="needs the extra `optim` (bitsandbytes, 43 MB)")
    wide = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # tensors of 4,096 numbers and more
    save_scratch(tmp_path / "model", alphabet="0123456789+=", seed=0, **wide)
    toy = {**toy, "model": str(tmp_path / "model")}
    how = {
        "reward": None,
        "learning_rate": 3e-3,
        "param_dtype": held,
        "dtype": "bfloat16" if held == "bfloat16" else "float32",
    }
    plain = train("sft", toy_config(toy, tmp_path / "plain", max_steps=12, **how), quiet=True)
    whole = train(
        "sft",
        toy_config(toy, tmp_path / "whole", max_steps=12, optim="adamw_8bit", **how),
        quiet=True,
    )
    for stop in (5, 12):
        parts = train(
            "sft",
            toy_config(
                toy, tmp_path / "parts", max_steps=stop, resume=True, optim="adamw_8bit", **how
            ),
            quiet=True,
        )
    losses = [[line["loss"] for line in run.metrics()] for run in (plain, whole, parts)]
    assert losses[1] == losses[2] and losses[1] != losses[0]
    assert max(losses[0][-1], losses[1][-1]) < 0.1 * losses[1][0]
    parameters = {
        "a": torch.nn.Parameter(torch.ones(100, 64)),
        "v": torch.nn.Parameter(torch.ones(64)),
    }
    made = steps(1, parameters, TrainConfig(learning_rate=1e-3, optim="adamw_8bit"), gradient)
    names = ("state1", "state2", "absmax1", "absmax2")
    kept = [state[name].nbytes for state in made.state.values() for name in names if name in state]
    assert state_bytes(parameters, "adamw_8bit")["moments"] == sum(kept)
