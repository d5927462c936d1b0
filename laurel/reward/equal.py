"""Is one expression another? math-verify's verdict, and a second look at its yes where it rounds.
Runs in workers: it may never end.
"""

from __future__ import annotations

from typing import Any

TOLERANCE = 1.0000001e-6
PRECISION = 60


def equivalent(payload: tuple[str, tuple[str, ...]]) -> str:
    """(gold, candidates) -> "" if every candidate equals the gold mathematically, else why not."""
    from math_verify import parse, verify

    gold, candidates = payload
    truth = parse(gold, parsing_timeout=0)
    if not truth:
        return "gold"
    for candidate in candidates:
        parsed = parse(candidate, parsing_timeout=0)
        if (
            not parsed
            or not verify(truth, parsed, timeout_seconds=0)
            or not holds_exactly(truth[0], parsed[0], "%" in gold + candidate)
        ):
            return f"{candidate:.60} is not {gold:.60}"
    return ""


def holds_exactly(truth: Any, answer: Any, percent: bool) -> bool:
    """Does a yes hold? Numbers are looked at with 60 digits: to six decimals, 1/2004! is 1/2006!,
    and 0.0000005 is 0.
    """
    from sympy import Basic, Float, N

    left, right = number_value(truth), number_value(answer)
    if left is None or right is None:
        return is_equation(truth) == is_equation(answer) or not {
            is_equation(truth),
            is_equation(answer),
        } & {
            "Unequality",
            "inequality",
        }
    rough = any(isinstance(item, Basic) and item.has(Float) for item in (truth, answer))
    for scaled in (right, right * 100, right / 100) if percent else (right,):
        exact = N(left, PRECISION), N(scaled, PRECISION)
        gap = abs(exact[0] - exact[1])
        if gap <= abs(exact[0]) * (TOLERANCE if rough else 10.0**-40):
            return True
    return False


def number_value(expression: Any) -> Any:
    """The number that an expression is, or that an equation gives its letter; None for anything
    else.
    """
    from sympy import Basic, Eq

    if isinstance(expression, Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    if not isinstance(expression, Basic) or not getattr(expression, "is_number", False):
        return None
    return expression


def is_equation(expression: Any) -> str:
    """An inequality is no equation."""
    name = type(expression).__name__
    return "inequality" if "Than" in name else name
