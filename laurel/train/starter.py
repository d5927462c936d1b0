"""laurel's own small models, made on demand.

`scratch`: a fresh character-level Llama; `starter`: the same after a little SFT.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.files import disk_errors
from laurel.core.run import Run
from laurel.data.tasks import TASKS, is_own_task
from laurel.model.scratch import save_scratch
from laurel.train import parallel
from laurel.train.interrupt import Interrupted

STARTERS = ("starter", "scratch")
# a teacher who forgets seven carries in ten leaves something to learn
DEMONSTRATIONS = {"addition": "addition:sloppy=70"}
RECIPE = 2  # counts up when what is built changes, so that old folders are not taken for new ones


def starter_config(dataset: str, *, seed: int, output_dir: str) -> TrainConfig:
    """SFT on a generated task's demonstrations, about 80 seconds on a core.

    The model does what they do, mistakes included.
    """
    return TrainConfig(
        model="scratch",
        dataset=DEMONSTRATIONS.get(dataset, dataset),
        dataset_size=20_000,
        eval_size=1_400,
        seed=seed,
        output_dir=output_dir,
        max_steps=600,
        prompts_per_step=128,
        learning_rate=2e-3,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        logging_steps=5,
        eval_steps=200,
    )


def cache_folder() -> Path:
    """Where what can be made again is kept: $LAUREL_CACHE, else ~/.cache/laurel."""
    return Path(os.environ.get("LAUREL_CACHE", Path.home() / ".cache" / "laurel"))


def check_starter(kind: str, dataset: str) -> None:
    """Refuse a starter for data that is not a generated task."""
    if kind == "starter" and not is_own_task(dataset):
        fix = (
            "Give --model a folder or hub name, or --model scratch for a small one made from"
            " nothing."
        )
        what = (
            f"model=starter knows laurel's generated tasks only ({', '.join(TASKS)}), not"
            f" {dataset!r}."
        )
        raise UsageError(what, where="model", fix=fix)


def build_starter(
    kind: str, dataset: str, seed: int, train: Callable[..., Run] | None = None
) -> Path:
    """The folder of a small model, built if it is not in the cache yet.

    The cache: $LAUREL_CACHE, else ~/.cache/laurel. `scratch` depends on the seed; `starter` on the
    generated task it has seen. The folder appears by one rename, so an interrupted build leaves
    nothing behind that could be taken for a model.

    train: `laurel.train.loop.train`, which builds a starter; UsageError without it, where it is not
    built yet.
    """
    check_starter(kind, dataset)
    cache = cache_folder()
    folder = cache / (
        f"scratch-{RECIPE}-{seed}"
        if kind == "scratch"
        else f"starter-{RECIPE}-{dataset.translate(str.maketrans(':=,', '---'))}"
    )
    if (folder / "config.json").is_file():
        return folder
    if kind == "starter" and (train is None or parallel.world_size() > 1):
        raise UsageError(
            "the starter model is not built yet, and several processes cannot build it together.",
            where="model",
            fix=f"Build it with one: laurel sample --model starter --dataset {dataset}",
        )
    cache.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "model"
        if kind == "scratch":
            save_scratch(made, seed=seed)
        else:
            assert train is not None
            print(f"building the starter model for {dataset} (once) ...", flush=True)
            try:
                run = train(
                    "sft",
                    starter_config(dataset, seed=0, output_dir=str(Path(temporary) / "sft")),
                    quiet=True,
                )
            except Interrupted as stopped:  # what it had saved goes with the temporary folder
                what = (
                    f"stopped while the starter model for {dataset} was being built; nothing of it"
                    " is kept."
                )
                raise stopped.again(what, "Give the same command again.") from None
            shutil.move(run.model, made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster: its folder is as good
            if not (folder / "config.json").is_file():
                raise
    return folder
