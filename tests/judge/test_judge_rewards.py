"""A judge as the reward of a training run while a fifth of its questions fails: no zero appears."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from judge_server import SAID, Scripted, expected, quality, shown_texts, status

from laurel.cli.main import main
from laurel.core.result import Failed, Score
from laurel.reward.judged import parse
from laurel.train import loop

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from toy import make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A tiny character model and prompts."""
    return make_toy(tmp_path_factory.mktemp("toy"))


def fails(share):
    """A fault of this share of the questions: half of them get an error, half prose."""

    def fault(body, digest, count):
        place = int(digest[:8], 16) / 2**32
        if place < share / 2:
            return status(500)
        return SAID["prose"] if place < share else None

    return fault


class Failing(Scripted):
    """Which texts were in questions that failed."""

    def __init__(self, fault):
        self.failed = set()

        def noted(body, digest, count):
            chosen = fault(body, digest, count)
            texts = shown_texts(body)
            said = tuple(texts[name] for name in ("first", "second", "response") if name in texts)
            if chosen is not None:
                self.failed.add((texts["prompt"], *said))
            return chosen

        super().__init__(noted)


@pytest.fixture
def failing(hasty):
    with Failing(fails(0.2)) as found:
        yield found


def judge_file(folder, url, **more):
    path = folder / "judge.yaml"
    options = {"model": "m", "url": url, "retries": 0, "timeout": 10, **more}
    path.write_text(yaml.safe_dump(options))
    return path


def trained(algorithm, toy, folder, judge, **more):
    """A run by the command; its exit code, and its samples."""
    options = {
        "prompts_per_step": 4,
        "max_steps": 4,
        "max_completion_length": 3,
        "output_dir": folder / "run",
        "rewards": f"judge:{judge}",
        "num_generations": 4,
        **toy,
        **more,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = main(["train", algorithm, *words])
    path = folder / "run" / "samples.jsonl"
    return code, [json.loads(line) for line in path.open()] if path.exists() else []


def test_scores_with_a_fifth_of_failures(toy, tmp_path, failing):
    """Each reward is a score of the judge's, or none: nothing becomes a zero."""
    judge = judge_file(tmp_path, failing.url, form="score", concurrency=4)
    code, rows = trained("grpo", toy, tmp_path, judge)
    assert code == 0 and len(rows) == 64
    failed = 0
    for row in rows:
        (result,) = row["results"].values()
        text = row["completion"]
        if (row["prompt"], text) in failing.failed:
            failed += 1
            assert row["reward"] is None and "failed" in json.dumps(result)
        else:
            assert row["reward"] == quality(text) + 1
    assert 0 < failed < len(rows) / 2
    assert all(row["reward"] != 0 for row in rows)


@pytest.mark.parametrize("form", ["score", "pair"])
def test_too_many_failures_end_the_run(toy, tmp_path, failing, capsys, form):
    """max_failed_fraction .1, and a fifth fails."""
    judge = judge_file(tmp_path, failing.url, form=form)
    code, _ = trained("grpo", toy, tmp_path, judge, max_failed_fraction=0.1)
    said = capsys.readouterr().err
    assert code == 1
    assert "could not be scored (at most 10% may fail)" in said and "judge" in said
    assert "it names none of" in said or "HTTP 500" in said


def pair_chance(failing, prompt, first, second):
    """P(first better), or None where a question about the two failed."""
    for both in ((first, second), (second, first)):
        if (prompt, *both) in failing.failed:
            return None
    return expected(first, second)[1]


def by_hand(failing, rows):
    """The rewards of one group: the mean over the others; None where any comparison failed."""
    found = []
    for mine in rows:
        chances = [
            pair_chance(failing, mine["prompt"], mine["completion"], other["completion"])
            for other in rows
            if other is not mine
        ]
        found.append(None if None in chances else sum(chances) / len(chances))
    return found


def test_pairs_with_failures(toy, tmp_path, hasty):
    """The reward is the mean chance against the other answers; one failed comparison fails both."""
    # a sample is in six questions
    with Failing(fails(0.08)) as failing:
        judge = judge_file(tmp_path, failing.url, label="logprobs")
        code, rows = trained("grpo", toy, tmp_path, judge, max_failed_fraction=0.9)
    assert code == 0
    groups = {}
    for row in rows:
        groups.setdefault((row["step"], row["prompt_id"]), []).append(row)
    assert all(len(group) == 4 for group in groups.values())
    rewards = []
    for group in groups.values():
        want = by_hand(failing, group)
        rewards += want
        for row, reward in zip(group, want, strict=True):
            assert (row["reward"] is None) == (reward is None)
            assert reward is None or row["reward"] == pytest.approx(reward, abs=1e-6)
        known = [reward for reward in want if reward is not None]
        assert len(known) < 4 or sum(known) == pytest.approx(2)
    assert None in rewards and 0.0 not in rewards
    assert len({reward for reward in rewards if reward is not None}) > 3


def test_soft_labels_reach_the_loss_of_online_dpo(toy, tmp_path, hasty, monkeypatch):
    """Of two answers the label that the loss is given is the judge's own P(chosen better)."""
    seen = []
    real = loop.sampled_comparisons

    def watched(grade_PG, chance_PG=None):
        found = real(grade_PG, chance_PG)
        seen.append((grade_PG, chance_PG, found))
        return found

    monkeypatch.setattr(loop, "sampled_comparisons", watched)
    with Failing(lambda *_: None) as failing:
        judge = judge_file(tmp_path, failing.url, label="logprobs")
        code, rows = trained("online_dpo", toy, tmp_path, judge, num_generations=2)
    assert code == 0 and len(seen) == 4
    flips = []
    for step, (grade_PG, chance_PG, found) in enumerate(seen):
        mine = [row for row in rows if row["step"] == step + min(row["step"] for row in rows)]
        for i, prompt in enumerate(dict.fromkeys(row["prompt_id"] for row in mine)):
            one, two = [row for row in mine if row["prompt_id"] == prompt]
            chance = expected(one["completion"], two["completion"])[1]
            assert chance_PG[i].tolist() == pytest.approx([chance, 1 - chance])
            grades, flip = grade_PG[i].tolist(), found.flip_N.view(-1, 2)[i].tolist()
            if grades == [0, 0]:
                assert chance == pytest.approx(0.5) and flip == [0, 0]
                continue
            assert grades == ([1, -1] if chance > 0.5 else [-1, 1])
            assert flip == pytest.approx([min(chance, 1 - chance)] * 2, abs=1e-6)
            flips += flip
    assert len(set(flips)) > 2 and 0 < min(flips) < 0.5


def test_a_reward_by_itself(tmp_path, failing):
    """The results of a call: failures with their reasons, abstentions, against a column."""
    judge = judge_file(tmp_path, failing.url, against="gold")
    reward = parse(f"judge:{judge}")
    prompts, said = ["q"] * 30, [f"say {i}" for i in range(30)]
    gold = ["the gold answer"] * 29 + [""]
    results = reward(prompts, said, gold=gold)
    assert not reward.win_chances
    kinds = [type(result).__name__ for result in results]
    assert kinds[-1] == "Abstain" and {"Failed", "Score"} == set(kinds[:-1])
    for text, result in zip(said[:-1], results, strict=False):
        chance = pair_chance(failing, "q", text, gold[0])
        if chance is None:
            assert isinstance(result, Failed)
            assert result.reason.startswith(("error: ", "invalid: "))
        else:
            statuses, _ = expected(text, gold[0])
            plain = sum({"a": 1, "tie": 0.5, "b": 0}[one] for one in statuses) / 2
            assert result == Score(plain)


def test_a_server_that_stays_down_ends_the_run(toy, tmp_path, capsys):
    """An error that names it, and not a run on no rewards."""
    judge = judge_file(tmp_path, "http://127.0.0.1:9", form="score", patience=0.2)
    code, rows = trained("grpo", toy, tmp_path, judge)
    said = capsys.readouterr().err
    assert code == 1 and "127.0.0.1:9" in said and "down" in said
    assert not [row for row in rows if row["reward"] is not None]
