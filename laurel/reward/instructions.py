"""Verifiable instructions, as in IFEval (Zhou et al. 2023, arXiv:2311.07911): all 25 kinds of the
public benchmark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from laurel.core.result import Abstain, Failed, Result, Score
from laurel.core.workers import Workers
from laurel.data.strip_thinking import visible_answer

LONGEST = 100_000
INLINE = 2_000
SECONDS = 2.0
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ABBREVIATIONS = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|vs|etc|e\.g|i\.e|No|Vol|Fig)|\b[A-Z]|\.\.)\.$"
)


class NoDetector(Exception):
    """The check needs the langdetect package."""


def compare(count: int, relation: str, bound: int) -> bool:
    """The benchmark's two relations: `less than` is strict, `at least` is not."""
    if relation not in ("less than", "at least"):
        raise ValueError(f"unknown relation {relation!r}")
    return count < bound if relation == "less than" else count >= bound


def search(pattern: str, text: str) -> list[str]:
    """Occurrences of a keyword, case ignored.

    The benchmark reads keywords as regular expressions; one that is none is taken literally.
    """
    try:
        return re.findall(pattern, text, re.IGNORECASE)
    except re.error:
        return re.findall(re.escape(pattern), text, re.IGNORECASE)


def sentences(text: str) -> int:
    """Sentences by final punctuation, white space and a new beginning, common abbreviations aside
    (the benchmark uses NLTK's punkt).
    """
    parts = re.split(
        r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[*#\-]*\w)", text.strip()
    )
    return (
        sum(1 for part in parts if part.strip() and not ABBREVIATIONS.search(part.rstrip()))
        if text.strip()
        else 0
    )


def in_english(text: str) -> bool:
    """langdetect's verdict where it is installed; else whether nine letters in ten are ASCII."""
    if find_spec("langdetect") is not None:
        return in_language(text, "en")
    alphabetic = [letter for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in alphabetic) >= 0.9 * len(alphabetic)


def in_language(text: str, language: str) -> bool:
    """langdetect's verdict, seeded; undecidable texts count as followed, as in the benchmark."""
    if find_spec("langdetect") is None:
        raise NoDetector("needs the package langdetect")
    import langdetect  # pyright: ignore[reportMissingImports]

    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text) == language
    except langdetect.LangDetectException:
        return True


def is_json(text: str) -> bool:
    """The whole text is JSON, in a fence or bare."""
    bare = (
        re.sub(r"\A```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```").strip()
    )
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def paragraphs(text: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs between `***`; an empty one is allowed only at the ends."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(1 for part in parts if part.strip()) == num_paragraphs


def first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs between blank lines, and the n-th begins with the word."""
    parts = text.split("\n\n")
    count = sum(1 for part in parts if part.strip())
    if not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"'))[0]
    return count == num_paragraphs and word.lower() == first_word.lower()


def highlights(text: str, num_highlights: int) -> bool:
    """At least so many *parts* or **parts**.

    The benchmark counts a bold one on both scores where it can.
    """
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [
        part
        for part in re.findall(r"\*\*[^\n*]*\*\*", text)
        if part.removeprefix("**").removesuffix("**").strip()
    ]
    return len(single) + len(double) >= num_highlights


def bullets(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `* ` or `-`."""
    return (
        len(re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE))
        + len(re.findall(r"^\s*-.*$", text, re.MULTILINE))
        == num_bullets
    )


def postscript(text: str, postscript_marker: str) -> bool:
    """A postscript begins with the marker, spaces between its letters allowed."""
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(
        marker, re.escape(marker.lower())
    )
    return re.search(pattern, text.lower()) is not None


def two_responses(text: str) -> bool:
    """Two different responses between six asterisks; nothing empty in the middle."""
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = [part.strip() for part in parts if part.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def capital_words(text: str) -> int:
    """Words all in capitals; a hyphenated word is one."""
    return sum(word.isupper() for word in re.findall(r"[^\W_]+(?:[-.'\u2019][^\W_]+)*", text))


def is_quoted(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def lacks_words(text: str, words: list[str]) -> bool:
    """None of the words occurs as a whole word."""
    return not any(search(rf"\b{word}\b", text) for word in words)


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(search(word, text) for word in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: compare(
        len(search(keyword.strip(), text)), relation, frequency
    ),
    "keywords:forbidden_words": lambda text, forbidden_words: lacks_words(text, forbidden_words),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: compare(
        text.lower().count(letter.strip().lower()), let_relation, let_frequency
    ),
    "language:response_language": lambda text, language: in_language(text, language),
    "length_constraints:number_sentences": lambda text, num_sentences, relation: compare(
        sentences(text), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": paragraphs,
    "length_constraints:number_words": lambda text, num_words, relation: compare(
        len(re.findall(r"\w+", text)), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:constrained_response": lambda text: any(
        option in text for option in OPTIONS
    ),
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections
    ),
    "detectable_format:json_format": is_json,
    "detectable_format:title": lambda text: any(
        title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": is_quoted,
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: compare(
        capital_words(text), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda text: text.isupper() and in_english(text),
    "change_case:english_lowercase": lambda text: text.islower() and in_english(text),
    "punctuation:no_comma": lambda text: "," not in text,
}


def check_all(payload: tuple[str, list[str], list[dict[str, Any]]]) -> list[bool | str]:
    """Each instruction: True or False, or in words why it cannot be checked.

    An empty answer follows nothing.
    """
    text, names, settings = payload
    verdicts: list[bool | str] = []
    for name, setting in zip(names, settings, strict=True):
        given = {key: value for key, value in setting.items() if value is not None}
        if name not in CHECKS:
            verdicts.append(f"unknown instruction {name}")
            continue
        try:
            verdicts.append(bool(text.strip()) and bool(CHECKS[name](text, **given)))
        except (TypeError, ValueError, AttributeError, NoDetector) as error:
            verdicts.append(f"{name}: {error}")
    return verdicts


POOL = Workers(check_all, size=2, seconds=SECONDS)


def ifeval(answer: str, row: Mapping[str, Any]) -> Result:
    """1 if the answer follows every instruction of the row (columns instruction_id_list and
    kwargs), else 0 with the ones it does not.

    Thoughts are not judged, and of answer tags the content.
    Where all that can be checked are followed but one cannot be (an unknown kind, a language
    without langdetect): Abstain.
    """
    names, settings = row.get("instruction_id_list"), row.get("kwargs")
    if (
        not isinstance(names, list)
        or not isinstance(settings, list)
        or len(names) != len(settings)
        or not names
    ):
        return Failed("the row has no `instruction_id_list` and `kwargs` of one length")
    if len(answer) > LONGEST:
        return Score(0.0, f"longer than {LONGEST} characters")
    answer = visible_answer(answer)
    payload = (answer, names, [dict(setting or {}) for setting in settings])
    verdicts = check_all(payload) if len(answer) <= INLINE else POOL.call(payload)
    if isinstance(verdicts, Failed):
        return verdicts
    broken = [name for name, verdict in zip(names, verdicts, strict=True) if verdict is False]
    if broken:
        return Score(0.0, f"not followed: {', '.join(broken)}")
    unsure = [verdict for verdict in verdicts if isinstance(verdict, str)]
    return Abstain("; ".join(unsure)) if unsure else Score(1.0, f"follows {len(names)}")
