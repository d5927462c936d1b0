"""Well-known public shapes of rows that compare answers: pairs with a verdict, rated and ranked
answers.

A tie becomes a pair of weight 0: training leaves it out, and counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laurel.data.answer_layouts import Found, Layout, request
from laurel.data.conversations import Columns, as_conversation, as_dialogue

Verdict = Callable[[Any], int | None]


def pair(columns: Columns, first: Any, second: Any, better: int | None) -> Columns:
    """`better` is 0 where the first is, 1 where the second is, None for a tie, which weighs
    nothing.
    """
    chosen, rejected = (second, first) if better == 1 else (first, second)
    weight = {} if better is not None else {"weight": 0.0}
    return {"chosen": chosen, "rejected": rejected, **weight}


def pair_by_verdict(
    asked: str, first: str, second: str, verdict: str, better: Verdict
) -> Callable[[Columns], Found | None]:
    """Two columns of answers and one that says which is better.

    `asked` may be empty: `instruction` and `input` then ask.
    """

    def make(columns: Columns) -> Found | None:
        found = request(columns) if not asked else ({"prompt": columns[asked]}, (asked,))
        try:
            choice = better(columns[verdict])
        except (KeyError, TypeError, ValueError):
            return None
        if found is None:
            return None
        ours = {**found[0], **pair(columns, columns[first], columns[second], choice)}
        return ours, (*found[1], first, second, verdict)

    return make


def signed_strength(value: Any) -> int | None:
    """A strength of preference: below 0 the first is better, above 0 the second."""
    return None if value == 0 else int(value > 0)


def better_index(value: Any) -> int:
    """0 or 1: the place of the better one."""
    return {0: 0, 1: 1}[value]


def better_number(value: Any) -> int | None:
    """1 or 2 (0 or below, as AlpacaFarm's ties: none): the number of the better one."""
    return None if int(value) <= 0 else {1: 0, 2: 1}[int(value)]


def pair_by_other_names(columns: Columns) -> Found | None:
    """A request and two answers whose columns say which is better, under other names than ours."""
    names = next(pair for pair in NAMED_PAIRS if set(pair) <= columns.keys())
    if isinstance(columns.get("prompt"), str | list):
        asked: Found | None = {"prompt": columns["prompt"]}, ("prompt",)
    elif (
        isinstance(columns.get("messages"), list) and columns["messages"]
    ):  # LLaMA-Factory: the conversation, and two ways on
        turns, ways = columns["messages"], [as_conversation(columns[name]) for name in names]
        last = turns[-1].get("role") if isinstance(turns[-1], dict) else ""
        begin = [
            way[0].get("role")
            for way in ways
            if isinstance(way, list) and way and isinstance(way[0], dict)
        ]
        if last == "assistant" or begin not in ([], ["assistant", "assistant"]):
            return None
        asked = {"prompt": turns}, ("messages",)
    else:
        asked = request(columns)
    if asked is None:
        return None
    sides = [as_conversation(columns[name]) for name in names]
    return {**asked[0], "chosen": sides[0], "rejected": sides[1]}, (*asked[1], *names)


def openai_preference(columns: Columns) -> Found | None:
    """OpenAI's preference format: `input` holds messages and tools, the two outputs are lists of
    messages.
    """
    asked = columns["input"]
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        return None
    ours = {"prompt": as_conversation(asked["messages"])}
    if asked.get("tools") and "tools" not in columns:
        ours["tools"] = asked["tools"]
    sides = (
        as_conversation(columns["preferred_output"]),
        as_conversation(columns["non_preferred_output"]),
    )
    return {**ours, "chosen": sides[0], "rejected": sides[1]}, (
        "input",
        "preferred_output",
        "non_preferred_output",
    )


def webgpt(columns: Columns) -> Found | None:
    """WebGPT's comparisons (arXiv:2112.09332): the answer with the higher score is better."""
    asked = columns["question"]
    asked = asked.get("full_text") if isinstance(asked, dict) else asked
    scores = (columns["score_0"], columns["score_1"])
    if not all(isinstance(score, int | float) for score in scores):
        return None
    better = signed_strength(scores[1] - scores[0])
    ours = {"prompt": asked, **pair(columns, columns["answer_0"], columns["answer_1"], better)}
    return ours, ("question", "answer_0", "answer_1", "score_0", "score_1")


def summaries(columns: Columns) -> Found | None:
    """OpenAI's comparisons of summaries (arXiv:2009.01325): the post (or article) as its authors
    ask for "TL;DR:".
    """
    info, texts, choice = columns["info"], columns["summaries"], columns["choice"]
    if (
        not isinstance(info, dict)
        or not isinstance(texts, list)
        or len(texts) != 2
        or choice not in (0, 1)
    ):
        return None
    heads = (
        ("SUBREDDIT: r/", "subreddit"),
        ("TITLE: ", "title"),
        ("POST: ", "post"),
        ("Article: ", "article"),
    )
    asked = [f"{head}{info[name]}" for head, name in heads if info.get(name)]
    first, second = (one.get("text") if isinstance(one, dict) else one for one in texts)
    prompt = "\n\n".join([*asked, "TL;DR:"])
    found = {"prompt": prompt, **pair(columns, first, second, choice)}
    return found, ("info", "summaries", "choice")


def arena(columns: Columns) -> Found | None:
    """Chatbot Arena and MT-bench (arXiv:2306.05685): two conversations and a winner.

    They are cut where they part.
    """
    first = as_conversation(columns["conversation_a"])
    second = as_conversation(columns["conversation_b"])
    better = {"model_a": 0, "model_b": 1}.get(columns["winner"])
    if better is None and not str(columns["winner"]).startswith("tie"):
        return None
    return pair(columns, first, second, better), ("conversation_a", "conversation_b", "winner")


def ultrafeedback(columns: Columns) -> Found | None:
    """UltraFeedback (arXiv:2310.01377) as it was collected: responses with a rating each.

    The best has rank 1.
    """
    completions = columns["completions"]
    if not isinstance(completions, list) or not all(
        isinstance(one, dict) and "response" in one for one in completions
    ):
        return None
    asked = request(columns)
    ranks = ranks_from_ratings([overall_rating(one) for one in completions])
    responses = [one["response"] for one in completions]
    return asked and (
        {**asked[0], "responses": responses, "ranks": ranks},
        (*asked[1], "completions"),
    )


def rated_generations(columns: Columns) -> Found | None:
    """distilabel's lists of generations with a list of ratings."""
    name = "rating" if "rating" in columns else "ratings"
    texts, scores = columns["generations"], columns.get(name)
    asked = request(columns)
    if (
        asked is None
        or not isinstance(texts, list)
        or not isinstance(scores, list)
        or len(texts) != len(scores)
    ):
        return None
    return {**asked[0], "responses": texts, "ranks": ranks_from_ratings(scores)}, (
        *asked[1],
        "generations",
        name,
    )


def nectar(columns: Columns) -> Found | None:
    """Nectar: answers {answer, model, rank} to a prompt in turns of "Human:" that ends with
    "Assistant:".
    """
    replies = columns["answers"]
    if not isinstance(replies, list) or not all(
        isinstance(one, dict) and {"answer", "rank"} <= one.keys() for one in replies
    ):
        return None
    turns = as_dialogue(columns["prompt"])
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]
    texts: list[Any] = [one["answer"] for one in replies]
    if turns:
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    ours = {
        "prompt": turns or columns["prompt"],
        "responses": texts,
        "ranks": [one["rank"] for one in replies],
    }
    return ours, ("prompt", "answers")


def overall_rating(one: Mapping[str, Any]) -> float | None:
    """The overall score of an answer, else the fine-grained one, else the mean of its annotations'
    ratings.
    """
    for name in ("overall_score", "fine-grained_score", "score", "rating"):
        if (score := as_number(one.get(name))) is not None:
            return score
    notes = one.get("annotations")
    values = (
        [note.get("Rating") for note in notes.values() if isinstance(note, dict)]
        if isinstance(notes, dict)
        else []
    )
    scores = [score for value in values if (score := as_number(value)) is not None]
    return math.fsum(scores) / len(scores) if scores else None


def as_number(value: Any) -> float | None:
    """A finite number, or a text that is one; None for "N/A" and the like."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and not isinstance(value, bool) else None


def ranks_from_ratings(scores: Sequence[Any]) -> list[int | None]:
    """Ranks from ratings: the highest is 1, equal ones are equal, one without a number has none."""
    known = [as_number(score) for score in scores]
    order = sorted({score for score in known if score is not None}, reverse=True)
    return [None if score is None else 1 + order.index(score) for score in known]


NAMED_PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)
COMPARED: Sequence[Layout] = (
    Layout(
        "OpenAI preference",
        ("input", "preferred_output", "non_preferred_output"),
        openai_preference,
        ("chosen",),
    ),
    Layout(
        "HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        pair_by_verdict("context", "response1", "response2", "overall_preference", signed_strength),
        ("prompt",),
    ),
    Layout(
        "HelpSteer2",
        ("prompt", "response_1", "response_2", "preference_strength"),
        pair_by_verdict(
            "prompt", "response_1", "response_2", "preference_strength", signed_strength
        ),
        ("chosen",),
    ),
    Layout(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        pair_by_verdict(
            "history", "human_ref_A", "human_ref_B", "labels", lambda value: 1 - better_index(value)
        ),
        ("prompt",),
    ),
    Layout(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        pair_by_verdict("prompt", "response_0", "response_1", "better_response_id", better_index),
        ("chosen",),
    ),
    Layout(
        "AlpacaFarm",
        ("instruction", "output_1", "output_2", "preference"),
        pair_by_verdict("", "output_1", "output_2", "preference", better_number),
        ("prompt",),
    ),
    Layout(
        "LLMBar",
        ("input", "output_1", "output_2", "label"),
        pair_by_verdict("input", "output_1", "output_2", "label", better_number),
        ("prompt",),
    ),
    Layout(
        "WebGPT", ("question", "answer_0", "answer_1", "score_0", "score_1"), webgpt, ("prompt",)
    ),
    Layout("Summaries", ("info", "summaries", "choice"), summaries, ("prompt",)),
    Layout(
        "Chatbot Arena, MT-bench",
        ("conversation_a", "conversation_b", "winner"),
        arena,
        ("chosen",),
    ),
    Layout(
        "UltraFeedback",
        ("instruction", "completions"),
        ultrafeedback,
        ("prompt", "chosen", "chosen_response"),
    ),
    Layout(
        "distilabel",
        ("instruction", "generations"),
        rated_generations,
        ("prompt", "chosen", "chosen_response"),
    ),
    Layout("Nectar", ("prompt", "answers"), nectar, ("responses", "chosen")),
    Layout(
        "Orca pairs, argilla, LLaMA-Factory",
        ("chosen", "rejected"),
        pair_by_other_names,
        ("prompt",),
    ),
    Layout("argilla", ("chosen_response", "rejected_response"), pair_by_other_names, ("chosen",)),
    Layout("Stack Exchange pairs", ("response_j", "response_k"), pair_by_other_names, ("chosen",)),
)
