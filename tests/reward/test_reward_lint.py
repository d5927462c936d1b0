"""The lint: no built-in verifier gives full credit to an answer that is none."""

import pytest

from laurel.core.result import Score
from laurel.data.tasks import TASKS
from laurel.reward.lint import ATTACKS, lint
from laurel.reward.mixture import load_rewards
from laurel.reward.verifiers import VERIFIERS

ROWS = {
    "exact": [
        {"prompt": "The capital of France?", "answer": "Paris"},
        {"prompt": "What is 6 times 7, perhaps 42?", "answer": "42"},
    ],
    "numeric": [
        {"prompt": "What is 6 times 7, perhaps 42?", "answer": "42"},
        {"prompt": "Half of three, as a number", "answer": "3/2"},
    ],
    "math": [
        {"prompt": r"Solve $x^2=2$, $x>0$: is it $\sqrt{2}$?", "answer": r"\sqrt{2}"},
        {"prompt": "What is 6 times 7, is it 42?", "answer": "42"},
    ],
    "choice": [{"prompt": "Which? A) red B) blue C) green", "answer": letter} for letter in "ABC"],
    "regex": [{"prompt": "When, as in 2024-05?", "pattern": r"\d{4}-\d\d", "answer": "2024-06"}],
    "format": [
        {"prompt": "Use <think>thoughts</think> and <answer>your answer</answer>.", "answer": "42"}
    ],
    "humaneval": [
        {
            "prompt": 'def double(x: int) -> int:\n    """ Twice x. """\n',
            "entry_point": "double",
            "canonical_solution": "    return 2 * x\n",
            "test": (
                "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) =="
                " -2\n"
            ),
        }
    ],
    "code": [
        {
            "prompt": "Write double(x) that doubles a number.",
            "tests": "assert double(2) == 4\nassert double(-1) == -2",
        }
    ],
    "ifeval": [
        {
            "prompt": (
                "Write two lines about rain without commas, at least 5 words, with the word"
                " umbrella, ending in THE END."
            ),
            "instruction_id_list": [
                "punctuation:no_comma",
                "keywords:existence",
                "startend:end_checker",
            ],
            "kwargs": [{}, {"keywords": ["umbrella", "rain"]}, {"end_phrase": "THE END"}],
        }
    ],
    "gsm8k": [
        {
            "question": "Six boxes hold seven eggs each; are there 42 eggs?",
            "answer": "6 * 7 = 42\n#### 42",
        }
    ],
    "leg_counting": [
        {
            "question": (
                "Now, how many legs are there in total if you have 8 beetles, 15 starfishs, 9"
                " snakes?"
            ),
            "answer": "123",
        }
    ],
    "simple_equations": [{"question": "Solve for a: -22*a - 17 = -919", "answer": "41"}],
}


def rows_of(name):
    return ROWS[name] if name in ROWS else TASKS[name].generate(0, 3)


@pytest.mark.parametrize("name", VERIFIERS)
def test_A43_no_verifier_is_gamed(name, tmp_path, monkeypatch):
    """A43: the adversarial corpus earns full credit from none of the built-in verifiers, and leaves
    no trace on disk.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("laurel.reward.math.POOL.seconds", 0.5)
    monkeypatch.setattr("laurel.reward.code.SECONDS", 0.5)
    assert lint(VERIFIERS[name], rows_of(name)) == []
    assert not list(tmp_path.iterdir())


def test_lint_finds_a_verifier_that_looks_for_the_gold_anywhere():
    def naive(answer, row):
        return Score(float(row["answer"] in answer))

    found = {finding.attack for finding in lint(naive, ROWS["numeric"])}
    assert {"hedge", "many boxed", "every number", "echo of the prompt"} <= found
    mixture = load_rewards([naive], None, ROWS["numeric"])
    assert {finding.attack for finding in lint(mixture, ROWS["numeric"])} == found


def test_lint_finds_a_reward_of_length():
    mixture = load_rewards(
        [lambda completions: [min(1.0, len(text) / 100) for text in completions]],
        None,
        ROWS["exact"],
    )
    assert "whole alphabet" not in {finding.attack for finding in lint(mixture, ROWS["exact"])}
    assert "tag junk" in {finding.attack for finding in lint(mixture, ROWS["exact"])}
    assert len(ATTACKS) >= 20


def test_the_rows_used_here_have_right_answers_that_score():
    """The lint would prove little about verifiers that never pay."""
    for name, answer in [
        ("exact", "Paris"),
        ("numeric", "42"),
        ("math", r"\sqrt{2}"),
        ("choice", "A"),
        ("regex", "2024-06"),
        ("gsm8k", "42"),
    ]:
        rows = rows_of(name)
        assert any(
            VERIFIERS[name](answer, row) == Score(1.0, VERIFIERS[name](answer, row).reason)
            for row in rows
        )
    assert VERIFIERS["humaneval"]("    return 2 * x\n", ROWS["humaneval"][0]).value == 1
    assert VERIFIERS["ifeval"]("An umbrella in the rain. THE END", ROWS["ifeval"][0]).value == 1
    assert VERIFIERS["format"]("<think>six sevens</think><answer>42</answer>", {}).value == 1
