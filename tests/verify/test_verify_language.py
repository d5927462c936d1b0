"""The enumerable language: what its docstrings say, by hand and by listing."""

import math
from itertools import product

import pytest
import torch

from laurel.core.errors import UsageError
from laurel.measure.best_of_n import best_of_n_bound
from laurel.verify.language import (
    Language,
    best_of_n,
    bradley_terry_loss,
    bradley_terry_scores,
    entropy,
    kl,
    log_partition,
    optimum,
)

F64 = torch.float64


def table(language, X=2, seed=0):
    return torch.randn(
        X, language.S, language.V, generator=torch.Generator().manual_seed(seed), dtype=F64
    )


@pytest.mark.parametrize(
    ("V", "H", "N"), [(3, 3, 15), (3, 4, 31), (4, 4, 121), (5, 4, 341), (3, 6, 127), (2, 1, 2)]
)
def test_counts_and_total_probability(V, H, N):
    language = Language(V, H)
    assert language.N == N == len(set(language.completions))
    assert torch.allclose(
        language.logp(table(language)).exp().sum(1), torch.ones(2, dtype=F64), atol=1e-13
    )


def test_listing_of_the_docstring():
    assert Language(3, 2).completions == ((2,), (0, 2), (1, 2), (0, 0), (0, 1), (1, 0), (1, 1))


@pytest.mark.parametrize(("V", "H"), [(1, 3), (3, 0)])
def test_a_language_without_words_is_refused(V, H):
    with pytest.raises(UsageError, match="two tokens"):
        Language(V, H)


def test_probability_of_a_completion_by_hand():
    language = Language(3, 2)
    logits = torch.log(
        torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]], dtype=F64)
    )
    p = dict(zip(language.completions, language.logp(logits).exp()[0].tolist(), strict=True))
    assert (
        p[(2,)] == pytest.approx(0.2)
        and p[(0, 2)] == pytest.approx(0.5 * 0.7)
        and p[(1, 0)] == pytest.approx(0.3 * 0.6)
    )
    assert language.visits(logits)[0].tolist() == pytest.approx([1, 0.5, 0.3])


def test_scores_are_the_derivatives_of_log_probabilities():
    language = Language(3, 3)
    logits = table(language).requires_grad_()
    scores = language.token_scores(logits.detach())
    for n, t in ((0, 0), (3, 1), (9, 2)):
        (grad,) = torch.autograd.grad(language.token_logp(logits)[0, n, t], logits)
        assert torch.allclose(grad[0], scores[0, n, t], atol=1e-14) and not grad[1].any()


def test_a_constant_reward_has_no_gradient():
    language = Language(4, 2)
    assert (
        language.ascent(table(language), torch.full((2, language.N), 3.0, dtype=F64)).abs().max()
        < 1e-14
    )


def test_tables_and_distributions_determine_each_other_even_with_zeros():
    language = Language(3, 2)
    p = torch.zeros(1, language.N, dtype=F64)
    p[0, 0], p[0, 4] = 0.25, 0.75
    assert torch.allclose(language.logp(language.logits_of(p)).exp(), p, atol=1e-12)


def test_values_of_prefixes_by_hand():
    language = Language(2, 2)  # (1) (0 1) (0 0)
    reward = torch.tensor([[1.0, 5.0, 3.0]], dtype=F64)
    even = torch.zeros(1, 2, 2, dtype=F64)
    Q, V = language.action_values(even, reward)
    assert Q[0].tolist() == [[4.0, 1.0], [3.0, 5.0]] and V[0].tolist() == [2.5, 4.0]
    _, soft = language.soft_values(even, reward, beta=1.0)
    assert float(soft[0, 1]) == pytest.approx(math.log(0.5 * math.exp(3) + 0.5 * math.exp(5)))


def test_divergence_entropy_and_tilt_by_hand():
    p, q = (torch.tensor([row], dtype=F64).log() for row in ([0.5, 0.5], [0.25, 0.75]))
    assert float(kl(p, q)) == pytest.approx(0.1438410, abs=1e-7)
    assert float(kl(torch.tensor([[1.0, 0.0]], dtype=F64).log(), q)) == pytest.approx(math.log(4))
    assert float(entropy(torch.full((1, 4), 0.25, dtype=F64).log())) == pytest.approx(
        1.3862944, abs=1e-7
    )
    reward = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert optimum(p, reward, 1.0).exp()[0].tolist() == pytest.approx(
        [0.7310586, 0.2689414], abs=1e-7
    )
    assert float(log_partition(p, reward, 1.0)) == pytest.approx(math.log((math.e + 1) / 2))
    assert torch.allclose(
        optimum(p, reward + 7, 1.0), optimum(p, reward, 1.0)
    )  # a constant added to the reward


def test_best_of_n_by_hand_by_listing_and_composed():
    p, score = torch.tensor([[0.5, 0.5]], dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64)
    assert best_of_n(p, score, 2)[0].tolist() == [0.75, 0.25]
    p, score = (
        torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=F64),
        torch.tensor([[2.0, 0.0, 2.0, 1.0]], dtype=F64),
    )
    listed = [0.0] * 4
    for draw in product(range(4), repeat=3):
        best = max(draw, key=lambda y: float(score[0, y]))  # the first of the best
        listed[best] += math.prod(float(p[0, y]) for y in draw)
    assert best_of_n(p, score, 3)[0].tolist() == pytest.approx(listed)
    assert torch.allclose(best_of_n(best_of_n(p, score, 3), score, 3), best_of_n(p, score, 9))
    assert best_of_n_bound(4) == pytest.approx(0.6362944, abs=1e-7)
    assert float(kl(best_of_n(p, score, 3).log(), p.log())) < best_of_n_bound(3)


def test_bradley_terry_scores_minimise_the_population_loss():
    reward, p = (
        torch.tensor([[2.0, 0.0, -1.0]], dtype=F64),
        torch.tensor([[0.2, 0.5, 0.3]], dtype=F64),
    )
    pairs = (p[:, :, None] * p[:, None, :]) / 1.0
    best = bradley_terry_scores(reward, p)
    assert float((p * best).sum()) == pytest.approx(0, abs=1e-15)
    least = float(bradley_terry_loss(best, reward, pairs))
    for seed in range(5):
        other = best + 0.1 * torch.randn(
            1, 3, generator=torch.Generator().manual_seed(seed), dtype=F64
        )
        assert float(bradley_terry_loss(other, reward, pairs)) > least
