"""The protocols of what users supply: reward functions, verifiers, environments, generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from laurel.core.result import Result
from laurel.core.sample import Completion, Draw, Group, Message

if TYPE_CHECKING:
    from laurel.core.run import Run


class RewardFunction(Protocol):
    """TRL's signature, sync or async: one number, None (abstain) or Result per completion.

    - prompts, completions: strings, or lists of messages where the dataset is conversational.
    - completion_ids: the sampled token ids.
    - columns: every other column of the dataset, repeated per completion.
    """

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        **columns: list[Any],
    ) -> list[float | None]: ...


class Train(Protocol):
    """`laurel.train`: see `laurel.train.python.train` for what it takes.

    Any option of `laurel train ALGORITHM` is passed by its name.
    """

    def __call__(
        self,
        algorithm: str,
        config: Any = None,
        *,
        callbacks: Sequence[Any] = (),
        compute_metrics: Callable[..., Mapping[str, float]] | None = None,
        quiet: bool = False,
        **options: Any,
    ) -> Run: ...


class Load(Protocol):
    """`laurel.load`: see `laurel.train.inference.load` for what it takes."""

    def __call__(self, model: Any = "starter", **options: Any) -> Any: ...


class Generate(Protocol):
    """`laurel.generate`: see `laurel.train.inference.generate` for what it takes."""

    def __call__(
        self, model: Any, prompts: Any, *, seed: int = 0, **options: Any
    ) -> list[Group]: ...


class Evaluate(Protocol):
    """`laurel.evaluate`: see `laurel.train.inference.evaluate` for what it takes."""

    def __call__(self, model: Any, dataset: Any = "addition", **options: Any) -> Any: ...


class Verifier(Protocol):
    """Judges one answer against one row of data: pure, fast, never raises.

    A wrong answer is Score(0).
    """

    def __call__(self, answer: str, row: Mapping[str, Any]) -> Result: ...


@runtime_checkable
class Env(Protocol):
    """An environment that the policy interacts with. One instance serves one episode.

    `reset(row)` returns the messages that open the episode. `step(text)` takes the policy's turn
    and returns the environment's reply as messages, or None when the episode is over. Tokens of the
    reply are attended to and never trained on.
    """

    def reset(self, row: Mapping[str, Any]) -> list[Message]: ...

    def step(self, text: str) -> list[Message] | None: ...


class Generator(Protocol):
    """Samples completions of prompts: `laurel.rollout.sampler.Sampler`, or a server.

    `tokenizer` encodes the prompts and decodes the completions. `generate` answers every prompt G
    times, and completion i belongs to prompt i // G:

        G = len(draw.seeds) / len(prompts)

    The tokens of a completion depend on its seed and the weights alone. `exact`: its
    log-probabilities are the trainer's up to rounding of one arithmetic, as those of our own
    decoders are. `precision`: what it computes in, such as "float32", "" where that is unknown; it
    decides how far from the trainer's they may be (`laurel.train.gap`). `sync(version)`: from now
    on it samples with the weights as they are, which are version `version`; where they are the
    trainer's own, there is nothing to do. `close()`: nothing is sampled any more.
    """

    @property
    def tokenizer(self) -> Any: ...

    @property
    def exact(self) -> bool: ...

    @property
    def precision(self) -> str: ...

    def sync(self, version: int) -> None: ...

    def close(self) -> None: ...

    def generate(self, prompts: Sequence[tuple[int, ...]], draw: Draw) -> list[Completion]: ...
