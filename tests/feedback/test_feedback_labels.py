"""Labels agree with the people who gave them: through the export, the report and the command line,
with gold and without.
"""

import json
import random
from collections import Counter

import pytest
from feedback_votes import put, put_llmfao
from sqlalchemy import select

from laurel.cli.main import main
from laurel.core.errors import UsageError
from laurel.data.formats import rows_fit_for
from laurel.data.source import load_rows
from laurel_feedback.exchange.export import export
from laurel_feedback.statistics.analysis import analyse, skills
from laurel_feedback.statistics.labels import (
    PairVote,
    estimate_labels,
    gold_side,
    is_inverted,
    label_quality,
    labels_of,
)
from laurel_feedback.statistics.report import report
from laurel_feedback.statistics.sections import sections
from laurel_feedback.statistics.votes import Ballot, Poll, batch_poll, file_polls
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Dispute, Ruling

SQLITE = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.whole)], indirect=True
)


def exported(store, tmp_path, kind="preferences", name="batch", **options):
    made = export(store, name, kind, tmp_path / f"{kind}.jsonl", **options)
    return made, [
        json.loads(line) for line in (tmp_path / f"{kind}.jsonl").read_text().splitlines()
    ]


def people(pairs):
    """item -> who -> rating, as votes of a store."""
    return [
        {"item": item, "who": who, "rating": rating}
        for item, given in pairs.items()
        for who, rating in given.items()
    ]


@SQLITE
def test_llmfao_leaves_the_house_as_its_people_voted(store, shared, tmp_path):
    """Of the 1,704 pairs with a majority 159 left with its loser as chosen, most with half of the
    weight.
    """
    put_llmfao(store, shared)
    poll = file_polls(shared("data/llmfao"))[0]
    count = {item: Counter(labels) for (item, _, _), labels in poll.labels.items()}
    made, rows = exported(store, tmp_path, name="llmfao")
    lead = {
        item: (votes["a"] > votes["b"]) - (votes["a"] < votes["b"]) for item, votes in count.items()
    }
    names = {b.item: b.models for b in poll.ballots}
    found = {row["provenance"]["item"]: row for row in rows}
    assert len(found) == len(rows) == made.rows
    majority = [item for item, side in lead.items() if side]
    assert len(majority) == 1704 and set(majority) <= set(found)
    chosen = {
        item: "a" if row["provenance"]["models"][0] == names[item][0] else "b"
        for item, row in found.items()
    }
    assert not [item for item in majority if chosen[item] != ("a" if lead[item] > 0 else "b")]
    for item, row in found.items():
        other = "b" if chosen[item] == "a" else "a"
        told = (row["votes_for"], row["votes_against"], row["ties"])
        assert told == (count[item][chosen[item]], count[item][other], count[item]["tie"])
        assert (
            row["votes_for"] >= row["votes_against"]
            and 0.5 <= row["soft_label"] < 1
            and 0 < row["weight"] <= 1
        )
    assert made.held_out.product <= 0.56 < made.held_out.share
    assert rows_fit_for(load_rows(str(tmp_path / "preferences.jsonl")), "preference")


def test_the_report_scores_the_labels_that_the_export_writes(shared, tmp_path, capsys):
    """One reading of LLMFAO for text, page and JSON: no label against a majority, and the log loss
    beside share and coin.
    """
    assert (
        main(
            [
                "feedback",
                "report",
                str(shared("data/llmfao")),
                "--json",
                "--out",
                str(tmp_path / "page.html"),
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["answers"]["tie"]) == ("LLMFAO", 3471)
    found = told["labels"]
    assert (found["pairs"], found["against_majority"], found["even"], found["undecided"]) == (
        1704,
        0,
        214,
        221,
    )
    loss = found["held_out_log_loss"]
    assert (
        loss["product"] <= 0.56
        and round(loss["share"], 3) == 0.562
        and round(loss["coin"], 3) == 0.693
    )
    assert [draw["seed"] for draw in loss["draws"]] == [0, 1, 2] and all(
        draw["product"] <= 0.56 for draw in loss["draws"]
    )
    assert sum(row["pairs"] for row in found["reliability"]) == loss["pairs"] == 1104
    html = (tmp_path / "page.html").read_text()
    for figure in (
        f"{loss['product']:.4f}",
        f"{loss['share']:.4f}",
        f"{loss['coin']:.4f}",
        "further annotator",
    ):
        assert figure in html
        assert any(
            figure in json.dumps(table) for table in told["tables"] if table["title"] == "Labels"
        )


def test_several_batches_are_chapters_and_one_without_pairs_has_no_labels(store, url):
    put(
        store,
        [{"item": f"i{n}", "who": w, "rating": 1} for n in range(4) for w in "uvw"],
        name="one",
    )
    put(
        store,
        [{"item": "j", "who": "x", "rating": 1, "order": [0]}],
        items={"j": {"texts": ("alone",)}},
        name="two",
    )
    first, second = json.loads(report(url, as_json=True))["chapters"]
    assert (first["name"], first["labels"]["pairs"], second["name"], second["labels"]) == (
        "one",
        4,
        "two",
        None,
    )
    assert first["labels"]["held_out_log_loss"]["product"] < 0.3
    assert "log loss" not in report(url).partition("two ─")[2]


@SQLITE
def test_the_figures_of_the_export_are_those_of_the_report(store, tmp_path):
    dice = random.Random(0)
    votes = [
        {"item": f"i{n}", "who": f"w{w}", "rating": dice.choice((1, 1, 2, 4, 0))}
        for n in range(60)
        for w in range(5)
    ]
    batch = put(store, votes, allow_tie=True)
    made, rows = exported(store, tmp_path)
    found = analyse(batch_poll(store, batch)).worth
    assert found.held_out == made.held_out
    poll = batch_poll(store, batch)
    label = labels_of(poll).by_unit
    for row in rows:
        one = label[row["provenance"]["item"], 0, 1]
        assert row["soft_label"] == pytest.approx(max(one.first, 1 - one.first), abs=1e-8)
        assert row["weight"] == pytest.approx(one.weight, abs=1e-8)
    assert exported(store, tmp_path, "votes")[0].held_out is None


@SQLITE
def test_who_stands_alone_is_still_written_as_they_voted(store, tmp_path):
    """Somebody in the minority on every shared pair, and the only voter on ten more: those ten came
    out as their opposite.
    """
    dice = random.Random(1)
    shared = {
        f"i{n}": dict.fromkeys("abcd", side) | {"odd": 5 - side}
        for n in range(20)
        for side in [dice.choice((1, 4))]
    }
    lone = {f"j{n}": {"odd": 1 if n % 2 else 4} for n in range(10)}
    batch = put(store, people(shared | lone))
    _, rows = exported(store, tmp_path)
    assert len(rows) == 30
    for row in rows:
        if row["provenance"]["item"].startswith("j"):
            first = row["provenance"]["models"][0] == "x"
            assert first == bool(int(row["provenance"]["item"][1:]) % 2)
            assert row["votes_for"] == 1 and row["soft_label"] >= 0.5 and row["weight"] < 0.5
    assert (
        label_quality(
            batch_poll(store, batch), labels_of(batch_poll(store, batch))
        ).against_majority
        == 0
    )


@SQLITE
def test_ties_neither_weigh_nor_make_a_cheat(store, tmp_path):
    """v says tie of three pairs in four and agrees on the rest: as reliable as the others, and the
    weight is of those who decided.
    """
    dice = random.Random(2)
    votes = {
        f"i{n}": dict.fromkeys("abc", side) | {"v": side if n % 4 == 0 else 0}
        for n in range(60)
        for side in [dice.choice((1, 4))]
    }
    votes |= {f"k{n}": {"a": 1, "v": 0, "g": dice.choice((1, 4))} for n in range(30)}
    batch = put(store, people(votes), allow_tie=True)
    found = {s.annotator: s for s in skills(batch_poll(store, batch))}
    assert (
        found["v"].reliability > 0.85 and found["a"].reliability > 0.85 and found["v"].ties > 0.75
    )
    assert found["g"].reliability < found["v"].reliability and found["g"].ties == 0
    _, rows = exported(store, tmp_path)
    trust = {name: s.reliability for name, s in found.items()}
    for row in rows:
        given = votes[row["provenance"]["item"]]
        decided = [trust[who] for who, rating in given.items() if rating]
        assert row["weight"] == pytest.approx(sum(decided) / len(decided), abs=1e-8)
        assert row["ties"] == sum(rating == 0 for rating in given.values())


def with_gold(right):
    """Two who see the keys the wrong way round against one who does not; `right` of the twelve gold
    items of each of the two are right.
    """
    dice = random.Random(3)
    votes = people(
        {
            f"i{n}": {"u": 5 - side, "v": 5 - side, "w": side}
            for n in range(12)
            for side in [dice.choice((1, 4))]
        }
    )
    sides = {vote["item"]: vote["rating"] for vote in votes if vote["who"] == "w"}
    for n in range(12):
        votes += [
            {"item": f"g{n}", "who": who, "rating": 1 if n < right or who == "w" else 4}
            for who in "uvw"
        ]
    items = {f"g{n}": {"kind": "attention" if n % 2 else "gold", "gold": 0} for n in range(12)}
    return votes, items, sides


@SQLITE
@pytest.mark.parametrize("right", [0, 2, 6])
def test_gold_leaves_out_who_answers_it_the_wrong_way_round(store, tmp_path, right):
    """At ten of twelve wrong no one guesses (p = .02): out only at twelve of twelve; half right is
    a guess, whose votes stand.
    """
    votes, items, sides = with_gold(right)
    batch = put(store, votes, items=items)
    _, rows = exported(store, tmp_path)
    assert len(rows) == 12
    with_w = [
        (row["provenance"]["models"][0] == "x") == (sides[row["provenance"]["item"]] == 1)
        for row in rows
    ]
    out = right == 0
    assert all(with_w) if out else not any(with_w)
    assert [row["votes_for"] for row in rows] == [1 if out else 2] * 12
    assert [row["provenance"].get("left_out") for row in rows] == [["u", "v"] if out else None] * 12
    poll = batch_poll(store, batch)
    found = label_quality(poll, labels_of(poll))
    assert (found.against_majority, found.by_gold, found.left_out) == (
        (0, 12, ("u", "v")) if out else (0, 0, ())
    )
    assert {s.annotator: s.left_out for s in skills(poll)} == {"u": out, "v": out, "w": False}
    table = next(part for part in sections(analyse(poll)) if part.title == "Annotators")
    assert {row[0] for row in table.rows} == (
        {"u (left out)", "v (left out)", "w"} if out else {"u", "v", "w"}
    )
    unpaired = exported(store, tmp_path, "unpaired")[1]
    best = {
        row["provenance"]["item"]: row["provenance"]["models"][0]
        for row in unpaired
        if row["label"]
    }
    assert all((best[item] == "x") == ((side == 1) == out) for item, side in sides.items())


@SQLITE
def test_an_objection_that_was_upheld_takes_the_mistake_back(store, tmp_path):
    votes, items, _ = with_gold(0)
    put(store, votes, items=items)
    assert exported(store, tmp_path)[1][0]["provenance"]["left_out"] == ["u", "v"]
    with store.write() as session:
        asked = (
            select(Assignment)
            .join(Annotator)
            .where(Assignment.item_id.like("g%"), Annotator.pseudonym.in_(("u", "v")))
        )
        for assignment in session.scalars(asked).all():
            session.add(
                Dispute(
                    assignment_id=assignment.id,
                    text="it is the other one",
                    state="upheld",
                    made_at=0.0,
                )
            )
    rows = exported(store, tmp_path)[1]
    assert all("left_out" not in row["provenance"] and row["votes_for"] == 2 for row in rows)


def test_what_an_answer_to_gold_says():
    assert [gold_side(rating, None, 0) for rating in (1, 2, 0, 3, 4, None)] == [1, 1, 0, -1, -1, 0]
    assert [
        gold_side(None, ranking, 1) for ranking in ((2, 1, 3), (1, 2, 3), (1, 3, 2), (1, 1, 1))
    ] == [1, 0, -1, 0]
    assert gold_side(1, None, None) == 0
    assert [
        is_inverted(right, wrong)
        for right, wrong in ((0, 6), (0, 7), (1, 9), (1, 11), (0, 0), (9, 9))
    ] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


@SQLITE
def test_a_ruling_stands_against_a_majority(store, tmp_path):
    put(store, people({f"i{n}": dict.fromkeys("abc", 1) for n in range(3)}))
    with store.write() as session:
        session.add(Ruling(item_id="i1", rating=4, made_at=0.0))
    rows = {row["provenance"]["item"]: row for row in exported(store, tmp_path)[1]}
    ruled = rows["i1"]
    assert (ruled["soft_label"], ruled["weight"], ruled["votes_for"], ruled["votes_against"]) == (
        1,
        1,
        0,
        3,
    )
    assert ruled["provenance"]["models"] == ["y", "x"] and rows["i0"]["provenance"]["models"] == [
        "x",
        "y",
    ]


def order(row):
    """model -> rank."""
    return dict(zip(row["provenance"]["models"], row["ranks"], strict=True))


@SQLITE
def test_rankings_go_against_no_majority_but_in_a_circle(store, tmp_path):
    """Random rankings of four responses by five people, some with equal ranks, of whom some are
    mostly in the minority.
    """
    dice = random.Random(4)
    items = {f"i{n}": {"texts": tuple("pqrs"), "models": tuple("pqrs")} for n in range(40)}

    def draw(w):
        return [4, 3, 2, 1] if w == 4 else [min(3, rank) for rank in dice.sample(range(1, 5), 4)]

    votes = [{"item": item, "who": f"w{w}", "ranking": draw(w)} for item in items for w in range(5)]
    put(store, votes, items=items, form="ranking")
    given = {}
    for vote in votes:
        given.setdefault(vote["item"], []).append(vote["ranking"])
    beats = {
        item: {
            (a, b)
            for a in range(4)
            for b in range(4)
            if sum(r[a] < r[b] for r in ranks) > sum(r[a] > r[b] for r in ranks)
        }
        for item, ranks in given.items()
    }
    straight, rows = 0, exported(store, tmp_path, "ranks")[1]
    for row in rows:
        item, place = row["provenance"]["item"], order(row)
        wins = beats[item]
        circle = any(
            (a, b) in wins and (b, c) in wins and (c, a) in wins
            for a in range(4)
            for b in range(4)
            for c in range(4)
        )
        circle |= any(
            {(a, b), (b, c), (c, d), (d, a)} <= wins
            for a in range(4)
            for b in range(4)
            for c in range(4)
            for d in range(4)
        )
        straight += not circle
        assert circle or all(place["pqrs"[a]] < place["pqrs"[b]] for a, b in wins)
        for (a, b), wins_, losses, ties in zip(
            row["pairs"], row["votes_for"], row["votes_against"], row["ties"], strict=True
        ):
            assert wins_ == sum(r[a] < r[b] for r in given[item]) and wins_ + losses + ties == 5
    assert straight > 10
    pairs = exported(store, tmp_path)[1]
    assert pairs and all(row["votes_for"] >= row["votes_against"] for row in pairs)
    for row in exported(store, tmp_path, "unpaired")[1]:
        assert row["votes_for"] + row["votes_against"] + row["ties"] == 5
    assert rows_fit_for(load_rows(str(tmp_path / "ranks.jsonl")), "comparison")


@SQLITE
def test_single_answers_go_with_the_majority_of_thumbs_however_strong(store, tmp_path):
    """Two who find it slightly good and one who finds it bad: it left as bad, because that weighed
    1 against .66.
    """
    votes = [
        {"item": "i", "who": who, "rating": rating, "order": [0]}
        for who, rating in (("a", 2), ("b", 2), ("c", 4))
    ]
    votes += [
        {"item": "even", "who": who, "rating": rating, "order": [0]}
        for who, rating in (("a", 2), ("c", 4))
    ]
    put(
        store, votes, items={name: {"texts": ("text",), "models": ("m",)} for name in ("i", "even")}
    )
    made, rows = exported(store, tmp_path, "unpaired")
    assert [
        (row["label"], row["votes_for"], row["votes_against"], row["ties"]) for row in rows
    ] == [(True, 2, 1, 0)]
    assert made.ties == 1 and made.held_out is None


@SQLITE
def test_reliability_decides_between_as_many(store, tmp_path):
    """Two and two: the pair goes with the two who are never in a minority elsewhere, and says so
    with little more than 1/2.
    """
    dice = random.Random(5)
    votes = {
        f"i{n}": {"a": 1, "b": 1, "c": 1, "g": dice.choice((1, 4)), "h": dice.choice((1, 4))}
        for n in range(50)
    }
    votes["split"] = {"a": 4, "b": 4, "g": 1, "h": 1}
    put(store, people(votes))
    (row,) = [row for row in exported(store, tmp_path)[1] if row["provenance"]["item"] == "split"]
    assert row["provenance"]["models"] == ["y", "x"] and 0.5 < row["soft_label"] < 0.9
    assert (row["votes_for"], row["votes_against"]) == (2, 2)


def test_one_item_has_scores_and_no_interval_and_two_votes_of_one_person_are_one(store, tmp_path):
    dice = random.Random(7)
    ballots = [
        Ballot(
            "i",
            f"w{w}",
            (0, 1, 2),
            ranking=tuple(dice.sample([1, 2, 3], 3)),
            models=tuple("abc"),
            lengths=(1, 2, 3),
        )
        for w in range(12)
    ]
    found = analyse(Poll("x", ballots), people=False)
    assert (
        len(found.models.scores) == 3
        and found.models.scores[0].low is None
        and found.models.slot is None
    )
    note = next(part.note for part in sections(found) if part.title == "Scores of the models")
    assert "all votes are about one item" in note and "inf" not in str(sections(found))
    twice = estimate_labels(
        [
            PairVote(("i", 0, 1), "u", 1.0),
            PairVote(("i", 0, 1), "v", 1.0),
            PairVote(("i", 0, 1), "u", -1.0),
        ]
    )
    assert (twice.by_unit["i", 0, 1].wins, twice.by_unit["i", 0, 1].losses) == (1, 1)
    votes, items, _ = with_gold(0)
    put(store, [vote for vote in votes if vote["who"] != "w"], items=items)
    with pytest.raises(UsageError, match="2 people are left out"):
        exported(store, tmp_path)


def test_a_page_of_many_votes_leaves_the_scores_to_the_report(monkeypatch):
    poll = Poll("x", [Ballot(f"i{n}", f"w{w}", (0, 1), 1) for n in range(5) for w in range(3)])
    assert (
        len(analyse(poll, people=False).worth.held_out.draws) == 1
        and len(analyse(poll).worth.held_out.draws) == 3
    )
    monkeypatch.setattr("laurel_feedback.statistics.analysis.MOST_SCORED", 14)
    page = analyse(poll, people=False)
    assert (
        page.worth is None
        and "laurel feedback report" in page.notes[-1]
        and analyse(poll).worth is not None
    )
    assert "Labels" not in [part.title for part in sections(page)]


def test_export_says_what_its_labels_are_worth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store = Store("feedback.db")
    put(store, people({f"i{n}": dict.fromkeys("abc", 1) for n in range(9)}))
    put(store, people({f"j{n}": dict.fromkeys("de", 1) for n in range(3)}), name="few")
    store.close()
    assert main(["feedback", "export", "out.jsonl", "--batch", "batch"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "log loss of a held-out vote: labels" in told
        and "a coin 0.6931" in told
        and "labels that say" in told
    )
    assert main(["feedback", "export", "few.jsonl", "--batch", "few"]) == 0
    assert "no pair has three votes that decide" in " ".join(capsys.readouterr().out.split())
    assert main(["feedback", "export", "votes.jsonl", "--batch", "few", "--kind", "votes"]) == 0
    assert "log loss" not in capsys.readouterr().out


def test_intervals_of_a_report_are_of_items_and_not_of_votes():
    """Each item's five people agree: five times the votes are no more evidence about the slot, the
    length or the models.
    """
    dice = random.Random(6)
    side = {f"i{n}": dice.choice((1, 1, 4)) for n in range(80)}
    poll = {
        each: Poll(
            "x",
            [
                Ballot(i, f"w{w}", (0, 1), r, models=("x", "y"), lengths=(9, 5))
                for i, r in side.items()
                for w in range(each)
            ],
        )
        for each in (1, 5)
    }
    one, five = (analyse(poll[each], people=False) for each in (1, 5))
    width = lambda found: found.high - found.low  # noqa: E731
    for get in (lambda a: a.slots.share, lambda a: a.longer):
        assert width(get(five)) == pytest.approx(width(get(one)))
    assert five.slots.p == pytest.approx(one.slots.p)
    flat = [
        Ballot(b.item, b.annotator, (0, 1) if n % 2 else (1, 0), b.rating, models=b.models)
        for n, b in enumerate(poll[5].ballots)
    ]
    turned = [
        Ballot(b.item, b.annotator, (0, 1) if n % 2 else (1, 0), b.rating, models=b.models)
        for n, b in enumerate(poll[1].ballots)
    ]
    wide, narrow = (
        analyse(Poll("x", ballots), people=False).models.scores[0] for ballots in (flat, turned)
    )
    assert wide.high - wide.low > 0.85 * (narrow.high - narrow.low)
    thumbs = [
        Ballot(i, f"w{w}", (0,), r, models=("x",), lengths=(3,))
        for i, r in side.items()
        for w in range(5)
    ]
    up = analyse(Poll("x", thumbs), people=False).thumbs
    assert width(up) == pytest.approx(width(one.slots.share)) and up.n == 400
    note = next(part.note for part in sections(five) if part.title == "Scores of the models")
    assert "independent" not in note and "count together" in note


def test_pairs_of_a_ranking_are_no_witnesses_of_their_own():
    """K responses in slot order by everybody: K(K-1)/2 wins of the first slot in each ranking are
    one opinion.
    """
    ballots = [
        Ballot(
            f"i{n}",
            "w",
            (0, 1, 2, 3),
            ranking=(1, 2, 3, 4),
            models=tuple("abcd"),
            lengths=(4, 3, 2, 1),
        )
        for n in range(6)
    ]
    found = analyse(Poll("x", ballots), people=False)
    assert found.slots.share.n == 36 and found.slots.p == pytest.approx(2 * 0.5**6)
