"""The pages as a site: README.md, docs/, CONTRIBUTING.md and what they link to, and a reference
made from docstrings, built by zensical. As a script: `house_site.py [--serve]`.

zensical reads one folder, and the pages lie in several. So they are copied, at their places in the
repository, to build/site/pages, where every relative link leads where it leads on GitHub. The site
itself is build/site/html.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

from house_pages import ORDER
from house_source import PACKAGE, ROOT

import laurel

BUILD = ROOT / "build" / "site"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
REFERENCE = {
    "records": [f"laurel.core.{name}" for name in ("sample", "result", "errors", "protocols")],
    **{
        room: [f"laurel.{room}.{path.stem}" for path in sorted((PACKAGE / room).glob("[!_]*.py"))]
        for room in ("weight", "objective", "measure")
    },
}
"""page of the reference: the modules on it."""


def links(page: Path) -> set[Path]:
    """The files of the repository that a page links to."""
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    paths = ((page.parent / target).resolve() for target in targets if ":" not in target)
    return {path for path in paths if path.is_file() and ROOT in path.parents}


def sources() -> set[Path]:
    """The pages, their figures, and the files that they link to."""
    found = {ROOT / name for name in TOP} | set((ROOT / "docs").rglob("*.md"))
    found |= {path for page in found for path in links(page)}  # such as bench/RESULTS.md
    found |= {path for page in found if page.suffix == ".md" for path in links(page)}
    return found | {ROOT / "docs" / "site.css"}


def public_names() -> str:
    """The reference of `import laurel`: what it offers, each name where it is defined."""
    lines = ["# laurel"]
    for name in laurel.__all__:
        value = getattr(laurel, name)
        if isinstance(value, ModuleType):  # a room that can be called
            value = getattr(import_module(f"{value.__name__}.python"), name)
        home = getattr(value, "__module__", "types")
        known = home.startswith("laurel.")
        lines.append(f"::: {home}.{value.__qualname__}" if known else f"::: laurel.{name}")
    return "\n\n".join(lines) + "\n"


def stage(folder: Path) -> None:
    """Copy what has changed of the pages to `folder`/pages, and write the reference."""
    pages = folder / "pages"
    for path in sources():
        copy = pages / path.relative_to(ROOT)
        if not copy.exists() or copy.stat().st_mtime < path.stat().st_mtime:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    texts = {"laurel": public_names()} | {
        name: "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)]) + "\n"
        for name, modules in REFERENCE.items()
    }
    for name, text in texts.items():
        page = pages / "reference" / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")


def title(page: str) -> str:
    """The heading of a page up to its colon."""
    heading = (ROOT / page).read_text(encoding="utf-8").partition("\n")[0]
    return heading.removeprefix("# ").partition(":")[0].replace("`", "")


def navigation() -> str:
    """The pages in reading order, as `nav` of zensical.toml."""
    folders = {"algorithms": "The algorithms", "foundations": "Foundations"}
    shown = [name for name in ORDER if "/" not in name and name != "house.md"]
    lines = ['  { "laurel" = "README.md" },', '  { "All pages" = "docs/index.md" },']
    lines += [f'  {{ "{title(f"docs/{name}")}" = "docs/{name}" }},' for name in shown]
    for folder, heading in folders.items():
        names = sorted(path.name for path in (ROOT / "docs" / folder).glob("*.md"))
        inside = ", ".join(
            f'{{ "{Path(name).stem}" = "docs/{folder}/{name}" }}'
            for name in sorted(names, key=lambda name: (name != "index.md", name))
        )
        lines.append(f'  {{ "{heading}" = [{inside}] }},')
    inside = ", ".join(f'{{ "{name}" = "reference/{name}.md" }}' for name in ("laurel", *REFERENCE))
    lines.append(f'  {{ "Reference" = [{inside}] }},')
    rest = ("docs/house.md", "CONTRIBUTING.md", "bench/RESULTS.md", "CHANGELOG.md")
    lines += [f'  {{ "{title(name)}" = "{name}" }},' for name in rest]
    return "\n".join(["nav = [", *lines, "]"])


def configure(folder: Path) -> Path:
    """docs/zensical.toml with the order of the pages and the place of the packages."""
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    text = text.replace("[project]\n", f"[project]\n{navigation()}\n", 1)
    text += f'\n[project.plugins.mkdocstrings.handlers.python]\npaths = ["{ROOT}"]\n'
    config = folder / "zensical.toml"
    config.write_text(text, encoding="utf-8")
    return config


def zensical(config: Path) -> subprocess.CompletedProcess[str]:
    """Build what a zensical.toml names; a link that leads nowhere is a failure, and printed."""
    words = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(config)]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})


def build(folder: Path = BUILD) -> subprocess.CompletedProcess[str]:
    """Build the whole site from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    stage(folder)
    return zensical(configure(folder))


def serve(folder: Path = BUILD) -> None:
    """Serve the site until Ctrl-C; a page that is edited is shown anew."""
    words = [sys.executable, "-m", "zensical", "serve", "-f", str(folder / "zensical.toml")]
    with subprocess.Popen(words) as server:
        try:
            while server.poll() is None:
                time.sleep(1)
                stage(folder)
        except KeyboardInterrupt:
            server.terminate()


if __name__ == "__main__":
    done = build()
    print(done.stdout + done.stderr if done.returncode else f"{BUILD / 'html'}: built")
    if done.returncode or "--serve" not in sys.argv:
        sys.exit(done.returncode)
    serve()
