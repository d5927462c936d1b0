"""Pages: the code blocks of a page, and the parts that are generated. As a script (`make docs`):
write the generated parts anew.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from house_source import PACKAGE, PACKAGES, ROOT, package_files, tree

PURPOSES = {
    "laurel/fast/kernels.cpp": "The compiled parts of decoding and training: passes over rows.",
    "laurel/report/page.html": "The Jinja template of the report.",
    "laurel/report/page.css": "Its style, light and dark.",
    "laurel/report/exhibit.html": "The template of an experiment's page.",
    "laurel_feedback/statistics/report.html": "The template of the votes' report as a page.",
    "laurel_feedback/store/migrations/script.py.mako": "The template of a migration.",
    "laurel_feedback/demo/guidelines.md": "Guidelines of the demonstration.",
    "laurel_feedback/demo/pairs.jsonl": "Its pairs.",
    "laurel_feedback/demo/rankings.jsonl": "Its rankings.",
    "laurel/pipeline/constitution.yaml": "Our own constitution: principles in our words.",
}
"""Purposes of files that have no docstring."""

ROOMS = (
    *("core", "data", "weight", "objective", "measure", "fast", "model", "reward", "rollout"),
    *("judge", "eval", "train", "search", "report", "serve", "verify", "pipeline", "cli"),
    *("store", "statistics", "exchange", "web", "demo"),
)
"""In the order of the floors, ground floor first."""


ORDER = (
    "training.md",
    "hardware.md",
    "python.md",
    "algorithms/index.md",
    "configuration.md",
    "from-trl.md",
    "data.md",
    "rewards.md",
    "chat.md",
    "environments.md",
    "evaluation.md",
    "serving.md",
    "report.md",
    "reward-models.md",
    "pipeline.md",
    "experiments.md",
    "feedback.md",
    "feedback-statistics.md",
    "judges.md",
    "constitution.md",
    "prompts.md",
    "performance.md",
    "house.md",
    "foundations/index.md",
    "foundations/verify.md",
    "foundations/language-model.md",
    "foundations/mdp.md",
    "foundations/planning.md",
    "foundations/td.md",
    "foundations/policy-gradient.md",
    "foundations/off-policy.md",
    "foundations/imitation.md",
    "foundations/gail.md",
    "foundations/inverse-rl.md",
    "foundations/offline-rl.md",
    "foundations/hindsight.md",
)
"""The pages of docs/ in reading order; others follow by name."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, the line it starts on, and why it is not
    run ("" if it is).
    """

    page: Path
    language: str
    text: str
    line: int
    skip: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}:{self.language}"


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page. `<!-- skip: reason -->` on the line before a block says that,
    and why, it is not run.
    """
    fence, language, start, reason, text = "", "", 0, "", []
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opening = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", line)
        if not fence and opening:
            skip = re.fullmatch(r"\s*<!--\s*skip:\s*(.+?)\s*-->\s*", before)
            fence, language, start, reason, text = (
                opening[1],
                opening[2],
                number,
                skip[1] if skip else "",
                [],
            )
        elif fence and line.strip() == fence:
            yield Block(page, language, "\n".join(text) + "\n", start, reason)
            fence = ""
        elif fence:
            text.append(line)
        before = line if line.strip() else before


def package_tree() -> str:
    """Every file of the packages with its one purpose: a heading for each package, a table for each
    room, in the order of the floors.
    """
    lines: list[str] = []
    for package in PACKAGES:
        lines += [f"## {package.name}", "", purpose(package / "__init__.py"), ""]
        lines += table_of(package) + branch(package, ROOMS)
    return "\n".join(lines).rstrip()


def table_of(folder: Path) -> list[str]:
    """The files of a folder as a table."""
    inside = [path for path in package_files() if path.parent == folder]
    shown = [path for path in inside if path.name != "__init__.py"]
    rows = [f"| `{path.name}` | {purpose(path).replace('|', chr(92) + '|')} |" for path in shown]
    return ["| file | purpose |", "|---|---|", *rows, ""] if rows else []


def branch(folder: Path, order: tuple[str, ...] = ()) -> list[str]:
    """The folders inside a folder, those of `order` first, each with its files; migrations are left
    out.
    """
    lines: list[str] = []
    folders = {
        path.relative_to(folder).parts[0] for path in package_files() if folder in path.parents
    }
    for name in sorted(
        folders, key=lambda name: (order.index(name) if name in order else 99, name)
    ):
        deeper = folder / name
        if (deeper / "__init__.py").exists():
            place = deeper.relative_to(ROOT).as_posix()
            lines += [f"### {place}", "", purpose(deeper / "__init__.py"), "", *table_of(deeper)]
            lines += branch(deeper)
    return lines


def purpose(path: Path) -> str:
    """The first paragraph of a module's docstring; of any other file, what PURPOSES says."""
    if path.suffix == ".py":
        return " ".join((ast.get_docstring(tree(path)) or "").split("\n\n")[0].split())
    return PURPOSES[str(path.relative_to(ROOT))]


def floors() -> str:
    """The rooms of `laurel` by floor, and what the other packages may import of it."""
    from test_house_floors import BELOW, FLOORS

    lines = ["| floor | rooms |", "|--:|---|"]
    for level, rooms in enumerate(FLOORS):
        there = [room for room in ROOMS if room in rooms and (PACKAGE / room).is_dir()]
        lines.append(f"| {level} | {', '.join(f'`{room}`' for room in there)} |")
    lines += ["", "| package | imports of `laurel` |", "|---|---|"]
    for package, rooms in BELOW.items():
        lines.append(f"| `{package}` | {', '.join(f'`{room}`' for room in sorted(rooms))} |")
    return "\n".join(lines)


def index() -> str:
    """The pages of docs/ and the index of each of its folders, ORDER first: title and first
    paragraph (of a long one, one sentence).
    """
    docs = ROOT / "docs"
    found = (
        path.relative_to(docs).as_posix() for path in (*docs.glob("*.md"), *docs.glob("*/index.md"))
    )
    names = sorted(name for name in found if name != "index.md")
    lines = ["| page | what it covers |", "|---|---|"]
    for name in [
        *(name for name in ORDER if name in names),
        *(name for name in names if name not in ORDER),
    ]:
        title, _, rest = (ROOT / "docs" / name).read_text(encoding="utf-8").partition("\n")
        paragraph = re.sub(
            r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(rest.strip().split("\n\n")[0].split())
        )  # without its links
        sentences = re.split(r"(?<=[.:]) (?=[A-Z])", paragraph)
        told = sentences[0] if len(sentences) < 2 or len(paragraph) > 260 else " ".join(sentences)
        lines.append(f"| [{title.removeprefix('# ')}]({name}) | {told.rstrip(':')} |")
    return "\n".join(lines)


def options_of(name: str) -> str:
    """The options of `train` or `evaluation` as tables, one for each group of the configuration."""
    from laurel.cli.options import fields_by_heading
    from laurel.core.config import EvalConfig, TrainConfig

    kind = TrainConfig if name == "train" else EvalConfig
    lines: list[str] = []
    for title, names in fields_by_heading(kind).items():
        lines += [f"### {title}", ""] if name == "train" else []
        lines += ["| option | type | default | meaning |", "|---|---|---|---|"]
        lines += [option_row(kind, option, name == "train") for option in names]
        lines.append("")
    return "\n".join(lines).rstrip()


def option_row(kind: type, name: str, by_algorithm: bool) -> str:
    """One line of a table: name, type, default (with the algorithms it differs for), meaning."""
    from laurel.cli.options import describe_type

    field = kind.model_fields[name]  # type: ignore[attr-defined]
    default = defaults_in_words(name, field.default) if by_algorithm else cell(field.default)
    words = describe_type(field.annotation).replace("|", " \\| ")
    return f"| `{name}` | {words} | {default} | {field.description.replace('|', chr(92) + '|')} |"


def defaults_in_words(name: str, default: object) -> str:
    """The default of a training option: one for all, or one per algorithm, most common first: `0.2`
    (grpo, gspo), `0.28` (dapo).
    """
    from laurel.train.algorithms import ALGORITHMS
    from laurel.train.options import defaults

    found: dict[str, list[str]] = {}
    for algorithm in ALGORITHMS:
        if name in defaults(algorithm):
            found.setdefault(cell(defaults(algorithm)[name]), []).append(algorithm)
    if not found:
        return cell(default)
    sampling = [algorithm for algorithm, row in ALGORITHMS.items() if row.source.sampled]
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    if ordered[0][1] == list(ALGORITHMS):
        return ordered[0][0]
    return ", ".join(
        f"{value} ({'all but sft' if names == sampling else ', '.join(names)})"
        for value, names in ordered
    )


def cell(value: object) -> str:
    """A default as a table shows it."""
    if value is None or value == []:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def names_of(kind: str, harmless: bool = True) -> str:
    """The rows of one kind of the table of TRL's names."""
    from laurel.core.trl_names import TABLE

    rows = {
        name: row for name, row in TABLE.items() if row.kind == kind and row.harmless is harmless
    }
    if kind == "absent":
        by_say: dict[str, list[str]] = {}
        for name, row in rows.items():
            by_say.setdefault(row.say, []).append(f"`{name}`")
        return "\n".join(
            [
                "| names | instead |",
                "|---|---|",
                *(f"| {', '.join(names)} | {say} |" for say, names in by_say.items()),
            ]
        )
    if kind == "same":
        return "\n".join(
            [
                "| name | to know |",
                "|---|---|",
                *(f"| `{name}` | {row.say or '-'} |" for name, row in rows.items()),
            ]
        )
    lines = (
        f"| `{name}` | {', '.join(f'`{one}`' for one in row.ours) or '-'} | {row.say} |"
        for name, row in rows.items()
    )
    return "\n".join(["| theirs | ours | said |", "|---|---|---|", *lines])


def trl_defaults() -> str:
    """Where a default of TRL's that a result depends on is not that of laurel's row."""
    from laurel.cli.from_trl import implied_options, names_taken
    from laurel.core.trl import Request, translate
    from laurel.core.trl_names import TABLE, defaults_of
    from laurel.core.trl_rules import TRAINERS
    from laurel.train.options import applicable_options

    found: dict[tuple[str, str, str], list[str]] = {}
    rows = ("sft", "reward", "dpo", "kto", "orpo", "simpo", "online_dpo", "rloo", "grpo")
    for row in rows:
        own = applicable_options(row)
        ask = Request(
            row, {"use_peft": True}, lambda own=own: own, defaults_of(TRAINERS[row]), port=True
        )
        names = [name for name in names_taken(ask) if name != "loss_type" or row == "grpo"]
        made = translate({name: ask.defaults[name] for name in names}, TABLE, ask, "")[0]
        made |= {option: value for option, (value, _) in implied_options(ask, made).items()}
        for option, value in made.items():
            if option in own and value is not None and value != own[option]:
                found.setdefault((option, cell(value), cell(own[option])), []).append(row)
    lines = [
        f"| `{' | '.join((option + '`', *rest))} |"
        f" {'all' if len(of) == len(rows) else ', '.join(of)} |"
        for (option, *rest), of in found.items()
    ]
    return "\n".join(["| option | TRL | laurel | rows |", "|---|---|---|---|", *lines])


@cache
def count(name: str) -> int:
    """How many there are of what pages count: `<!-- n: mutants -->144<!-- n -->` in a sentence."""
    from test_house_budgets import FUNCTION

    from laurel.core.config import EvalConfig, TrainConfig
    from laurel.core.metric_catalogue import CATALOGUE
    from laurel.core.trl_names import TABLE
    from laurel.reward.verifiers import TASKS, VERIFIERS
    from laurel.train.algorithms import ALGORITHMS
    from laurel.verify.checks import MUTANTS
    from laurel.verify.suite import PARTS

    numbers = {
        "algorithms": len(ALGORITHMS),
        "evaluation options": len(EvalConfig.model_fields),
        "generated tasks": len(TASKS),
        "metrics": len(CATALOGUE),
        "mutants": len(MUTANTS),
        "names of TRL": len(TABLE),
        "parts of verify": len(PARTS) + 1,  # and the hunt
        "tokens of a function": FUNCTION,
        "training options": len(TrainConfig.model_fields),
        "verifiers": len(VERIFIERS),
    }
    if name == "golden runs":
        golden = (ROOT / "tests" / "golden" / "golden.json").read_text(encoding="utf-8")
        return len(json.loads(golden)["runs"])
    return traced_files() if name == "files of a GRPO step" else numbers[name]


def traced_files() -> int:
    """The files that one step of GRPO enters, traced in a process of its own."""
    code = """
import tempfile
from pathlib import Path
from house_traced import prepare, traced
with tempfile.TemporaryDirectory() as folder:
    prepare(Path(folder))
    print(len(traced("grpo", Path(folder))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return int(done.stdout.split()[-1])


COUNTED = re.compile(r"(<!-- n: ([\w ]+) -->)[^<]*(<!-- n -->)")


def counted_pages() -> list[str]:
    """The pages with a generated number in a sentence."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        page.relative_to(ROOT).as_posix()
        for page in pages
        if COUNTED.search(page.read_text(encoding="utf-8"))
    ]


GENERATED: dict[str, dict[str, Callable[[], str]]] = {
    "CONTRIBUTING.md": {"floors": floors},
    "docs/house.md": {"tree": package_tree},
    "docs/index.md": {"pages": index},
    "docs/from-trl.md": {
        "defaults": trl_defaults,
        "same": lambda: names_of("same"),
        "translated": lambda: names_of("translated"),
        "absent": lambda: names_of("absent"),
        "different": lambda: names_of("absent", harmless=False),
    },
    "docs/configuration.md": {
        "train": lambda: options_of("train"),
        "evaluation": lambda: options_of("evaluation"),
    },
}
"""page: {part: its maker}. In the page a part stands between `<!-- generated: part (make docs) -->`
and `<!-- end: part -->`.
"""


def renewed(page: str) -> str:
    """The text of a page with its generated parts and numbers made anew. A part without its two
    marks is an error.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    if COUNTED.search(text):
        text = COUNTED.sub(lambda mark: f"{mark[1]}{count(mark[2])}{mark[3]}", text)
    for part, make in GENERATED.get(page, {}).items():
        start, end = f"<!-- generated: {part} (make docs) -->", f"<!-- end: {part} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: the part `{part}` needs both marks, once: {start} and {end}")
        head, rest = text.split(start)
        text = f"{head}{start}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for name in {**GENERATED, **dict.fromkeys(counted_pages())}:
        new = renewed(name)
        changed = new != (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(new, encoding="utf-8")
        print(f"{name}: {'written' if changed else 'already as it should be'}")
