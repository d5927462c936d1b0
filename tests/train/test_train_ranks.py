"""Two processes as one: the same gradients, whatever the split of rows and tokens."""

import socket

import pytest
import torch
from processes import begin
from test_train_gap import Engine, moved
from toy import make_toy, toy_config

from laurel.core.run import Run
from laurel.train import setup
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.loop import train


def one_rank(name, toy, folder, options):
    """What each process of a world does."""
    train(name, toy_config(toy, folder, **options), quiet=True)


def one_rank_of_an_engine(name, toy, folder, options):
    """The same, sampled by an engine whose weights are a little off."""
    setup.Sampler = lambda policy: Engine(policy, moved(0.02), "bfloat16")
    one_rank(name, toy, folder, options)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_ranks(world, name, toy, folder, options, work=one_rank):
    """Run the same training in `world` gloo processes on this machine."""
    meeting = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    logs = [folder.with_name(f"{folder.name}-rank{rank}.log") for rank in range(world)]
    processes = [
        begin(
            work,
            name,
            toy,
            folder,
            options,
            log=log,
            environment={**meeting, "RANK": str(rank)},
        )
        for rank, log in enumerate(logs)
    ]
    for process, log in zip(processes, logs, strict=True):
        process.join(600)
        assert process.exitcode == 0, log.read_text()[-2000:]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "sft"])
def test_T02_two_ranks_equal_one(name, toy, tmp_path):
    """T02: 3 prompts over 2 ranks (2 and 1), unequal token counts: after two steps the weights of
    one process, to a
    hundredth of the way that they can have gone.

    Batch-wide statistics (whitening, batch std) and the denominator are global.
    """
    options = {"prompts_per_step": 3, "max_steps": 2, "learning_rate": 1e-3}
    options |= (
        {"reward": None}
        if name == "sft"
        else {"num_generations": 4, **({"scale_rewards": "batch"} if name == "grpo" else {})}
    )
    alone = train(name, toy_config(toy, tmp_path / "one", **options), quiet=True)
    in_ranks(2, name, toy, tmp_path / "two", options)
    from safetensors.torch import load_file

    one, two = (
        load_file(finished_checkpoints(run.checkpoints)[0] / "weights.safetensors")
        for run in (alone, Run(tmp_path / "two"))
    )
    for key in one:
        assert torch.allclose(
            one[key], two[key], rtol=0, atol=0.01 * options["max_steps"] * options["learning_rate"]
        ), key


def test_two_ranks_measure_and_correct_one_gap(toy, tmp_path, monkeypatch):
    """3 prompts over 2 ranks, a cap that truncates: the metrics of the gap and of the weights, and
    the step, are those of one process, whichever rank has the extremes.
    """
    options = {"prompts_per_step": 3, "max_steps": 2, "learning_rate": 1e-4, "num_generations": 4}
    options |= {"importance_sampling_cap": 1.1, "sampler_gap_limit": 9.0}
    monkeypatch.setattr(setup, "Sampler", lambda policy: Engine(policy, moved(0.02), "bfloat16"))
    alone = train("rloo", toy_config(toy, tmp_path / "one", **options), quiet=True)
    in_ranks(2, "rloo", toy, tmp_path / "two", options, one_rank_of_an_engine)
    for one, two in zip(alone.metrics(), Run(tmp_path / "two").metrics(), strict=True):
        names = [name for name in one if name.startswith(("sampl", "grad_norm"))]
        assert len(names) == 10 and one["sampling/importance_sampling_ratio/truncated"] > 0
        assert {n: two[n] for n in names} == pytest.approx({n: one[n] for n in names}, rel=1e-4)
