"""The budgets: functions and files that a reader can hold in mind, and a command that answers at once."""

import resource
import subprocess
import sys

import pytest
from house_source import PACKAGE, ROOT, functions, longest, python_files

FUNCTION, LOOP, FILE = 80, 120, 400
HALF_A_SECOND = 0.5


def processor_seconds(*words: str) -> float:
    """What a command costs: of the clock's seconds a busy machine takes as many as it likes."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return spent() - before


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
    assert min(processor_seconds(sys.executable, *words) for _ in range(2)) < HALF_A_SECOND
