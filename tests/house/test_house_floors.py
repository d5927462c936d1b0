"""A file imports its own room and rooms below it, and no two files import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_source import PACKAGE, PACKAGES, ROOT, circles, imports, module_name, place, python_files

FLOORS = (
    {"core"},
    {"data", "weight", "objective", "measure"},
    {"fast"},
    {"model"},
    {"judge"},
    {"reward", "rollout"},
    {"eval"},
    {"train", "search", "report", "serve"},
    {"verify", "pipeline"},
    {"cli"},
)
WING_FLOORS = {
    "laurel_feedback": ({"store"}, {"statistics"}, {"exchange"}, {"web", "demo"}),
    "laurel_worlds": ({"experiments"},),
    "laurel_prompts": (),
}
"""Rooms of the other packages; files outside them import each other freely, but in no circle."""
BELOW = {
    "laurel_feedback": {"core", "data", "measure"},
    "laurel_worlds": {"core", "measure", "report"},
    "laurel_prompts": {"core", "data", "measure", "report"},
}
"""What the other packages import of laurel. Between each other they import nothing."""
EXPERIMENTS = "laurel_worlds.experiments"
"""The lectures' experiments train as a user would: they import all of laurel, and the feedback."""
VERBS = (
    "laurel.cli.feedback",
    "laurel.cli.tabular",
    "laurel.cli.prompt",
    "laurel.cli.judge_run",
    "laurel.cli.judge_card",
)
"""The files of laurel that know another package: its verbs, imported when they are asked for."""
DOORS = {"__init__": {"core"}, "__main__": {"cli"}}
"""What files outside every room may import: public names come from core, the command from cli."""


def floors(package: str) -> dict[str, int]:
    """room: floor, of one package."""
    rows = WING_FLOORS.get(package, FLOORS)
    return {room: level for level, rooms in enumerate(rows) for room in rooms}


def violations(root: Path) -> Iterator[str]:
    """Every import under the package `root` that the floors forbid; rooms that stand on none."""
    own = floors(root.name)
    for path in python_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0] if len(parts) > 1 or root.name not in WING_FLOORS else ""
        if root.name not in WING_FLOORS and len(parts) == 1 and room not in DOORS:
            yield f"{path.name}: a module outside every room"
            continue
        if len(parts) > 1 and room not in own:
            yield f"{path.name}: room `{room}` is on no floor"
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{place(path, node)}: relative import; write it in full"
        every = [*imports(path, root.parent), *by_call(path)]
        for node, name in every:
            if why := forbidden(root.name, room, name, module_name(path, root.parent)):
                yield f"{place(path, node)}: {why}"


def by_call(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Imports by import_module and __import__, where the name is written out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node, argument.value


def forbidden(package: str, room: str, name: str, module: str) -> str:
    """Why a file of `room` may not import `name`; "" where it may."""
    where, _, rest = name.partition(".")
    other = rest.partition(".")[0]
    here = room or package
    if where == package:
        own = floors(package)
        if room in DOORS and package not in WING_FLOORS:
            allowed = other in DOORS[room] or not other
        else:
            allowed = not rest or other == room or other not in own
            allowed = allowed or own.get(other, 99) < own.get(room, -1)
        return "" if allowed else f"{here} imports {other}"
    if module.startswith(f"{EXPERIMENTS}."):
        return f"{here} imports {where}" if where == "laurel_prompts" else ""
    if where == "laurel" and package in BELOW:
        return "" if not rest or other in BELOW[package] else f"{package} imports laurel.{other}"
    if where in WING_FLOORS:
        return "" if module in VERBS else f"{here} imports {where}"
    return ""


@pytest.mark.parametrize("root", PACKAGES, ids=lambda root: root.name)
def test_floors(root):
    found = list(violations(root))
    assert not found, "\n".join(found)


def test_no_two_files_import_each_other():
    found = circles()
    assert not found, "\n".join(", ".join(circle) for circle in found)


def test_a_circle_is_seen(tmp_path):
    """Over three files, one of them for type checking only, another as a name of its package."""
    root = tmp_path / "pkg"
    root.mkdir()
    (root / "a.py").write_text("from pkg.b import f\n")
    (root / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.c\n"
    )
    (root / "c.py").write_text("def f():\n    from pkg import a\n")
    (root / "d.py").write_text("from pkg.a import f\n")
    assert circles((root,), tmp_path) == [["pkg.a", "pkg.b", "pkg.c"]]


def test_finds_planted_violations(tmp_path):
    """The checker sees every way of breaking the floors, and nothing in what is allowed."""
    root = tmp_path / "pkg"
    planted = {
        "__init__.py": "from pkg.core.sample import Batch\nfrom pkg.train.loop import train\n",
        "core/sample.py": "import math\nfrom pkg.core.errors import E\n",
        "objective/policy.py": (
            "from pkg.core.sample import Batch\nfrom pkg import train\n"
            "from pkg.weight.group import centred\n"
        ),
        "train/loop.py": (
            "from pkg.objective.policy import clipped\nimport pkg.core.run\n"
            "from pkg import __version__\ndef f():\n    from pkg.report.page import page\n"
            "    import importlib\n    importlib.import_module('pkg.cli.main')\n"
        ),
        "weight/group.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from pkg.model.policy import Policy\n"
        ),
        "data/read.py": "from .formats import Row\nfrom laurel_feedback.store.tables import Vote\n",
        "utils/tools.py": "",
        "stray.py": "",
    }
    for name, text in planted.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert [line.split(": ", 1)[1] for line in violations(root)] == [
        "__init__ imports train",
        "relative import; write it in full",
        "data imports laurel_feedback",
        "objective imports train",
        "objective imports weight",
        "a module outside every room",
        "train imports report",
        "train imports cli",
        "room `utils` is on no floor",
        "weight imports model",
    ]


def test_wings_do_not_lean_on_each_other():
    assert forbidden("laurel_worlds", "", "laurel_prompts.fit", "laurel_worlds.solve")
    assert forbidden("laurel_prompts", "", "laurel.train.loop", "laurel_prompts.fit")
    assert forbidden("laurel_feedback", "store", "laurel_feedback.web.app", "x")
    assert not forbidden("laurel_feedback", "web", "laurel_feedback.store.tables", "x")
    experiment = "laurel_worlds.experiments.labels"
    assert not forbidden("laurel_worlds", "experiments", "laurel_feedback.store.tables", experiment)
    assert not forbidden("laurel_worlds", "experiments", "laurel.train.loop", experiment)
    assert forbidden("laurel_worlds", "experiments", "laurel_prompts.fit", experiment)
    assert forbidden("laurel_worlds", "", experiment, "laurel_worlds.solve")
    assert forbidden("laurel_worlds", "", "laurel.train.loop", "laurel_worlds.solve")
    assert not forbidden("laurel", "cli", "laurel_prompts.fit", "laurel.cli.prompt")
    assert forbidden("laurel", "cli", "laurel_prompts.fit", "laurel.cli.train")


def test_core_and_data_do_not_import_torch():
    """No torch at import in the ground floor, nor for rows, which are only read."""
    rooms = ("core", "data")
    names = [module_name(path) for room in rooms for path in python_files(PACKAGE / room)]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ROOT.is_dir()
