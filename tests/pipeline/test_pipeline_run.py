"""Pipelines: all stages on a toy, found again, killed anywhere, changed, and told wrongly."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import begin

from laurel.cli.main import main
from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import read_json
from laurel.core.sample import Group, Key, Message, Sample
from laurel.judge.judge import Judge, Pair
from laurel.judge.options import read_judge
from laurel.measure.best_of_n import best_of_n
from laurel.model.scratch import save_scratch
from laurel.pipeline.compare import commonest, fell_back, over_training, win_rate
from laurel.pipeline.plan import Preferring, read_plan
from laurel.pipeline.run import judge_source, pipeline
from laurel.pipeline.stages import by_judge, prefer
from laurel.pipeline.store import make
from laurel.reward.mixture import load_rewards

TOY = Path(__file__).parent.parent / "train" / "toy.py"
STAGES = ("prompts", "sft", "sample", "prefer", "reward", "policy", "compare")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small model, sixty prompts, demonstrations that say a seven now and then, and a judge who
    likes the first place.
    """
    folder = tmp_path_factory.mktemp("plan")
    save_scratch(
        folder / "model",
        alphabet="0123456789+=",
        seed=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    write(folder / "prompts.jsonl", [{"prompt": f"{i}="} for i in range(60)])
    write(
        folder / "shown.jsonl",
        [{"prompt": f"{i}+=", "completion": f"{7 * i % 10}{i % 10}7{i // 10}"} for i in range(40)],
    )
    (folder / "judge.py").write_text(
        "def sevens(prompts, first, second, **columns):\n    return [max(0.0, min(1.0, 0.6 +"
        " (a.count('7') - b.count('7')) / 10)) for a, b in zip(first, second)]\ndef broken(prompts,"
        " first, second, **columns):\n    raise KeyError('x')\ndef short(prompts, first, second,"
        " **columns):\n    return [0.5]\n"
    )
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan_file(files, **changes):
    """A plan of few steps, as a file; the paths in it are meant beside it."""
    values = {
        "model": "./model",
        "dataset": "prompts.jsonl",
        "gold": f"{TOY}:sevens",
        "eval_size": 12,
        "sft": {
            "dataset": "shown.jsonl",
            "max_steps": 6,
            "prompts_per_step": 8,
            "learning_rate": 1e-3,
        },
        "sample": {"num_generations": 4, "max_completion_length": 4},
        "prefer": {"error_rate": 0.1},
        "reward": {"max_steps": 12, "prompts_per_step": 16, "learning_rate": 5e-3},
        "policy": {
            "algorithm": "ppo",
            "max_steps": 10,
            "prompts_per_step": 8,
            "num_generations": 4,
            "max_completion_length": 4,
            "learning_rate": 5e-3,
            "critic_model": "reward",
            "missing_eos_penalty": 0.0,
        },
        "compare": {"num_generations": 4, "best_of": [1, 2, 4]},
    }
    path = files / "plan.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def digests(root):
    """stage -> digest of its artefact; several of a stage in the order of their keys."""
    marks = [read_json(path) for path in sorted(Path(root).glob("*/artefact.json"))]
    return sorted((mark["stage"], mark["digest"]) for mark in marks)


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """The plan carried out once: its folder, its summary, and the digests of what was made."""
    folder = tmp_path_factory.mktemp("done")
    summary = pipeline(read_plan(plan_file(files), {"output_dir": str(folder)}), quiet=True)
    return folder, summary, digests(folder)


def test_a_plan_ends_with_a_better_policy_a_page_and_a_summary(done):
    folder, summary, _ = done
    assert summary == json.loads((folder / "summary.json").read_text())
    assert [name.rpartition("-")[0] for name in summary["stages"]] == list(STAGES) and set(
        summary["stages"].values()
    ) == {"made"}
    gain = summary["figures"]["sevens, gain"]
    assert gain["low"] > 0 and summary["figures"]["KL to the start, nats per answer"]["value"] > 0
    page = (folder / "report.html").read_text()
    assert (
        "the hidden judge (sevens) against KL" in page
        and "best of n from the start" in page
        and "ppo, over training" in page
    )
    assert (
        "made from" in page
        and "shown.jsonl" not in page
        and "prompts.jsonl" in page
        and str(folder / "plan.yaml") in page
    )
    assert re.search(r"reward model reward-\w+, held out</td><td>accuracy +0?\.\d", page)
    policy = next(folder.glob("policy-*"))
    config = yaml.safe_load((policy / "config.yaml").read_text())
    assert config["reward_weights"] == [1.0, 0.0]  # the hidden judge watches, and weighs nothing
    lines = [json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()]
    assert all(line["reward"] == pytest.approx(line["rewards/model/mean"]) for line in lines)


def test_a_second_run_repeats_nothing_and_a_change_repeats_what_depends_on_it(files, done):
    folder, first, _ = done
    again = pipeline(read_plan(plan_file(files), {"output_dir": str(folder)}), quiet=True)
    assert set(again["stages"].values()) == {"kept"} and again["figures"] == first["figures"]
    other = pipeline(
        read_plan(plan_file(files), {"output_dir": str(folder)}, ["policy.learning_rate=1e-3"]),
        quiet=True,
    )
    assert (
        list(other["stages"].values()) == ["kept"] * 5 + ["made"] * 2
        and len(list(folder.glob("policy-*"))) == 2
    )


def test_the_command_of_the_page_finds_everything_again(done):
    """plan.yaml beside the page is the whole plan as it was carried out, changes of the command
    line and all.
    """
    last = json.loads((done[0] / "summary.json").read_text())
    again = pipeline(read_plan(done[0] / "plan.yaml"), quiet=True)
    assert set(again["stages"].values()) == {"kept"} and again["figures"] == last["figures"]


def test_one_answer_for_everybody_is_seen():
    """Three prompts of two answers: "ab" is 3 of 6, shared by all prompts; every prompt's answers
    differ, and no group looks dull.
    """
    assert commonest(groups_of(["ab", "c"], ["ab", "d"], ["e", "ab"])) == [0.5, 0.5, 0.5]
    assert commonest(groups_of(["a", "a"], ["b", "c"])) == [1.0, 0.0]


def test_a_changed_file_of_an_artefact_is_made_again(files, done, tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        (folder / "a.txt").write_text("a")
        return ["a.txt"]

    assert make(tmp_path, "one", {}, build).made and not make(tmp_path, "one", {}, build).made
    (built[0] / "a.txt").write_text("b")
    assert make(tmp_path, "one", {}, build).made and (built[0] / "a.txt").read_text() == "a"
    assert make(tmp_path, "one", {"seed": 1}, build).folder != built[0]


def test_killed_in_every_stage_the_artefacts_are_the_same_to_the_bit(files, done, tmp_path):
    """kill -9 as soon as a stage has begun (has written its first metrics, where it trains), stage
    after stage; then to the end.
    """
    words = ["pipeline", str(plan_file(files)), "--output_dir", str(tmp_path / "cut")]
    words += [
        "--set",
        "reward.save_steps=2",
        "--set",
        "policy.save_steps=2",
        "--set",
        "sft.save_steps=2",
    ]
    killed = []
    for stage in ("sft", "sample", "reward", "policy", "compare"):
        sign = f"{stage}-*/metrics.jsonl" if stage in ("sft", "reward", "policy") else f"{stage}-*"
        process = begin(command, words, log=tmp_path / "log")
        deadline = time.monotonic() + 120
        while (
            not list((tmp_path / "cut").glob(sign))
            and process.is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        if process.is_alive() and not list((tmp_path / "cut").glob(f"{stage}-*/artefact.json")):
            killed.append(stage)
        process.kill()
        process.join()
    assert len(killed) >= 4, f"only {killed} were cut short"
    process = begin(command, words, log=tmp_path / "log")
    process.join(240)
    assert process.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    assert digests(tmp_path / "cut") == done[2]


def command(words):
    """`laurel` with these words, as a process."""
    sys.exit(main(words))


def test_an_ensemble_a_judge_and_an_export(files, tmp_path):
    reward = {
        "members": 2,
        "combine": "min",
        "max_steps": 3,
        "prompts_per_step": 8,
        "learning_rate": 1e-3,
    }
    judged = plan_file(
        files, sft=None, reward=reward, prefer={"judge": "judge.py:sevens", "pairs_per_prompt": 2}
    )
    short = ["policy.max_steps=2"]
    summary = pipeline(read_plan(judged, {"output_dir": str(tmp_path)}, short), quiet=True)
    assert [name.rpartition("-")[0] for name in summary["stages"]].count("reward") == 2
    assert "model_min, gain" in summary["figures"]
    pairs = next(tmp_path.glob("prefer-*")) / "pairs.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert all(
        row["chosen"].count("7") > row["rejected"].count("7") and 0 < row["weight"] <= 1
        for row in rows
    )
    exported = plan_file(
        files,
        sft=None,
        prefer={"export": str(pairs)},
        reward={"max_steps": 2, "prompts_per_step": 8},
    )
    summary = pipeline(
        read_plan(exported, {"output_dir": str(tmp_path / "export")}, short), quiet=True
    )
    assert [name.rpartition("-")[0] for name in summary["stages"]] == [
        "prompts",
        "reward",
        "policy",
        "compare",
    ]


def test_a_language_model_judges(files, tmp_path):
    """`prefer.judge: judge.yaml`: a folder, served for the time of the stage and asked in both
    orders; its mean chance is the soft label, and its prompt is part of what the stage is made of.
    """
    (files / "asks.yaml").write_text(
        "name: sevens\nversion: 1\nuser: '{first}+{second}'\nanswer_prefix: '='\nfence: false\n"
        "labels: {'1': a, '2': b}\n"
    )
    (files / "judge.yaml").write_text(
        "model: ./model\napi: completions\nprompt: asks.yaml\nlabel: logprobs\nleast_mass: 0\n"
    )
    path = plan_file(
        files,
        sft=None,
        prefer={"judge": "judge.yaml", "pairs_per_prompt": 2},
        reward={"max_steps": 2, "prompts_per_step": 8},
    )
    plan = read_plan(path, {"output_dir": str(tmp_path)}, ["policy.max_steps=2"])
    pipeline(plan, quiet=True)
    made = next(tmp_path.glob("prefer-*"))
    rows = [json.loads(line) for line in (made / "pairs.jsonl").read_text().splitlines()]
    facts = read_json(made / "facts.json")
    assert len(rows) == facts["pairs"] > 20 and facts["unjudged"] == 0
    pairs = [Pair("x", row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    with Judge(read_judge(files / "judge.yaml"), cache=made / "answers.sqlite") as judge:
        again = judge.compare(pairs)
        # every pair was judged, in both orders, and is asked for no second time
        assert judge.members[0].child is None
    flipped = 0
    for row, judged in zip(rows, again, strict=True):
        likely = judged.soft_label
        flipped += likely < 0.5
        assert row["soft_label"] == pytest.approx(max(likely, 1 - likely), abs=1e-6)
    assert flipped == facts["flipped"]
    before = judge_source(str(files / "judge.yaml"))
    (files / "asks.yaml").write_text(
        (files / "asks.yaml").read_text().replace("{first}+{second}", "{first}={second}")
    )
    assert judge_source(str(files / "judge.yaml")) != before
    with pytest.raises(UsageError, match="temprature"):
        (files / "judge.yaml").write_text("model: ./model\ntemprature: 1\n")
        pipeline(read_plan(path, {"output_dir": str(tmp_path / "no")}), quiet=True)
    assert not (tmp_path / "no").exists()


def test_one_prompt_kept_two_answers_and_conversations(files, tmp_path):
    """The smallest comparison there can be, of answers to conversations: preferences are
    conversations then, too.
    """
    write(
        files / "talk.jsonl",
        [{"prompt": [{"role": "user", "content": f"{i}="}]} for i in range(12)],
    )
    plan = plan_file(
        files,
        dataset="talk.jsonl",
        gold=f"{files}/gold.py:sevens",
        eval_size=1,
        sft=None,
        sample={"num_generations": 2, "max_completion_length": 4},
        compare={"num_generations": 2, "best_of": [2]},
    )
    (files / "gold.py").write_text(
        "def sevens(completions, **columns):\n    return [len(set(c[0]['content'])) for c in"
        " completions]\n"
    )
    summary = pipeline(
        read_plan(
            plan, {"output_dir": str(tmp_path)}, ["reward.max_steps=2", "policy.max_steps=2"]
        ),
        quiet=True,
    )
    assert summary["figures"]["sevens, gain"]["n"] == 1
    rows = [
        json.loads(line)
        for line in (next(tmp_path.glob("prefer-*")) / "pairs.jsonl").read_text().splitlines()
    ]
    assert all(
        row[side][0]["role"] == "assistant" for row in rows for side in ("chosen", "rejected")
    )


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "grpo"])
def test_other_ways_to_the_policy(algorithm, files, tmp_path):
    policy = {"algorithm": algorithm, "max_steps": 3, "prompts_per_step": 8, "learning_rate": 1e-3}
    if algorithm == "grpo":
        policy |= {"num_generations": 4, "max_completion_length": 4}
    summary = pipeline(
        read_plan(
            plan_file(files, policy=policy), {"output_dir": str(tmp_path)}, ["reward.max_steps=3"]
        ),
        quiet=True,
    )
    assert ("model, gain" in summary["figures"]) == (algorithm == "grpo")
    assert any(name.startswith("reward-") for name in summary["stages"]) == (algorithm == "grpo")


def groups_of(*answers):
    """One group per list of answers."""
    made = []
    for number, texts in enumerate(answers):
        keys = [Key("t", "t", str(number), g, 0) for g in range(len(texts))]
        said = [(text, (Message(role="assistant", content=text),)) for text in texts]
        samples = tuple(
            Sample(key, (1,), (2,), (0.0,), (True,), 1.0, "eos", *one)
            for key, one in zip(keys, said, strict=True)
        )
        made.append(Group(str(number), {"prompt": f"{number}="}, samples))
    return made


def test_labels_follow_the_gold_reward_and_the_error_rate(files, tmp_path):
    """1000 prompts with answers of two sevens, one and one: 2 pairs and a tie each; every tenth
    label is wrong, up to chance.
    """
    mixture = load_rewards([f"{TOY}:sevens"], None, [{"prompt": "0="}])
    groups = groups_of(*[["77", "17", "71"]] * 1000)
    prefer(tmp_path, groups, Preferring(error_rate=0.1), mixture, 0)
    facts = read_json(tmp_path / "facts.json")
    assert (
        facts["pairs"] == 2000
        and facts["ties"] == 1000
        and abs(facts["flipped"] - 200) < 4 * (2000 * 0.09) ** 0.5
    )
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert sum(row["chosen"] != "77" for row in rows) == facts["flipped"]
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert len(labels) == 4000 and sum(row["label"] for row in labels) == 2000
    with pytest.raises(UsageError, match="ties"):
        prefer(tmp_path, groups_of(["7", "7"]), Preferring(), mixture, 0)


def test_a_liking_for_the_first_place_cancels(files):
    """The judge says .6 of two equal answers, and so .4 of them turned round: .5, a tie."""
    compare = by_judge(f"{files}/judge.py:sevens")
    assert compare(groups_of(["17", "71", "77"])[0], [(0, 1), (2, 0), (0, 2)]) == pytest.approx(
        [0.5, 0.6, 0.4]
    )
    with pytest.raises(UsageError, match="chances between 0 and 1"):
        by_judge(f"{files}/judge.py:short")(groups_of(["1", "2"])[0], [(0, 1)])
    with pytest.raises(LaurelError, match=r"broken.*prompt 0.*KeyError"):
        by_judge(f"{files}/judge.py:broken")(groups_of(["1", "2"])[0], [(0, 1)])
    with pytest.raises(UsageError, match="no function `nobody`"):
        by_judge(f"{files}/judge.py:nobody")


@pytest.mark.parametrize(
    "changes, assignments, words",
    [
        ({"polcy": {}}, [], "polcy"),
        ({"policy": {"algorithm": "ppo", "lerning_rate": 1}}, [], "learning_rate"),
        ({"policy": {"algorithm": "pop"}}, [], "pop"),
        ({"policy": {"algorithm": "dpo", "num_generations": 4}}, [], "does not apply"),
        ({"policy": {"algorithm": "prm"}}, [], "learns from other data"),
        ({"policy": {"model": "x"}}, [], "filled in"),
        ({"sft": {"max_steps": 3}}, [], "no data"),
        ({"compare": {"num_generations": 2, "best_of": [4]}}, [], "best of n"),
        ({"sample": {"num_generations": 1}}, [], "num_generations"),
        ({"prefer": {"error_rate": 0.7}}, [], "error_rate"),
        ({"prefer": {"judge": "judge.py:sevens", "export": "pairs.jsonl"}}, [], "Name one"),
        ({"gold": "nowhere.py:f"}, [], "nowhere.py"),
        ({}, ["policy.lerning_rate=1"], "learning_rate"),
        ({}, ["policy"], "no assignment"),
        ({}, ["polcy.seed=1"], "policy"),
        ({"dataset": "shown.jsonl", "gold": None}, [], "task"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_folder(changes, assignments, words, files, tmp_path):
    with pytest.raises(UsageError, match=words):
        pipeline(
            read_plan(
                plan_file(files, **changes), {"output_dir": str(tmp_path / "out")}, assignments
            ),
            quiet=True,
        )
    assert not (tmp_path / "out").exists()


def test_best_of_n_by_hand():
    assert best_of_n([1, 2, 3], [5, 0, 6], 2) == pytest.approx(
        4.0
    )  # pairs: 12 -> 0, 13 -> 6, 23 -> 6
    assert (
        best_of_n([1, 2, 3], [5, 0, 6], 1) == pytest.approx(11 / 3)
        and best_of_n([1, 2, 3], [5, 0, 6], 3) == 6
    )
    assert best_of_n([1, 1, 1], [5, 0, 6], 2) == pytest.approx(11 / 3)  # ties: a coin
    for wrong in ((0, [1]), (3, [1, 2])):
        with pytest.raises(ValueError):
            best_of_n(wrong[1], wrong[1], wrong[0])


def test_win_rate_and_blocks_by_hand():
    assert win_rate((1, 2), (1, 0)) == 0.875 and win_rate((3,), (1, 2)) == 1
    lines = [{"kl/sequence": float(i), "rewards/r/mean": 2.0 * i} for i in range(24)]
    points = over_training([{"step": 0}, *lines], "r")
    assert len(points) == 12 and points[0][:2] == (0.5, 1.0) and points[0][2] < 1 < points[0][3]


def test_a_hidden_judge_that_falls_back_is_told_and_noise_is_not():
    up, top, near, down = (
        (1.0, 0.4, 0.35, 0.45),
        (3.0, 0.65, 0.6, 0.7),
        (5.0, 0.62, 0.57, 0.67),
        (8.0, 0.55, 0.5, 0.59),
    )
    assert fell_back([up, top, down]) == (top, down)
    assert (
        fell_back([up, top, near]) is None
        and fell_back([up, down, top]) is None
        and fell_back([top]) is None
    )
