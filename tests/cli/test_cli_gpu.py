"""bench/gpu.sh without a GPU: every part runs with tiny shapes, what fails is told, and the exit
code says what was missing.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from laurel.fast import decode, static
from laurel.rollout import sampler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu(monkeypatch):
    """bench/gpu.py as a module; what it replaces in the library is put back."""
    for module, name in (
        (decode, "load_library"),
        (sampler, "static_decoder_of"),
        (static.StaticDecoder, "capture"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "bench" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_run_with_tiny_shapes_and_a_table_is_made(gpu, tmp_path, capsys):
    """A rollout and a step by static buffers; a part that fails has a line, too."""
    for part in (["look"], ["rollout", "static"], ["step", "static"]):
        assert gpu.main([*part, "--quick", "--out", str(tmp_path)]) == 0
    with pytest.raises(ZeroDivisionError):
        gpu.rollout = lambda way, quick: 1 / 0
        gpu.main(["rollout", "generate", "--quick", "--out", str(tmp_path)])
    lines = {
        one["part"]: one
        for one in map(json.loads, (tmp_path / "parts.jsonl").read_text().splitlines())
    }
    assert lines["look"]["missing"] == [] and lines["rollout static"]["tokens_per_second"] > 0
    assert len(lines["step static"]["seconds"]) == 2 and lines["step static"]["foreseen_gb"] > 0
    assert gpu.main(["table", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert (
        "| rollout static | " in text
        and "| rollout generate | ZeroDivisionError: division by zero |" in text
    )


def test_what_is_missing_is_named(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDED", (*gpu.NEEDED, "no_such_module_at_all"))
    assert gpu.main(["look", "--out", str(tmp_path)]) == 4
    assert '"missing": ["no_such_module_at_all"]' in capsys.readouterr().out


@pytest.mark.whole
def test_the_script_runs_its_cpu_half(tmp_path):
    """Without a GPU: it says so, every part ends well, exit 3; each part has a log, and the table a
    line for each.
    """
    where = {
        **os.environ,
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [ROOT / "bench" / "gpu.sh"],
        env=where,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 3 and "no GPU here" in done.stdout, done.stdout + done.stderr
    parts = [
        json.loads(line)["part"] for line in (tmp_path / "parts.jsonl").read_text().splitlines()
    ]
    assert parts == [
        "look",
        *(f"rollout {way}" for way in ("static", "single", "general", "generate", "continuous")),
        "step static",
        "step general",
    ]
    assert (
        all((tmp_path / f"{part.replace(' ', '-')}.log").is_file() for part in parts[1:])
        and (tmp_path / "tests.log").is_file()
    )
