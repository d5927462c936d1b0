"""Generated tasks and their verifiers: right golds, tight verdicts, generation as a function of
(seed, index).
"""

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.core.result import Failed, Score
from laurel.data import arithmetic
from laurel.data.answers import LEGS, whole_number
from laurel.data.source import load_rows
from laurel.data.tasks import TASKS

GENERATED = [name for name, task in TASKS.items() if task.make is not None]
DEGENERATE = (
    "",
    " ",
    "None",
    "null",
    "\\emptyset",
    "\\boxed{}",
    "nan",
    "inf",
    "?",
    "0" * 5_000,
    "9" * 5_000,
    "(" * 500,
    "\u0665",
    "[]",
    "['']",
)
COUNTDOWN = {
    "question": (
        "Calculate 13 using all of these numbers: 6, 24, 87, 96.\nEach number may be used at most"
        " once.\n"
    )
}
LISTED = "Sort these numbers in descending order: 46.5, -99.88, 26.0\nuse ['-69', '-13'] instead\n"


def right(task, answer, row):
    result = TASKS[task].verify(answer, row)
    assert isinstance(result, Score), result
    assert result.value in (0.0, 1.0) and result.reason
    return result.value == 1.0


@pytest.mark.parametrize("name", GENERATED)
def test_500_golds_are_right_and_generation_is_a_function_of_seed_and_index(name):
    task = TASKS[name]
    rows = task.generate(3, 500)
    assert all(right(name, row["answer"], row) for row in rows)
    assert all(
        right(name, row["completion"], row) and row["task"] == name and row["prompt"]
        for row in rows
    )
    assert name == "calculator" or all(row["completion"] == row["answer"] for row in rows)
    assert task.generate(3, 500) == rows
    assert task.generate(3, 40) == rows[:40]
    assert task.generate(4, 40) != rows[:40]


@pytest.mark.parametrize("name", GENERATED)
def test_T57_degenerate_answers_earn_nothing(name):
    """TRAPS T57: nothing, placeholders, every number listed, the prompt echoed, the gold among
    other text.
    """
    for row in TASKS[name].generate(0, 20):
        gold = row["answer"]
        hedged = (
            f"{gold} {gold}",
            f"{gold} or 7",
            f"maybe {gold}",
            f"{row['prompt']}{gold}",
            row["prompt"],
            f"={gold}",
            f"\\boxed{{{gold}}}",
        )
        listed = (
            " ".join(map(str, range(200))),
            ", ".join(map(str, range(200))),
            str(list(range(200))),
        )
        for answer in (*DEGENERATE, *hedged, *listed):
            assert not right(name, answer, row), answer
        assert right(name, f" {gold}.\n", row)


def test_addition_looks_as_documented():
    rows = TASKS["addition"].generate(0, 2_000)
    assert all(row["prompt"] == "{}+{}=".format(*row["metadata"]["numbers"]) for row in rows)
    numbers = [number for row in rows for number in row["metadata"]["numbers"]]
    assert min(numbers) >= 0 and max(numbers) <= 99 and len(set(numbers)) == 100
    assert abs(sum(numbers) / len(numbers) - 49.5) < 3 * 28.9 / len(numbers) ** 0.5
    assert right("addition", "22", {"prompt": "17+5="})
    assert not right("addition", "17+5=22", {"prompt": "17+5="})
    for other in ("022", "+22", "22.0", "2 2", "22,", "-22", "23"):
        assert not right("addition", other, {"prompt": "17+5="})


def test_calculator_reads_the_last_line_and_no_other():
    """Half of the demonstrations call the tool and copy its reply; an answer is right by its last
    line, alone or below a call.
    """
    rows = TASKS["calculator"].generate(0, 1_000)
    called = [row for row in rows if row["completion"] != row["answer"]]
    assert 420 < len(called) < 580  # 1000 coins: 500 +- 5 standard deviations
    for row in called:
        left, right_number = row["metadata"]["numbers"]
        assert (
            row["completion"]
            == f"[{left}*{right_number}]{left * right_number}\n{left * right_number}"
        )
    assert (
        max(
            max(row["metadata"]["numbers"])
            for row in TASKS["calculator"].generate(0, 200, digits=1)
        )
        == 9
    )
    row = {"prompt": "34*27="}
    for answer in ("918", "[34*27]918\n918", "[9**9]error\n[34*27]918\n918.", " 918\n"):
        assert right("calculator", answer, row), answer
    for answer in (
        "[34*27]918",
        "[34*27]918\n",
        "[34*27]",
        "918\n919",
        "[34*27]918\n918 or 9",
        "[34*27]918\n34*27=918",
        "[34*27]918\n[918]",
        "0918",
    ):
        assert not right("calculator", answer, row), answer


def test_sloppy_demonstrations_forget_carries_and_answers_do_not():
    """sloppy=100: of 47+86 the units carry, and the demonstration is 10 short; of 41+52 they do
    not.
    """
    rows = TASKS["addition"].generate(0, 500, sloppy=100)
    for row in rows:
        left, right_number = row["metadata"]["numbers"]
        carries = left % 10 + right_number % 10 >= 10
        assert (
            int(row["completion"]) == left + right_number - 10 * carries
            and int(row["answer"]) == left + right_number
        )
    assert [row["prompt"] for row in rows] == [
        row["prompt"] for row in TASKS["addition"].generate(0, 500)
    ]


def test_distributions_are_sane():
    sums = TASKS["chain_sum"].generate(0, 500)
    assert {row["metadata"]["expression"].count(" ") // 2 + 1 for row in sums} == {2, 3}
    assert 0.2 < sum(row["answer"].startswith("-") for row in sums) / 500 < 0.5
    letters = Counter(row["answer"] for row in TASKS["letter_counting"].generate(0, 500))
    assert 0.02 < letters["0"] / 500 < 0.2 and letters["2"] > 50
    directions = Counter(
        row["metadata"]["direction"] for row in TASKS["number_sorting"].generate(0, 500)
    )
    assert min(directions.values()) > 200
    goals = TASKS["countdown"].generate(0, 500)
    assert all(
        1 <= row["metadata"]["target"] <= 99 and len(row["metadata"]["numbers"]) == 3
        for row in goals
    )
    assert all(sum(sign in row["answer"] for row in goals) > 50 for sign in "+-*")


def test_parameters_change_difficulty_and_misfits_are_refused():
    assert TASKS["calculator"].parameters == {"digits": 2}
    assert all(
        len(row["metadata"]["numbers"]) == 6
        for row in TASKS["countdown"].generate(0, 100, numbers=6, largest=2, target=4)
    )
    for name, extreme in [
        ("countdown", {"numbers": 6, "largest": 1000, "target": 1000}),
        ("chain_sum", {"terms": 20, "digits": 8}),
    ]:
        assert all(
            right(name, row["answer"], row) for row in TASKS[name].generate(0, 50, **extreme)
        )
    for wrong in ({"digits": 0}, {"digits": True}, {"digits": 2.0}, {"digts": 2}):
        with pytest.raises(UsageError):
            TASKS["addition"].generate(0, 1, **wrong)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("24/6 - 87 + 96", True),
        ("96-87+24/6", True),
        ("(96 - 87) + (24 / 6)", True),
        ("-87 + 96 + 24/6", True),
        ("96 - 87 + 4", False),
        ("24/6 - 87 + 96 = 13", False),
        ("24//6 - 87 + 96", False),
        ("96 - 87 + 24/6*1", False),
        ("13", False),
        ("6 + 24 + 87 + 96", False),
        ("96 - 87 + 24/6 + 0", False),
        ("87 - 74", False),
        ("96/(6-6)", False),
        ("6**24 + 87 - 96", False),
        ("__import__('os').getcwd()", False),
        ("6 24 87 96", False),
        ("6(24)(87)(96)", False),
        ("6 if 24 else 87", False),
        ("24.0/6 - 87 + 96", False),
        ("9" * 190, False),
    ],
)
def test_countdown_accepts_any_right_expression_and_nothing_else(answer, verdict):
    assert right("countdown", answer, COUNTDOWN) is verdict


def test_countdown_reads_metadata_or_question_and_fails_without():
    relaxed = {"prompt": "Make 13.", "metadata": {"numbers": [6, 7, 99], "target": 13}}
    assert right("countdown", "6+7", relaxed)
    assert not right("countdown", "6+7", {**relaxed, "prompt": "Make 13 from all of the numbers."})
    assert not right("countdown", "6+6+1", relaxed)
    assert isinstance(TASKS["countdown"].verify("6+7", {"prompt": "Make something."}), Failed)


def test_letter_counting_ignores_capitals():
    row = {"question": 'How many times does the letter "t" appear in the text: "The total"?'}
    assert right("letter_counting", "3", row) and not right("letter_counting", "2", row)


def test_leg_counting_by_hand():
    """1 bird (2) + 11 wasps (66) + 4 butterflys (24) + 2 praying mantiss (12) + 1 woodlouse (14) =
    118.
    """
    row = {
        "question": (
            "how many legs if you have 1 bird, 11 wasps, 4 butterflys, 2 praying mantiss, 1"
            " woodlouse?\n"
        )
    }
    assert right("leg_counting", "118", row) and not right("leg_counting", "117", row)
    assert isinstance(
        TASKS["leg_counting"].verify("4", {"question": "if you have 1 unicorn?"}), Failed
    )
    assert len(LEGS) == 37


def test_simple_equations_by_substitution():
    assert right("simple_equations", "41", {"question": "Solve for a: -22*a - 17 = -919"})
    assert not right("simple_equations", "-41", {"question": "Solve for a: -22*a - 17 = -919"})
    assert right(
        "simple_equations", "-2", {"question": "Find the value of x in the equation: 3 - x*x = -1"}
    )
    for broken in (
        "Solve for a: b = 2",
        "Solve for a: 3 = 4",
        "Solve it",
        "Solve for a: 2a = 4",
        "Solve for a: a = 1 = 1",
    ):
        assert isinstance(TASKS["simple_equations"].verify("2", {"question": broken}), Failed), (
            broken
        )


def test_an_equation_without_its_unknown_is_solved_by_any_whole_number():
    """reasoning-gym prints `0 = 0` where the terms cancel: every number is a solution, and the
    reason says so.
    """
    result = TASKS["simple_equations"].verify("50", {"question": "Solve for f: 0 = 0"})
    assert (
        isinstance(result, Score) and result.value == 1.0 and "without the unknown" in result.reason
    )
    assert not right("simple_equations", "", {"question": "Solve for f: 0 = 0"})


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("['46.5', '26.0', '-99.88']", True),
        ('["46.5", "26", "-99.88"]', True),
        ("['-99.88', '26.0', '46.5']", False),
        ("['46.5', '26.0']", False),
        ("['46.5', '26.0', '26.0', '-99.88']", False),
        ("[46.5, 26.0, -99.88]", False),
        ("46.5, 26.0, -99.88", False),
        ("('46.5', '26.0', '-99.88')", False),
        ("['46.5', 'x', '-99.88']", False),
        ("[" * 300, False),
    ],
)
def test_number_sorting_wants_the_form_that_the_question_shows(answer, verdict):
    assert right("number_sorting", answer, {"question": LISTED}) is verdict


def test_number_sorting_in_our_own_form():
    row = {"prompt": "Sort these numbers in ascending order: 7, 3, 7\n"}
    assert right("number_sorting", "3, 7, 7", row) and right("number_sorting", "3,7,7", row)
    assert not right("number_sorting", "3 7 7", row) and not right("number_sorting", "3, 7", row)


def test_conversational_prompts_are_read_from_their_last_message():
    row = {"prompt": [{"role": "system", "content": "1+1="}, {"role": "user", "content": "17+5="}]}
    assert right("addition", "22", row)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_without_its_question_fails_and_is_never_a_zero(name):
    for row in (
        {},
        {"prompt": "Hello"},
        {"question": None},
        {"prompt": [], "metadata": 3, "answer": 5},
    ):
        assert isinstance(TASKS[name].verify("5", row), Failed)


@given(st.text(max_size=60))
def test_no_answer_makes_a_verifier_raise(answer):
    for name, row in [
        ("addition", {"prompt": "1+1="}),
        ("countdown", COUNTDOWN),
        ("number_sorting", {"question": LISTED}),
    ]:
        assert isinstance(TASKS[name].verify(answer, row), Score)
    assert isinstance(
        TASKS["simple_equations"].verify(answer, {"question": "Solve for a: 2*a = 4"}), Score
    )


@given(st.integers(-(10**50), 10**50))
def test_whole_numbers_round_trip(number):
    assert whole_number(f" {number}.") == number


def test_arithmetic_is_exact():
    assert arithmetic.evaluate("1/3 + 1/3 + 1/3") == 1
    assert arithmetic.evaluate("-(2 - 5) * 4 / 6") == 2
    assert arithmetic.evaluate("10 - 2 - 3") == 5
    assert arithmetic.evaluate("7/2/7") == Fraction(1, 2)
    for text in (
        "",
        "1 +",
        "2**3",
        "1//2",
        "a",
        "1.5",
        "1 2",
        "()",
        "+1",
        "1,2",
        "(1)(2)",
        "1" * 201,
        "~1",
        "1/0",
        "((" * 90,
    ):
        with pytest.raises(arithmetic.NotArithmetic):
            arithmetic.evaluate(text)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "file",
    [
        "chain_sum_2to3x2",
        "countdown_3to4",
        "leg_counting",
        "letter_counting",
        "number_sorting",
        "simple_equations",
    ],
)
def test_every_shared_row_is_right_and_its_neighbour_is_not(shared, file, part):
    """Golds are all right; the gold of the next row with another gold is wrong (countdown: other
    numbers; equations: other roots).
    """
    rows = [
        row.columns
        for row in load_rows(str(shared(f"data/verifiable-tasks/{file}_{part}.jsonl.gz")))
    ]
    assert len(rows) == {"train": 1000, "test": 200}[part]
    assert all(right(row["task"], row["answer"], row) for row in rows)
    pairs = [
        (row, other["answer"]) for row, other in pairwise(rows) if row["answer"] != other["answer"]
    ]
    accepted = [row["question"] for row, answer in pairs if right(row["task"], answer, row)]
    assert all("0 = 0" in question for question in accepted)
