"""Packing: masks from lengths, rewards by place, excluded rows out of loss and count."""

import pytest
import torch

from laurel.core.sample import Group, Key, Sample
from laurel.rollout.pack import (
    pack,
    reward_matrix,
    sample_rewards,
    sampled_comparisons,
    token_rewards,
)


def make(prompt, completion, *, sample=0, finish="eos", mask=None, logps=None, group="p"):
    """A sample by hand."""
    return Sample(
        Key("run", "src", group, sample, 0),
        prompt,
        completion,
        logps or (-1.0,) * len(completion),
        mask or (True,) * len(completion),
        1.0,
        finish,
        "",
        (),
    )


def test_T05_T07_masks_come_from_lengths_never_from_ids():
    """T05, T07: PAD == EOS == 2. Prompt and completion full of 2s: what exists is what was made,
    and the first EOS is trained on.
    """
    group = Group(
        "p",
        {},
        (
            make((2, 2), (9, 2)),
            make((2,), (2,), sample=1),
            make((5, 6, 2, 7), (8, 9, 7, 2), sample=2),
        ),
        rewards=(1.0, 0.0, 0.5),
    )
    batch = pack([group])
    assert batch.attention_NL.int().tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1] * 8,
    ]
    assert batch.loss_mask_NT.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.ids_NL[0].tolist() == [2, 2, 9, 2, 0, 0, 0, 0]


def test_T08_terminal_reward_lies_on_the_last_token():
    """T08: response [t0, t1, EOS, PAD, PAD], score s: token rewards [0, 0, s, 0, 0]."""
    group = Group(
        "p", {}, (make((1,), (7, 8, 2)), make((1,), (7, 8, 9, 9, 2), sample=1)), rewards=(3.0, 0.0)
    )
    batch = pack([group])
    assert token_rewards(batch, reward_matrix([group]))[0].tolist() == [0, 0, 3, 0, 0]


def test_T03_truncated_rows_leave_numerator_and_denominator():
    """T03: lengths 2 and 4, the second cut off: masked, it keeps its place, its length, and no
    loss.
    """
    group = Group(
        "p",
        {},
        (make((1,), (7, 2)), make((1,), (7, 8, 9, 9), sample=1, finish="length")),
        rewards=(1.0, 0.0),
    )
    batch = pack([group], mask_truncated=True)
    assert batch.loss_mask_NT.sum(1).tolist() == [2, 0]
    assert batch.length_N.tolist() == [2, 4]
    assert pack([group]).loss_mask_NT.sum(1).tolist() == [2, 4]


def test_excluded_samples_are_nan_and_untrained():
    group = Group("p", {}, (make((1,), (7, 2)), make((1,), (8, 2), sample=1)), rewards=(1.0, None))
    batch = pack([group])
    assert batch.loss_mask_NT.sum(1).tolist() == [2, 0]
    assert reward_matrix([group])[0, 0] == 1 and reward_matrix([group])[0, 1].isnan()


def test_kl_in_the_reward_counts_trained_tokens_only():
    """R - beta * sum k1 per sample, and the same split over tokens; an environment's token (mask 0)
    costs nothing.
    """
    group = Group(
        "p",
        {},
        (make((1,), (7, 8, 9), mask=(True, False, True), logps=(-1.0, 0.0, -2.0)),),
        rewards=(1.0,),
    )
    batch = pack([group])
    batch = batch.replace(logp_ref_NT=torch.tensor([[-1.5, -9.0, -4.0]]))
    assert sample_rewards(batch, reward_matrix([group]), 0.1).item() == pytest.approx(
        1 - 0.1 * (0.5 + 2.0)
    )
    assert token_rewards(batch, reward_matrix([group]), 0.1)[0].tolist() == pytest.approx(
        [-0.05, 0.0, 1 - 0.2]
    )


def test_columns_must_agree():
    with pytest.raises(ValueError, match="differ in length"):
        Sample(Key("r", "s", "p", 0, 0), (1,), (1, 2), (0.0,), (True, True), 1.0, "eos", "", ())
    with pytest.raises(ValueError, match="results"):
        Group("p", {}, (make((1,), (2,)),), rewards=(1.0, 2.0))


def test_soft_labels_of_sampled_comparisons_by_hand():
    """soft_label = (1 + chance of the chosen - chance of the rejected) / 2: of two answers it is
    the judge's own chance; of four, best .9 and worst .2, it is .85. Without a comparison, none.
    """
    two = sampled_comparisons(
        torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]),
        torch.tensor([[0.8, 0.2], [0.45, 0.55], [0.5, 0.5]]),
    )
    flips = [0.2, 0.2, 0.45, 0.45, 0.0, 0.0]
    torch.testing.assert_close(two.flip_N, torch.tensor(flips))
    assert two.compared_N.tolist() == [True, True, True, True, False, False]
    four = sampled_comparisons(
        torch.tensor([[0.0, 1.0, -1.0, 0.0]]), torch.tensor([[0.5, 0.9, 0.2, float("nan")]])
    )
    torch.testing.assert_close(four.flip_N, torch.full((4,), 0.15))
    hard = sampled_comparisons(torch.tensor([[1.0, -1.0]]))
    assert hard.flip_N.tolist() == [0.0, 0.0]
