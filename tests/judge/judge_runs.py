"""A real server, a process that is killed among its verdicts, and `laurel judge run` beside it."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import httpx2
from judge_server import free_port

PROMPT = """\
name: short
version: 1
user: |
  {prompt}
  {first}
  {second}
  Which is better, A or B?
answer_prefix: "The better one is"
choices: {A: the first, B: the second}
labels: {A: a, B: b}
fence: false
"""
FILES = ("verdicts.jsonl", "judgements.jsonl", "preferences.jsonl", "summary.json")


class Served:
    """`laurel serve` on a port, and a source that is judged with it; subclasses: other servers."""

    name, prompt = "m", PROMPT
    each = 1

    def __init__(self, folder, model, count, **options):
        self.folder, self.model, self.count = folder, model, count
        self.port = free_port()
        self.process = None
        (folder / "short.yaml").write_text(self.prompt)
        rows = [
            {"prompt": f"Once there were {i} cats.", "responses": [f"They ran {i}.", f"{i} sat."]}
            for i in range(count)
        ]
        self.source = folder / "source.jsonl"
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.judge = folder / "judge.yaml"
        url = f"http://127.0.0.1:{self.port}"
        how = {"label": "logprobs", "least_mass": 0.0, "prompt": "short.yaml", "patience": 120}
        self.judge.write_text(
            json.dumps({"model": self.name or str(model), "url": url, **how, **options})
        )

    def command(self):
        """What serves the model."""
        words = ["serve", str(self.model), "--port", str(self.port), "--served_model_name", "m"]
        return [sys.executable, "-m", "laurel", *words], {}

    def serve(self):
        """Begin; whoever asks waits until it listens."""
        command, settings = self.command()
        with (self.folder / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **settings},
                start_new_session=True,
            )

    def kill(self):
        """The server, and the processes that it began."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def asked(self):
        """How many answers the server has given since it started; None where it does not say."""
        text = httpx2.get(f"http://127.0.0.1:{self.port}/metrics").text
        found = re.findall(r"^\w+:request_success_total\{.*\} ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def begin(self, output):
        words = ["judge", "run", str(self.judge), str(self.source)]
        with (self.folder / f"{output}.log").open("w") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "laurel", *words),
                    *("--output_dir", str(self.folder / output)),
                ],
                stdout=log,
                stderr=log,
            )

    def finish(self, run, output):
        assert run.wait(600) == 0, (self.folder / f"{output}.log").read_text()
        return (self.folder / f"{output}.log").read_text()

    def kept(self, output):
        """How many answers are on disk."""
        path = self.folder / output / "answers.sqlite"
        if not path.exists():
            return 0
        try:
            with closing(sqlite3.connect(path)) as base:
                return base.execute("SELECT count(*) FROM answer").fetchone()[0]
        except sqlite3.OperationalError:
            return 0

    def wait_for(self, output, share):
        until = time.monotonic() + 300
        while self.kept(output) < share * 2 * self.count * self.each:
            assert time.monotonic() < until, (self.folder / f"{output}.log").read_text()
            time.sleep(0.02)

    def files(self, output):
        return {name: (self.folder / output / name).read_bytes() for name in FILES}


def killed_and_continued(found):
    """The undisturbed run, then the server killed, then who asks."""
    found.serve()
    try:
        found.finish(found.begin("calm"), "calm")
        calm = found.files("calm")
        statuses = [json.loads(line)["status"] for line in calm["judgements.jsonl"].splitlines()]
        assert len(statuses) == found.count
        assert {"invalid"} < set(statuses) | {"invalid"} <= {"a", "b", "inconsistent", "invalid"}
        run = found.begin("server")
        found.wait_for("server", 0.4)
        found.kill()
        assert run.poll() is None
        found.serve()
        found.finish(run, "server")
        assert found.files("server") == calm
        run = found.begin("asker")
        found.wait_for("asker", 0.4)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        # one row says in which way it asks
        kept = found.kept("asker") - (found.each == 1)
        before = found.asked()
        said = found.finish(found.begin("asker"), "asker")
        assert found.files("asker") == calm
        assert f"{kept} answers were known" in said
        if before is not None:
            assert 0 < found.asked() - before <= 2 * found.count - kept
    finally:
        found.kill()
