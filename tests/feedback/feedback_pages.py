"""A browser without scripts for the tests of the pages, and items that hold everything that must
not be shown.
"""

import re
from html.parser import HTMLParser

from sqlalchemy import select
from starlette.testclient import TestClient
from test_feedback_assign import make_batch

from laurel_feedback.store import accounts
from laurel_feedback.store.tables import Guideline, Item, Response, Ruling
from laurel_feedback.web.app import create_app

SECRETS = ("secret-model", "SECRET-SOURCE", "secret-explanation", "other-reason")
"""What no page and no answer of the server may hold before the annotator's own answer."""


class Forms(HTMLParser):
    """The forms of a page: action, method and the values that are filled in; buttons with an action
    of their own count too.
    """

    def __init__(self, html):
        super().__init__()
        self.forms, self.outside, self.area = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form":
            self.forms.append(
                {
                    "action": attrs.get("action", ""),
                    "method": attrs.get("method", "get"),
                    "fields": {},
                    "names": set(),
                }
            )
        if not self.forms:
            return
        form, name = self.forms[-1], attrs.get("name")
        if tag in ("input", "select", "textarea", "button") and name:
            form["names"].add(name)
        if (
            tag == "input"
            and name
            and (attrs.get("type") not in ("radio", "checkbox") or "checked" in attrs)
        ):
            form["fields"][name] = attrs.get("value", "")
        if tag == "textarea":
            self.area = name
            form["fields"][name] = ""

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.area = None

    def handle_data(self, data):
        if self.area:
            self.forms[-1]["fields"][self.area] += data


class Visitor:
    """Someone with a browser: keeps cookies, follows redirects, fills in forms."""

    def __init__(self, store, base_url="http://127.0.0.1:8000", **settings):
        app = create_app(store, public_url=base_url, **settings)
        self.client = TestClient(app, base_url=base_url, raise_server_exceptions=False)
        self.store, self.page, self.seen = store, None, []

    def keep(self, response):
        self.page = response
        self.seen.append(response)
        return response

    def get(self, path, **more):
        return self.keep(self.client.get(path, **more))

    def post(self, path, data=None, **more):
        return self.keep(self.client.post(path, data=data, **more))

    @property
    def csrf(self):
        return re.search(r'name="csrf" value="([^"]+)', self.page.text)[1]

    def form(self, ending=""):
        """The page's first form whose action ends so, apart from the one that logs out."""
        return next(
            f
            for f in Forms(self.page.text).forms
            if f["action"].endswith(ending) and (ending or f["action"] != "/logout")
        )

    def send(self, fields, to="", ending="", **more):
        """Fill in the form and send it, to another action where a button says so."""
        form = self.form(ending)
        action = (
            form["action"]
            if not to
            else re.search(rf'formaction="([^"]+/{to})"', self.page.text)[1]
        )
        return self.post(action, data={**form["fields"], **fields}, **more)

    def come_in(self, votes="keep", **fields):
        """Be invited, come, sign; the pseudonym."""
        pseudonym, token = accounts.invite_annotator(self.store)
        self.get(f"/invite/{token}")
        self.send({})
        self.send({"votes": votes, "agree": "1", **fields}, ending="/consent")
        return pseudonym


def rich_batch(store, kinds=None, responses=2, name="batch", items=6, **settings):
    """An open batch whose items have models, sources and, where they are not normal ones, a right
    answer; guidelines too.
    """
    batch = make_batch(store, items=items, responses=responses, name=name, kinds=kinds, **settings)
    with store.write() as session:
        session.add(Guideline(text="Prefer the *true* answer.", made_at=store.now()))
        for item in session.scalars(select(Item).where(Item.batch_id == batch)):
            item.source = {"file": "SECRET-SOURCE", "row": item.place}
            if item.kind != "normal":
                item.gold, item.explanation = 1, "secret-explanation: the second one is true"
        for response in session.scalars(select(Response).join(Item).where(Item.batch_id == batch)):
            response.model, response.source = (
                f"secret-model-{response.place}",
                {"id": "SECRET-SOURCE"},
            )
            item = session.get(Item, response.item_id)
            response.text = f"answer {'abcdefgh'[response.place]} of {item.place}"
    return batch


def pin(store, item, rating=1, reason="the first one is shorter"):
    """A ruling that annotators may see after their own answer."""
    with store.write() as session:
        session.merge(
            Ruling(item_id=item, rating=rating, reason=reason, pinned=True, made_at=store.now())
        )
