"""Rows that are not trained: a step without any moves nothing, metrics cover them all, and no
controller takes them for zeros.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import make_toy, toy_config

from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums
from laurel.core.sample import Group
from laurel.objective.kl import kl_metrics
from laurel.rollout.pack import k1_of, pack
from laurel.train import checks, loop
from laurel.train.loop import train
from laurel.train.options import resolve
from laurel.train.session import State
from laurel.train.setup import prepare_session
from laurel.weight.control import next_beta

REWARDS = """
def sevens(completions, **columns):
    return [text.count("7") + len(text) / 10 for text in completions]

def fails(completions, **columns):
    raise ValueError("no")

def first(completions, **columns):
    return [1.0 if i == 0 else float("nan") for i in range(len(completions))]

def digit(completions, **columns):
    return [1.0 if "7" in text or "3" in text else 0.0 for text in completions]

def silent(completions, **columns):
    return [None] * len(completions)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "relabel.py").write_text(
        "def relabel(prompts, completions, **columns):\n    return [None for _ in completions]\n"
    )
    return make_toy(folder)


def options_of(toy, name, reward, **more):
    """What every algorithm of the policy takes here."""
    folder = Path(toy["dataset"]).parent
    options = {
        "prompts_per_step": 2,
        "max_steps": 1,
        "max_completion_length": 3,
        "num_generations": 2,
        "weight_decay": 0.1,
    }
    options |= {"rewards": [f"{folder}/rewards.py:{reward}"], "max_failed_fraction": 1.0}
    if name == "es":
        options |= {"population": 4, "sigma": 0.01, "num_generations": 1}
        del options["weight_decay"]
    if name == "gail":
        options = {
            key: value
            for key, value in options.items()
            if key not in ("rewards", "max_failed_fraction")
        }
    if name == "hindsight":
        options["relabel"] = f"{folder}/relabel.py:relabel"
    return options | more


def all_cut(monkeypatch):
    """Every completion runs into its limit."""
    real = loop.rollout

    def cut(policy, rows, draw):
        return [
            replace(g, samples=tuple(replace(s, finish="length") for s in g.samples))
            for g in real(policy, rows, draw)
        ]

    monkeypatch.setattr(loop, "rollout", cut)


def moved(setup, state):
    """One step: its metrics, and which parameters moved."""
    before = {name: p.detach().clone() for name, p in setup.trainable().items()}
    sums = Sums()
    loop.step(setup, state, sums)
    return sums.means(), [
        name for name, p in setup.trainable().items() if not torch.equal(before[name], p)
    ]


KL = {"beta": 0.1, "kl_placement": "loss"}
SILENT = [
    ("grpo", KL, "cut"),
    ("grpo", {}, "failed"),
    ("grpo", {**KL, "kl_estimator": "exact"}, "failed"),
    ("grpo", {"entropy_coef": 0.1}, "cut"),
    ("dapo", KL, "failed"),
    ("rloo", {"beta": 0.1}, "cut"),
    ("reinforce_pp", KL, "cut"),
    ("raft", KL, "failed"),
    ("ppo", {"kl_target": 1.0, "num_iterations": 2}, "cut"),
    ("ppo", {"critic": "shared"}, "failed"),
    ("ppo_max", {}, "failed"),
    ("ppo_max", {"critic_warmup_steps": 0}, "cut"),
    ("online_dpo", {}, "cut"),
    ("rrhf", {}, "failed"),
]


@pytest.mark.parametrize(("name", "more", "why"), SILENT)
def test_a_step_with_nothing_to_train_moves_nothing(name, more, why, toy, tmp_path, monkeypatch):
    """All completions cut and masked, or all rewards failed, wherever rows of weight 0 stay in the
    batch: no step, no NaN, said so.
    """
    masked = {"mask_truncated_completions": True} if why == "cut" else {}
    if why == "cut":
        all_cut(monkeypatch)
    options = options_of(
        toy, name, "sevens" if why == "cut" else "fails", max_resamples=1, **more, **masked
    )
    setup, state = prepare_session(name, toy_config(toy, tmp_path, reward=None, **options))
    beta = state.beta
    means, names = moved(setup, state)
    assert (
        not names and means["zero_signal"] == 1 and "loss" not in means and "grad_norm" not in means
    )
    assert all(value == value for value in means.values()), means
    assert 2 < means["entropy"] < 2.7 and means["ratio/mean"] == pytest.approx(
        1, abs=1e-5
    )  # measured all the same
    assert state.beta == beta and state.step == 1


def test_a_population_that_nobody_judged_stays(toy, tmp_path):
    setup, state = prepare_session(
        "es", toy_config(toy, tmp_path, reward=None, **options_of(toy, "es", "fails"))
    )
    means, names = moved(setup, state)
    assert not names and means["zero_signal"] == 1 and means["es/step_norm"] == 0


def test_a_pair_with_one_judged_member_is_left_out(toy, tmp_path, monkeypatch):
    """The step is that of the population without it, with the noise of the pairs that remain."""
    steps = []
    for broken in (None, 1):
        setup, state = prepare_session(
            "es",
            toy_config(toy, tmp_path / str(broken), reward=None, **options_of(toy, "es", "sevens")),
        )
        monkeypatch.setattr(
            "laurel.train.evolve.mean_rewards",
            lambda mine, broken=broken: (
                dict.fromkeys(mine, 1.0)
                | {
                    2: 2.0,
                    3: 1.0,
                    0: 5.0,
                    1: 5.0 if broken is None else float("nan"),
                }
            ),
        )
        before = [p.detach().clone() for p in setup.policy.trainable().values()]
        means, _ = moved(setup, state)
        steps.append(
            [
                p.detach() - old
                for p, old in zip(setup.policy.trainable().values(), before, strict=True)
            ]
        )
        assert means["es/step_norm"] > 0
    # whole: ranks 5, 5, 2, 1 -> the second pair differs by 1/3, over four; alone: by 1, over two
    for whole, alone in zip(*steps, strict=True):
        assert torch.allclose(6 * whole, alone, atol=1e-6)


def test_a_discriminator_learns_where_the_policy_has_nothing_to(toy, tmp_path, monkeypatch):
    all_cut(monkeypatch)
    options = options_of(toy, "gail", "", mask_truncated_completions=True)
    setup, state = prepare_session("gail", toy_config(toy, tmp_path, reward=None, **options))
    means, names = moved(setup, state)
    assert names and all(name.startswith("discriminator.") for name in names)
    assert (
        means["loss"] == pytest.approx(0.693147, abs=1e-5)
        and "zero_signal" not in means
        and 2 < means["entropy"] < 2.7
    )


LEFT = [
    ("grpo", KL),
    ("reinforce_pp", {}),
    ("ppo", {"kl_target": 1.0, "beta": 0.1}),
    ("ppo_max", {}),
    ("online_dpo", {}),
    ("rrhf", {}),
    ("es", {}),
    ("hindsight", {"entropy_coef": 0.1}),
]


@pytest.mark.parametrize(("name", "more"), LEFT)
def test_a_step_with_one_row_left(name, more, toy, tmp_path):
    """Rewards failed on all samples but one: numbers, whatever is whitened, compared or
    controlled.
    """
    setup, state = prepare_session(
        name, toy_config(toy, tmp_path, reward=None, **options_of(toy, name, "first", **more))
    )
    means, _ = moved(setup, state)
    assert all(value == value and abs(value) < 1e6 for value in means.values()), means
    assert all(bool(p.isfinite().all()) for p in setup.trainable().values())
    assert all(x == x for x in (state.beta, state.running_mean, *state.moments))


def test_no_opinion_after_opinions_is_a_step_of_nothing(toy, tmp_path):
    """Rewards that have judged before may abstain for a step; rewards that never judged are an
    error that names them.
    """
    setup, state = prepare_session(
        "grpo", toy_config(toy, tmp_path, reward=None, **options_of(toy, "grpo", "silent", **KL))
    )
    setup.scored = True
    means, names = moved(setup, state)
    assert means["zero_signal"] == 1 and not names
    setup.scored = False
    with pytest.raises(LaurelError, match=r"no reward judged any.*silent"):
        loop.step(setup, state, Sums())


def test_beta_follows_the_rows_that_count(toy, tmp_path):
    """A row that is masked, or that no reward judged, has no KL of 0: the mean is that of the
    others; without any, beta stays.
    """
    options = options_of(
        toy,
        "ppo",
        "sevens",
        kl_target=0.5,
        kl_horizon=20,
        num_generations=4,
        beta=0.1,
        mask_truncated_completions=True,
    )
    setup, state = prepare_session("ppo", toy_config(toy, tmp_path, reward=None, **options))
    groups = loop.collect(setup, state, Sums())
    finishes = itertools.cycle(("length", "eos", "length", "eos"))
    groups = [
        replace(g, samples=tuple(replace(s, finish=next(finishes)) for s in g.samples))
        for g in groups
    ]
    groups[0] = replace(groups[0], rewards=(None, None, *groups[0].rewards[2:]))
    batch = loop.with_reference(setup, pack(groups, mask_truncated=True))
    batch = batch.replace(logp_ref_NT=batch.logp_ref_NT - 0.4)  # every token's KL is .4
    counts_N = batch.loss_mask_NT.any(1)
    assert counts_N.tolist() == [False, False, False, True, False, True, False, True]
    k1 = float(k1_of(batch).sum(1)[counts_N].mean())
    assert k1 > 0.5 > float(k1_of(batch).sum(1).mean())  # with the masked rows as 0 beta would fall
    loop.adjust_rewards(setup, state, groups, batch, loop.reward_matrix(groups))
    assert (
        state.beta == pytest.approx(next_beta(0.1, k1, target=0.5, horizon=20, n=3))
        and state.beta > 0.1
    )
    nobody = State(beta=0.1)
    loop.adjust_rewards(
        setup,
        nobody,
        groups,
        batch.replace(loss_mask_NT=torch.zeros_like(batch.loss_mask_NT)),
        loop.reward_matrix(groups),
    )
    assert nobody.beta == 0.1


COVERED = (
    "entropy",
    "kl",
    "kl/sequence",
    "ratio/mean",
    "ratio/max",
    "approx_kl",
    "clip_ratio/region",
    "clip_ratio/high",
    "sampler_gap/mean",
)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_one_switch_changes_no_metric(name, toy, tmp_path):
    """beta 0 leaves rows out of the backward pass; beta 1e-12 does not, and trains alike. They log
    the same, in every pass.
    """
    lines = []
    for beta in (0.0, 1e-12):
        options = options_of(
            toy,
            name,
            "digit",
            num_generations=4,
            reference="start",
            prompts_per_step=6,
            learning_rate=1e-2,
        )
        options |= {
            "weight_decay": 0.0,
            "num_iterations": 3,
            "kl_placement": "loss",
            "beta": beta,
            "mask_truncated_completions": False,
        }
        options |= {"dynamic_sampling": False}
        lines.append(
            train(
                name, toy_config(toy, tmp_path / str(beta), reward=None, **options), quiet=True
            ).metrics()
        )
    assert (
        0 < lines[0][0]["informative_fraction"] < 1
    )  # there are rows without a weight, and rows with one
    for one, other in zip(*lines, strict=True):
        for metric in COVERED:
            assert (metric in one) == (metric in other), metric
            if metric in one:
                assert one[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-6), metric


@pytest.mark.parametrize(
    "more",
    [{}, {"mask_truncated_completions": True}, {"beta": 0.1, "mask_truncated_completions": True}],
)
def test_metrics_are_those_of_every_sample(more, toy, tmp_path):
    """Against one pass over every token that was sampled: rows without a weight, masked rows and
    rows that nobody judged are there.
    """
    options = options_of(
        toy, "grpo", "first" if not more else "digit", num_generations=4, reference="start", **more
    )
    setup, state = prepare_session("grpo", toy_config(toy, tmp_path, reward=None, **options))
    with torch.no_grad():  # away from the reference, so that KL has something to measure
        for n, p in enumerate(setup.policy.trainable().values()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
    groups = loop.collect(setup, state, Sums())
    batch, sums, state.step = loop.weigh(setup, state, groups, Sums()), Sums(), 1
    every = pack([Group(g.prompt, g.row, g.samples) for g in groups])
    assert int(every.loss_mask_NT.sum()) > int(batch.loss_mask_NT.sum()) or not more
    with torch.no_grad():
        stats = setup.policy.logp(every, entropy="value")
        every = every.replace(logp_ref_NT=setup.reference.logp(every))
    loop.update(setup, state, batch, sums)
    means, mask_NT = sums.means(), every.loss_mask_NT
    assert means["entropy"] == pytest.approx(float(stats.entropy[mask_NT].mean()), rel=1e-5)
    for name, (total, count) in kl_metrics(stats.logp, every).items():
        assert means[name] == pytest.approx(float(total / count), rel=1e-4)
    assert sums.sums["ratio/mean"][1] == int(mask_NT.sum())


def test_what_is_left_out_is_measured_where_metrics_are_written(toy, tmp_path, monkeypatch):
    """The pass over rows without a weight is made at logging steps only; a metric of some of the
    rows is not reported at all.
    """
    options = options_of(toy, "grpo", "first", max_steps=3, logging_steps=2, num_generations=4)
    setup, state = prepare_session("grpo", toy_config(toy, tmp_path, reward=None, **options))
    asked, real = [], type(setup.policy).logp
    monkeypatch.setattr(
        type(setup.policy),
        "logp",
        lambda self, batch, **how: (asked.append(len(batch)), real(self, batch, **how))[1],
    )
    found = []
    for _ in range(3):
        asked.clear()
        found.append(moved(setup, state)[0].keys())
        assert sum(asked) == (
            8 if state.step > 1 else 0
        )  # steps 2 (logged) and 3 (the last); one judged row has no weight
    assert "entropy" not in found[0] and {"entropy", "ratio/mean"} <= found[1] & found[2]


def test_margins_at_beta_0_are_0(toy, tmp_path):
    """beta 0 is not 1: the policy implies no reward. IPO's target would be infinite."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"{i}=", "chosen": "7777", "rejected": str(i)}) + "\n"
            for i in range(8)
        )
    )
    data = {"dataset": str(file), "eval_dataset": str(file), "eval_size": 4, "eval_steps": 1}
    for name, more in (("simpo", {}), ("orpo", {}), ("dpo", {"rpo_alpha": 1.0})):
        config = toy_config(
            {**toy, **data}, tmp_path / name, reward=None, max_steps=2, beta=0.0, **more
        )
        for line in train(name, config, quiet=True).metrics():
            for metric in (
                "rewards/margins",
                "rewards/chosen",
                "eval/rewards/margins",
                "eval/rewards/rejected",
            ):
                assert line[metric] == 0, (name, metric)
            assert line["rewards/accuracies"] == line["eval/rewards/accuracies"] == 0.5
    with pytest.raises(UsageError, match="infinite"):
        resolve("ipo", toy_config(toy, tmp_path, reward=None, beta=0.0))


def test_bounds_narrower_than_rounding_are_named(toy, tmp_path):
    """Before any training the ratio is 1; where rounding alone takes it out of the bounds, tokens
    would be silenced unseen.
    """
    for dtype, warned in (("float32", False), ("bfloat16", True)):
        config = toy_config(toy, tmp_path / dtype, dtype=dtype, max_steps=1, num_generations=2)
        setup, _ = prepare_session("gspo", config)
        said = []
        checks.show_and_check_start(setup, 0, type("", (), {"say": staticmethod(said.append)}))
        assert any("clipping silences" in line and "bfloat16" in line for line in said) == warned, (
            said
        )
