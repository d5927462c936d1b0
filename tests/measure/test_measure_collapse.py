"""Alarms: silent on healthy histories, and one by one on histories that go wrong."""

import random

import pytest

from laurel.measure.collapse import alarms


def line(start, end, step, steps):
    """Ten steps level, then on its way, and level again for the last fifteen."""
    return start + (end - start) * min(max((step - 10) / (steps - 25), 0), 1)


def history(steps=60, seed=0, noise=0.1, **ends):
    """Noisy lines from start to end; `ends` replaces those of a metric."""
    lines = {
        "reward": (0.2, 0.8),
        "entropy": (1.2, 0.7),
        "completions/mean_length": (40, 55),
        "completions/clipped_ratio": (0.05, 0.1),
        "kl/sequence": (0.0, 6.0),
        "duplicates": (0.05, 0.1),
        "gold": (0.1, 0.5),
    } | {name.replace("__", "/"): pair for name, pair in ends.items()}
    rng = random.Random(seed)

    def at(step):
        return {
            name: line(*pair, step, steps) + noise * abs(pair[0]) * rng.gauss(0, 1)
            for name, pair in lines.items()
        }

    return [at(step) for step in range(steps)]


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_none(seed):
    run = history(seed=seed)
    assert not [
        found
        for step in range(len(run))
        for found in alarms(run[:step], max_completion_length=100, held_out="gold")
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_goes_nowhere_raises_none(seed):
    still = {
        "reward": (0.2, 0.2),
        "entropy": (1.2, 1.2),
        "completions__mean_length": (40, 40),
        "kl__sequence": (1, 1),
        "gold": (0.1, 0.1),
    }
    assert (
        alarms(history(seed=seed, noise=0.3, **still), max_completion_length=100, held_out="gold")
        == []
    )


BAD = [
    ("entropy", (1.2, 0.06)),
    ("perplexity", (3.0, 1.0)),
    ("completions/clipped_ratio", (0.05, 0.95)),
    ("completions/mean_length", (40, 99)),
    ("completions/mean_length", (40, 2)),
    ("kl/sequence", (0.0, 45.0)),
    ("duplicates", (0.05, 0.9)),
    ("gold", (0.5, -0.5)),
]


@pytest.mark.parametrize("name, ends", BAD)
def test_each_way_of_collapsing_is_named_and_only_it(name, ends):
    """noise 0; gold stands still unless it is what falls, so that nothing is silenced."""
    run = history(noise=0.0, **{"gold": (0.1, 0.1), name.replace("/", "__"): ends})
    found = alarms(run, max_completion_length=100, held_out="gold")
    assert [text.split(":")[0] for text in found] == [name], found


def test_perplexity_is_that_of_the_entropy_where_it_is_not_recorded():
    found = alarms(history(noise=0.0, entropy=(1.2, 0.01)))
    assert [text.split(":")[0] for text in found] == ["entropy", "perplexity"]


def test_a_task_with_one_right_answer_may_lose_its_entropy():
    """The held-out score rises with the reward: no alarm. Without such a score nobody can know:
    alarm.
    """
    solved = history(noise=0.02, entropy=(1.2, 0.0), gold=(0.1, 0.9))
    assert alarms(solved, held_out="gold") == []
    assert alarms(solved) != []


def test_entropy_falling_without_a_rising_reward_is_another_matter():
    assert alarms(history(noise=0.0, entropy=(1.2, 0.0), reward=(0.5, 0.5))) == []


def test_a_held_out_score_that_stands_still_is_not_falling():
    """Looked at after every step while the reward rises: dense, or an evaluation every tenth step,
    of which two or four say nothing.
    """
    for seed in range(20):
        run = history(seed=seed, noise=0.3, gold=(0.5, 0.5), kl__sequence=(1, 1))
        assert not any(alarms(run[:step], held_out="gold") for step in range(len(run)))
    few = [
        {"reward": 0.1 * step} | ({"gold": 1.0 - step} if step % 10 == 0 else {})
        for step in range(40)
    ]
    assert alarms(few, held_out="gold") == []


def test_short_histories_gaps_and_not_a_number():
    collapsing = history(entropy=(1.2, 0.0), kl__sequence=(0.0, 45.0))
    assert alarms(collapsing[:19]) == [] and alarms([]) == []
    sparse = history(gold=(0.9, -0.9))
    for step, row in enumerate(sparse):
        if step % 10:
            del row["gold"]
    assert any(text.startswith("gold") for text in alarms(sparse, held_out="gold"))
    broken = [row | {"kl/sequence": float("nan")} for row in history()]
    assert alarms(broken) == []


def test_one_wild_step_is_no_alarm():
    run = history(noise=0.0)
    run[-1] = run[-1] | {"kl/sequence": 1e6, "entropy": 0.0, "duplicates": 1.0}
    assert alarms(run) == []
