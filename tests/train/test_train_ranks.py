"""Two processes as one: the same gradients, whatever the split of rows and tokens."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import make_toy, toy_config

from laurel.train.checkpoint import complete_first
from laurel.train.loop import train

WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from toy import toy_config
from laurel.train.loop import train
name, toy, folder, options = sys.argv[2], json.loads(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5])
train(name, toy_config(toy, folder, **options), quiet=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_ranks(world, name, toy, folder, options):
    """Run the same training in `world` gloo processes on this machine."""
    import json

    port = str(free_port())
    here = str(Path(__file__).parent)
    processes = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", WORKER, here, name, json.dumps(toy), str(folder), json.dumps(options)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "sft"])
def test_T02_two_ranks_equal_one(name, toy, tmp_path):
    """T02: 3 prompts over 2 ranks (2 and 1), unequal token counts: after two steps the weights of one process, to 1e-5.

    Batch-wide statistics (whitening, batch std) and the denominator are global.
    """
    options = {"prompts_per_step": 3, "max_steps": 2, "learning_rate": 1e-3}
    options |= {"reward": None} if name == "sft" else {"num_generations": 4, **({"scale_rewards": "batch"} if name == "grpo" else {})}
    alone = train(name, toy_config(toy, tmp_path / "one", **options), quiet=True)
    in_ranks(2, name, toy, tmp_path / "two", options)
    from safetensors.torch import load_file

    from laurel.core.run import Run

    one, two = (load_file(complete_first(run.checkpoints)[0] / "weights.safetensors") for run in (alone, Run(tmp_path / "two")))
    for key in one:
        assert torch.allclose(one[key], two[key], atol=1e-5), key
