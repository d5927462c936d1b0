"""Requests as attackers make them: every route with every kind of nonsense, half requests, floods
of the log; a killed parent.
"""

import json
import logging
import random
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from feedback_pages import Visitor, rich_batch
from feedback_server import free_port
from processes import begin
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from starlette.routing import Mount, Route

from laurel_feedback.exchange import product
from laurel_feedback.store import accounts
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Attempt
from laurel_feedback.web import request_checks
from laurel_feedback.web.connections import RateLimit

NASTY = [
    "",
    "0",
    "1",
    "-1",
    "2147483648",
    "9223372036854775808",
    "9" * 40,
    "9" * 5000,
    "1e999",
    "nan",
    "true",
    "null",
    "tie",
    "a\0b",
    "\0",
    "%00",
    "\ud800",
    "x\udfffy",
    "\ufeff",
    "é",
    "日本語",
    "\u202eevil",
    "\r\n",
    "a" * 3000,
    "'; DROP TABLE vote; --",
    "<script>",
    "{{7*7}}",
    "../../etc/passwd",
]
NAMES = [
    "rating",
    "rationale",
    "key",
    "rank_0",
    "rank_1",
    "pasted",
    "votes",
    "agree",
    "name",
    "password",
    "text",
    "reason",
    "kind",
    "size",
    "code",
    "pseudonym",
    "choice",
    "user",
    "until",
    "signature",
    "about_age",
    "opt_out",
    "asked",
    "target_votes",
    "q0",
    "attempt",
]
CHARSETS = [
    "utf-8",
    "latin-1",
    "utf-7",
    "unicode_escape",
    "nonsense",
    "base64",
    "idna",
    "undefined",
    "utf-16",
    "",
]
ORIGINS = [None, "null", "http://[", "http://127.0.0.1:8000", "https://evil.example", "é"]


def every_route(app, prefix=""):
    """(method, path) of all there is, the API's included."""
    found, todo = [], [(route, prefix) for route in app.routes]
    while todo:
        route, before = todo.pop()
        if hasattr(route, "original_router"):  # FastAPI's
            todo += [(one, before) for one in route.original_router.routes]
        elif isinstance(route, Mount):
            todo += [(one, before + route.path) for one in route.routes or ()]
        elif isinstance(route, Route) or hasattr(route, "methods"):
            found += [(method, before + route.path) for method in sorted(route.methods or ())]
    return sorted(set(found) - {("HEAD", path) for _, path in found})


def bytes_of(text):
    return text.encode("utf-8", "surrogatepass")


def quoted(text):
    return "".join(f"%{byte:02X}" for byte in bytes_of(text))


def body_of(rng, csrf, key):
    """A body and its type: a form, a form in parts, JSON, or nothing of the kind."""
    fields = {name: rng.choice(NASTY) for name in rng.sample(NAMES, rng.randint(0, 8))} | (
        {"csrf": csrf} if rng.random() < 0.9 else {}
    )
    kind = rng.random()
    if kind < 0.45:
        return (
            "&".join(f"{quoted(name)}={quoted(value)}" for name, value in fields.items()).encode(),
            "application/x-www-form-urlencoded",
        )
    charset = rng.choice(CHARSETS)
    if kind < 0.7:
        mark = "xXxBOUNDARYxXx"
        parts = [
            bytes_of(
                f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            )
            for name, value in fields.items()
        ]
        return (
            b"".join(parts) + f"--{mark}--\r\n".encode(),
            f"multipart/form-data; boundary={mark}; charset={charset}",
        )
    if kind < 0.95:
        said = {
            "prompt": rng.choice(NASTY),
            "responses": [
                rng.choice(NASTY),
                {"text": rng.choice(NASTY), "model": rng.choice(NASTY)},
            ],
            "user": rng.choice(NASTY),
            "choice": rng.choice([0, 1, "tie", 2**70, -1, None]),
            "up": rng.choice([True, 1, "x"]),
            "response": rng.choice(NASTY),
        }
        return (
            json.dumps(
                {name: said[name] for name in rng.sample(sorted(said), rng.randint(0, 6))}
            ).encode(),
            "application/json",
        )
    return rng.randbytes(50), rng.choice(
        [
            "text/plain",
            "multipart/form-data",
            f"application/x-www-form-urlencoded; charset={charset}",
            "",
        ]
    )


def storm(store, count, seed, caplog):
    """So many random requests of a stranger, an annotator and a coordinator; none may end in an
    error of ours, or say so in the log.
    """
    rich_batch(store, kinds={1: "gold", 2: "check", 3: "training"}, rationale="optional")
    accounts.add_admin(store, "ada", "a long password")
    key, rng = product.create_api_key(store, "chat"), random.Random(seed)
    visitors = [Visitor(store) for _ in range(3)]
    visitors[1].come_in()
    visitors[1].get("/work/1")
    visitors[2].get("/admin/login")
    visitors[2].send({"name": "ada", "password": "a long password"}, ending="/admin/login")
    with store.read() as session:
        known = [
            *session.scalars(select(Assignment.id)),
            *session.scalars(select(Annotator.pseudonym)),
            "1",
            "batch-0",
        ]
    routes = [
        (method, path)
        for method, path in every_route(visitors[0].client.app)
        if not path.endswith(("/logout", "/withdraw", "/erase"))
    ]
    assert len(routes) > 60 and any(path.startswith("/api/v1") for _, path in routes)
    broken = []
    for n in range(count):
        method, path = routes[n % len(routes)] if n < len(routes) else rng.choice(routes)
        visitor = rng.choice(visitors)
        filled = re.sub(
            r"{\w+(:\w+)?}",
            lambda _: quoted(rng.choice(NASTY if rng.random() < 0.5 else known)),
            path,
        )
        query = "".join(
            f"&{name}={quoted(rng.choice(NASTY))}"
            for name in rng.sample(["after", "from", "before", "batch", "until", "user"], 2)
        )
        who = visitor.client.get("/", headers={"cookie": ""} if rng.random() < 0.05 else {})
        csrf = (re.search(r'name="csrf" value="([^"]+)', who.text) or [None, ""])[1]
        body, kind = body_of(rng, csrf, key)
        headers = {
            "content-type": kind,
            "authorization": f"Bearer {rng.choice([key, 'x', 'é'])}",
            "idempotency-key": rng.choice(NASTY)[:99],
        }
        headers |= {"origin": origin} if (origin := rng.choice(ORIGINS)) else {}
        headers |= {"accept": rng.choice(["text/html", "application/json"])}
        sent = [
            (
                name,
                value.encode("utf-8", "replace")
                .replace(b"\0", b"")
                .replace(b"\r", b"")
                .replace(b"\n", b""),
            )
            for name, value in headers.items()
        ]
        cookies = "; ".join(
            f"{cookie.name}={cookie.value}" for cookie in visitor.client.cookies.jar
        )
        if rng.random() < 0.1:
            cookies += f"; laurel={rng.choice(['é', 'x' * 500, ''])}"
        sent += [("cookie", cookies.encode("utf-8"))]
        address = f"http://127.0.0.1:8000{filled}?{query[1:]}"
        answer = visitor.client.request(
            method,
            address,
            content=body if method == "POST" else None,
            headers=sent,
            follow_redirects=False,
        )
        if answer.status_code >= 500:
            broken.append((method, address[:200], kind, body[:300], answer.status_code))
        if n % 50 == 0:  # nobody is to be stopped by the limits
            with store.write() as session:
                session.execute(delete(Attempt))
    assert broken == []
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ] == []


def test_no_request_breaks_a_page(store, caplog):
    storm(store, 500, 0, caplog)


@pytest.mark.whole
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_requests_break_no_page(store, caplog, seed):
    storm(store, 5000, seed, caplog)


def test_text_is_cleaned_of_what_no_database_holds():
    assert request_checks.clean_text("a\0b") == "ab"
    assert request_checks.clean_text("\ud800x\udfff é") == "\ufffdx\ufffd é"
    assert request_checks.clean_text("\U0001f600 \ufeffx") == "\U0001f600 \ufeffx"
    bodies = (
        b'{"a\\u0000": 1}',
        b'[["\\ud800"]]',
        b'{"a": {"b": "\\udfff\\ud83d"}}',
        b'{"a": "\\u00e9\\ud83d\\ude00"}',
        b'{"a": 1}',
        b"\\u no json \0",
    )
    assert [request_checks.unclean(body) for body in bodies] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert [
        request_checks.whole_number(text, 7) for text in ("12", "-1", "", "9" * 10, "٣", "x")
    ] == [
        12,
        7,
        7,
        7,
        7,
        7,
    ]


def test_a_pseudonym_of_any_letters_downloads_its_data(store):
    visitor = Visitor(store)
    _, token = accounts.invite_annotator(store, pseudonym="日本-é")
    visitor.get(f"/invite/{token}")
    visitor.send({})
    page = visitor.get("/mine/data.json")
    assert page.status_code == 200
    assert (
        page.headers["content-disposition"]
        == "attachment; filename*=UTF-8''%E6%97%A5%E6%9C%AC-%C3%A9.json"
    )


def test_what_breaks_is_logged_without_anybodys_words(store, caplog, monkeypatch):
    """The message of a database's error quotes what was sent; the log has the place and the
    kind.
    """
    visitor = Visitor(store)

    def breaks(*_, **__):
        raise RuntimeError(" ".join(["my", "secret", "rationale"]))

    monkeypatch.setattr(accounts, "accept_invitation", breaks)
    _, token = accounts.invite_annotator(store)
    visitor.get(f"/invite/{token}")
    page = visitor.send({})
    assert page.status_code == 500 and "something broke" in page.text.lower()
    assert page.headers["x-frame-options"] == "DENY"
    said = caplog.text
    assert "RuntimeError" in said and "annotate.py" in said
    assert "secret rationale" not in said and token not in said
    with pytest.raises(IntegrityError) as error, store.write() as session:
        session.add(Annotator(pseudonym="a secret name", made_at=None))
        session.flush()
    assert "hide_parameters" in str(error.value)
    request_checks.log_broken(
        error.value, "POST"
    )  # PostgreSQL's own words quote the row, whatever is hidden
    assert "IntegrityError" in caplog.text and "a secret name" not in caplog.text


def test_a_flood_of_messages_does_not_fill_the_log():
    limit = RateLimit()
    let = sum(
        limit.filter(
            logging.LogRecord(
                "asyncio", 40, "", 0, "socket.accept() out of system resource", (), None
            )
        )
        for _ in range(10_000)
    )
    assert 1 <= let <= 5
    assert limit.filter(logging.LogRecord("asyncio", 40, "", 0, "another message", (), None))


def serve(path, port, handles):
    """A server as `laurel feedback serve` makes it, with few handles."""
    import uvicorn

    from laurel_feedback.web import connections
    from laurel_feedback.web.app import create_app

    resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
    connections.HEAD_SECONDS = 1.5
    connections.limit_logs()
    app = create_app(Store(path), public_url=f"http://127.0.0.1:{port}")
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        log_level="warning",
        http=connections.LimitedProtocol,
        backlog=connections.BACKLOG,
    )


def loaded(port, seconds=2.0):
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=seconds) as page:
        page.read()
    return time.monotonic() - began


def answers(port, alive):
    """Wait until the server does, as long as its process is alive."""
    for _ in range(600):
        try:
            loaded(port)
            return
        except OSError:
            assert alive()
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_half_requests_stop_nobody(tmp_path):
    """400 sockets that never finish their question, at a server of 256 handles: the page comes, the
    log is small, they are closed.
    """
    port, log = free_port(), tmp_path / "server.log"
    process = begin(serve, str(tmp_path / "f.db"), port, 256, log=log)
    try:
        answers(port, process.is_alive)
        halves = []
        for n in range(400):
            half = socket.create_connection(("127.0.0.1", port), timeout=5)
            half.sendall(
                [
                    b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
                    b"",
                    b"POST /logout HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
                ][n % 3]
            )
            halves.append(half)
        assert max(loaded(port) for _ in range(5)) < 2
        time.sleep(1.7)
        closed = 0
        for half in halves:
            half.settimeout(0.01)
            try:
                closed += half.recv(1) == b""
            except ConnectionError:
                closed += 1
            except TimeoutError:
                pass
        assert closed >= 2 * 400 // 3  # all heads; bodies have longer
        assert max(loaded(port) for _ in range(3)) < 2
        assert log.stat().st_size < 20_000
    finally:
        process.kill()
        process.join()


def test_workers_end_with_their_parent(tmp_path):
    """kill -9 of the parent: nobody stays at the port."""
    port, database = free_port(), str(tmp_path / "f.db")
    words = [
        sys.executable,
        "-m",
        "laurel",
        "feedback",
        "serve",
        "--database",
        database,
        "--port",
        str(port),
        "--workers",
        "2",
    ]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    answers(port, lambda: process.poll() is None)
    process.kill()
    process.wait()
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    raise AssertionError("somebody still listens")
