"""`laurel tabular`: options from a table, text that fits, JSON alone, pictures, a claim's exit code."""

import argparse
import importlib
import inspect
import json
import subprocess
import sys
import typing

import numpy as np
import pytest
from rich.console import Console

from laurel.cli import tabular
from laurel.cli.main import VERBS, main
from laurel.cli.tabular_options import Experiment, Option
from laurel.report import exhibit_text
from laurel.report.exhibit import Chart, Exhibit, Grid, Table

SOURCE = '''
"""A fake."""
from typing import Literal
import sys
from laurel.report.exhibit import *
sys.fake_was_imported = True
RATES = (0.5, 0.25)
SCALE = -1.5
Kind = Literal["plain", "odd"]

def probe(world: str = "gridworld", *, step_reward: float = SCALE, count: int = 3, quick: bool = False, rates: tuple[float, ...] = RATES,
          kind: Kind = "plain", kinds: tuple[Literal["a", "b"], ...] = ("a",), limit: int | None = None, seed: int = 0) -> Exhibit:
    """Probe a world,
    100 % of it.

    More words.
    step_reward: what a step pays
    kind: which kind it is.
    """
    data = {k: v for k, v in locals().items()}
    grid = Grid("values", ((step_reward, None), (1.0, 0.25)), (("→", ""), ("↑→", "+1")))
    chart = Chart("curve", "n", "y", {"a": [(1, 1, 1, 1), (2, 4, 3, 5)]})
    claim = Claim("the count is 3", count == 3, f"count = {count}")
    return Exhibit("a probe", "it probes", data, (grid,), (Table("t", ("n",), ((count,),)),), (chart,), (claim,), ("a note",))
'''

PROBE = Experiment(
    "fake_probe:probe",
    "probe a world",
    "Probe a world, 100 % of it.",
    (
        Option("world", "gridworld", positional=True),
        Option("step_reward", -1.5, "what a step pays"),
        Option("count", 3),
        Option("quick", False),
        Option("rates", (0.5, 0.25)),
        Option("kind", "plain", "which kind it is", choices=("plain", "odd")),
        Option("kinds", ("a",), choices=("a", "b")),
        Option("limit", None, of_type=int),
        Option("seed", 0),
    ),
)


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A verb `probe` of `laurel tabular`, alone, in a module that was never imported."""
    (tmp_path / "fake_probe.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tabular, "VERBS", {"probe": PROBE})
    monkeypatch.setitem(VERBS, "tabular", ("laurel.cli.tabular", "experiments"))
    monkeypatch.setattr(sys, "fake_was_imported", False, raising=False)
    yield lambda *words: main(["tabular", "probe", *words])
    sys.modules.pop("fake_probe", None)


def data_of(probe, capsys, *words):
    assert probe(*words, "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


DEFAULTS = {
    "world": "gridworld",
    "step_reward": -1.5,
    "count": 3,
    "quick": False,
    "rates": [0.5, 0.25],
    "kind": "plain",
    "kinds": ["a"],
    "limit": None,
    "seed": 0,
}


@pytest.mark.parametrize(
    "words, changed",
    [
        ((), {}),
        (("cliff",), {"world": "cliff"}),
        (("--step-reward", "-2"), {"step_reward": -2.0}),
        (("--step_reward=-1e-3", "cliff"), {"step_reward": -1e-3, "world": "cliff"}),
        (("--quick",), {"quick": True}),
        (("--quick", "false"), {"quick": False}),
        (("--rates", "1,-2, .5"), {"rates": [1.0, -2.0, 0.5]}),
        (("--kind", "odd", "--kinds", "b,a"), {"kind": "odd", "kinds": ["b", "a"]}),
        (("--limit", "7", "--seed", "4"), {"limit": 7, "seed": 4}),
    ],
)
def test_options_reach_the_function_with_their_types(probe, capsys, words, changed):
    assert data_of(probe, capsys, *words) == {**DEFAULTS, **changed}


@pytest.mark.parametrize(
    "words, told",
    [
        (("--count", "1.5"), "`1.5` is not a whole number"),
        (("--step-reward", "much"), "`much` is not a number"),
        (("--step-reward", "nan"), "`nan` is not a number"),
        (("--rates", "1,,2"), "`` is not a number"),
        (("--kind", "other"), "invalid choice: 'other'"),
        (("--kinds", "a,c"), "`c` is none of a, b"),
        (("--quick", "maybe"), "`maybe` is not true or false"),
        (("--step-rewart", "1"), "Did you mean `--step_reward`?"),
        (("cliff", "again"), "unexpected argument `again`"),
        (("--plot", "a.gif"), "End it in .png, .svg, .pdf."),
        (("--page", "a.png"), "End it in .html, .htm."),
        (("--plot", "afile/x.png"), "cannot write into `afile`"),
        (("--plot", "afolder.png"), "is a folder"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(
    probe, capsys, tmp_path, monkeypatch, words, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    (tmp_path / "afolder.png").mkdir()
    assert probe(*words) == 2
    captured = capsys.readouterr()
    assert told in " ".join(captured.err.split()) and captured.out == ""
    assert sys.fake_was_imported is False


def test_help_is_read_without_importing(probe, capsys):
    assert probe("--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "Probe a world, 100 % of it.",
        "--step_reward NUMBER what a step pays (default -1.5)",
        "--count INTEGER default 3",
        "--rates NUMBER,... default 0.5,0.25",
        "--kind plain|odd which kind it is (default plain)",
        "--quick [true|false] default false",
        "--json",
    ):
        assert text in out
    assert "More words" not in out and sys.fake_was_imported is False


def test_text_shows_everything_and_fits(probe, capsys):
    assert probe("--count", "3", "--seed", "1") == 0
    out = capsys.readouterr().out
    for text in (
        "a probe",
        "it probes",
        "values",
        "→  -1.500",
        "▒▒▒",
        "+1",
        "curve: y over n",
        "4 [3, 5]",
        "▁█",
        "✓ the count is 3",
        "count = 3",
        "a note",
    ):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_claim_that_fails_is_exit_code_1_after_everything(probe, capsys, tmp_path):
    assert probe("--count", "4", "--plot", str(tmp_path / "p.png")) == 1
    out, err = capsys.readouterr()
    assert (
        "✗ the count is 3" in out
        and "a note" in out
        and err == ""
        and (tmp_path / "p.png").exists()
    )
    assert probe("--count", "4", "--json") == 1
    captured = capsys.readouterr()
    assert (
        json.loads(captured.out)["count"] == 4
        and captured.err == "does not hold: the count is 3 (count = 4)\n"
    )


def test_files_are_written_and_named(probe, capsys, tmp_path):
    plot, page = tmp_path / "new" / "p.svg", tmp_path / "page.html"
    assert (
        probe(
            "cliff",
            "--step-reward",
            "-2",
            "--rates",
            "1,2",
            "--quick",
            "--plot",
            str(plot),
            "--page",
            str(page),
        )
        == 0
    )
    assert f"written: {plot}, {page}" in capsys.readouterr().out.replace("\n", "")
    assert "</svg>" in plot.read_text()
    command = "laurel tabular probe cliff --step-reward -2 --quick true --rates 1,2"
    assert f"<pre>{command}</pre>" in page.read_text(encoding="utf-8")
    first = page.read_text(encoding="utf-8")
    assert (
        main([*command.split()[1:], "--page", str(page)]) == 0
    )  # the command on the page makes the page
    assert first.split("<footer>")[0] == page.read_text(encoding="utf-8").split("<footer>")[0]
    capsys.readouterr()
    assert probe("--plot", str(plot), "--json") == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3


def test_plain_is_json():
    value = {
        1: np.float64(0.5),
        "a": np.arange(3),
        "s": {"b", "a"},
        "t": (True, None, np.int64(3)),
        "n": [float("nan"), -float("inf")],
    }
    assert plain_json(value) == {
        "1": 0.5,
        "a": [0, 1, 2],
        "s": ["a", "b"],
        "t": [True, None, 3],
        "n": [None, None],
    }


def plain_json(value):
    return json.loads(json.dumps(tabular.to_json_value(value), allow_nan=False))


def lines_of(renderable, width=80):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


def grid(columns, mark="↑→", value=-13.25):
    return Grid("", ((value,) * columns,) * 2, ((mark,) * columns,) * 2)


@pytest.mark.parametrize(
    "columns, shown", [(2, "↑→ -13.25"), (8, "-13.25"), (11, "-13.2"), (14, "-13"), (20, "↑→")]
)
def test_a_map_gives_up_digits_before_it_grows_too_wide(columns, shown):
    lines = lines_of(exhibit_text.grid_table(grid(columns)))
    assert max(map(len, lines)) <= 80 and len({len(line) for line in lines}) == 1
    assert sum(line.count(shown) for line in lines) == 2 * columns


def test_a_map_without_marks_is_numbers():
    assert any(
        "│ 0.50 │" in line or "│ 0.500 │" in line
        for line in lines_of(exhibit_text.grid_table(grid(3, "", 0.5)))
    )


def test_curves_rise_and_fall_as_text():
    chart = Chart(
        "",
        "n",
        "y",
        {
            "up": [(1, 1, 1, 1), (2, 10, 9, 11), (3, 100, 100, 100)],
            "gap": [(3, 1, 1, 1), (1, 100, 100, 100), (2, 0, 0, 0)],
        },
        log_y=True,
    )
    text = "\n".join(lines_of(exhibit_text.spark_table(chart)))
    assert "▁▅█" in text and "█ ▁" in text and "n 1" in text and "n 3" in text
    apart = Chart(
        "", "n", "y", {"a": [(1, 1, 1, 1), (2, 2, 2, 2)], "b": [(5, 1, 1, 1), (6, 1, 1, 1)]}
    )
    assert "1 at 5" in "\n".join(lines_of(exhibit_text.spark_table(apart)))
    assert lines_of(exhibit_text.spark_table(Chart("", "n", "y", {})))
    long = Chart("", "n", "y", {"a": [(x, x, x, x) for x in range(1000)]})
    assert (
        len(
            next(line for line in lines_of(exhibit_text.spark_table(long)) if "█" in line).split()[
                -1
            ]
        )
        == exhibit_text.SPARK
    )


def test_tables_fold_words_and_do_not_read_markup():
    lines = lines_of(
        exhibit_text.text_table(
            Table("", ("name", "value"), (("[red]x[/red] " + "many words " * 12, 1.0), ("b", 22.0)))
        )
    )
    assert (
        max(map(len, lines)) <= 80
        and "[red]x[/red]" in "\n".join(lines)
        and lines[-1].rstrip().endswith("22")
    )
    assert {"many", "words"} == {word for line in lines[2:-1] for word in line.split()} - {
        "[red]x[/red]",
        "1",
    }


@pytest.mark.parametrize("columns", [2, 6, 8])
def test_numbers_are_never_broken(columns):
    numbers = tuple(0.00012345 * 3**k for k in range(columns))
    heads = ("learner", *(f"figure number {k}" for k in range(columns)))
    text = "\n".join(
        lines_of(exhibit_text.text_table(Table("", heads, (("behaviour cloning", *numbers),))))
    )
    significant = 4 if columns < 8 else 3
    assert max(map(len, text.splitlines())) <= 80
    assert (
        all(f"{number:.{significant}g}" in text.split() for number in numbers)
        and "behaviour" in text.split()
    )


def test_columns_give_way_heads_first():
    def widths(total):
        return exhibit_text.column_widths(
            ("a long head", "word"),
            (["1.5", "22.5"], ["some words here", "x"]),
            (True, False),
            total,
        )

    assert (
        widths(80) == [11, 15]
        and widths(22) == [7, 15]
        and widths(19) == [4, 15]
        and widths(14) == [4, 10]
        and widths(3) == [4, 5]
    )


@pytest.mark.parametrize("verb", tabular.VERBS)
def test_options_are_what_the_signature_says(verb):
    """The table and the function that is called agree: names, defaults, types and texts that the
    command line can give.
    """
    experiment = tabular.VERBS[verb]
    module, _, name = experiment.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    options = experiment.options
    parameters = inspect.signature(function).parameters
    assert [option.name for option in options] == list(parameters)
    assert [option.default for option in options] == [
        parameter.default for parameter in parameters.values()
    ]
    assert [option.positional for option in options] == [
        parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values()
    ]
    # the help says no less than the docstring, whose paragraphs are laid out for its reader
    told = " ".join(inspect.cleandoc(function.__doc__).split())
    assert told.startswith(experiment.about.split(":")[0])
    hints = typing.get_type_hints(function)
    assert hints["return"] is Exhibit
    for option in options:
        assert not option.meaning or f"{option.name}: {option.meaning}" in told
        hint = hints[option.name]
        assert (typing.get_origin(hint) is tuple) == option.many
        one = typing.get_args(hint)[0] if option.many else hint
        choices = typing.get_args(one) if typing.get_origin(one) is typing.Literal else ()
        assert option.choices == choices and option.kind is (type(choices[0]) if choices else one)
        parser = argparse.ArgumentParser()
        tabular._add_option(parser, option)
        if option.default is not None:
            words = (
                [tabular._written(option.default)]
                if option.positional
                else [f"--{option.name}={tabular._written(option.default)}"]
            )
            value = getattr(parser.parse_args(words), option.name)
            assert value == option.default and type(value) is type(option.default)


def test_no_number_is_loaded_for_help():
    code = (
        "import sys; from laurel.cli.main import main; assert main(['tabular', '--help']) =="
        " 0\nsys.exit(', '.join({'numpy', 'scipy', 'torch', 'matplotlib', 'rich', 'pydantic'} &"
        " set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in tabular.VERBS)
