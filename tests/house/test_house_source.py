"""Rules of the source that no linter knows, each with a planted violation that its checker must
see; and the linter itself.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house_pages import blocks
from house_source import PACKAGE, PACKAGES, ROOT, functions, place, python_files, tree

from laurel.core.config import ALGORITHM_NAMES, EvalConfig, TrainConfig

TABLE = PACKAGE / "train" / "algorithms.py"
CONFIG = PACKAGE / "core" / "config.py"
Finding = Iterator[str]


def masks_from_ids(module: ast.Module) -> Iterator[ast.AST]:
    """Comparisons with a padding id: where padding is, is known from lengths, never from token ids
    (A3).
    """
    for node in ast.walk(module):
        sides: list[ast.AST] = []
        if isinstance(node, ast.Compare) and not all(
            isinstance(op, ast.Is | ast.IsNot) for op in node.ops
        ):
            sides = [node.left, *node.comparators]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("eq", "ne", "not_equal", "isin")
        ):
            sides = [node.func.value, *node.args]
        if any(re.search(r"\bpad(ding)?(_token)?_id", ast.unparse(side)) for side in sides):
            yield node


def bare_excepts(module: ast.Module) -> Iterator[ast.AST]:
    """`except:` without a type."""
    return (
        node
        for node in ast.walk(module)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    )


def algorithm_names(module: ast.Module) -> Iterator[ast.AST]:
    """Decisions by an algorithm's name: a comparison of `algorithm`, or of anything with a row's
    name, and `match algorithm`.
    """
    rows = set(ALGORITHM_NAMES) - {
        "sft",
        "reward",
    }  # also a purpose of data, and a place where KL may stand
    for node in ast.walk(module):
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops
        ):
            sides = [node.left, *node.comparators]
            named = any(
                isinstance(side, ast.Name | ast.Attribute)
                and _last(side) in ("algorithm", "algorithm_name")
                for side in sides
            )
            constants = {
                leaf.value
                for side in sides
                for leaf in ast.walk(side)
                if isinstance(leaf, ast.Constant)
            }
            if named or constants & rows:
                yield node
        elif (
            isinstance(node, ast.Match)
            and isinstance(node.subject, ast.Name | ast.Attribute)
            and "algorithm" in _last(node.subject)
        ):
            yield node


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


CHECKS: dict[str, tuple[Callable[[ast.Module], Iterator[ast.AST]], str, str]] = {
    "mask from token ids": (
        masks_from_ids,
        "mask = ids != tokenizer.pad_token_id\nm = ids.eq(pad_id)\n",
        "if tokenizer.pad_token_id is None: tokenizer.pad_token = x\n",
    ),
    "bare except": (
        bare_excepts,
        "try:\n    f()\nexcept:\n    pass\ntry:\n    g()\nexcept: raise\n",
        "try:\n    f()\nexcept ValueError: pass\n",
    ),
    "algorithm by name outside the table": (
        algorithm_names,
        "if algorithm == 'x': pass\nif name in ('grpo', 'rloo'): pass\n",
        "if algorithm is None: pass\nif row.credit == 'token': pass\n",
    ),
}


@pytest.mark.parametrize("rule", CHECKS)
def test_the_source_keeps(rule):
    check = CHECKS[rule][0]
    found = [
        place(path, node) for path in python_files() if path != TABLE for node in check(tree(path))
    ]
    assert not found, f"{rule}: " + ", ".join(found)


@pytest.mark.parametrize("rule", CHECKS)
def test_the_checker_sees_planted_violations(rule):
    check, wrong, right = CHECKS[rule]
    assert len(list(check(ast.parse(wrong)))) == 2
    assert not list(check(ast.parse(right)))


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings(path):
    """Every module says in one sentence what it is for; so does every public function and class."""
    module = tree(path)
    first = (ast.get_docstring(module) or "").split("\n\n")[0].rstrip()
    assert first.endswith((".", ":", "?", "!")) or first.endswith(")"), (
        f"{path.name}: the docstring's first paragraph is no sentence: {first!r}"
    )
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    lacking = [
        f"{place(path, node)} {node.name}"
        for node in module.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not lacking, lacking


def test_no_room_for_leftovers():
    names = {"utils", "util", "common", "misc", "helpers", "experimental", "legacy", "compat"}
    found = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if names & set(path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not found, found


def test_no_exemption_for_the_three_rules():
    """F821 (undefined name), B905 (zip without strict), B023 (loop variable in a closure): nowhere
    switched off. No blanket noqa.
    """
    marker = "no" + "qa"
    found = []
    for path in [
        *python_files(),
        *python_files(ROOT / "tests"),
        *python_files(ROOT / "bench"),
        *python_files(ROOT / "examples"),
    ]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            exempt = re.search(
                rf"#\s*(ruff:\s*)?{marker}(:\s*(?P<codes>[A-Z0-9, ]+))?", line, re.IGNORECASE
            )
            if exempt and (
                exempt["codes"] is None
                or re.search(r"F821|B905|B023|\bF8?\b|\bB9?0?\b", exempt["codes"])
            ):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ignored = re.search(r"^(extend-)?(per-file-)?ignores?\b.*", settings, re.MULTILINE)
    assert not found and ignored is None, found or ignored


def test_no_place_of_one_machine():
    """Nothing in the repository names a path of the machine it was written on, or a registry's
    host.
    """
    words = [
        "/" + "work/main",
        "/" + "work/shared",
        "/" + "root/",
        "pypi" + ".org",
        "files." + "pythonhosted",
        "registry." + "npmjs",
    ]
    folders = (*(package.name for package in PACKAGES), "tests", "docs", "examples", "bench")
    paths = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".yaml", ".html", ".css")
    ]
    paths += [
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "Makefile",
            "pyproject.toml",
            "constraints.txt",
        )
    ]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in paths
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found, found


def uses(kind: type, files: list[Path]) -> set[str]:
    """The options of `kind` that a weight or objective takes by name, or that are read as
    `config.<name>` or `config.get("<name>")`.
    """
    used: set[str] = set()
    for path in files:
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Load)
                and _last(node.value) in ("config", "resolved")
            ):
                used.add(node.attr)
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "config.get"
                and isinstance(node.args[0], ast.Constant)
            ):
                used.add(str(node.args[0].value))
            elif isinstance(node, ast.FunctionDef) and path.parent.name in ("weight", "objective"):
                used.update(argument.arg for argument in node.args.kwonlyargs)
    return used & set(kind.model_fields)  # type: ignore[attr-defined]


def test_every_training_option_is_used():
    """An option accepted and unused is a failure (A19): each is a parameter of a weight or
    objective, or read from the configuration.
    """
    rooms = ("weight", "objective", "model", "rollout", "reward", "train", "report", "core")
    files = [path for room in rooms for path in python_files(PACKAGE / room) if path != CONFIG]
    unused = sorted(set(TrainConfig.model_fields) - uses(TrainConfig, files))
    assert not unused, f"accepted and unused: {unused}"


def test_every_evaluation_option_is_used():
    others = ("cli/eval.py", "train/inference.py", "core/sample.py")
    files = [*python_files(PACKAGE / "eval"), *(PACKAGE / name for name in others)]
    unused = sorted(set(EvalConfig.model_fields) - uses(EvalConfig, files))
    assert not unused, f"accepted and unused: {unused}"


def test_the_use_of_an_option_is_seen_and_its_absence_too(tmp_path):
    (tmp_path / "weight").mkdir()
    (tmp_path / "weight" / "group.py").write_text("def centred(r, *, scale_rewards='none'): ...\n")
    (tmp_path / "loop.py").write_text(
        "x = setup.config.beta\nconfig.epsilon = 1\nother.delta\n'top_p'\nconfig.get('bar')\n"
    )
    assert uses(TrainConfig, python_files(tmp_path)) == {"scale_rewards", "beta", "bar"}


def exempt(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Special methods are called by Python; a Protocol is for those who write to it, whether we
    name it or not.
    """
    return node.name.startswith("__") or any(
        _last(base) == "Protocol" for base in getattr(node, "bases", ())
    )


def unreached(files: list[Path], texts: str) -> list[str]:
    """Functions, methods and classes that no module mentions and no text (a page, a template)
    shows.
    """
    mentioned, defined = set(re.findall(r"\w+", texts)), {}
    for path in files:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name | ast.Attribute):
                mentioned.add(_last(node))
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.isidentifier()
            ):
                mentioned.add(node.value)
            elif isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ) and not exempt(node):
                defined.setdefault(node.name, place(path, node))
    return [f"{where} {name}" for name, where in defined.items() if name not in mentioned]


def test_nothing_is_written_and_never_used():
    """Code that the package and its templates do not call and no page shows is dead, or somebody
    forgot to connect it.
    """
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = [block.text for page in pages for block in blocks(page)]
    calls = [
        call
        for package in PACKAGES
        for path in package.rglob("*.html")
        for call in re.findall(r"{[{%].*?[%}]}", path.read_text(encoding="utf-8"))
    ]
    found = unreached(python_files(), "\n".join(shown + calls))
    assert not found, "\n".join(found)


def test_the_unused_is_seen(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f(): g()\ndef g(): ...\ndef h(): ...\nclass K:\n    def m(self): ...\nK\n"
    )
    assert [line.split()[1] for line in unreached(python_files(tmp_path), "`h` is for users")] == [
        "f",
        "m",
    ]


def test_ruff_is_clean():
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tokens_of_functions_are_counted_by_hand(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f():\n    x = 1\n    def g():\n        return 2\n    return g\n"
    )
    assert sorted(functions(tmp_path / "a.py")) == [(7, "g", 3), (17, "f", 1)]
