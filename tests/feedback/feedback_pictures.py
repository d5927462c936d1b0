"""`make pictures`: pictures of every page of `laurel feedback` for docs/figures/feedback, taken in
Chromium on the bundled example.
"""

import random
import tempfile
from pathlib import Path

from feedback_server import served
from sqlalchemy import select

from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.tables import Annotator, Batch, Item

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures" / "feedback"
CHROMIUM = "/usr/bin/chromium"


def rate(store, people_count=4):
    """Votes of made-up annotators, who agree more often than not, so that the coordinator's pages
    have something to tell.
    """
    rng = random.Random(0)
    for n in range(people_count):
        cookie = accounts.accept_invitation(
            store, accounts.invite_annotator(store, pseudonym=f"rater-{n + 1}")[1]
        )
        identity = accounts.session_of(store, cookie).annotator
        accounts.consent(store, identity, "keep 1")
        with store.write() as session:
            session.get(Annotator, identity).qualified = True
            batches = [
                (batch.id, batch.settings)
                for batch in session.scalars(select(Batch).where(Batch.state == "open"))
            ]
        for batch, settings in batches:
            queue = TaskQueue(store, identity, batch)
            while (sample := queue.next()) is not None:
                with store.read() as session:
                    first = session.get_one(Item, sample.item_id).gold or 0
                slot = (
                    sample.order.index(first)
                    if rng.random() < 0.8
                    else rng.randrange(len(sample.order))
                )
                ranks = [1 if k == slot else 2 + (k > slot) for k in range(len(sample.order))]
                ranks = [sorted(set(ranks)).index(rank) + 1 for rank in ranks]
                queue.alive(sample.id)
                levels = (
                    [rng.randint(2, 5) for _ in sample.order] if settings["helpfulness"] else None
                )
                answer = Answer(
                    rating=rng.choice((1, 2)) if slot == 0 else rng.choice((3, 4)),
                    ranking=ranks,
                    helpfulness=levels,
                )
                queue.submit(sample.id, answer, f"{n}-{sample.id}")


def come_in(page, address, token):
    """Be invited and sign; the pages on the way."""
    page.goto(f"{address}/invite/{token}")
    yield "invite"
    page.get_by_role("button", name="Come in").click()
    yield "consent"
    page.get_by_label("Keep them").check()
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="I agree").click()


def annotators_pages(store, page, address, token):
    """Every page of someone who rates, one name each."""
    yield from come_in(page, address, token)
    page.goto(f"{address}/check/1")
    yield "check"
    with store.write() as session:
        for annotator in session.scalars(select(Annotator)):
            annotator.qualified = True
    for name, path in (
        ("work", "/work"),
        ("sample", "/work/1"),
        ("ranking", "/work/2"),
        ("mine", "/mine"),
    ):
        page.goto(f"{address}{path}")
        yield name
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(f"{address}/work/1")
    yield "phone"
    page.set_viewport_size({"width": 1000, "height": 700})


def coordinators_pages(page, address, name, password):
    """Every page of a coordinator that has a figure in it."""
    page.context.clear_cookies()
    page.goto(f"{address}/admin/login")
    page.locator("[name=name]").fill(name)
    page.locator("[name=password]").fill(password)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/admin")
    yield "batches"
    for picture, path in (
        ("batch", "1"),
        ("agreement", "1/agreement"),
        ("annotators", "1/annotators"),
    ):
        page.goto(f"{address}/admin/batches/{path}")
        yield picture
    for picture in ("people", "demographics", "audit"):
        page.goto(f"{address}/admin/{picture}")
        yield picture


def main():
    """Take them all."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), "--demo") as (store, address),
        sync_playwright() as playwright,
    ):
        accounts.add_admin(store, "pictures", "for the pictures only")
        _, token = accounts.invite_annotator(store, pseudonym="you")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        for name in annotators_pages(store, page, address, token):
            page.screenshot(path=str(FOLDER / f"{name}.png"), full_page=True)
        rate(store)
        for name in coordinators_pages(page, address, "pictures", "for the pictures only"):
            page.screenshot(path=str(FOLDER / f"{name}.png"), full_page=True)
        browser.close()
    print(f"{FOLDER}: {len(list(FOLDER.glob('*.png')))} pictures")


if __name__ == "__main__":
    main()
