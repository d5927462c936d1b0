"""A world where everything can be listed, and the training code at work in it.

The policy is a table of logits behind the interface of a causal language model, so the library's
own path from samples to a gradient (`pack`, `weigh`, `Policy.logp`, `update` with its
micro-batches) runs unchanged. The gradient that the optimiser receives is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from laurel.core.config import TrainConfig
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Group, Key, Outputs, Sample
from laurel.model.ilql import Heads
from laurel.model.policy import Policy, Reference, trained_positions
from laurel.rollout.sampler import Sampler
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.binding import bind_row
from laurel.train.options import defaults, resolve
from laurel.train.session import Session, State
from laurel.verify.heads import some_tables, table_heads
from laurel.verify.language import Language

Describe = Callable[[int, Sequence[int]], Mapping[str, Any]]
Drawn = tuple[int, tuple[int, ...]]
"""A group: its prompt, and the completions of its samples as indices into the language."""


@dataclass(frozen=True)
class World:
    """Prompts with their logits, reference logits [X, S, V] and rewards [X, N].

    Temperature is part of it: pi = softmax(logits / temperature).
    """

    language: Language
    logits: Tensor
    ref: Tensor
    reward: Tensor
    temperature: float = 0.8

    @property
    def pi(self) -> Tensor:
        """Logits of the policy that samples: divided by the temperature, [X, S, V]."""
        return self.logits / self.temperature

    @property
    def pi_ref(self) -> Tensor:
        """The same of the reference, [X, S, V]."""
        return self.ref / self.temperature


def make_world(V: int = 3, H: int = 2, X: int = 2, *, seed: int = 0, binary: bool = False) -> World:
    """A world with random logits and rewards (0 or 1 if `binary`), float64.

    It is the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    language = Language(V, H)
    shape = (X, language.S, V)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.6
    ref = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.6
    reward = torch.randn(X, language.N, generator=generator, dtype=torch.float64)
    if binary:
        draws = torch.rand(X, language.N, generator=generator, dtype=torch.float64)
        reward = (draws < 0.45).double()
        # neither impossible nor certain
        reward[:, 0] = 1.0
        reward[:, -1] = 0.0
    return World(language, logits, ref, reward)


class TableLM(nn.Module):
    """A causal language model whose logits are looked up by prompt and prefix.

    A token id of at least V names the prompt; ids beyond those are filler before it.
    """

    base_model_prefix = "model"

    def __init__(self, language: Language, logits_XSV: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits_XSV.detach().to(torch.get_default_dtype()).clone())
        self.model = Prefixes(language, len(logits_XSV))
        self.config = SimpleNamespace()

    def get_output_embeddings(self) -> Any:
        return self.read

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=torch.empty(self.model.language.V + self.model.prompts, 1))

    def read(self, state: Tensor) -> Tensor:
        """States [..., 1] -> logits [..., V]."""
        return self.table.flatten(0, 1)[state[..., 0].long()]

    def forward(self, input_ids: Tensor, **keywords: Any) -> Any:
        state = self.model(input_ids, **keywords).last_hidden_state
        return SimpleNamespace(logits=self.read(state))


@dataclass
class TableScorer:
    """A scorer whose score s of a token is the table's entry at its prefix and itself.

    With three outputs the logits of the classes are (-s, 0, s).
    """

    model: TableLM
    outputs: int
    template: str = ""

    @property
    def device(self) -> torch.device:
        return self.model.table.device

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"table": self.model.table}

    def forward(
        self, batch: Batch, wanted: Collection[str], *, entropy_grad: bool = False
    ) -> Outputs:
        """The scores, and the log-probabilities of the same table read as logits."""
        tokenizer = SimpleNamespace(eos_token_id=self.model.model.language.eos)
        policy = Policy(self.model, tokenizer)
        columns = {
            name: policy.logp(batch).logp if name == "logp_NT" else self.scores(batch)
            for name in wanted
        }
        return Outputs(**columns)

    def scores(self, batch: Batch) -> Tensor:
        """[N, T], or [N, T, 3]; 0 where there is no token."""
        time_T = torch.arange(batch.loss_mask_NT.shape[1])
        there_NT = time_T < batch.length_N[:, None]
        # where in its row each token stands; past the end of a row: its last place, masked below
        at_NT = (batch.start_N[:, None] + time_T).clamp(max=batch.ids_NL.shape[1] - 1)
        state_NL = self.model.model.states(batch.ids_NL)
        state_NT = state_NL.gather(1, at_NT - 1)
        token_NT = batch.ids_NL.gather(1, at_NT).clamp(max=self.model.model.language.V - 1)
        score_NT = self.model.table.flatten(0, 1)[state_NT, token_NT]
        score_NT = torch.where(there_NT, score_NT, 0.0)
        if self.outputs == 1:
            return score_NT
        return torch.stack([-score_NT, 0 * score_NT, score_NT], 2)


@dataclass
class TableCritic:
    """A critic whose value of a state is its entry in a table [X, S]."""

    body: TableLM
    table: nn.Parameter
    computes = frozenset({"value_NT", "value_after_N"})
    shares_body = False

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"critic.table": self.table}

    def followers(self) -> dict[str, nn.Parameter]:
        return {}

    def follow(self) -> None:
        """Nothing follows a critic."""

    def forward(self, batch: Batch, wanted: Collection[str], hidden_NLD: Any = None) -> Outputs:
        """Values of the state before each token, 0 where not trained, and behind the last one."""
        rows, times, at = trained_positions(batch)
        value_NL = self.table.flatten()[self.body.model.states(batch.ids_NL)]
        zeros_NT = torch.zeros(batch.loss_mask_NT.shape)
        every_N = torch.arange(len(batch))
        last_N = batch.start_N + batch.length_N - 1
        return Outputs(
            value_NT=zeros_NT.index_put((rows, times), value_NL[rows, at]),
            value_after_N=value_NL[every_N, last_N],
        )


@dataclass
class TableDiscriminator:
    """A discriminator whose logit of a completion is its table's entry at the last token.

    The table is [X, S, V].
    """

    body: TableLM
    table: nn.Parameter
    computes = frozenset({"logit_N"})
    shares_body = False

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"discriminator.table": self.table}

    def followers(self) -> dict[str, nn.Parameter]:
        return {}

    def follow(self) -> None:
        """Nothing follows a discriminator."""

    def forward(self, batch: Batch, wanted: Collection[str], hidden_NLD: Any = None) -> Outputs:
        return Outputs(logit_N=self.logits(batch))

    def logits(self, batch: Batch) -> Tensor:
        """[N]; no two completions end in the same entry."""
        every_N = torch.arange(len(batch))
        last_N = batch.start_N + batch.length_N - 1
        state_N = self.body.model.states(batch.ids_NL)[every_N, last_N - 1]
        token_N = batch.ids_NL[every_N, last_N]
        return self.table.flatten(0, 1)[state_N, token_N]


class Prefixes(nn.Module):
    """The body of a TableLM: after each token, the row of the table that predicts the next one.

    The row stands where a hidden state would: [N, L] -> [N, L, 1].
    """

    def __init__(self, language: Language, prompts: int) -> None:
        super().__init__()
        self.language = language
        self.prompts = prompts
        state = {prefix: s for s, prefix in enumerate(language.prefixes)}
        # [S, V] the state after a token in a state; a completion that is full length leads to 0
        after = [
            [state.get((*prefix, v), 0) for v in range(language.V)] for prefix in language.prefixes
        ]
        self.next = torch.tensor(after)

    def states(self, ids_NL: Tensor) -> Tensor:
        """[N, L] the row of the table after each token."""
        return self(ids_NL).last_hidden_state[..., 0].long()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        V = self.language.V
        S = self.language.S
        row_N = torch.zeros(len(input_ids), dtype=torch.long)
        rows: list[Tensor] = []
        for ids_N in input_ids.T:
            # a prompt's id leads to its empty prefix, a word's to a row of the same prompt
            prompt_N = (ids_N - V).clamp(0, self.prompts - 1)
            inner_N = self.next[row_N % S, ids_N.clamp(max=V - 1)]
            row_N = torch.where(ids_N >= V, prompt_N * S, row_N // S * S + inner_N)
            rows.append(row_N)
        state_NL1 = torch.stack(rows, 1)[..., None]
        return SimpleNamespace(last_hidden_state=state_NL1.to(torch.get_default_dtype()))


class Recorder:
    """In the optimiser's place: records every gradient it receives.

    A step moves the first parameters to `then`, if there is any.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], then: Sequence[Tensor] = ()) -> None:
        self.parameters = list(parameters)
        self.then = list(then)
        self.param_groups: list[dict[str, Any]] = [{}]
        self.gradients: list[list[Tensor]] = []

    def step(self) -> None:
        self.gradients.append(
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]
        )
        for parameter, goal in zip(self.parameters, self.then, strict=False):
            parameter.data.copy_(goal)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def options_for(name: str, options: dict[str, Any]) -> TrainConfig:
    """The row's own defaults, with what a check changes.

    No clipping of gradients, and no metrics of KL unless asked.
    """
    base: dict[str, Any] = {} if ALGORITHMS[name].source.population else {"max_grad_norm": 0.0}
    base |= {"logging_steps": 1 << 30, "learning_rate": 1.0, "token_budget": 1 << 14}
    if "critic_warmup_steps" in defaults(name):
        # a check takes one step, and the policy must move in it
        base["critic_warmup_steps"] = 0
    return resolve(name, TrainConfig(**base | options))


def build_session(
    world: World,
    name: str,
    table: Tensor,
    ref: Tensor,
    *,
    then: Tensor | None = None,
    critic_then: Tensor | None = None,
    **options: Any,
) -> Session:
    """What the loop needs for algorithm `name` on a table of logits [X, S, V].

    then, critic_then: where a first optimiser step leads the policy, and with it the critic (left
    out: it stays).
    """
    row = ALGORITHMS[name]
    own: dict[str, Any] = {} if then is None else {"num_iterations": 2}
    if row.source.sampled:
        own |= {"temperature": world.temperature, "max_completion_length": world.language.H}
    own |= options
    if row.trained.head:
        scorer: Any = TableScorer(TableLM(world.language, table), row.trained.head)
        return setup_of(name, scorer, None, Recorder([scorer.model.table]), **own)
    body = TableLM(world.language, table)
    recorder = Recorder([body.table], () if then is None else (then,))
    policy = _table_policy(body)
    frozen = _table_policy(TableLM(world.language, ref))
    setup = setup_of(name, policy, lambda: Reference(frozen, adapters_off=False), recorder, **own)
    auxiliary = _auxiliary(setup, body, ref)
    if auxiliary is not None:
        setup.auxiliary = cast(Any, auxiliary)
        recorder.parameters.extend(auxiliary.trainable().values())
    if critic_then is not None:
        recorder.then.append(critic_then)
    return setup


def _table_policy(body: TableLM) -> Policy:
    """A table as a policy."""
    return Policy(body, SimpleNamespace(eos_token_id=body.model.language.eos))


def _auxiliary(
    setup: Session, body: TableLM, ref: Tensor
) -> TableCritic | Heads | TableDiscriminator | None:
    """What the row trains beside the policy, with values that depend on the reference's logits."""
    dtype = torch.get_default_dtype()
    if setup.row.credit == "critic":
        return TableCritic(body, nn.Parameter(value_table(ref).to(dtype)))
    if setup.row.trained.auxiliary == "heads":
        return table_heads(some_tables(ref), setup.config.target_update or 0.0)
    if setup.row.trained.auxiliary == "discriminator":
        return TableDiscriminator(body, nn.Parameter(verdict_table(ref).to(dtype)))
    return None


def value_table(ref: Tensor) -> Tensor:
    """The values of a check's critic, [X, S, V] -> [X, S]: numbers of the prompt and prefix."""
    return ref.sum(2)


def verdict_table(ref: Tensor) -> Tensor:
    """The logits of a check's discriminator by the completion's last token: [X, S, V]."""
    return 1.5 * ref


def setup_of(
    name: str,
    policy: Policy,
    frozen: Callable[[], Reference] | None,
    optimizer: Any,
    **options: Any,
) -> Session:
    """The loop's Session without data, rewards or a run directory: what `weigh` and `update` read.

    A reference is made where one is used.
    """
    config = options_for(name, options)
    used = frozen() if frozen and config.reference == "start" else None
    empty: Any = None
    return Session(
        name,
        ALGORITHMS[name],
        config,
        [],
        [],
        empty,
        empty,
        empty,
        policy,
        Sampler(policy),
        used,
        optimizer,
        bind_row(ALGORITHMS[name], config),
        [],
    )


def as_groups(
    world: World,
    drawn: Sequence[Drawn],
    *,
    rewards: Sequence[Sequence[float | None]],
    table: Tensor,
    describe: Describe | None = None,
    **how: Any,
) -> list[Group]:
    """Groups as the sampler would have left them, with exact log-probabilities.

    table [X, S, V] is indexed by the group's prompt; `describe` gives a row's further columns.
    """
    logp_XNT = world.language.token_logp(table / world.temperature)
    groups: list[Group] = []
    for at, ((x, members), own) in enumerate(zip(drawn, rewards, strict=True)):
        samples = tuple(
            as_sample(world, x, n, g, at, logp_XNT, **how) for g, n in enumerate(members)
        )
        columns = describe(x, members) if describe else {}
        groups.append(Group(f"p{at}", columns, samples, rewards=tuple(own)))
    return groups


def as_sample(
    world: World,
    x: int,
    n: int,
    g: int,
    at: int,
    logp_XNT: Tensor,
    *,
    supervised: bool = False,
    filler: int = 0,
) -> Sample:
    """Completion n of prompt x as a sample; `filler` tokens stand before the prompt."""
    language = world.language
    ids = language.completions[n]
    return Sample(
        key=Key("verify", "", f"p{at}", g, 0),
        prompt_ids=(*[language.V + len(logp_XNT)] * filler, language.V + x),
        completion_ids=ids,
        logps=tuple(logp_XNT[x, n, : len(ids)].tolist()),
        loss_mask=(True,) * len(ids),
        temperature=1.0 if supervised else world.temperature,
        finish="eos" if ids[-1] == language.eos else "length",
        text="",
        turns=(),
    )


def gradient(setup: Session, groups: list[Group], *, running_mean: float = 0.0) -> Tensor:
    """The gradient of one step of the loop, as a direction of ascent: [X, S, V].

    Of a setup with `then` it is the gradient of the second pass.
    """
    state = State(step=1, running_mean=running_mean)
    batch = loop.weigh(setup, state, groups, Sums())
    loop.update(setup, state, batch, Sums())
    return ascent_of(setup)[0]


def ascent_of(setup: Session) -> list[Tensor]:
    """The optimiser's last gradient, parameter by parameter, as a direction of ascent.

    Zeros where the loop found nothing to learn.
    """
    recorder: Any = setup.optimizer
    if len(recorder.gradients) != (setup.config.num_iterations or 1):
        return [torch.zeros_like(p) for p in recorder.parameters]
    return [-g for g in recorder.gradients[-1]]


def every_group(world: World, G: int, p_XN: Tensor) -> Iterator[tuple[Drawn, float]]:
    """Every ordered group of G completions of every prompt, with its probability.

    Prompts are equally likely.
    """
    X, N = p_XN.shape
    p = p_XN.tolist()
    for x in range(X):
        for members in product(range(N), repeat=G):
            chance = 1.0 / X
            for n in members:
                chance *= p[x][n]
            yield (x, members), chance


def expected_gradient(
    world: World,
    name: str,
    G: int,
    *,
    old: Tensor | None = None,
    running_mean: float = 0.0,
    only_informative: bool = False,
    **options: Any,
) -> Tensor:
    """E over all groups of the gradient of one step on one prompt: [X, S, V], exact.

    old: logits of the policy that sampled. only_informative: given that the rewards of the group
    differ, which is what dynamic sampling waits for.

    One call of the loop for all groups: each becomes a prompt of its own with its own copy of the
    table, so their gradients stay apart and are weighted by probability afterwards. That needs a
    unit that is a row, so that the denominator is known.
    """
    sampled_from = world.logits if old is None else old
    p_XN = world.language.logp(sampled_from / world.temperature).exp()
    cases = list(every_group(world, G, p_XN))
    if only_informative:
        cases = given_informative(world, cases)
    which = torch.tensor([x for (x, _), _ in cases])
    rewards = [[float(world.reward[x, n]) for n in members] for (x, members), _ in cases]
    setup = build_session(
        world,
        name,
        sampled_from[which],
        world.ref[which],
        then=None if old is None else world.logits[which],
        num_generations=G,
        **options,
    )
    assert setup.config.loss_aggregation != "token_mean"
    drawn = [(at, members) for at, ((_, members), _) in enumerate(cases)]
    groups = as_groups(world, drawn, rewards=rewards, table=sampled_from[which])
    each_CSV = gradient(setup, groups, running_mean=running_mean) * len(cases)
    return mean_by_prompt(world, which, each_CSV, torch.tensor([c for _, c in cases]))


def mean_by_prompt(world: World, which: Tensor, each_CSV: Tensor, chance: Tensor) -> Tensor:
    """The sum over the cases of each prompt, by their probability: [C, S, V] -> [X, S, V].

    which: the prompt of each case.
    """
    zeros_XSV = torch.zeros_like(world.logits, dtype=each_CSV.dtype)
    return zeros_XSV.index_add(0, which, each_CSV * chance[:, None, None])


def given_informative(world: World, cases: list[tuple[Drawn, float]]) -> list[tuple[Drawn, float]]:
    """The groups whose rewards differ, with their probabilities given that.

    Each prompt keeps its share.
    """
    kept = [
        ((x, members), chance)
        for (x, members), chance in cases
        if len({float(world.reward[x, n]) for n in members}) > 1
    ]
    X = len(world.reward)
    mass = [sum(chance for (x, _), chance in kept if x == prompt) for prompt in range(X)]
    return [((x, members), chance / mass[x] / X) for (x, members), chance in kept]
