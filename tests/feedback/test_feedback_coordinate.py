"""The coordinators' pages with real votes in them: what they show, what they change, and who may
not come in.
"""

import json
import re

import pytest
from feedback_pages import Visitor
from feedback_votes import put, put_llmfao, tell
from sqlalchemy import select
from starlette.routing import Route

from laurel.measure.annotators import SIGNS
from laurel_feedback.exchange import product
from laurel_feedback.statistics.analysis import analyse
from laurel_feedback.statistics.sections import signal_text
from laurel_feedback.statistics.votes import batch_poll
from laurel_feedback.store import accounts
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.tables import (
    Annotator,
    ApiKey,
    Assignment,
    Audit,
    Batch,
    Demographic,
    Dispute,
    Guideline,
    Item,
    Ruling,
)
from laurel_feedback.web.admin_batches import FIELDS, form_rows, routes

PAGES = (
    "/admin",
    "/admin/batches/new",
    "/admin/batches/1",
    "/admin/batches/1/settings",
    "/admin/batches/1/words",
    "/admin/batches/1/agreement",
    "/admin/batches/1/annotators",
    "/admin/batches/1/annotators/w1",
    "/admin/batches/1/items",
    "/admin/batches/1/items/i1",
    "/admin/people",
    "/admin/disputes",
    "/admin/guidelines",
    "/admin/keys",
    "/admin/demographics",
    "/admin/activity",
    "/admin/audit",
)
HOSTILE = "<b>hostile</b>"


@pytest.fixture
def chief(store):
    """A coordinator who has logged in."""
    accounts.add_admin(store, "ada", "a long password")
    visitor = Visitor(store)
    visitor.get("/admin/login")
    assert visitor.send({"name": "ada", "password": "a long password"}).url.path == "/admin"
    return visitor


@pytest.fixture
def filled(store):
    """A batch with votes of eight people, gold, harm, reasons and hostile texts; its number
    is 1.
    """
    items = {
        f"i{n}": {
            "harm": ["hate"] if n < 3 else [],
            "texts": (f"{HOSTILE} {n}", "fine text"),
            "prompt": HOSTILE,
        }
        for n in range(20)
    }
    items |= {
        "g": {"kind": "gold", "gold": 0},
        "told": {"texts": ("As an AI language model by OpenAI", "x")},
    }
    votes = [
        {
            "item": f"i{n}",
            "who": f"w{w}",
            "rating": (1, 4, 2, 3)[(n * w + n) % 4],
            "order": ([0, 1], [1, 0])[(n + w) % 2],
            "seconds": 40 + w,
            "rationale": HOSTILE if w == 1 else "",
        }
        for n in range(20)
        for w in range(8)
    ]
    votes += [
        {"item": "g", "who": "w1", "rating": 4, "seconds": 20},
        {"item": "i1", "who": "w1", "rating": 1, "repeat": 1},
    ]
    put(store, votes, items=items, pay_per_item=0.2, pay_floor=10, expected_seconds=60)
    tell(store, {f"w{w}": {"gender": "woman" if w < 6 else "man"} for w in range(8)})
    with store.write() as session:
        gold = session.scalar(select(Assignment.id).where(Assignment.item_id == "g"))
        session.add(
            Dispute(assignment_id=gold, text=f"{HOSTILE}: it is wrong", made_at=store.now())
        )
    return store


def all_routes(site):
    return [route for route in routes(site) if isinstance(route, Route)]


def test_every_page_shows_and_nobody_else_sees_it(filled, chief):
    worker = Visitor(filled)
    worker.come_in()
    for path in PAGES:
        assert chief.get(path).status_code == 200, path
        assert HOSTILE not in chief.page.text, path
        assert "default-src 'none'" in chief.page.headers["content-security-policy"], path
        assert not re.search(r"<script|style=|\son\w+=", chief.page.text), path
        assert worker.get(path).status_code == 403, path
        assert "for coordinators" in worker.page.text, path
        stranger = Visitor(filled)
        assert stranger.get(path).url.path == "/admin/login", path


def test_every_page_is_in_the_list_of_pages(filled, chief):
    """A page that is added is one that the test above looks at."""
    site = chief.client.app.state.site
    gets = {re.sub(r"\{batch:\w+\}", "1", r.path) for r in all_routes(site) if "GET" in r.methods}
    gets = {path.replace("{pseudonym}", "w1").replace("{item}", "i1") for path in gets}
    assert gets == set(PAGES)


def test_every_form_asks_for_its_token_and_for_a_coordinator(filled, chief):
    site, chief_csrf = chief.client.app.state.site, None
    chief.get("/admin")
    chief_csrf = chief.csrf
    worker = Visitor(filled)
    worker.come_in()
    worker.get("/mine")
    before = counts(filled)
    posts = [r.path for r in all_routes(site) if "POST" in r.methods]
    assert len(posts) >= 14
    for path in posts:
        whole = (
            re.sub(r"\{\w+:\w+\}", "1", path)
            .replace("{item}", "i1")
            .replace("{pseudonym}", "w1")
            .replace("{assignment}", "x")
        )
        for data in ({}, {"csrf": "wrong"}):
            assert (
                chief.post(whole, data={"name": "n", "text": "t", "asked": "1", **data}).status_code
                == 403
            ), whole
        foreign = {"origin": "https://elsewhere.example"}
        assert (
            chief.post(
                whole, data={"csrf": chief_csrf, "name": "n", "asked": "1"}, headers=foreign
            ).status_code
            == 403
        )
        worker.get("/mine")
        assert (
            worker.post(whole, data={"csrf": worker.csrf, "name": "n", "asked": "1"}).status_code
            == 403
        )
        assert Visitor(filled).post(whole, data={"name": "n"}).status_code == 403
    assert counts(filled) == before


def counts(store):
    """Rows of the tables that the forms change, and the states."""
    with store.read() as session:
        return (
            [b.state for b in session.scalars(select(Batch))],
            [a.state for a in session.scalars(select(Annotator)) if a.pseudonym.startswith("w")],
            [
                len(session.scalars(select(table)).all())
                for table in (Batch, Guideline, ApiKey, Ruling)
            ],
            [d.state for d in session.scalars(select(Dispute))],
        )


def test_the_agreement_page_has_the_numbers_of_the_analysis(filled, chief):
    found = analyse(batch_poll(filled, 1))
    html = chief.get("/admin/batches/1/agreement").text
    for name, value in found.agreement.items():
        shown = "undefined" if value.value is None else f"{value.value:.3f}"
        span = "-" if value.low is None else f"{value.low:.3f} to {value.high:.3f}"
        cell = (
            f'<td>{name.replace(chr(39), "&#39;")}</td><td class="number">{shown}</td><td'
            f' class="number">{span}</td>'
        )
        assert cell in html
        assert value.value is not None or "because " in html
    for score in found.models.scores:
        assert f'<td>{score.model}</td><td class="number">{score.score:.0f}</td>' in html
    assert f"{100 * found.slots.share.value:.1f} %" in html


def test_the_panel_has_the_signs_side_by_side_and_no_score(filled, chief):
    found = analyse(batch_poll(filled, 1))
    html = chief.get("/admin/batches/1/annotators").text
    for signs in found.panel:
        row = re.search(rf'annotators/{signs.annotator}">.*?</tr>', html, re.DOTALL)[0]
        for name in SIGNS:
            assert f">{signal_text(name, getattr(signs, name)).replace(' !', '')}<" in row
    for skill in found.skills:
        assert f"{100 * skill.reliability:.1f} %" in html
    assert "no consequence" in html
    assert not re.search(
        r"<form[^>]*action=\"/admin/(people|batches)[^\"]*(ban|block|reject|withdraw|close)", html
    )
    one = chief.get("/admin/batches/1/annotators/w1").text
    assert "gold" in one
    assert "0/1" in html  # the gold item that w1 got wrong
    assert chief.get("/admin/batches/1/annotators/nobody").status_code == 404


@pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.whole)], indirect=True
)
def test_the_agreement_of_nine_thousand_votes(store, chief, shared):
    put_llmfao(store, shared)
    assert "8,931 on 2,139 items" in chief.get("/admin/batches/1/agreement").text
    assert chief.get("/admin/batches/1/annotators").text.count("<tr><th") == 125
    first = re.findall(
        r'/items/([^"]+)"', chief.get("/admin/batches/1/items?from=x").text
    )  # no number: from the first on
    assert len(first) == 50
    assert not set(first) & set(
        re.findall(r'/items/([^"]+)"', chief.get("/admin/batches/1/items?from=50").text)
    )


def test_a_batch_is_made_filled_in_wrongly_and_opened_only_when_it_pays(store, chief):
    assert set(FIELDS) == set(BatchSettings.model_fields)
    assert [row["name"] for row in form_rows(BatchSettings().model_dump())] == list(
        BatchSettings.model_fields
    )
    chief.get("/admin/batches/new")
    chief.send(
        {
            "name": "pilot",
            "form": "rating",
            "rationale": "no",
            "target_votes": "0",
            "pay_per_item": "0.1",
        },
        ending="/new",
    )
    assert chief.page.status_code == 422
    assert "Votes for each item" in chief.page.text
    assert 'value="pilot"' in chief.page.text  # nothing that was typed is lost
    assert 'value="0.1"' in chief.page.text
    fields = {
        "form": "rating",
        "target_votes": "2",
        "pay_floor": "12",
        "expected_seconds": "60",
        "allow_tie": "1",
        "rationale": "optional",
    }
    assert chief.send(fields, ending="/new").url.path == "/admin/batches/1"
    with store.read() as session:
        batch = session.get(Batch, 1)
        assert (batch.name, batch.state) == ("pilot", "draft")
        assert BatchSettings(**batch.settings) == BatchSettings(
            target_votes=2,
            pay_floor=12,
            expected_seconds=60,
            allow_tie=True,
            rationale="optional",
            pay_per_item=0.1,
        )
    assert "the pay is 6.00 USD an hour, the floor is 12.00" in chief.page.text
    assert re.search(r"<button disabled>Open", chief.page.text)
    chief.send({}, ending="/open")
    assert chief.page.status_code == 409
    assert "floor is 12.00" in chief.page.text
    chief.get("/admin/batches/1/settings")
    chief.send(
        {"pay_per_item": "0.25", "form": "rating", "rationale": "optional"}, ending="/settings"
    )
    assert "cannot be opened" not in chief.page.text
    chief.send({}, ending="/open")
    assert "no items" in chief.page.text
    chief.get("/admin/batches/new")
    chief.send({"name": "pilot", "form": "rating", "rationale": "no"}, ending="/new")
    assert "Choose another name" in chief.page.text


def test_measured_pay_below_the_floor_keeps_a_pilot_closed(filled, chief):
    chief.get("/admin/batches/1")
    chief.send({}, ending="/close")
    with filled.write() as session:
        batch = session.get(Batch, 1)
        batch.settings = {
            **batch.settings,
            "pay_floor": 18.0,
            "expected_seconds": 30.0,
        }  # expected 24, measured about 16
    chief.get("/admin/batches/1")
    assert re.search(
        r"cannot be opened: the median vote pays 16\.\d\d USD an hour", chief.page.text
    )
    assert chief.send({}, ending="/open").status_code == 409


def test_words_that_tell_are_held_when_a_batch_opens(filled, chief):
    chief.get("/admin/batches/1")
    chief.send({}, ending="/close")
    chief.send({}, ending="/open")
    assert "1 items were held" in chief.page.text
    page = chief.get("/admin/batches/1/words").text
    assert "openai" in page
    assert "Response 1: <mark>as an ai language model</mark>" in page
    chief.send({"decision": "leave"}, ending="/words/told")
    assert "told</a>: left out" in chief.page.text
    chief.send({"decision": "serve"}, ending="/words/told")
    with filled.read() as session:
        assert session.get(Item, "told").kind == "normal"
        said = session.scalars(
            select(Audit).where(Audit.action == "identity words").order_by(Audit.id)
        )
        assert [row.detail["decision"] for row in said] == ["left out", "served"]


def test_an_item_shows_its_votes_and_takes_a_ruling(filled, chief):
    page = chief.get("/admin/batches/1/items/i1").text
    assert page.count("/annotators/w") == 9
    assert "&lt;b&gt;hostile&lt;/b&gt;" in page
    assert "press to read" in page  # it has a kind of harm
    chief.send({"rating": "4", "reason": "the second is right", "pinned": "1"}, ending="/items/i1")
    assert "the second is right" in chief.page.text
    with filled.read() as session:
        ruling = session.get(Ruling, "i1")
        assert (ruling.rating, ruling.pinned, ruling.admin_id) == (4, True, 1)
    for wrong in ({"rating": "7", "reason": "x"}, {"rating": "1", "reason": " "}):
        chief.get("/admin/batches/1/items/i1")
        assert chief.send(wrong, ending="/items/i1").status_code == 422
    with filled.read() as session:
        assert session.get(Ruling, "i1").rating == 4
    assert chief.get("/admin/batches/1/items/none").status_code == 404


def test_people_are_invited_renewed_and_withdrawn_at_their_wish(filled, chief):
    chief.get("/admin/people")
    chief.send({"person": "Grace", "pseudonym": "grace"}, ending="/invite")
    link = re.search(r'<code class="secret">(http[^<]+)', chief.page.text)[1]
    chief.get("/admin/people")
    assert link not in chief.page.text
    assert "invited, link open" in chief.page.text
    chief.send({}, ending="/grace/renew")
    newer = re.search(r'<code class="secret">(http[^<]+)', chief.page.text)[1]
    old, new = Visitor(filled), Visitor(filled)
    for visitor, address in ((old, link), (new, newer)):
        visitor.get(address)
        visitor.send({})
    assert (old.page.status_code, new.page.url.path) == (403, "/consent")
    chief.get("/admin/people")
    assert chief.send({}, ending="/w1/withdraw").status_code == 422
    chief.get("/admin/people")
    assert "w1 has left" in chief.send({"asked": "1"}, ending="/w1/withdraw").text
    assert "kept without a name" in chief.page.text
    chief.get("/admin/people")
    assert "/w1/withdraw" not in chief.page.text
    assert chief.send({"pseudonym": "a/b"}, ending="/invite").status_code == 422
    assert chief.send({"pseudonym": "grace"}, ending="/invite").status_code == 422


def test_people_are_those_who_were_invited(filled, chief):
    """Users of applications are counted, not listed, and get no link; people of imported data are
    folded, with a link.
    """
    key = product.api_key_of_token(filled, product.create_api_key(filled, "chat"))
    product.record_thumb(filled, key, "A tree?", ("Laurel.", ""), True, "u")
    with filled.write() as session:
        session.add(Annotator(pseudonym="imported-7", made_at=filled.now()))
        user = session.scalar(
            select(Annotator.pseudonym).where(Annotator.consent == accounts.OF_APPLICATION)
        )
    accounts.invite_annotator(filled, pseudonym="grace")
    page = chief.get("/admin/people").text
    assert user.startswith("user-") and user not in page
    assert "1 user of applications is not listed" in page
    above, folded = page.split("1 person of imported data, never invited")
    assert "/imported-7/renew" in folded and "imported-7" not in above
    assert "/grace/renew" in above and "/w1/renew" in above and "/w1/renew" not in folded
    refused = chief.post(f"/admin/people/{user}/renew", data={"csrf": chief.csrf})
    assert (
        refused.status_code == 409
        and "user of an application" in refused.text
        and "/invite/" not in refused.text
    )
    chief.get("/admin/people")
    chief.send({}, ending="/imported-7/renew")
    assert "/invite/" in chief.page.text and "never invited" not in chief.page.text


def test_a_dispute_is_upheld(filled, chief):
    assert "&lt;b&gt;hostile&lt;/b&gt;: it is wrong" in chief.get("/admin/disputes").text
    with filled.read() as session:
        dispute = session.scalar(select(Dispute)).assignment_id
    chief.send({"outcome": "maybe"}, ending=dispute)
    assert chief.page.status_code == 422
    chief.get("/admin/disputes")
    assert "upheld" in chief.send({"outcome": "upheld"}, ending=dispute).text
    assert "0/1" not in chief.get("/admin/batches/1/annotators").text


def test_guidelines_have_versions(filled, chief):
    chief.get("/admin/guidelines")
    chief.send({"text": "# Be\nkind <script>x</script>"}, ending="/guidelines")
    assert "version 1" in chief.page.text
    assert "<script" not in chief.page.text
    chief.send({}, ending="/guidelines")
    assert "version 1" in chief.page.text  # the same text is no new version
    chief.send({"text": "Be brief."}, ending="/guidelines")
    assert "version 2" in chief.page.text
    chief.send({"text": " "}, ending="/guidelines")
    assert chief.page.status_code == 422


def test_a_key_is_shown_once_and_revoked(filled, chief):
    chief.get("/admin/keys")
    chief.send({"name": "chat"}, ending="/keys")
    key = re.search(r'<code class="secret">([^<]+)', chief.page.text)[1]
    with filled.read() as session:
        assert session.get(ApiKey, 1).digest == accounts.secret_digest(key)
    assert key not in chief.get("/admin/keys").text
    assert "revoked" in chief.send({}, ending="/1/revoke").text
    with filled.read() as session:
        assert session.get(ApiKey, 1).revoked
        assert key not in json.dumps(
            [[a.subject, a.detail] for a in session.scalars(select(Audit))]
        )


def test_demographics_are_beside_a_population_small_cells_hidden_and_read_on_record(filled, chief):
    page = chief.get("/admin/demographics?batch=1").text
    assert "fewer than 5, or hidden" in page
    assert not re.search(
        r"<td>(wo)?man</td><td[^>]*>\d", page
    )  # 6 and 2 of 8: the one tells the other
    with filled.write() as session:
        for row in session.scalars(select(Demographic).where(Demographic.answer == "man")):
            row.answer = "woman"
    for name in ("HH-RLHF", "InstructGPT", "PRISM"):
        assert name in page
    chief.send(
        {"batch": "1", "reference": '{"gender": {"woman": 0.5, "man": 0.5}}'},
        ending="/demographics",
    )
    assert re.search(
        r"<td>woman</td><td[^>]*>8</td><td[^>]*>100.0 %</td><td[^>]*>50.0 %<", chief.page.text
    )
    chief.send({"reference": "{"}, ending="/demographics")
    assert chief.page.status_code == 422
    assert "no JSON" in chief.page.text
    assert chief.get("/admin/demographics?batch=99").status_code == 404
    with filled.read() as session:
        read = [
            a.actor
            for a in session.scalars(select(Audit).where(Audit.action == "read demographics"))
        ]
    assert read == ["coordinator ada"] * 3


def test_a_flood_of_votes_stands_out_and_is_kept(store, chief, clock):
    votes = [
        {"item": f"i{n}", "who": f"u{n % 3}", "rating": 1, "at": clock.time - 3600 * (n // 30)}
        for n in range(180)
    ]
    put(
        store,
        votes
        + [{"item": f"i{n}", "who": "flood", "rating": 1, "at": clock.time} for n in range(150)],
    )
    page = chief.get("/admin/activity").text
    assert "<b>1 hours stand out.</b>" in page
    assert re.search(r"flood</th>.*?look\">150<", page)
    assert len(batch_poll(store, 1).ballots) == 330


def test_the_audit_page_sees_a_changed_row(filled, chief):
    with filled.write() as session:
        for n in range(300):
            record(session, "operator", "test", f"row {n}", filled.now(), n=n)
    page = chief.get("/admin/audit").text
    assert "is whole" in page
    assert page.count("<tr><td") == 200
    older = re.search(r'href="(\?before=\d+)"', page)[1]
    assert "coordinator ada" in chief.get(f"/admin/audit{older}").text
    with filled.write() as session:
        session.get(Audit, 5).subject = "something else"
    assert "row 5" in chief.get("/admin/audit").text
    assert "The chain is broken" in chief.page.text


@pytest.mark.parametrize(
    "path",
    [
        f"/admin/batches/9{rest}"
        for rest in ("", "/agreement", "/annotators", "/items", "/items/i1", "/words")
    ],
)
def test_a_batch_that_is_not_there_says_so(filled, chief, path):
    assert chief.get(path).status_code == 404


def test_what_keeps_a_batch_shut_and_what_nobody_is_shown_stand_on_its_page(filled, chief):
    chief.get("/admin/batches/1")
    assert "Items that nobody is shown: 1 gold (gold_share is 0)" in chief.page.text
    with filled.write() as session:
        batch = session.get_one(Batch, 1)
        batch.state, batch.settings = (
            "draft",
            {**batch.settings, "needs_check": True, "gold_share": 0.1},
        )
    chief.get("/admin/batches/1")
    assert "nobody is shown" not in chief.page.text
    assert re.search(
        r"cannot be opened: .*no item of kind check.*--kind check.*<button disabled>Open",
        chief.page.text,
        re.DOTALL,
    )
