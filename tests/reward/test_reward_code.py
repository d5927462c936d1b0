"""Programs and their tests: a pass cannot be forged, and an honest program of any shape gets
one.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from laurel.core.result import Failed, Score
from laurel.core.sandbox import isolation, run_python
from laurel.reward.code import code, humaneval

WRONG = "def f(x): return 0\n"
ROW = {"tests": "assert f(2) == 4\nassert f([1, 2]) == [2, 4]"}
HUMAN = {
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}

# Each would pass, or make the tests pass, if program and tests shared an interpreter, or if the
# program could reach the verdict.
ATTACKS = {
    "ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "ANY in a list": "from unittest.mock import ANY\ndef f(x): return [ANY, ANY]",
    "mock": "from unittest.mock import MagicMock\nf = MagicMock()",
    "always equal": (
        "class Y:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ ="
        " None\ndef f(x): return Y()"
    ),
    "always equal number": (
        "class Y(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return Y(7)"
    ),
    "always equal text": (
        "class Y(str):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return Y('')"
    ),
    "always equal list": (
        "class Y(list):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return Y()"
    ),
    "always equal dict": (
        "class Y(dict):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return Y()"
    ),
    "metaclass": (
        "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = None\n    __instancecheck__"
        " = lambda s, o: True\nclass f(metaclass=M):\n    def __new__(c, x): return c"
    ),
    "AssertionError is harmless": (
        WRONG + "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})"
    ),
    "AssertionError of its own": WRONG + "class AssertionError(Exception): pass",
    "isinstance and all": (
        WRONG + "import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True"
    ),
    "names of builtins": (
        WRONG + "def isinstance(*a): return True\ndef sorted(x): return []\ndef str(*a): return ''"
    ),
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "exit while it loads": "raise SystemExit(0)",
    "hard exit": "import os\ndef f(x): os._exit(0)",
    "hard exit while it loads": "import os\nos._exit(0)",
    "at exit": WRONG + "import atexit, os\natexit.register(os._exit, 0)",
    "exit is replaced": (
        WRONG + "import sys, os, builtins\nsys.exit = os._exit = builtins.exit = lambda *a: None"
    ),
    "hook": WRONG + "import sys, os\nsys.excepthook = lambda *a: os._exit(0)",
    "thread": (
        WRONG + "import threading, os, time\nthreading.Thread(target=lambda: (time.sleep(.05),"
        " os._exit(0)), daemon=True).start()"
    ),
    "trace": (
        WRONG + "import sys\nsys.settrace(lambda f, e, a: None)\nsys.setprofile(lambda *a: None)"
    ),
    "frames at loading": (
        WRONG + "import sys\nframe = sys._getframe()\nwhile frame:\n    for name, value in"
        " list(frame.f_locals.items()):\n        if isinstance(value, dict):\n           "
        " value.update(why='', nonce='x')\n    frame = frame.f_back"
    ),
    "frames in the call": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for owner in"
        " (frame.f_locals, frame.f_globals):\n            for name in ('judge', 'run', 'tests',"
        " 'end', 'send', 'answer', 'encode'):\n                if name in owner: owner[name] ="
        " lambda *a, **k: {'why': '', 'value': 4}\n        frame = frame.f_back\n    return 0"
    ),
    "the link lies": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        link ="
        " frame.f_locals.get('link') or frame.f_locals.get('self')\n        if hasattr(link,"
        " 'send'):\n            for said in ({'end': ''}, {'why': ''}, {'value': ['k', 0, 'int']},"
        " {'names': {}}):\n                link.send(said)\n        frame = frame.f_back\n   "
        " return 0"
    ),
    "written to every descriptor": (
        WRONG
        + 'import os\nfor fd in range(64):\n    for line in (b\'{"why": "", "nonce": ""}\\n\','
        ' b\'{"end": ""}\\n\'):\n        try: os.write(fd, line)\n        except OSError: pass'
    ),
    "the tests' descriptors": (
        "import os, glob\nfor path in ['/proc/%d/fd/%d' % (p, n) for p in (os.getppid(),"
        " os.getpid()) for n in range(3, 20)]:\n    try: os.write(os.open(path, os.O_WRONLY),"
        ' b\'{"why": ""}\\n\')\n    except OSError: pass\n' + WRONG
    ),
    "the tests' memory": "import os\nopen('/proc/%d/mem' % os.getppid(), 'r+b').read(1)\n" + WRONG,
    "every descriptor closed": WRONG + "import os\nos.closerange(0, 64)",
    "caller's code": (
        "import gc, inspect\ndef f(x):\n    for info in inspect.stack():\n       "
        " info.frame.f_globals.clear()\n    return 0"
    ),
    "traceback": (
        "def f(x):\n    try: raise KeyError\n    except KeyError as e:\n        frame ="
        " e.__traceback__.tb_frame.f_back\n        while frame: frame.f_locals.update(why='');"
        " frame = frame.f_back\n    return 0"
    ),
    "objects": "import gc\ndef f(x):\n    for thing in gc.get_objects(): pass\n    return 0",
    "printed": WRONG + 'print(\'{"why": ""}\', flush=True)',
    "end of a loop": "def f(x): raise StopIteration",
    "keyboard": "def f(x): raise KeyboardInterrupt",
    "generator exit": "def f(x): raise GeneratorExit",
    "raises AssertionError": "def f(x): raise AssertionError",
    "a module": WRONG + "import sys\nsys.modules['math'] = sys.modules['unittest'] = None",
    "the answer itself": (
        "class f:\n    def __init__(self, x): pass\n    def __eq__(self, o): return True"
    ),
    "generator": "def f(x):\n    while True: yield x",
    "nothing": "",
    "no function": "f = 4",
    "syntax": "def f(x: return 2",
    "skipped": "import unittest\ndef f(x): raise unittest.SkipTest",
    "json": "import json\njson.dumps = lambda *a, **k: '{\"value\": 4}'\n" + WRONG,
    "type": "import builtins\nbuiltins.type = lambda *a: list\n" + WRONG,
}
EXIT_TESTS = {"tests": "assert all(map(f, [1, 2]))\nassert f(1)"}


def points(result):
    assert isinstance(result, Score), result
    return result.value


def together(function, answers, *rows):
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(function, answers, *rows))


def test_no_attack_earns_a_pass(monkeypatch):
    """Both verifiers of code; the honest program beside them gets its point, so the rows can be
    passed.
    """
    monkeypatch.setattr("laurel.reward.code.SECONDS", 2.0)
    honest = "def f(x): return [2 * i for i in x] if isinstance(x, list) else 2 * x"
    names, answers = ["honest", *ATTACKS], [honest, *ATTACKS.values()]
    for verifier, row, step in ((code, ROW, 1), (humaneval, HUMAN, 4)):  # one judge serves both
        found = together(verifier, answers[::step], [row] * len(answers[::step]))
        assert [
            name for name, result in zip(names[::step], found, strict=True) if points(result)
        ] == ["honest"]
    assert points(code("def f(x): raise StopIteration", EXIT_TESTS)) == 0


def test_the_program_never_sees_its_tests():
    """A program that prints all it can find of itself: memory of the frames, the descriptors, the
    arguments.
    """
    spy = (
        "import sys, os\ndef f(x): return 0\nfound = [sys.argv, sys.orig_argv]\nframe ="
        " sys._getframe()\nwhile frame:\n    found.append((frame.f_locals, frame.f_globals)); frame"
        " = frame.f_back\nfor fd in range(3, 30):\n    try:\n        os.lseek(fd, 0, 0);"
        " found.append(os.read(fd, 10**6))\n    except OSError: pass\nprint(str(found)[-10**6:])"
    )
    outcome = run_python(spy, seconds=5, tests="assert f(1) == 'mellon'")
    assert (
        outcome.reason == "error"
        and "mellon" not in outcome.stdout
        and "nonce" not in outcome.stdout
    )


@pytest.mark.parametrize(
    ("program", "tests", "setup"),
    [
        (
            "def f(x): return {'a': (1, 2.5), 'b': {3}, 'c': None}",
            "assert f(1) == {'a': (1, 2.5), 'b': {3}, 'c': None}",
            "",
        ),
        (
            "from collections import Counter\ndef f(x): return Counter(x)",
            "assert f('aab') == {'a': 2, 'b': 1}",
            "",
        ),
        (
            (
                "from collections import defaultdict\ndef f(x):\n    d = defaultdict(list);"
                " d[1].append(x); return d"
            ),
            "assert f(2) == {1: [2]}",
            "",
        ),
        (
            (
                "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return"
                " P(1, 2)"
            ),
            "assert f() == (1, 2)",
            "",
        ),
        ("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']", ""),
        (
            "def f(n):\n    while True:\n        yield n; n += 1",
            "g = f(5)\nassert [next(g) for _ in range(3)] == [5, 6, 7]",
            "",
        ),
        ("def f(x): x.sort()", "a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]", ""),
        (
            "def f(g, x): return g(g(x))",
            "assert f(lambda x: x + 1, 3) == 5 and f(abs, -2) == 2",
            "",
        ),
        (
            "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
            (
                "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert"
                " str(error) == 'negative'"
            ),
            "",
        ),
        (
            "class Bad(ValueError): pass\ndef f(): raise Bad('b')",
            "try:\n    f()\n    assert False\nexcept Bad:\n    pass",
            "",
        ),
        (
            (
                "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n"
                "def total(n): return n.v + (total(n.next) if n.next else 0)"
            ),
            "assert total(root) == 3 and root.next.v == 2",
            "root = Node(1)\r\nroot.next = Node(2)",
        ),
        (
            "def area(c): return math.pi * c.r ** 2",
            "assert abs(area(Circle(2)) - 12.566) < 0.01",
            "import math\nclass Circle:\n    def __init__(self, r): self.r = r",
        ),
        (
            (
                "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(ps):"
                " return max(p.a for p in ps)"
            ),
            "assert f([Pair(5, 24), Pair(7, 3)]) == 7",
            "",
        ),
        (
            (
                "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x):"
                " self.items.append(x)\n    def pop(self): return self.items.pop()\n    def"
                " __len__(self): return len(self.items)"
            ),
            "s = Stack()\ns.push(4)\nassert len(s) == 1 and s.pop() == 4 and s.items == []",
            "",
        ),
        ("def sum(a, b):\n    return a + b", "assert sum(10, 15) == 25", ""),
        ("def adder(n): return lambda x: x + n", "assert adder(1)(2) == 3", ""),
        ("LIMIT = 5\ndef f(): return LIMIT", "assert f() == LIMIT", ""),
        (
            "import math\ndef f(x): return x ** 0.5",
            "assert math.isclose(f(2), 1.41421356, rel_tol=1e-6)",
            "",
        ),
        ("def f(n): return 2 ** n", "assert f(200) == 2 ** 200 and f(-1) == 0.5", ""),
        (
            "def f(): return float('nan'), float('inf'), 1j, b'x', range(3)",
            (
                "a, b, c, d, e = f()\nassert a != a and b > 1e308 and (c, d, e) == (1j, b'x',"
                " range(3))"
            ),
            "",
        ),
        (
            (
                "from decimal import Decimal\nfrom datetime import date\ndef f(): return"
                " [Decimal('1.5'), date(2024, 1, 2)]"
            ),
            (
                "from decimal import Decimal\nfrom datetime import date\nassert f() =="
                " [Decimal('1.5'), date(2024, 1, 2)]"
            ),
            "",
        ),
        ("def f(x): return x\nif __name__ == '__main__':\n    print(f(1))", "assert f(1) == 1", ""),
        ("def f(a, *, b=1, **k): return a, b, k", "assert f(1, b=2, c=3) == (1, 2, {'c': 3})", ""),
        ("def f(x): return 'é\\n\\u2028' + x", "assert f('☃') == 'é\\n\\u2028☃'", ""),
    ],
)
def test_honest_programs_pass_and_their_mutants_do_not(program, tests, setup):
    """Containers, iterators, changes in place, functions passed in, exceptions, classes, setup that
    needs the program, big numbers.
    """
    row = {"test_list": [tests], "test_setup_code": setup}
    assert points(code(program, row)) == 1, code(program, row)
    assert points(code(program, {**row, "test_list": [tests, "assert 1 == 2"]})) == 0


def test_a_test_may_raise_what_it_likes_and_never_passes_by_it():
    for tests in (
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        "assert f(1) ==",
        "1 / 0",
        "g(1)",
    ):
        assert points(code("def f(x): return x", {"tests": tests})) == 0


def test_raw_rows_of_mbpp():
    """The columns as published: text, code, test_list, test_setup_code, challenge_test_list."""
    row = {
        "text": "Write a function to double a number.",
        "code": "def double(x):\r\n  return 2 * x",
        "task_id": 1,
        "test_list": ["assert double(4) == 8", "assert double(0) == 0"],
        "test_setup_code": "",
        "challenge_test_list": ["assert double('a') == 'aa'"],
    }
    assert points(code(row["code"], row)) == 1
    assert (
        points(code("def double(x): return x + x if isinstance(x, int) else x", row)) == 1
    )  # the challenge is not run
    assert points(code("def double(x): return x + 4", row)) == 0
    assert isinstance(code(row["code"], {"test_list": []}), Failed)


def test_the_reason_says_what_went_wrong(monkeypatch):
    monkeypatch.setattr("laurel.reward.code.SECONDS", 0.5)
    for program, word in (
        ("def f(x): return 5", "error: AssertionError"),
        ("from unittest.mock import ANY\ndef f(x): return ANY", "not plain data"),
        ("import os\ndef f(x): os._exit(0)", "exit"),
        ("def f(x): raise SystemExit(0)", "error"),
        ("def f(x):\n    while True: pass", "time"),
        ("def f(x): return [0] * 10**10", "memory"),
        ("def f(x): return open('/etc/passwd').read()", "forbidden"),
        ("def f(x: pass", "error: SyntaxError"),
        ("import os\ndef f(x): os.abort()", "crash"),
        ("while True: print('x' * 1000)", "output"),
        ("def g(x): return 4", "NameError"),
    ):
        result = code(program, {"tests": "assert f(2) == 4"})
        assert points(result) == 0 and word in result.reason, (program, result)


def test_both_processes_are_sealed():
    """The tests' process is as shut as the program's: a row of tests is a stranger's code too."""
    assert (
        run_python("def f(): return 1", seconds=5, tests="open('/etc/passwd')").reason
        == "forbidden"
    )
    assert (
        run_python("def f(): return 1", seconds=5, tests="import os\nos.fork()").reason
        == "forbidden"
    )
    if isolation()["seccomp"]:
        source = (
            "import errno, os\ndef f():\n    try: os.kill(os.getppid(), 9)\n    except OSError:"
            " return 'refused'"
        )
        assert run_python(source, seconds=5, tests="assert f() == 'refused'").ok
