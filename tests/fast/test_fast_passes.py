"""RMS norm, rotary position and the gated unit in one compiled pass each way, against the modules
they stand for.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from laurel.fast import kernels, packed

pytestmark = pytest.mark.skipif(
    kernels.load_library() is None, reason="no C++ compiler: the modules themselves run"
)
CONFIG = LlamaConfig(hidden_size=40, intermediate_size=72, num_attention_heads=4)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def norm_of(width, eps=1e-5):
    module = LlamaRMSNorm(width, eps)
    module.weight.data = 1 + drawn(width) / 4
    return module


def mlp_of():
    torch.manual_seed(0)
    return LlamaMLP(CONFIG)


def outcome(function, module, x):
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = function(x)
    (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def close(ours, theirs):
    return all(float((a - b).norm() / b.norm()) < 2e-6 for a, b in zip(ours, theirs, strict=True))


def test_a_norm_worked_by_hand():
    """x = (3, 4), w = (1, 2): rms^2 = 12.5; of sum(g y), g = (1, 0): dx = (1 - 9 / 25, -12 / 25) /
    rms, dw = (3, 0) / rms.
    """
    module, x = LlamaRMSNorm(2, 0.0), torch.tensor([[3.0, 4.0]], requires_grad=True)
    module.weight.data = torch.tensor([1.0, 2.0])
    y = packed.rms_norm(module, x)
    y[0, 0].backward()
    rms = 12.5**0.5
    torch.testing.assert_close(y, torch.tensor([[3 / rms, 8 / rms]]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.64 / rms, -0.48 / rms]]))
    torch.testing.assert_close(module.weight.grad, torch.tensor([3 / rms, 0.0]))


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (300, 3, 40), (5, 17)], ids=str)
def test_a_norm_and_its_gradients_are_the_modules(shape):
    module, x = norm_of(shape[-1]), drawn(*shape)
    assert close(
        outcome(lambda x: packed.rms_norm(module, x), module, x), outcome(module, module, x)
    )


@pytest.mark.parametrize("rows", [1, 9, 300])
def test_the_gated_unit_and_its_gradients_are_the_modules(rows):
    module, x = mlp_of(), drawn(rows, 40)
    assert close(
        outcome(lambda x: packed.gated_mlp(module, x), module, x), outcome(module, module, x)
    )


def test_rows_that_lie_apart_are_read_right():
    module, x = norm_of(20), drawn(6, 40)[:, ::2]
    assert close(
        outcome(lambda x: packed.rms_norm(module, x), module, x), outcome(module, module, x)
    )
    gate, up = drawn(6, 80).chunk(2, -1)
    torch.testing.assert_close(packed.GatedFunction.apply(gate, up), F.silu(gate) * up)


@pytest.mark.parametrize("shape", [(1, 1, 2), (300, 3, 32), (7, 5, 18)], ids=str)
def test_a_rotation_turns_pairs_of_numbers_and_its_gradient_turns_back(shape):
    """As complex numbers: (a + ib) e^{i angle}; of apart-lying gradients too."""
    x, angle = drawn(*shape).requires_grad_(), drawn(shape[0], 1, shape[-1] // 2)
    y = packed.RotaryFunction.apply(x, angle.cos(), angle.sin())
    turned = torch.complex(*x.detach().chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], -1))
    y.transpose(0, 1).sum().backward()
    back = torch.complex(*torch.ones(shape).chunk(2, -1)) * torch.polar(
        torch.ones_like(angle), -angle
    )
    torch.testing.assert_close(x.grad, torch.cat([back.real, back.imag], -1))


def test_a_rotation_of_other_numbers_is_the_same():
    x, angle = drawn(9, 3, 8), drawn(9, 1, 4)
    double = packed.RotaryFunction.apply(x.double(), angle.double().cos(), angle.double().sin())
    torch.testing.assert_close(
        packed.RotaryFunction.apply(x, angle.cos(), angle.sin()), double.float()
    )


@pytest.mark.parametrize("wide", [True, False])
def test_a_norm_under_autocast_rounds_once(wide):
    """What it says is the float32 result, rounded where a product reads it; its gradients are those
    of the module, within bfloat16's.
    """
    module, x = norm_of(40), drawn(30, 40)
    for given in (x, x.bfloat16()):
        exact = outcome(module, module, given.float())
        with torch.autocast("cpu", torch.bfloat16):
            ours = outcome(lambda x: packed.rms_norm(module, x, wide=wide), module, given)
        assert (
            ours[0].dtype == (torch.float32 if wide else torch.bfloat16)
            and ours[1].dtype == given.dtype
        )
        torch.testing.assert_close(ours[0], exact[0] if wide else exact[0].bfloat16())
        assert all(
            float((a - b).norm() / b.norm()) < 4e-3
            for a, b in zip(ours[1:], exact[1:], strict=True)
        )


def test_a_gated_unit_and_a_rotation_of_bfloat16_are_those_of_float32_rounded():
    gate, up, x, angle = (
        drawn(9, 40).bfloat16(),
        drawn(40, 9).t().bfloat16(),
        drawn(9, 3, 8).bfloat16(),
        drawn(9, 1, 4),
    )

    def both(function, *given):
        given = [one.detach().clone().requires_grad_() for one in given]
        said = function(*given)
        return [said, *torch.autograd.grad(said.float().square().sum(), given)]

    def turned(x):
        return packed.RotaryFunction.apply(x, angle.cos(), angle.sin())

    with torch.autocast("cpu", torch.bfloat16):
        ours = [*both(packed.GatedFunction.apply, gate, up), *both(turned, x)]
    exact = [*both(packed.GatedFunction.apply, gate.float(), up.float()), *both(turned, x.float())]
    ours, exact = ([one.detach() for one in them] for them in (ours, exact))
    assert {one.dtype for one in ours} == {torch.bfloat16}
    assert all(float((a - b).norm() / b.norm()) < 8e-3 for a, b in zip(ours, exact, strict=True))


@pytest.mark.parametrize("near", [None, 9], ids=["all", "window"])
@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 3, 64), (2, 1, 48)], ids=str)
@pytest.mark.parametrize(
    ("rows", "prompt", "low", "high"), [(4, 6, 5, 30), (7, 1, 1, 40), (5, 90, 1, 70)]
)
def test_attention_of_packed_tokens_is_attention(rows, prompt, low, high, heads, near):
    """Against torch's own over padded rows in float64: what it says, and the gradients of queries,
    keys and values.
    """
    H, K, d = heads
    coin = torch.Generator().manual_seed(rows + prompt)
    length_N = torch.randint(low, high + 1, (rows,), generator=coin)
    wide = prompt + high
    attention_NL = torch.arange(wide)[None] < (prompt + length_N)[:, None]
    ids_NL = torch.randint(3, 90, (rows, wide), generator=coin)
    ids_NL[:2, :prompt] = ids_NL[0, :prompt]
    layout = packed.arrange_rows(
        ids_NL, attention_NL, torch.full((rows,), prompt), torch.tensor([0, 0, *range(1, rows - 1)])
    )
    q, k, v = (
        torch.randn(len(layout.ids_M), n, d, generator=coin, requires_grad=True) for n in (H, K, K)
    )

    def torchs(q, k, v):
        said = []
        for call in layout.calls:
            mask = call.within(near)
            each = (
                packed.heads_as_rows(q, call.query_BT),
                packed.heads_as_rows(k, call.key_BS),
                packed.heads_as_rows(v, call.key_BS),
            )
            out = F.scaled_dot_product_attention(
                *each, mask, scale=0.3, is_causal=mask is None, enable_gqa=True
            )
            said.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        return F.embedding(layout.back_M, torch.cat(said)).view(-1, H, d)

    def both(function, *given):
        given = [one.detach().clone().requires_grad_() for one in given]
        said = function(*given)
        slopes = torch.autograd.grad(
            (said * torch.arange(said.numel()).view(said.shape).cos()).sum(), given
        )
        return [said.detach().float(), *(slope.float() for slope in slopes)]

    ours = both(
        lambda *x: packed.PackedAttention.apply(*x, layout.jobs, layout.groups, near or 0, 0.3),
        q,
        k,
        v,
    )
    assert close(ours, both(torchs, q.double(), k.double(), v.double()))


def test_tokens_that_nobody_sees_change_nothing():
    """Under autocast tokens come in multiples of 64: gradients are finite, and those of bfloat16
    products of the real tokens.
    """
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    body = Qwen3Model(Qwen3Config(vocab_size=50, intermediate_size=48, **sizes))
    ids_NL = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    layout = packed.arrange_rows(
        ids_NL, torch.ones_like(ids_NL, dtype=torch.bool), torch.full((3,), 4), torch.arange(3)
    )
    assert len(layout.even().ids_M) == 64 and torch.equal(
        layout.even().even().ids_M, layout.even().ids_M
    )

    def slopes():
        body.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = F.embedding(layout.place_NL, packed.encode(body, layout))
        (hidden * torch.arange(hidden.numel()).view(hidden.shape).cos()).sum().backward()
        return [hidden.detach(), *(p.grad.clone() for p in body.parameters())]

    ours = slopes()
    even, packed.Layout.even = packed.Layout.even, lambda self: self
    try:
        plain = slopes()
    finally:
        packed.Layout.even = even
    assert all(bool(one.isfinite().all()) for one in ours)
    assert all(
        float((a - b).norm()) <= 1e-2 * float(b.norm()) for a, b in zip(ours, plain, strict=True)
    )


@pytest.mark.parametrize("change", ["double", "width", "cap", "dropout", "no compiler"])
def test_attention_of_another_kind_is_left_to_torch(change, monkeypatch):
    q = torch.zeros(
        3,
        2,
        24 if change == "width" else 32,
        dtype=torch.double if change == "double" else torch.float32,
    )
    assert packed.can_attend(torch.zeros(3, 2, 32), None, 0.0)
    if change == "no compiler":
        monkeypatch.setattr(packed, "load_library", lambda: None)
    assert not packed.can_attend(
        q, 30.0 if change == "cap" else None, 0.1 if change == "dropout" else 0.0
    )


def test_large_numbers_overflow_nowhere():
    gate = torch.tensor([[-200.0, 200.0, 0.0, 88.5]]).requires_grad_()
    y = packed.GatedFunction.apply(gate, torch.ones(1, 4))
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([[0.0, 200.0, 0.0, 88.5]]))
    torch.testing.assert_close(gate.grad, torch.tensor([[0.0, 1.0, 0.5, 1.0]]))


def test_the_number_of_threads_is_torchs():
    """The parts of a weight's gradient are one a thread: more threads than parts would write beyond
    them.
    """
    module, x, before = norm_of(40), drawn(300, 40), torch.get_num_threads()
    try:
        outcomes = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outcomes.append(outcome(lambda x: packed.rms_norm(module, x), module, x))
    finally:
        torch.set_num_threads(before)
    assert close(outcomes[0], outcomes[1])
    assert close(outcomes[0], outcomes[2])


def test_a_second_derivative_is_refused_not_wrong():
    x = drawn(3, 40).requires_grad_()
    (slope,) = torch.autograd.grad(
        packed.rms_norm(norm_of(40), x).pow(2).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    "change", ["hook", "bfloat16", "wide weight", "autocast", "another class", "no compiler"]
)
def test_what_the_kernels_do_not_do_is_left_to_the_module(change, monkeypatch):
    module, x = norm_of(40), drawn(3, 40)
    called = []
    monkeypatch.setattr(packed, "call_kernel", lambda name, *arguments: called.append(name))
    if change == "hook":
        module.register_forward_hook(lambda *_: None)
    if change == "bfloat16":
        x = x.bfloat16()
    if change == "wide weight":
        module.double()
    if change == "another class":
        module = torch.nn.RMSNorm(40)
    if change == "no compiler":
        monkeypatch.setattr(packed, "load_library", lambda: None)
    with torch.autocast("cpu", torch.float16, enabled=change == "autocast"):
        torch.testing.assert_close(packed.rms_norm(module, x), module(x))
        gated = mlp_of().to(x.dtype)
        gated.act_fn = (
            torch.nn.SiLU()
            if change in ("bfloat16", "autocast", "no compiler")
            else torch.nn.GELU()
        )
        torch.testing.assert_close(packed.gated_mlp(gated, x), gated(x))
    assert called == []
