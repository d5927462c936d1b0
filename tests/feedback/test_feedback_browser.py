"""The pages in a real Chromium: by mouse, by keyboard alone, without scripts; a server that dies;
other sites; people who see badly.
"""

import http.client
import http.server
import importlib.util
import os
import re
import shutil
import signal
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from feedback_pages import pin, rich_batch
from feedback_server import free_port
from processes import begin
from sqlalchemy import select

from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Assignment, Draft, Event, Item, Response, Vote

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
SHOTS = os.environ.get("LAUREL_SHOTS")
"""A folder for pictures of every page."""
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="no Chromium (apt install chromium) or no playwright (pip)",
)


def serve(path, port):
    """What the process of a server does. Its clock is as many seconds off as the file beside the
    database says.
    """
    import uvicorn

    from laurel_feedback.web.app import create_app

    off = Path(path).with_suffix(".off")
    store = Store(path, now=lambda: time.time() + (float(off.read_text()) if off.exists() else 0.0))
    uvicorn.run(
        create_app(store, public_url=f"http://127.0.0.1:{port}"),
        host="127.0.0.1",
        port=port,
        log_level="error",
    )


class Server:
    """A uvicorn process on a database; it can be killed and started again at the same address."""

    def __init__(self, path):
        self.port, self.path, self.process = free_port(), path, None
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = begin(serve, self.path, self.port, log=Path(self.path).with_suffix(".log"))
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.url}/", timeout=5).close()
            except OSError:
                assert self.process.is_alive(), "the server did not start"
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the server does not answer")

    def clock(self, seconds):
        """Set the server's clock so far from the right time."""
        Path(self.path).with_suffix(".off").write_text(str(seconds))

    def kill(self):
        self.process.kill()
        self.process.join()


@pytest.fixture
def disk(tmp_path):
    made = Store(str(tmp_path / "pages.db"))
    yield made
    made.close()


@pytest.fixture
def server(disk, tmp_path):
    running = Server(str(tmp_path / "pages.db"))
    yield running
    running.kill()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium):
    made = chromium.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(15_000)
    yield made
    made.close()


@pytest.fixture
def tab(context):
    """A page that fails the test when a script breaks, a policy is hurt, an alert opens or anything
    is asked of another host.
    """
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if "Content Security" in message.text else None,
    )
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith("http://127.0.0.1:") else wrong.append(request.url)
        ),
    )
    yield page
    assert wrong == []


def come_in(page, store, server, **more):
    """Be invited and sign; by mouse."""
    pseudonym, token = accounts.invite_annotator(store)
    page.goto(f"{server.url}/invite/{token}")
    page.get_by_role("button", name="Come in").click()
    page.get_by_label("Keep them").check()
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="I agree").click()
    return pseudonym


def test_the_browser_is_closed_and_opened_again(disk, server, tmp_path):
    """The session is still there; on another device, and after the session's end, the code from the
    first page opens the work.
    """
    from playwright.sync_api import sync_playwright

    rich_batch(disk)
    with sync_playwright() as playwright:

        def opened(folder):
            made = playwright.chromium.launch_persistent_context(
                str(tmp_path / folder), executable_path=CHROMIUM, args=["--no-sandbox"]
            )
            made.set_default_timeout(15_000)
            return made, made.new_page()

        first, page = opened("laptop")
        name = come_in(page, disk, server)
        page.goto(f"{server.url}/mine")
        code = page.locator("code.owncode").inner_text()
        first.close()
        server.clock(3600)
        first, page = opened("laptop")
        page.goto(f"{server.url}/work")
        assert name in page.locator("header").inner_text()
        server.clock(3600 * accounts.SESSION_HOURS + 60)
        page.reload()
        page.get_by_role("link", name="Come back in with your code").click()
        page.get_by_label("Your code").fill(code)
        page.get_by_role("button", name="Come in").click()
        page.wait_for_url("**/work")
        second, phone = opened("phone")
        phone.goto(f"{server.url}/work")
        phone.get_by_role("link", name="Come back in with your code").click()
        phone.get_by_label("Your code").fill(code.lower())
        phone.get_by_role("button", name="Come in").click()
        phone.wait_for_url("**/work")
        for tab in (page, phone):  # both stay in
            tab.reload()
            assert name in tab.locator("header").inner_text()
        if SHOTS:
            page.goto(f"{server.url}/mine")
            page.screenshot(path=f"{SHOTS}/mine-code.png", full_page=True)
            phone.context.clear_cookies()
            phone.goto(f"{server.url}/return")
            phone.screenshot(path=f"{SHOTS}/return.png", full_page=True)
        first.close()
        second.close()


@pytest.mark.whole
def test_thirty_people_at_one_address(chromium, disk, server):
    """Each in a browser of their own, all within a minute."""
    rich_batch(disk, items=40, target_votes=1)
    began = time.monotonic()
    for _ in range(30):
        own = chromium.new_context()
        page = own.new_page()
        come_in(page, disk, server)
        page.wait_for_url("**/work")
        own.close()
    assert (
        time.monotonic() - began < 300
    )  # of the limits' minutes each may have its share; none was refused


def knock(server, address, count):
    """So many wrong passwords for ada from an address of this machine; the statuses."""
    statuses = []
    for n in range(count):
        line = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=15, source_address=(address, 0)
        )
        line.request("GET", "/admin/login")
        page = line.getresponse()
        cookie, text = page.headers["set-cookie"].split(";")[0], page.read().decode()
        csrf = re.search(r'name="csrf" value="([^"]+)', text)[1]
        body = urllib.parse.urlencode(
            {"csrf": csrf, "name": "ada", "password": f"a wrong guess {n}"}
        )
        line.request(
            "POST",
            "/admin/login",
            body,
            {"content-type": "application/x-www-form-urlencoded", "cookie": cookie},
        )
        statuses.append(line.getresponse().status)
        line.close()
    return statuses


def test_a_coordinator_comes_in_while_others_guess(disk, server, tab):
    """Wrong passwords from four addresses, the coordinator's own among them: a browser that was in
    before comes in.
    """
    accounts.add_admin(disk, "ada", "a long password")

    def log_in():
        tab.goto(f"{server.url}/admin/login")
        tab.get_by_label("Name").fill("ada")
        tab.get_by_label("Password").fill("a long password")
        tab.get_by_role("button", name="Log in").click()
        tab.wait_for_url("**/admin")

    log_in()
    tab.get_by_role("button", name="Log out").click()
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"):
        assert knock(server, address, 11) == [403] * 10 + [429]
    log_in()


def test_work_goes_on_when_the_clock_is_set_back_a_day(disk, server, tab, chromium):
    """The answer is taken, and a sample that somebody has left is free after the usual quarter of
    an hour, not after a day.
    """
    rich_batch(disk, items=2, target_votes=1, lease_minutes=15)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    server.clock(-86400)
    tab.get_by_label("Response 1 is better").check()
    tab.get_by_role("button", name="Submit and go on").click()
    tab.wait_for_url("**/work/1/2")
    server.clock(-2 * 86400)
    own = chromium.new_context()
    other = own.new_page()
    come_in(other, disk, server)
    other.goto(f"{server.url}/work/1")
    assert "/finished" in other.url  # the first one is still at work on it
    server.clock(-2 * 86400 + 16 * 60)
    other.goto(f"{server.url}/work/1")
    other.wait_for_url("**/work/1/1")
    own.close()


def votes(store):
    with store.read() as session:
        return [vote.rating for vote in session.scalars(select(Vote).order_by(Vote.id))]


def wait_for(true, seconds=15.0):
    """Wait until something holds that no page tells."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def best(page):
    """The slot, from 0, of response b, which the check wants."""
    texts = page.locator(".answer").all_inner_texts()
    return next(slot for slot, text in enumerate(texts) if "answer b" in text)


def test_the_walk_by_mouse(disk, server, tab):
    rich_batch(
        disk,
        items=7,
        hit_size=6,
        kinds={0: "check"},
        needs_check=True,
        pay_per_item=0.5,
        rationale="optional",
    )
    come_in(tab, disk, server)
    tab.get_by_role("link", name="To the questions").click()
    tab.get_by_label(f"Response {best(tab) + 1}").check()
    tab.get_by_role("button", name="Send my answers").click()
    tab.get_by_role("heading", name="Sample 1 of 6").wait_for()
    tab.get_by_role("button", name="Skip forward").click()
    tab.get_by_role("heading", name="Sample 2 of 6").wait_for()
    tab.get_by_role("link", name="Go to next un-marked sample").click()
    for n in range(3, 7):
        tab.get_by_role("heading", name=f"Sample {n} of 6").wait_for()
        tab.get_by_label("Response 2 is better").check()
        tab.get_by_label("Why?").fill("it is true")
        tab.get_by_role("button", name="Submit and go on").click()
    for n in (1, 2):
        tab.get_by_role("heading", name=f"Sample {n} of 6").wait_for()
        tab.get_by_label("Response 1 is only slightly better").check()
        tab.get_by_role("button", name="Submit and go on").click()
    tab.get_by_role("heading", name="all samples are marked").wait_for()
    assert "6/6" in tab.inner_text("main")
    assert len(votes(disk)) == 6


def tab_to(page, selector):
    """Press Tab until the focus is there."""
    for _ in range(120):
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached by Tab")


def test_the_walk_by_keyboard_alone(disk, server, tab):
    rich_batch(
        disk,
        items=7,
        hit_size=6,
        kinds={0: "check"},
        needs_check=True,
        allow_tie=True,
        rationale="optional",
    )
    _, token = accounts.invite_annotator(disk)
    tab.goto(f"{server.url}/invite/{token}")
    press = tab.keyboard.press
    tab_to(tab, "main button")
    press("Enter")
    tab.wait_for_url("**/consent")
    tab_to(tab, "input[name=votes][value=keep]")
    press("Space")
    tab_to(tab, "input[name=agree]")
    press("Space")
    tab_to(tab, "main button")
    press("Enter")
    tab.wait_for_url("**/work")
    tab_to(tab, "main .button")
    press("Enter")
    tab.wait_for_url("**/check/1")
    tab_to(tab, "input[name=q0]")
    press("Space")
    if best(tab) == 1:
        press("ArrowDown")
    tab_to(tab, "main form button")
    press("Enter")
    tab.wait_for_url("**/work/1/1")
    press("?")
    assert tab.locator("dialog#help").is_visible()
    press("Escape")
    press("s")
    tab.wait_for_url("**/work/1/2")
    press("n")
    for n, key in zip((3, 4, 5, 6, 1, 2), "123401", strict=True):
        tab.wait_for_url(f"**/work/1/{n}")
        press(key)
        assert tab.locator(f"input[name=rating][value='{key}']").is_checked()
        if n == 4:
            tab_to(tab, "textarea")
            tab.keyboard.type("1 s n d ? are letters here")
            press("Control+Enter")
        elif n == 5:
            tab_to(tab, "#submit")
            press("Enter")
        else:
            press("Control+Enter")
    tab.wait_for_url("**/finished")
    assert len(votes(disk)) == 6
    with disk.read() as session:
        assert "1 s n d ? are letters here" in {
            vote.rationale for vote in session.scalars(select(Vote))
        }


@pytest.mark.parametrize("by", ["keys", "tab"])
def test_ranking_by_keyboard_with_ties(disk, server, tab, by):
    rich_batch(disk, items=1, responses=4, form="ranking", helpfulness=True)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    for slot in range(4):
        tab_to(tab, f"input[name=helpfulness_{slot}]")
        tab.keyboard.press("Space")
    if by == "keys":
        tab_to(tab, "input[name=rank_0]")
        for key in "2132":
            tab.keyboard.press(key)
    else:
        for slot, rank in enumerate([2, 1, 3, 2]):
            tab_to(tab, f"input[name=rank_{slot}]")
            tab.keyboard.press("Space")
            for _ in range(rank - 1):
                tab.keyboard.press("ArrowRight")
    shown = [
        tab.locator(f"input[name=rank_{slot}]:checked").get_attribute("value") for slot in range(4)
    ]
    assert shown == ["2", "1", "3", "2"]
    tab_to(tab, "#submit")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/finished")
    with disk.read() as session:
        vote = session.scalar(select(Vote))
        assert [vote.ranking[place] for place in vote.assignment.order] == [2, 1, 3, 2]
    tab.goto(f"{server.url}/work/1/1")  # and it comes back as it was given
    assert [
        tab.locator(f"input[name=rank_{slot}]:checked").get_attribute("value") for slot in range(4)
    ] == shown


def test_the_walk_without_scripts(disk, server, chromium):
    rich_batch(disk, items=3, hit_size=3, rationale="required")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    come_in(page, disk, server)
    page.get_by_role("link", name="Begin").click()
    page.get_by_label("Why?").fill("half")
    page.get_by_role("button", name="Save draft").click()
    assert page.get_by_label("Why?").input_value() == "half"
    page.get_by_role("button", name="Skip forward").click()
    for _ in range(3):
        page.get_by_label("Response 1 is better").check()
        page.get_by_label("Why?").fill("because")
        page.get_by_role("button", name="Submit and go on").click()
    assert page.url.endswith("/finished")
    assert len(votes(disk)) == 3
    context.close()


@pytest.mark.parametrize(
    "when",
    ["dead before the click", "dies with the request in hand", "dies after the commit", "offline"],
)
def test_an_answer_survives_a_server_or_a_net_that_dies(disk, server, tab, context, when):
    rich_batch(disk, items=2, hit_size=2, rationale="optional")
    come_in(tab, disk, server)
    tab.clock.install()
    tab.goto(f"{server.url}/work/1")
    tab.get_by_label("Response 1 is better").check()
    if when == "dead before the click":
        server.kill()
    elif when == "dies with the request in hand":
        os.kill(server.process.pid, signal.SIGSTOP)
    elif when == "dies after the commit":
        lost = []

        def lose(route):
            if not lost:
                lost.append(route.fetch().status)
                server.kill()
            route.abort()

        tab.route("**/answer", lose)
    else:
        context.set_offline(True)
    tab.get_by_role("button", name="Submit and go on").click()
    if when == "dies with the request in hand":
        time.sleep(0.5)
        server.kill()
    tab.get_by_text("Your answer is safe in this browser").wait_for()
    assert len(votes(disk)) == (1 if when == "dies after the commit" else 0)
    assert tab.evaluate(
        "Object.keys(localStorage).some(name => name.startsWith('laurel-outbox-annotator'))"
    )
    if when == "dies after the commit":
        assert lost == [200]
        tab.unroute("**/answer")
    if when == "offline":
        context.set_offline(False)
    else:
        server.start()
        tab.clock.fast_forward(30_000)  # the longest that the page waits before it tries again
    tab.wait_for_url("**/work/1/2", timeout=40_000)
    assert len(votes(disk)) == 1
    assert not tab.evaluate("Object.keys(localStorage).length")
    tab.get_by_label("Response 2 is better").check()
    tab.get_by_role("button", name="Submit and go on").click()
    tab.wait_for_url("**/finished")
    assert len(votes(disk)) == 2


def test_a_browser_that_is_closed_sends_what_it_kept_when_it_comes_back(disk, server, tab, context):
    rich_batch(disk, items=2)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    tab.get_by_label("Response 1 is better").check()
    server.kill()
    tab.get_by_role("button", name="Submit and go on").click()
    tab.get_by_text("Your answer is safe in this browser").wait_for()
    tab.close()
    server.start()
    again = context.new_page()
    again.goto(f"{server.url}/mine")
    wait_for(lambda: len(votes(disk)) == 1)
    wait_for(lambda: not again.evaluate("Object.keys(localStorage).length"))


def test_a_double_click_and_the_back_button(disk, server, tab):
    rich_batch(disk, items=3)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    tab.get_by_label("Response 1 is better").check()
    tab.get_by_role("button", name="Submit and go on").dblclick()
    tab.wait_for_url("**/work/1/2")
    assert len(votes(disk)) == 1
    tab.go_back()
    tab.get_by_text("You have marked this sample").wait_for()
    assert tab.get_by_label("Response 1 is better").is_checked()
    tab.get_by_label("Response 2 is better").check()
    tab.get_by_role("button", name="Change my answer").click()
    tab.wait_for_url("**/work/1/2")
    with disk.read() as session:
        assert [vote.revision for vote in session.scalars(select(Vote).order_by(Vote.id))] == [1, 2]


def test_two_tabs_at_two_processes_share_one_list(disk, server, tab, context, tmp_path):
    rich_batch(disk, items=4, hit_size=4)
    other = Server(str(tmp_path / "pages.db"))
    try:
        come_in(tab, disk, server)
        second = context.new_page()
        tab.goto(f"{server.url}/work/1")
        second.goto(
            f"{other.url}/work/1"
        )  # cookies know no ports: the same session at the other process
        assert second.url.endswith("/work/1/1")
        tab.get_by_label("Response 1 is better").check()
        tab.get_by_role("button", name="Submit and go on").click()
        tab.wait_for_url("**/work/1/2")
        second.get_by_label("Response 2 is better").check()
        second.get_by_role("button", name="Submit and go on").click()
        second.get_by_text(
            "was answered meanwhile"
        ).wait_for()  # it does not overwrite the first in silence
        second.goto(f"{other.url}/work/1/1")
        second.get_by_text("You have marked this sample").wait_for()
        second.get_by_label("Response 1 is better").check()
        second.get_by_role("button", name="Change my answer").click()
        second.wait_for_url("**/work/1/2")
        with disk.read() as session:
            rows = session.scalars(select(Vote).order_by(Vote.id)).all()
            assert (
                len({row.assignment_id for row in rows}) == 1
            )  # both spoke of sample 1: two revisions of one answer
            held = session.scalars(select(Assignment.state).order_by(Assignment.seq)).all()
            assert held == ["submitted", "leased"]
    finally:
        other.kill()


def test_drafts_signs_of_life_and_pasting(disk, server, tab):
    rich_batch(disk, items=2, rationale="optional")
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    area = tab.get_by_label("Why?")
    area.fill("12345")
    paste = "t => { const d = new DataTransfer(); d.setData('text', t); document.getElementById('rationale').dispatchEvent(new ClipboardEvent('paste', {clipboardData: d, bubbles: true})); }"
    tab.evaluate(paste, "out of nowhere")
    area.fill("1234567890 out of nowhere")

    def drafted():
        with disk.read() as session:
            draft = session.scalar(select(Draft))
            return draft is not None and draft.form.get("rationale") == "1234567890 out of nowhere"

    wait_for(drafted)
    tab.reload()
    assert tab.get_by_label("Why?").input_value() == "1234567890 out of nowhere"
    with disk.read() as session:
        events = [(event.kind, event.size) for event in session.scalars(select(Event))]
        assert ("paste", len("out of nowhere")) in events
        assert ("focus", 0) in events
    tab.get_by_label("Response 1 is better").check()
    tab.get_by_role("button", name="Submit and go on").click()
    tab.wait_for_url("**/work/1/2")
    with disk.read() as session:
        assert session.scalar(select(Vote)).pasted == pytest.approx(14 / 25, abs=1e-3)


def test_a_long_pause_asks_whether_one_is_there(disk, server, tab):
    rich_batch(disk, items=1)
    come_in(tab, disk, server)
    tab.clock.install()
    tab.goto(f"{server.url}/work/1")
    assert not tab.locator("dialog#idle").is_visible()
    tab.clock.run_for(400_000)
    tab.get_by_role("heading", name="Are you still working?").wait_for()
    tab.get_by_role("button", name="I am here").click()
    assert not tab.locator("dialog#idle").is_visible()


def test_logging_out_wipes_what_the_browser_keeps(disk, server, tab):
    rich_batch(disk, items=2)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    tab.keyboard.press("?")
    tab.get_by_label("Single keys are on").uncheck()
    tab.keyboard.press("Escape")
    tab.keyboard.press("1")
    assert tab.locator("input[name=rating]:checked").count() == 0  # single keys are off
    assert tab.evaluate("localStorage.length") == 1
    tab.get_by_role("button", name="Log out").click()
    tab.wait_for_url(f"{server.url}/")
    assert tab.evaluate("localStorage.length") == 0
    assert tab.goto(f"{server.url}/work").status == 403


def test_another_site_cannot_send_a_form(disk, server, tab, context):
    """Another port of the same host gets the cookie along, as other sites' top-level GETs do; the
    form is refused all the same.
    """
    rich_batch(disk, items=2)
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    action = tab.locator("#form").get_attribute("action")
    csrf, key = (
        tab.locator("#form input[name=csrf]").input_value(),
        tab.locator("#form input[name=key]").input_value(),
    )
    fields = "".join(
        f"<input name={k} value='{v}'>" for k, v in {"csrf": csrf, "key": key, "rating": 1}.items()
    )
    evil = f"<form method=post action='{server.url}{action}'>{fields}<button>Win</button></form>".encode()

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(evil)

        def log_message(self, *_):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        for host in ("127.0.0.1", "localhost"):
            tab.goto(f"http://127.0.0.1:{site.server_port}/")
            with tab.expect_navigation() as moved:
                tab.get_by_role("button", name="Win").click()
            assert moved.value.status == 403, host
            assert votes(disk) == []
    finally:
        site.shutdown()
    tab.goto(f"{server.url}/work/1")
    tab.get_by_label("Response 1 is better").check()
    tab.get_by_role("button", name="Submit and go on").click()
    tab.wait_for_url("**/work/1/2")  # our own form, under no-referrer, is taken
    assert len(votes(disk)) == 1


NASTY = (
    "<script>alert(1)</script><img src=https://evil.example/x"
    " onerror=alert(2)><svg/onload=alert(3)> ![p](https://evil.example/p.png)"
)


@pytest.mark.parametrize("markdown", [False, True])
def test_hostile_answers_run_nothing_and_load_nothing(disk, server, tab, markdown):
    rich_batch(disk, items=2, markdown=markdown, rationale="optional")
    with disk.write() as session:
        for row in session.scalars(select(Response)):
            row.text = row.model = NASTY
        for row in session.scalars(select(Item)):
            row.prompt, row.input = [{"role": "user", "content": NASTY}], NASTY
    come_in(tab, disk, server)
    tab.goto(f"{server.url}/work/1")
    assert tab.locator(".answer").first.inner_text().count("alert(1)") == 1
    tab.get_by_label("Response 1 is better").check()
    tab.get_by_label("Why?").fill(NASTY)
    tab.get_by_role("button", name="Submit and go on").click()
    tab.wait_for_url("**/work/1/2")
    for path in ("/work/1/1", "/mine"):
        tab.goto(f"{server.url}{path}")
        tab.wait_for_load_state("networkidle")


def axe_script():
    """axe-core as a package of PyPI brings it: nothing is fetched from elsewhere."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core is not installed (pip install axe-playwright-python)")
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


LONG = "Water boils at a lower temperature on a mountain, because the air presses less on it. " * 6
CODE = (
    "Use a loop:\n\n```\nfor i in range(3):\n    print(i)\n```\n\n1. first\n2. second\n\n| a | b"
    " |\n|---|---|\n| 1 | 2 |\n\nSee [here](https://a.b)."
)


def every_page(store, server, page):
    """Walk over every page of the annotators, one name each."""
    rich_batch(
        store,
        items=9,
        hit_size=6,
        kinds={0: "check", 1: "training"},
        needs_check=True,
        pay_per_item=0.45,
        helpfulness=True,
        presentation=True,
        rationale="optional",
        markdown=True,
        allow_tie=True,
        harm={2: ["violence"], 3: ["violence"]},
    )
    rich_batch(store, items=2, responses=4, name="ranks", form="ranking")
    with store.write() as session:
        for row in session.scalars(select(Response)):
            row.text = f"answer {'abcd'[row.place]} of it. {LONG if row.place else CODE}"
        for row in session.scalars(select(Item)):
            row.input = "The mountain is 4,000 m high."
    for n in range(9):
        pin(store, f"batch-{n}", reason="The second is true; the first only sounds so.")
    _, token = accounts.invite_annotator(store)
    for name, path in (
        ("start", "/"),
        ("login", "/admin/login"),
        ("error", "/nosuch"),
        ("invite", f"/invite/{token}"),
    ):
        page.goto(f"{server.url}{path}")
        yield name
    page.get_by_role("button", name="Come in").click()
    yield "consent"
    page.get_by_label("Keep them").check()
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="I agree").click()
    yield "work"
    page.goto(f"{server.url}/check/1")
    yield "check"
    page.get_by_label(f"Response {best(page) + 1}").check()
    page.get_by_role("button", name="Send my answers").click()
    page.wait_for_url("**/work/1/1")
    yield "sample"
    page.keyboard.press("?")
    yield "help"
    page.keyboard.press("Escape")
    for field in page.locator("fieldset").all():
        if field.locator("input[type=radio]").count():
            field.locator("input[type=radio]").first.check()
    page.locator("#submit").click()
    page.get_by_role("heading", name="Your answer was").wait_for()
    assert page.url.endswith("#told")
    yield "told"
    page.goto(f"{server.url}/work/1/1")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield "told-open"
    page.goto(f"{server.url}/work/1?after=1")
    for _ in range(8):
        if page.locator("#veil").count():
            yield "veiled"
            page.keyboard.press("v")
            yield "unveiled"
            break
        page.goto(f"{server.url}/work/1?after={page.url.rsplit('/', 1)[1]}")
    page.evaluate("document.querySelector('#form').noValidate = true")
    page.locator("#submit").click()
    page.get_by_text("What you filled in is kept").wait_for()
    yield "refused"
    page.goto(f"{server.url}/work/2")
    yield "ranking"
    for name, path in (
        ("finished", "/work/1/finished"),
        ("mine", "/mine"),
        ("guidelines", "/guidelines"),
        ("withdraw", "/mine/withdraw"),
    ):
        page.goto(f"{server.url}{path}")
        yield name
    page.get_by_label("Yes, I am sure").check()
    page.get_by_role("button", name="Leave").click()
    yield "left"


def coordinators_pages(store, server, page):
    """Every page of the coordinators, on a batch with some answers."""
    batch = rich_batch(
        store, items=6, harm={1: ["violence"]}, pay_per_item=0.5, rationale="optional"
    )
    accounts.add_admin(store, "ada", "a long password")
    for number in range(3):
        name, token = accounts.invite_annotator(store, f"person {number}")
        me = accounts.session_of(store, accounts.accept_invitation(store, token)).annotator
        accounts.consent(store, me, "keep 1")
        queue = TaskQueue(store, me, batch)
        while (sample := queue.next()) is not None:
            queue.submit(
                sample.id,
                Answer(rating=1 + (number + sample.seq) % 4, rationale="because"),
                f"key-{number}-{sample.seq}",
            )
    page.goto(f"{server.url}/admin/login")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("a long password")
    page.get_by_role("button", name="Log in").click()
    one = f"/admin/batches/{batch}"
    of_batch = (
        "",
        "/settings",
        "/words",
        "/agreement",
        "/annotators",
        f"/annotators/{name}",
        "/items",
        "/items/batch-1",
    )
    others = (
        "/batches/new",
        "/people",
        "/disputes",
        "/guidelines",
        "/keys",
        "/demographics",
        "/activity",
        "/audit",
    )
    for path in ("/admin", *(one + end for end in of_batch), *(f"/admin{end}" for end in others)):
        assert page.goto(f"{server.url}{path}").status == 200, path
        yield path.replace(name, "somebody").replace("/", "-")[1:]


LOOK = """axe.run(document, {resultTypes: ['violations']}).then(found => ({
  passed: found.passes.length, wide: document.documentElement.scrollWidth,
  wrong: found.violations.filter(rule => ['serious', 'critical'].includes(rule.impact)).flatMap(rule => rule.nodes.map(
    node => `${rule.id} ${node.html.slice(0, 120)} ${node.failureSummary.slice(0, 160)}`)),
}))"""
"""Axe-core's word on the page as it stands; what nobody asks about stays in the browser."""


WINDOWS = ((1200, "light"), (320, "dark"), (320, "light"), (1200, "dark"))


@pytest.mark.parametrize("walk", [every_page, coordinators_pages])
@pytest.mark.parametrize("each", [1, pytest.param(4, marks=pytest.mark.whole)])
def test_every_page_can_be_read_by_everyone(disk, server, chromium, walk, each):
    """No serious or critical finding of axe-core, contrast included, and nothing wider than the
    window. Walked in the narrow dark one.

    each: in how many windows a page is looked at: in one of the first two, one page after the
    other, or in all four.
    """
    axe = axe_script()
    context = chromium.new_context(viewport={"width": 320, "height": 800}, color_scheme="dark")
    page, found, names = context.new_page(), [], []
    for name in walk(disk, server, page):
        names.append(name)
        # on a busy machine a click returns before the page's style sheet is there
        page.wait_for_load_state("load")
        if not page.evaluate("'axe' in window"):
            page.evaluate(axe)
        for width, colours in WINDOWS if each == len(WINDOWS) else [WINDOWS[len(names) % 2]]:
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=colours)
            seen, where = page.evaluate(LOOK), f"{name} {width} {colours}"
            assert seen["passed"] > 3, where  # axe did look
            found += [f"{where}: {wrong}" for wrong in seen["wrong"]]
            if seen["wide"] > width:
                found.append(f"{where}: {seen['wide']} px wide")
            if SHOTS:
                Path(SHOTS).mkdir(exist_ok=True)
                page.screenshot(path=f"{SHOTS}/{name}-{width}-{colours}.png", full_page=True)
    context.close()
    assert found == []
    assert len(names) >= 17


def test_axe_sees_what_is_wrong(disk, server, tab):
    tab.goto(f"{server.url}/")
    tab.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<button></button><img"
        " src=/static/icon.svg>')"
    )
    tab.evaluate(axe_script())
    result = tab.evaluate("axe.run(document)")
    assert {"button-name", "image-alt"} <= {rule["id"] for rule in result["violations"]}
