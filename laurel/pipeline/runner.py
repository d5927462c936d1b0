"""What carries out a plan: stages that are kept by content, training among them, and the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Lines

from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError
from laurel.core.lock import Lock
from laurel.pipeline.store import Artefact, make
from laurel.report.cells import cell_text
from laurel.report.exhibit import Claim, Table
from laurel.train.interrupt import Interrupted
from laurel.train.loop import train
from laurel.train.options import resolve

HERE = (
    "device",
    "num_threads",
    "output_dir",
    "profile",
    "report_to",
    "resume",
    "reward_timeout",
    "save_steps",
    "save_total_limit",
)
"""Options that say where and how a run works, not what comes out."""


class Runner:
    """A folder of stages. `stages` collects a line per stage for the table at the end."""

    def __init__(self, output_dir: str, *, quiet: bool = False) -> None:
        self.quiet, self.console = quiet, Console(highlight=False, quiet=quiet)
        self.root = Path(output_dir)
        self.stages: list[tuple[str, str, str, float]] = []

    def run(self) -> dict[str, Any]:
        """All stages; returns the comparison's findings and the folders of the artefacts.

        The folder is this process's alone meanwhile.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with Lock(self.root):
            return self.run_stages()

    def run_stages(self) -> dict[str, Any]:
        """The stages one after the other."""
        raise NotImplementedError

    def stage(
        self, name: str, parts: Mapping[str, Any], build: Callable[[Path], list[str]]
    ) -> Artefact:
        """One stage, made or found."""
        began = time.perf_counter()
        self.console.rule(f"[bold]{len(self.stages) + 1}  {name}")
        found = make(
            self.root,
            name,
            {
                key: getattr(part, "model_dump", lambda part=part: part)()
                for key, part in parts.items()
            },
            build,
        )
        if not found.made:
            self.console.print(f"{found.folder} is there already: kept", soft_wrap=True)
        self.stages.append(
            (name, found.folder.name, "made" if found.made else "kept", time.perf_counter() - began)
        )
        return found

    @contextmanager
    def counted(self, words: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar where somebody looks; what it gives is told how many more are done."""
        with Progress(
            console=self.console, transient=True, disable=self.quiet or not self.console.is_terminal
        ) as progress:
            task = progress.add_task(words, total=total)
            yield lambda count: progress.advance(task, count)

    def trained(
        self,
        name: str,
        algorithm: str,
        options: Mapping[str, Any],
        inputs: Mapping[str, Any],
        seed: int,
    ) -> Artefact:
        """A stage that trains: the ordinary loop, resumed if it was killed.

        The artefact is the model's folder.
        """
        steps = TrainConfig(**options).max_steps
        config = build_config(
            {"save_steps": max(1, steps // 8), "seed": seed, **options}, where=f"section {name}"
        )
        own = {
            key: value for key, value in config.model_dump().items() if key not in (*HERE, *inputs)
        }

        def build(folder: Path) -> list[str]:
            try:
                train(
                    algorithm,
                    config.model_copy(update={"output_dir": str(folder), "resume": True}),
                    quiet=self.quiet,
                )
            except Interrupted as stopped:
                raise stopped.again(
                    f"stage {name}: {stopped.what}", "The same command goes on from there."
                ) from None
            return ["model"]

        return self.stage(name, {"algorithm": algorithm, "options": own, "inputs": inputs}, build)

    def show(
        self, tables: Sequence[Table], claims: Sequence[Claim], page: Path, seconds: float
    ) -> None:
        """Print tables and claims, and where the page is."""
        for table in tables:
            lines = Lines(*table.columns, title=table.title, title_justify="left")
            for row in table.rows:
                lines.add_row(*(cell_text(value) for value in row))
            self.console.print(lines)
        for claim in claims:
            verdict = "yes" if claim.holds else "NO "
            self.console.print(f"{verdict}  {claim.text}: {claim.evidence}", soft_wrap=True)
        self.console.print(f"in {seconds:.0f} seconds. The page: {page}", soft_wrap=True)


def check_section(section: str, algorithm: str, options: Mapping[str, Any]) -> None:
    """Training options of a section, as `laurel train ALGORITHM` would check them."""
    try:
        resolve(algorithm, build_config(dict(options)))
    except UsageError as error:
        raise UsageError(error.what, where=f"section {section}", fix=error.fix) from None
