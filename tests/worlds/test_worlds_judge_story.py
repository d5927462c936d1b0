"""Annotators against a judge: the linear reward model learns what its teacher likes, and the story
is told from files of LLMFAO's shape.
"""

import csv
import json
import random
import sys

import numpy as np
import pytest

from laurel_worlds.experiments import judge_story, prediction_powered
from laurel_worlds.linear_reward import FEATURES, features, fit_linear


def test_features_by_hand():
    found = dict(zip(FEATURES, features("name a cat", "a cat. a cat. a cat."), strict=True))
    assert found["log of the words"] == pytest.approx(np.log(7))
    assert found["share of repeated three words"] == pytest.approx(0.5)  # 4 threes, 2 different
    assert found["words shared with the prompt"] == pytest.approx(2 / 4)
    assert found["ends with a full stop"] == 1 and found["a list"] == 0 == found["empty"]
    assert dict(zip(FEATURES, features("x", ""), strict=True))["empty"] == 1


def test_a_linear_reward_learns_what_its_teacher_likes():
    """Teachers of long and of short answers: the sign of the weight, and prompts never seen."""
    rng = random.Random(0)
    pairs, prompts = {}, {}
    for k in range(200):
        said = [" ".join(rng.choices("abcdefgh", k=rng.randint(2, 40))) for _ in range(2)]
        pairs[str(k)] = ("say", *said)
        prompts[str(k)] = k % 5
    longer = {n: float(len(one) > len(two)) for n, (_, one, two) in pairs.items()}
    for likes in (1, -1):
        taught = {n: (v if likes > 0 else 1 - v, 1.0) for n, v in longer.items()}
        found = fit_linear(pairs, taught, prompts)
        assert likes * found.weights[0] > 2 * found.half[0] > 0
        right = [(found.gaps[n] > 0) == (taught[n][0] > 0.5) for n in pairs]
        assert np.mean(right) > 0.95


@pytest.fixture
def llmfao(tmp_path):
    """Six systems over twelve prompts; people like the short answer, GPT-3.5 the left one."""
    rng = random.Random(1)
    pairs, votes, gpt4, gpt3 = [], [], [], []
    for k in range(120):
        x, y = rng.sample(range(6), 2)
        texts = [" ".join(["word"] * rng.randint(1, 30)) + "." for _ in range(2)]
        short = "left" if len(texts[0]) < len(texts[1]) else "right"
        row = {"id": k, "prompt": k % 12, "left": f"GPT {x}", "right": f"GPT {y}"}
        pairs.append({**row, "text": "ask", "result_x": texts[0], "result_y": texts[1]})
        votes += [{**row, "worker": w, "winner": short} for w in range(2)]
        gpt4.append({**row, "winner": short if rng.random() < 0.8 else "tie"})
        gpt3.append({**row, "winner": "left" if rng.random() < 0.8 else "right"})
    (tmp_path / "pairs-crowd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    for name, rows in (("crowd", votes), ("gpt4-crowd", gpt4), ("gpt3-crowd", gpt3)):
        with (tmp_path / f"{name}-comparisons.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


def test_the_story_is_told(llmfao, monkeypatch, capsys):
    page = llmfao / "story.html"
    monkeypatch.setattr(sys, "argv", ["judge_story", str(llmfao), "--html", str(page)])
    judge_story.main()
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    assert "✓ GPT-3.5 goes by the place" in told
    assert "✓ A reward model of people's votes agrees with people about new prompts" in told
    assert "✗ GPT-4 agrees with a person less often" in told  # here it never differs from people
    assert "✓ GPT-3.5 agrees with a person less often" in told
    html = page.read_text()
    assert "linear model of people" in html and html.count("<svg") >= 3


def test_the_table_of_designs(monkeypatch, capsys):
    monkeypatch.setattr(prediction_powered, "DESIGNS", ((50, 500, 0.5),))
    monkeypatch.setattr(prediction_powered, "STUDIES", 40)
    monkeypatch.setattr(sys, "argv", ["prediction_powered", "--seeds", "8"])
    prediction_powered.main()
    told = capsys.readouterr().out
    assert "50 labels, truth 0.5, nearly right: better (0.4" in told
    assert told.count("| 50 ") == len(prediction_powered.JUDGES)
