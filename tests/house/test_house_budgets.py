"""The budgets: functions and files that a reader can hold in mind, and a command that answers at
once.
"""

import resource
import subprocess
import sys

import pytest
from house_source import ROOT, densest, functions, longest, overall, python_files
from house_traced import prepare, traced

FUNCTION, DENSITY = 300, 9.5
HALF_A_SECOND = 0.5
TRACED = 20  # files that a step of GRPO enters, of which 4 in train


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
    over = [
        f"{path.relative_to(ROOT)}:{first}: {name} has {tokens} tokens"
        for path in python_files()
        for tokens, name, first in functions(path)
        if tokens > FUNCTION
    ]
    assert not over, "\n".join(over)


def test_lines_stay_thin():
    print("\n".join(densest()))
    assert overall() <= DENSITY


@pytest.mark.parametrize(
    "words",
    [("-c", "import laurel"), ("-m", "laurel", "--help"), ("-m", "laurel", "--version")],
    ids=["import laurel", "laurel --help", "laurel --version"],
)
def test_the_front_door_opens_at_once(words):
    assert min(processor_seconds(sys.executable, *words) for _ in range(2)) < HALF_A_SECOND


def test_a_step_of_grpo_enters_few_files(tmp_path):
    """A real step of GRPO by default, on a tiny CPU Llama, traced (`house_traced.py` prints it)."""
    prepare(tmp_path)
    files = traced("grpo", tmp_path)
    print("\n".join(files))
    assert len(files) <= TRACED, "\n".join(files)
