"""Leases, answers and skips: who gets what, what is taken, what is refused; and that counts hold
whatever happens.
"""

import random
from pathlib import Path

import pytest
from sqlalchemy import event, func, insert, select

from laurel_feedback.statistics.batches import summaries
from laurel_feedback.store import accounts, progress
from laurel_feedback.store.assign import (
    DISTRESSING,
    LEAST_GAP,
    Answer,
    Refused,
    TaskQueue,
    by_place,
    by_slot,
    vote_columns,
)
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import (
    Admin,
    Annotator,
    Assignment,
    Batch,
    Draft,
    Event,
    Item,
    Plan,
    Response,
    Vote,
)

MINUTE = 60.0


def make_batch(store, items=6, responses=2, name="batch", kinds=None, harm=None, **settings):
    """An open batch of items with their answers; its id."""
    settings = BatchSettings(**settings)
    with store.write() as session:
        batch = Batch(name=name, state="open", settings=settings.model_dump(), made_at=store.now())
        session.add(batch)
        session.flush()
        for place in range(items):
            kind = (kinds or {}).get(place, "normal")
            target = settings.target_votes if kind == "normal" else 10**6
            item = Item(
                id=f"{name}-{place}",
                batch_id=batch.id,
                place=place,
                kind=kind,
                prompt=[{"role": "user", "content": f"question {place}"}],
                content_hash=str(place),
                target=target,
                harm=(harm or {}).get(place, []),
                harmful=bool((harm or {}).get(place)),
            )
            session.add(item)
            session.flush()
            session.add_all(
                Response(id=f"{name}-{place}-{k}", item_id=item.id, place=k, text=f"answer {k}")
                for k in range(responses)
            )
        return batch.id


def annotator(store, **more):
    """Someone who has been invited, has come and has signed; their id."""
    _, token = accounts.invite_annotator(store, **more)
    cookie = accounts.accept_invitation(store, token)
    identity = accounts.session_of(store, cookie).annotator
    accounts.consent(store, identity, "keep 1")
    return identity


def counts_hold(store):
    """`live` of every item is the number of its leases and answers, and no item is over its
    target.
    """
    with store.read() as session:
        for item in session.scalars(select(Item)):
            held = select(func.count()).select_from(Assignment)
            live = session.scalar(
                held.where(
                    Assignment.item_id == item.id,
                    Assignment.repeat == 0,
                    Assignment.state.in_(("leased", "submitted")),
                )
            )
            assert (item.id, item.live) == (item.id, live)
            assert item.live <= item.target
    return True


def test_a_sample_is_given_until_it_is_answered(store):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    first = queue.next()
    assert queue.next().id == first.id
    assert (first.seq, first.state, sorted(first.order)) == (1, "leased", [0, 1])
    queue.submit(first.id, Answer(rating=1), "k1")
    assert queue.next().seq == 2
    assert queue.progress()[:2] == (1, 6)
    assert counts_hold(store)


def test_a_rating_is_kept_by_response_not_by_slot(store):
    queue, seen = TaskQueue(store, annotator(store), make_batch(store, items=12)), {}
    for n in range(12):
        sample = queue.next()
        vote = queue.submit(sample.id, Answer(rating=1), f"k{n}")
        seen[tuple(sample.order)] = vote.rating
    assert seen == {(0, 1): 1, (1, 0): 4}


@pytest.mark.parametrize("rating", [0, 1, 2, 3, 4])
def test_swapping_slots_swaps_the_rating(rating):
    settings = BatchSettings(allow_tie=True)
    straight, turned = (
        vote_columns(Answer(rating=rating), order, settings)["rating"] for order in ([0, 1], [1, 0])
    )
    assert straight == rating
    assert turned == (5 - rating if rating else 0)


def test_ranks_and_scales_go_to_their_responses(store):
    settings = BatchSettings(form="ranking", helpfulness=True, presentation=True)
    order = [2, 0, 3, 1]
    answer = Answer(ranking=[1, 2, 2, 3], helpfulness=[5, 4, 3, 1], presentation=[3, 2, 1, 1])
    taken = vote_columns(answer, order, settings)
    assert taken["ranking"] == [2, 3, 1, 2]
    assert taken["scales"] == {"helpfulness": [4, 1, 5, 3], "presentation": [2, 1, 3, 1]}
    for placed in (taken["ranking"], taken["scales"]["helpfulness"]):
        assert by_place(by_slot(placed, order), order) == placed


@pytest.mark.parametrize(
    ("settings", "answer", "told"),
    [
        ({}, Answer(), "choose one"),
        ({}, Answer(rating=0), "choose one"),
        ({}, Answer(rating=5), "choose one"),
        ({"form": "ranking"}, Answer(rating=1), "a rank"),
        ({"form": "ranking"}, Answer(ranking=[1, 3]), "without gaps"),
        ({"form": "ranking"}, Answer(ranking=[0, 1]), "without gaps"),
        ({"form": "ranking"}, Answer(ranking=[1]), "a rank"),
        ({"helpfulness": True}, Answer(rating=1), "helpfulness of every response, 1 to 5"),
        ({"helpfulness": True}, Answer(rating=1, helpfulness=[1, 6]), "1 to 5"),
        ({"presentation": True}, Answer(rating=1, presentation=[1]), "1 to 3"),
        ({"rationale": "required"}, Answer(rating=1, rationale="  "), "why"),
        ({"rationale": "optional"}, Answer(rating=1, rationale="x" * 20_001), "20,001 characters"),
    ],
)
def test_an_answer_that_is_not_one_is_refused_and_says_why(store, settings, answer, told):
    queue = TaskQueue(store, annotator(store), make_batch(store, **settings))
    sample = queue.next()
    with pytest.raises(Refused, match=told) as refused:
        queue.submit(sample.id, answer, "k")
    assert refused.value.status == 422
    with store.read() as session:
        assert session.scalars(select(Vote)).all() == []
    assert queue.next().id == sample.id


def test_the_same_key_is_the_same_answer(store):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    sample = queue.next()
    first = queue.submit(sample.id, Answer(rating=1), "key")
    assert queue.submit(sample.id, Answer(rating=4), "key").id == first.id
    other = queue.next()
    with pytest.raises(Refused, match="another answer"):
        queue.submit(other.id, Answer(rating=1), "key")
    with store.read() as session:
        assert [(v.revision, v.assignment_id) for v in session.scalars(select(Vote))] == [
            (1, sample.id)
        ]


def test_a_changed_mind_is_a_new_revision_and_both_stay(store):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    sample = queue.next()
    queue.submit(sample.id, Answer(rating=1), "a")
    assert queue.open(1).state == "submitted"
    queue.submit(sample.id, Answer(rating=4), "b")
    with store.read() as session:
        assert [v.revision for v in session.scalars(select(Vote).order_by(Vote.id))] == [1, 2]
    assert queue.progress().done == 1
    assert counts_hold(store)


def test_no_item_gets_more_answers_than_it_wants_and_nobody_gets_one_twice(store):
    batch = make_batch(store, items=5, target_votes=2)
    desks = [TaskQueue(store, annotator(store), batch) for _ in range(4)]
    rng, given = random.Random(0), 0
    while True:
        queue = rng.choice(desks)
        sample = queue.next()
        if sample is None and all(d.next() is None for d in desks):
            break
        if sample is not None:
            given += 1
            queue.submit(sample.id, Answer(rating=1), f"k{given}")
    assert given == 10
    assert counts_hold(store)
    assert desks[0].progress()[3:] == (10, 10)


def test_a_lease_that_expires_goes_to_others(store, clock):
    batch = make_batch(store, items=1, target_votes=1)
    slow, quick = (TaskQueue(store, annotator(store), batch) for _ in range(2))
    lost = slow.next()
    assert quick.next() is None
    clock.time += 16 * MINUTE
    found = quick.next()
    assert found.item_id == lost.item_id
    with pytest.raises(Refused, match="draft is kept") as refused:
        slow.submit(lost.id, Answer(rating=1), "late")
    assert refused.value.status == 409
    quick.submit(found.id, Answer(rating=1), "quick")
    with pytest.raises(Refused, match="finished this sample"):
        slow.open(1)
    assert slow.next() is None
    assert counts_hold(store)


def test_a_late_answer_that_is_still_wanted_is_taken(store, clock):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    sample = queue.next()
    clock.time += 60 * MINUTE
    queue.submit(sample.id, Answer(rating=1), "late")
    assert queue.progress().done == 1
    assert counts_hold(store)


def test_signs_of_life_keep_a_lease(store, clock):
    batch = make_batch(store, items=1, target_votes=1)
    queue, other = (TaskQueue(store, annotator(store), batch) for _ in range(2))
    sample = queue.next()
    for _ in range(5):
        clock.time += 10 * MINUTE
        assert queue.alive(sample.id)
        assert other.next() is None
    queue.submit(sample.id, Answer(rating=1), "k")


def test_skipping_leaves_a_sample_for_later_and_for_others(store):
    batch = make_batch(store, items=3, target_votes=1)
    queue, other = (TaskQueue(store, annotator(store), batch) for _ in range(2))
    first = queue.next()
    queue.skip(first.id, "unclear")
    second = queue.next()
    assert second.seq == 2
    queue.submit(second.id, Answer(rating=1), "k2")
    third = queue.next()
    queue.submit(third.id, Answer(rating=1), "k3")
    assert queue.progress().states == {1: "skipped", 2: "submitted", 3: "submitted"}
    assert queue.next().id == first.id  # the next unmarked one is the one that was left
    queue.skip(first.id)
    theirs = other.next()
    assert theirs.item_id == first.item_id
    assert queue.next() is None
    assert counts_hold(store)


def test_next_unmarked_goes_round(store):
    """After sample 3 come new ones, then the earliest that was left."""
    queue = TaskQueue(store, annotator(store), make_batch(store, items=4, hit_size=4))
    for _ in range(3):
        queue.skip(queue.next(after=9 if queue.progress().states else 0).id)
    assert queue.next(after=3).seq == 4
    assert queue.next(after=4).seq == 1
    assert queue.next(after=1).seq == 2
    assert queue.progress().states == {1: "skipped", 2: "leased", 3: "skipped", 4: "skipped"}
    assert counts_hold(store)


def test_one_sample_is_held_at_a_time(store):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    queue.skip(queue.next().id)
    second = queue.next()
    assert queue.open(1).state == "leased"
    assert queue.progress().states == {1: "leased", 2: "skipped"}
    queue.submit(second.id, Answer(rating=1), "from another tab")
    assert counts_hold(store)


def test_a_list_ends_at_its_size(store):
    queue = TaskQueue(store, annotator(store), make_batch(store, items=10, hit_size=3))
    for n in range(3):
        queue.submit(queue.next().id, Answer(rating=1), f"k{n}")
    assert queue.next() is None
    assert queue.progress()[:2] == (3, 3)


def test_repeats_come_later_with_slots_turned_and_count_for_no_target(store):
    queue = TaskQueue(
        store, annotator(store), make_batch(store, items=40, hit_size=40, repeat_share=0.3)
    )
    for n in range(40):
        queue.submit(queue.next().id, Answer(rating=1), f"k{n}")
    with store.read() as session:
        rows = session.scalars(select(Assignment).order_by(Assignment.seq)).all()
        again = [a for a in rows if a.repeat]
        assert 4 <= len(again) <= 20
        for repeat in again:
            (first,) = [a for a in rows if a.item_id == repeat.item_id and not a.repeat]
            assert repeat.order == first.order[::-1]
            assert repeat.seq > first.seq + 3
    assert counts_hold(store)


def test_gold_items_come_at_their_share(store):
    kinds = dict.fromkeys(range(0, 60, 2), "gold")
    queue = TaskQueue(
        store,
        annotator(store),
        make_batch(store, items=60, hit_size=40, kinds=kinds, gold_share=0.25),
    )
    kinds = []
    while (sample := queue.next()) is not None:
        with store.read() as session:
            kinds.append(session.get(Item, sample.item_id).kind)
        queue.submit(sample.id, Answer(rating=1), f"k{len(kinds)}")
    assert 4 <= kinds.count("gold") <= 18
    assert counts_hold(store)


def test_training_comes_first_and_counts(store):
    batch = make_batch(store, items=5, hit_size=5, kinds={2: "training", 4: "training"})
    queue, seen = TaskQueue(store, annotator(store), batch), []
    assert queue.progress().size == 5
    while (sample := queue.next()) is not None:
        seen.append(sample.item_id)
        queue.submit(sample.id, Answer(rating=1), sample.id)
    assert set(seen[:2]) == {"batch-2", "batch-4"}
    assert len(seen) == 5


def test_a_sample_that_is_too_distressing_counts_as_done_and_does_not_come_back(store):
    queue = TaskQueue(store, annotator(store), make_batch(store, items=2, hit_size=2))
    first = queue.next()
    queue.skip(first.id, DISTRESSING)
    second = queue.next()
    assert queue.progress().done == 1
    queue.submit(second.id, Answer(rating=1), "k")
    assert queue.next() is None
    assert queue.progress()[:2] == (2, 2)
    assert queue.open(first.seq).state == "leased"  # by their own wish
    queue.skip(first.id)
    assert queue.next() is None
    assert counts_hold(store)


def test_planned_items_are_for_those_they_are_planned_for(store):
    batch = make_batch(store, items=3)
    mine, other = annotator(store), annotator(store)
    with store.write() as session:
        session.add_all(
            [
                Plan(item_id="batch-0", annotator_id=mine),
                Plan(item_id="batch-1", annotator_id=other),
            ]
        )
    third = annotator(store)
    assert [items_of(store, TaskQueue(store, who, batch)) for who in (mine, other, third)] == [
        {"batch-0"},
        {"batch-1"},
        {"batch-2"},
    ]


def items_of(store, queue):
    """Everything that this annotator gets, answered."""
    items = set()
    while (sample := queue.next()) is not None:
        items.add(sample.item_id)
        queue.submit(sample.id, Answer(rating=1), sample.id)
    return items


def test_harm_is_kept_from_those_who_opted_out_and_capped_a_day(store, clock):
    harm = {0: ["violence"], 1: ["violence", "hate"], 2: ["hate"], 3: ["hate"], 4: ["hate"]}
    batch = make_batch(store, items=6, harm=harm, daily_harm_cap=2)
    identity = annotator(store)
    with store.write() as session:
        session.get(Annotator, identity).opted_out = ["violence"]
    queue, seen = TaskQueue(store, identity, batch), []
    while (sample := queue.next()) is not None:
        seen.append(sample.item_id)
        queue.submit(sample.id, Answer(rating=1), sample.id)
    assert "batch-5" in seen
    assert len(seen) == 3
    assert not {"batch-0", "batch-1"} & set(seen)
    clock.time += 25 * 60 * MINUTE
    assert queue.next().item_id in {"batch-2", "batch-3", "batch-4"} - set(seen)


def test_time_at_work_leaves_out_long_pauses(store, clock):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    sample = queue.next()
    for gap in (10, 20, 600):
        clock.time += gap
        queue.alive(sample.id)
    clock.time += 5
    vote = queue.submit(sample.id, Answer(rating=1), "k")
    assert vote.active_ms == 1000 * (10 + 20 + LEAST_GAP + 5)


def test_a_draft_is_kept_until_the_answer_comes(store):
    queue = TaskQueue(store, annotator(store), make_batch(store))
    sample = queue.next()
    queue.draft(sample.id, {"rating": "2"})
    queue.draft(sample.id, {"rating": "3"})
    with store.read() as session:
        assert session.get(Draft, sample.id).form == {"rating": "3"}
    queue.submit(sample.id, Answer(rating=3), "k")
    with store.read() as session:
        assert session.get(Draft, sample.id) is None


def test_somebody_elses_sample_is_no_sample(store):
    batch = make_batch(store)
    queue, other = (TaskQueue(store, annotator(store), batch) for _ in range(2))
    sample = queue.next()
    for call in (
        lambda: other.submit(sample.id, Answer(rating=1), "k"),
        lambda: other.skip(sample.id),
        lambda: other.alive(sample.id),
        lambda: other.draft(sample.id, {}),
        lambda: other.open(1),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 404


@pytest.mark.parametrize("state", ["draft", "closed"])
def test_a_batch_that_is_not_open_gives_and_takes_nothing(store, state):
    batch = make_batch(store)
    queue = TaskQueue(store, annotator(store), batch)
    sample = queue.next()
    with store.write() as session:
        session.get(Batch, batch).state = state
    for call in (queue.next, lambda: queue.submit(sample.id, Answer(rating=1), "k")):
        with pytest.raises(Refused, match="not open"):
            call()


def test_the_questions_about_the_guidelines_come_first(store):
    batch, identity = make_batch(store, needs_check=True), annotator(store)
    with pytest.raises(Refused, match="come first"):
        TaskQueue(store, identity, batch).next()
    with store.write() as session:
        session.get(Annotator, identity).qualified = True
    assert TaskQueue(store, identity, batch).next()


def test_withdrawal_keeps_votes_without_a_name_or_deletes_them_as_was_signed(store):
    batch = make_batch(store, items=2, target_votes=1)
    kept, gone = annotator(store, person="Ada"), annotator(store, person="Bob")
    accounts.consent(store, gone, "delete 1")
    for identity in (kept, gone):
        queue = TaskQueue(store, identity, batch)
        queue.submit(queue.next().id, Answer(rating=1), f"k{identity}")
    assert accounts.withdraw(store, kept)["votes_kept"] is True
    assert accounts.withdraw(store, gone)["removed"]["vote"] == 1
    with store.read() as session:
        assert [
            (a.person, a.state) for a in session.scalars(select(Annotator).order_by(Annotator.id))
        ] == [
            ("", "withdrawn"),
            ("", "erased"),
        ]
        assert len(session.scalars(select(Vote)).all()) == 1
        assert session.scalars(select(Event)).all() == []
    with pytest.raises(Refused, match="take part"):
        TaskQueue(store, kept, batch).next()
    assert counts_hold(store)
    new = TaskQueue(store, annotator(store), batch)
    assert new.next() is not None  # the deleted vote's place is free again


def test_an_invitation_works_once(store, clock):
    _, token = accounts.invite_annotator(store)
    accounts.accept_invitation(store, token)
    with pytest.raises(Refused, match="used or expired"):
        accounts.accept_invitation(store, token)
    _, late = accounts.invite_annotator(store, days=1)
    clock.time += 2 * 86400
    for wrong in (late, "guessed"):
        with pytest.raises(Refused, match="used or expired"):
            accounts.accept_invitation(store, wrong)


def test_a_limit_holds_and_says_so(store, clock):
    for _ in range(3):
        accounts.count_attempt(store, "login:here", 3, 60)
    with pytest.raises(Refused, match="too many") as refused:
        accounts.count_attempt(store, "login:here", 3, 60)
    assert refused.value.status == 429
    accounts.count_attempt(store, "login:there", 3, 60)
    clock.time += 61
    accounts.count_attempt(store, "login:here", 3, 60)


def test_coordinators_have_passwords_and_no_default(store, clock, dear_passwords):
    accounts.add_admin(store, "ada", "a long password")
    with store.read() as session:
        algorithm, _, cost = session.scalars(select(Admin)).one().password.split("$")[1:4]
    memory, rounds, _ = (int(part.split("=")[1]) for part in cost.split(","))
    assert (
        algorithm == "argon2id" and memory >= 64 * 1024 and rounds >= 3
    )  # RFC 9106, for a server with little memory
    cookie = accounts.log_in_admin(store, "ada", "a long password")
    assert accounts.session_of(store, cookie).admin == 1
    for name, password in (("ada", "wrong"), ("nobody", "a long password"), ("ada", "")):
        with pytest.raises(Refused, match="belong together"):
            accounts.log_in_admin(store, name, password)
    with pytest.raises(Exception, match="12 characters"):
        accounts.add_admin(store, "bob", "short")
    accounts.add_admin(store, "ada", "another password")
    assert accounts.session_of(store, cookie) is None
    cookie = accounts.log_in_admin(store, "ada", "another password")
    clock.time += 13 * 3600
    assert accounts.session_of(store, cookie) is None


def test_someone_who_leaves_is_still_to_be_paid_and_leaves_no_trace_in_the_file(store):
    batch = make_batch(store, items=3, target_votes=2, pay_per_item=0.5, rationale="optional")
    who = annotator(store)
    queue = TaskQueue(store, who, batch)
    for n in range(2):
        queue.submit(
            queue.next().id, Answer(rating=1, rationale="unforgettable words"), f"{who}-{n}"
        )
    queue.draft(queue.next().id, {"rationale": "unforgettable words"})
    assert summaries(store, batch)[0].spent == 1.0
    gone = accounts.withdraw(store, who, erase=True)
    again = accounts.withdraw(store, who, erase=True)  # asked twice, what is owed stays
    assert gone["paid_samples"] == again["paid_samples"] == {"batch": 2}
    assert summaries(store, batch)[0].spent == 1.0
    with store.read() as session:
        assert session.scalars(select(Vote)).all() == []
    if store.sqlite:
        path = Path(store.engine.url.database)
        assert not any(
            b"unforgettable" in file.read_bytes() for file in path.parent.glob(f"{path.name}*")
        )
    assert counts_hold(store)


@pytest.mark.parametrize("name", ["pay_per_item", "expected_seconds", "lease_minutes"])
def test_a_setting_is_a_number(name):
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite number"):
            BatchSettings(**{name: value})


def test_handing_out_a_sample_reads_a_handful_however_many_items_there_are(tmp_path):
    """Work of SQLite's machine for a sample handed out: at 8,000 items as at 500, half of them
    answered.
    """

    def work(count):
        store = Store(str(tmp_path / f"{count}.db"))
        batch, who = make_batch(store, items=2), annotator(store)
        with store.write() as session:
            row = {
                "batch_id": batch,
                "kind": "normal",
                "prompt": [],
                "input": "",
                "harm": [],
                "harmful": False,
                "explanation": "",
            }
            row |= {"source": {}, "words": 1, "target": 1}
            items = [
                {**row, "id": f"x{n}", "place": 10 + n, "content_hash": str(n), "live": n % 2}
                for n in range(count)
            ]
            session.execute(insert(Item), items)
        steps = [0]

        def count_steps():
            steps[0] += 1

        queue = TaskQueue(store, who, batch)
        queue.next()

        @event.listens_for(store.engine, "begin")
        def watch(connection):
            connection.connection.driver_connection.set_progress_handler(count_steps, 10)

        queue.next(after=1)
        store.close()
        return steps[0]

    few, many = work(500), work(8000)
    assert 10 < many < 1.5 * few


def test_counts_that_take_long_are_not_taken_for_every_page(store, monkeypatch):
    """Those of small batches are exact; those of large ones are kept for a while and then counted
    anew.
    """
    batch = make_batch(store, items=2, target_votes=2)
    queue = TaskQueue(store, annotator(store), batch)
    assert queue.progress()[3:] == (0, 4)
    queue.submit(queue.next().id, Answer(rating=1), "first-key")
    assert queue.progress()[3:] == (1, 4)
    monkeypatch.setattr(progress, "MANY", 3)
    queue.submit(queue.next().id, Answer(rating=1), "second-key")
    assert queue.progress()[3:] == (1, 4)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert queue.progress()[3:] == (2, 4)
