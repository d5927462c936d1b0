"""The reward model, the choice and the saved folder: by hand, by finite differences, and on a log
whose truth is known.
"""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_prompts.features import (
    DIRECTIONS,
    HashedWords,
    PrincipalDirections,
    encoder,
    surface_features,
)
from laurel_prompts.fit import fit, log_loss, mean_rewards
from laurel_prompts.models import (
    Logistic,
    Rates,
    Trees,
    candidate_models,
    restore_model,
)
from laurel_prompts.policy_value import auc
from laurel_prompts.predictor import Predictor, choose_over_default
from laurel_prompts.synthetic import synthetic_log


def test_the_choice_beats_the_best_single_prompt_where_the_log_has_an_interaction(fitted):
    log, truth, found = fitted
    test, truth = log.rows(log.test_S), truth[log.test_S]
    choice = found.predictor.choose(test.queries)
    value = truth[np.arange(len(truth)), [log.names.index(one.name) for one in choice]].mean()
    assert truth.mean(0).max() < 0.6 and truth.max(1).mean() > 0.73
    assert value > 0.70 and value > truth.mean(0).max() + 0.05
    assert found.gain.low > 0 and not math.isinf(found.predictor.margin)
    assert not isinstance(found.trials[0].model, Rates)


def test_a_log_without_an_interaction_always_gets_the_default():
    log, _ = synthetic_log(1500, seed=1)
    rng = np.random.default_rng(0)
    flat = replace(
        log, reward_SP=(rng.random(log.reward_SP.shape) < np.linspace(0.5, 0.3, 6)).astype(float)
    )
    found = fit(flat)
    assert math.isinf(found.predictor.margin) and found.gain.low <= 0
    assert {one.name for one in found.predictor.choose(flat.queries[:200])} == {"p0"}
    why = {one.why for one in found.predictor.choose(flat.queries[:200])}
    assert why <= {"the default", "not credibly better than the default"}


def test_learning_from_one_tried_prompt_a_query_with_propensities(models):
    log, truth = synthetic_log(6000, seed=2, every=False)
    found = fit(log)
    held = truth[log.test_S]
    names = [one.name for one in found.predictor.choose(log.rows(log.test_S).queries)]
    value = held[np.arange(len(held)), [log.names.index(name) for name in names]].mean()
    assert value > held.mean(0).max() + 0.05, value
    assert mean_rewards(log).argmax() == truth.mean(0).argmax() == 0


def test_the_logistic_model_minimises_what_it_says():
    """Its gradient is 0 at the fit, by finite differences of the written objective; gaps in the log
    count for nothing.
    """
    rng = np.random.default_rng(0)
    x, e, reward = rng.standard_normal((60, 3)), rng.standard_normal((4, 2)), rng.random((60, 4))
    reward[rng.random((60, 4)) < 0.3] = np.nan
    for kind in ("heads", "features"):
        made = Logistic(kind, own=5.0, shared=2.0).fit(x, e, reward)
        n, tried = (~np.isnan(reward)).sum(), ~np.isnan(reward)

        def objective(a, w, b, c, made=made, n=n, tried=tried):
            table = replace(made, a_DF=a, w_D=w, b_F=b, c=c).predict(x, e, np.arange(4))
            penalty = 5.0 * (a**2).sum() + 2.0 * (w**2).sum() + 0.1 * (b**2).sum()
            return log_loss(table[tried], reward[tried]) + penalty / (2 * n)

        at = [made.a_DF, made.w_D, made.b_F, np.array(made.c)]
        for k in range(4):
            step = np.zeros_like(at[k])
            for place in np.ndindex(step.shape):
                step[place] = 1e-5
                up = objective(*[value + step if j == k else value for j, value in enumerate(at)])
                down = objective(*[value - step if j == k else value for j, value in enumerate(at)])
                assert abs(up - down) / 2e-5 < 2e-4, (kind, k, place)
                step[place] = 0.0


def test_heads_say_of_an_unseen_prompt_what_all_prompts_share():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 2))
    reward = (rng.random((400, 3)) < 1 / (1 + np.exp(-x[:, :1]))).astype(float)
    made = Logistic("heads").fit(x, np.zeros((3, 0)), reward)
    table = made.predict(x, np.zeros((2, 0)), np.array([-1, 1]))
    assert auc(table[:, 0], x[:, 0] > 0) > 0.99 and abs(table[:, 0].mean() - 0.5) < 0.1


def test_rates_are_the_means_and_nothing_else():
    made = Rates().fit(
        np.zeros((4, 1)), np.zeros((2, 1)), np.array([[1, 0], [1, np.nan], [1, 0], [0, 0]])
    )
    np.testing.assert_allclose(
        made.predict(np.zeros((2, 1)), np.zeros((2, 1)), np.array([0, 1]))[0], [3.5 / 5, 0.5 / 4]
    )
    assert made.predict(np.zeros((1, 1)), np.zeros((1, 1)), np.array([-1]))[0, 0] == pytest.approx(
        (3.5 / 5 + 0.5 / 4) / 2
    )


def test_trees_find_what_a_line_cannot_and_are_the_same_every_time():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 4))
    truth = np.where((x[:, 0] > 0) == (x[:, 1] > 0), 0.9, 0.1)[:, None] * np.array([1.0, 0.5])
    reward = (rng.random(truth.shape) < truth).astype(float)
    e, which = np.zeros((2, 1)), np.arange(2)
    trees, line = (
        Trees(15, 100).fit(x[:2000], e, reward[:2000]),
        Logistic("heads", 1.0, 1.0).fit(x[:2000], e, reward[:2000]),
    )
    held = [
        auc(model.predict(x[2000:], e, which).ravel(), reward[2000:].ravel())
        for model in (trees, line)
    ]
    assert held[0] > 0.8 > 0.65 > held[1]
    again = Trees(15, 100).fit(x[:2000], e, reward[:2000])
    assert again.text == trees.text
    stages = Trees(15, 100).staged(x[:2000], e, reward[:2000], (10, 100))
    np.testing.assert_array_equal(stages[1].predict(x, e, which), trees.predict(x, e, which))
    assert Trees(15, 10).fit(x[:2000], e, reward[:2000]).predict(x[:9], e, which) == pytest.approx(
        stages[0].predict(x[:9], e, which)
    )


def test_every_model_comes_back_as_it_was(tmp_path, fitted):
    log, _, found = fitted
    rng = np.random.default_rng(0)
    x, e, reward = (
        rng.standard_normal((80, 3)),
        rng.standard_normal((4, 2)),
        (rng.random((80, 4)) < 0.5).astype(float),
    )
    for model in candidate_models():
        made = model.fit(x, e, reward)
        state = json.loads(
            json.dumps({k: v for k, v in made.state().items() if not isinstance(v, np.ndarray)})
        )
        arrays = {k: v for k, v in made.state().items() if isinstance(v, np.ndarray)}
        again = restore_model(type(made).__name__, {**state, **arrays})
        which = np.array([0, 1, -1, 3])
        np.testing.assert_array_equal(again.predict(x, e, which), made.predict(x, e, which))
    found.predictor.save(tmp_path / "p", {"log": log.name})
    assert not [
        path for path in (tmp_path / "p").iterdir() if path.suffix in (".pkl", ".pickle", ".joblib")
    ]
    again = Predictor.load(tmp_path / "p")
    assert again.choose(log.queries[:50]) == found.predictor.choose(log.queries[:50])
    with pytest.raises(UsageError, match="no saved predictor"):
        Predictor.load(tmp_path)
    told = json.loads((tmp_path / "p" / "predictor.json").read_text())
    for wrong in (
        {**told, "names": told["names"][:5]},
        {**told, "model": "Foo"},
        {"format": 1},
        [1],
    ):
        (tmp_path / "p" / "predictor.json").write_text(json.dumps(wrong))
        with pytest.raises(UsageError, match="no saved predictor"):
            Predictor.load(tmp_path / "p")
    (tmp_path / "p" / "predictor.json").write_text(json.dumps({**told, "format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        Predictor.load(tmp_path / "p")


def test_a_prompt_must_be_worth_its_cost(models):
    """One prompt is right more often and costs ten times as much: which is sent depends on the
    price.
    """
    log, _ = synthetic_log(1500, seed=4)
    rng = np.random.default_rng(0)
    reward = (rng.random((1500, 2)) < [0.7, 0.6]).astype(float)
    costly = replace(
        log.columns([0, 1]), reward_SP=reward, cost_SP=np.tile([500.0, 50.0], (1500, 1))
    )
    predictor = fit(costly).predictor
    for price, name in ((0.0, "p0"), (0.0001, "p0"), (0.001, "p1")):
        assert {one.name for one in predictor.choose(log.queries[:50], cost_weight=price)} == {name}
    with pytest.raises(UsageError, match="no costs"):
        fit(log.columns([0, 1])).predictor.choose(log.queries[:5], cost_weight=0.1)
    with pytest.raises(UsageError, match="no price"):
        predictor.choose(log.queries[:5], cost_weight=-1)


def test_unseen_candidates_compete_only_when_told(fitted):
    log, _, found = fitted
    predictor = replace(found.predictor, unseen=False)
    candidates = {"new": "Think very hard about this and say nothing else:"}
    assert {one.name for one in predictor.choose(log.queries[:100], candidates)} == {
        predictor.names[predictor.default()]
    }
    open_ = replace(predictor, margin=-1.0)
    assert "new" not in {one.name for one in open_.choose(log.queries[:100], candidates)}
    scores = predictor.scores(predictor.features(log.queries[:100]), candidates)
    assert scores.shape == (100, 1) and ((scores > 0) & (scores < 1)).all()


def test_the_margin_is_what_must_be_gained():
    table = np.array([[0.5, 0.53], [0.5, 0.6], [0.5, 0.4]])
    assert choose_over_default(table, 0, 0.05).tolist() == [0, 1, 0]
    assert choose_over_default(table, 0, 0.0).tolist() == [1, 1, 0] and choose_over_default(
        table, 0, math.inf
    ).tolist() == [0, 0, 0]


def test_directions_are_those_of_an_exact_decomposition():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 40)) * np.linspace(3, 0.1, 40)
    found = PrincipalDirections.fit(rows, count=5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    exact = np.linalg.svd(unit)[2][:5]
    np.testing.assert_allclose(np.abs(found.arrays["basis"] @ exact.T), np.eye(5), atol=1e-3)
    made = found(rows)
    np.testing.assert_allclose((made.mean(0), made.std(0)), (np.zeros(5), np.ones(5)), atol=1e-9)


def test_words_are_hashed_alike_everywhere_and_figures_count_apart():
    words = HashedWords()
    one, two = words(["Tom has 3 apples?"]), words(["tom HAS 450 apples?"])
    assert (one[:, :-8] != two[:, :-8]).nnz == 0 and one.shape[1] == (1 << 14) + 8
    assert surface_features("Tom pays $3.50, half of 7. How much?")[1:] == pytest.approx(
        [math.log(3), math.log(8), 1, math.log(2), math.log(4), 1, 1]
    )
    assert words([]).shape == (0, (1 << 14) + 8) and np.isfinite(surface_features("")).all()
    texts = [f"word{n} and word{n + 1}" for n in range(300)]
    assert PrincipalDirections.fit(words(texts))(words(texts[:3])).shape == (3, DIRECTIONS + 8)


def test_vectors_of_a_file(tmp_path):
    np.savez(tmp_path / "v.npz", texts=np.array(["a", "b"]), vectors=np.eye(2))
    found = encoder(str(tmp_path / "v.npz"))
    np.testing.assert_array_equal(found(["b", "a"]), [[0, 1], [1, 0]])
    with pytest.raises(UsageError, match=r"1 texts have no vector, such as 'c'"):
        found(["a", "c"])
    np.savez(tmp_path / "w.npz", texts=np.array(["a", "b"]), vectors=np.array([[1.0], [np.nan]]))
    with pytest.raises(UsageError, match="One finite row a text"):
        encoder(str(tmp_path / "w.npz"))
    with pytest.raises(UsageError, match="no file of vectors"):
        encoder(str(tmp_path / "x.npz"))


def test_luck_does_not_make_a_default_nor_a_handful_of_questions_a_gain(models):
    log, _ = synthetic_log(1500, every=False)
    lucky = np.full((1500, 1), np.nan)
    lucky[np.flatnonzero(~log.test_S)[:2]] = 1.0
    propensity = np.hstack([log.propensity_SP, np.where(np.isnan(lucky), np.nan, 0.002)])
    rare = replace(
        log,
        names=(*log.names, "rare"),
        prompts=(*log.prompts, "A rare one:"),
        reward_SP=np.hstack([log.reward_SP, lucky]),
        propensity_SP=propensity,
    )
    assert mean_rewards(rare)[6] == 1.0 and mean_rewards(rare, lower=True).argmax() == 0
    blind = replace(log, propensity_SP=None)
    found = fit(blind)
    assert found.gain is None and math.isinf(found.predictor.margin)
    one = blind.reward_SP.copy()
    one[0] = [0, 0, 0, 1, 0, 0]
    found = fit(replace(blind, reward_SP=one, test_S=np.zeros(1500, bool)))
    assert found.gain.n == 1 and math.isinf(found.predictor.margin)


def test_one_odd_query_spoils_nothing(models):
    log, _ = synthetic_log(900)
    odd = fit(replace(log, queries=("9" * 400 + " of the garden?", *log.queries[1:])))
    assert all(math.isfinite(trial.log_loss) for trial in odd.trials) and odd.gain.low > 0
    assert all(
        math.isfinite(one.predicted) for one in odd.predictor.choose(["8" * 500 + " seeds?"])
    )


def test_too_small_a_log_is_refused():
    log, _ = synthetic_log(8)
    with pytest.raises(UsageError, match="nothing to choose from"):
        fit(log)


def test_scoring_is_fast_enough_to_print(fitted):
    """The figure is printed, not asserted: machines differ."""
    log, _, found = fitted
    x = np.tile(found.predictor.features(log.queries[:500]), (2, 1))
    prompts = {f"n{k}": f"Prompt number {k}:" for k in range(16)}
    start = time.perf_counter()
    table = found.predictor.scores(x, prompts)
    print(f"1,000 queries x 16 prompts: {time.perf_counter() - start:.3f} s")
    assert table.shape == (1000, 16)
