"""What must not work: forged forms, hostile text, old cookies, other people's samples, guessing;
and that nothing is given away.
"""

import re
import uuid

import anyio
import pytest
from feedback_pages import SECRETS, Visitor, pin, rich_batch
from sqlalchemy import select, text
from starlette.routing import Mount
from starlette.testclient import TestClient

from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.tables import Annotator, Assignment, Item, Login, Response, Vote
from laurel_feedback.web import security
from laurel_feedback.web.app import create_app
from laurel_feedback.web.security import Limits

NASTY = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)> {{ 7*7 }}"
    " \u202eevil\u200b"
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def votes(store):
    with store.read() as session:
        return len(session.scalars(select(Vote)).all())


def at_work(store, **settings):
    """A visitor on the page of sample 1, and what its form would send."""
    rich_batch(store, rationale="optional", **settings)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    form = visitor.form("/answer")
    return visitor, form["action"], {**form["fields"], "rating": "1"}


@pytest.mark.parametrize("token", [None, "", "wrong", "ungültig"])
@pytest.mark.parametrize("what", ["answer", "skip", "draft", "alive", "dispute"])
def test_a_form_without_its_token_changes_nothing(store, token, what):
    visitor, action, fields = at_work(store)
    fields.pop("csrf")
    data = fields if token is None else {**fields, "csrf": token}
    page = visitor.post(action.replace("/answer", f"/{what}"), data)
    assert page.status_code == 403
    assert "nothing was changed" in page.text
    assert votes(store) == 0


def test_the_token_of_someone_else_is_no_token(store):
    visitor, action, fields = at_work(store)
    other = Visitor(store)
    other.come_in()
    other.get("/work")
    assert visitor.post(action, {**fields, "csrf": other.csrf}).status_code == 403
    assert votes(store) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9"},
    ],
)
def test_a_form_of_another_site_changes_nothing_even_with_the_token(store, headers):
    visitor, action, fields = at_work(store)
    page = visitor.post(action, fields, headers=headers)
    assert page.status_code == 403
    assert "another site" in page.text
    assert votes(store) == 0
    own = {
        "origin": "null",
        "sec-fetch-site": "same-origin",
    }  # what a browser sends for our own forms under no-referrer
    assert visitor.post(action, fields, headers=own).status_code == 200
    assert votes(store) == 1


@pytest.mark.parametrize("path", ["/admin/login", "/invite/abc", "/logout"])
def test_forms_before_a_login_have_tokens_too(store, path):
    visitor = Visitor(store)
    assert visitor.post(path, {"csrf": "guess", "name": "ada", "password": "x"}).status_code == 403
    visitor.get("/admin/login")
    assert visitor.post(path, {"csrf": "guess"}).status_code == 403


@pytest.mark.parametrize("markdown", [False, True])
def test_hostile_texts_are_shown_and_do_nothing(store, markdown):
    rich_batch(
        store,
        rationale="optional",
        markdown=markdown,
        kinds={0: "training"},
        harm={0: [NASTY[:40]]},
    )
    with store.write() as session:
        for item in session.scalars(select(Item)):
            item.prompt, item.input, item.explanation = (
                [{"role": NASTY, "content": NASTY}, {"content": NASTY}],
                NASTY,
                NASTY,
            )
        for response in session.scalars(select(Response)):
            response.text = response.model = NASTY
    pin(store, "batch-0", reason=NASTY)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    visitor.send({"rating": 1, "rationale": NASTY, "opened": "1"}, ending="/answer")
    visitor.send({"text": NASTY}, ending="/dispute")
    visitor.send({"rationale": NASTY}, to="draft") if "/draft" in visitor.page.text else None
    for path in ("/work/1/1", "/work/1?after=1", "/mine", "/guidelines", "/work", "/consent"):
        page = visitor.get(path)
        assert page.status_code == 200
        assert not re.search(r"<(img|svg)|<script(?! type=\"module\" src=\"/static/)", page.text), (
            path
        )
        assert "49" not in re.findall(r"alert\(3\)&gt; (\S+)", page.text)
        assert "\u202e" not in re.sub(
            r"<textarea.*?</textarea>|<input[^>]*>", "", page.text, flags=re.DOTALL
        ), path


def test_nothing_is_given_away_before_the_own_answer(store):
    """Every page and JSON on the way, by every kind of item: no models, sources, right answers,
    kinds, ids of items, others' words.
    """
    kinds = {0: "gold", 1: "attention", 2: "training", 3: "check"}
    rich_batch(store, items=10, hit_size=8, kinds=kinds, gold_share=0.4, rationale="optional")
    with store.read() as session:
        other_items = session.scalars(select(Item.id)).all()
    _, token = accounts.invite_annotator(store)
    other = accounts.session_of(store, accounts.accept_invitation(store, token)).annotator
    accounts.consent(store, other, "keep 1")
    queue = TaskQueue(store, other, 1)
    while (sample := queue.next()) is not None:
        queue.submit(sample.id, Answer(rating=1, rationale="other-reason"), str(uuid.uuid4()))
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work")
    while "finished" not in visitor.get("/work/1").url.path:
        visitor.get("/work/1/next.json")
        assert_blind(visitor.seen, other_items)
        for path in ("/mine", "/guidelines"):
            page = visitor.get(path).text
            assert "other-reason" not in page
        visitor.get("/work/1")
        visitor.send({"rating": "1"}, ending="/answer", headers={"Accept": "application/json"})
        assert not any(secret in visitor.page.text for secret in SECRETS)
        visitor.seen.clear()


def assert_blind(seen, items):
    """Nothing secret in the text, the address or the headers of any answer."""
    for response in seen:
        said = f"{response.text} {response.url} {response.headers}"
        assert not [
            word for word in (*SECRETS, "attention", "gold", "secret", "training") if word in said
        ], response.url
        assert not [
            item for item in items if re.search(rf"(?<![\w-]){re.escape(item)}(?![\w-])", said)
        ], response.url


def test_samples_of_others_are_closed(store):
    at_work(store)
    with store.read() as session:
        theirs = session.scalar(select(Assignment.id))
    other = Visitor(store)
    other.come_in()
    other.get("/work/1")
    for what in ("answer", "skip", "draft", "alive", "dispute"):
        data = {
            "csrf": other.csrf,
            "key": "some-long-key",
            "rating": "1",
            "text": "t",
            "rationale": "r",
        }
        page = other.client.post(f"/work/1/samples/{theirs}/{what}", data=data)
        assert page.status_code == 404, what
        assert "answer a of" not in page.text
    assert other.get("/work/1/2").status_code == 404
    assert other.get("/work/2/1").status_code in (403, 404)
    assert other.get("/work/1/99999999999999999999").status_code == 404
    assert votes(store) == 0


def test_no_page_opens_without_a_login(store):
    rich_batch(store)
    visitor = Visitor(store)
    for path in (
        "/work",
        "/work/1",
        "/work/1/1",
        "/work/1/next.json",
        "/work/1/finished",
        "/mine",
        "/mine/data.json",
        "/mine/withdraw",
        "/consent",
        "/check/1",
        "/guidelines",
    ):
        page = visitor.get(path)
        assert page.status_code == 403, path
        assert "invitation" in page.text
        asked = visitor.get(path, headers={"Accept": "application/json"})
        assert set(asked.json()) == {"error", "fix"}


def test_a_cookie_that_was_logged_out_is_dead(store):
    visitor, action, fields = at_work(store)
    cookie = visitor.client.cookies["laurel"]
    response = visitor.client.post("/logout", data={"csrf": fields["csrf"]}, follow_redirects=False)
    assert response.headers["clear-site-data"] == '"storage"'
    assert "laurel" not in visitor.client.cookies
    visitor.client.cookies.set("laurel", cookie)
    assert visitor.get("/work").status_code == 403
    assert visitor.post(action, fields).status_code == 403
    assert votes(store) == 0


def test_a_login_makes_a_new_session_and_ends_the_old_one(store):
    accounts.add_admin(store, "ada", "a long password")
    visitor = Visitor(store)
    visitor.client.cookies.set("laurel", "chosen-by-the-attacker")
    visitor.come_in()
    first = visitor.client.cookies.get("laurel", domain="127.0.0.1") or ""
    assert "chosen-by-the-attacker" not in {accounts.secret_digest(first), first}
    with store.read() as session:
        digests = set(session.scalars(select(Login.digest)))
    assert accounts.secret_digest("chosen-by-the-attacker") not in digests
    fresh = Visitor(store)
    fresh.come_in()
    old = fresh.client.cookies["laurel"]
    fresh.get("/admin/login")
    fresh.send({"name": "ada", "password": "a long password"}, ending="/admin/login")
    assert fresh.client.cookies["laurel"] != old
    assert accounts.session_of(store, old) is None


def test_guessing_is_slow_and_says_so(store, clock):
    accounts.add_admin(store, "ada", "a long password")
    visitor = Visitor(store, limits=Limits(login=3, token=2, answer=2))
    visitor.get("/admin/login")
    codes = [
        visitor.send({"name": "ada", "password": str(n)}, ending="/admin/login").status_code
        for n in range(3)
    ]
    assert codes == [403] * 3
    token = visitor.csrf
    page = visitor.post(
        "/admin/login", {"csrf": token, "name": "ada", "password": "a long password"}
    )
    assert page.status_code == 429
    assert page.headers["retry-after"] == "60"
    assert "Wait 60 seconds" in page.text
    codes = [visitor.post(f"/invite/guess{n}", {"csrf": token}).status_code for n in range(3)]
    assert codes == [403, 403, 429]
    clock.time += 61
    visitor.get("/admin/login")
    assert visitor.send(
        {"name": "ada", "password": "a long password"}, ending="/admin/login"
    ).status_code in (200, 404)


def test_answers_are_limited_for_a_session(store, clock):
    rich_batch(store)
    visitor = Visitor(store, limits=Limits(answer=2))
    visitor.come_in()
    visitor.get("/work/1")
    for _ in range(2):
        visitor.send({"rating": 1}, ending="/answer")
    form = visitor.form("/answer")
    assert visitor.send({"rating": 1}, ending="/answer").status_code == 429
    clock.time += 61
    assert visitor.post(form["action"], {**form["fields"], "rating": "1"}).status_code == 200
    assert votes(store) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nosuch",
        "/work",
        "/static/style.css",
        "/static/nosuch",
        "/admin/login",
        "/invite/x",
        "/work/1/2/3",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_every_response_carries_the_headers(store, path, method):
    response = Visitor(store).client.request(method, path)
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"


def test_an_error_of_ours_is_a_page_with_the_headers_and_without_the_cause(store):
    visitor, _, _ = at_work(store)
    with store.write() as session:
        for response in session.scalars(select(Response)):
            session.delete(response)  # an item without responses: a broken database
    page = visitor.get("/work/1/1")
    assert page.status_code == 500
    assert page.headers["content-security-policy"] == POLICY
    assert "broke on our side" in page.text
    assert "Traceback" not in page.text
    assert (
        visitor.get("/work/1/1", headers={"Accept": "application/json"}).json()["error"]
        == "something broke on our side."
    )


@pytest.mark.parametrize("table", ["annotator", "login", "item"])
def test_a_database_that_fails_is_told_as_such(store, table):
    visitor, _, _ = at_work(store)
    with store.write() as session:
        session.execute(text(f"ALTER TABLE {table} RENAME TO lost"))
    page = visitor.get("/work/1/1")
    assert page.status_code == 500
    assert page.headers["content-security-policy"] == POLICY
    assert "broke on our side" in page.text
    assert "lost" not in page.text


def test_cookies_are_tied_to_the_host_under_https(store):
    for base, name in (
        ("https://rate.example", "__Host-laurel"),
        ("http://127.0.0.1:8000", "laurel"),
    ):
        client = TestClient(create_app(store, public_url=base), base_url=base)
        _, token = accounts.invite_annotator(store)
        page = client.get(f"/invite/{token}").text
        csrf = re.search(r'name="csrf" value="([^"]+)', page)[1]
        said = client.post(
            f"/invite/{token}", data={"csrf": csrf}, follow_redirects=False
        ).headers.get_list("set-cookie")
        (cookie,) = [
            line for line in said if line.startswith(f"{name}=") and "Max-Age=0" not in line
        ]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "Path=/" in cookie
        assert "Domain" not in cookie
        assert ("Secure" in cookie) == base.startswith("https")


def test_a_form_that_is_too_long_or_no_form_is_refused(store):
    visitor, action, fields = at_work(store)
    assert visitor.post(action, {**fields, "rationale": "x" * 30_000}).status_code == 422
    assert (
        visitor.post(action, {**fields, "rationale": "x" * (security.LARGEST + 1)}).status_code
        == 413
    )
    assert visitor.keep(visitor.client.post(action, json=fields)).status_code == 415
    many = {**fields, **{f"rank_{n}": "1" for n in range(2000)}}
    assert visitor.post(action, many).status_code in (400, 413, 422, 200)
    assert visitor.page.status_code != 500
    assert votes(store) <= 1


def test_someone_who_was_renewed_or_left_is_out_at_once(store):
    visitor, action, fields = at_work(store)
    with store.read() as session:
        name = session.scalar(select(Annotator.pseudonym))
    accounts.renew_invitation(store, name, actor="coordinator")
    assert visitor.get("/work").status_code == 403
    assert visitor.post(action, fields).status_code == 403


def test_coordinators_and_annotators_keep_to_their_pages(store):
    accounts.add_admin(store, "ada", "a long password")
    rich_batch(store)
    admin = Visitor(store)
    admin.get("/admin/login")
    admin.send({"name": "ada", "password": "a long password"}, ending="/admin/login")
    assert admin.get("/work").status_code == 403
    assert admin.get("/mine/data.json").status_code == 403


def paths(app, method):
    """Every address of the application's own pages that takes a method, with something in the place
    of its parameters.
    """
    todo, found = list(app.routes), []
    while todo:
        route = todo.pop()
        if isinstance(route, Mount):
            todo += route.routes if not route.path.startswith(("/api", "/static")) else []
            assert route.path.startswith(("/api", "/static")) or route.path == "", (
                "a mounted part that this test does not walk"
            )
        elif method in (route.methods or ()):
            found.append(re.sub(r"{(\w+)(:\w+)?}", "1", route.path))
    return sorted(found)


def test_every_form_needs_its_token_and_every_coordinators_page_a_coordinator(store):
    visitor, _, fields = at_work(store)
    app = visitor.client.app
    forms, pages = paths(app, "POST"), paths(app, "GET")
    assert len(forms) > 20
    assert {"/admin", "/admin/people", "/admin/audit"} <= set(pages)
    for path in forms:
        assert visitor.post(path, {"rating": "1", "sure": "1"}).status_code == 403, path
        assert "nothing was changed" in visitor.page.text, path
    for path in forms:
        if path.startswith("/admin") and path != "/admin/login":
            assert visitor.post(path, {"csrf": fields["csrf"]}).status_code == 403, path
            assert "for coordinators" in visitor.page.text, path
    for path in pages:
        if path.startswith("/admin") and path != "/admin/login":
            assert visitor.get(path).status_code == 403, path
            anyone = Visitor(store).client.get(path, follow_redirects=False)
            assert (anyone.status_code, anyone.headers["location"]) == (303, "/admin/login"), path


def test_a_browser_that_goes_away_in_the_middle_of_a_form_is_no_error(store):
    app, sent = create_app(store), []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"content-length", b"99"),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/logout",
        "headers": headers,
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "raw_path": b"/logout",
    }
    anyio.run(app, scope, receive, send)
    assert sent == []
