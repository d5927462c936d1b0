"""Hindsight on a real model: rare goals are learnt where a reward alone teaches little; what a
relabelled sample is; what is refused.
"""

import json

import pytest
from seeds import SEEDS
from test_train_resume import same
from toy import make_toy, toy_config

from laurel.core.errors import LaurelError, UsageError
from laurel.core.metrics import Sums, explain
from laurel.model.chat import encode_prompt
from laurel.train import loop
from laurel.train.loop import train
from laurel.train.relabel import RELABELLED, load_relabel, relabel_in_hindsight
from laurel.train.setup import prepare_session

HERE = __file__
MESSAGE = [{"role": "user", "content": "12="}]


def said(prompts, completions, **columns):
    """1 for saying the two digits that were asked for."""
    return [
        float(text[:2] == prompt[:2]) for prompt, text in zip(prompts, completions, strict=True)
    ]


def achieved(completions, **columns):
    """The instruction that these two digits answer; other completions answer none."""
    return [f"{text[:2]}=" if len(text) == 2 and text.isdigit() else None for text in completions]


def nothing(completions, **columns):
    return [None] * len(completions)


def one_too_few(completions, **columns):
    return ["1="] * (len(completions) - 1)


def numbers(completions, **columns):
    return [1.0] * len(completions)


def a_conversation(completions, **columns):
    """A completion of a conversation is a list of messages."""
    return [
        [{"role": "user", "content": "=" + (text if isinstance(text, str) else text[0]["content"])}]
        for text in completions
    ]


def half_too_long(completions, **columns):
    return ["1" * (40 if i % 2 else 3) for i in range(len(completions))]


def breaks(completions, **columns):
    raise ValueError("no idea")


def asks_for_more(completions, goal, **columns):
    return [None] * len(completions)


def awaited(answer, row):
    return None


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A hundred goals: two digits each, met by an untrained model about once in 170 samples."""
    folder = tmp_path_factory.mktemp("toy")
    found = make_toy(folder)
    (folder / "goals.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n:02d}="}) + "\n" for n in range(100))
    )
    (folder / "chats.jsonl").write_text(json.dumps({"prompt": MESSAGE}) + "\n")
    return {**found, "dataset": str(folder / "goals.jsonl")}


def config_of(toy, folder, relabel="achieved", **options):
    base = {
        "reward": None,
        "rewards": [f"{HERE}:said"],
        "max_completion_length": 2,
        "prompts_per_step": 8,
        "max_steps": 50,
    }
    return toy_config(
        toy, folder, **base | ({"relabel": f"{HERE}:{relabel}"} if relabel else {}) | options
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_rare_goals_are_learnt_where_a_reward_alone_teaches_little(seed, toy, tmp_path):
    """R12: the same samples, steps and rate: hindsight meets more than half of its goals, and three
    times those of leave-one-out.
    """
    met = {}
    for name, relabel in (("hindsight", "achieved"), ("rloo", None)):
        lines = train(
            name, config_of(toy, tmp_path / name, relabel, seed=seed), quiet=True
        ).metrics()
        met[name] = sum(line["reward"] for line in lines[-10:]) / 10
    assert met["hindsight"] > 0.5 and met["hindsight"] > 3 * met["rloo"], met


def groups_of(toy, folder, relabel, **options):
    """A run that is set up, and the groups of its first step as they were sampled and scored."""
    setup, state = prepare_session(
        "hindsight",
        config_of(toy, folder, relabel, prompts_per_step=3, num_generations=4, **options),
    )
    rows = loop.next_rows(setup, state, min(3, len(setup.rows)))
    return (
        setup,
        state,
        loop.rollout(setup.generator, rows, loop.Draw("t", 0, 0, 4, 2, 1.0)),
    )


def test_a_relabelled_sample(toy, tmp_path):
    """Its prompt is the achieved one, in the policy's ids; its own ids stay; its reward is 1; what
    achieved nothing has none.
    """
    setup, _, groups = groups_of(toy, tmp_path, "achieved")
    scored, sums = setup.score(groups), Sums()
    after = relabel_in_hindsight(setup, [], scored, sums)
    kept = 0
    for was, now in zip(scored, after, strict=True):
        assert now.results == was.results and now.row["prompt"] == was.row["prompt"]
        for i, (old, new) in enumerate(zip(was.samples, now.samples, strict=True)):
            assert (new.key, new.completion_ids, new.text) == (
                old.key,
                old.completion_ids,
                old.text,
            )
            if len(old.text) == 2 and old.text.isdigit():
                assert (
                    new.prompt_ids == encode_prompt(setup.policy.tokenizer, f"{old.text}=")
                    and now.rewards[i] == 1.0
                )
                assert now.row[RELABELLED][i] == f"{old.text}="
                kept += 1
            else:
                assert (
                    now.rewards[i] is None
                    and now.row[RELABELLED][i] is None
                    and new.prompt_ids == old.prompt_ids
                )
    assert 0 < kept < 12 and sums.means()["hindsight/relabelled"] == kept / 12
    own = sum(s.text[:2] == group.row["prompt"][:2] for group in scored for s in group.samples)
    assert sums.means()["hindsight/own"] == own / 12


def test_the_record_keeps_the_instruction_that_was_asked(toy, tmp_path):
    """Metrics hold the reward under the original instruction; lines show both prompts, the original
    score, and weight 1 or 0.
    """
    run = train("hindsight", config_of(toy, tmp_path, max_steps=2), quiet=True)
    line = run.metrics()[-1]
    lines = [x for x in run.samples() if x["step"] == 2]
    scores = [x["results"]["said"]["value"] for x in lines]
    assert line["reward"] == sum(scores) / len(scores) < line["hindsight/relabelled"]
    assert all(
        (x["relabelled"] is None) == (x["reward"] is None) == (x["weight"] == 0) for x in lines
    )
    assert any(x["relabelled"] not in (None, x["prompt"]) for x in lines)
    assert not {"ratio/mean", "sampler_gap/p99", "informative_fraction"} & line.keys()
    assert all(explain(name) for name in line.keys() - {"run", "step", "time"})


def test_conversations_stay_conversations(toy, tmp_path):
    """Through the chat template, as they were sampled; a text in their place is an error."""
    chats = {**toy, "dataset": toy["dataset"].replace("goals", "chats")}
    options = {"rewards": [f"{HERE}:numbers"]}
    setup, _, groups = groups_of(chats, tmp_path / "a", "a_conversation", **options)
    (after,) = relabel_in_hindsight(setup, [], setup.score(groups), Sums())
    for sample in after.samples:
        turn = [{"role": "user", "content": "=" + sample.text}]
        assert (
            sample.prompt_ids
            == encode_prompt(setup.policy.tokenizer, turn)
            != encode_prompt(setup.policy.tokenizer, MESSAGE)
        )
    setup, _, groups = groups_of(chats, tmp_path / "b", "half_too_long", **options)
    with pytest.raises(LaurelError, match="not a list of messages"):
        relabel_in_hindsight(setup, [], groups, Sums())


def test_prompts_that_do_not_fit_are_dropped_and_counted(toy, tmp_path):
    setup, _, groups = groups_of(toy, tmp_path, "half_too_long", max_prompt_length=20)
    sums = Sums()
    after = relabel_in_hindsight(setup, [], setup.score(groups), sums)
    assert [group.rewards for group in after] == [(1.0, None, 1.0, None)] * 3
    assert sums.means()["hindsight/too_long"] == sums.means()["hindsight/relabelled"] == 0.5


def test_where_nothing_was_achieved_nothing_moves(toy, tmp_path):
    setup, state = prepare_session(
        "hindsight", config_of(toy, tmp_path, "nothing", weight_decay=0.1)
    )
    before, sums = (
        {name: p.detach().clone() for name, p in setup.policy.trainable().items()},
        Sums(),
    )
    loop.step(setup, state, sums)
    assert (
        same(before, setup.policy.trainable())
        and sums.means()["zero_signal"] == 1
        and sums.means()["hindsight/relabelled"] == 0
    )


@pytest.mark.parametrize(
    ("relabel", "message"),
    [
        ("one_too_few", "returned 11 prompts for 12 completions"),
        ("numbers", "returned 1.0, not a text"),
        ("a_conversation", "not a text"),
        ("breaks", "ValueError: no idea"),
    ],
)
def test_answers_that_are_no_prompts_stop_the_run(relabel, message, toy, tmp_path):
    setup, _, groups = groups_of(toy, tmp_path, relabel)
    with pytest.raises(LaurelError, match=message):
        relabel_in_hindsight(setup, [], groups, Sums())


@pytest.mark.parametrize(
    ("relabel", "message"),
    [
        (None, "which instruction"),
        ("math", "is no function"),
        (f"{HERE}:no_such_function", "has no function"),
        ("no/such/file.py:achieved", "no file"),
        ("no_such_module.achieved", "does not load"),
        (f"{HERE}:asks_for_more", "asks for `goal`"),
        (f"{HERE}:awaited", "cannot relabel"),
    ],
)
def test_a_function_that_cannot_relabel_is_found_before_weights(relabel, message, toy, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(
            "hindsight",
            config_of(toy, tmp_path / "run", None).model_copy(update={"relabel": relabel}),
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_column_in_its_place_is_refused():
    with pytest.raises(UsageError, match="Rename it"):
        load_relabel(f"{HERE}:achieved", {RELABELLED})


@pytest.mark.parametrize(
    "option",
    [{"beta": 0.1}, {"dynamic_sampling": True}, {"overlong_buffer": 1}, {"env": "calculator"}],
)
def test_what_makes_no_sense_is_refused(option, toy, tmp_path):
    with pytest.raises(UsageError, match="does not apply to `hindsight`"):
        train("hindsight", config_of(toy, tmp_path, **option), quiet=True)
