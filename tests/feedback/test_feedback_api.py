"""The interface for applications: what is stored, in which order, for whom, and what never comes
back.
"""

import json
import re
import shutil
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from laurel.core.errors import UsageError
from laurel_feedback.exchange import product
from laurel_feedback.exchange.export import export
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.tables import Annotator, ApiKey, Assignment, Item, Vote
from laurel_feedback.web import api as room
from laurel_feedback.web.app import create_app

ASK = {
    "prompt": "A tree?",
    "responses": [
        {"text": "Laurel.", "model": "secret-model"},
        {"text": "Stone.", "model": "secret-other"},
    ],
}


@pytest.fixture
def application(store):
    """A client with the key of an application."""
    key = product.create_api_key(store, "chat")
    return TestClient(
        create_app(store),
        base_url="http://127.0.0.1:8000",
        headers={"Authorization": f"Bearer {key}"},
    )


def votes(store):
    """(texts from better to worse or the tie, pseudonym, revision) of every vote."""
    found = []
    with store.read() as session:
        for vote in session.scalars(select(Vote).order_by(Vote.id)):
            assignment = session.get_one(Assignment, vote.assignment_id)
            texts = [r.text for r in session.get_one(Item, assignment.item_id).responses]
            said = {1: texts, 4: texts[::-1], 0: "tie"}[vote.rating]
            found.append(
                (said, session.get_one(Annotator, assignment.annotator_id).pseudonym, vote.revision)
            )
    return found


def test_a_choice_is_stored_for_the_response_that_was_shown_there(store, application):
    first = set()
    for n in range(16):
        asked = application.post("/api/v1/comparisons", json=ASK)
        assert asked.status_code == 201 and "secret" not in asked.text
        texts = asked.json()["responses"]
        first.add(texts[0])
        choice = {"choice": texts.index("Laurel."), "user": f"u{n}"}
        stored = application.post(f"/api/v1/comparisons/{asked.json()['id']}/choice", json=choice)
        assert stored.json() == {"stored": True, "revision": 1, "again": False}
    assert first == {"Laurel.", "Stone."}
    assert [said for said, _, _ in votes(store)] == [["Laurel.", "Stone."]] * 16


def test_the_same_key_is_the_same_answer_and_another_key_a_changed_mind(store, application):
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    url, laurel = f"/api/v1/comparisons/{asked['id']}/choice", asked["responses"].index("Laurel.")
    for choice, key, revision, again in (
        (laurel, "a", 1, False),
        (laurel, "a", 1, True),
        ("tie", "b", 2, False),
    ):
        said = application.post(
            url, json={"choice": choice, "user": "u"}, headers={"Idempotency-Key": key}
        )
        assert said.json() == {"stored": True, "revision": revision, "again": again}
    assert [(said, revision) for said, _, revision in votes(store)] == [
        (["Laurel.", "Stone."], 1),
        ("tie", 2),
    ]
    for key in ({"Idempotency-Key": "a"}, {}):  # never "stored" for an answer that was not
        application.post(url, json={"choice": laurel, "user": "u"}, headers=key)
        said = application.post(url, json={"choice": 1 - laurel, "user": "u"}, headers=key)
        assert said.status_code == 409 and "Idempotency-Key" in said.json()["fix"], said.text
    other = application.post(url, json={"choice": 0, "user": "v"})
    assert other.status_code == 409 and "another user" in other.json()["error"]


def test_an_idempotency_key_is_one_users(store, application):
    """A second user with the same key is not told that their answer is stored, and of a thumb it is
    stored.
    """
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    url, same = f"/api/v1/comparisons/{asked['id']}/choice", {"Idempotency-Key": "a"}
    assert (
        application.post(url, json={"choice": 0, "user": "u"}, headers=same).json()["again"]
        is False
    )
    other = application.post(url, json={"choice": 1, "user": "v"}, headers=same)
    assert other.status_code == 409 and "another user" in other.json()["error"]
    assert application.post(url, json={"choice": 0, "user": "u"}, headers=same).json() == {
        "stored": True,
        "revision": 1,
        "again": True,
    }
    for user in ("u", "v"):
        body = {"prompt": "A tree?", "response": "Laurel.", "up": True, "user": user}
        assert application.post("/api/v1/thumbs", json=body, headers=same).json()["again"] is False
    assert len(stored_votes(store)) == 3


def stored_votes(store):
    with store.read() as session:
        return session.scalars(select(Vote.id)).all()


@pytest.mark.parametrize("choice", [1.0, 0.0, True, False, "1", "Tie", None, [1], 2])
def test_a_choice_is_a_whole_number_or_tie(store, application, choice):
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    refused = application.post(
        f"/api/v1/comparisons/{asked['id']}/choice", json={"choice": choice, "user": "u"}
    )
    assert (
        refused.status_code == 422 and "choice" in refused.json()["error"] and refused.json()["fix"]
    )
    with store.read() as session:
        key = session.scalar(select(ApiKey))
    with pytest.raises(Refused, match="choice"):
        product.record_choice(store, key, asked["id"], "u", choice)
    thumb = {"prompt": "A tree?", "response": "Laurel.", "up": "yes", "user": "u"}
    assert application.post("/api/v1/thumbs", json=thumb).status_code == 422
    assert stored_votes(store) == []


def test_every_error_says_what_is_wrong_and_what_to_do(application, monkeypatch):
    body = json.dumps(ASK).encode()
    as_json = {"Content-Type": "application/json"}
    for method, path, more, status, told in (
        ("GET", "/api/v1/nothing", {}, 404, "nothing at this address"),
        ("DELETE", "/api/v1/comparisons", {}, 405, "does not take DELETE"),
        (
            "POST",
            "/api/v1/comparisons",
            {"content": b'{"prompt": ', "headers": as_json},
            422,
            "not JSON",
        ),
        ("POST", "/api/v1/comparisons", {"content": b"\xff", "headers": as_json}, 400, ""),
        ("POST", "/api/v1/comparisons", {"content": body}, 415, "Content-Type is missing"),
        (
            "POST",
            "/api/v1/comparisons",
            {"content": body, "headers": {"Content-Type": "text/plain"}},
            415,
            "Content-Type: `text/plain`",
        ),
        ("POST", "/api/v1/comparisons", {"content": b"", "headers": as_json}, 422, "body"),
        ("POST", "/api/v1/comparisons", {"json": [1]}, 422, "body"),
    ):
        said = application.request(method, path, **more)
        assert said.status_code == status, (method, path, said.text)
        assert (
            said.json().keys() == {"error", "fix"}
            and told in said.json()["error"]
            and said.json()["fix"]
        )
    assert application.delete("/api/v1/comparisons").json()["fix"] == "Use POST."
    assert application.post(
        "/api/v1/comparisons",
        content=body,
        headers={"Content-Type": "application/json; charset=utf-8"},
    ).is_success

    def fail(*_):
        raise RuntimeError("secret-detail")

    monkeypatch.setattr(product, "ask_comparison", fail)
    client = TestClient(
        application.app,
        base_url="http://127.0.0.1:8000",
        headers=application.headers,
        raise_server_exceptions=False,
    )
    said = client.post("/api/v1/comparisons", json=ASK)
    assert (
        said.status_code == 500
        and said.json().keys() == {"error", "fix"}
        and "secret" not in said.text
    )


def test_users_have_pseudonyms_that_survive_a_new_key(store, application, tmp_path):
    rotated = {"Authorization": f"Bearer {product.create_api_key(store, 'chat')}"}
    stranger = {"Authorization": f"Bearer {product.create_api_key(store, 'other')}"}
    names = []
    for headers in ({}, rotated, stranger):
        asked = application.post("/api/v1/comparisons", json=ASK, headers=headers).json()
        application.post(
            f"/api/v1/comparisons/{asked['id']}/choice",
            json={"choice": 0, "user": "ada@example.org"},
            headers=headers,
        )
        names.append(votes(store)[-1][1])
    assert names[0] == names[1] != names[2]
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    assert (
        application.post(
            f"/api/v1/comparisons/{asked['id']}/choice",
            json={"choice": 0, "user": "u"},
            headers=stranger,
        ).status_code
        == 404
    )
    export(store, "product chat", "votes", tmp_path / "v.jsonl")
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2
    assert "ada@" not in (tmp_path / "v.jsonl").read_text()


def test_thumbs(store, application, tmp_path):
    for user, up, key, expected in (
        ("u", True, "1", 1),
        ("u", True, "1", 1),
        ("v", False, "1", 1),
        ("u", False, "2", 2),
    ):
        body = {
            "prompt": [{"role": "user", "content": "A tree?"}],
            "response": {"text": "Laurel.", "model": "m"},
            "up": up,
            "user": user,
        }
        said = application.post("/api/v1/thumbs", json=body, headers={"Idempotency-Key": key})
        assert said.json()["revision"] == expected
    with store.read() as session:
        assert [v.rating for v in session.scalars(select(Vote).order_by(Vote.id))] == [1, 4, 4]
    export(store, "product chat", "unpaired", tmp_path / "u.jsonl")
    assert [
        json.loads(line)["label"] for line in (tmp_path / "u.jsonl").read_text().splitlines()
    ] == [False, False]


def test_preferences_of_users_are_exported(store, application, tmp_path):
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    laurel = asked["responses"].index("Laurel.")
    application.post(
        f"/api/v1/comparisons/{asked['id']}/choice", json={"choice": laurel, "user": "u"}
    )
    export(store, "product chat", "preferences", tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row["chosen"][0]["content"] == "Laurel." and row["provenance"]["models"] == [
        "secret-model",
        "secret-other",
    ]


def test_keys(store, application):
    assert "digest" not in application.post("/api/v1/comparisons", json=ASK).text
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer guessed"},
        {"Authorization": "Basic x"},
    ):
        refused = application.post("/api/v1/comparisons", json=ASK, headers=headers)
        assert (
            refused.status_code == 401
            and "Bearer" in refused.json()["fix"]
            and refused.headers["WWW-Authenticate"] == "Bearer"
        )
    with store.read() as session:
        key = session.scalar(select(ApiKey))
        assert len(key.digest) == 64 and key.digest not in application.headers["Authorization"]
    assert product.revoke_api_keys(store, "chat") == 1
    assert application.post("/api/v1/comparisons", json=ASK).status_code == 401
    with pytest.raises(UsageError, match="name"):
        product.create_api_key(store, " ")


def test_limits(store, application, monkeypatch):
    monkeypatch.setattr(room, "OF_STRANGER", 2)
    codes = [
        application.post(
            "/api/v1/comparisons", json=ASK, headers={"Authorization": "Bearer no"}
        ).status_code
        for _ in range(3)
    ]
    assert codes == [401, 401, 429]
    monkeypatch.setattr(room, "OF_KEY", 2)
    answers = [application.post("/api/v1/comparisons", json=ASK) for _ in range(3)]
    assert [a.status_code for a in answers] == [201, 201, 429] and answers[2].headers[
        "Retry-After"
    ] == "60"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": "x", "responses": ["a"]}, "responses"),
        ({"prompt": "", "responses": ["a", "b"]}, "prompt"),
        ({"prompt": "x", "responses": ["a", "b"], "odd": 1}, "odd"),
        ({"prompt": [{"role": "wizard", "content": "x"}], "responses": ["a", "b"]}, "role"),
        ({"prompt": "x", "responses": ["a", "b" * 200_001]}, "responses"),
        ({"prompt": "x", "responses": ["a\0", "b"]}, "NUL"),
    ],
)
def test_what_is_not_a_question_is_refused(application, store, body, told):
    refused = application.post("/api/v1/comparisons", json=body)
    assert refused.status_code == 422 and told in refused.json()["error"]
    with store.read() as session:
        assert session.scalars(select(Item)).all() == []


def test_a_request_that_is_too_long_is_refused(application):
    refused = application.post(
        "/api/v1/comparisons",
        content=b"x" * (room.LARGEST + 1),
        headers={"content-type": "application/json"},
    )
    assert refused.status_code == 413 and "1,000,000" in refused.json()["error"]


def test_its_description_is_there_for_programs_and_for_people(application):
    schema = application.get("/api/openapi.json").json()
    assert {"/v1/comparisons", "/v1/comparisons/{comparison}/choice", "/v1/thumbs"} <= schema[
        "paths"
    ].keys()
    page = application.get("/api/")
    assert "Idempotency-Key" in page.text and "/v1/thumbs" in page.text
    assert "<script" not in page.text and not re.search(r'(?:src|href)="https?:', page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


def embedded(application, user="u"):
    asked = application.post(
        "/api/v1/comparisons",
        json={**ASK, "responses": [ASK["responses"][0], {"text": "<b>\u202eStone", "model": "m"}]},
    )
    return (
        asked.json(),
        application.post(
            f"/api/v1/comparisons/{asked.json()['id']}/page", json={"user": user}
        ).json()["url"],
    )


def test_the_embedded_page_takes_one_answer(store, application):
    asked, url = embedded(application)
    browser = TestClient(application.app, base_url="http://127.0.0.1:8000")
    for _ in range(2):  # loading it uses nothing up
        page = browser.get(url)
        assert page.status_code == 200 and "Laurel." in page.text
    assert (
        "<b>" not in page.text
        and "\u202e" not in page.text
        and "secret" not in page.text
        and "<script" not in page.text
    )
    assert "frame-ancestors *" in page.headers["content-security-policy"]
    fields = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    to = url.partition("/page?")[0] + "/chosen"
    for choice in (asked["responses"].index("Laurel."), "tie"):
        said = browser.post(to, data={**fields, "choice": str(choice)})
        assert said.status_code == 200 and "stored" in said.text
    assert [(said[0], revision) for said, _, revision in votes(store)] == [("Laurel.", 1)]
    direct = application.post(
        f"/api/v1/comparisons/{asked['id']}/choice",
        json={"choice": 0, "user": "u"},
        headers={"Idempotency-Key": "x"},
    )
    assert direct.json()["revision"] == 2  # the same person, by both ways


def test_the_embedded_page_shows_what_was_asked(application):
    """The question, or the turns of the user and the model; never what the application told the
    model.
    """
    _, url = embedded(application)
    page = application.get(url).text
    assert "The question" in page and page.index("A tree?") < page.index("Response 1")
    turns = [
        ("system", "SECRET-RULES"),
        ("user", "<i>Hi"),
        ("assistant", "Hello."),
        ("tool", "SECRET-TOOL"),
        ("user", "A shrub?"),
    ]
    prompt = [{"role": role, "content": text} for role, text in turns]
    asked = application.post("/api/v1/comparisons", json={**ASK, "prompt": prompt}).json()
    page = application.get(
        application.post(f"/api/v1/comparisons/{asked['id']}/page", json={"user": "u"}).json()[
            "url"
        ]
    ).text
    assert "The conversation" in page and "SECRET" not in page and "<i>" not in page
    places = [page.index(words) for words in ("&lt;i&gt;Hi", "Hello.", "A shrub?", "Response 1")]
    assert places == sorted(places)


def test_a_link_that_was_changed_or_is_old_opens_nothing(store, application, clock):
    _, url = embedded(application)
    other, _ = embedded(application)
    for wrong in (
        url.replace("user=user-", "user=user-0"),
        re.sub("comparisons/[^/]+", f"comparisons/{other['id']}", url),
        url[:-3] + "000",
    ):
        assert application.get(wrong).status_code == 403
    clock.time += product.PAGE_SECONDS + 2
    assert application.get(url).status_code == 403


def test_a_user_who_withdrew_gives_nothing_more(store, application):
    asked = application.post("/api/v1/comparisons", json=ASK).json()
    application.post(f"/api/v1/comparisons/{asked['id']}/choice", json={"choice": 0, "user": "u"})
    with store.read() as session:
        identity = session.scalar(select(Annotator.id))
    accounts.withdraw(store, identity, erase=True)
    again = application.post("/api/v1/comparisons", json=ASK).json()
    refused = application.post(
        f"/api/v1/comparisons/{again['id']}/choice", json={"choice": 0, "user": "u"}
    )
    assert refused.status_code == 403 and votes(store) == []


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_the_page_in_a_frame_of_another_site(tmp_path):
    """In a real browser: the page stands in a frame of another origin, is clicked, and its vote is
    stored.
    """
    from feedback_server import served
    from playwright.sync_api import sync_playwright

    with served(tmp_path) as (store, address):
        key = product.api_key_of_token(store, product.create_api_key(store, "chat"))
        identity, texts = product.ask_comparison(
            store, key, "A tree?", [("Laurel.", ""), ("Stone.", "")]
        )
        with store.read() as session:
            user = product.pseudonym_of(session, key, "u")
        until = int(store.now()) + 600
        url = f"{address}/api/v1/comparisons/{identity}/page?user={user}&until={until}&signature={product.sign_link(key, identity, user, until)}"
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "index.html").write_text(
            f'<iframe src="{url}" width="600" height="600"></iframe>'
        )
        site = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")
        )
        Thread(target=site.serve_forever, daemon=True).start()
        with closing(site.socket), sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(f"http://localhost:{site.server_port}/")
            frame = page.frame_locator("iframe")
            assert frame.get_by_text("A tree?").is_visible()
            boxes = [button.bounding_box() for button in frame.get_by_role("button").all()]
            assert len(boxes) == 3
            for n, one in enumerate(boxes):
                for other in boxes[n + 1 :]:  # a finger's slip hits none of the others
                    across = max(
                        other["x"] - one["x"] - one["width"], one["x"] - other["x"] - other["width"]
                    )
                    down = max(
                        other["y"] - one["y"] - one["height"],
                        one["y"] - other["y"] - other["height"],
                    )
                    assert max(across, down) >= 8
            frame.get_by_role(
                "button", name=f"Response {texts.index('Laurel.') + 1} is better"
            ).click()
            frame.get_by_role("status").wait_for()
            browser.close()
            site.shutdown()
        assert [said[0] for said, _, _ in votes(store)] == ["Laurel."]
