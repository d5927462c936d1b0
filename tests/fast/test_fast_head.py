"""The head's logits in tiles: along the vocabulary, kept or computed again, under a head that
learns and one that does not.
"""

import pytest
import torch

from laurel.core import machine
from laurel.fast import logprob, room
from laurel.fast.logprob import FrozenLogprobs, FusedLogprobs, tiles
from laurel.fast.room import logit_room

ROWS, WORDS, WIDTH = 9, 37, 5
GIB = 1 << 30
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Tiles may be four words wide, so that a small vocabulary is cut, too."""
    monkeypatch.setattr(logprob, "NARROW", 4)


def drawn(dtype=torch.float64):
    torch.manual_seed(3)
    hidden, weight = (
        torch.randn(*shape, dtype=dtype, requires_grad=True)
        for shape in ((ROWS, WIDTH), (WORDS, WIDTH))
    )
    return hidden, weight, torch.randint(0, WORDS, (ROWS,)), torch.rand(ROWS, dtype=dtype) + 0.5


def by_hand(hidden, weight, ids, temperature):
    logp = ((hidden @ weight.t()) / temperature[:, None]).log_softmax(1)
    return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def found(hidden, weight, ids, temperature, at_once, keep=0, dtype=torch.float64):
    """log pi, entropy, and the gradients of a sum in which no two rows count the same, twice from
    one graph.
    """
    if weight.requires_grad:
        logp, entropy = FusedLogprobs.apply(
            hidden, weight, ids, temperature, True, dtype, at_once, keep
        )
    else:
        logp, entropy = FrozenLogprobs.apply(hidden, weight, ids, temperature, True, dtype, at_once)
    of = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    loss = (logp * torch.linspace(-1, 2, ROWS, dtype=logp.dtype)).sum()
    torch.autograd.grad(loss, of, retain_graph=True)
    return [logp, entropy, *torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("at_once", [1, 3, 4, 20, ROWS * 4, ROWS * 10, ROWS * WORDS - 1, 10_000])
@pytest.mark.parametrize("learns", [True, False], ids=["the head learns", "a frozen head"])
def test_tiles_say_what_the_whole_matrix_says(at_once, learns):
    """Value, entropy and gradients, cut along rows, along words, and along both."""
    hidden, weight, ids, temperature = drawn()
    weight.requires_grad_(learns)
    logp, entropy = by_hand(hidden, weight, ids, temperature)
    of = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    expected = [
        logp,
        entropy,
        *torch.autograd.grad((logp * torch.linspace(-1, 2, ROWS, dtype=logp.dtype)).sum(), of),
    ]
    for ours, theirs in zip(
        found(hidden, weight, ids, temperature, at_once), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_how_many_logits_are_kept(dtype):
    """None, the first tiles, all but one, all."""
    given = drawn(torch.float32)
    without = found(*given, ROWS * 4, 0, dtype)
    for keep in (ROWS * 4 - 1, ROWS * 8, ROWS * (WORDS - 1), ROWS * WORDS):
        for ours, theirs in zip(found(*given, ROWS * 4, keep, dtype), without, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("learns", [True, False], ids=["the head learns", "a frozen head"])
def test_bfloat16_is_near_and_its_gradients_are_float32s_type(learns):
    hidden, weight, ids, temperature = drawn(torch.float32)
    weight.requires_grad_(learns)
    exact = found(hidden, weight, ids, temperature, 10_000, 0, torch.float32)
    for ours, theirs in zip(
        found(hidden, weight, ids, temperature, ROWS * 4, 0, torch.bfloat16), exact, strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)


def test_sure_and_impossible_words_in_other_tiles_stay_exact():
    """Logits of 3e4 and 0: log pi 0 and -3e4, entropy 0; no overflow where tiles are joined."""
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.zeros(WORDS, 1)
    weight[20] = 3e4
    logp, entropy = FusedLogprobs.apply(
        hidden, weight, torch.tensor([20, 2]), torch.ones(2), True, torch.float32, 8, 0
    )
    assert logp.tolist() == [0.0, -3e4] and entropy.tolist() == [0.0, 0.0]


def test_every_row_of_the_heads_gradient_is_written_once(monkeypatch):
    """Where all rows of logits fit beside each other: one product for each part of the weight,
    added to nothing.
    """
    real, written = logprob.add_product, []

    def counted(into, a, b, begun):
        if len(b) == ROWS:  # dz' h, not dz W
            written.append((len(into), begun))
        real(into, a, b, begun)

    monkeypatch.setattr(logprob, "add_product", counted)
    hidden, weight, ids, temperature = drawn()
    FusedLogprobs.apply(hidden, weight, ids, temperature, False, torch.float64, ROWS * 4, 0)[
        0
    ].sum().backward()
    assert (
        sum(rows for rows, _ in written) == WORDS
        and len(written) == 10
        and not any(begun for _, begun in written)
    )


def test_how_logits_are_cut(monkeypatch):
    monkeypatch.setattr(logprob, "NARROW", 1024)
    assert tiles(440, 262_144, 1 << 21) == (440, 4766)  # Gemma's vocabulary: all rows together
    assert tiles(20_000, 262_144, 1 << 21) == (2048, 1024)  # not narrower than products are fast
    assert tiles(20_000, 50, 1 << 21) == (20_000, 50)
    assert tiles(100_000, 50, 1 << 21) == (41_943, 50)  # a small vocabulary is cut along rows alone
    assert tiles(0, 50, 1 << 21).rows == 1


# --------------------------------------------------------------------------------------------------
# how many bytes


def test_the_room_for_logits_follows_the_memory(monkeypatch):
    """A thirty-second of all memory, a power of two; less where little is free in the end; never
    more than could be used.
    """
    cases = [
        ((22 * GIB, 24 * GIB), 0, GIB, 512 << 20),
        (
            (9 * GIB, 24 * GIB),
            0,
            GIB,
            512 << 20,
        ),  # what others use now changes nothing while there is enough
        ((9 * GIB, 24 * GIB), 8 * GIB, GIB, 256 << 20),
        ((9 * GIB, 24 * GIB), 20 * GIB, GIB, room.LEAST),
        ((22 * GIB, 24 * GIB), 0, 100 << 20, 128 << 20),
        ((22 * GIB, 24 * GIB), 0, 400, room.LEAST),
        ((900 * GIB, 1000 * GIB), 0, 99 * GIB, room.MOST),
        (None, 0, 99 * GIB, room.MOST),
    ]
    for memory, coming, useful, expected in cases:
        monkeypatch.setattr(machine, "memory_sizes", lambda memory=memory: memory)
        assert logit_room(CPU, coming, useful) == expected, (memory, coming, useful)


def test_the_room_on_a_gpu_is_read_from_it(monkeypatch):
    """80 GB, of which torch holds 30 and uses 10: 20 are free twice over."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * GIB)
    gpu = torch.device("cuda")
    assert room.device_memory(gpu) == (30 * GIB, 80 * GIB)
    assert (
        logit_room(gpu, 0, 99 * GIB) == 2 * GIB and logit_room(gpu, 28 * GIB, 99 * GIB) == GIB // 2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_or_not_it_is_the_same(dtype, monkeypatch):
    """Log-probabilities, entropies and gradients of the kernels beside those of torch's operators;
    a word that cannot be said; nothing.
    """
    hidden, weight, ids, temperature = drawn(torch.float32)
    compiled = found(hidden, weight, ids, temperature, ROWS * 4, 0, dtype)
    monkeypatch.setattr(logprob, "load_library", lambda: None)
    plain = found(hidden, weight, ids, temperature, ROWS * 4, 0, dtype)
    for ours, theirs in zip(compiled, plain, strict=True):
        close = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(ours, theirs, **close)


def test_impossible_words_and_what_is_no_number():
    """Of logits 0, 0, -inf: log 1/2 each and no more entropy than log 2. A row with a NaN says NaN,
    and only that row.
    """
    z = torch.tensor([[0.0, 0.0, float("-inf")], [0.0, float("nan"), 1.0]])
    said = logprob.tile_stats(
        z,
        torch.zeros(3, 1),
        torch.tensor([[1], [0]]),
        slice(0, 3),
        logprob.WantedStats(entropy=True),
        spare=False,
    )
    half = torch.tensor(0.5).log()
    torch.testing.assert_close(
        torch.stack([said.logp[0, 0], said.entropy[0, 0]]), torch.stack([half, -half])
    )
    assert said.logp[1].isnan() and said.entropy[1].isnan()
