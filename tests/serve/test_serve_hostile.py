"""Hostile requests: no crash, no 500, nothing opened outside, and memory that stays."""

import asyncio
import json
import os
import random
import string

import psutil
import pytest
from serving import running, tiny
from test_serve_wire import ask

from laurel.search.served import PlanChooser, ServedPlan

PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/score",
    "/tokenize",
    "/detokenize",
    "/collective_rpc",
    "/weight_checker",
    "/update_weight_version",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/pause?mode=\udce2",
    "/is_paused",
)
TRICKS = (
    "../../etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "allowed/../../..",
    "\0",
    "a\0b",
    "~root",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "\\\\server\\share",
    "{{ ''.__class__.__mro__ }}",
    "%2e%2e%2f",
    "\ud800",
    "x" * 100_000,
    "\N{SKULL}" * 300,
)


def odd_value(chance, depth=0):
    """A value of any type, size and sense."""
    kinds = [
        lambda: chance.choice(TRICKS),
        lambda: chance.choice([0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400]),
        lambda: chance.choice([1e308, -0.0, 1e-320, 0.5, float("inf"), float("nan")]),
        lambda: chance.choice([None, True, False, "", [], {}]),
        lambda: "".join(chance.choices(string.printable, k=chance.randrange(40))),
        lambda: [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))],
        lambda: {odd_name(chance): odd_value(chance, depth + 1) for _ in range(3)},
        lambda: [chance.randrange(200) for _ in range(chance.randrange(300))],
    ]
    return chance.choice(kinds[:5] if depth > 3 else kinds)()


FIELDS = """
model prompt messages n seed seeds max_tokens temperature top_p top_k stop stream logprobs echo
prompt_logprobs logprob_token_ids return_token_ids tools method kwargs action baseline lora_name
lora_path new_version tokens text_1 text_2 completions chat_template weights_path best_of suffix
user role content vote budget
"""


def odd_name(chance):
    """Mostly a field that there is."""
    return chance.choice(FIELDS.split()) if chance.random() < 0.9 else chance.choice(TRICKS)[:60]


def odd_body(chance, roots):
    """The bytes of a body: JSON that is odd, nearly right, deep, broken, or none."""
    kind = chance.random()
    if kind < 0.5:
        body = {odd_name(chance): odd_value(chance) for _ in range(chance.randrange(6))}
        return json.dumps(body).encode("utf-8", "surrogatepass")
    if kind < 0.75:  # one field of a right request is wrong
        body = {"prompt": "1+1=", "max_tokens": 2, "seed": 1}
        body = chance.choice(
            [
                body,
                {"messages": [{"role": "user", "content": "1"}], "max_tokens": 2},
                {"lora_name": "a", "lora_path": roots},
                {"method": "reload_weights", "kwargs": {"weights_path": roots}},
                {"action": "checksum"},
                {**body, "vote": 3, "budget": 9, "stream": False},
            ]
        )
        body = {**body, chance.choice([*body]): odd_value(chance)}
        return json.dumps(body).encode("utf-8", "surrogatepass")
    if kind < 0.85:
        deep = chance.choice([b"[", b'{"prompt":', b'{"a":[']) * chance.choice([10, 1000, 100_000])
        return deep + b"1" + b"]" * chance.randrange(3)
    if kind < 0.95:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
    return chance.choice([b"", b"null", b"[]", b'"', b"{}" * 9, b'{"prompt":"\xff\xfe"}', b"1e999"])


async def send(address, request):
    """The status of the answer to raw bytes; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), 30)
        await asyncio.wait_for(reader.read(), 30)
        return int(line.split()[1]) if line else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


def odd_request(chance, roots):
    """A whole request: now and then the head is odd, too."""
    body = odd_body(chance, roots)
    path = chance.choice(PATHS).encode("utf-8", "surrogateescape").decode("latin-1")
    method = chance.choice(["POST"] * 9 + ["PUT"])
    length = str(len(body))
    if chance.random() < 0.05:
        length = chance.choice(["-1", "99999999999999", "abc", "1e9", str(len(body) + 10**9)])
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
    if chance.random() < 0.05:
        head += f"X-Odd: {'y' * chance.randrange(20_000)}\r\n"
    return head.encode("latin-1") + b"\r\n" + body


def attack(served, roots, count, seed):
    """Statuses of so many hostile requests, sixteen at a time."""
    chance = random.Random(seed)
    address = served.url[7:].split(":")

    async def some(requests):
        return await asyncio.gather(*(send(address, one) for one in requests))

    found = []
    for _ in range(count // 16):
        found += asyncio.run(some([odd_request(chance, roots) for _ in range(16)]))
        served.client.post("/resume")
    return found


def look_after(tmp_path, count):
    """`count` hostile requests against a server; what the process opened is watched."""
    secret = tmp_path / "secret"
    tiny(seed=1).save(secret)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    opened = set()
    # an audit hook cannot be taken away: it watches while the list is open
    watching = [True]

    def watch(event, arguments):
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.add(arguments[0])

    import sys

    chooser = PlanChooser(ServedPlan())
    with running(tiny(), roots=[allowed], chooser=chooser) as served:
        attack(served, str(secret), 320, 1)
        before = psutil.Process(os.getpid()).memory_info().rss
        right = ask(served, prompt="1+1=", seed=1, max_tokens=4)
        sys.addaudithook(watch)
        statuses = attack(served, str(secret), count, 2)
        watching.clear()
        assert ask(served, prompt="1+1=", seed=1, max_tokens=4) == right
        assert served.client.get("/health").status_code == 200
        grown = psutil.Process(os.getpid()).memory_info().rss - before
    assert not [status for status in statuses if status >= 500]
    assert len([status for status in statuses if 400 <= status < 500]) > count // 2
    assert not [name for name in opened if str(secret) in name or "passwd" in name]
    return grown


def test_hostile_requests(tmp_path):
    """Eight hundred of them."""
    assert look_after(tmp_path, 800) < 64 << 20


@pytest.mark.whole
def test_ten_thousand_hostile_requests(tmp_path):
    """Ten thousand: memory is where it was."""
    assert look_after(tmp_path, 10_000) < 64 << 20
