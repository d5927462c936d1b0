"""Every row of the table learns the toy, with three seeds (two of them behind `make verify`): rule
17 of the house.
"""

import json
import random

import pytest
from arithmetic import near
from seeds import SEEDS
from test_train_resume import final_weights, same
from toy import make_toy, toy_config

from laurel.core.config import ALGORITHM_NAMES
from laurel.reward.load import load_reward
from laurel.rollout.source import LABELS, PAIRS
from laurel.train.algorithms import ALGORITHMS
from laurel.train.loop import train

EXTRA = {
    "reinforce": {"num_generations": 8},
    "reinforce_baseline": {"num_generations": 8},
    "reinforce_pp": {"num_generations": 8},
    "dapo": {"mask_truncated_completions": False},
    "ppo": {"num_generations": 8, "missing_eos_penalty": 0.0},
    "ppo_max": {"num_generations": 8, "missing_eos_penalty": 0.0, "max_steps": 40},
}  # the toy always fills its four tokens
REWARDED = [
    name
    for name in ALGORITHM_NAMES
    if ALGORITHMS[name].source.sampled
    and "relabel" not in ALGORITHMS[name].source.options
    and not ALGORITHMS[name].source.judge
]
MARGIN = 0.4  # of at most 1; the untrained model scores about .07


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_the_list_of_names_is_the_table():
    assert list(ALGORITHM_NAMES) == list(ALGORITHMS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", REWARDED)
def test_row_learns_the_toy(name, seed, toy, tmp_path):
    """Mean reward of the last five steps beats the first by at least MARGIN."""
    run = train(name, toy_config(toy, tmp_path, seed=seed, **EXTRA.get(name, {})), quiet=True)
    rewards = [line["reward"] for line in run.metrics() if line.get("reward") is not None]
    assert sum(rewards[-5:]) / 5 - rewards[0] > MARGIN, rewards


@pytest.fixture(scope="module")
def preferences(toy, tmp_path_factory):
    """Sevens are better than other digits: the same as pairs and as labelled answers, for forty
    prompts.
    """
    folder = tmp_path_factory.mktemp("preferences")
    pairs = [
        {"prompt": f"{i}=", "chosen": "7777", "rejected": f"{i:02d}{99 - i:02d}"}
        for i in range(10, 50)
    ]
    labels = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        source: {**toy, "dataset": str(folder / f"{source}.jsonl"), "eval_size": 8}
        for source in ("pairs", "labels")
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", [name for name in ALGORITHM_NAMES if ALGORITHMS[name].source in (PAIRS, LABELS)]
)
def test_row_learns_the_preference(name, seed, preferences, tmp_path):
    """On prompts held out, the answer of sevens gains on the other: every margin positive, or the
    likelihoods far apart.
    """
    options = {**preferences[ALGORITHMS[name].source.name], "prompts_per_step": 8, "eval_steps": 30}
    lines = train(name, toy_config(options, tmp_path, reward=None, seed=seed), quiet=True).metrics()
    if ALGORITHMS[name].source is PAIRS:
        assert lines[-1]["eval/rewards/accuracies"] == 1.0
        assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.2
    else:
        assert (
            lines[-1]["eval/logps/chosen"] - lines[-1]["eval/logps/rejected"]
            > 10
            > abs(lines[0]["logps/chosen"] - lines[0]["logps/rejected"])
        )


@pytest.fixture(scope="module")
def judged(toy, tmp_path_factory):
    """Sevens are good: as pairs, rankings, outcomes (is the first digit one?) and steps (right with
    a seven, wrong with a three).
    """
    folder, dice = tmp_path_factory.mktemp("judged"), random.Random(0)

    def digits(first=""):
        return (first + "".join(dice.choice("0123456789") for _ in range(4)))[:4]

    def pair():
        several = sorted((digits() for _ in range(9)), key=lambda text: text.count("7"))
        return {
            "chosen": several[-1] if "7" in several[-1] else "1717",
            "rejected": several[0].replace("7", "1"),
        }

    def ranking():
        several = [digits() for _ in range(4)]
        return {"responses": several, "ranks": [5 - text.count("7") for text in several]}

    def outcome():
        text = digits(dice.choice(("7", "")))
        return {"completion": text, "label": text[0] == "7"}

    def steps():
        several = [digits() for _ in range(3)]
        return {
            "completions": several,
            "labels": [1 if "7" in text else -1 if "3" in text else 0 for text in several],
        }

    found = {}
    for name, make in (
        ("reward", pair),
        ("reward_kwise", ranking),
        ("reward_pl", ranking),
        ("orm", outcome),
        ("prm", steps),
    ):
        rows = [{"prompt": f"{i}=", **make()} for i in range(10, 170)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[name] = {**toy, "dataset": str(folder / f"{name}.jsonl"), "eval_size": 16}
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", [name for name in ALGORITHM_NAMES if ALGORITHMS[name].trained.head]
)
def test_row_learns_to_judge(name, seed, judged, tmp_path):
    """On prompts held out nearly everything is judged right, and a saved folder that gives one
    number is a reward.
    """
    run = train(
        name,
        toy_config(
            judged[name],
            tmp_path,
            reward=None,
            seed=seed,
            max_steps=80,
            prompts_per_step=16,
            eval_steps=80,
        ),
        quiet=True,
    )
    assert run.metrics()[-1]["eval/accuracy"] > 0.85, run.metrics()[-1]
    if ALGORITHMS[name].trained.head == 1:
        judge = load_reward(f"model:{run.model}").function
        good, bad = judge(["5=", "5="], ["7777", "1234"], [[], []])
        assert good > bad


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "shared"},
        {"normalize_rewards": True, "reward_clip": 2.0},
        {"critic_warmup_steps": 5},
    ],
)
def test_ppo_learns_in_every_arrangement(options, toy, tmp_path):
    lines = train("ppo", toy_config(toy, tmp_path, **EXTRA["ppo"], **options), quiet=True).metrics()
    assert lines[-1]["reward"] - lines[0]["reward"] > MARGIN
    assert all(
        line["ratio/max"] == pytest.approx(1.0, abs=1e-4)
        for line in lines[: options.get("critic_warmup_steps", 0)]
    )


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_resumed_ppo_is_the_unbroken_run(critic, toy, tmp_path):
    """T59: critic, its optimiser state, steered beta and the history of rewards come back bit by
    bit.
    """
    options = {
        **EXTRA["ppo"],
        "critic": critic,
        "normalize_rewards": True,
        "reward_clip": 2.0,
        "kl_target": 2.0,
    }
    whole = train("ppo", toy_config(toy, tmp_path / "whole", max_steps=6, **options), quiet=True)
    for stop in (3, 6):
        parts = train(
            "ppo",
            toy_config(toy, tmp_path / "parts", max_steps=stop, resume=True, **options),
            quiet=True,
        )
    assert same(final_weights(whole), final_weights(parts))
    keys = ("loss", "beta", "value/mean", "reward")
    assert [[line.get(key) for key in keys] for line in whole.metrics()] == [
        [line.get(key) for key in keys] for line in parts.metrics()
    ]


def test_ppo_begins_at_ratio_one_reference_zero_and_values_zero(toy, tmp_path):
    """T10, T20: with one pass per batch every ratio is 1 and the KL 0; a fresh critic says exactly
    0.
    """
    (line,) = train(
        "ppo", toy_config(toy, tmp_path, max_steps=1, num_iterations=1, **EXTRA["ppo"]), quiet=True
    ).metrics()
    assert line["ratio/max"] == near(1.0) and line["kl/sequence"] == pytest.approx(0.0, abs=1e-6)
    assert line["value/mean"] == 0.0


def test_collapse_is_announced_where_a_reward_can_be_exploited(toy, tmp_path, capsys):
    """The toy has one right answer and no held-out score: entropy vanishes while the reward rises,
    and somebody says so.
    """
    train(
        "ppo", toy_config(toy, tmp_path, max_steps=90, learning_rate=2e-3, beta=0.0, **EXTRA["ppo"])
    )
    assert "warning: entropy" in " ".join(capsys.readouterr().out.split())


def test_ppo_steers_kl_to_its_target(toy, tmp_path):
    """The coefficient starts three times too large, and finds the KL that was asked for, within a
    fifth.
    """
    slow = {
        "num_iterations": 1,
        "max_steps": 200,
        "learning_rate": 2e-3,
        "kl_target": 2.0,
        "kl_horizon": 320,
        "beta": 0.3,
    }
    lines = train("ppo", toy_config(toy, tmp_path, **EXTRA["ppo"], **slow), quiet=True).metrics()
    late = [line["kl/sequence"] for line in lines[-100:]]
    assert 1.6 < sum(late) / len(late) < 2.4 and lines[-1]["beta"] < 0.2, late


@pytest.mark.parametrize("seed", SEEDS)
def test_sft_learns_the_toy(seed, toy, tmp_path):
    """Loss per supervised token falls below a tenth of ln(vocabulary)."""
    run = train("sft", toy_config(toy, tmp_path, reward=None, seed=seed), quiet=True)
    losses = [line["nll"] for line in run.metrics()]
    assert losses[0] > 1.5 and losses[-1] < 0.2, losses


def test_off_policy_iterations_learn_too(toy, tmp_path):
    """Several passes over a batch: the ratio leaves 1, the clip acts, the toy is learned."""
    run = train("grpo", toy_config(toy, tmp_path, num_iterations=3, max_steps=20), quiet=True)
    lines = run.metrics()
    assert lines[-1]["reward"] - lines[0]["reward"] > MARGIN
    assert max(line.get("clip_ratio/region", 0) for line in lines) > 0


def test_samples_are_written_with_reasons(toy, tmp_path):
    """Every rollout is on disk once, with ids, log-probs, weight, and what the reward said
    (A58).
    """
    run = train("rloo", toy_config(toy, tmp_path, max_steps=2), quiet=True)
    lines = run.samples()
    assert len(lines) == 2 * 4 * 8
    assert len({(line["step"], line["prompt_id"], line["sample"]) for line in lines}) == len(lines)
    for line in lines:
        assert len(line["ids"]) == len(line["logps"]) == len(line["mask"]) == line["length"]
        assert json.dumps(line["results"]["sevens"])
        assert line["results"]["sevens"]["value"] == pytest.approx(line["reward"])
