"""The shapes of what users plug in: reward functions and environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from laurel.core.result import Result
from laurel.core.sample import Batch, Message

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

    from laurel.core.run import Run


class RewardFunction(Protocol):
    """TRL's signature, sync or async: one number, None (abstain) or Result per completion.

    prompts, completions: strings, or lists of messages where the dataset is conversational.
    completion_ids: the sampled token ids. columns: every other column of the dataset, repeated per
    completion.
    """

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        **columns: list[Any],
    ) -> list[float | None]: ...


class Train(Protocol):
    """`laurel.train`, as `laurel.train.python.train` describes it.

    Any option of `laurel train ALGORITHM` goes by its name.
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


class Verifier(Protocol):
    """Judges one answer against one row of data: pure, fast, never raises.

    A wrong answer is Score(0).
    """

    def __call__(self, answer: str, row: Mapping[str, Any]) -> Result: ...


@runtime_checkable
class Env(Protocol):
    """A world the policy talks to. One instance serves one episode.

    `reset(row)` returns the messages that open the episode. `step(text)` hears the policy's turn
    and returns the world's reply as messages, or None when the episode is over. Tokens of the reply
    are attended to and never trained on.
    """

    def reset(self, row: Mapping[str, Any]) -> list[Message]: ...

    def step(self, text: str) -> list[Message] | None: ...


class Companion(Protocol):
    """What is trained beside a policy, by the same optimiser: a critic, a discriminator, the heads
    of Q and V.

    `model` is what it adds to memory. `seen(batch)`: tensors, or a tuple of them, that objectives
    may read, by the name of their
    first parameter. `followers`: parameters that no gradient moves but `follow` does, after each
    optimiser step; a checkpoint holds them too. Names are different from the policy's. One with
    `rate` learns at that multiple of the learning rate; one that shapes how the policy decodes also
    has `save(policy, folder)`.
    """

    @property
    def model(self) -> Module: ...

    def seen(self, batch: Batch) -> Mapping[str, Any]: ...

    def trainable(self) -> dict[str, Parameter]: ...

    def followers(self) -> dict[str, Parameter]: ...

    def follow(self) -> None: ...
