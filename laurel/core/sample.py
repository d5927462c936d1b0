"""The three shapes every method works on: Sample (one completion) -> Group (one prompt) -> Batch
(tensors).

Axis letters end the names of tensors:
    P prompts · G samples per prompt · N = P*G rows · L tokens of prompt and completion · T tokens
    of the completion · V vocabulary
Sampled ids are the truth; text is a view of them. Masks are built from lengths, never from token
ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from laurel.core.microbatch import units_by_group
from laurel.core.result import Result

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["eos", "length", "stop", "error"]
NOBODY = -1
"""The version in the key of a sample that no version of the policy drew, as of a demonstration that
stands beside samples.
"""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Draw:
    """How completions are drawn, and what their keys say: run, step (the policy's version), seed.

    `seeds`: one for each completion, G for each prompt in turn. `limits`: the most tokens of each;
    empty: max_completion_length. A `laurel.core.protocols.Generator` is asked with it.
    """

    run: str
    step: int
    seed: int
    num_generations: int
    max_completion_length: int
    temperature: float
    stop: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    seeds: tuple[int, ...] = ()
    limits: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any, run: str, step: int, **changes: Any) -> Draw:
        """As the configuration of a run, or of an evaluation, says; but for `changes`."""
        values: dict[str, Any] = {
            "seed": config.seed,
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "temperature": config.temperature,
            "stop": tuple(config.stop or ()),
            "top_k": config.top_k,
            "top_p": config.top_p,
        }
        return cls(run, step, **{**values, **changes})

    def seeds_of(self, prompts: Sequence[str], turn: int = 0) -> tuple[int, ...]:
        """One seed per sample, from (seed, prompt, sample, step) and the turn of the episode."""
        first = self.num_generations * turn
        return tuple(
            sample_seed(self.seed, prompt, first + g, self.step)
            for prompt in prompts
            for g in range(self.num_generations)
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled ids with the log-probability of each at the sampling temperature, and why sampling
    ended.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish

    @property
    def spoken(self) -> tuple[int, ...]:
        """The ids without the one that ended it: an end token need not be one that decoding
        skips.
        """
        return self.ids[:-1] if self.finish == "eos" else self.ids


def sample_seed(run_seed: int, prompt: str, sample: int, step: int) -> int:
    """The seed of one sample: 64 bits that depend on (run, prompt, sample, step) and on nothing
    else.
    """
    return int.from_bytes(
        hashlib.blake2b(f"{run_seed}|{prompt}|{sample}|{step}".encode(), digest_size=8).digest(),
        "little",
    )


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Who a sample is. Rewards and weights join on it, never on a position in a list."""

    run: str
    source: str
    prompt: str
    sample: int
    version: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one prompt.

    `completion_ids`, `logps` (log-probability of each id when it was sampled, in nats, at
    `temperature`) and `loss_mask` (True where the policy chose the id; False for tool and
    environment tokens) have the same length. `turns` is the completion as messages (one assistant
    turn unless an environment spoke); `text` is the decoded whole.
    """

    key: Key
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logps: tuple[float, ...]
    loss_mask: tuple[bool, ...]
    temperature: float
    finish: Finish
    text: str
    turns: tuple[Message, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.completion_ids), len(self.logps), len(self.loss_mask)}
        if len(sizes) != 1:
            raise ValueError(
                f"ids, logps and loss_mask of {self.key} differ in length: {sorted(sizes)}"
            )

    @property
    def answer(self) -> str:
        """What the policy said last: the content of its final turn."""
        return self.turns[-1]["content"] if self.turns else self.text


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt, the row they came from, and what each reward said of each sample.

    `results[name][i]` belongs to `samples[i]`; `rewards[i]` is the mixture, None where the sample
    is excluded. Both are empty until the group has been scored.
    """

    prompt: str
    row: Mapping[str, Any]
    samples: tuple[Sample, ...]
    results: Mapping[str, tuple[Result, ...]] = field(default_factory=dict[str, tuple[Result, ...]])
    rewards: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for name, column in [*self.results.items(), ("the mixture", self.rewards or self.samples)]:
            if len(column) != len(self.samples):
                raise ValueError(
                    f"{name} has {len(column)} results for {len(self.samples)} samples of prompt"
                    f" {self.prompt!r}"
                )


@dataclass(frozen=True)
class Batch:
    """Rows of prompt + completion, padded on the right, as tensors. Row n is `keys[n]`.

    ids_NL int64, attention_NL bool: the tokens and which of them exist.
    start_N, length_N int64: where the completion begins in its row, and how many tokens it has.
    loss_mask_NT bool: the completion tokens that are trained on. "No mask" is all ones up to
    `length_N`.
    logp_old_NT float32: log-probabilities under the policy that sampled. logp_ref_NT: under the
    reference (zeros if none).
    weight_NT float32: what multiplies the log-likelihood; in comparisons the row's grade (chosen
    +1, rejected -1).
    value_NT float32: what a critic said when the row was sampled; of a pair's rejected row the
    chance that it is the better one.
    target_NT float32: what a head or an objective aims at (returns, labels, a margin).
    temperature_N float32. group_N int64: which prompt.
    sampled_NT bool: the tokens that the policy chose, trained on or not: what metrics of the policy
    cover. None: those of loss_mask_NT.
    """

    ids_NL: Tensor
    attention_NL: Tensor
    start_N: Tensor
    length_N: Tensor
    loss_mask_NT: Tensor
    logp_old_NT: Tensor
    logp_ref_NT: Tensor
    weight_NT: Tensor
    value_NT: Tensor
    target_NT: Tensor
    temperature_N: Tensor
    group_N: Tensor
    keys: tuple[Key, ...]
    sampled_NT: Tensor | None = None

    def __post_init__(self) -> None:
        if (
            len(
                {
                    len(column)
                    for item in fields(self)
                    if (column := getattr(self, item.name)) is not None
                }
            )
            != 1
        ):
            raise ValueError("the columns of a Batch have different numbers of rows")

    def __len__(self) -> int:
        return len(self.keys)

    def replace(self, **changes: Any) -> Batch:
        """The same batch with some columns changed."""
        return replace(self, **changes)

    def to(self, device: Any) -> Batch:
        """The same batch with every tensor on `device`."""
        columns = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "keys"
        }
        return replace(
            self,
            **{name: column.to(device) for name, column in columns.items() if column is not None},
        )

    @property
    def drawn_NT(self) -> Tensor:
        """The tokens that the policy chose, trained on or not."""
        return self.loss_mask_NT if self.sampled_NT is None else self.sampled_NT

    def rows(self, index: Sequence[int]) -> Batch:
        """Some rows, trimmed to the longest of them: padding never travels further than it must."""
        index = list(index)
        wide = (
            int((self.start_N[index] + self.length_N[index]).max()) if index else 0
        )  # an empty batch is legal
        long = int(self.length_N[index].max()) if index else 0
        cut = {"_NL": wide, "_NT": long}
        at = self.start_N.new_tensor(index)
        columns = {
            item.name: tensor[at][:, : cut[item.name[-3:]]] if item.name[-3:] in cut else tensor[at]
            for item in fields(self)
            if item.name != "keys" and (tensor := getattr(self, item.name)) is not None
        }
        return Batch(**columns, keys=tuple(self.keys[i] for i in index))

    def split(
        self, token_budget: int, *, whole_groups: bool = False, packed: bool = False
    ) -> Iterator[Batch]:
        """Micro-batches of similar length with at most `token_budget` tokens each (a longer row or
        group goes alone).

        Every row appears once; the order is by length, then by position, so it depends on nothing
        else. whole_groups: the rows of a group stay together, in their order. packed: for a model
        that computes no padding and a group's prompt once; so much is counted, and a group is only
        parted where it is longer than the budget. Else padding is counted, too.
        """
        columns: list[Any] = [self.start_N, self.length_N, self.group_N]
        start, length, group = (column.tolist() for column in columns)
        group = group if whole_groups or packed else range(len(self))
        units, tokens = units_by_group(
            start, length, group, token_budget if packed and not whole_groups else None
        )
        longest = [max(start[row] + length[row] for row in rows) for rows in units]
        chunk, width, spent = list[int](), 0, 0
        for unit in sorted(range(len(units)), key=lambda unit: (-longest[unit], units[unit][0])):
            if (
                chunk
                and (spent + tokens[unit] if packed else width * (len(chunk) + len(units[unit])))
                > token_budget
            ):
                yield self.rows(chunk)
                chunk, spent = [], 0
            width, spent = width if chunk else longest[unit], spent + tokens[unit]
            chunk += units[unit]
        if chunk:
            yield self.rows(chunk)
