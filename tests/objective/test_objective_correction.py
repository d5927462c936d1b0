"""Importance weights of another sampler's draws: values by hand, no gradient, 1 where equal."""

import math

import pytest
import torch

from laurel.objective.correction import CORRECTIONS, sequence_mask, token_truncate


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_a_token_s_weight_by_hand():
    """(pi, mu) = (.5, .1), (.2, .4), (.3, .3), cap 3: the docstring's numbers."""
    log_ratio_NT = logs([0.5, 0.2, 0.3]) - logs([0.1, 0.4, 0.3])
    wanted = torch.tensor([[3.0, 0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(token_truncate(log_ratio_NT, cap=3.0), wanted)
    assert float(token_truncate(log_ratio_NT, cap=9.0).max()) == pytest.approx(5.0)


def test_a_row_s_weight_by_hand():
    """(1.5, 1.5): 2.25 at both; (2, 2): 4 is above the cap; (3, 1) is at it; (.1, 1) stays."""
    found = sequence_mask(logs([1.5, 1.5], [2.0, 2.0], [3.0, 1.0], [0.1, 1.0]), cap=3.0 + 1e-12)
    wanted = [[2.25, 2.25], [0.0, 0.0], [3.0, 3.0], [0.1, 0.1]]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("how", CORRECTIONS)
def test_equal_policies_weigh_exactly_one_and_nothing_has_a_gradient(how):
    same = torch.zeros(2, 3, requires_grad=True)
    found = CORRECTIONS[how](same, cap=3.0)
    assert torch.equal(found, torch.ones(2, 3)) and not found.requires_grad


@pytest.mark.parametrize("how, weight", [("token_truncate", 3.0), ("sequence_mask", 0.0)])
def test_a_token_that_the_sampler_could_not_draw_weighs_the_cap_or_its_row_nothing(how, weight):
    """exp(800) is no float; neither is 0 / 0."""
    found = CORRECTIONS[how](torch.tensor([[800.0, 0.0], [math.inf, 0.0]]), cap=3.0)
    assert found[:, 0].tolist() == [weight, weight]
