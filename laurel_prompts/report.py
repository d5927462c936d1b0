"""The report: what choosing prompts is worth, on queries that were held out.

Values with paired intervals, the two rewards, verdicts in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from laurel.measure.calibration import expected_calibration_error, reliability_table
from laurel.measure.intervals import Interval
from laurel.report.exhibit import Chart, Exhibit, Table
from laurel_prompts.fit import Fit, fit, gain_on_every_query, log_loss, value_of
from laurel_prompts.logs import (
    Log,
    count_leaked_queries,
    coverage_tables,
    group_by_story,
    grouped_split,
)
from laurel_prompts.model_selection import mean_rewards
from laurel_prompts.models import Rates
from laurel_prompts.policy_value import (
    auc,
    doubly_robust,
    inverse_propensity,
    one_hot,
    regret,
    self_normalised,
    split_oracle,
    verdict,
)
from laurel_prompts.predictor import Predictor, choose_over_default
from laurel_prompts.verifier import Verifier, verify

READING = (
    "The default is the prompt that did best in training. Intervals are of 95 %. An oracle of"
    " single draws is too high, for luck counts (and the regret to it, too); one that learns on"
    " half of a question's draws and is valued on the others is too low."
)
PUBLISHED = {"hindsight": "best train prompt", "chosen": "IRL 0"}
"""A way to choose: the name of its published figure."""

OWN, QUESTIONS, STORIES = "its own split", "questions held out", "stories held out"
SHOWN = 8
"""Models of the cross-validation that are listed."""


@dataclass(frozen=True)
class Row:
    """A way to choose: its value on held-out queries, its paired gain, and what was published.

    The gain is over the default prompt.
    """

    what: str
    value: Interval | None
    gain: Interval | None = None
    published: float | None = None

    def cells(self) -> tuple[str | float | None, ...]:
        return self.what, _cell(self.value, ".3f"), _cell(self.gain, "+.3f"), self.published


@dataclass(frozen=True)
class EvaluatedSplit:
    """One split, evaluated.

    Tables, notes, the calibration of r(q, p) as a picture, and everything as `data`.
    """

    tables: list[Table]
    notes: list[str]
    chart: Chart | None
    data: dict[str, Any]


def report(
    log: Log,
    published: Mapping[str, float] | None = None,
    *,
    features: str = "words",
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Exhibit:
    """Fit and value a log on its own split, if it has one, and on splits by question and by story.
    No test reward chooses anything.
    """
    published = published or {}
    splits = _splits(log, seed)
    tables, notes, data, charts = coverage_tables(log), [], dict[str, Any](), list[Chart]()
    learn = partial(fit, features=features, seed=seed, cache=cache, say=say)
    everywhere = partial(gain_on_every_query, features=features, seed=seed, cache=cache)
    for name, split in splits:
        say(f"split: {name}")
        last = name == splits[-1][0]
        own = published if name == OWN else {}
        part = evaluate_split(name, split, own, learn, everywhere if last else None, seed)
        tables, notes, data = tables + part.tables, notes + part.notes, {**data, name: part.data}
        charts += [part.chart] if part.chart else []
    return Exhibit(
        title=f"Which prompt for which query: {log.name}",
        about=(
            "A reward model learned from logs chooses each query's prompt; no language model is"
            " called. Everything tuned was chosen inside the training part, by cross-validation"
            " over questions. Intervals resample whole questions; those of gains are paired."
        ),
        data=data,
        tables=tuple(tables),
        charts=tuple(charts),
        notes=(*_split_notes(log, splits), READING, *notes),
    )


def _splits(log: Log, seed: int) -> list[tuple[str, Log]]:
    """The log's own split, if it has one, then by question and, if it can be, by story."""
    seen = np.any(log.rows(~log.test_S).logged_SP, axis=0)
    splits = [(OWN, log)] if log.test_S.any() else []
    splits.append((QUESTIONS, _keep_seen_prompts(grouped_split(log, seed=seed), seen)))
    if (by_story := group_by_story(log)) is not None:
        splits.append((STORIES, _keep_seen_prompts(grouped_split(by_story, seed=seed), seen)))
    return splits


def _split_notes(log: Log, splits: list[tuple[str, Log]]) -> list[str]:
    """What is wrong with the log's own split, and how much the questions' split tells stories."""
    notes = []
    if log.test_S.any() and count_leaked_queries(log):
        share = f"{count_leaked_queries(log):,} of {int(log.test_S.sum()):,}"
        notes.append(
            f"LEAK: {share} test queries of its own split are training questions, too. Claims must"
            " be made on another split."
        )
    if (by_story := group_by_story(log)) is not None:
        part = replace(by_story, test_S=dict(splits)[QUESTIONS].test_S)
        share = f"{count_leaked_queries(part):,} of {int(part.test_S.sum()):,}"
        notes.append(
            f"ALIKE: {share} test queries of the questions held out tell a training question's"
            " story with other figures. A gain there may still be memory; claims are safest where"
            " stories are held out."
        )
    return notes


def evaluate_split(
    name: str,
    log: Log,
    published: Mapping[str, float],
    learn: Callable[[Log], Fit],
    everywhere: Callable[[Log], Interval | None] | None,
    seed: int,
) -> EvaluatedSplit:
    """Learn from the training rows of one split, and value on its test rows.

    everywhere: on the last, strictest split the gain out of fold on all rows, too.
    """
    found = learn(log)
    predictor, test = found.predictor, log.rows(log.test_S)
    seen = [p for p, text in enumerate(log.prompts) if text in predictor.prompts]
    everything = _predicted(predictor, test)
    rows = _choices(log, test, found, seen, everything, published)
    if everywhere is not None:
        what = f"with a margin, out of fold: all {len(log.queries):,} queries"
        rows["everywhere"] = Row(what, None, everywhere(log))
    verifier = verify(test, seed=seed)
    rows |= _verifier_row(test, verifier)
    models = _rewards(name, log, test, seen, everything, verifier, published)
    tables = [
        _values(name, test.columns(seen), rows, bool(published)),
        *_estimates(name, test, seen, everything, predictor),
        models,
        _cross_validation(name, found),
    ]
    notes = _notes(name, test.columns(seen), rows, found, count_leaked_queries(log))
    chart = _calibration(name, test.reward_SP[:, seen], everything[:, seen])
    return EvaluatedSplit(
        tables, notes, chart, _figures(rows, found, count_leaked_queries(log), models)
    )


def _verifier_row(test: Log, verifier: Verifier | None) -> dict[str, Row]:
    if verifier is None or verifier.value is None:
        return {}
    what = f"best of {len(test.names)} answers by r(q, a)"
    return {"verifier": Row(what, verifier.value)}


def _predicted(predictor: Predictor, test: Log) -> np.ndarray:
    """r(q, p) of every prompt of a log, [S, P]."""
    x_SD = predictor.features(test.queries)
    return predictor.scores(x_SD, dict(zip(test.names, test.prompts, strict=True)))


def _notes(name: str, test: Log, rows: dict[str, Row], found: Fit, leaks: int) -> list[str]:
    lines = _valued_note(test) + _verdicts(rows, found, leaks > 0)
    return [f"{name}: {line}" for line in lines]


def _count_valued_queries(test: Log) -> int:
    """On how many queries a choice can be valued: all with propensities, else those tried whole."""
    if test.propensity_SP is not None:
        return len(test.queries)
    return int(np.all(test.logged_SP, axis=1).sum())


def _values(name: str, test: Log, rows: dict[str, Row], published: bool) -> Table:
    columns = ("choice", "value", "gain over the default", "published")[: 4 if published else 3]
    cells = tuple(row.cells()[: len(columns)] for row in rows.values())
    return Table(
        f"{name}: value on {_count_valued_queries(test):,} held-out queries", columns, cells
    )


def _cross_validation(name: str, found: Fit) -> Table:
    return Table(
        f"{name}: cross-validation inside the training part: the model picked, then by log loss",
        ("model", "log loss", "AUC", "value"),
        tuple(
            (trial.name, trial.log_loss, trial.auc, trial.value) for trial in found.trials[:SHOWN]
        ),
    )


def _valued_note(test: Log) -> list[str]:
    """Which queries the values are of, where it is not all of them."""
    valued = _count_valued_queries(test)
    if valued == len(test.queries):
        return []
    if valued:
        return [
            f"values are of the {valued:,} queries on which every prompt was tried; others may"
            " differ."
        ]
    return [
        "no query had every prompt tried, and there are no propensities: nothing can be valued"
        " or claimed."
    ]


def _figures(rows: dict[str, Row], found: Fit, leaks: int, models: Table) -> dict[str, Any]:
    """Everything as data."""
    predictor = found.predictor
    return {
        "rows": {
            key: {"value": _plain(row.value), "gain": _plain(row.gain), "published": row.published}
            for key, row in rows.items()
        },
        "model": found.trials[0].name,
        "margin": predictor.margin,
        "default": predictor.names[predictor.default()],
        "cross_validated_gain": _plain(found.gain),
        "unseen_gain": _plain(found.unseen),
        "leaked": leaks,
        "reward_models": {
            str(row[0]): dict(zip(models.columns[1:], row[1:], strict=True)) for row in models.rows
        },
    }


def _calibration(name: str, reward_SP: np.ndarray, predicted_SP: np.ndarray) -> Chart | None:
    """What r(q, p) said against what happened, by tenths; None where nothing happened."""
    tried = ~np.isnan(reward_SP)
    if not tried.any():
        return None
    bins = reliability_table(predicted_SP[tried], reward_SP[tried])
    lines = [
        (row.confidence, row.frequency.value, row.frequency.low, row.frequency.high) for row in bins
    ]
    right = [(row.confidence, row.confidence, row.confidence, row.confidence) for row in bins]
    return Chart(
        f"{name}: calibration of r(q, p)",
        "chance that was said",
        "share that was right",
        {"r(q, p)": lines, "if it were right": right},
    )


def _choices(
    log: Log,
    test: Log,
    found: Fit,
    seen: list[int],
    predicted: np.ndarray,
    published: Mapping[str, float],
) -> dict[str, Row]:
    """Every way to choose, the default prompt first: what the gains are over."""
    predictor = found.predictor
    inside, own = test.columns(seen), predicted[:, seen]
    default = predictor.default()
    always = np.full(len(inside.queries), default)
    best = int(np.argmax(mean_rewards(inside)))
    title = f"in hindsight: {inside.names[best]}"
    choices = {
        "hindsight": (title, np.full_like(always, best)),
        "chosen": ("chosen per query", own.argmax(1)),
        "abstaining": ("chosen with a margin", choose_over_default(own, default, predictor.margin)),
    }
    rows = {"best": Row(f"default: {predictor.names[default]}", value_of(inside, always, own))}
    for key, (what, choice_S) in choices.items():
        value, gain = _value_and_gain(inside, choice_S, own, always)
        rows[key] = Row(what, value, gain, published.get(PUBLISHED.get(key, "")))
    rows |= _unseen_rows(test, predicted, seen, default, published)
    rows |= _confidence_rows(inside, own, always, published)
    return rows | _oracle_rows(inside, own)


def _value_and_gain(
    test: Log, choice_S: np.ndarray, predicted_SP: np.ndarray, default_S: np.ndarray
) -> tuple[Interval | None, Interval | None]:
    value = value_of(test, choice_S, predicted_SP)
    return value, value_of(test, choice_S, predicted_SP, default_S)


def _confidence_rows(
    inside: Log,
    predicted_SP: np.ndarray,
    default_S: np.ndarray,
    published: Mapping[str, float],
) -> dict[str, Row]:
    """The choice of the language model's own confidence."""
    what, key = "the model's own confidence", "LLM confidence"
    confidence_SP = inside.confidence_SP
    if confidence_SP is None:
        missing = Row(f"{what} (not logged)", None, None, published.get(key))
        return {"confidence": missing} if key in published else {}
    # where prompts are missing, which one is there says too much
    known_S = np.all(inside.logged_SP & ~np.isnan(confidence_SP), axis=1)
    if not known_S.any():
        return {}
    part, chosen = inside.rows(known_S), confidence_SP[known_S].argmax(1)
    value, gain = _value_and_gain(part, chosen, predicted_SP[known_S], default_S[known_S])
    return {"confidence": Row(what, value, gain, published.get(key))}


def _oracle_rows(inside: Log, predicted_SP: np.ndarray) -> dict[str, Row]:
    """What the best choice in hindsight is worth; nothing unless every prompt was tried."""
    if not inside.logged_SP.all():
        return {}
    reward_SP, question_S = inside.reward_SP, inside.question_S
    best = value_of(inside, reward_SP.argmax(1), predicted_SP)
    lost = regret(reward_SP, one_hot(predicted_SP.argmax(1), reward_SP.shape[1]), question_S)
    rows = {
        "oracle": Row("oracle of single draws", best),
        "regret": Row("regret to it, chosen per query", lost),
    }
    if (split := split_oracle(reward_SP, question_S)) is not None:
        rows["split"] = Row("oracle of split draws", split)
    return rows


def _unseen_rows(
    test: Log, predicted: np.ndarray, seen: list[int], default: int, published: Mapping[str, float]
) -> dict[str, Row]:
    """Choosing among all prompts, unseen ones included, on queries where all were tried.

    Unseen prompts are those that training did not use. Nothing without such prompts or queries.
    """
    whole_S = np.all(test.logged_SP, axis=1)
    if len(seen) == len(test.names) or not whole_S.any():
        return {}
    whole, predicted = test.rows(whole_S), predicted[whole_S]
    always = np.full(len(whole.queries), seen[default])
    own = np.array(seen)[predicted[:, seen].argmax(1)]
    count = len(whole.names) - len(seen)
    every = predicted.argmax(1)
    return {
        "all": Row(
            f"of all prompts, {count} unseen",
            value_of(whole, every, predicted),
            value_of(whole, every, predicted, always),
            published.get("all mixed"),
        ),
        "adding": Row("adding the unseen", None, value_of(whole, every, predicted, own)),
        "all oracle": Row(
            "oracle, all prompts", value_of(whole, whole.reward_SP.argmax(1), predicted)
        ),
    }


def _rewards(
    name: str,
    log: Log,
    test: Log,
    seen: list[int],
    predicted_SP: np.ndarray,
    verifier: Verifier | None,
    published: Mapping[str, float],
) -> Table:
    """The reward models compared: AUC, log loss and calibration.

    Beside always-no and each prompt's rate: accuracy means little where most answers are wrong.
    """
    rate_P = _training_rates(log, seen)
    unseen = [p for p in range(len(log.names)) if p not in seen]
    rows: list[tuple[str | float | None, ...]] = []
    for what, places, figure in (
        ("r(q, p)", seen, "RM acc held-out query"),
        ("r(q, p), unseen", unseen, "RM acc held-out prompt"),
    ):
        tried_SP = test.logged_SP[:, places]
        if tried_SP.any():
            right = test.reward_SP[:, places][tried_SP]
            rate = np.broadcast_to(rate_P[places], tried_SP.shape)[tried_SP]
            figures = _model_figures(predicted_SP[:, places][tried_SP], right, rate)
            rows.append((what, len(right), *figures, published.get(figure)))
    if verifier is not None:
        figures = verifier.answers, verifier.accuracy, verifier.always_no, verifier.auc
        rows.append(("r(q, a)", *figures, *[None] * 4))
    columns = REWARDS[: 9 if published else 8]
    title = f"{name}: the reward models on held-out queries"
    return Table(title, columns, tuple(row[: len(columns)] for row in rows))


REWARDS = (
    "reward",
    "rows",
    "accuracy",
    "always no",
    "AUC",
    "AUC of rates",
    "log loss",
    "ECE",
    "published",
)


def _training_rates(log: Log, seen: list[int]) -> np.ndarray:
    """Each prompt's rate in training, [P]; of an unseen prompt the mean of these."""
    train, none = log.rows(~log.test_S).columns(seen), np.zeros((0, 0))
    rate_P = Rates().fit(none, none, train.reward_SP).rate_P
    assert rate_P is not None
    every_P = np.full(len(log.names), rate_P.mean())
    every_P[seen] = rate_P
    return every_P


def _model_figures(predicted: np.ndarray, right: np.ndarray, rate: np.ndarray) -> tuple[float, ...]:
    """REWARDS of a reward model over cells, from the accuracy on."""
    return (
        float(((predicted > 0.5) == (right > 0.5)).mean()),
        float((right <= 0.5).mean()),
        auc(predicted, right),
        auc(rate, right),
        log_loss(predicted, right),
        expected_calibration_error(predicted, right),
    )


def _estimates(
    name: str, test: Log, seen: list[int], everything: np.ndarray, predictor: Predictor
) -> list[Table]:
    """The three estimators for the choice and for the default; nothing without propensities."""
    if test.propensity_SP is None or test.logged_SP.all():
        return []
    test, predicted = test.columns(seen), everything[:, seen]
    assert test.propensity_SP is not None
    default = int(np.argmax(predictor.rate_P))
    rows = []
    for what, choice in (
        ("the default", np.full(len(predicted), default)),
        ("chosen per query", predicted.argmax(1)),
        ("chosen with a margin", choose_over_default(predicted, default, predictor.margin)),
    ):
        policy = one_hot(choice, len(test.names))
        given = (test.reward_SP, test.propensity_SP, policy)
        # where the choice was never logged, IPS is 0 and SNIPS is undefined
        met = policy[test.logged_SP].any()
        estimates = (
            inverse_propensity(*given, test.question_S),
            self_normalised(*given, test.question_S) if met else None,
            doubly_robust(*given, predicted, test.question_S),
        )
        rows.append((what, *(_cell(estimate, ".3f") for estimate in estimates)))
    columns = ("choice", "inverse propensity", "self-normalised", "doubly robust")
    return [Table(f"{name}: off-policy estimates", columns, tuple(rows))]


def _verdicts(rows: dict[str, Row], found: Fit, leak: bool) -> list[str]:
    """The verdicts in words."""
    lines = _gain_verdicts(rows, leak)
    if np.isinf(found.predictor.margin):
        lines.append(
            "no margin's gain was credible in cross-validation, so with a margin the default prompt"
            " is always sent."
        )
    if (adding := rows.get("adding")) is not None and adding.gain is not None:
        lines += _adding_verdicts(adding.gain, found)
    return lines


def _gain_verdicts(rows: dict[str, Row], leak: bool) -> list[str]:
    lines = []
    for key, what in (
        ("chosen", "choosing a prompt per query"),
        ("abstaining", "choosing with a margin"),
        ("everywhere", "choosing with a margin, out of fold over all queries,"),
        ("all", "choosing among all prompts"),
    ):
        gained = rows[key].gain if key in rows else None
        if gained is not None:
            words = f"{verdict(gained)}, of leaked questions: no claim" if leak else verdict(gained)
            lines.append(f"{what} over the default {_signed_text(gained)}: {words}.")
    return lines


def _adding_verdicts(change: Interval, found: Fit) -> list[str]:
    """Of prompts that training did not use: what adding them changed, and whether they are sent."""
    word = "changes nothing"
    if change.value:
        word = "lowers the value" if change.value < 0 else "raises the value"
    sure = "credible" if change.low > 0 or change.high < 0 else "not credible"
    allowed = "may" if found.predictor.unseen else "would not"
    left = ""
    if found.unseen is not None:
        back = _signed_text(found.unseen)
        left = f" With each training prompt left out in turn, adding it back {back}."
    return [
        f"adding prompts that training never saw {word}: {_signed_text(change)}, {sure}.",
        f"a saved predictor {allowed} send unseen prompts.{left}",
    ]


def _signed_text(interval: Interval) -> str:
    return _cell(interval, "+.3f")


def _keep_seen_prompts(log: Log, seen: np.ndarray) -> Log:
    """A new split must not teach prompts that were only ever tried on the log's own test part."""
    return replace(log, reward_SP=np.where(~log.test_S[:, None] & ~seen, np.nan, log.reward_SP))


def _cell(interval: Interval | None, form: str) -> str:
    if interval is None:
        return ""
    value, low, high = (
        f"{number:{form}}".replace("0.", ".", 1)
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"


def _plain(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.value, interval.low, interval.high]
