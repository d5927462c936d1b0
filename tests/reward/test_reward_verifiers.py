"""Built-in verifiers: right answers, wrong answers, degenerate answers, answers that never end."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.core.result import Abstain, Failed, Score
from laurel.core.workers import Workers
from laurel.reward import math as mathematics
from laurel.reward import patterns
from laurel.reward.code import extract_program, whole_program
from laurel.reward.extract import boxed, final_number, own_words, unboxed_answer
from laurel.reward.load import load_verifier
from laurel.reward.patterns import Format, regex
from laurel.reward.text import answer_letters, choice, exact, numeric
from laurel.reward.verifiers import NEEDS, VERIFIERS


def value(result):
    assert isinstance(result, Score), result
    return result.value


# Numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 49 - 10 = 39.", 39),
        ("$1,234.00", 1234),
        ("1/2", Fraction(1, 2)),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("50%", 50),
        (r"50\%", 50),
        ("= -3", -3),
        ("-$5", -5),
        ("x=-7", -7),
        ("\N{MINUS SIGN}4", -4),
        ("1e3", 1000),
        ("12,000 dollars", 12000),
        (r"18 \text{ dollars}", 18),
        ("8\n8", 8),
        ("7 + 5 = 12\n12 + 3 = 15", 15),
        ("the total is **42**", 42),
        ("", None),
        ("None", None),
        (r"\emptyset", None),
        ("3 or 4", None),
        ("1, 2, 3", None),
        ("1 2 3 4", None),
        ("12\n39", None),
        ("9**9**9**9", None),
        ("49 - 10", None),
        ("1e999999999", None),
        ("1/0", None),
        ("9" * 200, None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "${}", "The answer is {}.", "#### {}", r"\boxed{{{}}}", "1 + 1 = {}"]),
)
def test_any_whole_number_is_read_back_from_any_dress(number, dress):
    """Invariance: the dress does not matter, nor do commas; a neighbour is wrong."""
    row = {"answer": str(number)}
    assert (
        value(numeric(dress.format(number), row)) == 1
        and value(numeric(dress.format(f"{number:,}"), row)) == 1
    )
    assert value(numeric(dress.format(number + 1), row)) == 0


def test_T57_money_and_fractions_are_numbers():
    """T57: $1,234.00 == 1234; 0.5 == 1/2."""
    for verifier in (numeric, VERIFIERS["math"]):
        assert value(verifier("$1,234.00", {"answer": "1234"})) == 1
        assert value(verifier("0.5", {"answer": "1/2"})) == 1
        assert value(verifier(r"\boxed{\frac{1}{2}}", {"answer": "0.5"})) == 1
    assert (
        value(numeric("0.333333", {"answer": "1/3"})) == 1
        and value(numeric("0.33", {"answer": "1/3"})) == 0
    )
    assert value(numeric("1000000001", {"answer": "1000000000"})) == 0


@pytest.mark.parametrize("name", ["numeric", "math", "gsm8k", "exact", "addition"])
@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "None",
        r"\emptyset",
        " ".join(map(str, range(100))),
        r"\boxed{45} \boxed{46}",
        "46 or 45",
        "What is 12 + 34, is it 46?\n12+34=",
    ],
)
def test_T57_degenerate_answers_earn_nothing(name, answer):
    """T57: empty, None, the empty set, all numbers, two different boxes, a hedge, the echo of a
    prompt that holds the gold.
    """
    row = {
        "prompt": "What is 12 + 34, is it 46?\n12+34=",
        "answer": "#### 46" if name == "gsm8k" else "46",
    }
    assert value(VERIFIERS[name](answer, row)) == 0


def test_T57_the_gold_may_stand_in_the_prompt_if_it_is_the_answer():
    row = {"prompt": "Which number is larger, 41 or 42?", "answer": "42"}
    for verifier in (numeric, VERIFIERS["math"]):
        assert value(verifier("Which number is larger, 41 or 42?", row)) == 0
        assert value(verifier("42", row)) == 1
        assert value(verifier("Which number is larger, 41 or 42? It is 42.", row)) == 1
    assert own_words("a b", {"prompt": "a"}) == "a b"  # too short to be an echo


def test_the_last_mark_decides():
    assert unboxed_answer("the answer is 1. No, the answer is 2. I checked 3 times.") == "2"
    assert (
        unboxed_answer("#### 5\nDone in 3 steps") == "5"
        and unboxed_answer("nothing marked 4") == "nothing marked 4"
    )
    assert value(numeric("The answer is 42. I checked it 2 times.", {"answer": "42"})) == 1
    assert value(numeric("#### 41\n#### 42", {"answer": "42"})) == 1


def test_boxes_nest_and_unclosed_ones_do_not_count():
    assert boxed(r"\boxed{\frac{1}{2}} then \fbox{ \{x\} } then \boxed{y") == [
        r"\frac{1}{2}",
        r"\{x\}",
    ]
    began = time.monotonic()
    assert boxed("{" * 10**6) == [] and boxed(r"\boxed" + "{" * 10**6) == []
    assert time.monotonic() - began < 5


def test_a_row_without_a_gold_is_a_failure_not_a_zero():
    for name in ("exact", "numeric", "math", "choice", "regex", "humaneval", "code", "ifeval"):
        assert isinstance(VERIFIERS[name]("42", {"question": "?"}), Failed)
    assert isinstance(numeric("42", {"answer": "a word"}), Failed)


# Text, letters, patterns


def test_exact_ignores_white_space_only():
    row = {"answer": "New  York\n"}
    assert value(exact(" New York", row)) == 1 and value(exact("new york", row)) == 0
    assert value(exact("x", {"completion": "x"})) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "(B)",
        "(b)",
        "B.",
        "B) Paris",
        "**B**",
        "Answer: B",
        "answer: b",
        "The answer is (B).",
        r"\boxed{B}",
        r"\boxed{\text{(B)}}",
        "I think B",
        "A dog is B",
        "option B",
        "The correct option is B because of its colour",
        "B\n\nBecause it is.",
    ],
)
def test_choice_reads_the_letter(answer):
    assert (
        value(choice(answer, {"answer": "B"})) == 1
        and value(choice(answer, {"answer": "(C)"})) == 0
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "None",
        "A or B",
        "(A) (B)",
        "A B C D E F G H I J",
        "B and C",
        r"\boxed{A} \boxed{B}",
        r"\boxed{A, B}",
        "answer: A. answer: B",
        "Z",
    ],
)
def test_choice_wants_one_letter(answer):
    assert value(choice(answer, {"answer": "B"})) == 0


def test_letters_of_a_text():
    assert answer_letters("(A) or (C)") == {"A", "C"} and answer_letters("no letter here") == set()


def test_regex_matches_the_whole_answer():
    row = {"pattern": r"\d{4}-\d\d"}
    assert value(regex(" 2024-05\n", row)) == 1 and value(regex("on 2024-05 we met", row)) == 0
    assert (
        isinstance(regex("x", {"pattern": "("}), Failed)
        and "missing )" in regex("x", {"pattern": "("}).reason
    )


def test_format_is_a_gate_and_strict():
    gate = Format()
    good = "<think>two and two</think>\n<answer>4</answer>"
    assert gate.gate and value(gate(good, {})) == 1
    for bad in (
        "",
        "4",
        good + good,
        "x" + good,
        "<think></think><answer></answer>",
        "<think>a<answer>4</answer></think><answer>4</answer>",
    ):
        assert value(gate(bad, {})) == 0
    assert value(load_verifier("format:\\d+")("12", {})) == 1
    with pytest.raises(UsageError, match="not a regular expression"):
        Format("(")


# Mathematics


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1),
        (r"\sqrt{2}", r"it is $\sqrt{2}$.", 1),
        ("4", r"it is $\sqrt{16}$.", 1),
        ("(1,2)", "The answer is $(1,2)$", 1),
        ("42", r"\boxed{42} that is \boxed{42.0}", 1),
        ("42", r"\boxed{41} \boxed{42}", 0),
        ("42", r"\boxed{1,2,42}", 0),
        ("5", r"\boxed{x=5}", 1),
        (r"\boxed{7}", "7", 1),
        ("0", r"\emptyset", 0),
        ("0", r"\boxed{\emptyset}", 0),
        ("50", r"\boxed{50\%}", 1),
        (r"\frac{\pi}{2}", r"\boxed{\pi/2}", 1),
        ("42", r"\boxed{1} \boxed{2} \boxed{3} \boxed{4} \boxed{42}", 0),
        ("42", r"\boxed{}", 0),
    ],
)
def test_math_is_equivalence(gold, answer, right):
    assert value(VERIFIERS["math"](answer, {"answer": gold})) == right


HANGS = {
    "power tower": r"\boxed{9^{9^{9^{9}}}}",
    "100k braces": r"\boxed" + "{" * 100_000 + "}" * 100_000,
    "400 braces": r"\boxed{" + "{" * 400 + "}" * 400 + "}",
    "1 MB": "9" * 1_000_000,
    "bare tower": "9**9**9**9",
}


def test_T55_math_never_hangs(monkeypatch):
    """T55: towers, braces and megabytes are Failed or 0 within the limit; after 50 of them the pool
    still serves.
    """
    with Workers(
        mathematics.equivalent, seconds=0.15, warm=mathematics.POOL._settings["warm"]
    ) as pool:
        monkeypatch.setattr(mathematics, "POOL", pool)
        pool.call((r"\boxed{1}", (r"\boxed{1}",)), seconds=10)
        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            results = list(
                threads.map(
                    lambda answer: VERIFIERS["math"](answer, {"answer": "42"}),
                    list(HANGS.values()) * 10,
                )
            )
        assert time.monotonic() - began < 15
        assert all(isinstance(result, Failed) or result.value == 0 for result in results)
        assert any("took longer" in result.reason for result in results)
        pool.seconds = 10.0  # of a sound answer even a busy machine says it
        assert value(VERIFIERS["math"](r"\boxed{\frac{84}{2}}", {"answer": "42"})) == 1


def test_T55_regex_bomb(monkeypatch):
    """T55: a regex bomb is Failed within its limit, fifty times, and the pool still serves."""
    with Workers(patterns.is_full_match, seconds=0.04) as pool:
        monkeypatch.setattr(patterns, "POOL", pool)
        row = {"pattern": "(a+)+b"}
        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(lambda _: regex("a" * 50, row), range(50)))
        assert time.monotonic() - began < 10
        assert all(
            isinstance(result, Failed) and "took longer" in result.reason for result in results
        )
        pool.seconds = 10.0  # of a sound answer even a busy machine says it
        assert value(regex("aaab", row)) == 1 and value(regex("x" * 10**6, row)) == 0


@pytest.mark.parametrize(
    "name",
    [name for name in VERIFIERS if name not in ("math", "regex", "format", "humaneval", "code")],
)
@pytest.mark.parametrize(
    "answer",
    [
        *HANGS.values(),
        "1 " * 500_000,
        "<" * 1_000_000,
        "\n" * 1_000_000,
        "A" * 1_000_000,
        "answer " * 100_000,
    ],
)
def test_T55_no_verifier_hangs(name, answer):
    """T55: the rest of the verifiers are bounded by themselves."""
    row = {
        "prompt": "12+34=",
        "question": "12+34=",
        "answer": "#### 46" if name == "gsm8k" else "B" if name == "choice" else "46",
        "task": name,
        "instruction_id_list": ["detectable_format:title", "detectable_content:postscript"],
        "kwargs": [{}, {"postscript_marker": "P.S."}],
    }
    began = time.monotonic()
    result = VERIFIERS[name](answer, row)
    assert time.monotonic() - began < 5 and (not isinstance(result, Score) or result.value == 0)


INJECTION = "__import__('os').system('touch {path}')"


@pytest.mark.parametrize("name", list(VERIFIERS))
def test_T56_injection(name, tmp_path):
    """T56: an answer that is a command is not executed, by any verifier."""
    path = tmp_path / "x"
    row = {
        "prompt": "def f():\n",
        "question": "Calculate 3 using 1, 2.",
        "answer": "46",
        "pattern": "46",
        "metadata": {"numbers": [1, 2], "target": 3},
        "entry_point": "f",
        "test": "def check(f):\n    assert f() == 46\n",
        "instruction_id_list": ["detectable_format:json_format"],
        "kwargs": [{}],
    }
    for text in (
        INJECTION,
        "    " + INJECTION,
        r"\boxed{{" + INJECTION + "}}",
        "```python\n" + INJECTION + "\n```",
    ):
        result = VERIFIERS[name](text.format(path=path), row)
        assert not path.exists() and not (isinstance(result, Score) and result.value > 0)


# Code


HUMANEVAL = "data/humaneval/HumanEval.jsonl.gz"


@pytest.fixture(scope="module")
def problems(shared):
    with gzip.open(shared(HUMANEVAL), "rt") as file:
        return [json.loads(line) for line in file]


def judge_all(verifier, answers, rows):
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(verifier, answers, rows))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.whole)])
def test_humaneval_canonical_solutions_pass_164_of_164(problems, every):
    """Each in a sandbox of its own: every fourth in the suite, all behind `make verify`."""
    some = problems[::every]
    results = judge_all(VERIFIERS["humaneval"], [row["canonical_solution"] for row in some], some)
    assert [
        row["task_id"] for row, result in zip(some, results, strict=True) if value(result) != 1
    ] == []
    assert len(results) == 164 // every


@pytest.mark.parametrize(
    "answer",
    [
        "    return None\n",
        "    raise SystemExit(0)\n",
        "    import os\n    os._exit(0)\n",
        "",
        "no code at all",
        (
            "    return type('Yes', (), {'__eq__': lambda s, o: True, '__ne__': lambda s, o:"
            " False})()\n"
        ),
    ],
)
def test_humaneval_wrong_solutions_get_nothing(problems, answer):
    some = problems[::11]
    assert {
        value(result) for result in judge_all(VERIFIERS["humaneval"], [answer] * len(some), some)
    } == {0.0}


def test_humaneval_accepts_whole_functions_and_fences(problems):
    row = problems[0]
    whole = row["prompt"] + row["canonical_solution"]
    for answer in (
        whole,
        f"Sure!\n```python\n{whole}\n```\nDone.",
        f"```\n{row['canonical_solution']}\n```",
        f"```python\n{whole}",
    ):
        assert value(VERIFIERS["humaneval"](answer, row)) == 1
    helper = problems[38]  # encode_cyclic stands before decode_cyclic in the prompt
    body = helper["prompt"][helper["prompt"].rindex("def ") :] + helper["canonical_solution"]
    assert value(VERIFIERS["humaneval"](f"```python\n{body}\n```", helper)) == 1


def test_humaneval_endless_loop_is_wrong_in_time(problems, monkeypatch):
    monkeypatch.setattr("laurel.reward.code.SECONDS", 0.3)
    began = time.monotonic()
    result = VERIFIERS["humaneval"]("    while True: pass\n", problems[0])
    assert value(result) == 0 and "time" in result.reason and time.monotonic() - began < 3


def test_code_with_asserts():
    row = {"tests": "assert double(4) == 8\nassert double(-1) == -2"}
    assert value(VERIFIERS["code"]("```python\ndef double(x):\n    return 2 * x\n```", row)) == 1
    assert value(VERIFIERS["code"]("def double(x):\n    return x + 4\n", row)) == 0
    assert (
        value(
            VERIFIERS["code"](
                "def double(x): return 2 * x", {"test_list": ["assert double(1) == 2"]}
            )
        )
        == 1
    )


def test_programs_are_put_together():
    assert (
        extract_program("text\n```python\na = 1\n```\nand\n```python\ndef f(): pass\n```", "f")
        == "def f(): pass"
    )
    assert (
        whole_program("import x\ndef f():\n", "    return 1", "f")
        == "import x\ndef f():\n    return 1"
    )
    assert (
        whole_program("import x\ndef f():\n", "def f():\n    return 1", "f")
        == "import x\n\ndef f():\n    return 1"
    )


def test_a_verifiers_needs_name_real_verifiers():
    assert set(NEEDS) <= set(VERIFIERS)


def test_unknown_verifier_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean `numeric`"):
        load_verifier("numreic")


def test_ifeval_abstains_on_what_it_cannot_check():
    row = {"instruction_id_list": ["punctuation:no_comma", "new:kind"], "kwargs": [{}, {}]}
    result = VERIFIERS["ifeval"]("fine", row)
    assert isinstance(result, Abstain) and "new:kind" in result.reason
    assert value(VERIFIERS["ifeval"]("not, fine", row)) == 0
