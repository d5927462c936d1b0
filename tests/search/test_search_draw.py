"""Answers are drawn once: in process or on a server, whole or killed, as many as are wanted."""

import json
import sys
from pathlib import Path

import pytest

from laurel.cli.main import main
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.model.policy import load_policy
from laurel.model.scratch import save_scratch
from laurel.rollout.sampler import Sampler
from laurel.search.draw import SAMPLES, Drawing, LocalSource, ServerSource
from laurel.search.options import ChooseConfig
from laurel.search.pool import read_pool
from laurel.search.run import AdaptiveRule, check_config

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from serving import running, tiny

ROWS = [Row({"prompt": f"{i}+1=", "answer": str(i + 1)}, f"r{i}", f"q{i}") for i in range(5)]


class Counted(LocalSource):
    """A source that counts what is asked of it."""

    drawn = 0

    def draw(self, rows, first, count):
        self.drawn += len(rows) * count
        return super().draw(rows, first, count)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_scratch(folder, alphabet="0123456789+=", hidden_size=32, num_hidden_layers=1)
    return load_policy(TrainConfig(model=str(folder)))


def config(**more):
    return ChooseConfig(**{"num_generations": 6, "max_completion_length": 3, "seed": 3, **more})


def filled(folder, policy, how, most=6):
    source = Counted(Sampler(policy), how)
    drawing = Drawing(folder, ROWS, how, "m")
    drawing.fill(source, most)
    return source, drawing


def test_an_answer_depends_on_its_number_alone(policy, tmp_path):
    """Six at once, or two and then four."""
    _, whole = filled(tmp_path / "a", policy, config())
    filled(tmp_path / "b", policy, config(), most=2)
    source, grown = filled(tmp_path / "b", policy, config())
    assert source.drawn == 4 * len(ROWS) and grown.known == 2 * len(ROWS)
    assert grown.questions() == whole.questions()
    assert all(len(one.answers) == 6 for one in whole.questions())


def test_a_killed_run_draws_what_is_missing(policy, tmp_path):
    """The file ends in the middle of a line: that answer is drawn again, and it is the same."""
    _, whole = filled(tmp_path / "a", policy, config())
    lines = (tmp_path / "a" / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "draw.json").write_bytes((tmp_path / "a" / "draw.json").read_bytes())
    (tmp_path / "b" / SAMPLES).write_bytes(b"".join(lines[:13]) + lines[13][:20])
    source, again = filled(tmp_path / "b", policy, config())
    assert source.drawn == 30 - 13 and again.questions() == whole.questions()


def test_answers_drawn_in_another_way_are_refused(policy, tmp_path):
    filled(tmp_path, policy, config())
    with pytest.raises(UsageError, match="another temperature"):
        Drawing(tmp_path, ROWS, config(temperature=0.5), "m")
    with pytest.raises(UsageError, match="another model"):
        Drawing(tmp_path, ROWS, config(), "other")


def test_a_round_asks_those_alone_that_want_more(policy, tmp_path):
    """The rule stops at the same answers in a run that was killed and in one that was not."""
    how = config(adaptive=True, kind="text")
    source = Counted(Sampler(policy), how)
    found = Drawing(tmp_path / "a", ROWS, how, "m").draw_while(
        source, 6, AdaptiveRule(how, "vote", None)
    )
    assert source.drawn == sum(len(one.answers) for one in found)
    filled(tmp_path / "b", policy, config(), most=6)
    other = Counted(Sampler(policy), how)
    again = Drawing(tmp_path / "b", ROWS, how, "m").draw_while(
        other, 6, AdaptiveRule(how, "vote", None)
    )
    assert other.drawn == 0 and again == found


def test_a_pool_is_read_as_it_was_written(policy, tmp_path):
    _, whole = filled(tmp_path, policy, config())
    pool = read_pool(str(tmp_path))
    assert [one.answers for one in pool] == [one.answers for one in whole.questions()]
    assert pool[0].row["answer"] == "1"


def test_a_server_draws_by_number(tmp_path):
    """Texts, tokens and log-probabilities from `laurel serve`; by the number of an answer alone."""
    policy = tiny()
    with running(policy) as served:
        how = config(url=served.url, model="m", max_completion_length=8)
        source = ServerSource(how)
        found = source.draw(ROWS, 2, 2)
        # one more and one fewer: answer 3 of each question is the same
        more = source.draw(ROWS, 3, 1)
        source.close()
    # the wire's seeds have 63 bits, so these are other draws than in process: of the same law
    assert all(0 < one.tokens <= 8 and one.logp < 0 for row in found for one in row)
    assert [row[1] for row in found] == [row[0] for row in more]
    assert len({one.text for row in found for one in row}) > len(ROWS)


@pytest.mark.parametrize(
    ("verb", "options", "what"),
    [
        ("best", {}, "nothing says how good"),
        ("best", {"scorers": ["exact", "numeric"]}, "one scorer chooses"),
        ("vote", {"bar": 1.0, "scorers": ["exact"]}, "a bar is for `best`"),
        ("vote", {"weigh": "score"}, "nothing says how good"),
        ("vote", {"weigh": "likelihood", "adaptive": True}, "votes that count 1"),
        ("best", {"weigh": "likelihood", "scorers": ["exact"]}, "votes are weighed"),
        ("vote", {"pool": "x", "url": "http://h:1"}, "answers are there"),
    ],
)
def test_options_that_do_not_go_together(verb, options, what):
    with pytest.raises(UsageError, match=what):
        check_config(ChooseConfig(**options), verb)


def test_stored_answers_from_the_command_line(tmp_path, capsys):
    """A vote, the best, what is made of them, and curves; an unknown option is named."""
    rows = [
        {"prompt": "1+2=", "answer": "3", "task": "numeric", "responses": ["3", "4", "3"]},
        {"prompt": "2+2=", "answer": "4", "task": "numeric", "responses": ["5", "it is 4", "4"]},
        {"prompt": "4+4=", "answer": "8", "task": "numeric", "responses": ["x", "y", "z"]},
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--pool", str(pool), "--kind", "number", "--output_dir", str(tmp_path / "o")]
    assert main(["choose", "vote", *words, "--sft", str(tmp_path / "s.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "3, 1 without a choice" in said and "no answer can be read" in said
    facts = json.loads((tmp_path / "o/summary.json").read_text())
    assert facts["accuracy"]["value"] == pytest.approx(2 / 3)
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert [json.loads(line)["completion"] for line in lines] == ["3", "it is 4"]
    assert main(["choose", "best", *words, "--scorers", "numeric"]) == 0
    assert main(["choose", "curves", *words]) == 0
    assert (tmp_path / "o/curves.html").read_text().count("<svg") >= 1
    assert "majority of 3 against one answer" in capsys.readouterr().out
    made = (tmp_path / "o/curves.json").read_bytes()
    again = str(tmp_path / "o/options.yaml")
    assert again in (tmp_path / "o/curves.html").read_text()
    assert main(["choose", "curves", "--config", again]) == 0
    assert (tmp_path / "o/curves.json").read_bytes() == made
    capsys.readouterr()
    assert main(["choose", "vote", *words, "--alpa", "1"]) == 2
