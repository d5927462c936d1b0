"""The annotators' pages without scripts: from the invitation to the last sample, what is kept, what
is told, and leaving.
"""

import json
import re

import pytest
from feedback_pages import SECRETS, Visitor, pin, rich_batch
from sqlalchemy import select
from test_feedback_assign import counts_hold

from laurel.core.errors import UsageError
from laurel_feedback.exchange import product
from laurel_feedback.statistics.batches import costs
from laurel_feedback.statistics.sections import cost_section
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import DISTRESSING, Answer, TaskQueue
from laurel_feedback.store.batch_settings import RATINGS
from laurel_feedback.store.tables import (
    Annotator,
    Assignment,
    Batch,
    Demographic,
    Dispute,
    Draft,
    Event,
    Item,
    Response,
    Vote,
)
from laurel_feedback.web.app import create_app
from laurel_feedback.web.text import escape_plain, name_odd_characters, render_markdown, render_text


def best_of(text):
    """The slot, from 1, that shows response b, which is the right one of all items that are not
    normal.
    """
    return next(
        n for n, found in enumerate(re.findall(r"answer ([a-h]) of", text), 1) if found == "b"
    )


def answer_check(visitor, right=True):
    """Answer the check's questions."""
    parts = visitor.page.text.split("Question ")[1:]
    slots = [best_of(part) - 1 if right else 2 - best_of(part) for part in parts]
    return visitor.send(
        {f"q{n}": slot for n, slot in enumerate(slots)}, ending=visitor.page.url.path
    )


def count_votes(store):
    with store.read() as session:
        return len(session.scalars(select(Vote)).all())


def test_the_walk_from_the_invitation_to_the_end(store):
    batch = rich_batch(
        store,
        items=8,
        hit_size=6,
        kinds={0: "check", 1: "check"},
        needs_check=True,
        pay_per_item=0.5,
    )
    visitor = Visitor(store)
    pseudonym = visitor.come_in()
    page = visitor.get("/work").text
    assert pseudonym in page
    assert "0/6" in page
    assert "3.00 USD" in page
    assert visitor.get(f"/work/{batch}").url.path == f"/check/{batch}"
    assert answer_check(visitor).url.path == f"/work/{batch}/1"
    page = visitor.page.text
    assert "Your annotation progress for this HIT: <b>0/6</b> completed" in page
    assert "Sample 1 of 6" in page
    assert "0/18 votes" in page
    for words in RATINGS.values():
        assert words.replace("'", "&#39;") in page
    assert visitor.send({}, to="skip").url.path == f"/work/{batch}/2"
    for n in range(2, 7):
        assert visitor.page.url.path == f"/work/{batch}/{n}"
        visitor.send({"rating": 1}, ending="/answer")
    assert visitor.page.url.path == f"/work/{batch}/1"  # the one that was skipped
    assert "5/6" in visitor.page.text
    visitor.send({"rating": 4}, ending="/answer")
    assert visitor.page.url.path == f"/work/{batch}/finished"
    assert "all samples are marked" in visitor.page.text
    assert "3.00 USD" in visitor.page.text
    assert count_votes(store) == 6
    assert counts_hold(store)
    assert [r.status_code for r in visitor.seen] == [200] * len(visitor.seen)


def test_ratings_are_kept_by_response(store):
    rich_batch(store, items=6)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    for _ in range(6):
        visitor.send(
            {"rating": 1 if best_of(visitor.page.text.split("<form", 1)[1]) == 1 else 4},
            ending="/answer",
        )
    with store.read() as session:
        assert [vote.rating for vote in session.scalars(select(Vote))] == [4] * 6


def test_a_ranking_goes_round_with_ties(store):
    rich_batch(
        store,
        items=2,
        responses=4,
        form="ranking",
        helpfulness=True,
        presentation=True,
        rationale="required",
    )
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    ranks = {"rank_0": 2, "rank_1": 1, "rank_2": 3, "rank_3": 2}
    scales = {
        f"{name}_{slot}": slot % 3 + 1
        for name in ("helpfulness", "presentation")
        for slot in range(4)
    }
    page = visitor.send({**ranks, "rationale": "because"}, ending="/answer")
    assert page.status_code == 422
    assert 'href="#helpfulness_0"' in page.text
    fields = visitor.form("/answer")["fields"]
    assert {name: int(fields[name]) for name in ranks} == ranks  # what was filled in is kept
    visitor.send(scales, ending="/answer")
    assert visitor.page.url.path == "/work/1/2"
    fields = (visitor.get("/work/1/1"), visitor.form("/answer"))[1]["fields"]
    assert {name: int(fields[name]) for name in {**ranks, **scales}} == {**ranks, **scales}
    assert fields["rationale"] == "because"
    with store.read() as session:
        vote = session.scalar(select(Vote))
        order = vote.assignment.order
        assert [vote.ranking[place] for place in order] == [2, 1, 3, 2]
        assert [vote.scales["helpfulness"][place] for place in order] == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("fields", "to"),
    [
        ({}, "rating"),
        ({"rating": "9"}, "rating"),
        ({"rating": "1"}, "rationale"),
        ({"rating": "x" * 99}, "rating"),
    ],
)
def test_what_is_missing_is_said_and_the_draft_kept(store, fields, to):
    rich_batch(store, rationale="required")
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    page = visitor.send(fields, ending="/answer")
    assert page.status_code == 422
    assert f'href="#{to}"' in page.text
    assert 'class="missing"' in page.text
    assert count_votes(store) == 0


def test_a_draft_is_saved_by_a_button_and_comes_back(store):
    rich_batch(store, rationale="optional")
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    visitor.send({"rating": 3, "rationale": "half a\r\nsentence"}, to="draft")
    assert "Your draft is saved" in visitor.page.text
    assert visitor.form("/answer")["fields"]["rating"] == "3"
    visitor.send({"rationale": "and more", "reason": "the instruction is unclear"}, to="skip")
    assert visitor.page.url.path == "/work/1/2"
    visitor.get("/work/1/1")
    assert visitor.form("/answer")["fields"]["rationale"] == "and more"
    visitor.send({}, ending="/answer")
    with store.read() as session:
        assert session.scalars(select(Draft)).all() == []
        assert session.scalar(select(Vote)).rationale == "and more"


def test_an_answer_can_be_changed_and_every_one_is_kept(store):
    rich_batch(store)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    visitor.send({"rating": 1}, ending="/answer")
    page = visitor.get("/work/1/1")
    assert "You have marked this sample" in page.text
    visitor.send({"rating": 3}, ending="/answer")
    with store.read() as session:
        assert [v.revision for v in session.scalars(select(Vote).order_by(Vote.revision))] == [1, 2]
    assert "Response 2 is only slightly better" in visitor.get("/mine").text
    with store.write() as session:
        session.get(Batch, 1).state = "closed"
    assert visitor.get("/work/1/1").status_code == 403


def test_a_check_has_two_attempts_and_ends_politely(store):
    batch = rich_batch(store, items=4, kinds={0: "check"}, needs_check=True)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get(f"/check/{batch}")
    assert "two attempts" in visitor.page.text
    assert (
        visitor.send({}, ending=f"/check/{batch}").status_code == 422
    )  # nothing chosen is no attempt
    page = answer_check(visitor, right=False)
    assert "0 of 1 were right" in page.text
    assert "one more attempt" in page.text
    stale = visitor.form(f"/check/{batch}")["fields"]
    assert (
        visitor.post(f"/check/{batch}", {**stale, "attempt": "0", "q0": "0"}).url.path
        == f"/check/{batch}"
    )  # sent twice: not counted
    page = answer_check(visitor, right=False)
    assert page.url.path == "/work"
    assert "Thank you for your time" in page.text
    assert visitor.get("/work/1").status_code in (200, 403)
    assert "Sample 1" not in visitor.page.text
    with store.read() as session:
        assert session.scalar(select(Annotator)).state == "failed"


def test_the_right_answer_is_told_after_the_answer_and_can_be_disputed(store):
    rich_batch(store, items=3, kinds={0: "training"}, hit_size=3)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    assert "secret-explanation" not in visitor.page.text
    wrong = 4 if best_of(visitor.page.text) == 1 else 1
    page = visitor.send({"rating": wrong}, ending="/answer")
    assert page.url.path == "/work/1/1"
    assert "not the expected one" in page.text
    assert "secret-explanation" in page.text
    late = visitor.post(
        page.url.path.replace("/1/1", "/1/samples/")
        + re.search(r"samples/([\w-]+)/", page.text)[1]
        + "/answer",
        {"csrf": visitor.csrf, "key": "another-key", "rating": 5 - wrong},
    )
    assert late.status_code == 409
    assert "stays as it is" in late.text
    visitor.get("/work/1/1")
    visitor.send({"text": "Both are wrong <b>"}, ending="/dispute")
    assert "Both are wrong &lt;b&gt;" in visitor.page.text
    with store.read() as session:
        assert session.scalar(select(Dispute)).state == "open"
        assert session.scalars(select(Vote)).all()[0].revision == 1
    assert "0 of 1" in visitor.get("/mine").text
    visitor.get("/work/1?after=1")
    assert visitor.page.url.path == "/work/1/2"


def test_decided_cases_are_shown_after_the_own_answer_only(store):
    rich_batch(store, items=2, hit_size=2)
    for n in range(2):
        pin(store, f"batch-{n}", reason="it is shorter and true")
    visitor = Visitor(store)
    visitor.come_in()
    assert "shorter and true" not in visitor.get("/work/1").text + visitor.get("/guidelines").text
    visitor.get("/work/1")
    page = visitor.send({"rating": 1}, ending="/answer")
    assert page.url.path == "/work/1/1"
    assert "shorter and true" in page.text
    assert "Sample 1 of batch 1" in visitor.get("/guidelines").text
    assert "Sample 2" not in visitor.page.text


def test_harm_is_named_folded_skipped_with_pay_and_opted_out(store):
    rich_batch(
        store,
        items=4,
        hit_size=4,
        harm={0: ["violence"], 1: ["violence"], 2: ["self_harm"]},
        pay_per_item=1.0,
    )
    visitor = Visitor(store)
    _, token = accounts.invite_annotator(store)
    visitor.get(f"/invite/{token}")
    page = visitor.send({})
    assert re.search(r'value="violence".*\n.*\(2 samples\)', page.text)
    assert "self harm" in page.text
    visitor.send(
        {"votes": "keep", "agree": "1", "opt_out": "self_harm", "asked": ["self_harm", "violence"]},
        ending="/consent",
    )
    seen = []
    while "finished" not in visitor.get("/work/1").url.path:
        if 'id="veil"' in visitor.page.text:
            assert (
                visitor.page.text.count(
                    '<details class="veil" id="veil"><summary>This sample holds: violence'
                )
                == 1
            )
            visitor.send({"distress": "1"}, to="skip")
            seen.append("skipped")
        else:
            visitor.send({"rating": 1}, ending="/answer")
            seen.append("rated")
    assert sorted(seen) == ["rated", "skipped", "skipped"]  # self_harm never came
    page = visitor.get("/mine").text
    assert "too distressing" in page
    assert "3.00 USD" in page
    with store.read() as session:
        assert session.scalar(select(Annotator)).opted_out == ["self_harm"]


def test_demographics_are_optional_and_apart(store, clock):
    visitor = Visitor(store)
    visitor.come_in(about_age="25-34", about_gender="", about_region="Mars")
    with store.read() as session:
        (row,) = session.scalars(select(Demographic)).all()
        assert (row.question, row.answer) == ("age", "25-34")
        assert row.keep_until == clock.time + 365 * 86400
    page = visitor.get("/consent").text
    assert page.count('<option value="">prefer not to say</option>') == 5
    visitor.send({"votes": "delete", "agree": "1"}, ending="/consent")  # taken back
    with store.read() as session:
        assert session.scalars(select(Demographic)).all() == []
        assert session.scalar(select(Annotator)).consent == "delete 1"


def test_consent_comes_first_and_needs_a_choice(store):
    rich_batch(store)
    visitor = Visitor(store)
    _, token = accounts.invite_annotator(store)
    visitor.get(f"/invite/{token}")
    visitor.send({})
    assert visitor.get("/work/1").url.path == "/consent"
    for fields in ({"votes": "keep"}, {"agree": "1"}, {"votes": "sell", "agree": "1"}):
        assert visitor.send(fields, ending="/consent").status_code == 422
    with store.read() as session:
        assert session.scalar(select(Annotator)).state == "invited"


def test_looking_at_an_invitation_does_not_use_it_up(store):
    _, token = accounts.invite_annotator(store)
    for _ in range(3):
        assert "Come in" in Visitor(store).get(f"/invite/{token}").text
    visitor = Visitor(store)
    visitor.get(f"/invite/{token}")
    assert visitor.send({}).url.path == "/consent"
    again = Visitor(store)
    again.get(f"/invite/{token}")
    page = again.send({})
    assert page.status_code == 403
    assert "Ask for a new one" in page.text


@pytest.mark.parametrize("votes", ["keep", "delete"])
def test_own_data_can_be_read_and_leaving_ends_everything(store, votes):
    rich_batch(store, items=2, rationale="optional")
    visitor = Visitor(store)
    pseudonym = visitor.come_in(votes, about_language="yes")
    visitor.get("/work/1")
    visitor.send({"rating": 2, "rationale": "mine"}, ending="/answer")
    response = visitor.get("/mine/data.json")
    assert pseudonym in response.headers["content-disposition"]
    data = response.json()
    assert data["you"]["pseudonym"] == pseudonym
    assert data["about_you"][0]["answer"] == "yes"
    assert (
        data["samples"][0]["answers"][0]["rating"],
        data["samples"][0]["answers"][0]["rationale"],
    ) == ("2", "mine")
    assert not any(secret in response.text for secret in SECRETS)
    visitor.get("/mine/withdraw")
    assert ("kept, under the pseudonym" if votes == "keep" else "deleted too") in visitor.page.text
    assert visitor.send({}, ending="/withdraw").status_code == 422
    cookie = visitor.client.cookies["laurel"]
    page = visitor.send({"sure": "1"}, ending="/withdraw")
    assert "You have left" in page.text
    assert count_votes(store) == (1 if votes == "keep" else 0)
    visitor.client.cookies.set("laurel", cookie)
    assert visitor.get("/mine").status_code == 403
    assert counts_hold(store)


def test_the_interface_for_scripts(store):
    rich_batch(store, items=2, hit_size=2, rationale="optional")
    visitor, accept = Visitor(store), {"Accept": "application/json"}
    visitor.come_in()
    given = visitor.get("/work/1/next.json").json()
    assert set(given) == {"assignment", "seq", "prompt", "input", "responses", "csrf"}
    assert given["prompt"][0]["role"] == "user"
    base = f"/work/1/samples/{given['assignment']}"
    data = {
        "csrf": given["csrf"],
        "key": "key-0001",
        "rating": "2",
        "rationale": "r",
        "pasted": "0.5",
    }
    bad = visitor.post(f"{base}/answer", {**data, "rating": ""}, headers=accept)
    assert bad.status_code == 422
    assert set(bad.json()) == {"error", "fix"}
    for _ in range(2):
        sent = visitor.post(f"{base}/answer", data, headers=accept).json()
        assert (sent["ok"], sent["revision"]) == (True, 1)
    clash = visitor.post(f"{base}/answer", {**data, "rating": "4"}, headers=accept)
    assert clash.status_code == 409
    assert "another answer" in clash.json()["error"]
    with store.read() as session:
        vote = session.scalar(select(Vote))
        assert (vote.pasted, vote.rationale) == (0.5, "r")
    other = visitor.get("/work/1/next.json").json()
    for what, fields in (
        ("alive", {"kind": "paste", "size": "12"}),
        ("draft", {"rating": "1"}),
        ("skip", {"reason": "r"}),
    ):
        response = visitor.post(
            f"/work/1/samples/{other['assignment']}/{what}",
            {"csrf": other["csrf"], **fields},
            headers=accept,
        )
        assert (response.status_code, response.json()["ok"]) == (200, True)
    assert (
        visitor.post(
            f"{base}/alive", {"csrf": other["csrf"], "kind": "text"}, headers=accept
        ).status_code
        == 422
    )
    visitor.post(
        f"/work/1/samples/{other['assignment']}/answer", {**data, "key": "key-0002"}, headers=accept
    )
    assert visitor.get("/work/1/next.json").json() == {"done": True}
    with store.read() as session:
        assert session.scalars(select(Event).where(Event.kind != "skip")).one().size == 12


def test_a_late_answer_is_refused_with_the_draft_kept(store, clock):
    rich_batch(store, items=1, target_votes=1, rationale="optional")
    late, other = Visitor(store), Visitor(store)
    late.come_in()
    other.come_in()
    late.get("/work/1")
    clock.time += 3600
    other.get("/work/1")
    other.send({"rating": 1}, ending="/answer")
    page = late.send({"rating": 2, "rationale": "slow"}, ending="/answer")
    assert page.status_code == 409
    assert "your draft is kept" in page.text
    with store.read() as session:
        assert session.scalar(select(Draft)).form == {"rating": "2", "rationale": "slow"}
    assert counts_hold(store)


def test_the_back_button_and_a_double_click_make_one_vote(store):
    rich_batch(store)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    form = visitor.form("/answer")
    for _ in range(3):
        assert visitor.post(form["action"], {**form["fields"], "rating": "1"}).status_code == 200
    assert count_votes(store) == 1
    page = visitor.post(
        form["action"], {**form["fields"], "rating": "4"}
    )  # back, another choice, the old form
    assert page.status_code == 409
    assert "change it there" in page.text


def test_single_answers_are_good_or_not(store):
    rich_batch(store, responses=1, items=1)
    visitor = Visitor(store)
    visitor.come_in()
    assert "This response is not good" in visitor.get("/work/1").text
    visitor.send({"rating": 4}, ending="/answer")
    assert count_votes(store) == 1


def test_texts_of_others_can_do_nothing():
    nasty = "<script>alert(1)</script> a\u202eb\u200bc \x07"
    assert (
        str(escape_plain(nasty))
        == '<div class="text plain" dir="auto">&lt;script&gt;alert(1)&lt;/script&gt;'
        " a[U+202E]b[U+200B]c [U+0007]</div>"
    )
    links = "[l](javascript:alert(1)) [d](data:text/html,x) [w](https://a.b/c)"
    html = str(
        render_markdown(
            f"# T\n\n<img src=x onerror=alert(1)> ![p](http://evil/p.png) {links}"
            " &#x202E;x\n\n|a|\n|-|\n|b|"
        )
    )
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert 'href="data' not in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert "[U+202E]x" in html
    assert "<td>b</td>" in html
    family, persian = "\U0001f469\u200d\U0001f52c", "\u0645\u06cc\u200c\u062e"
    assert (
        name_odd_characters(f"{family} {persian} pass\u200dword")
        == f"{family} {persian} pass[U+200D]word"
    )


@pytest.mark.parametrize("markdown", [False, True])
def test_a_long_text_is_cut_and_whole(markdown):
    text = "\n\n".join(f"paragraph {n} with some words" for n in range(2000))
    html = str(render_text(text, markdown))
    assert "<summary>Show all: " in html
    assert html.index("<details") < 12_000 + 9 * 2000 * markdown
    assert all(f"paragraph {n} with" in html for n in (0, 999, 1999))
    assert "<details" not in str(render_text("short", markdown))
    assert "empty" in str(render_text(" ", markdown))


@pytest.mark.parametrize("markdown", [False, True])
def test_a_text_without_end_is_left_out_and_says_so(markdown):
    html = str(render_text("word " * 600_000, markdown))
    assert len(html) < 101_000
    assert "its last 2,900,000 of 3,000,000 characters are left out" in html
    assert "left out" not in str(render_text("word " * 20_000, markdown))


def test_a_response_of_three_million_characters_has_a_page(store):
    rich_batch(store, items=1)
    with store.write() as session:
        session.scalar(select(Response)).text = "long " * 600_000
    visitor = Visitor(store)
    visitor.come_in()
    page = visitor.get("/work/1")
    assert page.status_code == 200
    assert len(page.text) < 130_000
    assert "2,900,000 of 3,000,000 characters are left out" in page.text


def test_what_applications_ask_is_not_offered_to_annotators(store):
    key = product.api_key_of_token(store, product.create_api_key(store, "chat"))
    product.ask_comparison(store, key, "A tree?", [("Laurel.", ""), ("Stone.", "")])
    batch = rich_batch(store, items=2, name="product like")
    with store.read() as session:
        asked = session.scalar(select(Batch.id).where(Batch.name == "product chat"))
    visitor = Visitor(store)
    visitor.come_in()
    page = visitor.get("/work").text
    assert "product chat" not in page
    assert f'href="/work/{asked}"' not in page
    assert f'href="/work/{batch}"' in page
    for path in ("", "/1", "/next.json", "/finished"):
        said = visitor.get(f"/work/{asked}{path}")
        assert said.status_code == 404
        assert "product chat" not in said.text
    assert visitor.get(f"/work/{batch}").url.path == f"/work/{batch}/1"


def test_a_fence_that_is_cut_stays_a_fence():
    html = str(render_text("```\n" + "code <b>\n\n" * 2000 + "```\nafter", True))
    assert html.count("<pre>") == 2
    assert "<p>after</p>" in html


def test_an_address_without_a_scheme_is_refused(store):
    with pytest.raises(UsageError, match="not an address"):
        create_app(store, public_url="example.org")


def test_what_is_kept_of_a_sample_in_json_is_text(store):
    """Prompts that are not plain messages do not break the page."""
    rich_batch(store, items=1)
    with store.write() as session:
        parts = {"role": "user", "content": [{"type": "text"}], "name": "SECRET-SOURCE"}
        session.scalar(select(Item)).prompt = [{"role": "system", "content": "S"}, parts]
    visitor = Visitor(store)
    visitor.come_in()
    page = visitor.get("/work/1").text
    assert "a conversation" in page
    assert "SECRET" not in page + visitor.get("/work/1/next.json").text


def test_lists_and_states_of_samples(store):
    rich_batch(store, items=3)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    visitor.send({}, to="skip")
    assert "skipped" in visitor.page.text.split('<ol class="samples">')[1]
    with store.read() as session:
        ids = set(session.scalars(select(Assignment.id)))
    assert json.loads(visitor.get("/work/1/next.json").text)["assignment"] in ids


def test_a_folded_sample_is_not_rated_unopened(store):
    rich_batch(store, items=1, harm={0: ["violence"]})
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    assert visitor.send({"rating": 1}, ending="/answer").status_code == 422
    assert "open the sample and read it first" in visitor.page.text
    assert 'href="#opened"' in visitor.page.text and 'id="opened"' in visitor.page.text
    assert "finished" in visitor.send({"rating": 1, "opened": "1"}, ending="/answer").url.path


def test_a_second_tab_does_not_overwrite_the_first_in_silence(store):
    rich_batch(store, items=1)
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    form = visitor.form("/answer")
    first = {**form["fields"], "rating": "1"}
    visitor.post(form["action"], first)
    second = {**form["fields"], "rating": "4", "key": "another-tabs-key"}
    page = visitor.post(form["action"], second)
    assert page.status_code == 409
    assert "another tab" in page.text
    assert (
        visitor.post(form["action"], first).url.path != form["action"]
    )  # the same answer once more is the same answer
    with store.read() as session:
        assert len(session.scalars(select(Vote)).all()) == 1
    visitor.get("/work/1/1")
    assert visitor.send({"rating": 4}, ending="/answer").status_code == 200
    with store.read() as session:
        assert len(session.scalars(select(Vote)).all()) == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "You left sample 1;"),
        ({"distress": "1"}, "You left sample 1 as too distressing, with pay;"),
    ],
)
def test_a_skip_can_be_taken_back(store, fields, told):
    rich_batch(store, items=3, rationale="optional")
    visitor = Visitor(store)
    visitor.come_in()
    visitor.get("/work/1")
    page = visitor.send({"rationale": "half a thought", **fields}, to="skip")
    assert told in " ".join(page.text.split())
    back = visitor.get(re.search(r'href="([^"]+)" id="undo"', page.text)[1])
    assert back.url.path == "/work/1/1" and "half a thought" in back.text
    assert (
        'id="undo"'
        not in visitor.get("/work/1/1?left=1").text + visitor.get("/work/1/1?left=99").text
    )


def test_what_each_person_costs_is_told_and_thirteen_skips_in_a_second_stand_out(store, clock):
    batch = rich_batch(store, items=20, hit_size=20, target_votes=2, pay_per_item=0.3)
    desks = []
    for name in ("honest", "quick"):
        with store.write() as session:
            session.add(
                Annotator(pseudonym=name, state="active", consent="keep 1", made_at=store.now())
            )
        with store.read() as session:
            who = session.scalar(select(Annotator.id).where(Annotator.pseudonym == name))
        desks.append(TaskQueue(store, who, batch))
    for n in range(10):
        sample = desks[0].next()
        clock.time += 30
        (
            desks[0].skip(sample.id, DISTRESSING)
            if n == 0
            else desks[0].submit(sample.id, Answer(rating=1), f"honest-{n}")
        )
    for _ in range(13):
        desks[1].skip(desks[1].next().id, DISTRESSING)
    quick, honest = costs(store, batch)
    assert (quick.annotator, quick.answered, quick.distressing, quick.seconds, quick.odd) == (
        "quick",
        0,
        13,
        0.0,
        True,
    )
    assert quick.paid == pytest.approx(3.9)
    assert (honest.annotator, honest.answered, honest.distressing, honest.seconds, honest.odd) == (
        "honest",
        9,
        1,
        30.0,
        False,
    )
    assert ("quick", "0", "13 !", "0.0", "3.90 USD") in cost_section([quick, honest], "USD").rows
