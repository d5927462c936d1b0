"""The budgets: functions and files that a reader can hold in mind, and a command that answers at once."""

import subprocess
import sys
import time

import pytest
from house_source import PACKAGE, ROOT, functions, longest, python_files

FUNCTION, LOOP, FILE = 80, 120, 400
HALF_A_SECOND = 0.5


def best_of(tries: int, *words: str) -> float:
    """Seconds of the fastest of several runs of a command: the machine may be busy, the command is not to blame."""
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] < HALF_A_SECOND:
            break
    return min(seconds)


def test_functions_stay_short():
    print("\n".join(longest()))
    budget = {PACKAGE / "train" / "loop.py": LOOP}
    over = [
        f"{path.relative_to(ROOT)}:{first}: {name} has {lines} lines"
        for path in python_files()
        for lines, name, first in functions(path)
        if lines > budget.get(path, FUNCTION)
    ]
    assert not over, "\n".join(over)


def test_files_stay_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    over = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > FILE]
    assert not over, "\n".join(over)


PATH = (
    "train/loop", "train/algorithms", "rollout/single", "reward/text", "weight/group", "rollout/pack", "objective/policy", "core/sample",
)  # fmt: skip


def test_one_step_is_read_in_eight_files():
    """The files that a reader of one GRPO step opens, from prompt to gradient: eight, about a thousand lines."""
    lines = {name: len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in PATH}
    assert len(PATH) <= 8 and sum(lines.values()) <= 1150, lines


@pytest.mark.parametrize(
    "words",
    [("-c", "import laurel"), ("-m", "laurel", "--help"), ("-m", "laurel", "--version")],
    ids=["import laurel", "laurel --help", "laurel --version"],
)
def test_the_front_door_opens_at_once(words):
    assert best_of(5, sys.executable, *words) < HALF_A_SECOND
