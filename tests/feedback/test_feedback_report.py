"""The report: published figures come out of it, it fits 100 columns, its page is whole and tells
nothing it must not.
"""

import re
import sqlite3
import time

import pytest
from feedback_votes import put, tell

from laurel.core.errors import UsageError
from laurel.measure.agreement import Agreement
from laurel_feedback.statistics.analysis import analyse
from laurel_feedback.statistics.report import WIDTH, page, report, text_report
from laurel_feedback.statistics.sections import (
    Section,
    agreement_section,
    bounds_text,
    p_value_text,
    percent_text,
    sections,
)
from laurel_feedback.statistics.votes import batch_poll
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Audit

BAD = "<script>alert(1)</script>"


def fits(told):
    long = [line for line in told.splitlines() if len(line) > WIDTH]
    assert not long, long[:3]
    return told


def test_mtbench_beside_what_was_published(shared, tmp_path):
    told = fits(report(shared("data/mtbench"), tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text()
    first, second = told.split("MT-Bench, turn 2")
    figures = {
        "886/1343 = 0.6597": "66%",
        "454/721 = 0.6297": "63%",
        "727/859 = 0.8463": "85%",
        "388/479 = 0.8100": "81%",
    }
    for figure, share in figures.items():
        assert re.search(rf"{figure} +[\d.]+ to [\d.]+ +published: {share}", first)
        assert figure in html
    for figure in ("= 0.6574", "= 0.6662", "= 0.8461", "= 0.8186"):
        assert figure in second
    assert "published: " not in second  # that table is of the first turn
    assert "n = 6 models, too few" in told
    assert "votes of the paper's authors are left out" in " ".join(first.split())


def test_llmfao_beside_its_judges(shared):
    told = fits(report(shared("data/llmfao/crowd-comparisons.csv")))
    assert "8,931 on 2,139 items by 124 annotators" in told
    assert re.search(
        r"the first slot wins +53\.3 % \(51\.4 % to 55\.2 %, n = 5460, p = 5e-04\)", told
    )
    assert re.search(r"rho of models'? +0\.7309 ", told)
    assert re.search(r"tau-b of models'? +0\.5371 ", told)
    assert re.search(r"first slot wins +69\.5 %", told)
    assert "undefined" in told
    assert "124 annotators" in " ".join(told.split()) or "here are 124" in " ".join(told.split())


@pytest.fixture
def filled(store, clock):
    """A batch with everything that the report shows; its store."""
    clock.time = time.time()  # the report opens the database itself, by the real clock
    items = {f"i{n}": {"harm": ["hate"] if n < 3 else [], "models": (BAD, "y")} for n in range(12)}
    items["g"] = {"kind": "gold", "gold": 0}
    votes = [
        {
            "item": f"i{n}",
            "who": f"w{w:02}",
            "rating": (1, 4, 2, 3)[(n * w + n) % 4],
            "order": ([0, 1], [1, 0])[(n + w) % 2],
            "seconds": 30 + w,
        }
        for n in range(12)
        for w in range(12)
    ]
    votes.append({"item": "g", "who": "w00", "rating": 1, "seconds": 9})
    put(store, votes, items=items, pay_per_item=0.2, pay_floor=30)
    tell(store, {f"w{w:02}": {"gender": "woman" if w < 7 else "man"} for w in range(12)})
    return store


def test_a_database_in_full(filled, url, tmp_path):
    told = fits(
        report(url, tmp_path / "page.html", reference={"gender": {"woman": 0.5, "man": 0.5}})
    )
    html = (tmp_path / "page.html").read_text()
    for title in (
        "Progress and cost",
        "Votes",
        "Agreement",
        "Cohen's kappa of pairs",
        "Scores of the models",
        "Annotators",
        "Signs of low effort",
        "Pay per hour of active time",
        "Exposure to harm",
        "People by gender",
        "Groups beside everybody",
        "Weighing people to the reference",
        "Labelers beside published ones",
    ):
        assert title in told
        assert title.replace("'", "&#39;") in html
    assert "the median vote pays" in " ".join(told.split())
    assert re.search(r"woman +7 +58\.3 % +50\.0 %", told)
    with filled.read() as session:
        assert (
            session.query(Audit)
            .filter_by(action="read demographics", actor="operator, report")
            .count()
            == 1
        )


def test_the_page_holds_nothing_that_runs_or_is_fetched(filled, url, tmp_path):
    report(url, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert BAD not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search(
        r"<(script|img|link|iframe|object)\b|https?://|url\(|\son\w+=", html, re.IGNORECASE
    )


def test_the_numbers_of_text_and_page_are_those_of_the_analysis(filled, url):
    found = analyse(batch_poll(filled, 1))
    told, html = text_report([("batch", sections(found))]), page([("batch", sections(found))], "x")
    for name, value in found.agreement.items():
        shown = "undefined" if value.value is None else f"{value.value:.3f}"
        assert shown in told
        assert re.search(
            rf"<td>{re.escape(name).replace(chr(39), '&#39;')}</td><td"
            rf" class=\"number\">{shown}</td>",
            html,
        )
    for score in found.models.scores:
        assert f"{score.score:.0f}" in told


def test_a_long_table_is_cut_in_the_text_and_whole_in_the_page():
    part = Section(
        "Many",
        ("name", "n"),
        tuple((f"row{n}", str(n)) for n in range(40)),
        "",
        frozenset({"name"}),
    )
    assert "15 more are in the HTML page" in text_report([("x", [part])])
    assert "row39" in page([("x", [part])], "x")


def test_long_names_and_odd_ones_fit(store):
    votes = [
        {"item": f"i{n}", "who": "w" * 60 + str(w), "rating": 1 + 3 * ((n + w) % 2)}
        for n in range(12)
        for w in range(3)
    ]
    put(
        store,
        votes,
        items={f"i{n}": {"models": ("[bold]a" * 12, "b" * 90)} for n in range(12)},
        name="[red]" + "n" * 150,
    )
    told = fits(text_report([("x", sections(analyse(batch_poll(store, 1))))]))
    assert "[bold]a" in told


@pytest.mark.parametrize(
    "kind", ["absent", "empty folder", "text", "no batch", "other tables", "address"]
)
def test_what_is_no_source_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "no batch":
        Store(str(path)).close()
    elif kind == "other tables":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE t (x)")
    with pytest.raises(UsageError):
        report(path if kind != "address" else "nonsense://x")
    assert kind != "absent" or not path.exists()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("human.jsonl", "{"),
        ("human.jsonl", '{"question_id": 1}'),
        (
            "human.jsonl",
            (
                '{"question_id": 1, "turn": 1, "model_a": "x", "model_b": "y", "judge": "expert_1",'
                ' "winner": "x"}'
            ),
        ),
        ("crowd-comparisons.csv", "id,left\n1,2"),
        ("crowd-comparisons.csv", "id,left,right,winner,worker\n1,x,y,both,3"),
    ],
)
def test_a_broken_row_is_named(tmp_path, file, line):
    (tmp_path / file).write_text(line)
    with pytest.raises(UsageError, match=file):
        report(tmp_path)


def test_numbers_in_words():
    assert [percent_text(None), percent_text(0.533), p_value_text(1e-6), p_value_text(0.04)] == [
        "-",
        "53.3 %",
        "1e-06",
        "0.040",
    ]
    assert bounds_text(Agreement(0.5, None, None, 1)) == "-"
    part = agreement_section({"k": Agreement(None, None, None, 0, "all are equal")})
    assert part.rows == (("k", "undefined", "-", "0", "because all are equal"),)


def test_a_page_that_cannot_be_written_is_told_before_anything_is_counted(tmp_path, monkeypatch):
    def counted(*_):
        raise AssertionError("it was counted first")

    monkeypatch.setattr("laurel_feedback.statistics.report.read_chapters", counted)
    for out, told in (
        (tmp_path / "nowhere" / "x.html", "no such folder"),
        (tmp_path, "this is a folder"),
    ):
        with pytest.raises(UsageError, match=told) as error:
            report(tmp_path, out)
        assert error.value.fix
