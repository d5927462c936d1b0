"""Generalised advantages: numbers by hand, the recursion as a plain loop, skipped tokens, and
exactness by enumeration.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laurel.verify.language import Language
from laurel.weight.advantage import bootstrapped, gae
from laurel.weight.token import place_reward, return_to_go

NAN = float("nan")


def wide(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(reward, value, mask, after, gamma, lam):
    """The recursion A_t = delta_t + gamma lam A_{t+1}, from the end, on one row: lists in, lists
    out.
    """
    advantage, returns = [0.0] * len(reward), [0.0] * len(reward)
    following, next_value, pending = 0.0, after, 0.0
    for t in reversed(range(len(reward))):
        pending += reward[t]
        if mask[t]:
            following = pending + gamma * next_value - value[t] + gamma * lam * following
            advantage[t], returns[t] = following, following + value[t]
            next_value, pending = value[t], 0.0
    return advantage, returns


def test_by_hand():
    """r = (0, 0, 1), V = (.5, .6, .7), then padding."""
    reward, value, mask = (
        wide([0, 0, 1, 9]),
        wide([0.5, 0.6, 0.7, NAN]),
        torch.tensor([[True, True, True, False]]),
    )
    for lam, expected in (
        (0.0, [0.1, 0.1, 0.3, 0]),
        (0.5, [0.225, 0.25, 0.3, 0]),
        (1.0, [0.5, 0.4, 0.3, 0]),
    ):
        advantage, returns = gae(torch.where(mask, reward, 0.0), value, mask, lam=lam)
        torch.testing.assert_close(advantage, wide(expected))
        torch.testing.assert_close(returns, torch.where(mask, advantage + value, 0.0))
    torch.testing.assert_close(returns, wide([1, 1, 1, 0]))
    advantage, _ = gae(torch.where(mask, reward, 0.0), value, mask, gamma=0.5, lam=0.5)
    torch.testing.assert_close(
        advantage, wide([-0.2 + 0.25 * -0.25 + 0.0625 * 0.3, -0.25 + 0.25 * 0.3, 0.3, 0])
    )


@given(
    st.integers(1, 30),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.integers(0, 9),
)
def test_is_the_plain_loop(T, lam, gamma, seed):
    """Random rewards, also on untrained tokens, random masks, a value behind the end: the loop that
    a reader would write.
    """
    reward, value, after = (
        normal(3, T, seed=seed),
        normal(3, T, seed=seed + 10),
        normal(3, seed=seed + 20),
    )
    mask = normal(3, T, seed=seed + 30) > 0
    advantage, returns = gae(reward, value, mask, after, gamma=gamma, lam=lam)
    for n in range(3):
        expected = plain(
            reward[n].tolist(), value[n].tolist(), mask[n].tolist(), float(after[n]), gamma, lam
        )
        torch.testing.assert_close(advantage[n], torch.tensor(expected[0], dtype=torch.float64))
        torch.testing.assert_close(returns[n], torch.tensor(expected[1], dtype=torch.float64))


def test_the_ends_of_lambda():
    """lam = gamma = 1: R - V; lam = 0: the TD error; V = 0, lam = 1: return_to_go; a wrong V leaves
    the returns of lam = 1 alone.
    """
    reward, value, mask = (
        normal(4, 7),
        normal(4, 7, seed=1),
        torch.arange(7) < torch.tensor([[7], [3], [1], [0]]),
    )
    reward = torch.where(mask, reward, 0.0)
    to_go = return_to_go(reward, mask)
    advantage, returns = gae(reward, value, mask, lam=1.0)
    torch.testing.assert_close(advantage, torch.where(mask, to_go - value, 0.0))
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(
        gae(reward, torch.zeros_like(value), mask, lam=1.0, gamma=0.9)[0],
        return_to_go(reward, mask, gamma=0.9),
    )
    here = torch.where(mask, value, 0.0)
    following = torch.nn.functional.pad(here[:, 1:], (0, 1))
    torch.testing.assert_close(
        gae(reward, value, mask, lam=0.0)[0], torch.where(mask, reward + following - value, 0.0)
    )


def test_T08_the_score_stands_on_the_last_token_and_nothing_follows_it():
    """[t0, t1, EOS, PAD, PAD] with score 2: the last advantage is 2 - V, whatever values stand on
    the padding.
    """
    reward, mask = (
        place_reward(wide([2.0])[0], torch.tensor([3]), 5),
        torch.tensor([[True, True, True, False, False]]),
    )
    advantage, _ = gae(reward, wide([0.1, 0.2, 0.3, 50, 60]), mask)
    assert float(advantage[0, 2]) == pytest.approx(1.7) and advantage[0, 3:].tolist() == [0, 0]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0)])
def test_T48_a_tool_changes_nothing(gamma, lam):
    """Tokens of a tool put between the policy's own, whatever values they have: the same
    advantages, and 0 on the tool's.
    """
    reward, value = normal(1, 4), normal(1, 4, seed=1)
    mask = torch.tensor([[False, True, False, False, True, True, False, True, False]])
    spread_reward, spread_value = normal(1, 9, seed=2) * 0, normal(1, 9, seed=3) * 100
    spread_reward[mask], spread_value[mask] = reward[0], value[0]
    spread = gae(spread_reward, spread_value, mask, gamma=gamma, lam=lam)
    alone = gae(reward, value, torch.ones(1, 4, dtype=torch.bool), gamma=gamma, lam=lam)
    for with_tool, without in zip(spread, alone, strict=True):
        torch.testing.assert_close(with_tool[mask], without[0])
        assert (with_tool[~mask] == 0).all()


def test_a_reward_on_a_tools_token_belongs_to_the_call_before_it():
    mask, value = (
        torch.tensor([[False, True, False, True, False]]),
        torch.zeros(1, 5, dtype=torch.float64),
    )
    assert gae(wide([0, 0, 3, 0, 5]), value, mask, lam=1.0)[0].tolist() == [[0, 8, 0, 5, 0]]
    assert gae(wide([0, 0, 3, 0, 5]), value, mask, lam=0.0)[0].tolist() == [[0, 3, 0, 5, 0]]
    assert gae(wide([7, 0, 0, 0, 5]), value, mask, lam=1.0)[0].tolist() == [[0, 5, 0, 5, 0]]


def test_a_row_that_was_cut_off_may_be_continued_by_its_value():
    """The same two rows; the second was cut off where the critic expects .8 more."""
    reward, value, mask = (
        wide([0, 1, 0], [0, 1, 0]),
        wide([0.5, 0.5, 0], [0.5, 0.5, 0]),
        torch.tensor([[True, True, False]] * 2),
    )
    advantage, returns = gae(reward, value, mask, wide([0, 0.8])[0], lam=1.0)
    torch.testing.assert_close(advantage, wide([0.5, 0.5, 0], [1.3, 1.3, 0]))
    torch.testing.assert_close(returns, wide([1, 1, 0], [1.8, 1.8, 0]))
    torch.testing.assert_close(gae(reward, value, mask, lam=1.0)[0][1], advantage[0])


def test_a_row_without_a_reward_is_weighed_by_nothing():
    mask = torch.ones(2, 2, dtype=torch.bool)
    advantage, returns = gae(wide([0, NAN], [0, 1]), wide([0.5, 0.5], [0.5, 0.5]), mask, lam=1.0)
    assert advantage.tolist() == [[0, 0], [0.5, 0.5]] and returns.tolist() == [[0, 0], [1, 1]]


def test_float64_rewards_and_float32_values_meet_in_float64():
    advantage, returns = gae(
        wide([0.1, 0.2]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    )
    assert advantage.dtype == returns.dtype == torch.float64


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_unbiased_for_every_lambda_with_the_exact_values(lam):
    """Over all completions: E[sum_t A_t grad log pi(y_t)] = grad E[R]. With wrong values only
    lambda = 1 keeps that.
    """
    language, X = Language(3, 3), 2
    logits, reward_XN = normal(X, language.S, 3), normal(X, language.N, seed=1)
    p, scores, grad = (
        language.logp(logits).exp(),
        language.token_scores(logits),
        language.ascent(logits, reward_XN),
    )

    def mean_gradient(V_XS):
        advantage = torch.stack(
            [
                gae(
                    place_reward(r, language.length_N, language.H),
                    V[language.state_NT],
                    language.mask_NT,
                    lam=lam,
                )[0]
                for r, V in zip(reward_XN, V_XS, strict=True)
            ]
        )
        return torch.einsum("xn,xnt,xntsv->xsv", p, advantage, scores)

    exact = language.action_values(logits, reward_XN)[1]
    torch.testing.assert_close(mean_gradient(exact), grad, atol=1e-12, rtol=0)
    bias = float(
        (mean_gradient(exact + 0.7 * normal(*exact.shape, seed=2)) - grad).norm() / grad.norm()
    )
    assert bias < 1e-12 if lam == 1.0 else bias > 1e-3


def test_a_row_that_was_cut_off_goes_on_and_a_finished_one_does_not():
    """R = (1, 1, nobody knows), V behind = (.3, .4, .5), the last two cut off: paid (1, 0, NaN),
    behind (0, .4, .5).
    """
    reward, after = torch.tensor([1.0, 1.0, NAN]), torch.tensor([0.3, 0.4, 0.5])
    paid, behind = bootstrapped(reward, after, torch.tensor([False, True, True]))
    assert paid[:2].tolist() == [1, 0] and bool(paid[2].isnan())
    assert torch.equal(behind, torch.tensor([0.0, 0.4, 0.5]))


def test_cut_off_by_hand():
    """Two tokens a row, V = (.5, .6), R = 1 and V behind = .4, lam = 1: returns 1 of the finished
    row, .4 of the one that was cut off; advantages (.5, .4) and (-.1, -.2).
    """
    cut = torch.tensor([False, True])
    paid, behind = bootstrapped(wide([1, 1])[0], wide([0.3, 0.4])[0], cut)
    reward = torch.stack([torch.zeros_like(paid), paid], 1)
    mask = torch.ones(2, 2, dtype=torch.bool)
    advantage, returns = gae(reward, wide([0.5, 0.6], [0.5, 0.6]), mask, behind, lam=1.0)
    torch.testing.assert_close(returns, wide([1, 1], [0.4, 0.4]))
    torch.testing.assert_close(advantage, wide([0.5, 0.4], [-0.1, -0.2]))


def test_paying_both_would_count_the_outcome_twice():
    """A row worth exactly 1 whose critic says 1 everywhere: nothing to learn. Paid its reward and
    V behind it, it would have an advantage of 1 at every token, at any height of V.
    """
    mask, value = torch.ones(1, 2, dtype=torch.bool), wide([1, 1])
    paid, behind = bootstrapped(wide([1])[0], wide([1])[0], torch.tensor([True]))
    right, _ = gae(torch.stack([torch.zeros_like(paid), paid], 1), value, mask, behind)
    assert right.tolist() == [[0, 0]]
    twice, _ = gae(wide([0, 1]), value, mask, wide([1])[0], lam=1.0)
    assert twice.tolist() == [[1, 1]]
