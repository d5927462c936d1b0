"""What votes say: known figures of LLMFAO through the store, values worked by hand, and what must
not change a number.
"""

import time
from dataclasses import replace

import pytest
from feedback_votes import put, put_llmfao, tell
from sqlalchemy import select

from laurel.core.errors import UsageError
from laurel_feedback.statistics.analysis import (
    agreements,
    analyse,
    first_slot_bias,
    hourly_pay,
    is_right,
    longer_wins,
    low_effort_signals,
    model_scores,
    skills,
)
from laurel_feedback.statistics.batches import (
    change_settings,
    exposure,
    open_batch,
    reason_not_to_open,
    summaries,
    votes_by_hour,
)
from laurel_feedback.statistics.demographics import (
    OTHER,
    SILENT,
    compute_demographics,
    demographics_of,
    parse_reference,
)
from laurel_feedback.statistics.judges import judge_card, status_by_response, verdicts_of
from laurel_feedback.statistics.votes import (
    Ballot,
    JudgeAnswer,
    Poll,
    batch_poll,
    choices_of,
    file_polls,
)
from laurel_feedback.store.assign import DISTRESSING, Refused
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.model_giveaways import (
    HELD,
    decide_held_item,
    flagged_items,
    read_and_hold,
    telling_words,
)
from laurel_feedback.store.tables import Assignment, Audit, Batch, Dispute, Item

ANSWERS = {"a": 1, "slightly a": 2, "slightly b": 3, "b": 4, "tie": 0}


def poll_of(rows, **more):
    """A poll from (item, who, answer)."""
    return Poll(
        "test",
        [
            Ballot(item, who, (0, 1), ANSWERS[answer], models=("x", "y"))
            for item, who, answer in rows
        ],
        **more,
    )


def test_llmfao_through_the_store(store, shared):
    poll = batch_poll(store, put_llmfao(store, shared))
    plain = file_polls(shared("data/llmfao"))[0]
    begun = time.perf_counter()
    found = analyse(poll)
    spent = time.perf_counter() - begun
    assert (found.votes, found.items, found.annotators) == (8931, 2139, 124)
    assert found.labels == {"a": 2911, "tie": 3471, "b": 2549}
    assert found.agreement == agreements(plain)  # slots change nothing about responses
    assert found.agreement["Krippendorff's alpha, which response"].value == pytest.approx(
        0.2908, abs=1e-3
    )
    assert found.slots.share.value == pytest.approx(0.5, abs=0.02)  # every second one was swapped
    assert first_slot_bias(plain.choices).share.value == pytest.approx(0.5332, abs=5e-5)
    assert first_slot_bias(plain.choices).p == pytest.approx(
        5.4e-4, rel=0.02
    )  # 1e-6 if votes on one item were independent
    scores = {s.model: s.score for s in found.models.scores}
    assert len(scores) == 59
    assert scores == pytest.approx(
        {s.model: s.score for s in model_scores(plain.choices).scores}, abs=8
    )
    assert found.longer == longer_wins(plain.choices)
    assert found.pay.hourly.n == 8931
    assert spent < 5


def test_llmfao_judges_by_the_published_figures(shared):
    poll = file_polls(shared("data/llmfao"))[0]
    gpt4, gpt3 = (judge_card(poll, name) for name in ("GPT-4", "GPT-3.5"))
    assert (round(gpt4.rho.value, 4), round(gpt4.tau.value, 4), gpt4.rho.n) == (0.7309, 0.5371, 59)
    assert (round(gpt3.first.share.value, 4), round(gpt4.first.share.value, 4)) == (0.6951, 0.4549)
    assert gpt3.first.p == pytest.approx(6e-68, rel=0.05)
    assert gpt4.first.p == pytest.approx(4e-5, rel=0.1)
    assert gpt4.ceiling > gpt4.metrics.agreement


def test_mtbench_by_the_published_figures(shared):
    wanted = {
        1: ((886, 1343), (454, 721), (727, 859), (388, 479)),
        2: ((0.6574,), (0.6662,), (0.8461,), (0.8186,)),
    }
    for turn, poll in enumerate(file_polls(shared("data/mtbench/human.jsonl")), 1):
        card, humans = judge_card(poll, "GPT-4"), agreements(poll)
        found = (
            card.people,
            humans["two votes on a pair are equal"],
            card.people_no_ties,
            humans["the same, without ties"],
        )
        told = [(round(a.value * a.n), a.n) if turn == 1 else (round(a.value, 4),) for a in found]
        assert tuple(told) == wanted[turn]
        assert card.statuses["inconsistent"] == {1: 188, 2: 192}[turn]  # 380 of 2,400


def test_a_vote_is_about_responses_and_remembers_the_slot():
    straight, turned = Ballot("i", "w", (0, 1), 1), Ballot("i", "w", (1, 0), 1)
    assert [(c.label, c.slot, c.level) for b in (straight, turned) for c in choices_of(b)] == [
        ("a", "left", 1.0),
        ("a", "right", 1.0),
    ]
    tie = choices_of(Ballot("i", "w", (1, 0), 0))[0]
    assert (tie.label, tie.slot, tie.level) == ("tie", "tie", 2.5)
    ranked = choices_of(
        Ballot("i", "w", (2, 0, 1), ranking=(2, 1, 2), models=("x", "y", "z"), lengths=(1, 2, 3))
    )
    assert [(c.unit[1:], c.label, c.slot) for c in ranked] == [
        ((0, 1), "b", "right"),
        ((0, 2), "tie", "tie"),
        ((1, 2), "a", "right"),
    ]
    assert sum(c.weight for c in ranked) == pytest.approx(1)
    assert choices_of(Ballot("i", "w", (0,), 4)) == []


def test_swapping_the_two_responses_of_an_item_changes_no_agreement():
    rows = [
        (f"i{n}", f"w{w}", ("a", "b", "tie", "slightly a")[(n * w + n // 3) % 4])
        for n in range(40)
        for w in range(3)
    ]
    poll = poll_of(rows)
    turned = Poll(
        "test",
        [
            replace(b, rating=(5 - b.rating) if b.rating else 0) if int(b.item[1:]) % 2 else b
            for b in poll.ballots
        ],
    )
    same = [agreements(one)["two votes on a pair are equal"].value for one in (poll, turned)]
    assert same[0] == same[1]
    whole = Poll(
        "test", [replace(b, rating=(5 - b.rating) if b.rating else 0) for b in poll.ballots]
    )
    for name, value in agreements(poll).items():
        assert agreements(whole)[name].value == pytest.approx(value.value) or value.value is None


def test_what_is_undefined_says_why():
    assert "no vote" in agreements(poll_of([]))["agreement"].reason
    alone = agreements(poll_of([("i", "w", "a"), ("j", "w", "b")]))
    assert "no item has two" in alone["Krippendorff's alpha, which response"].reason
    assert "no item has two votes" in alone["Fleiss' kappa"].reason
    assert "two annotators, here are 1" in alone["Cohen's kappa"].reason
    one = agreements(poll_of([(f"i{n}", w, "a") for n in range(9) for w in "uv"]))
    assert one["Krippendorff's alpha, which response"].value is None
    assert "equal" in one["Krippendorff's alpha, which response"].reason
    assert "one and the same label" in one["Cohen's kappa, linear weights"].reason
    assert one["Gwet's AC1 (one answer has 100%: read it beside alpha)"].value == 1


def test_the_kappa_paradox_shows_both():
    table = {("a", "a"): 80, ("a", "b"): 10, ("b", "a"): 10}
    rows, n = [], 0
    for (one, two), count in table.items():
        for _ in range(count):
            rows += [(f"i{n}", "u", one), (f"i{n}", "v", two)]
            n += 1
    found = agreements(poll_of(rows))
    assert found["Cohen's kappa, linear weights"].value == pytest.approx(-1 / 9)
    assert next(a for name, a in found.items() if "AC1" in name).value == pytest.approx(
        0.7561, abs=1e-4
    )


def test_repeats_and_gold_measure_the_annotator_and_are_no_opinions():
    gold = [
        Ballot(f"g{n}", "w", (0, 1), rating, kind="gold", gold=1)
        for n, rating in enumerate((4, 3, 2, 0))
    ]
    plain, again = Ballot("i", "w", (0, 1), 1), Ballot("i", "w", (1, 0), 2, repeat=1)
    other, changed = Ballot("j", "w", (0, 1), 1), Ballot("j", "w", (1, 0), 4, repeat=1)
    poll = Poll("test", [*gold, plain, other, again, changed])
    (skill,) = skills(poll)
    assert (skill.votes, skill.gold.value, skill.repeats.value) == (2, 0.5, 0.5)
    assert analyse(poll).items == 2
    assert [is_right(b) for b in gold] == [True, True, False, False]
    assert is_right(Ballot("g", "w", (0, 1, 2), ranking=(2, 1, 3), kind="gold", gold=1))
    assert not is_right(Ballot("g", "w", (0, 1, 2), ranking=(1, 1, 3), kind="gold", gold=1))


def test_skill_finds_who_guesses():
    rows = [(f"i{n}", f"w{w}", "ab"[(n * 7 % 3) % 2]) for n in range(60) for w in range(4)]
    rows += [(f"i{n}", "guess", "ab"[n % 2]) for n in range(60)]
    found = {s.annotator: s for s in skills(poll_of(rows))}
    assert found["guess"].reliability < 0.3 < 0.9 < found["w0"].reliability


def test_an_annotator_who_takes_the_first_slot_is_flagged_and_nobody_else(store):
    votes = [
        {
            "item": f"i{n}",
            "who": f"w{w}",
            "rating": (1, 4)[(n + n // 5) % 2],
            "order": ([0, 1], [1, 0])[(n * (w + 3) // 2) % 2],
            "seconds": 30 + (n * w) % 11,
        }
        for n in range(60)
        for w in range(6)
    ]
    votes += [
        {
            "item": f"i{n}",
            "who": "lazy",
            "rating": (1, 4)[n % 2],
            "order": ([0, 1], [1, 0])[n % 2],
            "seconds": 30,
        }
        for n in range(60)
    ]
    signs = {s.annotator: s for s in low_effort_signals(batch_poll(store, put(store, votes)))}
    assert "slots" in signs["lazy"].flags
    assert not any("slots" in s.flags for name, s in signs.items() if name != "lazy")


def test_scores_of_models_without_names_or_without_an_order_say_so():
    assert (
        "named models"
        in model_scores([c for b in [Ballot("i", "w", (0, 1), 1)] for c in choices_of(b)]).reason
    )
    never = model_scores(
        [c for b in [Ballot("i", "w", (0, 1), 1, models=("x", "y"))] for c in choices_of(b)]
    )
    assert "never lose" in never.reason
    seven = [
        Ballot(
            f"i{n}", "w", ((0, 1), (1, 0))[n // 10 % 2], 1 if n % 10 < 7 else 4, models=("x", "y")
        )
        for n in range(200)
    ]
    best, worst = model_scores([c for b in seven for c in choices_of(b)]).scores
    assert best.score - worst.score == pytest.approx(147.1907)
    assert best.low < best.score < best.high


def test_a_judges_letters_are_slots_and_failures_are_no_ties():
    assert [status_by_response(JudgeAnswer("i", "a", order)) for order in ((0, 1), (1, 0), ())] == [
        "a",
        "b",
        "a",
    ]
    both = ((0, 1), (1, 0))
    for first, second, word in (("a", "b", "a"), ("a", "a", "inconsistent")):
        given = [JudgeAnswer("i", s, order) for s, order in zip((first, second), both, strict=True)]
        assert verdicts_of(given) == {"i": word}
    assert verdicts_of([JudgeAnswer("i", "error"), JudgeAnswer("i", "invalid")]) == {"i": "invalid"}
    rows = [(f"i{n}", w, "a") for n in range(6) for w in "uv"]
    told = [
        JudgeAnswer("i0", "a"),
        JudgeAnswer("i1", "b"),
        JudgeAnswer("i2", "tie"),
        JudgeAnswer("i3", "invalid"),
        JudgeAnswer("i4", "error"),
    ]
    card = judge_card(poll_of(rows, judges={"j": told}), "j")
    assert card.statuses == {"a": 1, "b": 1, "tie": 1, "invalid": 1, "error": 1}
    assert (card.people.n, card.people.value) == (6, pytest.approx(1 / 3))


def test_a_judge_with_both_orders_shows_its_pull_and_sharpens_win_rates():
    rows = [(f"i{n}", w, "a" if n % 4 else "b") for n in range(20) for w in "uv"]
    told = [
        JudgeAnswer(f"i{n}", status, order)
        for n in range(60)
        for status, order in (("a", (0, 1)), ("b" if n % 5 else "a", (1, 0)))
    ]
    poll = poll_of(rows, judges={"j": told}, models={f"i{n}": ("x", "y") for n in range(60)})
    card = judge_card(poll, "j")
    assert card.both.pairs == 60
    assert card.both.consistency.value == pytest.approx(0.8)
    assert card.rates["x"].estimate.value == pytest.approx(1 - card.rates["y"].estimate.value)
    assert card.rates["x"].human.value == pytest.approx(0.75)


def test_pay_is_of_time_at_work_and_below_the_floor_a_batch_does_not_open(store):
    votes = [
        {
            "item": f"i{n}",
            "who": "slow" if n % 2 else "fast",
            "rating": 1,
            "seconds": 120 if n % 2 else 60,
        }
        for n in range(20)
    ]
    votes.append({"item": "i20", "who": "fast", "rating": 1})
    settings = {"pay_per_item": 0.2, "expected_seconds": 30, "pay_floor": 12}
    batch = put(store, votes, state="draft", **settings)
    found = hourly_pay(batch_poll(store, batch))
    assert (found.hourly.median, found.hourly.slowest, found.unknown) == (9.0, 6.0, 1)
    assert found.by_annotator == {"fast": pytest.approx(12.0), "slow": pytest.approx(6.0)}
    assert "9.00 USD an hour" in reason_not_to_open(store, batch)
    with pytest.raises(Refused, match=r"not opened.*floor is 12"):
        open_batch(store, batch, actor="c")
    assert summaries(store, batch)[0].state == "draft"
    change_settings(store, batch, BatchSettings(**{**settings, "pay_per_item": 0.3}), actor="c")
    open_batch(store, batch, actor="c")
    assert summaries(store, batch)[0].state == "open"


def test_an_estimate_below_the_floor_is_refused_and_a_few_votes_are_no_pilot(store):
    few = [{"item": "i", "who": f"w{n}", "rating": 1, "seconds": 3600} for n in range(3)]
    cheap = put(
        store,
        few,
        name="cheap",
        state="draft",
        pay_per_item=0.1,
        expected_seconds=60,
        pay_floor=6.01,
    )
    assert "the pay is 6.00 USD an hour, the floor is 6.01" in reason_not_to_open(store, cheap)
    with store.write() as session:
        row = session.get(Batch, cheap)
        row.settings = {**row.settings, "pay_floor": 6.0}
    assert reason_not_to_open(store, cheap) == ""


def test_progress_and_cost_count_what_is_paid(store):
    votes = [{"item": f"i{n}", "who": "w", "rating": 1} for n in range(4)]
    votes += [
        {"item": "i0", "who": "w", "rating": 1, "repeat": 1},
        {"item": "g", "who": "w", "rating": 1},
    ]
    votes += [
        {"item": "i4", "who": "w", "state": "skipped", "skip_reason": DISTRESSING},
        {"item": "i5", "who": "w", "state": "expired"},
    ]
    votes += [{"item": "i0", "who": "v", "state": "leased"}]
    items = {"g": {"kind": "gold", "gold": 0}}
    batch = put(
        store,
        votes,
        items=items,
        target_votes=2,
        pay_per_item=0.5,
        gold_share=0.1,
        repeat_share=0.1,
    )
    found = summaries(store, batch)[0]
    assert (found.items, found.votes, found.wanted, found.finished, found.annotators) == (
        6,
        4,
        12,
        0,
        1,
    )
    assert (found.leased, found.skipped, found.expired, found.distressing, found.paid) == (
        1,
        1,
        1,
        1,
        7,
    )
    assert (found.spent, found.expected) == (3.5, pytest.approx(3.5 + 8 / 0.8 * 0.5))


def test_a_change_of_settings_keeps_votes_in_bounds(store):
    batch = put(
        store,
        [{"item": "i", "who": f"w{n}", "rating": 1} for n in range(3)],
        target_votes=3,
        state="closed",
    )
    with pytest.raises(Refused, match="3 votes already"):
        change_settings(store, batch, BatchSettings(target_votes=2), actor="c")
    with pytest.raises(Refused, match="old form"):
        change_settings(store, batch, BatchSettings(form="ranking"), actor="c")
    change_settings(store, batch, BatchSettings(target_votes=5), actor="c")
    assert summaries(store, batch)[0].wanted == 5
    with store.write() as session:
        session.get(Batch, batch).state = "open"
    with pytest.raises(Refused, match="open"):
        change_settings(store, batch, BatchSettings(), actor="c")


def test_exposure_and_busy_hours(store, clock):
    clock.time = 3600.0 * 1000
    items = {f"i{n}": {"harm": ["hate", "violence"][: n % 3]} for n in range(6)}
    votes = [
        {"item": f"i{n}", "who": "w", "rating": 1, "at": clock.time - 90000 * (n > 3)}
        for n in range(6)
    ]
    put(store, votes, items=items)
    (one,) = exposure(store)
    assert (one.samples, one.today, one.kinds) == (4, 2, {"hate": 4, "violence": 2})
    crowd = [
        {"item": f"c{n}", "who": f"u{n % 4}", "rating": 1, "at": clock.time - 3600 * (n // 40)}
        for n in range(200)
    ]
    crowd += [{"item": f"c{n}", "who": "flood", "rating": 1, "at": clock.time} for n in range(180)]
    put(store, crowd, name="crowd")
    hours = votes_by_hour(store)
    assert [(h.annotator, h.votes) for h in hours if h.odd] == [("flood", 180)]
    assert sum(h.votes for h in hours) == 386


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot",
        "I was trained by OpenAI.",
        "My name is Chat\u200bGPT",
        "Ask \uff27\uff30\uff34-4 instead",
        "i am Claude",
        "as a large language model I",
        "Written by Zephyr-9x",
    ],
)
def test_words_that_tell_are_seen(text):
    assert telling_words(text, ["Zephyr-9x", "x"])


def test_ordinary_words_do_not_tell():
    assert (
        telling_words(
            "A model of the solar system, trained eyes, a bardic song, x and y, clauded, under palm"
            " trees.",
            ["x"],
        )
        == []
    )


def test_every_response_is_read_and_held_before_it_is_served(store):
    items = {
        "clean": {},
        "second": {
            "texts": ("fine", "Well. " * 3000 + "As an AI language model by OpenAI I refuse.")
        },
        "third": {"texts": ("ok", "good", "I, Zephyr-9x, say"), "models": ("x", "y", "Zephyr-9x")},
        "seen": {"texts": ("I am Claude", "no")},
        "gold": {"texts": ("I am Gemini", "no"), "kind": "gold", "gold": 1},
    }
    batch = put(store, [{"item": "seen", "who": "w", "rating": 1}], items=items, state="draft")
    assert open_batch(store, batch, actor="c") == 3
    with store.read() as session:
        kinds = {name: session.get(Item, name).kind for name in items}
        states = {
            f.item: (f.state, {place for place, _ in f.words})
            for f in flagged_items(session, batch)
        }
    assert kinds == {
        "clean": "normal",
        "second": HELD,
        "third": HELD,
        "seen": "normal",
        "gold": HELD,
    }
    assert states == {
        "second": (HELD, {1}),
        "third": (HELD, {2}),
        "seen": ("seen", {0}),
        "gold": (HELD, {0}),
    }
    assert summaries(store, batch)[0].held == 3
    decide_held_item(store, "gold", True, actor="c")
    decide_held_item(store, "second", False, actor="c")
    assert read_and_hold(store, batch) == 0  # what was decided stays decided
    with store.read() as session:
        assert [session.get(Item, name).kind for name in ("gold", "second", "third")] == [
            "gold",
            HELD,
            HELD,
        ]
    decide_held_item(store, "second", True, actor="c")
    with store.read() as session:
        assert session.get(Item, "second").kind == "normal"


def test_an_objection_that_is_upheld_is_no_mistake(store):
    items = {f"g{n}": {"kind": "gold", "gold": 0} for n in range(2)}
    batch = put(store, [{"item": f"g{n}", "who": "w", "rating": 4} for n in range(2)], items=items)
    assert skills(batch_poll(store, batch))[0].gold.n == 2
    with store.write() as session:
        wrong = session.scalar(select(Assignment.id).limit(1))
        session.add(Dispute(assignment_id=wrong, text="no", state="upheld", made_at=0))
    assert skills(batch_poll(store, batch))[0].gold.n == 1


def people_of(counts, **more):
    """Annotators by their answer to one question; None: silent."""
    names = [(f"{answer}{k}", answer) for answer, count in counts.items() for k in range(count)]
    return {name: {} if answer is None else {"age": answer, **more} for name, answer in names}


def test_composition_beside_a_population():
    told = people_of({"young": 10, "middle": 8, "old": 2})
    rows = [(f"i{n}", who, "a" if (n + len(who)) % 3 else "b") for n in range(5) for who in told]
    found = compute_demographics(
        poll_of(rows), told, {"age": {"young": 0.4, "middle": 0.4, "old": 0.2}}
    )
    (age,) = found.composition
    assert age.counts["old"] is None
    assert (
        sum(n is None for n in age.counts.values()) >= 2
    )  # the total would tell a single hidden cell
    shown = {name: n for name, n in age.counts.items() if n}
    assert set(age.shares) == {*shown, OTHER}
    assert 0 < age.distance < 0.3
    assert {g.answer for g in found.groups} == set(shown)
    assert all(g.people >= 5 for g in found.groups)


def test_the_distance_is_that_of_the_document():
    told = people_of({"x": 50, "y": 30, "z": 20, None: 7})
    found = compute_demographics(
        poll_of([("i", who, "a") for who in told]), told, {"age": {"x": 0.4, "y": 0.4, "z": 0.2}}
    )
    (age,) = found.composition
    assert age.distance == pytest.approx(0.1)
    assert age.counts[SILENT] == 7
    assert age.chi.statistic == pytest.approx(10**2 / 40 * 2)
    assert found.raking.effective == pytest.approx(
        100 / (50 * 0.8**2 + 30 * (4 / 3) ** 2 + 20) * 100
    )


def test_fewer_than_five_people_are_told_nothing_about():
    told = people_of({"x": 3, "y": 1})
    (age,) = compute_demographics(poll_of([("i", who, "a") for who in told]), told, {}).composition
    assert (age.people, age.shares, set(age.counts.values())) == (None, {}, {None})


def test_reading_demographics_is_recorded_and_stale_answers_are_not_read(store, clock):
    votes = [{"item": "i", "who": f"w{n}", "rating": 1} for n in range(6)]
    poll = batch_poll(store, put(store, votes))
    tell(store, {f"w{n}": {"age": "Prefer not to say" if n == 5 else "young"} for n in range(6)})
    assert demographics_of(store, poll, actor="c").answered == 5
    with store.read() as session:
        log = session.get(Audit, 1)
        assert (log.actor, log.action, log.subject) == ("c", "read demographics", "batch batch")
    clock.time += 2e6
    assert demographics_of(store, poll, actor="c").answered == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"age": 3}',
        '{"age": {"x": 1}}',
        '{"age": {"x": 0, "y": 0}}',
        '{"age": {"x": -1, "y": 2}}',
        '{"age": {"x": "1", "y": 2}}',
        '{"age": {"x": NaN, "y": 2}}',
    ],
)
def test_a_reference_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="reference"):
        parse_reference(text)


def test_a_reference_is_scaled():
    assert parse_reference('{"age": {"x": 1, "y": 3}}') == {"age": {"x": 0.25, "y": 0.75}}


def test_rankings_of_more_than_two(store):
    items = {f"i{n}": {"texts": ("one", "two two", "three three three")} for n in range(8)}
    votes = [
        {"item": item, "who": who, "ranking": ranks, "order": order}
        for item in items
        for who, ranks, order in (
            ("u", [1, 2, 3], [2, 1, 0]),
            ("v", [1, 3, 2], [0, 1, 2]),
            ("w", [2, 1, 3], [0, 2, 1]),
        )
    ]
    found = analyse(batch_poll(store, put(store, votes, items=items, form="ranking")))
    assert found.agreement["Kendall's W of rankings, mean over items"].value == pytest.approx(4 / 9)
    assert found.agreement["two votes on a pair are equal"].n == 8 * 3 * 3
    assert [s.model for s in found.models.scores] == ["x", "y", "z"]
    assert (
        found.models.slot is None
    )  # here the slot explains too much to be told apart; the scores stand without it
