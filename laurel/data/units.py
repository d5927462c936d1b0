"""Units behind a number: what they measure and how large they are, so that 5 km is no 5 m."""

from __future__ import annotations

import re
from fractions import Fraction

Unit = tuple[tuple[tuple[str, int], ...], Fraction]
"""What is measured, as powers of kinds, and the size in the kind's first unit."""

# kind: the spellings of a unit, and its size. A spelling stands in one place only; what is spelled
# alike ("pounds") is in none.
_TABLE: dict[str, list[tuple[str, str]]] = {
    "length": [
        ("m meter meters metre metres", "1"),
        ("mm millimeter millimeters millimetre millimetres", "1/1000"),
        ("cm centimeter centimeters centimetre centimetres", "1/100"),
        ("dm", "1/10"),
        ("km kilometer kilometers kilometre kilometres", "1000"),
        ("inch inches", "127/5000"),
        ("ft foot feet", "381/1250"),
        ("yd yard yards", "1143/1250"),
        ("mi mile miles", "201168/125"),
    ],
    "mass": [
        ("g gram grams", "1"),
        ("mg milligram milligrams", "1/1000"),
        ("kg kilogram kilograms", "1000"),
    ],
    "time": [
        ("s sec secs second seconds", "1"),
        ("ms millisecond milliseconds", "1/1000"),
        ("min mins minute minutes", "60"),
        ("h hr hrs hour hours", "3600"),
        ("day days", "86400"),
        ("week weeks", "604800"),
    ],
    "volume": [
        ("l L liter liters litre litres", "1"),
        ("ml mL milliliter milliliters millilitre millilitres", "1/1000"),
    ],
    "money": [("dollar dollars USD usd bucks", "1"), ("cent cents", "1/100")],
    "euro": [("euro euros EUR", "1")],
    "angle": [("degree degrees deg", "1")],
    "power": [("W watt watts", "1"), ("kW kilowatt kilowatts", "1000")],
    "energy": [("J joule joules", "1"), ("kJ", "1000")],
    "force": [("N newton newtons", "1")],
    "tension": [("V volt volts", "1")],
}
SIZES: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(size))
    for kind, units in _TABLE.items()
    for names, size in units
    for name in names.split()
}
WORD = "|".join(sorted(map(re.escape, SIZES), key=len, reverse=True))
_POWER = r"(?:\s{0,2}\^\s?\{?\s?-?\d\s?\}?|\d(?![\d./]))"
_ONE = rf"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{WORD}|in(?=\s{{0,2}}\^))(?![A-Za-z]){_POWER}?"
PATTERN = rf"\s{{0,3}}(?:{_ONE})(?:\s{{0,2}}(?:/|\bper\b)\s{{0,2}}(?:{_ONE}))?"
_PART = re.compile(
    rf"(square|cubic|sq\.?|cu\.?)?\s*({WORD}|in)(?![A-Za-z])\s*(?:\^?\s?\{{?\s?(-?\d))?"
)


def unit_of(text: str) -> Unit | None:
    """The unit that a text names: "cm^2", "square cm", "km/h", "meters per second"; None for none
    that is known.
    """
    powers: dict[str, int] = {}
    size = Fraction(1)
    for number, part in enumerate(re.split(r"/|\bper\b", text)):
        found = _PART.search(part)
        if found is None:
            return None
        words, name, exponent = found.groups()
        kind, one = SIZES["inch" if name == "in" else name]
        power = int(exponent or {"s": 2, "c": 3}.get((words or " ")[0], 1)) * (-1 if number else 1)
        powers[kind] = powers.get(kind, 0) + power
        size *= one**power
    return tuple(sorted(powers.items())), size
