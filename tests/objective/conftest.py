"""A Batch from what an objective reads: weights, log-probabilities, lengths or a mask."""

import pytest
import torch

from laurel.core.sample import Batch, Comparisons, Key


def as_batch(weight_NT, *, old=None, ref=None, mask=None, lengths=None) -> Batch:
    """Rows of completion only (no prompt). mask: default all True up to `lengths`, which default to
    T.

    The first weight of a row is its grade, too, and as large is the weight of its comparison.
    """
    weight_NT = torch.as_tensor(weight_NT)
    N, T = weight_NT.shape
    length_N = torch.as_tensor(lengths) if lengths is not None else torch.full((N,), T)
    attention_NT = torch.arange(T) < length_N[:, None]
    zeros_NT = torch.zeros_like(weight_NT)
    grade_N = weight_NT[:, 0] if T else torch.zeros(N, dtype=weight_NT.dtype)
    return Batch(
        ids_NL=torch.zeros(N, T, dtype=torch.long),
        attention_NL=attention_NT,
        start_N=torch.zeros(N, dtype=torch.long),
        length_N=length_N,
        loss_mask_NT=attention_NT if mask is None else torch.as_tensor(mask) & attention_NT,
        logp_old_NT=zeros_NT if old is None else old.detach(),
        logp_ref_NT=zeros_NT if ref is None else ref.detach(),
        weight_NT=weight_NT,
        temperature_N=torch.ones(N),
        group_N=torch.zeros(N, dtype=torch.long),
        keys=tuple(Key("test", "toy", "0", n, 0) for n in range(N)),
        comparison=Comparisons.of(grade_N, weight_N=grade_N.abs()),
        reward_N=grade_N,
    )


@pytest.fixture(scope="session")
def make_batch():
    return as_batch
