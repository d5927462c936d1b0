"""More prompts to choose from: templates of the known kinds, and rewrites by a language model.

The model is behind an OpenAI-like endpoint.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

import numpy as np

from laurel.core.errors import LaurelError, UsageError
from laurel_prompts.logs import Log

KEY = "OPENAI_API_KEY"
TEMPLATES = {
    "zero-shot": "Answer the question. The answer is:",
    "chain-of-thought": "Let's think step by step.",
    "plan-and-solve": (
        "Understand the problem first and make a plan. Then carry the plan out and solve the"
        " problem step by step."
    ),
    "tree-of-thought": (
        "Write down three different first steps. Judge which leads on, drop the others, and go on"
        " so until the answer."
    ),
    "decomposition": (
        "Break the question into smaller questions, answer each in turn, and put the answers"
        " together."
    ),
    "careful": (
        "Note every number and its unit, work it out, and check the result by another way before"
        " you answer."
    ),
}
"""Prompts by the kind of reasoning that they ask for; few-shot is made from a log (`few_shot`)."""


def few_shot(log: Log, count: int = 3, seed: int = 0) -> str | None:
    """Worked examples out of the log, of answers that were right, in front of the next question.

    None where it holds no such answers.
    """
    right = sorted(
        cell
        for cell, text in log.responses.items()
        if log.reward_SP[cell] == 1 and not log.test_S[cell[0]] and len(text) < 600
    )
    if not right:
        return None
    chosen = np.random.default_rng(seed).permutation(len(right))[:count]
    shown = [
        f"Question: {log.queries[right[k][0]].strip()}\nAnswer: {log.responses[right[k]].strip()}"
        for k in chosen
    ]
    return "Answer as in these examples.\n\n" + "\n\n".join(shown) + "\n\nAnswer:"


def ape_request(log: Log, count: int = 4, seed: int = 0) -> str:
    """A request for an instruction that fits examples (APE: Zhou et al., arXiv:2211.01910)."""
    train = np.flatnonzero(~log.test_S)
    chosen = train[np.random.default_rng(seed).permutation(len(train))[:count]]
    shown = "\n".join(f"- {log.queries[s].strip()}" for s in chosen)
    wish = (
        "Write one sentence of instruction that makes an assistant answer such questions correctly."
    )
    return f"These are questions that people ask:\n{shown}\n\n{wish}"


def opro_request(scored: Mapping[str, float]) -> str:
    """What to ask a model for a better prompt than those scored, worst first (after Yang et al.
    2023, OPRO, arXiv:2309.03409).
    """
    shown = "\n".join(
        f"- {text.strip()!r}: {value:.0%}"
        for text, value in sorted(scored.items(), key=lambda pair: pair[1])
    )
    wish = "Write one new instruction, unlike these, that does better."
    return f"Instructions and how often they led to a right answer, worst first:\n{shown}\n\n{wish}"


def generate_prompts(
    url: str, model: str, requests: Mapping[str, str], *, count: int = 4, temperature: float = 1.0
) -> dict[str, str]:
    """{name: prompt} that a model answers to each request, `count` times.

    Duplicates and empty answers are dropped.

    url: the address before `/chat/completions`; the key is read from OPENAI_API_KEY. A server that
    does not answer is a LaurelError.
    """
    found: dict[str, str] = {}
    for name, request in requests.items():
        for n in range(count):
            text = first_line(ask_model(url, model, request, temperature=temperature, seed=n))
            if text and text not in found.values():
                found[f"{name}-{n + 1}"] = text
    return found


def _request(
    url: str, model: str, content: str, temperature: float, seed: int
) -> urllib.request.Request:
    """A request for a chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": temperature,
        "seed": seed,
        "max_tokens": 200,
        "stream": False,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{url.rstrip('/')}/chat/completions"
    return urllib.request.Request(address, json.dumps(body).encode(), headers)


def ask_model(
    url: str, model: str, content: str, *, temperature: float, seed: int, tries: int = 3
) -> str:
    """One answer of an OpenAI-like server."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(
            f"`{url}` is no address.", where="--endpoint", fix="Such as http://127.0.0.1:8000/v1."
        )
    request = _request(url, model, content, temperature, seed)
    for attempt in range(tries):
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            text = " ".join(error.read(500).decode("utf-8", "replace").split())
            if error.code not in (429, 500, 502, 503, 504) or attempt == tries - 1:
                raise LaurelError(
                    f"the server answered {error.code}: {text[:200]}",
                    where=url,
                    fix=f"Is the model `{model}`? {KEY} set?",
                ) from None
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            if attempt == tries - 1:
                raise LaurelError(
                    f"no answer: {error}",
                    where=url,
                    fix="Is the server running, and is it OpenAI-like?",
                ) from None
        time.sleep(2**attempt)
    raise AssertionError("the last try returns or raises")


def first_line(text: str) -> str:
    """A model's answer as a prompt: its first line that is not empty.

    Without bullet, label and quotes; at most 500 characters.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = (
        re.sub(
            r"^(?:[-*\d.)]+\s+|(?:new )?(?:instruction|prompt)\s*:\s*)+",
            "",
            lines[0],
            flags=re.IGNORECASE,
        )
        if lines
        else ""
    )
    return first.strip().strip("\"'`“”").strip()[:500]


def rank_candidates(
    mean_P: np.ndarray, names: Sequence[str], seen: Sequence[bool]
) -> list[tuple[str, float, bool]]:
    """(name, predicted mean reward, seen in training) of candidates, best first."""
    order = (int(p) for p in np.argsort(-mean_P))
    return [(names[p], float(mean_P[p]), bool(seen[p])) for p in order]
