"""Log-probabilities: the worked value, chunks against the whole, and memory that does not grow with
the vocabulary.
"""

import ctypes
import resource

import pytest
import torch
from processes import printed

from laurel.fast import logprob
from laurel.fast.logprob import FusedLogprobs, chunked_kl, chunked_logprobs, token_logprobs


def test_T12_temperature_is_applied_once():
    """T12: logits [2, 0] at temperature .5 give log p(0) = -0.0181500, not -0.1269280."""
    half = token_logprobs(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([0.5])).logp
    one = token_logprobs(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([1.0])).logp
    assert half.item() == pytest.approx(-0.0181500, abs=1e-6)
    assert one.item() == pytest.approx(-0.1269280, abs=1e-6)


HEADS = {
    "linear": lambda: torch.nn.Linear(5, 11, bias=False).double(),
    "bias": lambda: torch.nn.Linear(5, 11).double(),
    "capped": lambda: torch.nn.Sequential(torch.nn.Linear(5, 11), torch.nn.Tanh()).double(),
}


def drawn(count=23):
    torch.manual_seed(0)
    hidden = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(0, 11, (count,)), torch.rand(count, dtype=torch.float64) + 0.5


def by_hand(head, hidden, ids, temperature):
    """Row by row, in the order of the rows: log pi of the id, and the entropy."""
    rows = [(head(h[None])[0] / t).log_softmax(0) for h, t in zip(hidden, temperature, strict=True)]
    logp = torch.stack([row[i] for row, i in zip(rows, ids, strict=True)])
    return logp, torch.stack([-(row.exp() * row).sum() for row in rows])


def gradients(value, *of):
    """Of a sum in which no two rows count the same."""
    weight = torch.linspace(-1, 2, len(value), dtype=value.dtype)
    return torch.autograd.grad((value * weight).sum(), of, retain_graph=True)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [1, 4, 22, 23, 100], ids="{} rows at once".format)
def test_rows_keep_their_order_whatever_the_chunk(kind, rows):
    """Without a gradient as with one, and whichever entropy is asked for: each row's own number, in
    its own place.
    """
    (hidden, ids, temperature), head = drawn(), HEADS[kind]()
    logp, entropy = by_hand(head, hidden, ids, temperature)
    for how in ("none", "value", "grad"):
        for record in (False, True):
            with torch.set_grad_enabled(record):
                found = chunked_logprobs(
                    head, hidden, ids, temperature, entropy=how, chunk=11 * rows
                )
            torch.testing.assert_close(found.logp, logp)
            if how != "none":
                torch.testing.assert_close(found.entropy, entropy)
                assert found.entropy.requires_grad == (how == "grad" and record)
        for ours, theirs in zip(
            *(gradients(x, hidden, *head.parameters()) for x in (found.logp, logp)), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        *(gradients(x, hidden, *head.parameters()) for x in (found.entropy, entropy)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 4, 22, 23, 100], ids="{} rows at once".format)
def test_exact_kl_keeps_its_rows_whatever_the_chunk(rows):
    """Two heads, two bodies, a temperature per row; its gradient goes to the policy alone."""
    (hidden, _, temperature), head, head_ref = drawn(), HEADS["bias"](), HEADS["capped"]()
    hidden_ref = torch.randn(23, 5, dtype=torch.float64)
    logp, logp_ref = (
        torch.stack([(h(x) / t).log_softmax(0) for x, t in zip(xs, temperature, strict=True)])
        for h, xs in ((head, hidden), (head_ref, hidden_ref))
    )
    expected = (logp.exp() * (logp - logp_ref)).sum(1)
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_kl(head, hidden, head_ref, hidden_ref, temperature, chunk=11 * rows), expected
        )
    found = chunked_kl(head, hidden, head_ref, hidden_ref, temperature, chunk=11 * rows)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        *(gradients(x, hidden, *head.parameters()) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("record", [False, True], ids=["no gradient", "gradient"])
def test_no_more_logits_are_alive_than_asked_for(record):
    """A head is never given more rows than the chunk has room for, and an empty batch is legal."""
    (hidden, ids, temperature), head, seen = drawn(), HEADS["bias"](), []

    def counted(x):
        seen.append(len(x))
        return head(x)

    with torch.set_grad_enabled(record):
        chunked_logprobs(counted, hidden, ids, temperature, chunk=11 * 4 + 10)
        chunked_kl(counted, hidden, head, hidden.detach(), temperature, chunk=11 * 4 + 10)
        assert max(seen) == 4 and len(seen) == 2 * (1 + 6)
        assert (
            len(chunked_logprobs(head, hidden[:0], ids[:0], temperature[:0], entropy="value").logp)
            == 0
        )


@pytest.mark.parametrize("entropy", ["none", "value", "grad"])
def test_chunks_equal_the_whole_in_value_and_gradient(entropy):
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11)
    hidden = torch.randn(23, 5, requires_grad=True)
    ids, temperature = torch.randint(0, 11, (23,)), torch.rand(23) + 0.5

    def gradients(chunk):
        head.zero_grad()
        hidden.grad = None
        stats = chunked_logprobs(head, hidden, ids, temperature, entropy=entropy, chunk=chunk)
        (stats.logp.sum() + (stats.entropy.sum() if entropy == "grad" else 0)).backward()
        return [
            stats.logp.detach(),
            hidden.grad.clone(),
            head.weight.grad.clone(),
            head.bias.grad.clone(),
        ]

    for whole, parts in zip(gradients(1 << 20), gradients(11 * 4), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_entropy_of_a_uniform_and_of_a_sure_distribution():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]])
    entropy = token_logprobs(logits, torch.tensor([0, 0]), torch.ones(2), entropy="value").entropy
    assert entropy.tolist() == pytest.approx([1.3862944, 0.0], abs=1e-6)


def test_exact_kl_and_its_gradient():
    """T16's policy: KL to uniform over 3 actions is .0134434, its gradient [.0137942, -.0678718,
    .0540775].
    """
    logits = torch.tensor([[0.2, -0.1, 0.3]], requires_grad=True)
    kl = chunked_kl(lambda h: h, logits, lambda h: h, torch.zeros(1, 3), torch.ones(1))
    kl.sum().backward()
    assert kl.item() == pytest.approx(0.0134434, abs=1e-6)
    assert logits.grad[0].tolist() == pytest.approx([0.0137942, -0.0678718, 0.0540775], abs=1e-6)


def peak(how, M, V):
    """Print the most memory that value and gradient of log-probs take, beyond what the process has
    before, in bytes.
    """
    at_once = ctypes.CDLL(None).mallopt(
        -3, 1 << 20
    )  # M_MMAP_THRESHOLD: freed is given back, the peak is of live tensors only
    assert at_once == 1
    torch.set_num_threads(1)
    D = 16
    head = torch.nn.Linear(D, V, bias=False)
    hidden = torch.randn(M, D, requires_grad=True)
    ids = torch.randint(0, V, (M,))
    chunked_logprobs(head, hidden[:4], ids[:4], torch.ones(4)).logp.sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if how == "chunked":
        logp = chunked_logprobs(head, hidden, ids, torch.ones(M)).logp
    else:
        logp = token_logprobs(head(hidden), ids, torch.ones(M)).logp
    logp.sum().backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def test_T37_memory_stays_below_a_third_of_the_logits(tmp_path):
    """T37: B = 4, T = 512, V = 50,000: extra memory of value and gradient below 0.3 x B T V 4
    bytes; the naive way breaks that.
    """

    limit = 0.3 * 4 * 512 * 50_000 * 4
    chunked = int(printed(peak, "chunked", 4 * 512, 50_000, log=tmp_path / "chunked"))
    naive = int(
        printed(peak, "naive", 512, 50_000, log=tmp_path / "naive")
    )  # a quarter of the rows is too much already
    print(f"chunked {chunked / limit:.2f}, naive {naive / limit:.2f} of the limit")
    assert 0 < chunked < limit < naive


@pytest.mark.parametrize("chunk", [11 * 4, 1 << 20])
def test_the_fused_gradient_is_that_of_differences(chunk):
    """gradcheck in float64: hidden states, weight, temperatures that differ; the entropy is there
    and has no gradient.
    """
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((9, 5), (11, 5))
    )
    ids, temperature = torch.randint(0, 11, (9,)), torch.rand(9, dtype=torch.float64) + 0.5

    def fused(hidden, weight):
        return FusedLogprobs.apply(hidden, weight, ids, temperature, False, torch.float64, chunk)[0]

    assert torch.autograd.gradcheck(fused, (hidden, weight))
    entropy = FusedLogprobs.apply(hidden, weight, ids, temperature, True, torch.float64, chunk)[1]
    expected = token_logprobs(hidden @ weight.t(), ids, temperature, entropy="value")
    torch.testing.assert_close(entropy, expected.entropy)
    torch.testing.assert_close(fused(hidden, weight), expected.logp)
    assert not entropy.requires_grad


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_fused_and_differentiated_head_agree(dtype, limit):
    """A linear layer and a function around it: the second is differentiated by autograd. In
    bfloat16 to its rounding.
    """
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 300, bias=False), torch.randn(50, 16, requires_grad=True)
    ids, temperature, found = torch.randint(0, 300, (50,)), torch.rand(50) + 0.5, []
    for way in (head, lambda x: head(x)):
        hidden.grad = head.weight.grad = None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logp = chunked_logprobs(way, hidden, ids, temperature, chunk=300 * 8).logp
        (logp * torch.linspace(-1, 1, 50)).sum().backward()
        found.append([logp.detach(), hidden.grad, head.weight.grad])
    assert all(float((a - b).norm() / b.norm()) < limit for a, b in zip(*found, strict=True))


def test_bfloat16_products_on_a_cpu_are_of_few_numbers_of_tokens(monkeypatch):
    """Seventy tokens are multiplied as 128, and say what each says alone; in float32 as 70."""
    head, hidden = (
        torch.nn.Linear(8, 30, bias=False),
        torch.randn(70, 8, generator=torch.Generator().manual_seed(2), requires_grad=True),
    )
    ids, ones, seen = torch.arange(70) % 30, torch.ones(70), []
    plain = logprob.look
    monkeypatch.setattr(
        logprob, "look", lambda cooled, *more: seen.append(len(cooled)) or plain(cooled, *more)
    )
    exact = chunked_logprobs(head, hidden, ids, ones, entropy="value")
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_logprobs(head, hidden, ids, ones, entropy="value")
    assert seen == [70, 128] and found.logp.shape == found.entropy.shape == (70,)
    torch.testing.assert_close(found.logp, exact.logp, atol=0.03, rtol=0)
    (slope,) = torch.autograd.grad(found.logp.sum(), hidden)
    (wanted,) = torch.autograd.grad(exact.logp.sum(), hidden)
    assert float((slope - wanted).norm() / wanted.norm()) < 0.02
