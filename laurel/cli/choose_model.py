"""The model that `laurel choose` draws from in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from laurel.search.options import ChooseConfig

if TYPE_CHECKING:
    from laurel.rollout.sampler import Sampler


def local_sampler(config: ChooseConfig) -> tuple[Sampler, str]:
    """The sampler of the model, and what tells it from any other."""
    from laurel.core.config import EvalConfig
    from laurel.judge.child import digest_of_folder
    from laurel.rollout.sampler import Sampler
    from laurel.train.inference import policies_of

    names = ("model", "dataset", "device", "dtype", "num_threads", "chat_template")
    policy, _ = policies_of(EvalConfig(**{name: getattr(config, name) for name in names}))
    for note in policy.notes:
        print(note, file=sys.stderr, flush=True)
    local = Path(config.model).is_dir()
    return Sampler(policy), digest_of_folder(config.model) if local else config.model
