"""Implicit Q-learning, exactly: steps against a second opinion, and expectations over a small log.

Every completion of the log is shown as often as the log has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laurel.core.metrics import Sums
from laurel.model.ilql import Heads, fold_q_into_head
from laurel.train import loop
from laurel.train.session import State
from laurel.verify.finding import Finding, compare_different, compare_equal
from laurel.verify.heads import Tables, some_tables, table_heads, tables_of
from laurel.verify.pairs import at_temperature_one
from laurel.verify.recomputed_ilql import Step, step
from laurel.verify.world import Drawn, World, as_groups, ascent_of, build_session, make_world

NAME = "ilql"
CASES: list[dict[str, Any]] = [
    {},
    {"gamma": 0.9, "expectile": 0.9, "awac_beta": 0.8, "target_update": 0.3},
    {"cql_coef": 0.7, "awac_coef": 0.5, "expectile": 0.5, "token_budget": 9},
]
QUIET = {"cql_coef": 0.0, "gamma": 1.0}
"""No conservative term and no discount, as in theory."""


@dataclass
class Pulls:
    """One step of the loop: its loss, its directions of ascent, and the heads after it.

    policy [X, S, V], q [K, X, S, V], value [X, S].
    """

    loss: float
    policy: Tensor
    q: Tensor
    value: Tensor
    heads: Heads


def run_step(
    world: World,
    tables: Tables,
    drawn: Sequence[Drawn],
    rewards: Sequence[Sequence[float]],
    filler: int = 0,
    **options: Any,
) -> Pulls:
    """One step of the loop on logged rows; heads begin at the tables."""
    setup = build_session(world, NAME, world.logits, world.ref, **options)
    heads = table_heads(tables, float(setup.config.target_update or 0))
    recorder: Any = setup.optimizer
    setup.auxiliary = heads
    recorder.parameters[1:] = heads.trainable().values()
    groups = as_groups(
        world, drawn, rewards=rewards, table=world.logits, supervised=True, filler=filler
    )
    state = State(step=1)
    sums = Sums()
    loop.update(setup, state, loop.weigh(setup, state, groups, sums), sums)
    policy, *q, value = ascent_of(setup)
    X = len(world.logits)
    # gradients of heads are [out, X * S]
    q_KXSV = torch.stack([slope.T.unflatten(0, (X, -1)) for slope in q])
    value_XS = value[0].unflatten(0, (X, -1))
    return Pulls(sums.means()["loss"], policy, q_KXSV, value_XS, heads)


def logged_steps(*, batches: int = 4, seed: int = 0) -> Iterator[Finding]:
    """Random batches: the loss, what pulls at the policy, Q and V, and the target networks."""
    world = make_world(V=4, H=3, X=3, seed=seed + 50)
    tables = some_tables(world.ref)
    for options in CASES:
        shown = ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
        rng = random.Random(f"{shown}{seed}")
        pairs: list[tuple[Parts, Parts]] = []
        for number in range(batches):
            completions = [rng.randrange(world.language.N) for _ in range(3)]
            drawn = [(x, (n,)) for x, n in enumerate(completions)]
            pairs.append(_both_steps(world, tables, drawn, number, options))
        for part in pairs[0][0]:
            ours = torch.stack([mine[part] for mine, _ in pairs])
            theirs = torch.stack([other[part] for _, other in pairs])
            yield compare_equal(NAME, f"{part}, {shown}", ours, theirs)


Parts = dict[str, Tensor]
"""Name -> what a step computes or moves."""


def _both_steps(
    world: World,
    tables: Tables,
    drawn: Sequence[Drawn],
    filler: int,
    options: dict[str, Any],
) -> tuple[Parts, Parts]:
    """The parts of one step of the loop, and of plain Python."""
    rewards = [[float(world.reward[x, n]) for n in members] for x, members in drawn]
    o = build_session(world, NAME, world.logits, world.ref, **options).config
    found = run_step(world, tables, drawn, rewards, filler, **options)
    truth = step(world, tables, drawn, rewards, o)
    after = tables_of(found.heads, len(world.logits)).target
    rate = float(o.target_update or 0)
    slow = tables.target + rate * (tables.q - tables.target)
    return _parts(found, after), _parts(truth, slow)


def _parts(step: Pulls | Step, target: Tensor) -> Parts:
    """The parts of a step by name; target: the target networks afterwards."""
    return {
        "the loss": torch.tensor([step.loss]),
        "gradient of the policy": step.policy,
        "gradient of Q": step.q,
        "gradient of V": step.value,
        "the slow copies afterwards": target,
    }


def expected_pulls(
    world: World, tables: Tables, log_XN: Tensor, **options: Any
) -> tuple[Pulls, Tensor]:
    """E of the pulls over a log, and the target networks afterwards.

    The log holds completion n of prompt x as often as `log_XN` says. One call of the loop: every
    completion that the log holds becomes a prompt of its own. Sums over tokens, prompt by prompt.
    """
    cases = [(x, n) for x, n in log_XN.nonzero().tolist() if log_XN[x, n] > 0]
    which = torch.tensor([x for x, _ in cases])
    own = replace(world, logits=world.logits[which], ref=world.ref[which])
    drawn = [(at, (n,)) for at, (_, n) in enumerate(cases)]
    rewards = [[float(world.reward[x, n])] for x, n in cases]
    found = run_step(own, tables.at(which), drawn, rewards, **options)
    # The loop's step is a mean over tokens: times their number, each case counts by its share.
    units = sum(len(world.language.completions[n]) for _, n in cases)
    logged = [float(log_XN[x, n]) for x, n in cases]
    share = torch.tensor(logged) * units
    # All copies of one prompt's target network move alike: those of its first case are taken.
    prompts = which.tolist()
    first = [prompts.index(x) for x in range(len(log_XN))]
    after = tables_of(found.heads, len(cases)).target[:, first]
    return _by_prompt(found, which, share, len(log_XN)), after


def _by_prompt(found: Pulls, which: Tensor, share: Tensor, X: int) -> Pulls:
    """The sums over the cases of each prompt, by share."""

    def gathered(each: Tensor) -> Tensor:
        zeros = torch.zeros((X, *each.shape[1:]), dtype=each.dtype)
        # the share of a case at each of its numbers
        ones = [1] * (each.ndim - 1)
        share_C = share.view(-1, *ones)
        return zeros.index_add(0, which, each * share_C)

    policy = gathered(found.policy)
    q = torch.stack([gathered(each) for each in found.q])
    value = gathered(found.value)
    return replace(found, policy=policy, q=q, value=value)


def expectile_of(q: Sequence[float], p: Sequence[float], tau: float) -> float:
    """The v at which sum p |tau - 1[q < v]| (q - v) = 0, by bisection: the sum falls in v."""

    def slope(v: float) -> float:
        total = 0.0
        for x, chance in zip(q, p, strict=True):
            side = tau if x > v else 1 - tau
            total += chance * side * (x - v)
        return total

    low = min(q)
    high = max(q)
    for _ in range(200):
        v = (low + high) / 2
        low, high = (v, high) if slope(v) > 0 else (low, v)
    return (low + high) / 2


def fixed_point_of(world: World, log_XN: Tensor, tau: float) -> Tables:
    """Q and V at which nothing moves, gamma 1.

    Backward induction with an expectile under the log in the mean's place.
    """
    p_XSV = world.language.logits_of(log_XN).softmax(2)

    def value(q_XV: Tensor, s: int) -> Tensor:
        rows: list[float] = []
        for q_V, p_V in zip(q_XV, p_XSV[:, s], strict=True):
            logged = p_V > 0
            rows.append(expectile_of(q_V[logged].tolist(), p_V[logged].tolist(), tau))
        return torch.tensor(rows, dtype=q_XV.dtype)

    Q, V = world.language.backward(world.reward, value)
    both = torch.stack([Q, Q])
    return Tables(both, both, V)


def make_logs() -> tuple[World, Tensor, Tensor]:
    """A world, a log of all that its policy writes, and one without the two best of each prompt."""
    world = at_temperature_one(make_world(3, 2, seed=51))
    whole = world.language.logp(world.pi).exp()
    part = whole.clone()
    for x in range(len(part)):
        part[x, world.reward[x].topk(2).indices] = 0
    return world, whole, part / part.sum(1, keepdim=True)


def logged_truths() -> Iterator[Finding]:
    """Expected pulls against theory, at the start; none at the tables of theory."""
    world, whole, part = make_logs()
    yield from check_written_out(world, whole)
    for name, log in (("a log of everything", whole), ("a log without the best", part)):
        for tau in (0.5, 0.7, 0.9, 0.999):
            tables = fixed_point_of(world, log, tau)
            found, _ = expected_pulls(world, tables, log, expectile=tau, **QUIET)
            says = "V^mu and Q^mu" if tau == 0.5 else f"the {tau:g} expectiles, backwards"
            pulls = torch.cat([found.q.flatten(), found.value.flatten()])
            yield compare_equal(NAME, f"{name}: at {says} Q and V rest", pulls, 0 * pulls)
    mu = fixed_point_of(world, whole, 0.5)
    Q, V = world.language.action_values(world.pi, world.reward)
    yield compare_equal(NAME, "the .5 expectile of the log is the mean: V^mu", mu.value, V)
    yield compare_equal(NAME, "and Q^mu", mu.q[0], Q)
    yield from check_closed_form()
    for beta in (0.0, 1.5):
        tilt = beta * (Q - V[..., None])
        at_goal = replace(world, logits=world.logits + tilt)
        found, _ = expected_pulls(at_goal, mu, whole, awac_beta=beta, **QUIET)
        yield compare_equal(
            NAME,
            f"the policy rests at mu exp({beta:g} (Q - V)) / Z",
            found.policy,
            0 * world.logits,
        )
    yield from check_extraction(world, whole, mu)


def check_written_out(world: World, log: Tensor) -> Iterator[Finding]:
    """The expected pulls at Q and V anywhere.

    Q: 2 visits mu (r + gamma V' - Q),    V: 2 visits E_mu[|tau - 1[u < 0]| u]

    u = min over k of target Q_k - V
    """
    tables = some_tables(world.ref)
    tau = 0.8
    gamma = 0.9
    found, _ = expected_pulls(world, tables, log, expectile=tau, gamma=gamma, cql_coef=0.0)
    passed = world.language.visits(world.pi)[..., None] * world.pi.softmax(2)
    gap = backups(world, tables.value, gamma) - tables.q
    yield compare_equal(
        NAME, "E[gradient of Q] = 2 visits mu (r + gamma V' - Q)", found.q, 2 * passed * gap
    )
    u = torch.minimum(*tables.target) - tables.value[..., None]
    side = torch.where(u > 0, tau, 1 - tau)
    pull = 2 * passed * side * u
    yield compare_equal(
        NAME, "E[gradient of V] = 2 visits E_mu[|tau - 1[u < 0]| u]", found.value, pull.sum(2)
    )


def backups(world: World, value: Tensor, gamma: float) -> Tensor:
    """[X, S, V] the reward of the completion that ends here, or gamma V of the next state."""
    completion = {y: n for n, y in enumerate(world.language.completions)}
    out = torch.zeros_like(world.logits)
    state = {prefix: s for s, prefix in enumerate(world.language.prefixes)}
    for prefix, s in state.items():
        for token in range(world.language.V):
            y = (*prefix, token)
            if y in completion:
                out[:, s, token] = world.reward[:, completion[y]]
            else:
                out[:, s, token] = gamma * value[:, state[y]]
    return out


def check_closed_form() -> Iterator[Finding]:
    """Right with probability p, one token: V = tau p / (tau p + (1 - tau) (1 - p))."""
    world = at_temperature_one(make_world(4, 1, X=2, seed=52, binary=True))
    log = world.language.logp(world.pi).exp()
    R = torch.zeros_like(world.logits)
    for n, (token,) in enumerate(world.language.completions):
        R[:, 0, token] = world.reward[:, n]
    q = torch.stack([R, R])
    p = (log * world.reward).sum(1, keepdim=True)
    for tau in (0.5, 0.7, 0.99):
        value = tau * p / (tau * p + (1 - tau) * (1 - p))
        found, _ = expected_pulls(world, Tables(q, q, value), log, expectile=tau, **QUIET)
        says = f"right or wrong: V rests at tau p / (tau p + (1-tau)(1-p)), tau {tau:g}"
        yield compare_equal(NAME, says, found.value, 0 * value)


def check_extraction(world: World, log: Tensor, mu: Tables) -> Iterator[Finding]:
    """The head that is saved gives pi exp(beta (Q - V)) / Z, whose reward is higher than pi's."""
    best = world.reward.amax(1)
    start = (log * world.reward).sum(1)
    several = some_tables(world.ref)
    advantage = several.q.mean(0) - several.value[..., None]
    wanted = world.logits.log_softmax(2) + 1.5 * advantage
    yield compare_equal(
        NAME,
        "the saved head is softmax(log pi + beta (Q - V))",
        decoded_logits(world.logits, several, 1.5).softmax(2),
        wanted.softmax(2),
    )
    for beta in (0.3, 1.0, 4.0):
        table = decoded_logits(world.logits, mu, beta)
        worth = value_of(world, table)
        left = float(((best - worth) / (best - start)).max())
        says = f"decode_beta {beta:g} with Q^mu: better than the log, on every prompt"
        yield Finding(NAME, says, "share of the gap left < 1", f"{left:.4f}", left, 1.0)


def value_of(world: World, logits_XSV: Tensor) -> Tensor:
    """[X] E[R] of every prompt under the policy of this table."""
    p_XN = world.language.logp(logits_XSV).exp()
    return (p_XN * world.reward).sum(1)


def logged_ends() -> Iterator[Finding]:
    """The expected update followed to its end, target networks included."""
    world, whole, part = make_logs()
    for name, log, tau, rounds in (
        ("a log of everything", whole, 0.5, 12),
        ("a log without the best", part, 0.7, 70),
    ):
        end = follow_log(world, log, tau, rounds)
        goal = fixed_point_of(world, log, tau)
        passed = world.language.visits(world.language.logits_of(log)) > 0
        says = "V^mu" if tau == 0.5 else f"the {tau:g} expectiles"
        yield compare_equal(
            NAME, f"{name}: followed to the end, V is {says}", end.value[passed], goal.value[passed]
        )
    yield from best_of_the_log(world, part)


def best_of_the_log(world: World, log: Tensor) -> Iterator[Finding]:
    """What V tends to as tau does to 1: the best that the log shows."""
    most = torch.where(log > 0, world.reward, -torch.inf).amax(1)
    width_X = world.reward.amax(1) - world.reward.amin(1)
    widest = float(width_X.max())
    spread = widest * world.language.H / float(log[log > 0].min())
    for tau in (0.9, 0.99, 0.9999):
        value = fixed_point_of(world, log, tau).value[:, 0]
        left = float((most - value).max())
        # tau p (best - v) <= (1 - tau) (best - worst) in every state
        limit = spread * (1 - tau) / tau
        says = f"tau {tau:g}: V of the prompt is near the best of the log"
        yield Finding(NAME, says, f"< {limit:.2g} below", f"{left:.2g}", left / limit, 1.0)
    sharp = fixed_point_of(world, log, 1 - 1e-9)
    yield compare_equal(
        NAME,
        "tau -> 1: V of the prompt is the best that the log shows",
        sharp.value[:, 0],
        most,
        limit=1e-6,
    )
    yield compare_different(
        NAME,
        "and not the best there is, which it does not show",
        sharp.value[:, 0],
        world.reward.amax(1),
    )
    table = decoded_logits(world.language.logits_of(log), sharp, 200.0)
    worth = value_of(world, table)
    yield compare_equal(
        NAME, "decoded with a large decode_beta: the best of the log", worth, most, limit=1e-3
    )


def decoded_logits(logits_XSV: Tensor, tables: Tables, beta: float) -> Tensor:
    """[X, S, V] the logits of the head that the library saves: weights are [V, X * S]."""
    heads = [q.flatten(0, 1).T for q in tables.q]
    saved = fold_q_into_head(logits_XSV.flatten(0, 1).T, heads, beta)
    return saved.T.unflatten(0, logits_XSV.shape[:2])


def follow_log(world: World, log: Tensor, tau: float, rounds: int) -> Tables:
    """Expected updates from heads of 0, with target networks as the loop leaves them.

    Each Q moves to its backup, each V along its gradient.
    """
    behaviour = world.language.logits_of(log)
    passed = world.language.visits(behaviour)[..., None] * behaviour.softmax(2)
    visits = passed.sum(2)
    zero = torch.zeros(2, *world.logits.shape)
    at = Tables(zero, zero, torch.zeros(world.logits.shape[:2]))
    for _ in range(rounds):
        found, target = expected_pulls(world, at, log, expectile=tau, target_update=1.0, **QUIET)
        q_step = found.q / (2 * passed)
        value_step = found.value / (2 * max(tau, 1 - tau) * visits)
        q = at.q + torch.where(passed > 0, q_step, 0.0)
        value = at.value + torch.where(visits > 0, value_step, 0.0)
        at = Tables(q, target, value)
    return at
