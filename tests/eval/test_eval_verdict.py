"""What held-out rows say of a scorer: numbers by hand from scores that are known, and trivial
baselines.
"""

import json
import math

import pytest
import torch
from arithmetic import agree, near

from laurel.data.source import Row
from laurel.eval.verdict import calibration_of, judge_scorer, ordered_pairs
from laurel.model.scorer import load_scorer
from laurel.model.scratch import save_scratch
from laurel.rollout.source import OUTCOMES, RANKINGS, STEPS


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    path = save_scratch(
        tmp_path_factory.mktemp("model"), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return {labels: load_scorer(str(path), num_labels=labels, device="cpu") for labels in (1, 3)}


def as_rows(*columns):
    return [Row(one, f"row {i}", str(i)) for i, one in enumerate(columns)]


def test_pairs_of_a_ranking():
    assert ordered_pairs({"ranks": [1, 2, 2]}) == [(0, 1), (0, 2)]
    assert ordered_pairs({"ranks": [3, 1]}) == [(1, 0)]
    assert ordered_pairs({"chosen": "a", "rejected": "b"}) == [(0, 1)]


def test_pairs_are_right_as_often_as_their_scores_say(scorers):
    scorer = scorers[1]
    rows = as_rows(
        *[{"prompt": f"{i}=", "chosen": "7" * (1 + i % 3), "rejected": str(i)} for i in range(8)]
    )
    verdict = judge_scorer(scorer, rows, RANKINGS)
    sides = [
        (row.columns["prompt"], row.columns[side])
        for row in rows
        for side in ("chosen", "rejected")
    ]
    scores = scorer.score([{"prompt": prompt, "completion": said} for prompt, said in sides])
    agree(torch.tensor(verdict.scores), scores)
    gaps = scores[0::2] - scores[1::2]
    assert verdict.figures["accuracy"].value == pytest.approx(float((gaps.sign() + 1).mean() / 2))
    assert verdict.figures["pairs"] == 8 and verdict.figures["margin"] == near(float(gaps.mean()))
    assert verdict.figures["length_baseline"].value == pytest.approx(
        (3 * 0.5 + 3 + 2) / 8
    )  # lengths 1, 2, 3, 1, ... against 1
    assert json.loads(json.dumps(verdict.as_json()))["accuracy"]["n"] == 8


def test_length_learns_its_direction_from_known_rows(scorers):
    rows = as_rows(*[{"prompt": f"{i}=", "chosen": "7777", "rejected": "1"} for i in range(4)])
    shorter = as_rows(*[{"prompt": f"{i}=", "chosen": "1", "rejected": "7777"} for i in range(4)])
    assert judge_scorer(scorers[1], rows, RANKINGS).figures["length_baseline"].value == 1.0
    assert (
        judge_scorer(scorers[1], rows, RANKINGS, known=shorter).figures["length_baseline"].value
        == 0.0
    )


def test_outcomes_beside_the_commoner_one(scorers):
    rows = as_rows(
        *[{"prompt": f"{i}=", "completion": str(i * 37), "label": i % 4 == 0} for i in range(8)]
    )
    verdict = judge_scorer(scorers[1], rows, OUTCOMES)
    right = [
        (score > 0) == row.columns["label"] for score, row in zip(verdict.scores, rows, strict=True)
    ]
    assert (
        verdict.figures["accuracy"].value == sum(right) / 8
        and verdict.figures["majority"].value == 0.75
    )
    said = [1 / (1 + math.exp(-score)) for score in verdict.scores]
    assert (
        verdict.figures["calibration_error"]
        == calibration_of(said, [float(row.columns["label"]) for row in rows])["calibration_error"]
    )


def test_steps_beside_the_commonest_class(scorers):
    scorer = scorers[3]
    rows = as_rows(
        {"prompt": "1=", "completions": ["a", "b", "c"], "labels": [1, 1, -1]},
        {"prompt": "2=", "completions": ["d", "e"], "labels": [True, False]},
        {"prompt": "3=", "completions": ["f"], "labels": [0]},
    )
    verdict = judge_scorer(scorer, rows, STEPS)
    said = []
    for row in rows:
        ids, text = scorer.tokenizer(row.columns["prompt"])["input_ids"], ""
        for step in row.columns["completions"]:
            text += "\n" + step
            said.append(
                int(
                    scorer.score(
                        [(*ids, *scorer.tokenizer(text, add_special_tokens=False)["input_ids"])]
                    )[0].argmax()
                )
                - 1
            )
    true = [1, 1, -1, 1, -1, 0]
    assert verdict.figures["accuracy"].value == pytest.approx(
        sum(a == b for a, b in zip(said, true, strict=True)) / 6
    )
    assert verdict.figures["majority"].value == pytest.approx(0.5) and verdict.figures[
        "nothing_wrong"
    ].value == pytest.approx(1 / 3)
    assert verdict.figures["steps"] == 6 and any(
        "calibration error" in line for line in verdict.lines
    )


def test_calibration_by_hand():
    """Said .9 four times, three came true: an error of .15."""
    assert calibration_of([0.9] * 4, [1.0, 1.0, 1.0, 0.0])["calibration_error"] == pytest.approx(
        0.15
    )
