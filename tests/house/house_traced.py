"""Which files of the packages one real training step enters: a run on a tiny CPU Llama, traced.

As a script it prints the files of a step of grpo, ppo, dpo and reward.
"""

import contextlib
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from house_source import PACKAGES, ROOT

sys.path.insert(0, str(ROOT / "tests" / "golden"))

from golden import COMMON, RUNS, SAMPLED, prepare

RUN = {"grpo": SAMPLED, **{name: RUNS[name] for name in ("ppo", "dpo", "reward")}}
"""What is traced: GRPO as it is by default (no reference), the others as the golden runs have them.
"""
STEP = 2
"""The step that is traced: the first one still imports and warms up."""


class Trace:
    """Counts calls by file while it is entered: functions only, not the bodies of modules."""

    def __init__(self) -> None:
        self.files = Counter[str]()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "call" and frame.f_code.co_name != "<module>":
            self.files[frame.f_code.co_filename] += 1

    def __enter__(self) -> "Trace":
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


def traced(name: str, folder: Path) -> list[str]:
    """The files of the packages in which code runs during step 2 of an algorithm, sorted.

    From taking rows to after the log line: `step` and `finish_step` of the loop. Set-up, imports,
    evaluation and checkpoints are not part of it.
    """
    from laurel.core.config import TrainConfig
    from laurel.train import loop

    trace = Trace()

    def watched(function: Any) -> Any:
        def call(session: Any, state: Any, *rest: Any) -> Any:
            at = STEP if function is finish else STEP - 1  # a step counts itself
            with trace if state.step == at else contextlib.nullcontext():
                return function(session, state, *rest)

        return call

    def there(value: Any) -> Any:
        named = isinstance(value, str) and value.endswith(".jsonl")
        return str(folder / value) if named else value

    options = {key: there(value) for key, value in {**COMMON, **RUN[name], "max_steps": 3}.items()}
    config = TrainConfig(
        model=str(folder / "model"), output_dir=str(folder / f"traced-{name}"), **options
    )
    first, finish = loop.step, loop.finish_step
    loop.step, loop.finish_step = watched(first), watched(finish)
    try:
        loop.train(name, config, quiet=True)
    finally:
        loop.step, loop.finish_step = first, finish
    own = tuple(f"{package}/" for package in PACKAGES)
    return sorted(str(Path(file).relative_to(ROOT)) for file in trace.files if file.startswith(own))


def figures() -> dict[str, list[str]]:
    """The traced files of a step of each algorithm."""
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        return {name: traced(name, Path(made)) for name in RUN}


if __name__ == "__main__":
    for algorithm, files in figures().items():
        print(f"files entered by one {algorithm} step: {len(files)}")
        print("\n".join(f"  {file}" for file in files))
