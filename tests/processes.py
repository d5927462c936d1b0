"""Processes of their own that need not start cold: forked from one that has imported what trains,
once for each worker of the suite.
"""

import os
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FORKS = get_context("forkserver")
# The second line is what transformers imports only when a first model is loaded: 1,300 modules.
WARM = ["laurel.train.loop", "laurel.pipeline.run", "laurel_feedback.web.app", "uvicorn", "pytest"]
WARM += [
    "transformers.models.llama.modeling_llama",
    "transformers.conversion_mapping",
    "torch._dynamo",
]
FORKS.set_forkserver_preload(WARM)


def begin(
    work: Callable, *arguments: Any, log: Path, environment: Mapping[str, str] | None = None
) -> Any:
    """Call a function of a module in a process that can be killed; `exitcode` is that of a script.
    What it prints goes to `log`.
    """
    process = FORKS.Process(target=_work, args=(work, arguments, str(log), dict(environment or {})))
    process.start()
    return process


def printed(work: Callable, *arguments: Any, log: Path) -> str:
    """What a function prints in a process of its own that knows nothing of this one's objects; it
    must end well.
    """
    process = begin(work, *arguments, log=log)
    process.join(600)
    said = log.read_text()
    assert process.exitcode == 0, said
    return said


def _work(work: Callable, arguments: tuple, log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)
