"""`laurel report` and `laurel doctor` as the command line calls them."""

import argparse
import json
import subprocess
import sys
from importlib import metadata

import pytest
from transformers import AutoTokenizer

from laurel.cli import doctor, report
from laurel.core.errors import UsageError
from laurel.core.run import Run
from laurel.model.scratch import save_scratch


def call(*argv):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    report.add_parser(subparsers)
    doctor.add_parser(subparsers)
    args = parser.parse_args(argv)
    return args.run(args)


def test_report_prints_the_path(tmp_path, capsys):
    Run.create(tmp_path / "run", {"max_steps": 1}, resume=False).log(1, {"reward": 0.5})
    assert call("report", str(tmp_path / "run")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    with pytest.raises(UsageError):
        call("report", str(tmp_path))


def test_the_verbs_import_nothing_heavy():
    code = (
        "import sys, laurel.cli.report, laurel.cli.doctor; sys.exit(bool({'torch', 'matplotlib',"
        " 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_doctor_on_this_machine(capsys):
    """The machine that runs the tests is usable, and every check of the list reports."""
    code = call("doctor", "--json")
    told = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in told["checks"]}
    assert code == 0 and told["usable"], [
        check for check in told["checks"] if check["state"] == "bad"
    ]
    assert {
        "python",
        "torch",
        "transformers",
        "peft",
        "datasets",
        "math-verify",
        "optional",
        "device",
        "threads",
    } <= names
    assert {"precision", "memory", "sampler", "disk", "sandbox", "self-test"} <= names
    assert all(check["fix"] for check in told["checks"] if check["state"] == "bad")


def test_doctor_says_which_way_a_model_takes_and_how_fast(tmp_path, capsys):
    """A Llama takes the fast ways, GPT-2 the general ones, with the reason; what cannot be loaded
    is refused as in training.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    save_scratch(tmp_path / "llama", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    save_scratch(tmp_path / "gpt2", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    words = len(AutoTokenizer.from_pretrained(tmp_path / "gpt2"))
    GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    assert call("doctor", "--model", str(tmp_path / "llama")) == 0
    said = capsys.readouterr().out
    assert (
        "fast: the compact decoder" in said
        and "fast: packed" in said
        and said.count("tokens/s") == 2
    )
    assert "fast: static buffers; 64 rows of 1,024 tokens take" in said
    assert (
        "KB" not in said
        and "of weights; all of them trained" in said
        and "laurel is ready" not in said
    )
    assert call("doctor", "--model", str(tmp_path / "gpt2")) == 0
    said = capsys.readouterr().out
    assert (
        said.count("general: a family whose pass laurel does not write out") == 2
    )  # here, and on CUDA
    assert "general: padded rows" in said
    with pytest.raises(UsageError, match="no such model folder"):
        call("doctor", "--model", str(tmp_path / "none"))


def test_doctor_says_whether_the_fast_sampler_can_be_built(monkeypatch):
    monkeypatch.setattr("laurel.fast.kernels.load_library", lambda: object())
    assert doctor.check_sampler()[0].state == "ok"
    monkeypatch.setattr("laurel.fast.kernels.load_library", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (check,) = doctor.check_sampler()
    assert check.state == "warn" and "g++" in check.fix


def test_doctor_names_what_is_missing_and_what_is_untested(monkeypatch, capsys):
    wanted = [
        ("numpy", "<1", True),
        ("no-such-package", ">=1", True),
        ("no-such-extra", "", False),
        ("scipy", ">=1", True),
    ]
    monkeypatch.setattr(doctor, "declared_requirements", lambda: wanted)
    found = {check.name: check for check in doctor.check_packages()}
    assert [found[name].state for name, _, _ in wanted] == ["warn", "bad", "warn", "ok"]
    assert found["no-such-package"].fix == "pip install 'no-such-package>=1'"
    assert metadata.version("numpy") in found["numpy"].text and "<1" in found["numpy"].text


def test_a_broken_installation_is_a_verdict_not_a_traceback(monkeypatch, capsys):
    def broken():
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(
        doctor, "run_all_checks", lambda: iter(doctor.run_check_safely("device", broken))
    )
    assert call("doctor") == 1
    out = capsys.readouterr().out
    assert "bad" in out and "libtorch.so" in out and "cannot be used" in out


def test_the_declared_ranges_are_read():
    found = {
        name: (specifier, needed) for name, specifier, needed in doctor.declared_requirements()
    }
    assert (
        found["torch"][1]
        and "<" in found["torch"][0]
        and not found["math-verify"][1]
        and "pytest" not in found
    )
