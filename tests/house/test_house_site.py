"""The pages as a site: built without a warning, whole, searchable, in light and dark, and loading
nothing from elsewhere.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from house_site import REFERENCE, build, navigation, stage, zensical
from house_source import ROOT, tree

import laurel

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture
def site(once) -> Path:
    """The folder of the built site."""

    def make(folder: Path) -> None:
        done = build(folder)
        assert done.returncode == 0, done.stdout + done.stderr

    return once("site", make) / "html"


def test_every_page_is_there_and_stands_once_in_the_navigation(site):
    order = navigation()
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file()
        assert order.count(f'"{page}"') == 1
    assert "<h1" in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(?:https?:)?//')
    found = [page for page in site.rglob("*.html") if loads.search(page.read_text("utf-8"))]
    assert not found


def test_search_finds_pages_and_functions_and_both_colours_are_there(site):
    words = json.dumps(json.loads((site / "search.json").read_text(encoding="utf-8")))
    assert "leave_one_out" in words and "generalised advantages" in words
    text = (site / "index.html").read_text(encoding="utf-8")
    assert {"default", "slate"} <= set(re.findall(r'data-md-color-scheme="?(\w+)', text))


def public(module: str) -> list[str]:
    """The public functions and classes of a module."""
    body = tree(ROOT / f"{module.replace('.', '/')}.py").body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]


@pytest.mark.parametrize("page", REFERENCE)
def test_every_public_function_has_its_reference(page, site):
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    names = [f"{module}.{name}" for module in REFERENCE[page] for name in public(module)]
    assert names and not [name for name in names if f'id="{name}"' not in text]


def test_every_name_of_the_package_has_its_reference(site):
    text = (site / "reference" / "laurel.html").read_text(encoding="utf-8")
    assert not [
        name for name in laurel.__all__ if not re.search(rf'id="laurel[\w.]*\.{name}"', text)
    ]


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    pages = tmp_path / "pages"
    (pages / "docs").mkdir(parents=True)
    (pages / "docs" / "site.css").touch()
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    (tmp_path / "zensical.toml").write_text(text)
    (pages / "b.md").write_text("# B\n\n## There\n")
    for link, fine in (("b.md#there", True), ("b.md#gone", False), ("c.md", False)):
        (pages / "index.md").write_text(f"# A\n\n[to b]({link})\n")
        done = zensical(tmp_path / "zensical.toml")
        assert (done.returncode == 0) is fine, done.stdout + done.stderr


def test_what_is_edited_is_copied_again(tmp_path):
    stage(tmp_path)
    copy = tmp_path / "pages" / "README.md"
    assert copy.read_bytes() == (ROOT / "README.md").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    stage(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in before}
