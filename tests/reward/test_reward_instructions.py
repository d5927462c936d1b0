"""The 25 instruction kinds, each with an answer that follows it and one that does not."""

import json

import pytest

from laurel.core.result import Abstain, Score
from laurel.reward.instructions import CHECKS, capital_words, check_all, compare, ifeval, sentences

CASES = {
    "keywords:existence": ({"keywords": ["river", "Bank"]}, "By the RIVER bank", "By the river"),
    "keywords:frequency": (
        {"keyword": "cat ", "frequency": 2, "relation": "at least"},
        "cat Cat",
        "cat",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "concatenate", "a CAT!"),
    "keywords:letter_frequency": (
        {"letter": "E", "let_frequency": 3, "let_relation": "less than"},
        "eE",
        "eee",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        "One. Dr. Who?",
        "One. Two! Three? Four.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "one\n***\ntwo\n***\n",
        "one\n***\n\n***\ntwo",
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "at least"},
        "one two-three",
        "one two",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"then, we went',
        "Then.\n\nwe",
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "[name], [address]",
        "[name",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.P.S"},
        "Bye\nP. P. S bring milk",
        "Bye\nP.S. bring milk",
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n  - b", "* a\n* b\n* c"),
    "detectable_format:constrained_response": ({}, "Well. My answer is maybe.", "my answer is yes"),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "*a* and *b*",
        "*a* and * *",
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 a SECTION 2 b",
        "SECTION 1 a",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<poem of joy>>\nx", "<< >>"),
    "combination:two_responses": ({}, "one******two", "one******one"),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Write a Poem."},
        "write a poem. Roses",
        "Roses. Write a poem.",
    ),
    "startend:end_checker": (
        {"end_phrase": "Any questions?"},
        'So. "any Questions?"',
        "Any questions? Yes",
    ),
    "startend:quotation": ({}, ' "all of it" ', '"half" of it'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA WELL-KNOWN ok",
        "NASA ok",
    ),
    "change_case:english_capital": ({}, "ALL OF IT, 7 TIMES.", "Not all"),
    "change_case:english_lowercase": ({}, "all of it, 7 times.", "Not all"),
    "punctuation:no_comma": ({}, "none; here", "one, here"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_kind_follows_and_does_not(name):
    setting, good, bad = CASES[name]
    assert check_all((good, [name], [setting])) == [True]
    assert check_all((bad, [name], [setting])) == [False]
    assert check_all(("  \n", [name], [setting])) == [False]
    assert check_all((good, [name], [{**setting, "unused": None}])) == [True]


def test_all_kinds_are_here_and_the_language_one_abstains_without_its_package():
    assert set(CHECKS) == {*CASES, "language:response_language"} and len(CHECKS) == 25
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    assert isinstance(ifeval("Guten Tag, wie geht es dir?", row), (Abstain, Score))


def test_relations_are_the_benchmarks():
    assert (
        compare(2, "less than", 3) and not compare(3, "less than", 3) and compare(3, "at least", 3)
    )
    row = {
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 3, "relation": "at most"}],
    }
    assert isinstance(ifeval("a b", row), Abstain)


def test_counting():
    assert (
        sentences("Dr. Smith met Mr. J. Jones. He left! Did he? Yes.") == 4
        and sentences("") == 0
        and sentences("no end") == 1
    )
    assert capital_words("I saw NASA and U.S. A-B x1 B2") == 5


def test_every_row_of_the_benchmark_is_understood(shared):
    """541 rows: an empty answer follows nothing, and no kind or argument is unknown but the
    language ones.
    """
    with open(shared("data/ifeval/input_data.jsonl")) as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 541
    for row in rows:
        assert ifeval("", row) == Score(
            0.0, f"not followed: {', '.join(row['instruction_id_list'])}"
        )
        verdicts = check_all(
            ("Hello there. This is a test answer.", row["instruction_id_list"], row["kwargs"])
        )
        assert all(isinstance(verdict, bool) or "langdetect" in verdict for verdict in verdicts), (
            row["key"]
        )
