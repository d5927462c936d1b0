"""KL estimators: values, and gradients by enumeration over three actions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.objective.kl import check_kl, entropy, exact_kl, k1, k2, k3, kl_loss

THETA = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
REF = torch.full((3,), 1 / 3, dtype=torch.float64).log()
TRUE = torch.tensor([0.0137942, -0.0678718, 0.0540775], dtype=torch.float64)
FORWARD = torch.tensor([0.0180384, -0.0730308, 0.0549924], dtype=torch.float64)
MU = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def expected_gradient(per_action, mu_A=None):
    """sum_a mu(a) grad value(a) at THETA, mu = pi by default: what sampling from mu gives on
    average.
    """
    theta = THETA.clone().requires_grad_()
    logp_A = theta.log_softmax(0)
    mu_A = logp_A.exp().detach() if mu_A is None else mu_A
    return torch.autograd.grad((mu_A * per_action(logp_A[:, None], mu_A)[:, 0]).sum(), theta)[0]


def pointwise(estimator):
    return lambda logp_A1, _: estimator(logp_A1, REF[:, None])


def in_loss(make_batch, name):
    """`kl_loss` on the batch of all three actions, sampled by mu."""

    def values(logp_A1, mu_A):
        batch = make_batch(
            torch.zeros(3, 1, dtype=torch.float64), old=mu_A.log()[:, None], ref=REF[:, None]
        )
        return kl_loss(logp_A1, batch, kl_estimator=name)

    return values


def close(tensor, expected):
    torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=0)


def test_T16_the_truth():
    """T16: KL .0134434, and its gradient, which `exact_kl` has."""
    theta = THETA.clone().requires_grad_()
    value = exact_kl(theta.log_softmax(0), REF)
    assert value.item() == pytest.approx(0.0134434, abs=1e-7)
    close(torch.autograd.grad(value, theta)[0], TRUE)


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_T16_kl_loss_is_the_truth_on_and_off_policy(make_batch, name):
    """T16: both estimators that the loss accepts match the true row, whoever sampled."""
    close(expected_gradient(in_loss(make_batch, name)), TRUE)
    close(expected_gradient(in_loss(make_batch, name), MU), TRUE)


def test_T16_what_the_estimators_do_as_written():
    """T16: k1 in the loss does nothing, k3 descends the forward KL (p - q), k2 is right on-policy
    only.
    """
    close(expected_gradient(pointwise(k1)), torch.zeros(3, dtype=torch.float64))
    close(expected_gradient(pointwise(k2)), TRUE)
    close(expected_gradient(pointwise(k3)), FORWARD)
    close(FORWARD, THETA.softmax(0) - REF.exp())
    close(
        expected_gradient(pointwise(k2), MU),
        torch.tensor([0.0324290, -0.0696867, 0.0372577], dtype=torch.float64),
    )


def test_k1_in_the_reward_is_the_truth():
    """The placement of REINFORCE and RLOO: A = -k1, as a constant, in A log pi."""
    close(expected_gradient(lambda logp, _: k1(logp, REF[:, None]).detach() * logp), TRUE)


def test_F2_k3_in_the_reward_is_not():
    """F2: k3 as a reward gives grad reverse KL - grad forward KL, which is why it is refused."""
    close(expected_gradient(lambda logp, _: k3(logp, REF[:, None]).detach() * logp), TRUE - FORWARD)


def test_exact_in_the_reward_has_no_gradient_at_its_token():
    close(expected_gradient(lambda logp, _: 0.0134434 * logp), torch.zeros(3, dtype=torch.float64))


def test_T15_values_at_one_action():
    """T15: k1 .0527016, k2 .0013887, k3 .0013647 at action 0."""
    p, q = THETA.log_softmax(0)[:1, None], REF[:1, None]
    for estimator, value in {k1: 0.0527016, k2: 0.0013887, k3: 0.0013647}.items():
        assert estimator(p, q).item() == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [5.0, 1e-2, 1e-5, 1e-8])
def test_T15_k3_is_never_negative(dtype, apart):
    """T15: 1e5 pairs, far apart and next to each other; equal models give exactly 0 for all
    three.
    """
    dice = torch.Generator().manual_seed(0)
    p = -5 * torch.rand(100, 1000, generator=dice, dtype=dtype)
    q = p + apart * torch.randn(100, 1000, generator=dice, dtype=dtype)
    assert (k3(p, q) >= 0).all() and (k2(p, q) >= 0).all()
    for estimator in (k1, k2, k3):
        assert (estimator(p, p) == 0).all()


def test_E1_k1_and_k3_are_unbiased_and_k2_is_not():
    """E1: expectations over the three actions against the exact KL."""
    p, q = THETA.log_softmax(0)[:, None], REF[:, None]
    exact = exact_kl(p[:, 0], q[:, 0])
    for estimator in (k1, k3):
        close((p.exp() * estimator(p, q)).sum(), exact)
    assert abs(float((p.exp() * k2(p, q)).sum() - exact)) > 1e-5


@given(st.integers(0, 50))
def test_k2_and_k3_have_the_same_gradient_in_every_sample(make_batch, seed):
    """ratio * d * grad log pi, whatever the three policies are; and the value of the k3 term is
    ratio * k3.
    """
    dice = torch.Generator().manual_seed(seed)
    logp, old, ref = (-3 * torch.rand(2, 3, generator=dice, dtype=torch.float64) for _ in range(3))
    logp.requires_grad_()
    batch = make_batch(torch.zeros(2, 3, dtype=torch.float64), old=old, ref=ref, lengths=[3, 1])
    ratio, d = (logp - old).exp().detach(), (logp - ref).detach()
    for name in ("k2", "k3"):
        grad = torch.autograd.grad(kl_loss(logp, batch, kl_estimator=name).sum(), logp)[0]
        torch.testing.assert_close(grad, ratio * d * batch.loss_mask_NT)
    torch.testing.assert_close(
        kl_loss(logp, batch, kl_estimator="k3").detach(),
        ratio * k3(logp, ref).detach() * batch.loss_mask_NT,
    )


def test_kl_loss_survives_a_collapsed_probability(make_batch):
    """log pi = -200 where the reference has -1: ratio * k3 would be 0 * inf in float32; the value
    is e^(ref - old) = 1, gradient 0.
    """
    logp = torch.tensor([[-200.0]], requires_grad=True)
    batch = make_batch(torch.zeros(1, 1), old=torch.tensor([[-1.0]]), ref=torch.tensor([[-1.0]]))
    value = kl_loss(logp, batch, kl_estimator="k3")
    value.sum().backward()
    assert value.item() == 1 and logp.grad.item() == 0


@pytest.mark.parametrize("name", ["k2", "k3"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_masked_positions_never_leak_into_kl(make_batch, name, bad):
    logp = torch.tensor([[-1.0, bad], [bad, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    dirty = torch.full((2, 2), -1.5).masked_fill(~mask, bad)
    value = kl_loss(
        logp, make_batch(torch.zeros(2, 2), old=dirty, ref=dirty, mask=mask), kl_estimator=name
    )
    value.sum().backward()
    assert (value[~mask] == 0).all() and value.isfinite().all()
    assert (logp.grad[~mask] == 0).all() and (logp.grad[mask] != 0).all()


def test_entropy_and_exact_kl_with_impossible_tokens():
    """pi(v) = 0 contributes 0 to both and has no gradient; uniform over V: log V; (.5, .5) to (.25,
    .75): .1438410.
    """
    logits = torch.tensor([0.0, 0.0, float("-inf")], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    assert entropy(logp).item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    ref = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64).log()
    assert exact_kl(logp, ref).item() == pytest.approx(0.1438410, abs=1e-7)
    (entropy(logp) + exact_kl(logp, ref)).backward()
    assert logits.grad.isfinite().all()
    assert exact_kl(
        logp.detach(), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).log()
    ).item() == float("inf")


@given(st.integers(2, 6), st.integers(0, 9))
def test_exact_kl_is_zero_only_for_equal_distributions(V, seed):
    dice = torch.Generator().manual_seed(seed)
    p, q = (
        torch.randn(4, 2, V, generator=dice, dtype=torch.float64).log_softmax(-1) for _ in range(2)
    )
    assert exact_kl(p, q).shape == entropy(p).shape == (4, 2)
    assert (exact_kl(p, q) > 0).all() and (exact_kl(p, p) == 0).all()
    torch.testing.assert_close(entropy(p) + exact_kl(p, q), -(p.exp() * q).sum(-1))  # cross-entropy


def test_combinations_that_do_not_optimise_the_kl_are_refused(make_batch):
    for placement, estimator in [
        ("reward", "k1"),
        ("loss", "k2"),
        ("loss", "k3"),
        ("loss", "exact"),
    ]:
        check_kl(placement, estimator)
    for placement, estimator, why in [
        ("loss", "k1", "zero"),
        ("reward", "k2", "wrong"),
        ("reward", "k3", "collapse"),
        ("reward", "exact", "no gradient"),
        ("loss", "k4", "unknown"),
        ("nowhere", "k1", "kl_placement"),
    ]:
        with pytest.raises(UsageError, match=why):
            check_kl(placement, estimator)
    batch = make_batch(torch.zeros(1, 1))
    with pytest.raises(UsageError, match="zero"):
        kl_loss(torch.zeros(1, 1), batch, kl_estimator="k1")
    with pytest.raises(ValueError, match="exact_kl"):
        kl_loss(torch.zeros(1, 1), batch, kl_estimator="exact")
