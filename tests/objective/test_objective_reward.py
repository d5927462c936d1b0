"""Reward-model objectives: values by hand, gradients, invariances, and the optima that the papers
state.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.core.sample import Comparisons, Key
from laurel.objective.reward import (
    bradley_terry,
    comparison_metrics,
    imitation,
    imitation_metrics,
    k_wise,
    last_score,
    outcome,
    outcome_metrics,
    plackett_luce,
    process,
    process_metrics,
    some_pairs,
)
from laurel.objective.unit import comparison_mean, reduce_loss

COMPARISONS = [bradley_terry, k_wise, plackett_luce]
LN2, SP1, SP2 = math.log(2), 0.3132617, 0.1269280  # softplus of 0, -1, -2


def rows(make_batch, scores, grades, groups=None, *, margin=0.0, lengths=None, mask=None, T=3):
    """score_NT with each row's score at its last token and garbage before it, and the batch."""
    N = len(scores)
    lengths = lengths or [T] * N
    score_NT = torch.full((N, T), 77.0, dtype=torch.float64)
    score_NT[torch.arange(N), torch.tensor(lengths) - 1] = torch.tensor(scores, dtype=torch.float64)
    grade_NT = torch.tensor(grades, dtype=torch.float64)[:, None].expand(N, T).contiguous()
    batch = make_batch(grade_NT, lengths=lengths, mask=mask)
    margin_N = torch.as_tensor(margin, dtype=torch.float64).expand(N)
    comparison = replace(batch.comparison, margin_N=margin_N)
    group_N = torch.tensor(groups or [0] * N)
    return score_NT.requires_grad_(), batch.replace(group_N=group_N, comparison=comparison)


def gradient(values, at):
    return torch.autograd.grad(values.sum(), at)[0]


def test_T05_the_score_is_at_the_last_real_token_by_length(make_batch):
    """T05: index length - 1, whatever the ids (all 0 here) and whatever stands behind."""
    score_NT = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    batch = make_batch(torch.ones(3, 3), lengths=[2, 3, 1])
    assert last_score(score_NT, batch).tolist() == [2, 6, 7]
    holes = make_batch(
        torch.ones(3, 3),
        lengths=[2, 3, 1],
        mask=[[False, True, True], [True, False, True], [True, True, True]],
    )
    assert last_score(score_NT, holes).tolist() == [
        2,
        6,
        7,
    ]  # by its length, not by how many of its tokens are trained


@pytest.mark.parametrize(
    ("options", "margin", "expected"),
    [
        ({}, 0.0, SP1),
        ({}, 1.0, LN2),
        ({"use_margin": False}, 1.0, SP1),
        ({"label_smoothing": 0.1}, 0.0, 0.9 * SP1 + 0.1 * 1.3132617),
        ({"center_rewards_coefficient": 0.01}, 0.0, SP1 + 0.01 * 9),
    ],
)
def test_bradley_terry_by_hand(make_batch, options, margin, expected):
    score, batch = rows(make_batch, [1.0, 2.0], [-1.0, 1.0], margin=margin, lengths=[2, 3])
    assert bradley_terry(score, batch, **options).tolist() == pytest.approx([expected], abs=1e-6)


def test_rankings_by_hand(make_batch):
    """r (2, 1, 0) best first; the rows stand in another order, and a second group comes first by
    number.
    """
    score, batch = rows(
        make_batch, [0.0, 2.0, 1.0, 5.0, 4.0], [-3.0, -1, -2, 1, -1], [4, 4, 4, 1, 1]
    )
    assert k_wise(score, batch).tolist() == pytest.approx([SP1, (2 * SP1 + SP2) / 3], abs=1e-6)
    assert plackett_luce(score, batch).tolist() == pytest.approx([SP1, 0.4076059 + SP1], abs=1e-6)


@settings(deadline=None)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0.1, 1))
def test_R5_two_rows_are_bradley_terry_in_all_three(make_batch, a, b, w):
    score, batch = rows(make_batch, [a, b], [w, -w])
    pair, wise, luce = (objective(score, batch) for objective in COMPARISONS)
    torch.testing.assert_close(pair, wise)
    torch.testing.assert_close(pair, luce)


def test_gradients_are_weighted_scores(make_batch):
    """BT: -w sigmoid(-h) at the chosen row's last token, the opposite at the rejected one's, 0
    everywhere else.
    """
    score, batch = rows(
        make_batch, [1.0, 0.3, 2.0, 3.0], [0.6, -0.6, 1, -1], [0, 0, 1, 1], lengths=[2, 3, 1, 3]
    )
    found = gradient(bradley_terry(score, batch), score)
    expected = torch.zeros_like(found)
    for (win, lose), w, h in (((0, 1), 0.6, 0.7), ((2, 3), 1.0, -1.0)):
        pull = w / (1 + math.exp(h))
        (
            expected[win, int(batch.length_N[win]) - 1],
            expected[lose, int(batch.length_N[lose]) - 1],
        ) = -pull, pull
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", [bradley_terry, k_wise, plackett_luce])
@settings(deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 9))
def test_invariances(make_batch, objective, shift, seed):
    """A constant per prompt changes nothing; nor does the order of the rows; reliability multiplies
    the value.
    """
    dice = torch.Generator().manual_seed(seed)
    per = 2 if objective is bradley_terry else 4
    value = torch.randn(2 * per, generator=dice, dtype=torch.float64)
    groups, grades = [0] * per + [1] * per, ([1.0, -1] if per == 2 else [-1.0, -2, -2, -4]) * 2
    base = objective(*rows(make_batch, value.tolist(), grades, groups))
    moved = value + torch.tensor([shift] * per + [0.0] * per)
    torch.testing.assert_close(objective(*rows(make_batch, moved.tolist(), grades, groups)), base)
    order = torch.randperm(2 * per, generator=dice).tolist()
    shuffled = rows(
        make_batch,
        [float(value[i]) for i in order],
        [grades[i] for i in order],
        [groups[i] for i in order],
    )
    torch.testing.assert_close(objective(*shuffled), base)
    lighter = [g * (0.3 if n < per else 1) for n, g in enumerate(grades)]
    torch.testing.assert_close(
        objective(*rows(make_batch, value.tolist(), lighter, groups)),
        base * torch.tensor([0.3, 1.0]).double(),
    )


@pytest.mark.parametrize("objective", [k_wise, plackett_luce])
def test_ties_say_nothing_of_each_other(make_batch, objective):
    score, batch = rows(make_batch, [3.0, -4.0], [-1.0, -1.0])
    assert objective(score, batch).tolist() == [0.0]
    assert not gradient(objective(score, batch), score).any()
    score, batch = rows(make_batch, [2.0, 1.0, 0.0], [-1.0, -2.0, -2.0])
    expected = {k_wise: (SP1 + SP2) / 2, plackett_luce: 0.4076059}[objective]
    assert objective(score, batch).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("objective", COMPARISONS)
def test_rows_stand_aside_with_grade_0_or_without_a_trained_token(make_batch, objective):
    """The same value as without them, no gradient to them, and their scores may be infinite."""
    score, batch = rows(make_batch, [1.0, 0.0], [1.0, -1.0])
    alone = objective(score, batch)
    mask = [[True] * 3, [True] * 3, [True] * 3, [False] * 3]
    score, batch = rows(make_batch, [1.0, 0.0, 9.0, 8.0], [1.0, -1.0, 0.0, 1.0], mask=mask)
    torch.testing.assert_close(objective(score, batch), alone)
    assert not gradient(objective(score, batch), score)[2:].any()


@pytest.mark.parametrize("objective", COMPARISONS)
def test_a_pair_with_one_row_left_compares_nothing(make_batch, objective):
    score, batch = rows(make_batch, [1.0, 0.0], [1.0, -1.0], mask=[[True] * 3, [False] * 3])
    assert (
        objective(score, batch).tolist() == [0.0]
        and not gradient(objective(score, batch), score).any()
    )


def test_bradley_terry_refuses_more_than_a_pair(make_batch):
    with pytest.raises(UsageError, match="k_wise"):
        bradley_terry(*rows(make_batch, [1.0, 0.0, 2.0], [1.0, -1.0, -1.0]))


def test_large_gaps_stay_finite_in_float32(make_batch):
    score, batch = rows(make_batch, [500.0, -500.0], [-1.0, 1.0])
    found = {name: x.float() for name, x in batch.comparison.tensors().items()}
    single_precision = Comparisons(**found | {"compared_N": batch.comparison.compared_N})
    single = batch.replace(weight_NT=batch.weight_NT.float(), comparison=single_precision)
    assert [
        float(objective(score.detach().float(), single)) for objective in COMPARISONS
    ] == pytest.approx([1000.0] * 3)


@pytest.mark.parametrize("objective", COMPARISONS)
def test_T01_splitting_by_groups_changes_nothing(make_batch, objective):
    torch.manual_seed(0)
    score, batch = rows(
        make_batch,
        torch.randn(8).tolist(),
        [1.0, -1.0] * 4,
        [0, 0, 1, 1, 2, 2, 3, 3],
        lengths=[1, 2, 3, 3, 1, 1, 2, 3],
    )
    whole = gradient(
        reduce_loss(objective(score, batch), comparison_mean(batch), comparison_mean(batch).count),
        score,
    )
    parts = torch.zeros_like(whole)
    for index in ([0, 1], [2, 3, 4, 5, 6, 7]):
        part, long = batch.rows(index), int(batch.length_N[index].max())
        parts += gradient(
            reduce_loss(objective(score[index][:, :long], part), comparison_mean(part), 4), score
        )
    torch.testing.assert_close(parts, whole)


def minimised(loss, size, steps=300):
    """The scores at which a convex loss is least (the last one is held at 0)."""
    free = torch.zeros(size - 1, dtype=torch.float64, requires_grad=True)
    tool = torch.optim.LBFGS(
        [free],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        tool.zero_grad()
        value = loss(torch.cat([free, free.new_zeros(1)]))
        value.backward()
        return value

    tool.step(closure)
    return torch.cat([free.detach(), free.new_zeros(1)])


def expected_loss(objective, make_batch, true, score, **options):
    """The expectation over people who choose as the true scores say: pairs by Bradley-Terry,
    rankings by Plackett-Luce.
    """
    total = 0.0
    size = len(true) if objective is plackett_luce else 2
    for order in itertools.permutations(range(len(true)), size):
        left, chance = list(order), 1.0
        while left:
            chance *= float(torch.softmax(true[left], 0)[0])
            left = left[1:]
        grade = [-1.0 - k for k in range(size)] if size > 2 else [1.0, -1.0]
        _, batch = rows(make_batch, [0.0] * size, grade, T=1)
        total = total + chance * objective(score[list(order)][:, None], batch, **options).sum()
    return total


@pytest.mark.parametrize("objective", COMPARISONS)
def test_R1_the_population_optimum_is_the_true_score(make_batch, objective):
    true = torch.tensor([1.3, -0.4, 0.7, 0.0], dtype=torch.float64)
    found = minimised(lambda score: expected_loss(objective, make_batch, true, score), 4)
    torch.testing.assert_close(found, true, atol=1e-5, rtol=0)


def test_label_smoothing_optimum_is_shrunk(make_batch):
    true, eps = torch.tensor([1.5, 0.0], dtype=torch.float64), 0.1
    found = minimised(
        lambda s: expected_loss(bradley_terry, make_batch, true, s, label_smoothing=eps), 2
    )
    p = float(true[0].sigmoid())
    assert float(found[0].sigmoid()) == pytest.approx((1 - eps) * p + eps * (1 - p), abs=1e-6)


@pytest.mark.parametrize("m", [0.0, 1 / 3, 1.0, 3.0])
def test_R2_margin_optimum_in_closed_form(make_batch, m):
    """p = .7: gap = log[(a + sqrt(a^2 + 4 p (1-p) e^{-2m})) / (2 (1-p) e^{-m})], a = 2p - 1."""
    p = 0.7

    def loss(score):
        _, batch = rows(make_batch, [0.0, 0.0], [1.0, -1.0], margin=m, T=1)
        win, lose = (
            bradley_terry(score[:, None], batch),
            bradley_terry(score.flip(0)[:, None], batch),
        )
        return p * win.sum() + (1 - p) * lose.sum()

    a = 2 * p - 1
    expected = math.log(
        (a + math.sqrt(a * a + 4 * p * (1 - p) * math.exp(-2 * m))) / (2 * (1 - p) * math.exp(-m))
    )
    assert float(minimised(loss, 2)[0]) == pytest.approx(expected, abs=1e-5)


def test_R3_a_prompt_counts_once_however_many_answers_it_has(make_batch):
    """K = 2 and K = 4: per-prompt values average to 1/2 each; a flat mean over pairs would give the
    larger six sevenths.
    """
    score, batch = rows(
        make_batch, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, -1, -1, -2, -3, -4], [0, 0, 1, 1, 1, 1]
    )
    loss = reduce_loss(k_wise(score, batch), comparison_mean(batch), comparison_mean(batch).count)
    assert float(loss.detach()) == pytest.approx((SP1 + LN2) / 2, abs=1e-6)


def test_R4_plackett_luce_is_a_distribution_over_orders(make_batch):
    score = [0.9, -1.1, 0.2, 2.0]
    total = sum(
        float((-plackett_luce(*rows(make_batch, score, [-1.0 - k for k in order]))).exp().detach())
        for order in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, abs=1e-12)


def test_outcome_by_hand_and_its_gradient(make_batch):
    score = torch.tensor([[0.0, 2.0, math.inf]], dtype=torch.float64, requires_grad=True)
    batch = make_batch(
        torch.tensor([[1.0, 0.5, 1.0]], dtype=torch.float64), mask=[[True, True, False]]
    )
    batch = batch.replace(label_NT=torch.ones(1, 3, dtype=torch.float64))
    assert outcome(score, batch)[0].tolist() == pytest.approx([LN2, 0.5 * SP2, 0.0], abs=1e-6)
    expected = [-0.5, 0.5 * (float(torch.sigmoid(torch.tensor(2.0))) - 1), 0.0]
    assert gradient(outcome(score, batch), score)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_O1_an_outcome_model_is_a_value_function(make_batch):
    """A two-token world, answers right with known chances: the best score of a prefix is the logit
    of its chance to end well.
    """
    chance = {(0, 0): 0.9, (0, 1): 0.3, (1, 0): 0.5, (1, 1): 0.1}
    weight = {(0, 0): 0.1, (0, 1): 0.4, (1, 0): 0.3, (1, 1): 0.2}
    free = torch.zeros(
        6, dtype=torch.float64, requires_grad=True
    )  # after 0, after 1, after 00, 01, 10, 11
    tool = torch.optim.LBFGS(
        [free],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        tool.zero_grad()
        total = 0.0
        for (a, b), p in chance.items():
            for label, share in ((1.0, p), (0.0, 1 - p)):
                batch = make_batch(torch.ones(1, 2, dtype=torch.float64)).replace(
                    label_NT=torch.full((1, 2), label, dtype=torch.float64)
                )
                score_12 = torch.stack([free[a], free[2 + 2 * a + b]])[None]
                total = total + weight[a, b] * share * outcome(score_12, batch).sum()
        total.backward()
        return total

    tool.step(closure)
    value = [
        sum(weight[a, b] * chance[a, b] for b in (0, 1)) / sum(weight[a, b] for b in (0, 1))
        for a in (0, 1)
    ]
    assert free.detach().sigmoid().tolist() == pytest.approx([*value, *chance.values()], abs=1e-5)


def test_process_by_hand_and_masks(make_batch):
    """Classes -1, 0, 1 are indices 0, 1, 2; only step ends have values and gradients, be the rest
    infinite.
    """
    score = torch.zeros(1, 4, 3, dtype=torch.float64)
    score[0, 1] = torch.tensor([0.0, 0.0, LN2])
    score[0, 2] = math.inf
    score.requires_grad_()
    batch = make_batch(torch.ones(1, 4, dtype=torch.float64), mask=[[True, True, False, True]])
    batch = batch.replace(label_NT=torch.tensor([[-1.0, 1.0, 7.0, 0.0]], dtype=torch.float64))
    assert process(score, batch)[0].tolist() == pytest.approx(
        [math.log(3), LN2, 0.0, math.log(3)], abs=1e-9
    )
    found = gradient(process(score, batch), score)[0]
    third = 1 / 3
    expected = [[third - 1, third, third], [0.25, 0.25, -0.5], [0, 0, 0], [third, third - 1, third]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_step_counts_as_much_as_its_weight(make_batch):
    """Half of ln 3, and half its slope."""
    score = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    batch = make_batch(torch.tensor([[0.5, 2.0]], dtype=torch.float64))
    batch = batch.replace(label_NT=torch.zeros(1, 2, dtype=torch.float64))
    assert process(score, batch)[0].tolist() == pytest.approx([math.log(3) / 2, 2 * math.log(3)])
    found = gradient(process(score, batch), score)[0]
    torch.testing.assert_close(found[1], 4 * found[0])


def test_process_refuses_other_labels(make_batch):
    batch = make_batch(torch.ones(1, 1)).replace(label_NT=torch.full((1, 1), 2.0))
    with pytest.raises(UsageError, match="-1"):
        process(torch.zeros(1, 1, 3), batch)


def test_metrics_are_sums_and_counts(make_batch):
    score, batch = rows(
        make_batch, [1.0, 0.0, 2.0, 2.0, 5.0], [1.0, -1.0, 1.0, -1.0, 0.0], [0, 0, 1, 1, 1]
    )
    found = {
        name: (float(total), int(count))
        for name, (total, count) in comparison_metrics(score, batch).items()
    }
    assert found == {"accuracy": (1.5, 2), "margin": (1.0, 2), "score/mean": (5.0, 4)}
    assert all(not total.requires_grad for total, _ in comparison_metrics(score, batch).values())


def test_T21_a_silent_model_has_accuracy_one_half(make_batch):
    score, batch = rows(make_batch, [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0])
    total, count = comparison_metrics(score, batch)["accuracy"]
    assert float(total) / int(count) == 0.5


def test_outcome_and_process_metrics(make_batch):
    batch = make_batch(torch.ones(2, 2), lengths=[2, 1]).replace(
        label_NT=torch.tensor([[1.0, 1], [0, 0]])
    )
    found = {
        name: (float(t), int(c))
        for name, (t, c) in outcome_metrics(torch.tensor([[-1.0, 1], [0, 9]]), batch).items()
    }
    assert found == {"accuracy": (1.5, 2), "accuracy/tokens": (1.5, 3)}
    score = torch.eye(3)[None, [2, 2, 1, 0]]
    batch = make_batch(torch.ones(1, 4), mask=[[True, True, True, False]]).replace(
        label_NT=torch.tensor([[1.0, -1, 0, 1]])
    )
    found = {name: (float(t), int(c)) for name, (t, c) in process_metrics(score, batch).items()}
    assert found == {
        "accuracy": (2.0, 3),
        "recall/wrong": (0.0, 1),
        "recall/neutral": (1.0, 1),
        "recall/right": (1.0, 1),
    }


def spoken(make_batch, logps, grades, groups=None, **shape):
    """logp_NT of some rows (lists of equal width), and their batch."""
    logp_NT = torch.tensor(logps, dtype=torch.float64)
    grade_NT = torch.tensor(grades, dtype=torch.float64)[:, None].expand(logp_NT.shape).contiguous()
    return logp_NT.requires_grad_(), make_batch(grade_NT, **shape).replace(
        group_N=torch.tensor(groups or [0] * len(grades))
    )


def test_imitation_by_hand(make_batch):
    """lp -1 - 2 over 2 tokens, beta .5, w .6: .45; the rejected row and what stands behind a row's
    end say nothing.
    """
    logp, batch = spoken(make_batch, [[-9.0, -9, -9], [-1, -2, -5]], [-0.6, 0.6], lengths=[3, 2])
    assert imitation(logp, batch, imitation_coef=0.5).tolist() == pytest.approx([0.45])
    assert imitation(logp, batch).tolist() == [0.0]
    expected = torch.tensor([[0, 0, 0], [-0.15, -0.15, 0]], dtype=torch.float64)  # -beta w / |best|
    torch.testing.assert_close(gradient(imitation(logp, batch, imitation_coef=0.5), logp), expected)
    total, count = imitation_metrics(logp, batch)["imitation/nll"]
    assert (float(total), int(count)) == (3.0, 2) and not total.requires_grad


@pytest.mark.parametrize(
    ("grades", "per_token"),
    [
        ([-1.0, -2.0, -3.0], 1.0),  # the first of a ranking
        ([-2.0, -1.0, -3.0], 2.0),
        ([-1.0, -1.0, -3.0], 1.5),  # two that are equally good share
        ([-1.0, -1.0, -1.0], 0.0),  # nobody is better: nobody is imitated
        ([0.0, -1.0, -2.0], 2.0),  # a grade of 0 stands aside
        ([-1.0, 0.0, 0.0], 0.0),  # alone
    ],
)
def test_who_is_imitated(make_batch, grades, per_token):
    logp, batch = spoken(make_batch, [[-1.0, -1], [-2, -2], [-4, -4]], grades)
    assert imitation(logp, batch, imitation_coef=1.0).tolist() == pytest.approx([per_token])


def test_imitation_of_one_group_is_not_anothers(make_batch):
    logp, batch = spoken(
        make_batch, [[-1.0], [-2], [-3], [-4]], [1.0, -1.0, -1.0, 1.0], [7, 3, 3, 7]
    )
    assert imitation(logp, batch, imitation_coef=1.0).tolist() == pytest.approx([0.0, 0.0])
    logp, batch = spoken(
        make_batch, [[-1.0], [-2], [-3], [-4]], [1.0, 1.0, -1.0, -1.0], [7, 3, 3, 7]
    )
    assert imitation(logp, batch, imitation_coef=1.0).tolist() == pytest.approx([2.0, 1.0])


@pytest.mark.parametrize("objective", COMPARISONS)
def test_lambda_multiplies_the_comparison(make_batch, objective):
    score, batch = rows(make_batch, [0.3, -1.0], [0.6, -0.6])
    torch.testing.assert_close(
        objective(score, batch, reward_coef=0.25), 0.25 * objective(score, batch)
    )


RANKING = ([0.3, -1.0, 2.0, 0.95], [-1.0, -2.0, -3.0, -4.0])


def renamed(batch, prompt, version=0):
    """The same rows of another prompt or step: other lots."""
    return batch.replace(
        keys=tuple(Key("run", "toy", str(prompt), key.sample, version) for key in batch.keys)
    )


def test_a_subset_of_pairs_is_unbiased_by_enumeration(make_batch):
    """Two of six pairs: all 15 subsets occur, about equally often, and the mean over them is the
    loss of all pairs, gradient too.
    """
    score, batch = rows(make_batch, *RANKING)
    seen: dict[float, list] = {}
    for prompt in range(1500):
        value = k_wise(score, renamed(batch, prompt), pairs_per_prompt=2)
        seen.setdefault(round(float(value.detach()), 9), []).append((value, prompt))
    counts = [len(several) for several in seen.values()]
    assert (
        len(seen) == 15 and sum((n - 100) ** 2 / 100 for n in counts) < 36.1
    )  # chi-square, 14 degrees of freedom, 1 in 1000
    mean = torch.stack([several[0][0] for several in seen.values()]).mean(0)
    torch.testing.assert_close(mean, k_wise(score, batch))
    torch.testing.assert_close(gradient(mean, score), gradient(k_wise(score, batch), score))


def test_the_subset_depends_on_keys_alone(make_batch):
    """Not on the order of rows, the run's name, or what else is in the batch; and the next step
    draws anew.
    """
    score, batch = rows(
        make_batch, [*RANKING[0], 9.0, 1.0], [*RANKING[1], 1.0, -1.0], [0] * 4 + [1] * 2
    )
    value = k_wise(score, batch, pairs_per_prompt=2)
    order = [3, 5, 0, 2, 4, 1]
    torch.testing.assert_close(k_wise(score[order], batch.rows(order), pairs_per_prompt=2), value)
    torch.testing.assert_close(
        k_wise(score[:4], batch.rows([0, 1, 2, 3]), pairs_per_prompt=2), value[:1]
    )
    other_run = batch.replace(
        keys=tuple(
            Key("another", key.source, key.prompt, key.sample, key.version) for key in batch.keys
        )
    )
    assert torch.equal(k_wise(score, other_run, pairs_per_prompt=2), value)
    assert (
        len(
            {
                float(k_wise(score, renamed(batch, 0, step), pairs_per_prompt=2)[0].detach())
                for step in range(20)
            }
        )
        > 5
    )


def test_more_pairs_than_there_are_is_all_of_them(make_batch):
    score, batch = rows(make_batch, *RANKING)
    for m in (0, 6, 99):
        assert torch.equal(k_wise(score, batch, pairs_per_prompt=m), k_wise(score, batch))
    better_NN = torch.tensor([[False, True], [False, False]])
    assert torch.equal(some_pairs(better_NN, batch.rows([0, 1]), 1), better_NN)
