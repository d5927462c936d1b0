"""A judge's report card from the database: votes and verdicts by response, and spot checks."""

import json

from feedback_votes import put
from sqlalchemy import update

from laurel.cli.main import main
from laurel.measure.judge_card import card
from laurel_feedback.exchange.judging import store_verdicts
from laurel_feedback.statistics.judges import judged_of
from laurel_feedback.statistics.votes import batch_poll, batch_polls
from laurel_feedback.store.tables import Item


def filled(store):
    """Two people on six items: both for the first response but on i5, whose first they see right.

    The judge agrees in both orders, but goes by the place on i4.
    """
    rating = {f"i{n}": (1, 1) for n in range(5)} | {"i5": (4, 4)}
    votes = [
        {"item": item, "who": who, "rating": both[k], "order": [k, 1 - k]}
        for item, both in rating.items()
        for k, who in enumerate("uv")
    ]
    items = {item: {"prompt": f"question {n // 2}"} for n, item in enumerate(rating)}
    batch = put(store, votes, items=items)
    said = dict.fromkeys(rating, ("a", "a")) | {"i4": ("a", "b"), "i5": ("b", "b")}
    rows = [
        {"item": item, "order": order, "status": status}
        for item, both in said.items()
        for status, order in zip(both, ([0, 1], [1, 0]), strict=True)
    ]
    assert store_verdicts(store, "J", rows) == 12
    return batch


def test_a_batch_as_a_card(store):
    judged = judged_of(batch_poll(store, filled(store)))
    assert len({item.prompt for item in judged.items.values()}) == 3
    assert judged.items["i0"].models == ("x", "y") and judged.items["i0"].lengths == (2, 3)
    made = card(judged)
    (judge,) = made.judges
    assert (judge.consistency.value, judge.consistency.n) == (5 / 6, 6)
    assert (judge.people_no_ties.value, judge.people_no_ties.n) == (1, 10)
    assert made.people.agreement.value == 1
    assert made.people.baselines["the response stored first"].value == 5 / 6


def test_gold_and_rankings(store):
    """A right answer is gold, a ranking of three is three pairs; a repeat is no second vote."""
    votes = [
        {"item": "g", "who": "w", "rating": 4},
        {"item": "g", "who": "w", "rating": 1, "repeat": 1},
        {"item": "r", "who": "w", "ranking": [2, 1, 3]},
    ]
    items = {"g": {"kind": "gold", "gold": 1}, "r": {"texts": ("one", "two", "three")}}
    judged = judged_of(batch_poll(store, put(store, votes, items=items)))
    assert judged.items["g"].gold == "b"
    assert {vote.item: vote.label for vote in judged.votes} == {
        "g": "b",
        "r": "b",
        "r:0:2": "a",
        "r:1:2": "a",
    }


def test_calibrate_reads_the_database(store, url, capsys):
    filled(store)
    store.close()
    assert main(["judge", "calibrate", url]) == 0
    told = capsys.readouterr().out
    assert "J with a person, no ties" in told and "10/10 = 1.0000" in told


def test_spot_checks_are_votes_on_the_pairs_that_were_judged(store, url, tmp_path, capsys):
    """Verdicts in a folder are named as they were judged; the database knows which pair that is."""
    filled(store)
    with store.write() as session:
        session.execute(update(Item).where(Item.id == "i5").values(source={"spot check": "p5"}))
    (poll,) = batch_polls(url)
    assert poll.checks == {"p5": "i5"}
    store.close()
    row = {"id": "p5", "judge": "J", "order": [0, 1], "repeat": 0, "status": "b", "chance": None}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["judge", "calibrate", str(tmp_path / "verdicts.jsonl"), "--votes", url]) == 0
    told = capsys.readouterr().out
    assert "2/2 = 1.0000" in told and "10 votes are about other items." in told
