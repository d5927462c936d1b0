"""Weights of a population by hand, and the direction that they make of its noise."""

import pytest
import torch

from laurel.weight.population import search_gradient, shaped


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("ranks", (-1 / 6, 1 / 3, 1 / 3, -1 / 2)),  # ranks 1, 2.5, 2.5, 0 of 3
        ("zscore", (-0.5, 5 / 6, 5 / 6, -7 / 6)),  # mean 1.75, std 1.5
        ("raw", (1, 3, 3, 0)),
    ],
)
def test_weights_by_hand(how, weights):
    assert torch.allclose(shaped(vector(1, 3, 3, 0), shape_returns=how), vector(*weights))


def test_z_scores_by_hand():
    assert float(vector(1, 3, 3, 0).std()) == 1.5
    assert torch.allclose(
        shaped(vector(1e-9, 0), shape_returns="zscore"), vector(0.5**0.5, -(0.5**0.5))
    )  # however little they differ


@pytest.mark.parametrize("how", ["ranks", "zscore"])
def test_equal_rewards_weigh_nothing(how):
    assert shaped(vector(0.9, 0.9, 0.9, 0.9), shape_returns=how).tolist() == [0, 0, 0, 0]


def test_ranks_forget_the_scale_and_sum_to_zero():
    rewards = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = shaped(rewards)
    assert torch.equal(ranks, shaped(rewards.exp() * 7 - 3))
    assert float(ranks.sum()) == pytest.approx(0, abs=1e-12) and float(
        ranks.max()
    ) == 0.5 == -float(ranks.min())
    assert ranks.argsort().tolist() == rewards.argsort().tolist()


def test_odd_populations_and_missing_rewards_are_refused():
    for wrong in (
        vector(1, 2, 3),
        vector(1, float("nan")),
        torch.ones(2, 2, dtype=torch.float64),
        torch.ones(2),
    ):
        with pytest.raises(AssertionError):
            shaped(wrong)


def test_direction_by_hand():
    eps = [torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])]
    assert search_gradient(vector(3, 1), eps.__getitem__, sigma=0.5).tolist() == [2.0, -4.0]
    assert search_gradient(vector(3, 1, 0, 2), eps.__getitem__, sigma=0.5).tolist() == [
        0.5,
        -2.5,
    ]  # (2 eps_0 - 2 eps_1) / (4 / 2)
    assert search_gradient(vector(7, 7, 7, 7), eps.__getitem__).tolist() == [0.0, 0.0]


def test_a_linear_reward_gives_its_gradient_whatever_sigma():
    """R = g.theta: the step is the mean of (g.eps) eps, exactly; over many pairs it is g."""
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = vector(1.0, -0.5, 0.25)
    for sigma in (1e-3, 2.0):
        reward = torch.stack([(noise @ g) * sigma, -(noise @ g) * sigma], 1).flatten() + 0.7
        found = search_gradient(shaped(reward, shape_returns="raw"), noise.__getitem__, sigma=sigma)
        assert torch.allclose(found, ((noise @ g)[:, None] * noise).mean(0), atol=1e-9)
        assert torch.allclose(found, g, atol=0.03)


def test_noise_is_asked_for_only_where_it_counts():
    asked = []

    def noise(k):
        asked.append(k)
        return torch.ones(1)

    search_gradient(vector(1, 1, 2, 0, 5, 5), noise)
    assert set(asked) == {0, 1}  # pair 2 is even; pair 0 only tells the shape
