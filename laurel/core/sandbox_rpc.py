"""Calls between a program and its tests, which run in two processes. Standard library only.

`laurel.core.jail` loads this file; nothing imports it. The tests run where the program cannot
reach. They see its functions as proxies: a call crosses a pipe, and plain data comes back, copied.
So nothing that the program does to its own interpreter (a forged `==`, other builtins, a walk up
the frames, an early exit) touches the verdict. Anything else stays with the program, behind a
proxy that can be called, read, iterated and passed back, and that nothing can be compared with.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import operator
import os
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any, cast

LONGEST = 64 << 20
EXACT = 1 << 53
Message = dict[str, Any]


class PeerExited(BaseException):
    """The other process ended. No test can catch it as an Exception."""


class RemoteProxy:
    """The tests' proxy of an object of the program's that is no plain data."""

    __slots__ = ("_kind", "_link", "_number")
    _kind: str
    _link: Link
    _number: int
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, link: Link, number: int, kind: str) -> None:
        for name, value in (("_link", link), ("_number", number), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.request(self._number, "call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._link.request(self._number, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.request(self._number, "set", name, value)

    def __str__(self) -> str:
        return str(self._link.request(self._number, "str"))

    def __repr__(self) -> str:
        return str(self._link.request(self._number, "repr"))

    def __len__(self) -> int:
        return self._link.request(self._number, "len")

    def __getitem__(self, key: Any) -> Any:
        return self._link.request(self._number, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.request(self._number, "put", key, value)

    def __next__(self) -> Any:
        found = self._link.request(self._number, "next", 1)
        if not found:
            raise StopIteration
        return found[0]

    def __iter__(self) -> Iterator[Any]:
        walk, size = self._link.request(self._number, "iter"), 1
        while found := self._link.request(walk._number, "next", size):
            yield from found
            size = min(2 * size, 1024)

    def __contains__(self, value: Any) -> bool:
        return any(value is item or value == item for item in self)

    def _refuse(self, *others: Any) -> Any:
        raise TypeError(f"the answer returns {self._kind}, not plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse


PLAIN_WORDS = (type(None), bool, str)
GROUPS: dict[str, type] = {"l": list, "t": tuple, "s": set, "z": frozenset, "dq": deque}
TABLES: dict[str, Callable[[Any], Any]] = {
    "ct": Counter,
    "od": OrderedDict,
    "dd": lambda pairs: defaultdict(None, pairs),
    "d": dict,
}
TABLE_TYPES: dict[str, type] = {"ct": Counter, "od": OrderedDict, "dd": defaultdict, "d": dict}
TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "f": (float, float.hex, float.fromhex),
    "by": (bytes, bytes.hex, bytes.fromhex),
    "ba": (bytearray, bytearray.hex, bytearray.fromhex),
    "de": (Decimal, Decimal.__str__, Decimal),
    "fr": (Fraction, Fraction.__str__, Fraction),
    "dt": (datetime, datetime.isoformat, datetime.fromisoformat),
    "da": (date, date.isoformat, date.fromisoformat),
    "ti": (time, time.isoformat, time.fromisoformat),
}


class Link:
    """One end of the two pipes: sends requests, and answers the other end's while it waits.

    `kept` holds the objects that stay on this side, by number.
    """

    def __init__(self, inlet: int, outlet: int, *, serves: bool) -> None:
        self.inlet, self.outlet, self.serves = inlet, outlet, serves
        self.kept: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.seen: dict[int, RemoteProxy] = {}
        self.rest = bytearray()
        self.gone = False
        self.errors: dict[str, type[Exception]] = {}

    def send(self, message: Message) -> None:
        """One message out."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.outlet, data) :]
        except OSError:
            self.gone = True
            raise PeerExited from None

    def receive(self) -> Message:
        """The next message in."""
        while (end := self.rest.find(b"\n")) < 0:
            part = os.read(self.inlet, 1 << 16)
            if not part or len(self.rest) > LONGEST:
                self.gone = True
                raise PeerExited
            self.rest += part
        line = bytes(self.rest[:end])
        del self.rest[: end + 1]
        return json.loads(line)

    def ask(self, message: Message) -> Message:
        """A request and its answer; requests that come in meanwhile are answered first."""
        self.send(message)
        while True:
            found = self.receive()
            if "do" not in found:
                return found
            self.send(self.answer(found))

    def request(self, number: int, do: str, *args: Any, **kwargs: Any) -> Any:
        """Do something with the other end's object of this number.

        Lists, dicts and sets that were passed are brought up to date.
        """
        sent = [self.encode(value) for value in args]
        named = {name: self.encode(value) for name, value in kwargs.items()}
        found = self.ask({"do": do, "of": number, "args": sent, "named": named})
        if "raise" in found:
            raise self.error(*found["raise"])
        given = zip([*args, *kwargs.values()], [*sent, *named.values()], strict=True)
        for (value, before), after in zip(given, found.get("after", []), strict=False):
            if after not in (None, before):
                update_in_place(value, self.decode(after))
        return self.decode(found["value"])

    def error(self, names: list[str], text: str) -> Exception:
        """The exception raised over there: a builtin of the same name, else the nearest.

        Never StopIteration: it would end a loop of the tests.
        """
        for name in names:
            kind = self.errors.get(str(name)) or getattr(builtins, str(name), None)
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                continue
            if issubclass(kind, StopIteration):
                continue
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and others that want more
                continue
        return RuntimeError(text)

    def answer(self, message: Message) -> Message:
        """The answer to a request of the other end."""
        try:
            args = [self.decode(value) for value in message["args"]]
            named = {name: self.decode(value) for name, value in message["named"].items()}
            value = self.encode(self.done(message["do"], self.kept[message["of"]], args, named))
            after = [
                self.encode(item) if isinstance(item, (list, dict, set, bytearray, deque)) else None
                for item in (*args, *named.values())
            ]
            return {"value": value, "after": after}
        except PeerExited:
            raise
        except BaseException as error:
            return {"raise": [[kind.__name__ for kind in type(error).__mro__], str(error)[:2000]]}

    def done(self, do: str, thing: Any, args: list[Any], named: Message) -> Any:
        """Carry a request out. The tests' end only calls: a function passed in gives no access."""
        if do == "call":
            return thing(*args, **named)
        if not self.serves:
            raise TypeError("the tests' objects can only be called")
        return ACTIONS[do](thing, *args)

    def encode(self, value: Any) -> Any:
        """Plain data as JSON, of subclasses the data alone; anything else as its number here."""
        kind = cast(Any, type(value))
        if kind is RemoteProxy:
            return ["h", object.__getattribute__(value, "_number")]
        if kind in PLAIN_WORDS:
            return value
        simple = encode_simple(value)
        if simple is not NotImplemented:
            return simple
        for name, base in TABLE_TYPES.items():
            if isinstance(value, base):
                pairs: Iterable[tuple[Any, Any]] = cast(Any, dict).items(value)
                return [name, [[self.encode(key), self.encode(item)] for key, item in pairs]]
        for name, base in GROUPS.items():
            if isinstance(value, base):
                # the base's own iterator: a subclass may forge another
                items: Iterable[Any] = cast(Any, base).__iter__(value)
                return [name, [self.encode(item) for item in items]]
        return self.keep(value)

    def keep(self, value: Any) -> Any:
        """A number for what stays on this side."""
        if self.serves:
            number = self.numbers.setdefault(id(value), len(self.kept))
            self.kept += [value] if number == len(self.kept) else []
            return ["k", number, type(value).__name__]
        name = getattr(value, "__name__", "")
        if getattr(builtins, str(name), self) is value:
            return ["bi", name]
        if not callable(value):
            raise TypeError(
                f"a test passes {type(value).__name__}, which is neither plain data nor the"
                " program's own"
            )
        self.kept.append(value)
        return ["k", len(self.kept) - 1, "function"]

    def decode(self, data: Any) -> Any:
        """What `encode` wrote, as fresh objects of this side."""
        if not isinstance(data, list):
            return data
        name, first, *rest = cast("list[Any]", data)
        if name in GROUPS:
            return GROUPS[name]([self.decode(item) for item in first])
        if name in TABLES:
            return TABLES[name]({self.decode(key): self.decode(item) for key, item in first})
        if name in TEXTS:
            return TEXTS[name][2](str(first))
        if name == "k":
            return self.seen.setdefault(int(first), RemoteProxy(self, int(first), str(rest[0])))
        if name == "h":
            return self.kept[int(first)]
        if name == "bi" and self.serves:
            return getattr(builtins, first)
        return decode_simple(name, first, rest)


def encode_simple(value: Any) -> Any:
    """Numbers, texts, ranges, dates and bytes; NotImplemented for anything else."""
    if isinstance(value, int):
        value = int.__int__(value)
        return value if -EXACT < value < EXACT else ["i", hex(value)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["c", value.real.hex(), value.imag.hex()]
    if type(value) is range:
        return ["r", hex(value.start), hex(value.stop), hex(value.step)]
    if type(value) is timedelta:
        return ["td", value.days, value.seconds, value.microseconds]
    for name, (base, write, _) in TEXTS.items():
        if isinstance(value, base):
            return [name, write(value)]
    return NotImplemented


def decode_simple(name: str, first: Any, rest: list[Any]) -> Any:
    """A large integer, a complex number, a range or a duration."""
    if name == "i":
        return int(first, 16)
    if name == "c":
        return complex(float.fromhex(first), float.fromhex(rest[0]))
    if name == "r":
        return range(*(int(part, 16) for part in (first, *rest)))
    if name == "td":
        return timedelta(first, *rest)
    raise TypeError("no plain data")


def take_items(thing: Iterator[Any], size: int) -> list[Any]:
    """Up to so many of the next items."""
    return list(islice(thing, size))


ACTIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "str": str,
    "repr": repr,
    "len": len,
    "iter": iter,
    "item": operator.getitem,
    "put": operator.setitem,
    "next": take_items,
}
"""What the tests may do with an object of the program's, besides calling it."""


def update_in_place(value: Any, now: Any) -> None:
    """What a call did to a list, dict or set that it was given, done to the caller's own."""
    if type(value) is not type(now):
        return
    if isinstance(value, (list, bytearray)):
        value[:] = now
    elif isinstance(value, (dict, set)):
        value.clear()
        cast("dict[Any, Any] | set[Any]", value).update(now)
    elif isinstance(value, deque):
        value.clear()
        cast("deque[Any]", value).extend(now)


def serve(link: Link, run: Callable[[str], Message], setup: str, source: str) -> None:
    """The program's side: run it, send its names, then answer the tests until they are done.

    The setup goes first where it can: a program may need its imports. A setup that needs the
    program runs on the tests' side alone.
    """
    main = sys.modules["__main__"].__dict__
    # a setup that fails here needs the program: it runs again, and counts, on the tests' side
    with contextlib.suppress(Exception):
        exec(compile(setup, "setup.py", "exec"), main)
    end = run(source)
    if end["why"]:
        link.send({"end": end["why"]})
        return
    link.kept.append(main)
    names = {
        name: describe_name(value)
        for name, value in list(main.items())
        if not name.startswith("__")
    }
    link.send({"names": names})
    while True:
        link.send(link.answer(link.receive()))


def describe_name(value: Any) -> list[str]:
    """What a name of the program stands for, in words that the tests' side can act on."""
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type):
        return [
            "error" if issubclass(value, BaseException) else "class",
            *(kind.__name__ for kind in value.__mro__),
        ]
    return ["value"]


def run_tests(link: Link, run: Callable[[str], Message], setup: str, tests: str) -> Message:
    """The tests' side: {"why": ""} if setup and tests reached their end, else why not."""
    try:
        first = link.receive()
        if "names" not in first:
            return {"why": str(first.get("end") or "exit")}
        source = f"{without_shared_classes(setup, first['names'])}\n{tests}"
        sys.modules["__main__"].__dict__.update(names_from_program(link, first["names"], source))
        end = run(source)
    except (
        PeerExited,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ):
        return {"why": "exit"}
    return {"why": "exit"} if link.gone else end


def names_from_program(link: Link, names: dict[str, list[str]], text: str) -> dict[str, Any]:
    """The program's names that the tests use and do not define.

    Builtins stay the tests' own, unless the tests use nothing else.
    """
    wanted = free_names(text)
    offered = {name for name in wanted if isinstance(names.get(name), list)}
    usual = set(vars(builtins))
    if wanted - usual:
        offered -= usual
    found: dict[str, Any] = {}
    for name in offered:
        kind, *rest = map(str, names[name])
        if kind == "module" and rest and rest[0].partition(".")[0] in sys.stdlib_module_names:
            found[name] = importlib.import_module(rest[0])
        elif kind == "error":
            bases = (getattr(builtins, other) for other in rest[1:] if hasattr(builtins, other))
            base: type = next(bases, Exception)
            error: Any = type(name, (base if issubclass(base, Exception) else Exception,), {})
            found[name] = link.errors[name] = error
        else:
            found[name] = link.request(0, "item", name)
    return found


def free_names(text: str) -> set[str]:
    """The names that a text reads and neither sets nor imports nor defines."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    read, own = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else own).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            own.add(node.arg)
    return read - own


def without_shared_classes(setup: str, names: dict[str, list[str]]) -> str:
    """The setup less the classes that the program has, too.

    The program's own can be passed to its functions.
    """
    try:
        tree = ast.parse(setup)
    except (SyntaxError, ValueError):
        return setup
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ClassDef) and names.get(node.name, [""])[0] == "class")
    ]
    return ast.unparse(tree)
