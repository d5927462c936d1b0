"""Group weights: numbers worked by hand, identities between the functions, invariances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from laurel.weight import group
from laurel.weight.group import (
    batch_standardised,
    best_and_worst,
    centred,
    informative,
    leave_one_out,
    minus_baseline,
    predicted_uninformative,
    raw,
    selected,
    standardised,
    update_running_mean,
)

NAN = float("nan")
COMPARING = [centred, leave_one_out, standardised, batch_standardised]
EVERY = [raw, minus_baseline, *COMPARING, selected]


def rewards(*groups):
    return torch.tensor(groups, dtype=torch.float64)


def near(tensor, expected, tolerance=1e-7):
    torch.testing.assert_close(
        tensor, torch.as_tensor(expected, dtype=tensor.dtype), atol=tolerance, rtol=0
    )


@st.composite
def matrices(draw, samples=(2, 6), holes=True):
    """[P, G] of rewards on a grid (so that ties happen), some of them NaN."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(*samples)))
    values = st.integers(-8, 8).map(lambda n: n / 4)
    return torch.from_numpy(
        draw(arrays("f8", shape, elements=st.one_of(values, st.just(NAN)) if holes else values))
    )


def test_T44b_spellings_of_a_group_advantage():
    """T44b: rewards [1, 0, 0, 1] and [1, 0] under each rule; the docs state ddof = 1 and eps =
    1e-4.
    """
    four = rewards([1, 0, 0, 1])
    near(leave_one_out(four), [[2 / 3, -2 / 3, -2 / 3, 2 / 3]])
    near(centred(four), [[0.5, -0.5, -0.5, 0.5]])
    near(standardised(four), [[0.8658754, -0.8658754, -0.8658754, 0.8658754]])
    near(standardised(rewards([1, 0])), [[0.7070068, -0.7070068]])
    near(standardised(four, scale_rewards="none"), [[0.5, -0.5, -0.5, 0.5]])
    assert not math.isclose(
        float(standardised(four)[0, 0]), 0.9998000, abs_tol=1e-3
    )  # ddof 0, which we do not use


def test_two_right_of_eight():
    """The group of the style guide: centred .75, standardised 1.6198."""
    eight = rewards([1, 1, 0, 0, 0, 0, 0, 0])
    assert centred(eight)[0, 0] == 0.75
    near(standardised(eight)[0, 0], 1.6198, 1e-4)


@pytest.mark.parametrize("value", [0.1, 0.2, 0.3, 0.9, 1 / 3, 2 / 3])
def test_T25_equal_rewards_weigh_nothing(value):
    """T25: rewards that are all equal, also when they were float32 once, whose standard deviation
    is then not exactly 0.
    """
    for G in range(2, 65):
        for equal in (
            torch.full((1, G), value, dtype=torch.float64),
            torch.full((1, G), value).double(),
        ):
            assert not informative(equal).any()
            for weigh in COMPARING:
                assert (weigh(equal) == 0).all(), (weigh.__name__, G)


def test_T25_float32_is_refused_not_rounded():
    """T25: the statistics are taken in float64 only."""
    for weigh in EVERY:
        with pytest.raises(AssertionError):
            weigh(torch.full((1, 30), 0.9))


def test_T34_all_equal_rewards():
    """T34: no signal, no NaN; and the share of such groups is predicted by p^G + (1-p)^G."""
    both = rewards([1, 1, 1, 1], [1, 0, 0, 1])
    assert informative(both).tolist() == [False, True]
    for weigh in (centred, leave_one_out, standardised):
        assert (weigh(both)[0] == 0).all() and weigh(both).isfinite().all()
    for G, share in {2: 0.702, 4: 0.449, 8: 0.201, 16: 0.040}.items():
        assert predicted_uninformative(0.1819, G) == pytest.approx(share, abs=6e-4)


def test_informative_is_a_relative_range():
    assert informative(
        rewards([0, 1e-15], [1, 1 + 1e-12], [0, 0], [NAN, 1], [NAN, NAN], [-1, 1])
    ).tolist() == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


@given(matrices())
def test_leave_one_out_is_a_multiple_of_centring(reward_PG):
    """RLOO = n/(n-1) (r - mean), and it is the reward minus the mean of the others, literally."""
    n_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
    torch.testing.assert_close(
        leave_one_out(reward_PG) * (n_P1 - 1), centred(reward_PG) * n_P1 * (n_P1 > 1)
    )
    for row, weights in zip(reward_PG.tolist(), leave_one_out(reward_PG).tolist(), strict=True):
        for i, r in enumerate(row):
            others = [x for j, x in enumerate(row) if j != i and not math.isnan(x)]
            expected = 0.0 if math.isnan(r) or not others else r - sum(others) / len(others)
            assert weights[i] == pytest.approx(expected, abs=1e-12)


@given(matrices(), st.integers(-5, 5))
def test_adding_a_constant_changes_nothing(reward_PG, constant):
    for weigh in [*COMPARING, selected]:
        torch.testing.assert_close(weigh(reward_PG + constant), weigh(reward_PG))


@given(matrices(), st.sampled_from([0.5, 2.0, 1024.0]))
def test_scaling_rewards_scales_centred_and_hardly_standardised(reward_PG, factor):
    torch.testing.assert_close(centred(factor * reward_PG), factor * centred(reward_PG))
    torch.testing.assert_close(
        standardised(factor * reward_PG), standardised(reward_PG), atol=2e-3, rtol=2e-3
    )  # eps is not scaled


@given(matrices(), st.randoms(use_true_random=False))
def test_order_of_samples_and_groups_does_not_matter(reward_PG, random):
    """Permutation equivariance, within groups and of groups. (`best` breaks ties by position, so it
    is left out.)
    """
    samples, prompts = list(range(reward_PG.shape[1])), list(range(reward_PG.shape[0]))
    random.shuffle(samples)
    random.shuffle(prompts)
    above = [
        lambda r: selected(r, keep="above", bar=0.5),
        lambda r: selected(r, keep="over_mean"),
        lambda r: standardised(r, scale_rewards="batch"),
    ]
    for weigh in [raw, minus_baseline, *COMPARING, *above]:
        torch.testing.assert_close(
            weigh(reward_PG[prompts][:, samples]), weigh(reward_PG)[prompts][:, samples]
        )


@given(matrices(samples=(1, 5), holes=False), st.data())
def test_excluding_a_sample_is_removing_it(reward_PG, data):
    """NaN takes part in nothing: the other weights are those of the group without that sample, and
    its own is 0.
    """
    at = data.draw(st.integers(0, reward_PG.shape[1]))
    hole = torch.full((len(reward_PG), 1), NAN, dtype=torch.float64)
    with_hole = torch.cat([reward_PG[:, :at], hole, reward_PG[:, at:]], 1)
    rules = [
        lambda r: selected(r, keep="over_mean"),
        lambda r: standardised(r, scale_rewards="batch"),
        lambda r: minus_baseline(r, baseline="batch"),
    ]
    for weigh in [*EVERY, *rules]:
        weight_PG = weigh(with_hole)
        assert (weight_PG[:, at] == 0).all()
        torch.testing.assert_close(
            torch.cat([weight_PG[:, :at], weight_PG[:, at + 1 :]], 1), weigh(reward_PG)
        )
    assert informative(with_hole).equal(informative(reward_PG))


@given(matrices())
def test_weights_are_finite_and_sum_to_zero_where_they_should(reward_PG):
    for weigh in EVERY:
        assert weigh(reward_PG).isfinite().all()
    for weigh in (centred, leave_one_out, standardised):
        torch.testing.assert_close(
            weigh(reward_PG).sum(1),
            torch.zeros(len(reward_PG), dtype=torch.float64),
            atol=1e-9,
            rtol=0,
        )


def test_groups_of_one_and_of_none():
    """A group with one sample, or with none that could be judged, compares nothing: weight 0, never
    NaN.
    """
    lonely = rewards([1, NAN, NAN], [NAN, NAN, NAN])
    for weigh in (centred, leave_one_out, standardised):
        assert (weigh(lonely) == 0).all()
        assert (weigh(rewards([3.0])) == 0).all()
    assert selected(lonely).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert raw(lonely).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_scale_rewards():
    """batch: one divisor for all groups, so [1, 0] and [4, 0] keep their proportion; group: they
    become nearly equal.
    """
    two = rewards([1, 0], [4, 0])
    std = two.flatten().std()
    near(standardised(two, scale_rewards="batch"), centred(two) / (std + 1e-4))
    batch, own = standardised(two, scale_rewards="batch"), standardised(two)
    assert batch[1, 0] / batch[0, 0] == pytest.approx(4) and own[1, 0] / own[0, 0] == pytest.approx(
        1, abs=1e-3
    )


def test_batch_standardised():
    """[1, 0], [1, 1]: mean .75, std .5 with ddof 1; the right answers of both groups get the same
    weight.
    """
    near(
        batch_standardised(rewards([1, 0], [1, 1])),
        [[0.25 / 0.5001, -0.75 / 0.5001], [0.25 / 0.5001, 0.25 / 0.5001]],
    )
    assert (batch_standardised(rewards([1, 1], [1, 1])) == 0).all()


def test_baselines():
    reward_PG = rewards([1, 0], [NAN, 1])
    near(minus_baseline(reward_PG, running_mean=0.25), [[0.75, -0.25], [0, 0.75]])
    near(minus_baseline(reward_PG, baseline="batch"), [[1 / 3, -2 / 3], [0, 1 / 3]])
    near(minus_baseline(reward_PG), raw(reward_PG))


def test_running_mean():
    """.9 * .5 + .1 * 2/3; a step in which every reward failed leaves it as it is."""
    assert update_running_mean(0.5, rewards([1, 0], [NAN, 1])) == pytest.approx(0.45 + 0.1 * 2 / 3)
    assert update_running_mean(0.5, rewards([NAN, NAN])) == 0.5
    assert update_running_mean(0.5, rewards([1]), momentum=0.0) == 1


def test_selected():
    reward_PG = rewards([0, 2, 2, NAN], [NAN, 0, 0, 0], [1, 0, 0.5, 0.5])
    assert selected(reward_PG).tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert selected(reward_PG, keep="above").tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert selected(reward_PG, keep="above", bar=0.5).tolist() == [
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 1],
    ]
    assert selected(reward_PG, keep="over_mean").tolist() == [
        [0, 1, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
    ]


def test_options_are_fields_of_the_configuration():
    """Every keyword-only parameter is an option of TrainConfig or supplied by the loop, and its
    default is not None.
    """
    from inspect import Parameter, signature

    from laurel.core.config import TrainConfig

    for weigh in EVERY:
        for p in signature(weigh).parameters.values():
            if p.kind is Parameter.KEYWORD_ONLY:
                assert p.name in TrainConfig.model_fields or p.name == "running_mean"
                assert p.default is not None and p.default is not Parameter.empty
    assert group.EPS == 1e-4


def test_a_pair_is_the_first_of_the_best_and_the_last_of_the_worst():
    """By hand: ties on both sides, one who was not judged, a group in which nobody differs, one
    with a single answer.
    """
    rewards = [
        [1, 0, 0, 1],
        [0.5, NAN, 0.2, 0.9],
        [0.3, 0.3, NAN, 0.3],
        [NAN, NAN, 2.0, NAN],
        [0, 1, 0, 0],
    ]
    pairs = [[1, 0, -1, 0], [0, 0, -1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, -1]]
    assert best_and_worst(torch.tensor(rewards, dtype=torch.float64)).tolist() == pairs
