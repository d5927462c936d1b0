"""Logs: every wrong row is named and none is lost; coverage, leakage, splits that keep questions
together.
"""

import json

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel_prompts.logs import (
    count_leaked_queries,
    coverage_tables,
    fold_of_query,
    group_by_story,
    grouped_split,
    normalise_question,
    read_log,
)
from laurel_prompts.published import read_published
from laurel_prompts.synthetic import PROMPTS, synthetic_log

GOOD = [
    {"query": "1 + 1?", "prompt": "a", "reward": 1, "cost": 10, "propensity": 0.5, "response": "2"},
    {"query": "1 + 1?", "prompt": "b", "reward": 0.5, "cost": 20, "propensity": 0.25},
    {
        "query": "2 + 2?",
        "prompt": "a",
        "reward": False,
        "cost": 30,
        "propensity": 0.5,
        "split": "test",
    },
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_one_table_with_gaps(tmp_path):
    log = read_log(written(tmp_path / "log.jsonl", GOOD))
    assert (log.queries, log.names) == (("1 + 1?", "2 + 2?"), ("a", "b"))
    np.testing.assert_array_equal(log.reward_SP, [[1, 0.5], [0, np.nan]])
    np.testing.assert_array_equal(log.cost_SP, [[10, 20], [30, np.nan]])
    np.testing.assert_array_equal(log.propensity_SP, [[0.5, 0.25], [0.5, np.nan]])
    assert (
        log.test_S.tolist() == [False, True]
        and log.responses == {(0, 0): "2"}
        and log.confidence_SP is None
    )
    cut = log.rows(np.array([1])).columns([1, 0])
    assert cut.names == ("b", "a") and cut.responses == {}
    np.testing.assert_array_equal(cut.reward_SP, [[np.nan, 0]])
    assert log.rows(np.array([True, False])).columns([1, 0]).responses == {(0, 1): "2"}


def test_csv_and_parquet_say_the_same(tmp_path):
    import pandas

    frame = pandas.DataFrame(GOOD)
    frame["reward"] = frame["reward"].astype(float)
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")
    first = read_log(written(tmp_path / "log.jsonl", GOOD))
    for name in ("log.csv", "log.parquet"):
        other = read_log(tmp_path / name)
        assert (other.queries, other.names, other.responses) == (
            first.queries,
            first.names,
            first.responses,
        )
        np.testing.assert_array_equal(other.reward_SP, first.reward_SP)
        np.testing.assert_array_equal(other.cost_SP, first.cost_SP)


def test_prompts_of_a_file_are_known_by_name_and_by_text(tmp_path):
    prompts = written(
        tmp_path / "prompts.jsonl",
        [{"name": "a", "prompt": "Go on:"}, {"name": "b", "prompt": "Stop:"}],
    )
    rows = [
        {"query": "q", "prompt": "a", "reward": 1},
        {"query": "q", "prompt": "Stop:", "reward": 0},
    ]
    log = read_log(written(tmp_path / "log.jsonl", rows), prompts=prompts)
    assert (
        log.names == ("a", "b")
        and log.prompts == ("Go on:", "Stop:")
        and log.reward_SP.tolist() == [[1, 0]]
    )


WRONG = {
    "unknown prompt `c`": {"query": "q", "prompt": "c", "reward": 1},
    "the reward is missing": {"query": "q", "prompt": "a"},
    "the query is empty text": {"query": "", "prompt": "a", "reward": 1},
    "the query is blank": {"query": " \n", "prompt": "a", "reward": 1},
    "the query is nothing": {"query": None, "prompt": "a", "reward": 1},
    "the prompt is the number 3": {"query": "q", "prompt": 3, "reward": 1},
    "reward is the number 2": {"query": "q", "prompt": "a", "reward": 2},
    "reward is the text 'yes'": {"query": "q", "prompt": "a", "reward": "yes"},
    "propensity is the number 0": {"query": "q", "prompt": "a", "reward": 1, "propensity": 0},
    "cost is the number -1": {"query": "q", "prompt": "a", "reward": 1, "cost": -1},
    "split is the text 'dev'": {"query": "q", "prompt": "a", "reward": 1, "split": "dev"},
    "unknown column `rewrad`. Did you mean `reward`?": {
        "query": "q",
        "prompt": "a",
        "reward": 1,
        "rewrad": 1,
    },
    "query_id is a list of 1, not a text or a number": {
        "query": "q",
        "prompt": "a",
        "reward": 1,
        "query_id": [1],
    },
    "sample is an object, not a text or a number": {
        "query": "q",
        "prompt": "a",
        "reward": 1,
        "sample": {"a": 1},
    },
    "the response is the number 7": {"query": "q", "prompt": "a", "reward": 1, "response": 7},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_row_is_named(tmp_path, said):
    prompts = written(tmp_path / "prompts.jsonl", [{"name": "a", "prompt": "Go on:"}])
    path = written(
        tmp_path / "log.jsonl", [{"query": "good", "prompt": "a", "reward": 1}, WRONG[said]]
    )
    with pytest.raises(UsageError) as caught:
        read_log(path, prompts=prompts)
    assert f"log.jsonl:2: {said}" in str(caught.value) and "1 wrong row" in str(caught.value)


def test_all_wrong_rows_are_named_at_once_and_twins_too(tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"name": "a", "prompt": "Go on:"}])
    rows = list(WRONG.values())
    with pytest.raises(UsageError) as caught:
        read_log(written(tmp_path / "log.jsonl", rows), prompts=prompts)
    assert all(f"log.jsonl:{n + 1}: {said}" in str(caught.value) for n, said in enumerate(WRONG))
    twins = [
        GOOD[0],
        GOOD[1],
        GOOD[0],
        {**GOOD[2], "query_id": 5},
        {**GOOD[1], "query_id": 5},
        {**GOOD[2], "query_id": 6},
        {**GOOD[2], "query_id": 6, "prompt": "b", "split": "train"},
    ]
    with pytest.raises(UsageError) as caught:
        read_log(written(tmp_path / "log.jsonl", twins))
    said = str(caught.value)
    assert "log.jsonl:3: the same query and prompt as log.jsonl:1" in said
    assert "log.jsonl:5: query_id 5 has another text than at log.jsonl:4" in said
    assert "log.jsonl:7: this query is in another split at log.jsonl:6" in said
    numbered = [{**GOOD[0], "sample": n} for n in range(3)]
    assert len(read_log(written(tmp_path / "log.jsonl", numbered)).queries) == 3


def test_propensities_are_on_all_rows_or_on_none(tmp_path):
    rows = [GOOD[0], {key: value for key, value in GOOD[1].items() if key != "propensity"}]
    with pytest.raises(
        UsageError, match=r"log.jsonl:2: the propensity is missing, which other rows have"
    ):
        read_log(written(tmp_path / "log.jsonl", rows))
    nothing = [
        {
            **row,
            "propensity": None,
            "cost": None,
            "response": None,
            "query_id": None,
            "sample": None,
        }
        for row in GOOD
    ]
    log = read_log(written(tmp_path / "log.jsonl", nothing))
    assert (
        log.propensity_SP is None
        and log.cost_SP is None
        and not log.responses
        and len(log.queries) == 2
    )


def test_a_prompt_has_one_name_and_one_text(tmp_path):
    prompts = written(
        tmp_path / "prompts.jsonl",
        [{"name": "a", "prompt": "Think."}, {"name": "b", "prompt": "Go."}],
    )
    rows = [
        {"query": "q", "prompt": "a", "reward": 1},
        {"query": "q", "prompt": "Think.", "reward": 0},
    ]
    with pytest.raises(UsageError, match=r"log.jsonl:2: the same query and prompt as log.jsonl:1"):
        read_log(written(tmp_path / "log.jsonl", rows), prompts=prompts)
    for second, said in (
        ({"name": "b", "prompt": "Think."}, "two prompts say 'Think.'"),
        ({"name": "Think.", "prompt": "Go."}, "name of one prompt and the text"),
        ({"name": None, "prompt": "Go."}, "`name` is a text"),
        ({"name": "a", "prompt": "Go."}, "two prompts are called `a`"),
    ):
        with pytest.raises(UsageError, match=said):
            read_log(
                tmp_path / "log.jsonl",
                prompts=written(
                    tmp_path / "prompts.jsonl", [{"name": "a", "prompt": "Think."}, second]
                ),
            )


def test_rows_of_one_model_only(tmp_path):
    path = written(tmp_path / "log.jsonl", [{**GOOD[0], "model": "x"}, {**GOOD[0], "model": "y"}])
    with pytest.raises(UsageError, match="rows of 2 models"):
        read_log(path)
    assert len(read_log(path, model="y").queries) == 1
    with pytest.raises(UsageError, match="no row is of model `z`"):
        read_log(path, model="z")


def test_questions_are_one_where_only_form_differs():
    assert (
        normalise_question("Mary had  8.0 cups .")
        == normalise_question("mary had 8 cups")
        != normalise_question("Mary had 9 cups.")
    )
    assert normalise_question("\uff11\uff12 apples") == "12 apples" and normalise_question(
        "Third - grade"
    ) == normalise_question("third grade")
    sums = [
        "What is 12 + 7?",
        "What is 12 - 7?",
        "What is 12 * 7?",
        "What is 12 / 7?",
        "-5",
        "5",
        "\U0001f600",
        "\U0001f62d",
        "?!",
        "...",
    ]
    assert len({normalise_question(text) for text in sums}) == len(sums)


def test_a_split_by_question_leaks_nothing_and_folds_keep_questions_whole(tmp_path):
    rows = [
        {
            "query": f"{n % 7} apples?",
            "sample": n // 7,
            "prompt": "a",
            "reward": 1,
            "split": "test" if n > 20 else "train",
        }
        for n in range(35)
    ]
    log = read_log(written(tmp_path / "log.jsonl", rows))
    assert count_leaked_queries(log) == 14
    split = grouped_split(log, 0.3)
    assert count_leaked_queries(split) == 0 and split.test_S.sum() == 10
    fold = fold_of_query(log.question_S, 3)
    assert all(len(set(fold[log.question_S == q])) == 1 for q in range(7)) and set(fold) == {
        0,
        1,
        2,
    }
    facts = dict(coverage_tables(log)[1].rows)
    assert facts["test queries whose question is in training, too"] == "14 of 14"
    assert facts["queries that repeat a question"] == "28"


def test_the_same_story_with_other_figures_is_found(tmp_path):
    rows = [
        {"query": f"{name} has {n} apples and 2.5 pears.", "prompt": "a", "reward": 1}
        for n in range(2)
        for name in ("Ada", "Ben", "Cyd")
    ]
    log = read_log(
        written(tmp_path / "log.jsonl", [*rows, {"query": "Why?", "prompt": "a", "reward": 1}])
    )
    alike = group_by_story(log)
    assert len(set(log.question_S)) == 7 and alike.question_S.tolist() == [0, 1, 2, 0, 1, 2, 3]
    sums = [{"query": f"{n} + 1 =", "prompt": "a", "reward": 1} for n in range(9)]
    assert (
        group_by_story(read_log(written(tmp_path / "log.jsonl", sums))) is None
    )  # nothing would be left to hold out
    assert group_by_story(read_log(written(tmp_path / "log.jsonl", [rows[0], rows[1]]))) is None


def test_the_synthetic_log_is_what_it_says():
    log, truth = synthetic_log(6000)
    assert (
        log.prompts == PROMPTS
        and log.logged_SP.all()
        and abs(np.nanmean(log.reward_SP) - truth.mean()) < 0.01
    )
    assert abs(truth.mean(0).max() - 0.567) < 0.02 and abs(truth.max(1).mean() - 0.75) < 0.01
    partial, truth = synthetic_log(6000, every=False)
    assert (partial.logged_SP.sum(1) == 1).all() and count_leaked_queries(log) < 5
    drawn = partial.propensity_SP[partial.logged_SP]
    assert abs((1 / drawn).mean() - 6) < 0.2  # the mean of 1 / propensity is the number of prompts


def test_the_authors_logs(shared):
    folder = shared("data/prompt-oirl")
    log, published = read_published(folder, "gsm8k")
    test = log.rows(log.test_S)
    assert (
        log.reward_SP.shape == (8473, 16)
        and count_leaked_queries(log) == 0
        and published["IRL 0"] == 0.26
    )
    assert [round(float(rate), 3) for rate in test.reward_SP.mean(0)[:6]] == [
        0.248,
        0.24,
        0.246,
        0.071,
        0.069,
        0.237,
    ]
    assert len(log.responses) == 16000 and log.responses[7473, 0].startswith(
        " To find out how much Janet"
    )
    log, published = read_published(folder, "mawps")
    assert (
        count_leaked_queries(log) == int(log.test_S.sum()) == 1685
        and published["best train prompt"] == 0.646
    )
    assert len(np.unique(log.question_S)) <= 1744
    with pytest.raises(UsageError, match=r"gsm8k\|mawps"):
        read_published(folder, "")
