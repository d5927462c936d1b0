"""Votes of the LLMFAO crowd over HTTP against two servers that are killed at random: all of them
arrive, each once.
"""

import sys
from pathlib import Path

import processes  # noqa: F401  servers are forked from the process that it makes
import pytest

from laurel_feedback.store.database import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import bench_feedback

pytestmark = pytest.mark.slow


def test_every_vote_arrives_once_whatever_is_killed(url, shared):
    """A few of the pairs here; bench/bench_feedback.py replays them all."""
    found = bench_feedback.replay(
        url, shared("data/llmfao/crowd-comparisons.csv").parent, share=0.025, kill_every=50
    )
    print(found)
    assert found["votes"] > 120
    assert found["kills"] == found["votes"] // 50 >= 2
    assert found["retries"] > 0
    assert (
        found["equal"],
        found["lost"],
        found["added"],
        found["items off target"],
        found["revisions"],
    ) == (True, 0, 0, 0, 0)


def test_the_replay_notices_a_lost_and_a_doubled_vote(tmp_path, shared):
    """What the first test asserts can fail: with a vote taken out of the file, the database has one
    too many, and the reverse.
    """
    folder = shared("data/llmfao/crowd-comparisons.csv").parent
    for name in ("pairs-crowd.jsonl", "crowd-comparisons.csv"):
        (tmp_path / name).symlink_to(folder / name)
    whole = bench_feedback.replay(str(tmp_path / "a.db"), tmp_path, share=0.005, kill_every=0)
    assert whole["equal"]
    store = Store(str(tmp_path / "a.db"))
    rows = bench_feedback.held(store)
    assert bench_feedback.compare(rows[1:], rows)["lost"] == 1
    assert bench_feedback.compare([*rows, rows[0]], rows)["added"] == 1
    store.close()


def test_many_annotators_at_once_meet_no_error(tmp_path):
    """Twelve at once, each of whom thinks for a fifth of a second: as many submissions as of slower
    ones in more time.
    """
    found = bench_feedback.load(
        str(tmp_path / "load.db"), annotators=12, seconds=2.0, think=0.2, items=30
    )
    assert found["errors"] == 0
    assert found["submissions"] > 20
