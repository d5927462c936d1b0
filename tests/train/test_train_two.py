"""Two processes leave what one leaves, family by family: the same lines in the same order, the same
weights.
"""

import json

import pytest
import torch
from processes import begin
from safetensors.torch import load_file
from test_train_ranks import free_port
from toy import make_toy, toy_config

from laurel.core.run import Run
from laurel.core.sample import take
from laurel.train.checkpoint import finished_checkpoints
from laurel.train.loop import train


def rank_of(toy, folder, cases):
    """One process of the two: every case, one after the other."""
    for case, (name, options) in cases.items():
        train(name, toy_config(toy, folder / case, **options), quiet=True)


def two_processes(toy, folder, cases):
    """All cases in one pair of processes."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    folder.mkdir()
    logs = [folder / f"log{rank}" for rank in (0, 1)]
    ranks = [
        begin(rank_of, toy, folder, cases, log=log, environment=meeting | {"RANK": str(rank)})
        for rank, log in enumerate(logs)
    ]
    for process, log in zip(ranks, logs, strict=True):
        process.join(240)
        assert process.exitcode == 0, log.read_text()[-2000:]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


REWARD = """
def some(prompts, completions, **columns):
    return [float("nan") if prompt == HARD or "3" in text else text.count("7") / 4 for prompt, text in zip(prompts, completions)]
"""
TIMES = ("seconds", "time", "run", "rss", "tokens_per", "padding_share")


def families(folder, toy):
    """One case of each family: three prompts over two processes, so that one has two of them and
    the other one.
    """
    files = {
        "pairs": [
            {"prompt": f"{i % 8}=", "chosen": "7777", "rejected": str(1000 + i)} for i in range(12)
        ],
        "labels": [
            {
                "prompt": f"{i}=",
                "completion": "7777" if i % 3 else str(100 * i),
                "label": bool(i % 3),
            }
            for i in range(5)
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hard = (  # the prompt that the second process has alone in the first step
        f"{take(0, 3, 8, 0)[2]}="
    )
    (folder / "some.py").write_text(f"HARD = {hard!r}\n{REWARD}")
    samples = {
        "num_generations": 4,
        "rewards": [f"{folder}/some.py:some"],
        "max_failed_fraction": 0.6,
    }
    pairs, labels = ({"reward": None, "dataset": str(folder / f"{name}.jsonl")} for name in files)
    cases = {
        "grpo": {**samples, "reference": "start"},
        "grpo, masked": {**samples, "beta": 0.1, "mask_truncated_completions": True},
        "dapo": samples,
        "ppo_max": {**samples, "critic_warmup_steps": 2, "kl_target": 1.0, "weight_decay": 0.01},
        "online_dpo": samples,
        "es": {"population": 6, "sigma": 0.05},
        "kto": {
            **labels,
            "eval_steps": 1,
            "eval_dataset": labels["dataset"],
            "eval_size": 5,
            "beta": 2.0,
            "learning_rate": 1e-2,
        },
        "dpop": pairs,
    }
    return {
        case: (
            case.partition(",")[0],
            {"prompts_per_step": 3, "max_steps": 3, "learning_rate": 1e-3} | more,
        )
        for case, more in cases.items()
    }


@pytest.fixture(scope="module")
def both(toy, tmp_path_factory):
    """The cases trained by one process, and by two."""
    folder = tmp_path_factory.mktemp("families")
    cases = families(folder, toy)
    for case, (name, options) in cases.items():
        train(name, toy_config(toy, folder / "one" / case, **options), quiet=True)
    two_processes(toy, folder / "two", cases)
    return folder


@pytest.mark.parametrize(
    "case", ["grpo", "grpo, masked", "dapo", "ppo_max", "online_dpo", "es", "kto", "dpop"]
)
def test_two_processes_leave_what_one_leaves(case, both):
    """Every line of metrics.jsonl and samples.jsonl, in its order, and the weights. In the first
    step rewards fail for all that the
    second process has."""
    one, two = (Run(both / where / case) for where in ("one", "two"))
    for ours, theirs in zip(one.metrics(), two.metrics(), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            if not name.startswith(TIMES):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-5), (
                    ours["step"],
                    name,
                )
    assert len(one.samples()) == len(two.samples())
    for ours, theirs in zip(one.samples(), two.samples(), strict=True):
        for name in (
            "step",
            "prompt_id",
            "prompt",
            "sample",
            "completion",
            "reward",
            "ids",
            "finish",
            *(["member"] if case == "es" else []),
        ):
            assert ours[name] == theirs[name], name
        assert ours["weight"] == pytest.approx(theirs["weight"], abs=1e-4)
    weights = [
        load_file(finished_checkpoints(run.checkpoints)[0] / "weights.safetensors")
        for run in (one, two)
    ]
    for key in weights[0]:
        assert torch.allclose(weights[0][key], weights[1][key], atol=2e-5), key
