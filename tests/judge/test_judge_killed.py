"""Killed in the middle of the verdicts: the server, or the one who asks. Nothing is lost, nothing
that was kept is asked again, and the files are those of a run that nobody disturbed.
"""

import json
import signal
import subprocess
import sys
import time

import pytest
from judge_server import Scripted, expected, free_port, read_log, spawn, status

from laurel.cli.main import main

FILES = ("verdicts.jsonl", "judgements.jsonl", "preferences.jsonl", "summary.json")
CONCURRENCY = 8


def write_source(folder, count):
    """So many pairs, ties and pairs that win by their place among them."""
    rows = [
        {"id": f"r{i}", "prompt": f"question {i}", "responses": [f"one of {i}", f"other of {i}"]}
        for i in range(count)
    ]
    path = folder / "source.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_judge(folder, url, **more):
    """The judge's file."""
    options = {"model": "m", "url": url, "label": "logprobs", "patience": 60, **more}
    path = folder / "judge.yaml"
    path.write_text(json.dumps(options))
    return path


def words_of(judge, source, output):
    return ["judge", "run", str(judge), str(source), "--output_dir", str(output)]


def files_of(folder):
    """What a run came to."""
    return {name: (folder / name).read_bytes() for name in FILES}


def wait_until(true, seconds=120):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def finished(process, log, code=0, seconds=300):
    """It ends by itself, with this exit code."""
    assert process.wait(seconds) == code, log.read_text()
    return log.read_text()


class Disturbed:
    """A scripted server as a process, with its log, and a source; and the undisturbed run."""

    def __init__(self, folder, count):
        self.folder, self.count = folder, count
        self.source = write_source(folder, count)
        self.port, self.log = free_port(), folder / "server.log"
        self.judge = write_judge(folder, f"http://127.0.0.1:{self.port}")
        self.process = None
        with Scripted(port=self.port):
            assert main(words_of(self.judge, self.source, folder / "calm")) == 0
        self.calm = files_of(folder / "calm")

    def serve(self):
        self.process = spawn(self.port, self.log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def begin(self, output):
        """The run as a process."""
        words = words_of(self.judge, self.source, self.folder / output)
        with (self.folder / f"{output}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "laurel", *words], stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def answered(self):
        return sum(read_log(self.log).values())

    def asked_twice(self):
        return sum(count - 1 for count in read_log(self.log).values())


@pytest.fixture
def disturbed(tmp_path):
    """`disturbed(count)`; its server ends with the test."""
    made = []

    def make(count):
        made.append(Disturbed(tmp_path, count))
        return made[0]

    yield make
    for one in made:
        if one.process is not None:
            one.kill()


def server_is_killed(found, shares):
    """And started again: the run goes on by itself."""
    found.serve()
    run = found.begin("killed")
    for share in shares:
        wait_until(lambda share=share: found.answered > share * 2 * found.count)
        found.kill()
        time.sleep(0.3)
        found.serve()
    finished(run, found.folder / "killed.log")
    assert files_of(found.folder / "killed") == found.calm
    assert len(read_log(found.log)) >= 2 * found.count
    assert found.asked_twice() <= 2 * CONCURRENCY


def client_is_killed(found, shares):
    """With -9, and started again: it goes on where it was."""
    found.log.unlink(missing_ok=True)
    if found.process is None:
        found.serve()
    else:
        found.kill()
        found.serve()
    for share in shares:
        run = found.begin("again")
        wait_until(lambda share=share: found.answered > share * 2 * found.count)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        assert not (found.folder / "again" / "verdicts.jsonl").exists()
    said = finished(found.begin("again"), found.folder / "again.log")
    assert "answers were known" in said
    assert files_of(found.folder / "again") == found.calm
    assert found.asked_twice() <= 2 * CONCURRENCY


def server_stays_down(found):
    """The run ends with an error that says how to go on, and so does the command."""
    write_judge(found.folder, f"http://127.0.0.1:{found.port}", patience=0.5)
    found.log.unlink(missing_ok=True)
    if found.process is not None:
        found.kill()
    found.serve()
    run = found.begin("down")
    wait_until(lambda: found.answered > found.count)
    found.kill()
    said = finished(run, found.folder / "down.log", code=1)
    assert "the server is down" in said and "is kept, and is not asked twice" in said
    assert not (found.folder / "down" / "verdicts.jsonl").exists()
    found.serve()
    finished(found.begin("down"), found.folder / "down.log")
    assert files_of(found.folder / "down") == found.calm
    assert found.asked_twice() <= CONCURRENCY


def test_the_undisturbed_run_is_right(tmp_path):
    """Each verdict, in both orders, is what the judge says of those two texts."""
    source = write_source(tmp_path, 40)
    with Scripted() as server:
        judge = write_judge(tmp_path, server.url, price=[1.0, 10.0])
        assert main(words_of(judge, source, tmp_path / "out")) == 0
    verdicts = [
        json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").read_text().splitlines()
    ]
    judged = [
        json.loads(line) for line in (tmp_path / "out/judgements.jsonl").read_text().splitlines()
    ]
    kept = {
        row["id"]: row
        for row in map(json.loads, (tmp_path / "out/preferences.jsonl").read_text().splitlines())
    }
    for i, one in enumerate(judged):
        statuses, chance = expected(f"one of {i}", f"other of {i}")
        mine = [row for row in verdicts if row["id"] == one["id"]]
        assert [row["order"] for row in mine] == [[0, 1], [1, 0]]
        assert tuple(row["status"] for row in mine) == statuses
        assert abs(one["soft_label"] - chance) < 1e-9
        same = statuses[0] == statuses[1]
        assert one["status"] == (statuses[0] if same else "inconsistent")
        if one["id"] in kept:
            label = kept[one["id"]]["soft_label"]
            assert abs(label - max(chance, 1 - chance)) < 1e-6
            better = "one" if chance > 0.5 else "other"
            assert kept[one["id"]]["chosen"] == f"{better} of {i}"
    assert {one["status"] for one in judged} == {"a", "b", "tie", "inconsistent"}
    facts = json.loads((tmp_path / "out/summary.json").read_text())
    assert facts["tokens"] == [8000, 80] and facts["cost"] == pytest.approx(0.0088)


def test_errors_are_left_and_asked_again(tmp_path, capsys, hasty):
    """Exit code 1, rows that say why, no preference made of them; a second run asks those alone."""
    source = write_source(tmp_path, 30)

    def fault(body, digest, count):
        said = body["messages"][-1]["content"]
        return status(500) if "question 3\n" in said or "question 17\n" in said else None

    with Scripted(fault) as server:
        judge = write_judge(tmp_path, server.url, retries=0, label="text")
        words = words_of(judge, source, tmp_path / "out")
        assert main(words) == 1
        assert "2 got no answer: the same command asks them again" in capsys.readouterr().err
        judged = [
            json.loads(line)
            for line in (tmp_path / "out/judgements.jsonl").read_text().splitlines()
        ]
        failed = {row["id"] for row in judged if row["status"] == "error"}
        assert {row["prompt"] for row in judged if row["id"] in failed} == {
            "question 3",
            "question 17",
        }
        assert all(row["soft_label"] is None for row in judged if row["id"] in failed)
        prefer = [
            json.loads(line)
            for line in (tmp_path / "out/preferences.jsonl").read_text().splitlines()
        ]
        assert not failed & {row["id"] for row in prefer}
        server.fault = None
        server.bodies.clear()
        assert main(words) == 0
        assert len(server.bodies) == 4
    with Scripted() as server:
        judge = write_judge(tmp_path, server.url, label="text")
        assert main(words_of(judge, source, tmp_path / "calm")) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm")


def test_killed_among_two_hundred_verdicts(disturbed):
    """The quick one: server killed, asker killed, server down for good."""
    found = disturbed(100)
    server_is_killed(found, [0.5])
    client_is_killed(found, [0.5])
    server_stays_down(found)


@pytest.mark.whole
def test_killed_among_two_thousand_verdicts(disturbed):
    found = disturbed(1000)
    server_is_killed(found, [0.3, 0.6])
    client_is_killed(found, [0.3, 0.6])
    server_stays_down(found)
