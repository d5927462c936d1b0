"""The feedback server under fire: the LLMFAO crowd's votes replayed over HTTP against servers that
are killed, and 50 annotators at once.

python bench/bench_feedback.py replay ../shared/data/llmfao [--database URL] [--share .1]    every
vote arrives once, whatever is killed
python bench/bench_feedback.py load [--database URL] [--annotators 50] [--seconds 20]        p50 and
p99 of a submission Without --database: a SQLite file in a temporary folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import socket
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sqlalchemy import select

from laurel_feedback.store import accounts
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Item, Plan, Response, Vote

FORKS = get_context("forkserver")
"""Servers are forked from a process that has imported them: one that was killed is back within the
blink of an eye.
"""
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""One for all clients, who speak HTTP only: each would read every authority's certificate anew,
longer than its votes take.
"""
PATIENCE = 120.0
"""Seconds that a client tries for."""


def serve(database: str, port: int) -> None:
    """What the process of a server does. Limits are those of one address: all clients come from
    this one.
    """
    import uvicorn

    from laurel_feedback.web.app import create_app
    from laurel_feedback.web.security import Limits

    limits = Limits(answer=10**6, answer_address=10**6)
    app = create_app(Store(database), public_url=f"http://127.0.0.1:{port}", limits=limits)
    uvicorn.run(app, port=port, log_level="error")


class Servers:
    """Processes that serve one database, each on a port of its own; one that was killed is started
    again.

    kill_every: votes between two kills of a random one (0: none).
    """

    def __init__(
        self, database: str, count: int = 2, *, kill_every: int = 0, seed: int = 0
    ) -> None:
        self.database, self.kill_every, self.rng = database, kill_every, random.Random(seed)
        self.votes, self.kills, self.lock = 0, 0, threading.Lock()
        self.ports = [free_port() for _ in range(count)]
        self.running = {port: self.start(port) for port in self.ports}
        for port in self.ports:
            self.wait(port)

    def start(self, port: int) -> BaseProcess:
        process = FORKS.Process(target=serve, args=(self.database, port))
        process.start()
        return process

    def wait(self, port: int) -> None:
        """Until it answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(f"no server on port {port}")

    def voted(self) -> None:
        """One more vote was acknowledged. Whoever's vote it is that a kill is due at kills, while
        the others go on asking.
        """
        with self.lock:
            self.votes += 1
            if self.kill_every and self.votes % self.kill_every == 0:
                self.kill(self.rng.choice(self.ports))

    def kill(self, port: int) -> None:
        """kill -9, and a new one in its place."""
        self.running[port].kill()
        self.running[port].join()
        self.kills += 1
        self.running[port] = self.start(port)
        self.wait(port)

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()


@contextmanager
def servers(database: str, *, kill_every: int = 0) -> Iterator[Servers]:
    """Two servers, stopped at the end."""
    running = Servers(database, kill_every=kill_every)
    try:
        yield running
    finally:
        running.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    """An annotator's browser: a cookie, two servers to ask, and a habit of asking twice."""

    def __init__(self, ports: list[int], cookie: str, rng: random.Random, unruly: bool) -> None:
        self.ports, self.rng, self.unruly = ports, rng, unruly
        self.http = httpx2.Client(cookies={"laurel": cookie}, timeout=60.0, verify=PLAIN)
        self.retries = 0

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Until some server answers; a client in a hurry gives up at random and asks again, so that
        an answer arrives twice.
        """
        end = time.monotonic() + PATIENCE
        while True:
            port = self.rng.choice(self.ports)
            headers = {"Accept": "application/json", "Origin": f"http://127.0.0.1:{port}"}
            hurry = self.unruly and self.rng.random() < 0.05
            try:
                answer = self.http.request(
                    method,
                    f"http://127.0.0.1:{port}{path}",
                    headers=headers,
                    timeout=0.02 if hurry else 60.0,
                    **more,
                )
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            except httpx2.TransportError:
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"no answer to {method} {path}")
            self.retries += 1
            time.sleep(self.rng.uniform(0.01, 0.1))


def make_items(store: Store, rows: list[dict[str, Any]], settings: BatchSettings, name: str) -> int:
    """An open batch; rows: {"source", "prompt", "responses", "target", "for": ids of annotators or
    None}. Its id.
    """
    with store.write() as session:
        batch = Batch(name=name, state="open", settings=settings.model_dump(), made_at=store.now())
        session.add(batch)
        session.flush()
        for place, row in enumerate(rows):
            item = Item(
                id=uuid.uuid4().hex,
                batch_id=batch.id,
                place=place,
                prompt=[{"role": "user", "content": row["prompt"]}],
                content_hash=str(place),
                target=row["target"],
                source=row["source"],
            )
            session.add(item)
            session.flush()
            session.add_all(
                Response(id=uuid.uuid4().hex, item_id=item.id, place=k, text=text)
                for k, text in enumerate(row["responses"])
            )
            session.add_all(Plan(item_id=item.id, annotator_id=one) for one in row["for"] or ())
        return batch.id


def make_annotators(store: Store, names: list[str]) -> dict[str, tuple[int, str]]:
    """Name -> id and cookie of someone who has come and has signed."""
    made = {}
    for name in names:
        cookie = accounts.accept_invitation(
            store, accounts.invite_annotator(store, pseudonym=name)[1]
        )
        who = accounts.session_of(store, cookie)
        assert who is not None and who.annotator is not None
        accounts.consent(store, who.annotator, "keep 1")
        made[name] = who.annotator, cookie
    return made


def replay(
    database: str, folder: Path, *, share: float = 1.0, kill_every: int = 500, threads: int = 16
) -> dict[str, Any]:
    """Every annotator of the file rates what they rated there, left as left; what the database
    holds then, beside the file.
    """
    pairs = {
        str(row["id"]): row
        for row in map(json.loads, (folder / "pairs-crowd.jsonl").read_text().splitlines())
    }
    with (folder / "crowd-comparisons.csv").open(newline="") as file:
        votes = [row for row in csv.DictReader(file) if int(row["id"]) % 1000 < 1000 * share]
    store = Store(database)
    people_of = make_annotators(store, sorted({vote["worker"] for vote in votes}))
    raters: dict[str, dict[str, str]] = {}
    for vote in votes:
        raters.setdefault(vote["id"], {})[vote["worker"]] = vote["winner"]
    rows = [
        {
            "source": {"id": pair},
            "prompt": pairs[pair]["text"],
            "responses": [pairs[pair]["result_x"], pairs[pair]["result_y"]],
            "target": len(raters[pair]),
            "for": [people_of[worker][0] for worker in raters[pair]],
        }
        for pair in raters
    ]
    batch = make_items(store, rows, BatchSettings(allow_tie=True, hit_size=1000), "crowd")
    retries, began = [], time.perf_counter()

    def work(worker: str) -> None:
        client = Client(running.ports, people_of[worker][1], random.Random(worker), unruly=True)
        while not (sample := client.ask("GET", f"/work/{batch}/next.json").json()).get("done"):
            with store.read() as session:  # which pair that is, a browser is not told
                assignment = session.get_one(Assignment, sample["assignment"])
                pair, turned = assignment.item.source["id"], assignment.order[0] == 1
            winner = raters[pair][worker]
            rating = 0 if winner == "tie" else 1 if (winner == "left") != turned else 4
            form = {"csrf": sample["csrf"], "key": str(uuid.uuid4()), "rating": rating}
            path = f"/work/{batch}/samples/{sample['assignment']}/answer"
            answers = [
                client.ask("POST", path, data=form) for _ in range(1 + (client.rng.random() < 0.1))
            ]
            assert all(answer.status_code == 200 for answer in answers), [
                answer.text for answer in answers
            ]
            running.voted()
        retries.append(client.retries)

    with servers(database, kill_every=kill_every) as running, ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, people_of))
        spent, kills = time.perf_counter() - began, running.kills
    with store.read() as session:
        over = [item.id for item in session.scalars(select(Item)) if item.live != item.target]
    found = compare(held(store), [(vote["id"], vote["worker"], vote["winner"]) for vote in votes])
    store.close()
    return {
        "votes": len(votes),
        **found,
        "items off target": len(over),
        "kills": kills,
        "retries": sum(retries),
        "seconds": spent,
        "votes per second": len(votes) / spent,
    }


def held(store: Store) -> list[tuple[str, str, str, int]]:
    """Every revision of every vote in the database: pair, worker, what was chosen, revision."""
    said = {None: "nothing", 0: "tie", 1: "left", 4: "right"}
    columns = (
        select(Item.source, Annotator.pseudonym, Vote.rating, Vote.revision)
        .select_from(Vote)
        .join(Vote.assignment)
    )
    with store.read() as session:
        rows = session.execute(
            columns.join(Assignment.item).join(Annotator, Annotator.id == Assignment.annotator_id)
        )
        return [
            (row.source["id"], row.pseudonym, said.get(row.rating, "?"), row.revision)
            for row in rows
        ]


def compare(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Two lists of (pair, worker, choice, ...) as multisets."""
    one, two = Counter(tuple(row[:3]) for row in ours), Counter(tuple(row[:3]) for row in theirs)
    later = sum(row[3] > 1 for row in ours)
    return {
        "equal": one == two,
        "lost": (two - one).total(),
        "added": (one - two).total(),
        "revisions": later,
    }


def load(
    database: str,
    *,
    annotators: int = 50,
    seconds: float = 20.0,
    think: float = 3.0,
    items: int = 400,
) -> dict[str, Any]:
    """Annotators who all rate at once, each pausing `think` seconds on average before an answer:
    milliseconds of a submission.
    """
    store = Store(database)
    text = "word " * 150
    rows = [
        {
            "source": {},
            "prompt": f"question {n}",
            "responses": [text, text],
            "target": 1000,
            "for": None,
        }
        for n in range(items)
    ]
    batch = make_items(store, rows, BatchSettings(target_votes=1000, hit_size=10**6), "load")
    cookies = [
        cookie
        for _, cookie in make_annotators(store, [f"rater-{n}" for n in range(annotators)]).values()
    ]
    times, errors = [], []

    def work(n: int) -> None:
        client = Client(running.ports, cookies[n], random.Random(n), unruly=False)
        time.sleep(client.rng.uniform(0, 2 * think))  # people do not begin in the same second
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sample = client.ask("GET", f"/work/{batch}/next.json").json()
            time.sleep(client.rng.expovariate(1 / think))
            form = {
                "csrf": sample["csrf"],
                "key": str(uuid.uuid4()),
                "rating": client.rng.choice((1, 2, 3, 4)),
            }
            began = time.perf_counter()
            answer = client.ask(
                "POST", f"/work/{batch}/samples/{sample['assignment']}/answer", data=form
            )
            times.append(1000 * (time.perf_counter() - began))
            if answer.status_code != 200:
                errors.append(answer.text[:200])
        errors.extend(["retried"] * client.retries)

    with servers(database) as running, ThreadPoolExecutor(annotators) as pool:
        list(pool.map(work, range(annotators)))
    store.close()
    p50, p99 = np.percentile(times, (50, 99))
    return {
        "submissions": len(times),
        "errors": len(errors),
        "p50 ms": float(p50),
        "p99 ms": float(p99),
        "per second": len(times) / seconds,
    }


def main() -> int:
    """Print the figures; 1 where a vote was lost or an answer failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one, two = verbs.add_parser("replay"), verbs.add_parser("load")
    one.add_argument("folder", type=Path)
    one.add_argument("--share", type=float, default=1.0)
    one.add_argument("--kill_every", type=int, default=500, help="votes between two kills")
    two.add_argument("--annotators", type=int, default=50)
    two.add_argument("--seconds", type=float, default=20.0)
    two.add_argument("--think", type=float, default=3.0)
    two.add_argument("--items", type=int, default=400)
    for verb in (one, two):
        verb.add_argument("--database")
    args = parser.parse_args()
    FORKS.set_forkserver_preload(["laurel_feedback.web.app", "uvicorn"])
    with tempfile.TemporaryDirectory() as folder:
        database = args.database or os.path.join(folder, "feedback.db")
        if args.verb == "replay":
            found = replay(database, args.folder, share=args.share, kill_every=args.kill_every)
        else:
            found = load(
                database,
                annotators=args.annotators,
                seconds=args.seconds,
                think=args.think,
                items=args.items,
            )
    print(
        "\n".join(
            f"{name:18} {value:,.1f}" if isinstance(value, float) else f"{name:18} {value}"
            for name, value in found.items()
        )
    )
    return 0 if found.get("equal", True) and not found.get("errors") else 1


if __name__ == "__main__":
    sys.exit(main())
