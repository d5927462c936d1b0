"""What the tests of the house look at: every file of the package, parsed once. As a script: prints the ten longest functions."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "laurel"


def python_files(root: Path = PACKAGE) -> list[Path]:
    """Every Python file below `root`, sorted."""
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def package_files() -> list[Path]:
    """Every file of the package, Python or not."""
    return sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """laurel/core/run.py -> laurel.core.run"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[tuple[int, str, int]]:
    """(lines, name, first line) of every function in a file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name, node.lineno


def longest(count: int = 10) -> list[str]:
    """The longest functions of the package, longest first."""
    found = sorted(((lines, path, name) for path in python_files() for lines, name, _ in functions(path)), reverse=True)
    return [f"{lines:4} lines  {path.relative_to(ROOT)}  {name}" for lines, path, name in found[:count]]


def place(path: Path, node: ast.AST) -> str:
    """file:line of a node, for messages."""
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{getattr(node, 'lineno', 1)}"


if __name__ == "__main__":
    print("the ten longest functions (budget: 80 lines, 120 in laurel/train/loop.py):")
    print("\n".join(longest()))
