"""Which model is picked, by hand: one that is blind to the prompt is not, chance is not, and the
gain of the best of many is honest.
"""

import numpy as np
import pytest

from laurel_prompts.fit import fit, gain_on_every_query
from laurel_prompts.logs import Log, fold_of_query
from laurel_prompts.model_selection import (
    MARGINS,
    Trial,
    cross_fitted,
    gains_by_margin,
    pick_model_and_margin,
    summed_losses,
)
from laurel_prompts.models import Logistic, Rates
from laurel_prompts.policy_value import value_S
from laurel_prompts.report import report
from laurel_prompts.synthetic import synthetic_log


def log_of(reward_SP: np.ndarray) -> Log:
    count, prompts = reward_SP.shape
    names = tuple(f"p{p}" for p in range(prompts))
    return Log(
        "hand",
        tuple(map(str, range(count))),
        names,
        names,
        reward_SP,
        np.zeros(count, bool),
        np.arange(count),
    )


def trial(name: str, predicted_SP: np.ndarray) -> Trial:
    return Trial(name, Rates(), 0.0, 0.5, None, predicted_SP)


@pytest.fixture(scope="module")
def twelve():
    """Twelve prompts of the same mean; half of the queries are hard for all, and on each two
    prompts are better than the rest.
    """
    rng = np.random.default_rng(0)
    hard, kind = rng.random(1200) < 0.5, rng.integers(0, 6, 1200)
    lift = np.repeat(np.eye(6)[kind], 2, axis=1)
    truth = np.where(hard[:, None], 0.25, 0.9) + 0.06 * (lift - 1 / 6)
    log = log_of((rng.random(truth.shape) < truth).astype(float))
    blind = np.repeat(
        np.where(hard, 0.25, 0.9)[:, None], 12, 1
    )  # knows how hard a query is, and nothing of prompts
    seeing = np.clip(
        0.575 + 0.1 * (lift - 1 / 6), 0.01, 0.99
    )  # knows which prompt suits, and not how hard it is
    return log, trial("blind", blind), trial("seeing", seeing)


def test_a_model_that_is_blind_to_the_prompt_is_not_picked_however_good_its_log_loss(twelve):
    log, blind, seeing = twelve
    trials, default = [blind, seeing], 0
    loss_TS = summed_losses(log, trials)
    assert loss_TS[0].mean() < 0.8 * loss_TS[1].mean()  # by log loss it would be the blind one
    gain_TMS = gains_by_margin(log, trials, default)
    assert not gain_TMS[0].any()  # which never leaves the default
    place, margin = pick_model_and_margin(gain_TMS, loss_TS)
    assert trials[place] is seeing and gain_TMS[place, margin].mean() > 0.03
    assert cross_fitted(log, trials, fold_of_query(log.question_S)).low > 0


def test_of_models_that_are_worth_as_much_the_better_calibrated_one_is_picked(twelve):
    log, _, seeing = twelve
    sure = trial("sure of itself", np.where(seeing.predicted_SP > 0.6, 0.999, 0.001))
    assert (
        pick_model_and_margin(
            gains_by_margin(log, [sure, seeing], 0), summed_losses(log, [sure, seeing])
        )[0]
        == 1
    )
    assert (
        pick_model_and_margin(
            gains_by_margin(log, [seeing, sure], 0), summed_losses(log, [seeing, sure])
        )[0]
        == 0
    )


def test_the_best_of_many_chances_does_not_flatter_itself():
    rng = np.random.default_rng(1)
    log = log_of((rng.random((400, 4)) < 0.5).astype(float))
    trials = [trial(str(k), rng.random((400, 4))) for k in range(40)]
    default, naive, honest = 0, [], []
    gain_TMS = gains_by_margin(log, trials, default)
    naive = gain_TMS.mean(2).max()
    honest = cross_fitted(log, trials, fold_of_query(log.question_S))
    assert naive > 0.05 > honest.value and honest.low < 0


def test_gains_are_by_hand_and_unknown_where_a_prompt_was_not_tried():
    log = log_of(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, np.nan]]))
    one = trial("one", np.array([[0.5, 0.4], [0.5, 0.51], [0.5, 0.9]]))
    gain_TMS = gains_by_margin(log, [one], 0)
    assert gain_TMS.shape == (1, len(MARGINS), 3)
    np.testing.assert_allclose(gain_TMS[0, 0], [0, 1, np.nan])  # left on the second query, by .01
    np.testing.assert_allclose(gain_TMS[0, MARGINS.index(0.02)], [0, 0, np.nan])
    nowhere = log_of(np.array([[1.0, np.nan], [np.nan, 1.0], [np.nan, 0.0]]))
    assert (
        gains_by_margin(nowhere, [one], 0) is None
        and cross_fitted(nowhere, [one], np.array([0, 1, 1])) is None
    )
    assert pick_model_and_margin(
        np.full((2, len(MARGINS), 3), np.nan), np.array([[1.0, 1, 1], [0.5, 1, 1]])
    ) == (
        1,
        0,
    )  # by log loss alone


@pytest.fixture
def few_models(monkeypatch):
    monkeypatch.setattr(
        "laurel_prompts.fit.candidate_models", lambda: [Rates(), Logistic("heads", 100.0)]
    )


def test_the_report_tells_it_beside_the_held_out_fifth(few_models):
    log, _ = synthetic_log(400, seed=3, test=0.0)
    made = report(log)
    told = made.data["stories held out"]["rows"]  # the strictest split
    wide, narrow = told["abstaining"]["gain"], told["everywhere"]["gain"]
    assert narrow[1] > 0 and narrow[2] - narrow[1] < 0.7 * (wide[2] - wide[1])
    assert any(
        "out of fold over all queries" in line and "a credible gain" in line for line in made.notes
    )


def test_the_gain_over_all_queries_stands_on_all_of_them(few_models):
    log, truth = synthetic_log(400, seed=3)
    found, everywhere = fit(log), gain_on_every_query(log)
    assert (
        isinstance(found.trials[0].model, Logistic)
        and found.gain.n < everywhere.n == len(np.unique(log.question_S))
        and everywhere.low > 0
    )
    names = [log.names.index(one.name) for one in found.predictor.choose(log.queries)]
    assert truth[np.arange(400), names].mean() > truth.mean(0).max()
    assert value_S(log.reward_SP, np.eye(6)[names]).mean() > log.reward_SP.mean(0).max()
