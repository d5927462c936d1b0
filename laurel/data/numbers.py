"""One number out of a text, exactly, and only where it is the whole of what is said: 2√3 is no 3,
and 25 cm^2 no 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from laurel.data.non_answers import is_undecided
from laurel.data.plain_text import THIN, to_plain_text
from laurel.data.units import PATTERN, Unit, unit_of

DIGITS = 100
POWER = 300
TOLERANCE = Fraction(1, 10**6)
LONGEST = 20_000
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# Thousands: 1,234,567 and 12,34,567 · 1 234 567 · 1.234.567(,89) · 1'234'567 · 1_234_567. Two
# groups of dots, or one and a comma:
# 1.234 alone is a decimal.
# (`++` never gives a group back, so that a megabyte of groups is read once.)
_GROUPED = (
    r"\d{1,3}(?:,\d{3})++(?!,?\d)|\d{1,2}(?:,\d{2}(?=,))++,\d{3}(?!,?\d)"
    rf"|(?<!\d[ {THIN}])\d{{1,3}}(?:[ {THIN}]\d{{3}})++(?![ {THIN}]?\d)"
    r"|\d{1,3}(?:\.\d{3}){2,}+(?:,\d++)?(?![.\d])|\d{1,3}(?:\.\d{3})++,\d++(?![.\d])|\d{1,3}(?:'\d{3})++(?!\d)|\d{1,3}(?:_\d{3})++(?!\d)"
)
_MONEY = r"(?:[$€£¥₹¤]|\bUS\$|\bUSD\s?|\bEUR\s?|\bRs\.?\s?)"
ATOM = re.compile(
    rf"(?P<sign>(?<![\w.)\]}}])[-+](?=[$€£¥₹¤\d.])|(?<=[=(])\s?[-+]\s(?=[\d.]))?(?:{_MONEY}\s?)*(?P<inner>(?<=[$€£¥₹¤])-)?"
    rf"(?P<whole>{_GROUPED}|\d+)?(?P<part>(?:(?<=\d)|(?<![\w.]))\.\d+)?(?<=\d)"
    rf"(?:_\{{?\s?(?P<base>\d{{1,2}})\s?\}}?(?!\d))?"
    rf"(?:[ {THIN}]+(?P<over>\d+)/(?P<below>\d++)(?![/.]\d)|\s?/\s?(?P<under>\d+(?:\.\d+)?))?"
    rf"(?P<power>[eE][-+]?\d+(?![\w.]{{0,20}}\d)|\s?[x×·*]\s?10\s?\^\s?\{{?\s?[-+]?\d+\s?\}}?)?"
    rf"(?:\s(?P<scale>{'|'.join(SCALES)})\b)?(?P<percent>\s{{0,2}}(?:%|percent\b|per cent\b))?"
    rf"(?P<unit>{PATTERN}|\s?°(?:\s?[CFK]\b)?)?"
)
_OPERAND = re.compile(r"(?:(?<![A-Za-z])[A-Za-zα-ωΑ-Ω]|[\d)\]}π∞!])\s*\Z")
_LEFT_SIGN = re.compile(r"[\^_√±∓<>≤≥≠×·÷/π∞+]\s*\Z")
_LEFT_WORD = re.compile(
    r"(?:\b(?:sqrt|log|ln|sin|cos|tan|exp|choose|times|plus|minus|mod|modulo|not|than"
    r"|(?:root|factorial|power|log|logarithm|reciprocal|half|inverse)\s+of"
    r"|(?:divided|multiplied)\s+by)|n't)\s*\(?\s*\Z|\\[A-Za-z]+\s*\Z",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"[)\]]?\s*(?:[\^√*×·÷/π∞_±<>≤≥≠+]|\\[A-Za-z]|-\s*(?:[\d(√π∞\\]|[A-Za-z](?![A-Za-z]))"
    r"|(?:choose|mod|modulo|squared|cubed|factorial|plus|minus|divided|multiplied|to"
    r" the|raised|pi|times the|radical|dozen"
    r"|times\s+[\dA-Za-z](?![A-Za-z]))\b)|\("
)
_RIGHT_LETTER = re.compile(
    r"(?!(?:st|nd|rd|th|ths)\b)[A-Za-zα-ωΑ-Ω]|["
    r" $]*(?!(?:[aAI]\s))[A-Za-zα-ωΑ-Ω](?![A-Za-z'\u0370-\uffff.])"
)
# The left side of an equation that a number alone does not answer: 2x, x^2, x + y. A name alone (x,
# f(2), AB) is one it does.
_LETTER = r"(?<![A-Za-z])[abcknpqrxyz](?![A-Za-z])"
_LETTERED = re.compile(
    rf"(?:(?:\d|[)}}])\s*{_LETTER}|{_LETTER}\s*\^\s*\{{?\w+\}}?|{_LETTER}\s*[-+*/·×]\s*[\w.^{{}}]+|[\w)}}]\s*[-+*/·×]\s*{_LETTER})\s*\Z"
)
_ASSIGNED = re.compile(r"([A-Za-z]\w{0,2})\s*=\s*\Z")
_NEXT = re.compile(
    r"\s*(?:,|;|and\b|or\b|&)*\s*(?:and|or)?\s*([A-Za-z]\w{0,2})\s*(?:=|is)\s*[-+]?\s*\Z"
)
_GIVEN = re.compile(
    r"\b(?:since|if|when|with|where|because|as|from|let|given|for|at)\b[^.]*\Z", re.IGNORECASE
)
_WORD_JOINT = re.compile(
    r"\s*(?:choose|times|plus|minus|mod|modulo|of|out of|by|over|through|versus|vs\.?|x|X|:|to)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it was written: its value, whether a percent sign or a base stood behind it, and
    its unit where that is known.
    """

    value: Fraction
    percent: bool = False
    digits: str = ""
    base: int = 0
    unit: Unit | None = None


Trouble = Literal["", "nothing", "several", "expression", "absurd"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says: one quantity, or why none.

    "expression": mathematics that is more than one number.
    """

    quantity: Quantity | None
    trouble: Trouble = ""


def read_last_number(text: str, *, formula: bool = False) -> Reading:
    """The last number of a text, where nothing around it makes it a part of something larger and no
    other one stands beside it.

    formula: the text is mathematics alone (the content of a box), where an exclamation mark is a
    factorial.
    """
    text = to_plain_text(text[-2 * LONGEST :])[-LONGEST:]
    text = (
        re.sub(r"^\s*-\s+(?=[\d.¤$])", "-", text) if formula else text
    )  # in a sentence it may be a dash
    atoms = [
        atom
        for atom in ATOM.finditer(text)
        if atom["whole"] is not None or atom["part"] is not None
    ]
    if not atoms:
        return Reading(None, "expression" if re.search(r"[\\√π∞^=]", text) else "nothing")
    last = atoms[-1]
    quantity = exact_quantity(last)
    if len(atoms) > 1:
        before = atoms[-2]
        between = text[before.end() : _first_digit(last)]
        first = exact_quantity(before)
        equal = first is not None and quantity is not None and first.value == quantity.value
        if is_undecided(between, equal=equal) or _are_joined(
            between, equal, text[: before.start()]
        ):
            return Reading(None, "several")
    if _is_part_of_larger(text, last, formula):
        return Reading(None, "expression")
    return Reading(quantity, "" if quantity else "absurd")


def exact_quantity(atom: re.Match[str]) -> Quantity | None:
    """The exact quantity of one match of ATOM, or None where it is absurd.

    Absurd: over 100 digits, an exponent over 300, a zero denominator, a digit that its base does
    not have.
    """
    whole, part = _decimal_parts(atom)
    number = _magnitude(atom, whole, part)
    if number is None:
        return None
    base = int(atom["base"] or 0)
    if base:
        if part or not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in whole):
            return None
        number = Fraction(int(whole, base))
    negative = (atom["sign"] or "").strip().startswith("-") or bool(atom["inner"])
    return Quantity(
        -number if negative else number,
        percent=bool(atom["percent"]),
        digits="-" * negative + whole + part,
        base=base,
        unit=_unit(atom, base),
    )


def _decimal_parts(atom: re.Match[str]) -> tuple[str, str]:
    """The digits before the decimal point, and the point with those behind it ("" for none)."""
    whole, part = atom["whole"] or "", atom["part"] or ""
    if "." in whole:  # 1.234.567,89: points group the digits, the comma is the decimal point
        whole, _, decimals = whole.replace(".", "").partition(",")
        part = f".{decimals}" if decimals else part
    return re.sub(rf"[,'_ {THIN}]", "", whole), part


def _magnitude(atom: re.Match[str], whole: str, part: str) -> Fraction | None:
    """The number without its sign: decimal, fraction or mixed number, times its power of ten."""
    power, over, below, under = (atom[name] or "" for name in ("power", "over", "below", "under"))
    exponent = re.sub(r".*?(?:[eE]|10\s?\^\s?\{?\s?)|[\s}]", "", power)
    if len(whole + part + over + below + under) > DIGITS:
        return None
    if len(exponent) > 5 or abs(int(exponent or 0)) > POWER:
        return None
    if (under and not Fraction(under)) or (below and (not int(below) or int(over) >= int(below))):
        return None
    number = Fraction((whole or "0") + part)
    if below:  # a mixed number: 2 1/3
        number += Fraction(int(over), int(below))
    if under:
        number /= Fraction(under)
    return number * Fraction(10) ** (int(exponent or 0) + SCALES.get(atom["scale"] or "", 0))


def _unit(atom: re.Match[str], base: int) -> Unit | None:
    """The unit behind a number, or the currency sign before it."""
    if not atom["unit"]:
        priced = re.match(r"[-+]?\s?(?:¤|US\$|USD)", atom[0])
        return unit_of("dollars") if priced else None
    return None if base or "°" in atom["unit"] else unit_of(atom["unit"])


def _first_digit(atom: re.Match[str]) -> int:
    return atom.start("whole") if atom["whole"] is not None else atom.start("part")


def _are_joined(between: str, equal: bool, before: str) -> bool:
    """Two numbers of one expression or list in words: "5 choose 3", "x = 2 and y = 3"."""
    if not equal and len(between) < 60:
        if _WORD_JOINT.fullmatch(between):
            return not re.search(r"\bfrom\b[^.]*\Z", before) or between.strip() != "to"
        name, other = _ASSIGNED.search(before), _NEXT.fullmatch(between)
        if name and other and not _GIVEN.search(before):
            return True
    return False


def _is_part_of_larger(text: str, atom: re.Match[str], formula: bool) -> bool:
    """Does what stands around the number belong to it?

    An operator, a letter, a root, an open bracket with a comma.
    """
    left = text[max(0, atom.start() - 200) : atom.start()]
    right = text[atom.end() : atom.end() + 80]
    return _continues_left(left, signed=bool(atom["sign"])) or _continues_right(
        right, bare=not atom["unit"] and not atom["percent"], formula=formula
    )


def _continues_left(left: str, *, signed: bool) -> bool:
    """Does the text before a number make it a part of something larger?"""
    tail = left.rstrip(" \t$¤" + THIN)
    opened = tail.rstrip("([ ")
    if tail != opened and (
        re.search(r"[\w^√)\]}π]\Z", left.rstrip("$").rstrip("(["))
        or _LEFT_SIGN.search(opened)
        or opened.endswith("-")
    ):
        return True
    return (
        _behind_operator(left, tail, signed)
        or bool(re.search(r"[A-Za-zα-ω]\Z|\d[.:]\Z|\d,\Z", left))
        or bool(_LEFT_WORD.search(tail))
        or tail.count("{") > tail.count("}")
        or (tail.endswith("=") and ends_in_equation(tail[:-1]))
        or _in_bracketed_list(tail.rpartition("\n")[2])
    )


def _behind_operator(left: str, tail: str, signed: bool) -> bool:
    """Is the number an operand? A plus or a star at the start of a line is a list's bullet."""
    if _LEFT_SIGN.search(tail) and not re.search(r"(?:^|\n)\s*\+\Z", tail):
        return True
    if tail.endswith("*") and not re.search(r"(?:^|\n)[\s*]*\Z", tail):
        return True
    if signed and _OPERAND.search(tail):
        return True
    minus = tail.endswith("-")
    return minus and bool(_OPERAND.search(tail[:-1]) or re.search(r"\w-\Z", left))


def _in_bracketed_list(line: str) -> bool:
    """Does a line end in an open bracket with a comma and no words: "(1, "?"""
    opened = max(line.rfind("("), line.rfind("["))
    if opened <= max(line.rfind(")"), line.rfind("]")):
        return False
    return "," in line[opened:] and not re.search(r"[A-Za-z]{3}", line[opened:])


def _continues_right(right: str, *, bare: bool, formula: bool) -> bool:
    """Does the text behind a number make it a part of something larger? bare: it has no unit."""
    near = right.lstrip("$")
    if near.startswith("!") and (formula or right.startswith("!$")):  # a factorial
        return True
    return bool(
        _RIGHT.match(near)
        or (bare and _RIGHT_LETTER.match(near))
        or re.match(r"[:.]\d", right)  # a time, or a number of a section
    )


def ends_in_equation(left: str) -> bool:
    """Does a text end in the left side of an equation that a number alone does not answer?"""
    return bool(_LETTERED.search(left))


def same_quantity(stated: Quantity, gold: Quantity, tolerance: Fraction = Fraction(0)) -> bool:
    """Is one the other?

    50% is 50 where only one of them has the sign, and 0.5 too. A gold numeral in another base may
    be answered in its digits alone: 52 for 52_8, whose value is 42. Units that are known must
    measure the same, and count: 100 cm is 1 m, 5 km is no 5 m.
    """
    if gold.base and not stated.base:
        return stated.digits == gold.digits
    left, right = stated.value, gold.value
    if stated.unit and gold.unit:
        if stated.unit[0] != gold.unit[0]:
            return False
        left, right = left * stated.unit[1], right * gold.unit[1]
    if stated.percent != gold.percent:
        scaled = (left / 100, right) if stated.percent else (left, right / 100)
        return within_tolerance(left, right, tolerance) or within_tolerance(*scaled, tolerance)
    return within_tolerance(left, right, tolerance)


def within_tolerance(left: Fraction, right: Fraction, tolerance: Fraction = TOLERANCE) -> bool:
    """Equal, or within `tolerance` of the larger one: 0.333333 is 1/3.

    Beside a whole number, `tolerance` itself: float noise.
    """
    if left == right or (left.denominator == 1 and right.denominator == 1):
        return left == right
    size = max(abs(left), abs(right))
    if 1 in (left.denominator, right.denominator):
        size = min(size, Fraction(1))
    return bool(left and right) and abs(left - right) <= tolerance * size
