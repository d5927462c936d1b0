"""Optional places that metrics also go to: TensorBoard, Weights & Biases, Trackio.

Imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from laurel.core.errors import UsageError, nearest


class Sink(Protocol):
    """Receives each line of metrics. An exception switches the sink off, never the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files under `<output_dir>/tensorboard`; a resumed run overwrites steps it repeats."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandB:
    """A Weights & Biases run with laurel's run id: a resumed run continues the same page.

    WANDB_* variables apply.
    """

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], resumed_at: int) -> None:
        wandb = import_module("wandb")
        self.run = wandb.init(
            id=run, name=folder.name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point per metric."""
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Upload what is left."""
        self.run.finish()


class Trackio:
    """A Trackio run in the project `laurel`; a resumed run continues under the same name."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], resumed_at: int) -> None:
        self.trackio = import_module("trackio")
        self.trackio.init(
            project="laurel", name=f"{folder.name}-{run[:8]}", config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point per metric."""
        self.trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and finish."""
        self.trackio.finish()


SINKS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_sinks(names: Sequence[str] | None) -> None:
    """UsageError for an unknown name, or a package that is not installed."""
    for name in names or ():
        if name not in SINKS:
            raise UsageError(f"unknown sink `{name}`.", where="report_to", fix=nearest(name, SINKS))
        if find_spec(name) is None:
            raise UsageError(
                f"{name} is not installed.",
                where="report_to",
                fix=f"`pip install {name}`, or leave it out.",
            )


def open_sinks(
    names: Sequence[str] | None,
    folder: Path,
    run: str,
    config: Mapping[str, Any],
    *,
    resumed_at: int = 0,
) -> list[Sink]:
    """The sinks named by `report_to`, opened. resumed_at: the last step kept of a resumed run."""
    check_sinks(names)
    return [SINKS[name](Path(folder), run, config, resumed_at) for name in names or ()]
