"""What the tests of the house look at: every file of the packages, parsed once.

As a script it prints the table of the house: circles, the longest functions, tokens a line.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "laurel"
PACKAGES = (PACKAGE, *(ROOT / f"laurel_{wing}" for wing in ("feedback", "worlds", "prompts")))
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def python_files(*roots: Path) -> list[Path]:
    """Every Python file below `roots` (of all packages, if none is given), sorted."""
    found = (path for root in roots or PACKAGES for path in root.rglob("*.py"))
    return sorted(path for path in found if "__pycache__" not in path.parts)


def package_files() -> list[Path]:
    """Every file of the packages, Python or not."""
    found = (path for package in PACKAGES for path in package.rglob("*") if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_name(path: Path, root: Path = ROOT) -> str:
    """laurel/core/run.py -> laurel.core.run"""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def code_tokens(path: Path) -> tuple[int, ...]:
    """The line of every token of code in a file: no comment, no docstring, no layout."""
    docs = set[int]()
    for node in ast.walk(tree(path)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docs.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    read = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    tokens = (token for token in read if token.type not in NO_CODE)
    return tuple(token.start[0] for token in tokens if token.start[0] not in docs)


def functions(path: Path) -> Iterator[tuple[int, str, int]]:
    """(tokens, name, first line) of every function in a file, nested ones too."""
    lines = code_tokens(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            yield sum(node.lineno <= line <= last for line in lines), node.name, node.lineno


def longest(count: int = 10) -> list[str]:
    """The functions of the packages with the most tokens, the longest first."""
    found = sorted(
        ((tokens, path, name) for path in python_files() for tokens, name, _ in functions(path)),
        reverse=True,
    )
    return [f"{n:4} tokens  {path.relative_to(ROOT)}  {name}" for n, path, name in found[:count]]


def density(path: Path) -> float:
    """Tokens a line of code."""
    lines = code_tokens(path)
    return len(lines) / max(1, len(set(lines)))


def densest(count: int = 10) -> list[str]:
    """The files with the most tokens a line of code."""
    found = sorted(((density(path), path) for path in python_files()), reverse=True)
    return [
        f"{dense:5.1f} tokens a line  {path.relative_to(ROOT)}" for dense, path in found[:count]
    ]


def overall() -> float:
    """Tokens a line of code over all packages."""
    every = [code_tokens(path) for path in python_files()]
    return sum(map(len, every)) / sum(len(set(lines)) for lines in every)


def imports(path: Path, root: Path = ROOT) -> Iterator[tuple[ast.AST, str]]:
    """(statement, module) for every import of a file, wherever it stands, for type checking too.

    `from laurel.core import run` is an import of laurel.core.run where that is a module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                there = root / Path(*inner.split("."))
                module = there.with_suffix(".py").exists() or there.is_dir()
                yield node, inner if module else node.module


def circles(roots: tuple[Path, ...] = PACKAGES, base: Path = ROOT) -> list[list[str]]:
    """Every set of files that import each other, directly or over others: Tarjan's components."""
    names = {module_name(path, base): path for path in python_files(*roots)}
    edges = {
        name: {other for _, other in imports(path, base) if other in names and other != name}
        for name, path in names.items()
    }
    found, index, low, stack = list[list[str]](), dict[str, int](), dict[str, int](), list[str]()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            circle = stack[at:]
            del stack[at:]
            if len(circle) > 1:
                found.append(sorted(circle))

    for name in edges:
        if name not in index:
            visit(name)
    return sorted(found)


def place(path: Path, node: ast.AST) -> str:
    """file:line of a node, for messages."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{shown}:{getattr(node, 'lineno', 1)}"


def house() -> str:
    """The table of the house, as text."""
    found = circles()
    every = [n for path in python_files() for n, _, _ in functions(path)]
    lines = [
        f"circles of files: {len(found)}",
        *(f"  {', '.join(circle)}" for circle in found),
        f"functions over 300 tokens: {sum(n > 300 for n in every)} of {len(every)}",
        *longest(),
        f"tokens a line of code: {overall():.2f}",
        *densest(),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(house())
