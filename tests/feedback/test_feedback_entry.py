"""Nobody locked out: sessions that outlive the browser, codes to come back, storms of wrong
passwords, a clock that was set back.
"""

import re
from argparse import Namespace
from http.cookies import SimpleCookie

import pytest
from feedback_pages import Visitor, rich_batch
from sqlalchemy import select
from starlette.testclient import TestClient

from laurel.cli.feedback import run_admin
from laurel.core.errors import UsageError
from laurel_feedback.store import accounts, admin_login
from laurel_feedback.store.assign import TaskQueue
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.tables import Annotator, Assignment, Attempt, Login
from laurel_feedback.web.annotate import DAYS
from laurel_feedback.web.app import create_app
from laurel_feedback.web.security import HERE, Limits
from laurel_feedback.web.serve import check_proxy

DAY = 86400.0
CODE = re.compile(r'class="owncode">([A-Z2-7]{4}(?:-[A-Z2-7]{4}){3})<')


def code_on(page):
    return CODE.search(page.text)[1]


def returned(store, given, **settings):
    """A new browser, after it gave a code."""
    visitor = Visitor(store, **settings)
    visitor.get("/return")
    visitor.send({"code": given}, ending="/return")
    return visitor


def ages(response):
    """Max-Age of each cookie that is set."""
    cookies = SimpleCookie()
    for line in response.headers.get_list("set-cookie"):
        cookies.load(line)
    return {name: morsel["max-age"] for name, morsel in cookies.items()}


def from_address(store, address, limits=None):
    """A browser behind another address."""
    visitor = Visitor(store)
    app = create_app(store, limits=limits or Limits())
    visitor.client = TestClient(
        app,
        base_url="http://127.0.0.1:8000",
        client=(address, 50000),
        raise_server_exceptions=False,
    )
    return visitor


def login(visitor, name="ada", password="a long password"):
    visitor.get("/admin/login")
    return visitor.send({"name": name, "password": password}, ending="/admin/login")


def test_cookies_last_as_long_as_their_sessions(store):
    """A session's cookie without an age ends with the browser, whatever the page promises."""
    _, token = accounts.invite_annotator(store)
    visitor = Visitor(store)
    visitor.get(f"/invite/{token}")
    fields = visitor.form()["fields"]
    came = visitor.client.post(f"/invite/{token}", data=fields, follow_redirects=False)
    assert ages(came)["laurel"] == str(round(3600 * accounts.SESSION_HOURS))
    accounts.add_admin(store, "ada", "a long password")
    chief = Visitor(store)
    chief.get("/admin/login")
    fields = {**chief.form()["fields"], "name": "ada", "password": "a long password"}
    came = chief.client.post("/admin/login", data=fields, follow_redirects=False)
    assert ages(came)["laurel"] == str(round(3600 * accounts.ADMIN_HOURS))
    assert ages(came)["laurel-device"] == str(round(DAY * admin_login.DEVICE_DAYS))


def test_a_code_brings_one_back_on_any_device_until_there_is_a_new_one(store, clock):
    rich_batch(store)
    visitor = Visitor(store)
    name, token = accounts.invite_annotator(store)
    visitor.get(f"/invite/{token}")
    visitor.send({})
    code = code_on(visitor.page)
    visitor.send({"votes": "keep", "agree": "1"}, ending="/consent")
    assert code_on(visitor.get("/mine")) == code  # shown again where it was made
    with store.read() as session:
        assert code not in str([vars(row) for row in session.scalars(select(Annotator))])
    clock.time += 3600 * accounts.SESSION_HOURS + 1
    assert visitor.get("/work").status_code == 403
    assert 'href="/return"' in visitor.page.text
    written = (
        code,
        code.lower(),
        code.replace("-", " "),
        f" {code.replace('-', '')} ",
        code.replace("O", "0").replace("I", "1").replace("B", "8"),
    )
    devices = [returned(store, given) for given in written]
    for device in devices:
        assert device.page.url.path == "/work" and name in device.page.text
    other = devices[0]
    assert (
        CODE.search(other.get("/mine").text) is None
    )  # nothing stores it, so only the browser it was made in can show it
    assert "cannot be shown here" in other.page.text
    other.send({}, ending="/mine/code")
    newer = code_on(other.page)
    assert newer != code
    assert devices[1].get("/work").status_code == 403  # all other sessions ended
    assert returned(store, code).page.status_code == 403
    assert returned(store, newer).page.url.path == "/work"


@pytest.mark.parametrize("how", ["renewed", "withdrawn", "erased"])
def test_a_code_ends_with_what_it_belongs_to(store, how):
    visitor = Visitor(store)
    name, token = accounts.invite_annotator(store)
    visitor.get(f"/invite/{token}")
    visitor.send({})
    code = code_on(visitor.page)
    if how == "renewed":
        accounts.renew_invitation(store, name, actor="ada")
    else:
        with store.read() as session:
            who = session.scalars(select(Annotator.id)).one()
        accounts.withdraw(store, who, erase=how == "erased")
    back = returned(store, code)
    assert back.page.status_code == 403
    assert "not known" in back.page.text
    with store.read() as session:
        assert session.scalars(select(Annotator.code)).one() == ""
        assert session.scalars(select(Login)).all() == []


def test_no_code_opens_what_has_none(store):
    """People of imported data and of applications have an empty code; it is nobody's."""
    with store.write() as session:
        session.add(Annotator(pseudonym="imported", made_at=store.now()))
    for given in ("", "-", "AAAA-AAAA-AAAA-AAAA", "\u0130" * 90):
        assert returned(store, given).page.status_code == 403


def test_thirty_people_come_from_one_address_in_a_minute(store):
    """A class or a lab behind one router: only what fails is counted."""
    tokens = [accounts.invite_annotator(store)[1] for _ in range(30)]
    visitor = Visitor(store, limits=Limits(token=20))
    for token in tokens:
        visitor.client.cookies.clear()
        visitor.get(f"/invite/{token}")
        assert visitor.send({}).url.path == "/consent"
    with store.read() as session:
        assert {row.count for row in session.scalars(select(Attempt))} == {0}


def test_guesses_still_run_out(store):
    visitor = Visitor(store, limits=Limits(token=3))
    visitor.get("/return")
    codes = [visitor.send({"code": "AAAA"}, ending="/return").status_code for _ in range(4)]
    assert codes == [403, 403, 403, 429]


def test_a_storm_of_passwords_keeps_no_coordinator_out(store, capsys):
    """A browser that was in before passes; so does a link from the server; and a new browser
    elsewhere, while few addresses storm.
    """
    accounts.add_admin(store, "ada", "a long password")
    limits = Limits(login=5)
    known = from_address(store, "192.0.2.9", limits)
    assert login(known).url.path == "/admin"
    known.send({}, ending="/logout")
    for address in ("192.0.2.9", "192.0.2.1", "192.0.2.2", "192.0.2.3"):
        stranger = from_address(store, address, limits)
        codes = [login(stranger, password=f"guess {n}").status_code for n in range(6)]
        assert codes == [403] * 5 + [429]
    assert login(from_address(store, "192.0.2.1", limits)).status_code == 429
    assert login(known).url.path == "/admin"  # from an address that stormed, too
    assert login(from_address(store, "192.0.2.77", limits)).url.path == "/admin"
    tight = Limits(login=5, name=20)
    assert (
        login(from_address(store, "192.0.2.78", tight)).status_code == 429
    )  # a storm from everywhere
    run_admin(Namespace(name="ada", link=True, public_url="http://127.0.0.1:8000"), store)
    link = capsys.readouterr().out.strip()
    chief = from_address(store, "192.0.2.78", tight)
    chief.get(link)
    assert chief.send({}, ending=link.rpartition("/")[2]).url.path == "/admin"
    chief.send({}, ending="/logout")
    assert login(chief).url.path == "/admin"  # known by now


def test_a_known_browser_may_not_guess_either(store):
    accounts.add_admin(store, "ada", "a long password")
    accounts.add_admin(store, "eve", "another password")
    limits = Limits(login=3)
    visitor = from_address(store, "192.0.2.5", limits)
    login(visitor, "eve", "another password")
    visitor.send({}, ending="/logout")
    kept = visitor.client.cookies["laurel-device"]
    assert admin_login.known_device(store, "eve", kept) and not admin_login.known_device(
        store, "ada", kept
    )
    assert [login(visitor, "eve", "wrong").status_code for _ in range(4)] == [403] * 3 + [429]
    accounts.add_admin(store, "eve", "a newer password")
    assert not admin_login.known_device(store, "eve", kept)
    for forged in ("", ".", "a.b", kept + "x", f"{kept.partition('.')[0]}.", "ü.ü"):
        assert not admin_login.known_device(store, "eve", forged)


def test_a_link_works_once_and_for_a_quarter_of_an_hour(store, clock):
    accounts.add_admin(store, "ada", "a long password")
    token = admin_login.make_login_link(store, "ada")
    assert admin_login.redeem_login_link(store, token)[0] == "ada"
    late, other, old = (
        admin_login.make_login_link(store, "ada"),
        admin_login.make_login_link(store, "ada"),
        admin_login.make_login_link(store, "ada"),
    )
    clock.time -= DAY
    future = admin_login.make_login_link(store, "ada")
    clock.time += DAY
    wrong = [
        token,
        future,
        "",
        "1",
        "1.2",
        "x.y.z",
        "9.9999999999.a.b",
        f"{other[:-1]}{'a' if other[-1] != 'a' else 'b'}",
        "ü.1.2.3",
    ]
    for given in wrong:
        with pytest.raises(accounts.Refused, match="unknown, used or expired"):
            admin_login.redeem_login_link(store, given)
    assert admin_login.redeem_login_link(store, other)[0] == "ada"
    clock.time += 60 * admin_login.LINK_MINUTES + 2
    with pytest.raises(accounts.Refused):
        admin_login.redeem_login_link(store, late)
    clock.time -= 60 * admin_login.LINK_MINUTES + 2
    accounts.add_admin(store, "ada", "a newer password")
    with pytest.raises(accounts.Refused):
        admin_login.redeem_login_link(store, old)
    with pytest.raises(UsageError, match="There are: ada"):
        admin_login.make_login_link(store, "bob")


@pytest.mark.parametrize("back", [10.0, 3600.0, DAY, 400 * DAY])
def test_a_clock_set_back_makes_nobody_wait(store, clock, back):
    """Limits end, leases are as long as ever from now on, and the cap of harmful samples counts the
    last day, not the future.
    """
    batch = rich_batch(store, items=1, target_votes=1, lease_minutes=15)
    with store.write() as session:
        for n in range(2):
            session.add(
                Annotator(pseudonym=f"w{n}", state="active", consent="keep 1", made_at=store.now())
            )
    with store.read() as session:
        one, two = session.scalars(select(Annotator.id).order_by(Annotator.id))
    accounts.count_attempt(store, "here", 1, 60.0)
    lease = TaskQueue(store, one, batch).next()
    clock.time -= back
    accounts.count_attempt(store, "here", 1, 60.0)
    with pytest.raises(accounts.Refused, match="too many"):
        accounts.count_attempt(store, "here", 1, 60.0)
    assert TaskQueue(store, two, batch).next() is None  # the first one is at work
    with store.read() as session:
        assert session.get_one(Assignment, lease.id).lease_until <= clock.time + 15 * 60
    clock.time += 15 * 60 + 1
    assert TaskQueue(store, two, batch).next() is not None


def test_the_cap_of_harmful_samples_counts_the_last_day(store, clock):
    batch = rich_batch(store, items=4, daily_harm_cap=1)
    with store.write() as session:
        session.add(Annotator(pseudonym="w", state="active", consent="keep 1", made_at=store.now()))
    with store.read() as session:
        who = session.scalars(select(Annotator.id)).one()
    queue, settings = TaskQueue(store, who, batch), BatchSettings(daily_harm_cap=1)
    given = queue.next()
    with store.write() as session:
        session.get_one(Assignment, given.id).item.harmful = True
    with store.read() as session:
        assert not queue._harm_room(session, settings)
        clock.time -= 2 * DAY
        assert queue._harm_room(session, settings)


PROMISES = {
    "works once, in the browser": "test_cookies_last_as_long_as_their_sessions",
    "logged in for": f"{DAYS} days",
    "come back in": "test_a_code_brings_one_back_on_any_device_until_there_is_a_new_one",
    "The old one ends": "test_a_code_brings_one_back_on_any_device_until_there_is_a_new_one",
    "your answers are kept": "test_people_are_those_who_were_invited",
    "within {{ minutes }} minutes": "test_a_link_works_once_and_for_a_quarter_of_an_hour",
}


def test_every_promise_of_the_pages_about_coming_in_is_kept(store):
    """No page states a time of its own: what it says is printed from what the server does. Each
    promise names the test that holds it.
    """
    pages = {
        path.name: path.read_text(encoding="utf-8") for path in (HERE / "templates").glob("*.html")
    }
    told = " ".join(" ".join(text.split()) for text in pages.values())
    for promise in PROMISES:
        assert promise in told, promise
    spelt = re.compile(r"\b(?:a|one|two|\d+) (?:week|month|year|day|hour)s?\b|\b\d+ minutes\b")
    found = {name: spelt.findall(text) for name, text in pages.items() if spelt.search(text)}
    assert not found, f"times that no code prints: {found}"
    visitor = Visitor(store)
    _, token = accounts.invite_annotator(store)
    assert f"logged in for {DAYS} days" in visitor.get(f"/invite/{token}").text
    assert DAYS * 24 == accounts.SESSION_HOURS


@pytest.mark.parametrize(
    ("given", "fine"),
    [
        ("10.0.0.5", True),
        ("172.16.0.0/12", True),
        ("::1", True),
        ("proxy", False),
        ("10.0.0.1/8", False),
    ],
)
def test_trusted_proxies_are_addresses(given, fine):
    if fine:
        check_proxy(given)
    else:
        with pytest.raises(UsageError, match="no address"):
            check_proxy(given)
