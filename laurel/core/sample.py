"""The three shapes every method works on: Sample (a completion) -> Group (a prompt) -> Batch.

Axis letters end the names of tensors:

- P prompts, G samples per prompt, N = P*G rows, V vocabulary
- L tokens of prompt and completion, T tokens of the completion

Sampled ids are the truth; text is decoded from them. Masks are built from lengths, never from token
ids. A column of a Batch has one meaning; what only some methods need is a record of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from laurel.core.errors import UsageError
from laurel.core.result import Result

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["eos", "length", "stop", "error"]
NOT_SAMPLED = -1
"""The version in the key of a sample that no version of the policy drew.

It marks a demonstration in a group of samples.
"""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Draw:
    """How completions are drawn, and the run, step and seed of their keys.

    - run, step, seed: step is the policy's version.
    - num_generations, max_completion_length, temperature, stop, top_k, top_p: the sampling options
      of a run.
    - seeds: one for each completion, G for each prompt in turn.
    - limits: the most tokens of each completion; empty: max_completion_length.

    A `laurel.core.protocols.Generator` takes it.
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
        """The draw that the configuration of a run, or of an evaluation, gives, with `changes`."""
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
    """Sampled ids, the log-probability of each, and why sampling ended.

    The log-probabilities are in nats, at the sampling temperature.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish

    @property
    def spoken(self) -> tuple[int, ...]:
        """The ids without the end token that ended the completion.

        The end token need not be one that decoding skips, so it is removed here.
        """
        return self.ids[:-1] if self.finish == "eos" else self.ids


def sample_seed(run_seed: int, prompt: str, sample: int, step: int) -> int:
    """The seed of one sample: 64 bits that depend on (run, prompt, sample, step) alone."""
    return int.from_bytes(
        hashlib.blake2b(f"{run_seed}|{prompt}|{sample}|{step}".encode(), digest_size=8).digest(),
        "little",
    )


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The identity of a sample. Rewards and weights join on it, never on a position in a list."""

    run: str
    source: str
    prompt: str
    sample: int
    version: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one prompt.

    - completion_ids, logps, loss_mask have the same length. logps: the log-probability of each id
      when it was sampled, in nats, at `temperature`. loss_mask: True where the policy chose the id;
      False for tool and environment tokens.
    - turns: the completion as messages, one assistant turn unless an environment replied.
    - text: the decoded whole.
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
        """The content of the completion's last turn; `text` where there are no turns."""
        return self.turns[-1]["content"] if self.turns else self.text


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt, the row they came from, and the results of each reward.

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
class Columns:
    """Tensors of the same rows, one field each, and records of further such tensors.

    A field is None where there is no such column.
    """

    def tensors(self) -> dict[str, Any]:
        """Name -> tensor, or record of tensors, of the columns that there are."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: x for name, x in found.items() if x is not None and name != "keys"}

    def mapped(self, function: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
        """Name -> function(name, tensor) of every column, in records too."""
        changed: dict[str, Any] = {}
        for name, column in self.tensors().items():
            if isinstance(column, Columns):
                changed[name] = type(column)(**column.mapped(function))
            else:
                changed[name] = function(name, column)
        return changed

    def __post_init__(self) -> None:
        if len({len(column) for column in self.tensors().values()}) != 1:
            what = type(self).__name__
            raise ValueError(f"the columns of a {what} have different numbers of rows")

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))


@dataclass(frozen=True)
class Comparisons(Columns):
    """What is compared: the rows of each group, one entry per row.

    - grade_N: the row's place in its group's order: higher is better, equal is a tie. Of a pair +1
      (chosen) and -1 (rejected); 0 where the row is not compared.
    - compared_N: bool, whether the row takes part in the comparison.
    - weight_N: the reliability of the group's label; it multiplies the group's loss. 1: full.
    - margin_N: how much better the chosen row is than the rejected one, as the data say; 0 where
      they do not. The same at both rows.
    - flip_N: the probability that the label is the wrong way round, 1 - soft_label. The same at
      both rows.
    - reference_kl_N: KTO's reference point, max(0, mean of log pi - log ref on answers to other
      prompts); the same for all rows. 0 for other objectives.
    """

    grade_N: Tensor
    compared_N: Tensor
    weight_N: Tensor
    margin_N: Tensor
    flip_N: Tensor
    reference_kl_N: Tensor

    @classmethod
    def of(
        cls,
        grade_N: Tensor,
        *,
        compared_N: Tensor | None = None,
        weight_N: Tensor | None = None,
        margin_N: Tensor | None = None,
        flip_N: Tensor | None = None,
        reference_kl_N: Tensor | None = None,
    ) -> Comparisons:
        """Comparisons with these grades and defaults for the other columns.

        Left out: compared where the grade is not 0, weight 1, no margin, certain labels.
        """
        zero_N = grade_N * 0
        return cls(
            grade_N,
            grade_N != 0 if compared_N is None else compared_N,
            zero_N + 1 if weight_N is None else weight_N,
            zero_N if margin_N is None else margin_N,
            zero_N if flip_N is None else flip_N,
            zero_N if reference_kl_N is None else reference_kl_N,
        )


@dataclass(frozen=True)
class Values(Columns):
    """What a critic's update needs, [N, T] each, 0 where not trained on.

    - value_NT: the critic's values when the batch was sampled.
    - return_NT: the returns that it should have predicted.
    """

    value_NT: Tensor
    return_NT: Tensor


@dataclass(frozen=True)
class Demonstrations(Columns):
    """Which rows of adversarial imitation are demonstrations, and how much each row counts.

    - demonstration_N: bool, True for a demonstration, False for a sample of the policy.
    - weight_N: such that both kinds count the same in every group; 0 in a group of one kind.
    """

    demonstration_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True)
class Batch(Columns):
    """Rows of prompt + completion, padded on the right, as tensors. Row n is `keys[n]`.

    Tensors are float32 unless a type is given.

    - ids_NL int64, attention_NL bool: the tokens, and which of them exist.
    - start_N, length_N int64: where the completion begins in its row, and its number of tokens.
    - loss_mask_NT bool: the completion tokens that are trained on. "No mask" is all ones up to
      `length_N`.
    - logp_old_NT: log-probabilities under the weights that sampled: the sampler's, which are the
      trainer's up to rounding, or the trainer's own where the sampler is another arithmetic.
    - logp_ref_NT: log-probabilities under the reference (zeros if there is none).
    - weight_NT: what multiplies a token's log-likelihood in the loss: the advantage A, or the
      weight of a row of data.
    - temperature_N: the temperature that the row was sampled at.
    - group_N int64: the number of the row's prompt.
    - keys: the key of each row.
    - sampled_NT bool: the tokens that the policy chose, trained on or not, which metrics of the
      policy cover. None: those of loss_mask_NT.

    Some methods alone need the following; else they are None.

    - label_NT: the label that a scorer learns at the token: of an outcome in [0, 1], of a step -1
      (wrong), 0 (neutral) or 1 (right).
    - reward_N: the reward that was logged with the row.
    - comparison, values, demonstrations: see `Comparisons`, `Values`, `Demonstrations`.
    """

    ids_NL: Tensor
    attention_NL: Tensor
    start_N: Tensor
    length_N: Tensor
    loss_mask_NT: Tensor
    logp_old_NT: Tensor
    logp_ref_NT: Tensor
    weight_NT: Tensor
    temperature_N: Tensor
    group_N: Tensor
    keys: tuple[Key, ...]
    sampled_NT: Tensor | None = None
    label_NT: Tensor | None = None
    reward_N: Tensor | None = None
    comparison: Comparisons | None = None
    values: Values | None = None
    demonstrations: Demonstrations | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.keys) != len(self.start_N):
            raise ValueError("the columns of a Batch have different numbers of rows")

    def replace(self, **changes: Any) -> Batch:
        """A copy of the batch with some columns changed."""
        return replace(self, **changes)

    def to(self, device: Any) -> Batch:
        """A copy of the batch with every tensor on `device`."""
        return replace(self, **self.mapped(lambda _, column: column.to(device)))

    @property
    def drawn_NT(self) -> Tensor:
        """The tokens that the policy chose, trained on or not."""
        return self.loss_mask_NT if self.sampled_NT is None else self.sampled_NT

    def rows(self, index: Sequence[int]) -> Batch:
        """Some rows, trimmed to the longest of them, so that no padding is kept without need."""
        index = list(index)
        # an empty batch is legal, and has no longest row
        wide = int((self.start_N[index] + self.length_N[index]).max()) if index else 0
        long = int(self.length_N[index].max()) if index else 0
        at = self.start_N.new_tensor(index)

        def taken(name: str, column: Tensor) -> Tensor:
            if name.endswith("_NL"):
                return column[at][:, :wide]
            return column[at][:, :long] if name.endswith("_NT") else column[at]

        return Batch(**self.mapped(taken), keys=tuple(self.keys[i] for i in index))

    def split(
        self, token_budget: int, *, whole_groups: bool = False, packed: bool = False
    ) -> Iterator[Batch]:
        """Micro-batches of rows of similar length, of at most `token_budget` tokens each.

        A longer row or group is a micro-batch by itself. Every row appears once; the order is by
        length, then by position, and depends on nothing else.

        - whole_groups: the rows of a group stay together, in their order.
        - packed: for a model that computes no padding, and a group's prompt once. Those tokens are
          counted, and a group is divided only where it is longer than the budget. Otherwise padding
          is counted, too.
        """
        columns: list[Any] = [self.start_N, self.length_N, self.group_N]
        start, length, group = (column.tolist() for column in columns)
        group = group if whole_groups or packed else range(len(self))
        limit = token_budget if packed and not whole_groups else None
        units, tokens = units_by_group(start, length, group, limit)
        longest = [max(start[row] + length[row] for row in rows) for rows in units]
        chunk, width, spent = list[int](), 0, 0
        for unit in sorted(range(len(units)), key=lambda unit: (-longest[unit], units[unit][0])):
            # the first unit of a chunk is its longest: padded rows are all as wide as that
            size = spent + tokens[unit] if packed else width * (len(chunk) + len(units[unit]))
            if chunk and size > token_budget:
                yield self.rows(chunk)
                chunk, spent = [], 0
            width = width if chunk else longest[unit]
            spent += tokens[unit]
            chunk += units[unit]
        if chunk:
            yield self.rows(chunk)


def units_by_group(
    start: Sequence[int], length: Sequence[int], group: Sequence[int], limit: int | None
) -> tuple[list[list[int]], list[int]]:
    """Units of rows that stay together, in order, and the tokens of each.

    A unit has rows of one group. Its prompt is counted once, and every completion.

    - start, length, group: of each row, the length of its prompt and of its completion, and the
      number of its group.
    - limit: the most tokens of a unit; a row beyond it begins a new one (None: no limit).

    Two rows of a group, 3 + 4 and 3 + 5 tokens: one unit of 12.
    """
    units, tokens, newest = list[list[int]](), list[int](), dict[int, int]()
    for row, number in enumerate(group):
        unit = newest.get(number)
        more = length[row] + (
            0 if unit is not None and start[row] == start[units[unit][0]] else start[row]
        )
        if unit is None or (limit is not None and tokens[unit] + more > limit):
            unit, more = len(units), start[row] + length[row]
            newest[number] = unit
            units.append([])
            tokens.append(0)
        units[unit].append(row)
        tokens[unit] += more
    return units, tokens


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model for one batch; None where a field was not requested.

    Per-token outputs are 0 at tokens that are not trained on. x_t is a trained token, s_t the state
    in which it was chosen: the tokens before it.

    - logp_NT: log pi(x_t) at the temperature that sampled it.
    - entropy_NT: of pi(. | s_t), in nats.
    - value_NT: V(s_t), of a critic or of implicit Q-learning.
    - value_after_N: a critic's value of the state behind the row's last token.
    - q_KNT: Q_k(s_t, x_t) of K heads.
    - logq_KNT: log softmax(Q_k(s_t, .)) at x_t.
    - target_q_NT: the least of the K target networks at x_t, without a gradient.
    - score_NT, score_NTC: a scorer's output at every completion token, of C classes.
    - logit_N: a discriminator's log(D / (1 - D)) of the whole row.
    - hidden_NLD: the last hidden states of the policy's body, at every position.
    """

    logp_NT: Tensor | None = None
    entropy_NT: Tensor | None = None
    value_NT: Tensor | None = None
    value_after_N: Tensor | None = None
    q_KNT: Tensor | None = None
    logq_KNT: Tensor | None = None
    target_q_NT: Tensor | None = None
    score_NT: Tensor | None = None
    score_NTC: Tensor | None = None
    logit_N: Tensor | None = None
    hidden_NLD: Tensor | None = None

    def tensors(self, names: Iterable[str]) -> tuple[Tensor, ...]:
        """The fields of these names, in this order; ValueError where one was not computed."""
        found: list[Tensor] = []
        for name in names:
            tensor = getattr(self, name)
            if tensor is None:
                raise ValueError(f"{name} was not asked of this model")
            found.append(tensor)
        return tuple(found)

    def joined(self, other: Outputs) -> Outputs:
        """These outputs and those of another model for the same batch."""
        added = {item.name: getattr(other, item.name) for item in fields(other)}
        return replace(self, **{name: x for name, x in added.items() if x is not None})


@lru_cache(maxsize=4)
def epoch_order(n: int, epoch: int, seed: int) -> tuple[int, ...]:
    """The positions 0 .. n-1 in the order of one epoch, shuffled by (seed, epoch) alone."""
    positions = list(range(n))
    random.Random(f"order/{seed}/{epoch}").shuffle(positions)
    return tuple(positions)


def take(cursor: int, count: int, n: int, seed: int) -> list[int]:
    """The row positions of `count` draws after `cursor` earlier ones, over n rows.

    Draw i is epoch_order(n, i // n, seed)[i % n]: every row once per epoch, whatever the step size;
    a step may lie across two epochs. It does not depend on how many processes share the work, and a
    resumed run needs only the cursor.
    """
    if n < 1 or cursor < 0 or count < 0:
        raise UsageError(f"cannot draw {count} rows after {cursor} from {n}.", where="dataset")
    return [epoch_order(n, draw // n, seed)[draw % n] for draw in range(cursor, cursor + count)]
