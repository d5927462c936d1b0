"""The floors: a module imports its own room and rooms on lower floors. Never up, never sideways."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from house_source import PACKAGE, module_name, place, python_files

FLOORS = (
    {"core"},
    {"data", "weight", "objective", "tabular", "measure"},
    {"policy"},
    {"reward", "rollout", "judge"},
    {"train", "eval", "search", "prompt", "feedback", "report"},
    {"verify", "pipeline"},
    {"cli"},
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"__init__": {"core"}, "__main__": {"cli"}}
"""What the two modules outside every room may import: the public names come from core, the command from cli."""


def imported(node: ast.AST, package: str) -> list[str]:
    """The modules of `package` that one statement or call imports, in dotted form."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    else:
        names = []
    return [name for name in names if name.startswith(f"{package}.")]


def violations(root: Path) -> Iterator[str]:
    """Every import under `root` that the floors forbid, and every room that stands on no floor."""
    for path in python_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0]
        if len(parts) == 1 and room not in DOORS:
            yield f"{path.name}: a module outside every room"
            continue
        if len(parts) > 1 and room not in FLOOR:
            yield f"{path.name}: room `{room}` is on no floor"
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{place(path, node)}: relative import; write it in full"
                continue
            for name in imported(node, root.name):
                other = name.split(".")[1]
                allowed = other in DOORS[room] if room in DOORS else other == room or FLOOR.get(other, 99) < FLOOR[room]
                if not allowed and not (other not in FLOOR and _is_public_name(node, root.name)):
                    yield f"{place(path, node)}: {room} imports {other}"


def _is_public_name(node: ast.AST, package: str) -> bool:
    """`from laurel import __version__`: a name of the package itself, not a room."""
    return isinstance(node, ast.ImportFrom) and node.module == package


def test_floors():
    found = list(violations(PACKAGE))
    assert not found, "\n".join(found)


def test_finds_planted_violations(tmp_path):
    """The checker sees every way of breaking the floors, and nothing in what is allowed."""
    root = tmp_path / "pkg"
    planted = {
        "__init__.py": "from pkg.core.sample import Batch\nfrom pkg.train.loop import train\n",
        "core/sample.py": "import math\nfrom pkg.core.errors import E\n",
        "objective/policy.py": "from pkg.core.sample import Batch\nfrom pkg import train\nfrom pkg.weight.group import centred\n",
        "train/loop.py": (
            "from pkg.objective.policy import clipped\nimport pkg.core.run\nfrom pkg import __version__\n"
            "def f():\n    from pkg.eval.passk import passk\n    import importlib\n    importlib.import_module('pkg.cli.main')\n"
        ),
        "weight/group.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.policy.model import Policy\n",
        "data/read.py": "from .formats import Row\n",
        "utils/tools.py": "",
        "stray.py": "",
    }
    for name, text in planted.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert [line.split(": ", 1)[1] for line in violations(root)] == [
        "__init__ imports train",
        "relative import; write it in full",
        "objective imports train",
        "objective imports weight",
        "a module outside every room",
        "train imports eval",
        "train imports cli",
        "room `utils` is on no floor",
        "weight imports policy",
    ]


def test_core_and_data_do_not_import_torch():
    """DESIGN section 2: no torch at import in the ground floor; the same for rows, which `laurel data` only reads."""
    names = [module_name(path) for room in ("core", "data") for path in python_files(PACKAGE / room)]
    code = f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
