"""An analysis as tables, the same in the text report, the HTML report and the admin pages."""

from __future__ import annotations

from collections.abc import Iterable

from laurel.measure.agreement import Agreement
from laurel.measure.annotators import SIGNS, Signals
from laurel.measure.crowd import Signal
from laurel.measure.intervals import Interval
from laurel.measure.judging import SlotBias
from laurel.measure.population import PUBLISHED
from laurel.measure.preference_shares import HeldOut
from laurel_feedback.statistics.analysis import Analysis, AnnotatorSkill, HourlyPay
from laurel_feedback.statistics.batches import BatchSummary, Cost, HarmExposure
from laurel_feedback.statistics.demographics import Demographics
from laurel_feedback.statistics.judges import Judge
from laurel_feedback.statistics.labels import LabelQuality
from laurel_feedback.statistics.section import (
    NONE,
    Section,
    bounds_text,
    interval_text,
    make_section,
    number_text,
    p_value_text,
    percent_text,
    slot_bias_text,
)
from laurel_feedback.statistics.votes import MTBENCH


def sections(found: Analysis) -> list[Section]:
    """All of an analysis, the most important first."""
    made = [facts_section(found), agreement_section(found.agreement)]
    if found.pairs:
        rows = [
            (one, two, number_text(k.value), bounds_text(k), str(k.n), k.reason)
            for one, two, k in found.pairs
        ]
        note = (
            "Pairs of annotators who share at least ten items, those that share most. Linear"
            " weights."
        )
        made.append(
            make_section(
                "Cohen's kappa of pairs",
                "first|second|kappa|95 % interval|n|note",
                rows,
                note,
                "first|second|note",
            )
        )
    made += [labels_section(found.worth)] if found.worth is not None else []
    made += [models_section(found), *(judge_section(found, card) for card in found.judges)]
    if found.skills:
        made += [skill_section(found.skills), low_effort_section(found.panel)]
    if found.pay is not None:
        made.append(pay_section(found.pay))
    return made


def facts_section(found: Analysis) -> Section:
    """Counts, the pull of the first slot and of length."""
    total = sum(found.labels.values()) or 1
    rows = [
        ("votes", f"{found.votes:,} on {found.items:,} items by {found.annotators:,} annotators"),
        ("ties", percent_text(found.labels.get("tie", 0) / total) if found.labels else NONE),
        ("the first slot wins", slot_bias_text(found.slots)),
        ("the longer response wins", interval_text(found.longer)),
    ]
    if found.thumbs is not None:
        rows.append(("thumbs up on single answers", interval_text(found.thumbs)))
    note = " ".join(["Shares of wins leave ties out; 50 % would be no pull.", *found.notes])
    return make_section("Votes", "what|figure", rows, note, "what|figure")


def agreement_section(found: dict[str, Agreement]) -> Section:
    """Coefficients, or why they are undefined."""
    rows = [
        (
            name,
            "undefined" if a.value is None else number_text(a.value),
            bounds_text(a),
            f"{a.n:,}",
            f"because {a.reason}" if a.value is None else a.reason,
        )
        for name, a in found.items()
    ]
    note = (
        "1 is full agreement; for kappa, alpha and AC1 0 is what chance gives. Intervals resample"
        " items; n counts items, or pairs of votes."
    )
    return make_section(
        "Agreement", "coefficient|value|95 % interval|n|note", rows, note, "coefficient|note"
    )


def labels_section(found: LabelQuality) -> Section:
    """What an export of these votes would say, and how true it is of votes that it has not seen."""
    rows = [
        ("pairs with a strict majority", f"{found.pairs:,}", ""),
        ("labels against the majority", f"{found.against_majority:,}", ""),
        (
            "the same, because gold speaks against voters",
            f"{found.by_gold:,}",
            ", ".join(found.left_out),
        ),
        ("pairs split evenly, pairs with ties only", f"{found.even:,}, {found.undecided:,}", ""),
    ]
    rows += held_out_score_cells(found.held_out)
    note = (
        "A label is the chance that a further annotator, who decides and is like those who voted,"
        " prefers the response. "
    )
    note += (
        "Log loss is of one vote of each pair with three or more, foretold from all other votes; a"
        " smaller one is better."
    )
    return make_section("Labels", "what|figure|note", rows, note, "what|note")


def held_out_score_cells(found: HeldOut | None) -> list[tuple[str, str, str]]:
    """Held-out log loss and the reliability of what labels say."""
    if found is None:
        return [("log loss of a held-out vote", NONE, "no pair has three votes that decide")]
    rows = [
        (
            "log loss of a held-out vote: labels",
            f"{found.product:.4f}",
            f"n = {found.n:,}, mean of {len(found.draws)} draw{'s' * (len(found.draws) > 1)}",
        ),
        (
            "the same, share (wins + 1) / (n + 2)",
            f"{found.share:.4f}",
            "" if found.product <= found.share else "better than the labels",
        ),
        ("the same, a coin", f"{found.coin:.4f}", ""),
    ]
    return rows + [
        (
            f"labels that say {row.confidence:.2f}, found",
            number_text(row.frequency.value),
            f"{bounds_text(row.frequency)}, n = {row.count:,}",
        )
        for row in found.table
    ]


def models_section(found: Analysis) -> Section:
    """Bradley-Terry scores, best first."""
    if not found.models.scores:
        return make_section(
            "Scores of the models", "model|score", (), f"No scores: {found.models.reason}."
        )
    rows = [
        (
            s.model,
            f"{s.score:.0f}",
            NONE if s.low is None else f"{s.low:.0f} to {s.high:.0f}",
            f"{s.wins:.0f}",
            f"{s.ties:.0f}",
            f"{s.losses:.0f}",
        )
        for s in found.models.scores
    ]
    pull = found.models.slot
    note = "Bradley-Terry in Elo points around 1000, ties half a win, "
    if found.models.scores[0].low is None:
        note += "without intervals: all votes are about one item"
    elif pull is None:
        note += "not freed from the first slot's pull, which has no finite estimate"
    else:
        note += (
            f"freed from the first slot's pull of {pull.value:.0f} points ({pull.low:.0f} to"
            f" {pull.high:.0f})"
        )
    return make_section(
        "Scores of the models",
        "model|score|95 % interval|won|tied|lost",
        rows,
        f"{note}. Votes on one item count together.",
    )


def _share(found: Agreement) -> tuple[str, str, str]:
    if found.value is None:
        return "undefined", NONE, f"because {found.reason}"
    return f"{round(found.value * found.n)}/{found.n} = {found.value:.4f}", bounds_text(found), ""


def judge_section(found: Analysis, card: Judge) -> Section:
    """A judge beside people, with the agreement among people as the ceiling."""
    rows = [
        *_agreement_rows(found, card),
        *_majority_rows(card),
        *_slot_rows(card),
        *_length_rows(found, card),
        *_model_rows(card),
    ]
    return make_section(
        f"Judge {card.name} beside people", "what|figure|95 % interval|note", rows, "", "what|note"
    )


Cells = tuple[str, str, str, str]
"""What, figure, interval, note."""


def _agreement_rows(found: Analysis, card: Judge) -> list[Cells]:
    """A judge with a person, and a person with a person, with ties and without."""
    published = dict(MTBENCH_SHOWN) if found.name == "MT-Bench, turn 1" else {}
    agreement = found.agreement
    rows = []
    for name, agreed in (
        (f"{card.name} with a person", card.people),
        ("a person with a person", agreement.get("two votes on a pair are equal")),
        (f"{card.name} with a person, no ties", card.people_no_ties),
        ("a person with a person, no ties", agreement.get("the same, without ties")),
    ):
        if agreed is not None:
            figure, interval, note = _share(agreed)
            rows.append((name, figure, interval, published.get(name, note)))
    return rows


def _majority_rows(card: Judge) -> list[Cells]:
    """A judge with the majority of people, and how many of its verdicts are valid."""
    k, m = card.kappa, card.metrics
    kappa = "undefined" if k.value is None else number_text(k.value)
    note = m.reason if m.agreement is None else f"n = {m.n}"
    valid = sum(card.statuses.get(s, 0) for s in ("a", "b", "tie", "inconsistent"))
    counted = ", ".join(f"{n} {s}" for s, n in sorted(card.statuses.items()))
    return [
        ("kappa with people's majority", kappa, bounds_text(k), k.reason or f"n = {k.n}"),
        ("with the majority of all people but one", percent_text(m.agreement), NONE, note),
        ("the same, a person with the others", percent_text(card.ceiling), NONE, "the ceiling"),
        ("its majority against people's (bias)", percent_text(m.bias), NONE, ""),
        ("valid verdicts", f"{valid}/{sum(card.statuses.values())}", NONE, counted),
    ]


def _slot_rows(card: Judge) -> list[Cells]:
    """How far the order of showing decides."""
    rows = []
    if card.both is not None and card.both.consistency is not None:
        same, pairs = card.both.consistency, f"n = {card.both.pairs}"
        rows.append(
            (
                "same verdict in both orders",
                percent_text(same.value),
                bounds_text(same, percent_text),
                pairs,
            )
        )
    if card.first is not None:
        share, p = card.first.share, f"p = {p_value_text(card.first.p)}"
        rows.append(
            ("the first slot wins", percent_text(share.value), bounds_text(share, percent_text), p)
        )
    return rows


def _length_rows(found: Analysis, card: Judge) -> list[Cells]:
    """How often the longer response wins."""
    rows = []
    if card.longer is not None:
        share, what = card.longer, "the longer response wins, by the judge"
        rows.append(
            (what, percent_text(share.value), bounds_text(share, percent_text), f"n = {share.n}")
        )
    if found.longer is not None:
        share, note = found.longer, "what a judge that picks the longer one scores"
        rows.append(
            (
                "the same, by people",
                percent_text(share.value),
                bounds_text(share, percent_text),
                note,
            )
        )
    return rows


def _model_rows(card: Judge) -> list[Cells]:
    """The order of models by the judge and by people, and people's win rates with its help."""
    rows = []
    for name, r in (
        ("Spearman's rho of models' scores", card.rho),
        ("Kendall's tau-b of models' scores", card.tau),
    ):
        if r is not None:
            value = "undefined" if r.value is None else f"{r.value:.4f}"
            note = r.reason or f"n = {r.n} models" + ", too few" * (r.n < 10)
            rows.append((name, value, bounds_text(r), note))
    for name, p in card.rates.items():
        alone = f"people alone {percent_text(p.human.value)} ({bounds_text(p.human, percent_text)})"
        what, rate = f"win rate of {name}, with the judge's help", p.estimate
        rows.append((what, percent_text(rate.value), bounds_text(rate, percent_text), alone))
    return rows


MTBENCH_SHOWN = tuple(
    (name + end, f"published: {share:.0%}")
    for name, ties, none in MTBENCH
    for end, share in (("", ties), (", no ties", none))
)


def skill_section(found: Iterable[AnnotatorSkill]) -> Section:
    """One line for each annotator."""
    rows = [
        (
            s.annotator + " (left out)" * s.left_out,
            f"{s.votes:,}",
            percent_text(s.reliability),
            percent_text(s.ties),
            _marks(s.gold),
            _marks(s.repeats),
            _first(s.slots),
        )
        for s in found
    ]
    note = (
        "Reliable: the chance that a vote for a response is no guess, as all such votes together"
        " see it; ties count neither for nor "
    )
    note += (
        "against it. Gold: right answers; who is wrong more often than guessing explains is left"
        " out of all labels. "
    )
    note += "Repeats: the same answer when the slots are swapped. First: wins of the first slot."
    return make_section(
        "Annotators", "annotator|votes|reliable|ties|gold|repeats|first", rows, note
    )


def _marks(found: Interval | None) -> str:
    return NONE if found is None else f"{round(found.value * found.n)}/{found.n}"


def _first(found: SlotBias | None) -> str:
    return NONE if found is None else percent_text(found.share.value)


HEADINGS = {
    "speed": "seconds",
    "reading": "unread",
    "entropy": "bits",
    "slots": "slot z",
    "alternation": "runs z",
    "ties": "ties",
    "agreement": "agree",
    "echo": "echo",
    "pasted": "pasted",
}


def signal_text(name: str, found: Signal) -> str:
    """One sign as it is shown; "!" where it stands out."""
    if found.value is None:
        return NONE
    shares = name in ("reading", "ties", "pasted")
    shown = (
        f"{found.value:.0%}"
        if shares
        else f"{found.value:.0f}"
        if name == "speed"
        else f"{found.value:.2f}"
    )
    return shown + " !" * found.flag


def low_effort_section(found: Iterable[Signals]) -> Section:
    """The signs side by side."""
    rows = [
        (str(s.annotator), f"{s.n:,}", *(signal_text(name, getattr(s, name)) for name in SIGNS))
        for s in found
    ]
    note = (
        "! means: look at this. No sign sees every kind of cheating and honest people stand out"
        " too; nothing follows from a flag by itself."
    )
    return make_section(
        "Signs of low effort",
        "annotator|votes|" + "|".join(HEADINGS[name] for name in SIGNS),
        rows,
        note,
    )


def pay_section(found: HourlyPay) -> Section:
    """Pay per hour at work."""
    floor = f"floor {found.floor:.2f}"
    rows = [
        (
            "votes with a known time",
            "0" if found.hourly is None else f"{found.hourly.n:,}",
            f"{found.unknown:,} without",
        )
    ]
    if found.hourly is not None:
        rows += [
            (
                "median vote, per hour",
                f"{found.hourly.median:.2f} {found.currency}",
                found.below or floor,
            ),
            (
                "slowest tenth of votes, per hour, at most",
                f"{found.hourly.slowest:.2f} {found.currency}",
                "below the floor" if found.hourly.slowest < found.floor else floor,
            ),
        ]
        lowest = sorted(found.by_annotator.items(), key=lambda pair: pair[1])[:5]
        rows += [
            (
                f"lowest annotators: {name}",
                f"{rate:.2f} {found.currency}",
                "below the floor" if rate < found.floor else "",
            )
            for name, rate in lowest
        ]
    return make_section("Pay per hour of active time", "what|figure|note", rows, "", "what|note")


def progress_section(found: BatchSummary) -> Section:
    """Progress and cost."""
    money = found.settings.currency
    rows = [
        ("state", found.state),
        ("votes", f"{found.votes:,} of {found.wanted:,}"),
        ("items with all votes", f"{found.finished:,} of {found.items:,}"),
        ("under way, skipped, expired", f"{found.leased:,}, {found.skipped:,}, {found.expired:,}"),
        ("skipped as too distressing (paid)", f"{found.distressing:,}"),
        ("held for words that tell the writer", f"{found.held:,}"),
        ("cost so far, expected in all", f"{found.spent:,.2f}, {found.expected:,.2f} {money}"),
    ]
    return make_section("Progress and cost", "what|figure", rows, "", "what|figure")


def cost_section(found: Iterable[Cost], currency: str) -> Section:
    """What each person's work costs."""
    rows = [
        (
            c.annotator,
            f"{c.answered:,}",
            f"{c.distressing:,}" + " !" * c.odd,
            number_text(c.seconds, 1),
            f"{c.paid:,.2f} {currency}",
        )
        for c in found
    ]
    note = (
        "! means: look, and ask. Five or more skips as too distressing, far more than others skip"
        " so, or faster than anything is read. "
    )
    note += "They are paid all the same: people must be free to skip what distresses them."
    return make_section(
        "What each person costs",
        "annotator|answered|too distressing|seconds to the skip|paid",
        rows,
        note,
    )


def harm_section(found: Iterable[HarmExposure]) -> Section:
    """What annotators were shown that is hard to read."""
    rows = [
        (
            e.annotator,
            f"{e.samples:,}",
            f"{e.today:,}",
            f"{e.distressing:,}",
            ", ".join(f"{k} {n}" for k, n in e.kinds.items()) or NONE,
            ", ".join(e.opted_out) or NONE,
        )
        for e in found
    ]
    return make_section(
        "Exposure to harm",
        "annotator|samples|last day|too distressing|kinds|opted out of",
        rows,
        "",
        "annotator|kinds|opted out of",
    )


def demographics_sections(found: Demographics) -> list[Section]:
    """Composition, published groups, group differences."""
    made = []
    for part in found.composition:
        shown = [
            (name, "fewer than 5, or hidden" if n is None else str(n), NONE, NONE)
            for name, n in part.counts.items()
            if name not in part.shares
        ]
        rows = [
            (
                name,
                str(part.counts.get(name) or "hidden"),
                percent_text(share),
                percent_text(part.reference.get(name)) if part.reference else NONE,
            )
            for name, share in part.shares.items()
        ]
        note = (
            "Distance to the reference (share of people who would have to be others):"
            f" {number_text(part.distance)}."
            if part.distance is not None
            else ""
        )
        note += (
            f" Chi-squared {part.chi.statistic:.2f}, p = {p_value_text(part.chi.p)}."
            if part.chi
            else ""
        )
        note += f" {part.reason[:1].upper()}{part.reason[1:]}." if part.reason else ""
        made.append(
            make_section(
                f"People by {part.question}",
                "answer|people|share|reference",
                [*rows, *shown],
                note.strip(),
            )
        )
    return [*made, *_groups(found), published(found)]


def _groups(found: Demographics) -> list[Section]:
    made = []
    if found.groups:
        rows = [
            (
                f"{g.question}: {g.answer}",
                str(g.people),
                f"{g.votes:,}",
                number_text(g.nearness),
                _first(g.slots),
                percent_text(g.longer.value if g.longer else None),
            )
            for g in found.groups
        ]
        note = (
            "Nearness: 1 minus the distance of a group's ratings to everybody's on the same items;"
            " small groups look farther by chance."
        )
        made.append(
            make_section(
                "Groups beside everybody",
                "group|people|votes|nearness|first slot|longer",
                rows,
                note,
            )
        )
    j = found.judge
    if j is not None and j.overall is not None:
        rows = [
            ("everybody", number_text(j.overall)),
            *((name, number_text(value)) for name, value in j.per_group.items()),
        ]
        note = (
            f"People's own groups to everybody: mean {number_text(j.mean)},"
            f" least {number_text(j.worst)} ({j.worst_group})."
            if j.worst is not None
            else j.reason
        )
        made.append(make_section("The judge's nearness to people", "group|nearness", rows, note))
    if found.raking is not None:
        effective = found.raking.effective
        rows = [("people count as", NONE if effective is None else f"{effective:.1f}")]
        made.append(
            make_section(
                "Weighing people to the reference",
                "what|figure",
                rows,
                found.raking.reason or "Raking; Kish's effective sample size.",
                "what",
            )
        )
    return made


def published(found: Demographics) -> Section:
    """Who rated for published data, with ours first."""
    ours = [
        f"{percent_text(share)} {answer}"
        for part in found.composition
        for answer, share in list(part.shares.items())[:2]
        if part.shares
    ]
    rows = [
        (
            "these votes",
            str(found.people),
            str(found.answered) if found.answered >= 5 or not found.answered else "fewer than 5",
            ", ".join(ours) or NONE,
        )
    ]
    for group in PUBLISHED:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in group.shares)
        rows.append(
            (group.name, str(group.labelers or NONE), str(group.answered or NONE), shares or NONE)
        )
    note = "As listed by Kirk et al. 2024 (PRISM, arXiv:2404.16019)."
    return make_section(
        "Labelers beside published ones",
        "data|labelers|answered|known of them",
        rows,
        note,
        "data|known of them",
    )
