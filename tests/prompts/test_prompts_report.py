"""The report: every way to choose with its paired interval and verdict, honest about leaks and
about prompts nobody tried.
"""

from dataclasses import replace

import numpy as np
import pytest

from laurel.report.exhibit import Table
from laurel_prompts.logs import count_leaked_queries
from laurel_prompts.published import read_published
from laurel_prompts.report import report
from laurel_prompts.synthetic import synthetic_log
from laurel_prompts.verifier import verify


def table(exhibit, ending) -> Table:
    return next(table for table in exhibit.tables if ending in table.title)


def with_unseen(log, rate, seed=0):
    """The log with a seventh prompt that was tried on test queries only, and is right at this
    rate.
    """
    rng = np.random.default_rng(seed)
    new = np.where(log.test_S, (rng.random(len(log.queries)) < rate).astype(float), np.nan)
    return replace(
        log,
        names=(*log.names, "new"),
        prompts=(*log.prompts, "Estimate first, then step by step:"),
        reward_SP=np.hstack([log.reward_SP, new[:, None]]),
    )


def test_a_real_interaction_is_a_credible_gain_on_both_splits(models):
    log, _ = synthetic_log(2400)
    made = report(log)
    for split in ("its own split", "questions held out"):
        rows = made.data[split]["rows"]
        assert (
            rows["chosen"]["value"][0] > 0.68
            and rows["chosen"]["gain"][1] > 0
            and rows["abstaining"]["gain"][1] > 0
        )
        assert (
            rows["best"]["value"][0] < 0.62 < rows["oracle"]["value"][0]
            and rows["best"]["gain"] is None
        )
        assert any(
            line.startswith(f"{split}: choosing a prompt per query") and "a credible gain" in line
            for line in made.notes
        )
        models = made.data[split]["reward_models"]["r(q, p)"]
        assert models["AUC"] > models["AUC of rates"] + 0.05 and models["ECE"] < 0.05
    assert (
        not any(line.startswith("LEAK") for line in made.notes) and count_leaked_queries(log) < 20
    )
    assert table(made, "coverage").rows[0][1] == "1,800 and 600"


def test_without_an_interaction_nothing_is_claimed(models):
    log, _ = synthetic_log(1600, seed=1)
    rng = np.random.default_rng(0)
    made = report(
        replace(
            log,
            reward_SP=(rng.random(log.reward_SP.shape) < np.linspace(0.5, 0.3, 6)).astype(float),
        )
    )
    for split in ("its own split", "questions held out"):
        rows = made.data[split]["rows"]
        assert made.data[split]["margin"] == float("inf") and rows["abstaining"]["gain"] == [
            0,
            0,
            0,
        ]
        assert (
            rows["oracle"]["value"][0] > rows["best"]["value"][0] + 0.3
        )  # luck alone: no choice can have it
        assert not any("a credible gain" in line for line in made.notes)
        assert any("the default prompt is always sent" in line for line in made.notes)


def test_a_leak_is_told_and_the_grouped_split_has_none(models):
    log, _ = synthetic_log(1200)
    doubled = replace(
        log,
        queries=log.queries * 2,
        reward_SP=np.tile(log.reward_SP, (2, 1)),
        test_S=np.arange(2400) >= 1200,
        question_S=np.tile(log.question_S, 2),
    )
    made = report(doubled)
    assert made.notes[0].startswith("LEAK: 1,200 of 1,200")
    assert (
        made.data["its own split"]["leaked"] == 1200
        and made.data["questions held out"]["leaked"] == 0
    )
    assert any("a credible gain, of leaked questions: no claim" in line for line in made.notes)
    assert (
        "split" in made.data["questions held out"]["rows"]
    )  # questions with two draws: the oracle without luck


@pytest.mark.parametrize("rate", [0.05, 0.95])
def test_a_prompt_never_seen_is_always_told_what_it_does(rate, models):
    made = report(with_unseen(synthetic_log(1600)[0], rate))
    own = made.data["its own split"]
    change = own["rows"]["adding"]["gain"][0]
    told = [
        line
        for line in made.notes
        if line.startswith("its own split: adding prompts that training never saw")
    ]
    assert (
        len(told) == 1
        and ("lowers" if change < 0 else "raises" if change > 0 else "changes nothing") in told[0]
    )
    assert own["rows"]["all"]["value"][0] == pytest.approx(
        own["rows"]["chosen"]["value"][0] + change, abs=1e-9
    )
    assert any("a saved predictor" in line for line in made.notes)
    assert own["reward_models"]["r(q, p), unseen"]["rows"] == 400


def test_partial_logs_are_valued_by_three_estimators_that_agree_with_the_truth(models):
    log, truth = synthetic_log(5000, every=False)
    made = report(log)
    rows = {row[0]: row for row in table(made, "its own split: off-policy estimates").rows}
    held = truth[log.test_S]
    for column in (1, 2, 3):
        low, high = map(float, rows["the default"][column].split("[")[1].strip("]").split(", "))
        assert low - 0.02 < held[:, 0].mean() < high + 0.02
    assert (
        "oracle" not in made.data["its own split"]["rows"]
    )  # nobody tried every prompt: not to be had
    assert made.data["its own split"]["rows"]["chosen"]["gain"][1] > 0


def test_without_propensities_a_partial_log_has_no_value_and_no_claim(models):
    log, _ = synthetic_log(1200, every=False)
    made = report(replace(log, propensity_SP=None))
    rows = made.data["questions held out"]["rows"]
    assert rows["chosen"]["value"] is None and rows["chosen"]["gain"] is None
    assert not any("a credible" in line for line in made.notes) and any(
        "nothing can be valued" in line for line in made.notes
    )


def test_a_log_with_few_gaps_is_valued_where_it_has_none(models):
    log, _ = synthetic_log(1600)
    gaps = np.random.default_rng(0).random(log.reward_SP.shape) < 0.03
    made = report(replace(log, reward_SP=np.where(gaps, np.nan, log.reward_SP)))
    whole = int((~gaps).all(1)[log.test_S].sum())
    assert made.data["its own split"]["rows"]["chosen"]["gain"][1] > 0
    assert any(
        f"its own split: values are of the {whole} queries on which every prompt was tried" in line
        for line in made.notes
    )


def test_confidence_is_a_way_to_choose_where_it_was_logged(models):
    log, truth = synthetic_log(1200)
    made = report(replace(log, confidence_SP=truth))
    assert made.data["its own split"]["rows"]["confidence"]["value"][0] > 0.68
    partial, truth = synthetic_log(1200, every=False)
    made = report(replace(partial, confidence_SP=np.where(partial.logged_SP, truth, np.nan)))
    assert (
        "confidence" not in made.data["its own split"]["rows"]
    )  # which prompt was tried would choose, not the confidence


def test_a_choice_that_the_log_never_met_and_prompts_only_tried_in_the_test_part(models):
    log, _ = synthetic_log(1200, every=False)
    sent = log.columns([0, 1])
    first = np.where(
        np.arange(2) == 0,
        np.where(np.isnan(sent.reward_SP[:, :1]), sent.reward_SP[:, 1:], sent.reward_SP[:, :1]),
        np.nan,
    )
    train_only = np.where(
        log.test_S[:, None], first, sent.reward_SP
    )  # test queries always got the first prompt, the worse one
    train_only[~log.test_S] = np.where(np.isnan(sent.reward_SP[~log.test_S]), np.nan, [0.0, 1.0])
    tried = ~np.isnan(train_only).all(1)
    odd = replace(
        sent, reward_SP=train_only, propensity_SP=np.where(np.isnan(train_only), np.nan, 0.5)
    ).rows(tried)
    rows = {row[0]: row for row in table(report(odd), "its own split: off-policy estimates").rows}
    assert rows["the default"][2] == "" and rows["the default"][1].startswith(".000")
    new = np.full((1200, 1), np.nan)
    new[log.test_S] = 1.0
    only = np.hstack([np.where(log.test_S[:, None], np.nan, synthetic_log(1200)[0].reward_SP), new])
    made = report(
        replace(
            log,
            names=(*log.names, "n"),
            prompts=(*log.prompts, "New:"),
            reward_SP=only,
            propensity_SP=None,
        )
    )
    assert any("nothing can be valued" in line for line in made.notes)


def test_a_verifier_reads_the_answer():
    log, _ = synthetic_log(600)
    rng = np.random.default_rng(0)
    said = {
        (s, p): (
            f"The total is {rng.integers(99)}."
            if log.reward_SP[s, p]
            else f"Hmm, {rng.integers(99)} perhaps?"
        )
        for s in range(600)
        for p in range(6)
        if rng.random() < 0.98
    }
    found = verify(replace(log, responses=said))
    assert found.auc > 0.99 and found.answers == len(said)
    whole = ~np.isnan(found.score_SP).any(1)
    assert (
        found.value.value == pytest.approx(log.reward_SP[whole].max(1).mean())
        and found.value.n == whole.sum()
    )
    assert verify(log) is None
    noise = {(s, p): f"The total is {rng.integers(99)}." for s in range(600) for p in range(6)}
    blind = verify(replace(log, responses=noise))
    assert 0.45 < blind.auc < 0.6


FIGURES = {"gsm8k": (0.248, 0.501, 0), "mawps": (0.6457, 0.8546, 1685)}
"""data set: what the best prompt and the oracle are worth on its own test queries, and how many of
these are training questions.
"""


@pytest.mark.parametrize("dataset", FIGURES)
def test_the_authors_logs_have_the_published_figures(shared, dataset):
    """What needs no model, of every row: the best prompt in hindsight, the oracle, and the leak."""
    log, _ = read_published(shared("data/prompt-oirl"), dataset)
    test = log.rows(log.test_S)
    seen = log.rows(~log.test_S).logged_SP.any(0)
    best, oracle, count = FIGURES[dataset]
    assert test.reward_SP[:, seen].mean(0).max() == pytest.approx(best, abs=5e-4)
    assert test.reward_SP[:, seen].max(1).mean() == pytest.approx(oracle, abs=5e-4)
    assert count_leaked_queries(log) == count


def checked(log, published, dataset):
    """A report on a real log: no gain is asserted, and nothing may be claimed falsely. -> the
    figures of its own split.
    """
    made = report(log, published)
    own, grouped = made.data["its own split"], made.data["questions held out"]
    assert (
        ("stories held out" in made.data)
        == any(line.startswith("ALIKE") for line in made.notes)
        == (dataset == "mawps")
    )
    assert own["leaked"] == count_leaked_queries(log) and grouped["leaked"] == 0
    assert any(line.startswith("LEAK") for line in made.notes) == (dataset == "mawps")
    for name, split in (("its own split", own), ("questions held out", grouped)):
        gain = split["rows"]["abstaining"]["gain"]
        claimed = next(
            line for line in made.notes if line.startswith(f"{name}: choosing with a margin over")
        )
        assert ("a credible gain" in claimed) == (gain[1] > 0)
        assert split["reward_models"]["r(q, p)"]["AUC"] > 0.6
    return own


@pytest.mark.parametrize("dataset", FIGURES)
def test_a_sixth_of_the_authors_logs(shared, dataset, models):
    """Every sixth question of a real log, with all of its rows."""
    log, published = read_published(shared("data/prompt-oirl"), dataset)
    checked(log.rows(log.question_S % 6 == 0), published, dataset)


@pytest.mark.whole
@pytest.mark.parametrize("dataset", FIGURES)
def test_the_authors_logs(shared, dataset):
    log, published = read_published(shared("data/prompt-oirl"), dataset)
    own = checked(log, published, dataset)
    best, oracle, count = FIGURES[dataset]
    assert own["rows"]["hindsight"]["value"][0] == pytest.approx(best, abs=5e-4)
    assert own["rows"]["oracle"]["value"][0] == pytest.approx(oracle, abs=5e-4)
    assert own["leaked"] == count
