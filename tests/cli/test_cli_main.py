"""The command: verbs imported on demand, errors a person can act on, exit codes."""

import importlib
import io
import subprocess
import sys

import pytest

from laurel.cli import main as cli
from laurel.cli.eval import as_text
from laurel.core.errors import LaurelError, UsageError


def command(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "laurel", *words],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def fake_verb(monkeypatch, run):
    """A verb `probe` whose module is this test's own."""
    module = type(sys)("probe_verb")
    module.add_parser = lambda subparsers: subparsers.add_parser("probe").set_defaults(run=run)
    monkeypatch.setitem(sys.modules, "probe_verb", module)
    monkeypatch.setitem(cli.VERBS, "probe", ("probe_verb", "a probe"))


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in cli.VERBS)


def test_no_verb_shows_the_help_and_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert "verbs:" in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_answers_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_registers_itself_without_torch(verb):
    code = (
        "import argparse, importlib,"
        f" sys\nimportlib.import_module({cli.VERBS[verb][0]!r}).add_parser(argparse.ArgumentParser().add_subparsers())\nassert"
        " not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy imports at the"
        " top of a verb'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"laurel {importlib.import_module('laurel').__version__}\n"


def test_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "Did you mean `train`?" in capsys.readouterr().err


def test_unknown_option_of_a_verb_below_a_verb(capsys):
    assert cli.main(["data", "check", "addition", "--verifer", "gsm8k"]) == 2
    assert "unknown option `--verifer`. Did you mean `--verifier`?" in capsys.readouterr().err


def test_a_prefix_is_not_a_name(capsys):
    assert cli.main(["data", "check", "addition", "--verif", "gsm8k"]) == 2
    assert "Did you mean `--verifier`?" in capsys.readouterr().err


def test_unexpected_argument(capsys):
    assert cli.main(["train", "grpo", "rloo"]) == 2
    assert "unexpected argument `rloo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (
            LaurelError("the disk is full.", where="runs/x", fix="Make room."),
            1,
            "error: runs/x: the disk is full. Make room.\n",
        ),
        (
            UsageError("no such row.", where="file.jsonl:3"),
            2,
            "error: file.jsonl:3: no such row.\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_failures_become_exit_codes_without_a_traceback(monkeypatch, capsys, raised, code, said):
    def run(args):
        raise raised

    fake_verb(monkeypatch, run)
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(monkeypatch):
    """A59: only errors with a remedy are shortened; a crash must not hide its cause."""

    def run(args):
        return 1 // 0

    fake_verb(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import sys; from laurel.cli.main import main; sys.exit(main(['train', 'grpo',"
        " '--print_config']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # before anything is written
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_python_m_laurel_is_the_command():
    done = command("--version")
    assert (done.returncode, done.stdout[:7]) == (0, "laurel ")


@pytest.mark.parametrize(
    ("words", "tidied"),
    [
        (["--learning-rate", "1e-3"], ["--learning_rate", "1e-3"]),
        (["--stop=a-b"], ["--stop=a-b"]),
        (["--bar", "-1e-3"], ["--bar=-1e-3"]),
        (["--bar", "-.5"], ["--bar=-.5"]),
        (["-1e-3"], ["-1e-3"]),
        (["x", "--", "--not-an-option", "-1"], ["x", "--", "--not-an-option", "-1"]),
    ],
)
def test_tidy(words, tidied):
    assert cli.normalise_words(words, {"--bar", "--stop"}) == tidied


def test_what_the_disk_or_memory_refuses_is_an_error_of_ours(monkeypatch, capsys):
    """Any verb, any library: what, where and what to do, without a traceback; a mistake in code
    keeps its own.
    """
    refused = {
        OSError(30, "Read-only file system", "some/file"): (
            2,
            "error: some/file: Read-only file system. Name a place",
        ),
        OSError(28, "No space left on device"): (
            1,
            "error: a file, or the output: No space left on device. Free some room",
        ),
        RuntimeError("I/O error: File too large (os error 27)"): (
            1,
            "File too large. Raise the limit",
        ),
        MemoryError(): (1, "error: out of memory"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried"): (
            1,
            "out of memory: CUDA out of memory. Take",
        ),
    }
    for error, (code, said) in refused.items():
        monkeypatch.setattr("laurel.cli.main._dispatch", lambda words, error=error: throw(error))
        assert cli.main(["train"]) == code
        assert said in capsys.readouterr().err
    monkeypatch.setattr("laurel.cli.main._dispatch", lambda words: throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.main(["train"])


def throw(error):
    raise error


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_terminal_that_is_not_utf_8_gets_numbers_for_characters(monkeypatch, tmp_path, errors):
    """Rows, tables and tokens are shown; what the terminal has no character for is written as its
    number, never an exception.
    """
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "你好", "completion": "é🙂"}\n', encoding="utf-8")
    for encoding in ("ascii", "latin-1"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["data", "show", str(file)]) == 0
        out.flush()
        shown = out.buffer.getvalue().decode(encoding)
        assert r"\u4f60\u597d" in shown
        assert r"\U0001f642" in shown
        assert ("é" if encoding == "latin-1" else r"\xe9") in shown


def test_a_prompt_in_a_terminal_that_is_not_utf_8_is_read(monkeypatch):
    assert as_text("é你".encode().decode("ascii", "surrogateescape")) == "é你" == as_text("é你")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        as_text(b"\xe9".decode("ascii", "surrogateescape"))
