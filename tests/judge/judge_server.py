"""A judge over a real socket that speaks OpenAI's wire, decides by the texts alone, and misbehaves
where asked to: in a thread of the test (`Scripted`), or as a process to be killed (`spawn`).

Each question has a digest: of the path and the body. The log has a line for each time it came, with
what it got: `answer`, or the name of a fault.
"""

import argparse
import hashlib
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = re.compile(r"<<< (\w+) ([0-9a-f]{8})\n(.*?)\n<<< end of \1 \2(?:\n|$)", re.DOTALL)
LABELS = ("A", "B", "C")


def quality(text):
    """How good a text is, from 0 to 7: its content decides, and nothing else."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 8


def shown_texts(body):
    """What is judged, by its name in the fence."""
    said = body.get("prompt") or "\n".join(one["content"] for one in body["messages"])
    return {name: text for name, _, text in DATA.findall(said)}


def label_chances(first, second):
    """P(A), P(B), P(C) of what is shown first and second; some pairs win by their place."""
    a, b = quality(first), quality(second)
    if (a + b) % 5 == 0:
        return {"A": 0.7, "B": 0.2, "C": 0.1}
    raw = {"A": math.exp(a - b), "B": math.exp(b - a), "C": 1.5}
    return {label: value / sum(raw.values()) for label, value in raw.items()}


def expected(first, second):
    """What this judge says to a pair in both orders, about the responses: statuses, soft label."""
    straight, swapped = label_chances(first, second), label_chances(second, first)
    words = {"A": "a", "B": "b", "C": "tie"}
    turned = {"A": "b", "B": "a", "C": "tie"}
    statuses = (
        words[max(straight, key=straight.get)],
        turned[max(swapped, key=swapped.get)],
    )
    chance = straight["A"] + straight["C"] / 2 + swapped["B"] + swapped["C"] / 2
    return statuses, chance / 2


def clear_pairs(count):
    """(first, second) of so many pairs of which one is better whatever the order."""
    found = []
    for i in range(10 * count):
        first, second = f"answer {i} of one", f"answer {i} of the other"
        if quality(first) != quality(second) and (quality(first) + quality(second)) % 5:
            found.append((first, second))
    return found[:count]


def answer_to(body):
    """The choice of an answer: a label, a number, yes or no."""
    texts = shown_texts(body)
    if "first" in texts:
        shares = label_chances(texts["first"], texts["second"])
        said = max(shares, key=shares.get)
    elif "response" in texts:
        said = str(quality(texts["response"]) + 1)
        if "The criterion:" in body["messages"][-1]["content"]:
            said = "Y" if quality(body["messages"][-1]["content"]) > 3 else "N"
        shares = {said: 1.0}
    else:
        said, shares = "Yes.", {"Yes.": 1.0}
    choice = {"index": 0, "finish_reason": "stop"}
    choice |= {"text": said} if "prompt" in body else {"message": {"content": said}}
    if body.get("logprobs"):
        listed = {token: math.log(0.9 * share) for token, share in shares.items()}
        if "prompt" in body:
            choice["logprobs"] = {"top_logprobs": [listed]}
        else:
            top = [{"token": token, "logprob": logp} for token, logp in listed.items()]
            drawn = {"token": said, "logprob": listed[said], "top_logprobs": top}
            choice["logprobs"] = {"content": [drawn]}
    return choice


def whole_answer(choice):
    """An answer of OpenAI's shape with this choice."""
    usage = {"prompt_tokens": 100, "completion_tokens": 1}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


# faults: functions of (handler, body) that answer in the server's place


def status(code, headers=(), said="not now"):
    """A refusal."""

    def fault(handler, body):
        data = json.dumps({"error": {"message": said}}).encode()
        handler.send(data, code, dict(headers))

    return fault


def raw(data):
    """These bytes as the answer."""
    return lambda handler, body: handler.send(data)


def shaped(answer):
    """This JSON as the answer."""
    return raw(json.dumps(answer).encode())


def content(text, **more):
    """An answer that says this."""
    return shaped(whole_answer({"message": {"content": text}, "finish_reason": "stop", **more}))


def reset(handler, body):
    """The connection is reset before a byte."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def half(handler, body):
    """Half an answer, and the connection closes."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "A"')
    handler.close_connection = True


def silent(handler, body):
    """The connection stays open, and nothing comes."""
    handler.server.scripted.over.wait(5)
    handler.close_connection = True


def drip(handler, body):
    """A byte now and then."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    while not handler.server.scripted.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


WIRE = {
    "429": status(429),
    "429 later": status(429, {"retry-after": "1"}),
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "reset": reset,
    "half": half,
    "silent": silent,
    "drip": drip,
    "garbage": raw(b"<html>busy</html>"),
    "half json": raw(b'{"choices": [{"message": {"content": "A"'),
    "not utf-8": raw(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "deep": raw(b"[" * 100_000),
    "huge": raw(b'{"choices": "' + b"A" * (9 << 20) + b'"}'),
    "nothing": raw(b""),
    "a list": shaped([]),
    "an object": shaped({}),
    "null": shaped(None),
    "no choices": shaped({"choices": []}),
    "choices a text": shaped({"choices": "A"}),
    "choice a text": shaped({"choices": ["A"]}),
    "choice empty": shaped({"choices": [{}]}),
    "message a number": shaped({"choices": [{"message": 7}]}),
}
"""After which the question is asked again."""
SAID = {
    "content null": content(None),
    "content a list": content([{"type": "text", "text": "A"}]),
    "content a number": content(1),
    "message a text": shaped({"choices": [{"message": "A"}]}),
    "empty": content(""),
    "blank": content(" \n\t\n"),
    "prose": content("I think that A is the better of the two, B is worse."),
    "both": content("A or B"),
    "both lines": content("A\nB"),
    "another letter": content("D"),
    "a number": content("1"),
    "cut off": content("Let me compare the two. Response A", finish_reason="length"),
    "cut thought": content("<think>\nFirst I look at\nVerdict: A\n", finish_reason="length"),
    "quoted": content("It says\nVerdict: A\nbut that is no verdict of mine."),
    "surrogate": content("\ud800"),
    "nul": content("A\0B"),
    "marks": content("_" * 50_000 + "!" + "_" * 50_000 + " :" * 20_000),
    "verdict and marks": content("verdict" + ":" * 100_000 + " a b"),
}
"""Answers that name no label."""


class Handler(BaseHTTPRequestHandler):
    """One connection; HTTP/1.1, so that connections are kept."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        self.server.scripted.take(self, None)

    def do_POST(self):
        size = int(self.headers.get("content-length", 0))
        self.server.scripted.take(self, json.loads(self.rfile.read(size) or b"{}"))

    def send(self, data, status=200, headers=None):
        """An answer."""
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Http(ThreadingHTTPServer):
    """Whose threads nobody waits for."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def handle_error(self, *_):
        """A client that hangs up is no news."""


class Scripted:
    """The server, while the block lasts. `fault(body, digest, time it came) -> a fault or None`;
    `asked`: how often each question came; `answered`: how often it got an answer.
    """

    def __init__(self, fault=None, *, port=0, log=None, pause=0.0, kinds=()):
        self.fault, self.pause, self.kinds = fault, pause, set(kinds)
        self.bodies, self.asked, self.answered = [], Counter(), Counter()
        self.guard, self.over = threading.Lock(), threading.Event()
        self.log = log
        self.times, self.hung, self.models = [], False, None
        self.http = Http(("127.0.0.1", port), Handler)
        self.http.scripted = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

    def take(self, handler, body):
        """Answer, or misbehave."""
        path = handler.path
        if self.hung:
            return silent(handler, body)
        if path == "/v1/models" and self.models:
            return self.models(handler, body)
        if path == "/v1/models":
            return handler.send(b'{"data": [{"id": "m"}]}')
        if path == "/tokenize" and "tokenize" in self.kinds:
            ids = {"A": [65], "B": [66], "C": [67]}.get(body["prompt"], [1, 2])
            return handler.send(json.dumps({"tokens": ids}).encode())
        if not path.endswith("completions"):
            return handler.send(b'{"detail": "Not Found"}', 404)
        digest = digest_of(path, body)
        with self.guard:
            self.asked[digest] += 1
            self.bodies.append(body)
            self.times.append(time.monotonic())
            count = self.asked[digest]
        time.sleep(self.pause)
        chosen = self.fault(body, digest, count) if self.fault else None
        if chosen is not None:
            self.note(digest, "fault")
            return chosen(handler, body)
        data = json.dumps(whole_answer(answer_to(body))).encode()
        # noted before it is sent: what a client may have kept stands in the log
        self.note(digest, "answer")
        handler.send(data)

    def note(self, digest, what):
        """A line of the log."""
        with self.guard:
            self.answered[digest] += what == "answer"
            if self.log:
                with open(self.log, "a") as file:
                    print(digest, what, file=file)


def digest_of(path, body):
    """What tells a question from all others."""
    return hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()[:16]


def read_log(path):
    """digest -> how often it was answered."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.split()[0] for line in lines if line.endswith(" answer"))


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(port, log, pause=0.0):
    """The server as a process of its own, once it listens."""
    command = [sys.executable, "-S", __file__, str(port), str(log), str(pause)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ""})
    until = time.monotonic() + 30
    while True:
        assert process.poll() is None and time.monotonic() < until
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log")
    parser.add_argument("pause", type=float)
    given = parser.parse_args()
    Scripted(port=given.port, log=given.log, pause=given.pause).http.serve_forever(0.05)
