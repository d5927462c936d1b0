"""The page that README sends a reader to: it runs, it is a page, and its losses are those of
`laurel train grpo`, bit for bit.
"""

import ast
import sys
from pathlib import Path

import pytest

from laurel.core.config import TrainConfig
from laurel.train.loop import train

PAGE = Path(__file__).resolve().parents[2] / "examples" / "one_page.py"


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.setenv("LAUREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(PAGE.parent))
    sys.modules.pop("one_page", None)
    import one_page

    return one_page


def test_it_is_one_page_without_a_class():
    text = PAGE.read_text()
    assert len(text.splitlines()) <= 120
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(text)))


def test_its_losses_are_those_of_a_run(page, tmp_path):
    lines = page.main(max_steps=10)
    options = {**page.OPTIONS, "max_steps": 10, "logging_steps": 1}
    rewards, folder = [f"{PAGE}:sevens"], str(tmp_path / "run")
    run = train("grpo", TrainConfig(**options, rewards=rewards, output_dir=folder), quiet=True)
    assert lines == [{name: line[name] for name in lines[0]} for line in run.metrics()]
    assert all(line["grad_norm"] > 0 for line in lines)
