"""Judges' report cards as tables and pictures: what the command prints and the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

from laurel.measure.agreement import Agreement
from laurel.measure.judge_card import Card, JudgeCard, PeopleCard, WinRate
from laurel.report.exhibit import Dots, Exhibit, Table

BESIDE = 3
"""Judges beside each other in one table; more fill further tables."""
FEW = 10
"""Systems below which a rank correlation says little."""
MOST_SYSTEMS = 25
"""Systems in a picture and in the text's table of win rates; the page's tables have all."""
ABOUT = (
    "What each judge's verdicts are worth, beside the people who judged the same. Below a figure"
    " stands its 95 % interval, by prompt; n counts verdicts, votes or pairs of them, for systems"
    " the systems. An answer that cannot be read, and one that never came, are left out and"
    " counted, never taken for a tie."
)


def exhibit(cards: Sequence[Card], source: str, *, whole: bool = True) -> Exhibit:
    """All cards of a source as one exhibit. whole: every system's win rate, not the first ones."""
    tables = [table for card in cards for table in card_tables(card, len(cards) > 1, whole)]
    notes = [note for card in cards for note in card_notes(card, len(cards) > 1)]
    return Exhibit(
        title=f"Judges' report card: {source}",
        about=ABOUT,
        data={"cards": [card_data(card) for card in cards]},
        tables=tuple(tables),
        dots=tuple(dots for card in cards for dots in card_dots(card, len(cards) > 1)),
        notes=tuple(dict.fromkeys(notes)),
    )


def card_data(card: Card) -> dict[str, object]:
    """Every figure of a card, with its interval or the reason why there is none."""
    return asdict(card)


def share(found: Agreement | None, digits: int = 3) -> str:
    """0.930 n=100 [0.861..0.966]; a dash where there is no figure."""
    if found is None or found.value is None:
        return "-"
    bounds = ""
    if found.low is not None and found.high is not None:
        bounds = f" [{found.low:.{digits}f}..{found.high:.{digits}f}]"
    return f"{found.value:.{digits}f} n={found.n}{bounds}"


def counted(found: Agreement) -> str:
    """886/1343 = 0.6597 [0.6199..0.6974]; a dash where there is no figure."""
    if found.value is None or found.low is None or found.high is None:
        return "-"
    bounds = f"[{found.low:.4f}..{found.high:.4f}]"
    return f"{round(found.value * found.n)}/{found.n} = {found.value:.4f} {bounds}"


def p_text(p: float | None) -> str:
    """A p-value."""
    return "-" if p is None else f"{p:.0e}" if p < 0.001 else f"{p:.3f}"


Line = tuple[str, Callable[[JudgeCard], str], Callable[[PeopleCard], str]]
"""A row: what it is, of a judge, of people."""


def figure(name: str) -> Callable[[JudgeCard], str]:
    """A figure of a judge by its name on the card."""
    return lambda judge: share(getattr(judge, name))


def nothing(_: PeopleCard) -> str:
    """A row that people have no part in."""
    return "-"


def blank(_: JudgeCard) -> str:
    """A row that a judge has no part in."""
    return "-"


def answered(judge: JudgeCard) -> str:
    """Counts of answers by status."""
    return ", ".join(f"{count} {status}" for status, count in sorted(judge.answers.items()))


def rated(people: PeopleCard) -> str:
    """How many votes there are."""
    if not people.votes:
        return "-"
    return f"{people.votes} votes of {people.raters} on {people.items} items"


def plain_number(value: float | None) -> str:
    """A share without an interval."""
    return "-" if value is None else f"{value:.3f}"


def baseline(people: PeopleCard) -> str:
    """What a judge that picks the longer response would score."""
    return share(people.baselines.get("the longer response"))


def first_baseline(people: PeopleCard) -> str:
    """What a judge that picks the response stored first would score."""
    return share(people.baselines.get("the response stored first"))


LINES: tuple[tuple[str, tuple[Line, ...]], ...] = (
    (
        "Answers and the order of showing",
        (
            ("answers", answered, rated),
            ("can be read", figure("parse"), nothing),
            ("same verdict in both orders", figure("consistency"), nothing),
            ("the first slot wins", figure("first_slot"), nothing),
            ("… p against one half", lambda judge: p_text(judge.first_slot_p), nothing),
            ("… among pairs that change with the order", figure("second_thoughts"), nothing),
            ("differs, asked twice in one order", figure("repeat_flips"), nothing),
            ("differs, asked in the two orders", figure("swap_flips"), nothing),
            ("no preference between equal texts", figure("identical"), nothing),
        ),
    ),
    (
        "Right answers, length and makers",
        (
            ("right, of valid answers", figure("accuracy"), nothing),
            ("right, of all asked", figure("accuracy_asked"), nothing),
            ("baseline: picks the longer", blank, baseline),
            ("baseline: picks the one stored first", blank, first_baseline),
            ("prefers the longer", figure("longer"), lambda people: share(people.longer)),
            ("its weight of length, logits", figure("length_slope"), nothing),
            ("prefers its own maker by", figure("self_preference"), nothing),
        ),
    ),
    (
        "Beside people",
        (
            ("agrees with a person", figure("people"), lambda people: share(people.agreement)),
            (
                "… without ties",
                figure("people_no_ties"),
                lambda people: share(people.agreement_no_ties),
            ),
            ("kappa with a person", figure("kappa_person"), lambda people: share(people.kappa)),
            ("kappa with people's majority", figure("kappa"), nothing),
            (
                "a person with the others' majority",
                blank,
                lambda people: plain_number(people.leave_one_out),
            ),
            ("ties", blank, lambda people: share(people.ties)),
            ("order of systems: Spearman's rho", lambda j: share(j.rho, 4), nothing),
            ("order of systems: Kendall's tau-b", lambda j: share(j.tau, 4), nothing),
        ),
    ),
    (
        "Cost",
        (
            ("tokens read", lambda judge: whole_number(judge.tokens_in), nothing),
            ("tokens written", lambda judge: whole_number(judge.tokens_out), nothing),
            ("money", lambda judge: "-" if judge.cost is None else f"{judge.cost:.4f}", nothing),
        ),
    ),
)


def whole_number(value: int | None) -> str:
    """12,345, or a dash."""
    return "-" if value is None else f"{value:,}"


def card_tables(card: Card, named: bool, whole: bool) -> Iterator[Table]:
    """The tables of one card: judges beside people, counts, win rates, pairs of judges."""
    before = f"{card.name}: " if named else ""
    groups = [card.judges[k : k + BESIDE] for k in range(0, len(card.judges), BESIDE)]
    for title, lines in LINES:
        for group in groups:
            rows = [(what, *map(of, group), people(card.people)) for what, of, people in lines]
            kept = [row for row in rows if any(cell != "-" for cell in row[1:])]
            if kept:
                heads = ("", *(judge.name for judge in group), "people")
                yield Table(before + title, *without_last(heads, kept))
    if card.people.votes:
        yield agreement_table(card, before)
    for judge in card.judges:
        if judge.win_rates:
            yield win_rate_table(card, judge, before, whole)
    if card.pairs:
        yield pairs_table(card, before)


def without_last(
    heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """A table without its last column where that says nothing."""
    if any(row[-1] != "-" for row in rows):
        return heads, tuple(rows)
    return heads[:-1], tuple(row[:-1] for row in rows)


def agreement_table(card: Card, before: str) -> Table:
    """Equal pairs of labels over all pairs, in counts, beside what was published."""
    rows: list[tuple[str, str, str]] = []

    def add(who: str, found: Agreement, key: str) -> None:
        printed = card.published.get(key)
        rows.append((who, counted(found), "-" if printed is None else f"{printed:.0%}"))

    for judge in card.judges:
        add(f"{judge.name} with a person", judge.people, "people")
        add(f"{judge.name} with a person, no ties", judge.people_no_ties, "people_no_ties")
    add("a person with a person", card.people.agreement, "agreement")
    add("a person with a person, no ties", card.people.agreement_no_ties, "agreement_no_ties")
    heads = ("who", "equal pairs of all", "published")
    return Table(f"{before}Agreement on items", heads, tuple(rows))


def win_rate_table(card: Card, judge: JudgeCard, before: str, whole: bool) -> Table:
    """Each system's win rates, best first by the judge."""
    few = "people" if card.labels is None else f"people, {card.labels} items"
    heads = ("system", "verdicts", "equal lengths", few, "corrected", "lambda", "all people")
    rows: list[tuple[str, ...]] = [
        (
            name,
            short(rate.plain),
            short(rate.controlled),
            short(rate.people),
            short(rate.corrected),
            plain_number(rate.weight),
            short(rate.everybody),
        )
        for name, rate in judge.win_rates.items()
    ]
    kept = rows if whole else rows[:MOST_SYSTEMS]
    if len(kept) < len(rows):
        kept.append((f"and {len(rows) - len(kept)} more: --html, --json", *[""] * 6))
    return Table(f"{before}Win rates by {judge.name}", heads, tuple(kept))


def short(found: Agreement) -> str:
    """0.75 [0.53..0.84] in few characters."""
    if found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}..{found.high:.2f}]"


def pairs_table(card: Card, before: str) -> Table:
    """Judges beside each other on the items that both judged."""
    rows = [
        (
            pair.first,
            pair.second,
            share(pair.agreement),
            share(pair.kappa),
            "-" if pair.only_first is None else f"{pair.only_first} : {pair.only_second}",
            p_text(pair.p),
        )
        for pair in card.pairs
    ]
    heads = ("one", "the other", "same verdict", "kappa", "right alone", "McNemar p")
    return Table(f"{before}Judges beside each other", heads, tuple(rows))


def card_notes(card: Card, named: bool) -> Iterator[str]:
    """What a reader should know, and why figures are missing."""
    before = f"{card.name}: " if named else ""
    yield f"{before}{card.items} items of {card.prompts} prompts."
    for note in card.notes:
        yield before + note
    for judge in card.judges:
        if judge.rho.value is not None and judge.rho.n < FEW:
            yield f"{before}{judge.rho.n} systems are too few for a rank correlation to say much."
    if any(rate.corrected.value is not None for rate in _rates(card)):
        yield (
            "Corrected: people's votes and the verdicts on all other items together"
            " (prediction-powered inference); lambda is the weight of the verdicts. Its interval,"
            " and that of people beside it, take items as drawn one by one."
        )
    if any(rate.controlled.value is not None for rate in _rates(card)):
        yield (
            "Equal lengths: by logistic regression with a term for the gap in length (AlpacaEval 2,"
            " arXiv:2404.04475), without its term for the difficulty of the instruction."
        )
    if card.pairs and card.prompts < card.items:
        yield (
            f"{before}McNemar's p takes items as independent: of several pairs of one prompt it is"
            " too small."
        )
    missing = [(judge.name, what, why) for judge in card.judges for what, why in reasons(judge)]
    for why in dict.fromkeys(reason for *_, reason in missing):
        what = dict.fromkeys(name for _, name, reason in missing if reason == why)
        judges = list(dict.fromkeys(name for name, _, reason in missing if reason == why))
        who = "" if len(judges) == len(card.judges) else f" ({', '.join(judges)})"
        yield f"{before}Not known: {', '.join(what)}{who}: {why}."


def _rates(card: Card) -> Iterable[WinRate]:
    return [rate for judge in card.judges for rate in judge.win_rates.values()]


SPOKEN = {
    "consistency": "same verdict in both orders",
    "first_slot": "the first slot",
    "second_thoughts": "who wins pairs that change",
    "repeat_flips": "asked twice in one order",
    "swap_flips": "asked in the two orders",
    "identical": "equal texts",
    "accuracy": "right answers",
    "longer": "length",
    "self_preference": "its own maker",
    "people": "agreement with people",
    "kappa": "kappa with the majority",
    "rho": "order of systems",
}


def reasons(judge: JudgeCard) -> Iterator[tuple[str, str]]:
    """Which figures are undefined, and why."""
    for name, words in SPOKEN.items():
        found = getattr(judge, name)
        if found.value is None and found.reason:
            yield words, found.reason
    corrected = [rate.corrected for rate in judge.win_rates.values()]
    if corrected and all(found.value is None for found in corrected):
        yield "corrected win rates", corrected[0].reason


PICTURES: tuple[tuple[str, str, str, float | None], ...] = (
    ("Same verdict in both orders", "consistency", "", None),
    ("The first slot wins", "first_slot", "", 0.5),
    ("Right, of valid answers", "accuracy", "", 0.5),
    ("Prefers the longer response", "longer", "longer", 0.5),
    ("Agrees with a person, no ties", "people_no_ties", "agreement_no_ties", 0.5),
    ("Kappa with a person", "kappa_person", "kappa", 0.0),
)
"""Title, figure of a judge, figure of people, what it is read against."""


def card_dots(card: Card, named: bool) -> Iterator[Dots]:
    """The main figures as dots with intervals, judges and people below each other."""
    before = f"{card.name}: " if named else ""
    for title, of_judge, of_people, line in PICTURES:
        found = {judge.name: getattr(judge, of_judge) for judge in card.judges}
        if of_people:
            found["people"] = getattr(card.people, of_people)
        rows = {name: dot for name, one in found.items() if (dot := dot_of(one)) is not None}
        if any(name != "people" for name in rows):
            yield Dots(before + title, "share" if "appa" not in title else "kappa", rows, line)
    for judge in card.judges:
        yield from win_rate_dots(judge, before)


def win_rate_dots(judge: JudgeCard, before: str) -> Iterator[Dots]:
    """Win rates by the judge, corrected where they are, by people where there are votes."""
    if len(judge.win_rates) < 2:
        return
    best = list(judge.win_rates.items())[:MOST_SYSTEMS]
    for title, name in (
        (f"Win rates by {judge.name}", "plain"),
        (f"Win rates by {judge.name}, corrected by people", "corrected"),
        (f"Win rates by people, in {judge.name}'s order", "everybody"),
    ):
        found = {system: dot_of(getattr(rate, name)) for system, rate in best}
        rows = {system: dot for system, dot in found.items() if dot is not None}
        if rows:
            yield Dots(before + title, "share of wins, ties half", rows, 0.5)


def dot_of(found: Agreement) -> tuple[float, float, float] | None:
    """(value, low, high); None without a figure or an interval."""
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high
