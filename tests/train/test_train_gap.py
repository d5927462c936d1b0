"""A generator that is not the trainer: what it samples is trained on as theory says, its gap is
measured, and one that is too far off stops the run.

The engines here are our own sampler over a copy of the policy that is spoilt: rounded to bfloat16,
or moved.
"""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from toy import make_toy, toy_config

from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums, explain
from laurel.core.sample import Message
from laurel.model.policy import Policy
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler
from laurel.train import loop, setup
from laurel.train.loop import train
from laurel.train.reference import drawn_logps
from laurel.train.session import State
from laurel.train.setup import prepare_session

HERE = __file__
RATIO = "sampling/importance_sampling_ratio"


def rounded(parameter, version):
    """The weights as bfloat16 holds them."""
    return parameter.bfloat16().float()


def moved(size, since=0):
    """The weights with noise of that size, from version `since` on."""

    def spoil(parameter, version):
        generator = torch.Generator().manual_seed(parameter.numel() + version)
        noise = torch.randn(parameter.shape, generator=generator)
        return parameter + size * noise * (version >= since)

    return spoil


class Engine:
    """A `Generator` over a copy of the policy: new weights come by `sync`, spoilt on the way."""

    exact = False

    def __init__(self, policy, spoil, precision):
        self.policy, self.spoil, self.precision = policy, spoil, precision
        self.copy = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.dtype)
        self.versions = []

    @property
    def tokenizer(self):
        return self.policy.tokenizer

    def close(self):
        """There are no connections."""

    @torch.no_grad()
    def sync(self, version):
        self.versions.append(version)
        theirs = dict(self.copy.model.named_parameters())
        for name, parameter in self.policy.model.named_parameters():
            theirs[name].copy_(self.spoil(parameter, version))

    def generate(self, prompts, draw):
        return Sampler(self.copy).generate(prompts, draw)


def sevens_asked(prompts, **columns):
    """The instruction that every sample achieved: 7, whatever it was given."""
    return ["7="] * len(prompts)


class Twice:
    """An environment that answers the first turn, with tokens that nobody sampled."""

    def reset(self, row):
        self.turn = 0
        return [Message(role="user", content=row["prompt"])]

    def step(self, text):
        self.turn += 1
        return [Message(role="user", content="1+1=")] if self.turn == 1 else None


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def engine(monkeypatch):
    """A function that puts an engine in the sampler's place, in the runs that follow."""

    def place(spoil=rounded, precision="bfloat16"):
        monkeypatch.setattr(setup, "Sampler", lambda policy: Engine(policy, spoil, precision))

    return place


def metrics_of(name, toy, folder, **options):
    return train(name, toy_config(toy, folder, **options), quiet=True).metrics()


def test_grpo_learns_from_a_bfloat16_engine_and_says_how_far_it_is(toy, tmp_path, engine, capsys):
    """The reward rises; the ratio starts at 1 all the same; TRL's names and ours agree; the file of
    samples has the engine's log-probabilities, which are those of the metric.
    """
    engine()
    config = toy_config(toy, tmp_path / "run", max_steps=25, num_generations=8)
    run = train("grpo", config, quiet=False)
    lines = run.metrics()
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.3
    assert lines[0]["sampler_gap/mean"] > 1e-5 and lines[0][f"{RATIO}/min"] < 1
    for line in lines:
        assert line["ratio/max"] == pytest.approx(1, abs=1e-4)
        assert 0 < line["sampler_gap/mean"] <= line["sampler_gap/max"] < 0.1
        assert 0 < line["sampler_gap/p99"] <= line["sampler_gap/max"]
        for end in ("mean", "max"):
            assert line[f"sampling/sampling_logp_difference/{end}"] == line[f"sampler_gap/{end}"]
        low, mean, high = (line[f"{RATIO}/{which}"] for which in ("min", "mean", "max"))
        assert 0.9 < low <= mean <= high < 1.1 and mean == pytest.approx(1, abs=0.02)
        assert line[f"{RATIO}/truncated"] == 0
        assert all(explain(name) for name in line if name.startswith("sampl"))
    said = capsys.readouterr().out
    assert "nats from the trainer's at the 99th percentile" in said
    assert "correction: token_truncate at 3" in said


def one_batch(name, toy, folder, spoil=None, precision="", **options):
    """A step's groups and its batch of weights, by an engine that is moved by .02."""
    config = toy_config(toy, folder, sampler_gap_limit=9.0, **options)
    session, state = prepare_session(name, config)
    session.generator = Engine(session.policy, spoil or moved(0.02), precision)
    sums = Sums()
    groups = loop.collect(session, state, sums)
    return session, groups, loop.weigh(session, state, groups, sums), sums.means()


def log_ratios(session, groups):
    """log pi - log mu of every drawn token, and which were drawn."""
    batch, policy = pack(groups), session.policy
    with torch.no_grad():
        own = drawn_logps(session, batch, policy, lambda micro: policy.logp(micro).logp)
    return torch.where(batch.drawn_NT, own - batch.logp_old_NT, 0.0), batch.drawn_NT


def test_weights_are_those_of_the_row_times_the_correction(toy, tmp_path):
    """rloo, cap 1.1: the row's own leave-one-out weights, times min(pi/mu, C), or times the row's
    ratio; and every share that is recorded is that of these numbers.
    """
    weights = {}
    for how in ("none", "token_truncate", "sequence_mask"):
        session, groups, batch, means = one_batch(
            "rloo",
            toy,
            tmp_path / how,
            importance_sampling_correction=how,
            importance_sampling_cap=1.1,
        )
        weights[how] = batch.weight_NT
        log_ratio_NT, drawn_NT = log_ratios(session, groups)
        session.run.close()
        gap = log_ratio_NT[drawn_NT].abs()
        assert means["sampler_gap/mean"] == pytest.approx(float(gap.mean()), rel=1e-4)
        assert torch.equal(batch.logp_old_NT[~drawn_NT], torch.zeros(int((~drawn_NT).sum())))
        sampled = [list(sample.logps) for group in groups for sample in group.samples]
        for own_T, theirs in zip(batch.logp_old_NT, sampled, strict=True):
            assert own_T[: len(theirs)].tolist() != theirs
        if how == "none":
            assert not any(name.startswith(RATIO) for name in means)
            continue
        ratio = log_ratio_NT.exp() if how == "token_truncate" else log_ratio_NT.sum(1, True).exp()
        beyond = ratio > 1.1
        wanted = torch.where(beyond, 1.1 if how == "token_truncate" else 0.0, ratio)
        wanted = wanted.expand_as(weights["none"])
        torch.testing.assert_close(weights[how], weights["none"] * wanted, rtol=1e-4, atol=1e-6)
        name, of = ("truncated", drawn_NT) if how == "token_truncate" else ("masked", slice(None))
        share = float(beyond[of].float().mean())
        assert 0.05 < share < 0.95 and means[f"{RATIO}/{name}"] == pytest.approx(share)
        assert means[f"{RATIO}/min"] == pytest.approx(float(wanted[drawn_NT].min()), rel=1e-4)


def test_masked_rows_stay_in_the_denominator(toy, tmp_path):
    """sequence_mask at a cap that masks: the unit counts every row, and the masked ones have no
    gradient.
    """
    options = {"importance_sampling_correction": "sequence_mask", "importance_sampling_cap": 1.05}
    session, groups, batch, means = one_batch("rloo", toy, tmp_path / "run", **options)
    learning = loop.with_signal(session, batch)
    assert int(session.terms[0].unit(batch).count) == sum(len(group.samples) for group in groups)
    assert means[f"{RATIO}/masked"] > 0 and len(learning) < len(batch)
    session.run.close()


EPISODES = {
    "env": f"{HERE}:Twice",
    "max_turns": 2,
    "max_completion_length": 8,
    "stop": ["1", "2", "3", "4"],
    "num_generations": 4,
}
OPTIONS = {
    "two passes": ("grpo", {"num_iterations": 2}),
    "resampled": ("dapo", {"num_generations": 4}),
    "turns": ("grpo", EPISODES),
    "micro-batches": ("grpo", {"token_budget": 16}),
    "critic": ("ppo", {"prompts_per_step": 8}),
    "likelihood": ("raft", {}),
    "kl in the reward": ("reinforce", {"beta": 0.1, "prompts_per_step": 8}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_kind_of_step_takes_an_engine(case, toy, tmp_path, engine):
    """The first pass has the ratio 1, whatever the samples are and however they are cut."""
    engine()
    name, options = OPTIONS[case]
    engines = []
    place = setup.Sampler
    setup.Sampler = lambda policy: engines.append(place(policy)) or engines[-1]
    lines = metrics_of(name, toy, tmp_path / "run", max_steps=2, learning_rate=1e-3, **options)
    for line in lines:
        assert line["sampler_gap/mean"] > 1e-5 and line[f"{RATIO}/mean"] == pytest.approx(
            1, abs=0.1
        )
        if (options.get("num_iterations") or 1) == 1 and name != "ppo":
            assert line["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert engines[0].versions[0] == 0 and set(engines[0].versions) == {0, 1}


def test_the_world_s_tokens_are_in_no_ratio(toy, tmp_path):
    """An episode of two turns: what the environment said has no log-probability of either."""
    session, groups, batch, means = one_batch(
        "rloo", toy, tmp_path / "run", importance_sampling_correction="sequence_mask", **EPISODES
    )
    log_ratio_NT, drawn_NT = log_ratios(session, groups)
    session.run.close()
    world = sum(not on for group in groups for one in group.samples for on in one.loss_mask)
    inside_N = torch.arange(drawn_NT.shape[1]) < batch.length_N[:, None]
    assert world > 0 and int((inside_N & ~drawn_NT).sum()) == world
    assert not batch.logp_old_NT[~drawn_NT].any() and not log_ratio_NT[~drawn_NT].any()
    kept = log_ratio_NT.sum(1).exp()
    mean = float(torch.where(kept <= 3.0, kept, 0.0).mean())
    assert means[f"{RATIO}/mean"] == pytest.approx(mean, rel=1e-4)


def test_micro_batches_change_no_weight(toy, tmp_path):
    """Rows of unequal length, 16 tokens at once or all together: joined by key, the same weights."""
    found = []
    for budget in (16, 4096):
        session, _, batch, _ = one_batch("grpo", toy, tmp_path / str(budget), token_budget=budget)
        session.run.close()
        found.append((batch.weight_NT, batch.logp_old_NT))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spoil, at", [(moved(0.02), "start-up check"), (moved(0.02, 2), "step 3")])
def test_a_float32_engine_with_other_weights_is_stopped(spoil, at, toy, tmp_path, engine):
    """At the start, or in the step that it drifts in: with everything saved, naming the limit."""
    engine(spoil, "float32")
    with pytest.raises(LaurelError, match=f"{at}.*engine's log-probabilities.*limit 0.01") as stop:
        train("grpo", toy_config(toy, tmp_path / "run", max_steps=5), quiet=True)
    assert "sampler_gap_limit" in str(stop.value)


def test_the_limit_is_the_user_s(toy, tmp_path, engine):
    """The same drift passes a limit that was raised, and a coarse engine has one of 1."""
    engine(moved(0.02, 2), "float32")
    lines = metrics_of("grpo", toy, tmp_path / "run", max_steps=4, sampler_gap_limit=5.0)
    assert lines[0]["sampler_gap/p99"] < 1e-4 < 0.01 < lines[2]["sampler_gap/p99"] < 5
    engine(moved(0.02), "bfloat16")
    assert metrics_of("grpo", toy, tmp_path / "coarse", max_steps=1)


def test_a_gap_near_the_limit_is_told_once(toy, tmp_path, engine, capsys):
    engine(lambda parameter, version: moved(0.02, 1)(parameter, min(version, 1)), "bfloat16")
    config = toy_config(
        toy, tmp_path / "run", max_steps=4, sampler_gap_limit=1.9, learning_rate=1e-4
    )
    lines = train("grpo", config, quiet=False).metrics()
    said = capsys.readouterr().out
    assert sum(0.95 < line["sampler_gap/p99"] < 1.9 for line in lines) > 1
    assert said.count("the run stops at 1.9") == 1


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_a_log_probability_that_is_no_number_stops_the_run(wrong, toy, tmp_path, monkeypatch):
    class Broken(Engine):
        def generate(self, prompts, draw):
            first, *rest = super().generate(prompts, draw)
            return [replace(first, logps=(wrong, *first.logps[1:])), *rest]

    monkeypatch.setattr(setup, "Sampler", lambda policy: Broken(policy, rounded, "bfloat16"))
    with pytest.raises(LaurelError, match=r"start-up check.*engine's log-probabilities"):
        train("grpo", toy_config(toy, tmp_path / "run", max_steps=1), quiet=True)


def test_in_this_process_nothing_is_computed_twice_unless_it_is_asked_for(toy, tmp_path):
    """auto: no new metric. Asked for: the weights are 1 up to rounding, and the steps the same."""
    plain = metrics_of("grpo", toy, tmp_path / "plain", max_steps=3)
    asked = metrics_of(
        "grpo",
        toy,
        tmp_path / "asked",
        max_steps=3,
        importance_sampling_correction="token_truncate",
    )
    assert not any(name.startswith("sampling/") for line in plain for name in line)
    for one, other in zip(plain, asked, strict=True):
        assert other[f"{RATIO}/mean"] == pytest.approx(1, abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert other["reward"] == one["reward"]


@pytest.mark.parametrize("name", ["online_dpo", "rrhf"])
def test_answers_that_are_compared_may_only_be_left_out(name, toy, tmp_path):
    """No weight of a token; nothing by default; a mask takes answers out of the comparison."""
    with pytest.raises(UsageError, match="compares whole answers"):
        prepare_session(
            name,
            toy_config(toy, tmp_path / "no", importance_sampling_correction="token_truncate"),
        )
    session, _, batch, means = one_batch(name, toy, tmp_path / "auto", num_generations=4)
    session.run.close()
    assert session.correction == "none" and means["sampler_gap/mean"] > 0
    masked, groups, batch, means = one_batch(
        name,
        toy,
        tmp_path / "mask",
        num_generations=4,
        importance_sampling_correction="sequence_mask",
        importance_sampling_cap=1.05,
    )
    log_ratio_NT, _ = log_ratios(masked, groups)
    masked.run.close()
    outside_N = log_ratio_NT.sum(1).exp() > 1.05
    assert means[f"{RATIO}/masked"] == pytest.approx(float(outside_N.float().mean()))
    assert outside_N.any() and not batch.comparison.grade_N[outside_N].any()
    assert batch.comparison.grade_N[~outside_N].any()


def test_hindsight_has_no_ratio_to_its_sampler(toy, tmp_path, engine):
    """What it trains on is under another prompt: the correction is refused; the gap is measured
    under the prompt that was sampled, at the start and in every step.
    """
    options = {"relabel": f"{HERE}:sevens_asked", "max_steps": 3}
    with pytest.raises(UsageError, match="does not apply to `hindsight`"):
        config = toy_config(toy, tmp_path / "a", importance_sampling_correction="none", **options)
        prepare_session("hindsight", config)
    for spoil, at in ((moved(0.02), "start-up check"), (moved(0.02, 1), "step 2")):
        engine(spoil, "float32")
        with pytest.raises(LaurelError, match=f"{at}.*engine's log-probabilities"):
            train("hindsight", toy_config(toy, tmp_path / at, **options), quiet=True)
    engine(moved(0.0), "float32")
    lines = metrics_of("hindsight", toy, tmp_path / "c", **options)
    assert all(0 < line["sampler_gap/mean"] < line["sampler_gap/max"] < 1e-4 for line in lines)
    assert not any(name.startswith(RATIO) for line in lines for name in line)


def test_the_file_of_samples_has_the_engine_s_numbers(toy, tmp_path, engine):
    """samples.jsonl against a step made again: ids and the engine's log-probabilities."""
    engine()
    run = train("grpo", toy_config(toy, tmp_path / "run", max_steps=1), quiet=True)
    written = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    session, state = prepare_session("grpo", toy_config(toy, tmp_path / "again", max_steps=1))
    groups = loop.collect(session, State(), Sums())
    session.run.close()
    samples = [sample for group in groups for sample in group.samples]
    assert [tuple(line["ids"]) for line in written] == [one.completion_ids for one in samples]
    for line, one in zip(written, samples, strict=True):
        assert line["logps"] == pytest.approx(list(one.logps), abs=1e-6)
    assert state.step == 0
