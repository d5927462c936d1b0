"""The pages: every block runs, every link leads somewhere, every generated part is what its maker
prints.
"""

import doctest
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from house_pages import COUNTED, GENERATED, Block, blocks, counted_pages, package_tree, renewed
from house_shell import as_it_was, run_shell
from house_source import ROOT, package_files

import laurel
from laurel.train import loop, starter
from laurel.train.algorithms import ALGORITHMS
from laurel_prompts import fit as fitting
from laurel_prompts import synthetic
from laurel_prompts.models import Logistic, Rates

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
RUN = ("python", "bash", "console")
KNOWN = {*RUN, "text", "yaml", "json", "jsonl", "toml", "diff", "math", "jinja"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
SECONDS = 240


def short_starter(cache: Path) -> None:
    """A folder for $LAUREL_CACHE whose starter has had an eighth of its steps: the blocks of `make
    verify` build the whole one.
    """
    short = {"max_steps": 75, "eval_steps": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUREL_CACHE", str(cache))
        whole = starter.starter_config
        patch.setattr(
            starter, "starter_config", lambda *a, **k: whole(*a, **k).model_copy(update=short)
        )
        starter.build_starter("starter", "addition", 0, loop.train)


@pytest.fixture
def whole_workplace(tmp_path, monkeypatch) -> Path:
    """An empty folder with a copy of examples/, current while a block runs, and a `laurel` command
    on the path.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    command = tmp_path / "bin" / "laurel"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m laurel "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv(
        "PATH",
        f"{command.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workplace(whole_workplace, monkeypatch, once) -> Path:
    """The same, and shorter: a starter of few steps, built once a run; a fifth of the queries and
    three models for `laurel prompt`.
    """
    monkeypatch.setenv("LAUREL_CACHE", str(once("short-starter", short_starter)))
    whole = synthetic.synthetic_log
    monkeypatch.setattr(
        fitting,
        "candidate_models",
        lambda: [Rates(), Logistic("heads", 100.0), Logistic("features", 100.0)],
    )
    monkeypatch.setattr(
        synthetic, "synthetic_log", lambda queries=600, *args, **how: whole(queries, *args, **how)
    )
    return whole_workplace


def script(block: Block) -> str:
    """What a shell block asks to run: all of a bash block, the lines after `$ ` of a console
    one.
    """
    if block.language == "bash":
        return block.text
    return "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))


def run_python(block: Block) -> None:
    """Run a block by itself, in this process; prompts (>>>) make it a doctest."""
    if block.text.lstrip().startswith(">>> "):
        test = doctest.DocTestParser().get_doctest(
            block.text, {}, str(block), str(block.page), block.line
        )
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
    else:
        exec(compile(textwrap.dedent(block.text), str(block), "exec"), {"__name__": "__main__"})


def run_processes(block: Block, folder: Path) -> None:
    """Run a shell block as a user does: each command is a process, started cold."""
    command = ["bash", "-euo", "pipefail", "-c", script(block)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (
        f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in RUN], ids=str)
def test_block_runs(block, workplace):
    if block.skip:
        pytest.skip(block.skip)
    if block.language == "python":
        run_python(block)
    else:
        (workplace / "door").mkdir()
        code, printed = run_shell(script(block), workplace / "door")
        assert code == 0, f"exit code {code}\n{printed[-6000:]}"


@pytest.mark.whole
@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language in RUN[1:] and not block.skip], ids=str
)
def test_block_runs_in_processes_of_its_own(block, whole_workplace):
    """Every command started cold, and on the starter that a user has (the user's cache keeps it:
    its minute is spent once).
    """
    run_processes(block, whole_workplace)


def test_a_shell_block_is_bash_and_its_laurel_is_this_process(tmp_path, monkeypatch):
    """Words, folder, exit code and both outputs pass the door; what a command sets is gone
    afterwards; a failure ends the block.
    """
    monkeypatch.chdir(tmp_path)
    before = (dict(os.environ), list(sys.path), signal.getsignal(signal.SIGINT), Path.cwd())
    (tmp_path / "sub").mkdir()
    lines = [
        "laurel --version > version",
        "cd sub",
        "for word in 1 2; do laurel --help >> ../help; done",
        "laurel nonsense || echo code $?",
    ]
    doors = [tmp_path / name for name in ("one", "two", "three")]
    for door in doors:
        door.mkdir()
    code, printed = run_shell("\n".join(lines), doors[0])
    assert code == 0 and "unknown verb `nonsense`" in printed and "code 2" in printed
    assert (tmp_path / "version").read_text() == f"laurel {laurel.__version__}\n"
    assert (tmp_path / "help").read_text().count("usage: laurel VERB") == 2
    assert (
        run_shell("laurel nonsense\ntouch reached", doors[1])[0] == 2
        and not (tmp_path / "reached").exists()
    )
    assert run_shell("true", doors[2]) == (0, "")
    assert before == (dict(os.environ), list(sys.path), signal.getsignal(signal.SIGINT), Path.cwd())
    with pytest.raises(AssertionError, match="SIGINT"), as_it_was():
        signal.signal(
            signal.SIGINT, lambda *_: None
        )  # not SIG_IGN: a job in the background begins with that
    assert signal.getsignal(signal.SIGINT) is before[2]


def test_only_what_pipes_on_starts_processes(tmp_path, monkeypatch):
    """Three cold starts of laurel in all pages, each to see the real output of a real process flow
    on; the rest is called.
    """
    lines = [
        line
        for block in BLOCKS
        if block.language == "bash" and not block.skip
        for line in block.text.splitlines()
    ]
    assert len([line for line in lines if re.match(r"laurel .* \| ", line)]) == 3
    (tmp_path / "door").mkdir()
    (tmp_path / "laurel").write_text("#!/bin/sh\necho cold $*\n")
    (tmp_path / "laurel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    code, printed = run_shell("laurel a b | cat\nlaurel --version", tmp_path / "door")
    assert (code, printed) == (0, f"cold a b\nlaurel {laurel.__version__}\n")


def test_every_block_says_what_it_is():
    found = [str(block) for block in BLOCKS if block.language not in KNOWN]
    assert not found, f"name the language of these blocks, one of {sorted(KNOWN)}: {found}"


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
def test_pages_with_promises_have_blocks_that_run(name):
    assert any(
        block.language in RUN and not block.skip for block in BLOCKS if block.page == ROOT / name
    )


def test_the_front_page_is_short_and_names_every_algorithm():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 15_000
    assert not [name for name in ALGORITHMS if f"`{name}`" not in text]
    assert not [name for name in ALGORITHMS if not (ROOT / f"docs/algorithms/{name}.md").exists()]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    headings = re.findall(
        r"^#+ (.+?)\s*$",
        re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files and headings that are not there. Addresses of the web are not
    visited.
    """
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken_links(page)


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "b.md").write_text("# A heading, here\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# Top\n[1](b.md) [2](c.md) [3](b.md#a-heading-here) [4](b.md#none) [5](#top)"
        " [6](https://x.org) `[7](d.md)`\n"
    )
    assert broken_links(page) == ["c.md", "b.md#none"]


@pytest.mark.parametrize(
    "index", sorted((ROOT / "docs").rglob("index.md")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_an_index_leads_to_every_page_of_its_folder(index):
    text = index.read_text(encoding="utf-8")
    missing = [
        path.name
        for path in sorted(index.parent.glob("*.md"))
        if path != index and f"({path.name})" not in text
    ]
    assert not missing


@pytest.mark.parametrize("name", {**GENERATED, **dict.fromkeys(counted_pages())})
def test_generated_parts_are_up_to_date(name):
    assert renewed(name) == (ROOT / name).read_text(encoding="utf-8"), f"{name}: run `make docs`"


NUMBER = r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|hundred|dozen"
NUMBER = rf"(?:\d[\d,]*|(?:{NUMBER})(?:(?:[- ]|-?and[- ]| and )(?:{NUMBER}|one))*)"
NOUNS = (
    "algorithms|methods|mutants|mistakes|checks|findings|rewards|verifiers|options|tests|pages"
    "|metrics|generated tasks|golden runs|rows of the table|parts of verify|names of TRL|rooms"
)
COUNT = re.compile(rf"(?<![\w./-])({NUMBER}) (?:[a-z`'-]+ ){{0,2}}?({NOUNS})\b", re.I)


def stale_counts(text: str) -> list[str]:
    """Numbers of algorithms, mutants, options ... that are written down and not generated. What
    stands in blocks and in generated parts is left out, and so are numbers of 0 and 1.
    """
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- generated: .*?<!-- end: [^>]*-->", "", COUNTED.sub("", text), flags=re.S)
    found = COUNT.finditer(" ".join(text.split()))
    return [mark[0] for mark in found if mark[1] not in ("0", "1")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name
)
def test_numbers_in_prose_are_generated(page):
    found = stale_counts(page.read_text(encoding="utf-8"))
    assert not found, f"{page}: write them as <!-- n: name --><!-- n -->, then `make docs`: {found}"


def test_stale_counts_are_found():
    said = "one of twenty-seven algorithms. A hundred and forty mutants. 12 options, 144 planted\n"
    said += "mistakes, with 0/1 rewards, 1,200 tests; 8 whole pages. `30 checks` of .5 checks"
    assert stale_counts(said) == [
        *("twenty-seven algorithms", "hundred and forty mutants", "12 options"),
        *("144 planted mistakes", "1,200 tests", "8 whole pages"),
    ]
    assert not stale_counts("<!-- n: mutants -->144<!-- n --> mutants, one reward, two branches")


def test_the_tree_has_every_file_once():
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", package_tree(), re.MULTILINE)
    there = [path for path in package_files() if path.name != "__init__.py"]
    there = [path for path in there if (path.parent / "__init__.py").exists()]
    assert sorted(name for name, _ in rows) == sorted(path.name for path in there)
    assert all(purpose.strip() for _, purpose in rows)


def test_blocks_are_found_with_their_reasons(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```python\n1\n```\n<!-- skip: needs a GPU"
        " -->\n```bash\nlaurel\n```\n\n````text\n```python\n````\n"
    )
    found = [(block.language, block.text, block.line, block.skip) for block in blocks(page)]
    assert found == [
        ("python", "1\n", 2, ""),
        ("bash", "laurel\n", 6, "needs a GPU"),
        ("text", "```python\n", 10, ""),
    ]
