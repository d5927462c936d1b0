"""Annotators: EM by hand and on simulated votes, signs by hand, and seven cheaters planted among
real workers.
"""

import csv
import json
from collections import Counter, defaultdict
from itertools import permutations

import numpy as np
import pytest

from laurel.measure.annotators import dawid_skene, one_coin, signals
from laurel.measure.crowd import Vote, robust_z, runs_z, spread

SMALL = [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 0)]
"""Two items, two annotators: both say 0 of the first; of the second, one says 1 and the other 0."""
CANONICAL = {"left": "a", "tie": "tie", "right": "b"}


def test_dawid_skene_by_hand():
    """M from shares: p = (.75, .25), pi_A = (2/3 1/3; 0 1), pi_B = (1 0; 1 0). E: (.5, 0) and (.25,
    .25): the shares again.
    """
    found = dawid_skene(SMALL)
    assert found.posterior == pytest.approx(np.array([[1, 0], [0.5, 0.5]]), abs=1e-9)
    assert found.confusion[0] == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]), abs=1e-9)
    assert found.prior == pytest.approx([0.75, 0.25]) and found.skill == pytest.approx([0.75, 0.75])
    assert found.objective == pytest.approx(2 * np.log(0.5))


def test_one_coin_first_step_by_hand():
    """s = .75 each, p = (.75, .25): first item 27 to 1, second .75 * .25 * .75 against .25 * .75 *
    .25, 3 to 1.
    """
    found = one_coin(SMALL, steps=1)
    assert found.skill == pytest.approx([0.75, 0.75])
    assert found.posterior == pytest.approx(np.array([[27 / 28, 1 / 28], [0.75, 0.25]]))


def simulated(seed, skills, items=400, classes=3, share=0.6):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, items)
    rows = []
    for k, skill in enumerate(skills):
        for i in np.flatnonzero(rng.random(items) < share):
            wrong = (truth[i] + rng.integers(1, classes)) % classes
            rows.append((int(i), k, int(truth[i] if rng.random() < skill else wrong)))
    return truth, np.array(rows)


@pytest.mark.parametrize("model", [dawid_skene, one_coin])
def test_skills_are_recovered_and_beat_the_majority(model):
    skills = [0.95, 0.9, 0.4, 0.4, 0.35, 0.4]
    truth, rows = simulated(0, skills)
    found = model(rows)
    assert found.skill == pytest.approx(skills, abs=0.07)
    counts = np.zeros((len(truth), 3))
    np.add.at(counts, (rows[:, 0], rows[:, 2]), 1)
    right = (found.posterior.argmax(1) == truth[found.items]).mean()
    assert right > (counts.argmax(1) == truth).mean() + 0.1 and right > 0.8


def test_one_who_always_says_the_opposite_informs():
    truth, rows = simulated(1, [0.8, 0.8, 0.75, 0.03], classes=2)
    found = dawid_skene(rows)
    assert found.skill[3] < 0.12
    assert (found.posterior.argmax(1) == truth[found.items]).mean() > 0.93


@pytest.mark.parametrize("model", [dawid_skene, one_coin])
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_names_and_order_do_not_matter_and_the_objective_climbs(model, smoothing):
    _, rows = simulated(2, [0.8, 0.6, 0.7], items=60)
    found = model(rows, smoothing=smoothing)
    mixed = np.random.default_rng(0).permutation(rows)
    mixed = np.stack([7 * mixed[:, 0] + 3, 9 - mixed[:, 1], 2 - mixed[:, 2]], 1)
    again = model(mixed, smoothing=smoothing)
    assert again.posterior[:, ::-1] == pytest.approx(found.posterior, abs=1e-5)
    assert again.skill[::-1] == pytest.approx(
        found.skill, abs=1e-5
    ) and again.annotators.tolist() == [7, 8, 9]
    climbed = [model(rows, smoothing=smoothing, steps=k).objective for k in (1, 2, 3, 5, 8, 20)]
    assert climbed == sorted(climbed) and climbed[0] < climbed[-1]
    assert found.posterior.sum(1) == pytest.approx(1) and found.confusion.sum(2) == pytest.approx(1)


def test_smoothing_keeps_one_vote_from_certainty():
    rows = [(0, 0, 0), (1, 0, 1), (2, 0, 0)]
    assert (
        dawid_skene(rows).skill == pytest.approx([1])
        and dawid_skene(rows, smoothing=1.0).skill[0] < 0.8
    )


@pytest.mark.parametrize(
    "votes", [[], [(0, 0)], [(0, 0, -1)], [(0, 0, 0)], np.array([[0.0, 0.0, 1.0]])]
)
def test_votes_that_are_none_are_refused(votes):
    with pytest.raises(ValueError):
        dawid_skene(votes)
    with pytest.raises(ValueError):
        one_coin(votes)


def test_labels_beyond_the_classes_and_bad_smoothing_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        dawid_skene([(0, 0, 2)], classes=2)
    with pytest.raises(ValueError, match="smoothing"):
        dawid_skene([(0, 0, 1)], smoothing=-1)


def test_robust_z_published_times():
    found = robust_z(np.log([41, 38, 45, 52, 39, 44, 40, 47, 43, 3]))
    assert found[-1] == pytest.approx(-24.88, abs=5e-3) and sorted(np.abs(found))[
        -2
    ] == pytest.approx(2.02, abs=5e-3)
    assert robust_z([1, 1, 1, 5]) is None and robust_z([]) is None


def test_runs_by_hand_and_over_every_order():
    """LRLR: 4 runs, expected 3, variance 2/3. For aabbc the mean and variance over all 120 orders
    are the formula's.
    """
    assert runs_z("LRLR") == pytest.approx(1 / np.sqrt(2 / 3)) and runs_z("LLRR") == pytest.approx(
        -1 / np.sqrt(2 / 3)
    )
    assert runs_z("LLLL") is None and runs_z("") is None
    scores = [runs_z(order) for order in permutations("aabbc")]
    assert np.mean(scores) == pytest.approx(0, abs=1e-12) and np.var(scores) == pytest.approx(1)


def test_spread_is_that_of_people_and_not_of_sampling():
    rng = np.random.default_rng(0)
    error = rng.uniform(0.02, 0.2, 4000)
    middle, tau = spread(1 + rng.normal(0, 0.1, 4000) + rng.normal(size=4000) * error, error)
    assert middle == pytest.approx(1, abs=0.01) and tau == pytest.approx(0.1, abs=0.01)
    assert spread(rng.normal(size=4000) * error, error)[1] < 0.02
    spoiled = 1 + rng.normal(0, 0.1, 4000)
    spoiled[:200] = 9.0
    assert spread(spoiled, error * 0)[1] == pytest.approx(0.1, abs=0.012)


def crowd(seed, annotators=60, items=400, each=80, skill=0.65):
    """Honest annotators of equal skill; the sides are shuffled, the model is right in 80 % of
    cases.
    """
    rng = np.random.default_rng(seed)
    truth, model = rng.integers(0, 3, items), rng.integers(0, 3, items)
    model = np.where(rng.random(items) < 0.7, truth, model)
    votes = []
    for k in range(annotators):
        for i in rng.choice(items, each, replace=False):
            label = truth[i] if rng.random() < skill else rng.integers(3)
            votes.append(
                cast(int(i), k, label, rng, model[i], seconds=float(np.exp(rng.normal(3.7, 0.4))))
            )
    return truth, votes


def cast(item, who, label, rng, model=None, seconds=None):
    slot = int(label) if rng.random() < 0.5 else 2 - int(label)
    labels = ("a", "tie", "b")
    said = None if model is None else labels[model]
    return Vote(
        item,
        who,
        ("left", "tie", "right")[slot],
        labels[label],
        seconds=seconds,
        words=100,
        model_label=said,
    )


def test_honest_annotators_are_rarely_flagged():
    """600 honest annotators in ten batches: nine signs at .05 a batch allow about 4.5; more than 12
    would be too many.
    """
    panels = [signals(crowd(seed)[1]) for seed in range(10)]
    assert sum(bool(one.flags) for panel in panels for one in panel) <= 12
    first = panels[0][0]
    assert (
        first.n == 80
        and 0.1 < first.agreement.value < 0.9
        and first.pasted.value is None
        and first.pasted.reason == "no written rationale"
    )


def test_who_honestly_says_tie_often_is_shown_by_ties_and_not_by_agreement():
    """Everybody sees how far apart two responses are, give or take; three people call all but the
    clearest pairs a tie.
    """
    for seed in range(2):
        rng = np.random.default_rng(seed)
        gap, votes = rng.normal(size=400), []
        for k in range(63):
            far, many = (1.5, 300) if k >= 60 else (0.3 * np.exp(0.3 * rng.normal()), 80)
            for i in rng.choice(400, many, replace=False):
                seen = gap[i] + 0.3 * rng.normal()
                votes.append(cast(int(i), k, 1 if abs(seen) < far else 0 if seen > 0 else 2, rng))
        panel = signals(votes)[60:]
        assert all(one.ties.value > 0.75 and one.ties.flag for one in panel)
        assert not any(one.agreement.flag for one in panel)
        assert all(one.agreement.value is not None for one in panel)


def test_half_effort_shows_in_a_crowd_of_equal_skill():
    found = 0
    for seed in range(6):
        truth, votes = crowd(seed)
        rng = np.random.default_rng(seed)
        for i in rng.choice(400, 150, replace=False):
            label = truth[i] if rng.random() < 0.325 else rng.integers(3)
            votes.append(cast(int(i), "half", label, rng))
        found += "agreement" in signals(votes)[-1].flags
    assert found >= 4


def test_values_of_signs_by_hand():
    """Six left, two right, two ties: |6 - 2| / sqrt(8), share of ties .2, entropy 1.371 bits; two
    of four timed votes under 100 words
    at 600 a minute = 10 s; one of two rationales pasted."""
    sides = ["left"] * 6 + ["right"] * 2 + ["tie"] * 2
    seconds = [5.0, 9.9, 10.0, 40.0] + [None] * 6
    pasted = [0.5, 0.49] + [None] * 8
    votes = [
        Vote(i, "x", side, CANONICAL[side], seconds=seconds[i], words=100, pasted=pasted[i])
        for i, side in enumerate(sides)
    ]
    (found,) = signals(votes)
    assert found.slots.value == pytest.approx(4 / np.sqrt(8)) and found.ties.value == pytest.approx(
        0.2
    )
    assert (
        found.entropy.value == pytest.approx(-(0.6 * np.log2(0.6) + 0.4 * np.log2(0.2)))
        and found.reading.value == 0.5
    )
    assert (
        found.pasted.value == 0.5
        and found.speed.value == pytest.approx(np.sqrt(9.9 * 10))
        and found.alternation.value == pytest.approx(runs_z(sides))
    )
    assert (
        found.agreement.value is None
        and "peer" in found.agreement.reason
        and found.echo.value is None
    )
    assert found.flags == () and "too few" in found.slots.reason


def test_agreement_beyond_chance_ignores_names_of_responses_and_of_people():
    _, votes = crowd(0, annotators=8, items=60, each=40)
    found = {one.annotator: one for one in signals(votes)}
    other = {"a": "b", "tie": "tie", "b": "a", None: None}
    turned = [
        Vote(
            ("i", v.item),
            f"w{v.annotator}",
            v.slot_label,
            other[v.label],
            v.seconds,
            v.words,
            other[v.model_label],
        )
        for v in votes
    ]
    for one in signals(turned):
        before = found[int(one.annotator[1:])]
        assert one.agreement.value == pytest.approx(before.agreement.value, abs=1e-6)
        assert one.echo.value == pytest.approx(before.echo.value) and one.slots == before.slots


@pytest.mark.parametrize(
    ("votes", "match"),
    [
        ([], "at least one"),
        ([Vote(1, "x", "left", "left")], "labels are"),
        ([Vote(1, "x", "a", "a")], "slots"),
        ([Vote(1, "x", "left", "a", model_label="left")], "model"),
        ([Vote(1, "x", "left", "a"), Vote(1, "x", "right", "b")], "twice"),
    ],
)
def test_votes_that_cannot_be_are_refused(votes, match):
    with pytest.raises(ValueError, match=match):
        signals(votes)


def test_alpha_is_a_probability():
    with pytest.raises(ValueError, match="alpha"):
        signals([Vote(1, "x", "left", "a")], alpha=0)


def llmfao(shared, seed):
    """The real votes, with GPT-4's answers and the words of each pair. Times are not in the data:
    honest ones, at 200 words a minute
    give or take, are drawn here."""
    judge = {
        int(row["id"]): row["winner"]
        for row in csv.DictReader(shared("data/llmfao/gpt4-crowd-comparisons.csv").open())
    }
    pairs = map(json.loads, shared("data/llmfao/pairs-crowd.jsonl").read_text().splitlines())
    words = {
        pair["id"]: len(f"{pair['text']} {pair['result_x']} {pair['result_y']}".split())
        for pair in pairs
    }
    rng = np.random.default_rng(seed)

    def vote(item, who, slot, pace=200.0):
        seconds = words[item] * 60 / pace * float(np.exp(rng.normal(0, 0.4)))
        return Vote(item, who, slot, CANONICAL[slot], seconds, words[item], CANONICAL[judge[item]])

    rows = csv.DictReader(shared("data/llmfao/crowd-comparisons.csv").open())
    return (
        [vote(int(row["id"]), int(row["worker"]), row["winner"]) for row in rows],
        vote,
        judge,
        rng,
    )


def plant(real, vote, judge, rng, n):
    """Seven cheaters, n items each; the half-hearted one copies a real worker's vote, or guesses in
    no time.
    """
    slots, given = ("left", "tie", "right"), defaultdict(list)
    for one in real:
        given[one.item].append(one.slot_label)
    everyone = [one.slot_label for one in real]
    for kind in ("uniform", "matched", "left", "tie", "alternate", "half", "copies"):
        for k, item in enumerate(sorted(rng.choice(sorted(given), n, replace=False).tolist())):
            guess, honest = slots[rng.integers(3)], rng.random() < 0.5
            slot = {
                "uniform": guess,
                "matched": everyone[rng.integers(len(everyone))],
                "left": "left",
                "tie": "tie",
                "alternate": ("left", "right")[k % 2],
                "half": given[item][rng.integers(len(given[item]))] if honest else guess,
                "copies": judge[item],
            }[kind]
            yield vote(item, kind, slot, 5000.0 if kind == "half" and not honest else 200.0)


SHOWN_BY = {
    "uniform": "agreement",
    "matched": "agreement",
    "left": "slots",
    "tie": "ties",
    "alternate": "alternation",
    "half": "reading",
    "copies": "echo",
}


def test_seven_cheaters_among_real_workers(shared):
    """Guessing of either kind has power .97 at 150 votes, so it may be missed once in five; all
    else shows every time.
    """
    caught = Counter()
    for seed in range(5):
        real, vote, judge, rng = llmfao(shared, seed)
        panel = {
            one.annotator: one for one in signals([*real, *plant(real, vote, judge, rng, 150)])
        }
        caught.update(kind for kind, sign in SHOWN_BY.items() if sign in panel[kind].flags)
        workers = [one for name, one in panel.items() if isinstance(name, int)]
        assert len(workers) == 124 and sum(bool(one.flags) for one in workers) <= 0.05 * 124
        assert (
            "slots" not in panel["copies"].flags and "echo" not in panel["left"].flags
        )  # each sign is of its own cheat
        assert panel["half"].agreement.flag is False  # what only times can tell
    assert all(caught[kind] == 5 for kind in ("left", "tie", "alternate", "half", "copies")), caught
    assert caught["uniform"] >= 4 and caught["matched"] >= 4, caught
