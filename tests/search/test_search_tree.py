"""Process-reward search against exact truths: a language that can be listed, and a small model."""

import argparse
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from laurel.cli.choose_search import add_search
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.core.result import Abstain, Failed, Score
from laurel.core.sample import Completion, Draw
from laurel.data.source import Row
from laurel.fast.decode import later_seed, uniform_numbers
from laurel.model.policy import load_policy
from laurel.model.scorer import load_scorer
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.reward.mixture import load_rewards
from laurel.rollout.sampler import Sampler
from laurel.search.tree import Beam, Growth, RewardValue, TreeShape, ranked, tree_search
from laurel.search.tree_file import TreeFile
from laurel.verify.language import Language

LANGUAGE = Language(4, 3)
TEXT = "abc"
FIRST = 4  # the ids of a character tokenizer before its characters
END = 2


class Table:
    """A Generator whose law is a table: token t is the character TEXT[t], the last one ends."""

    exact, precision = True, "float64"

    def __init__(self, questions=2, seed=0):
        rng = np.random.default_rng(seed)
        weight = np.exp(rng.normal(0, 0.5, (questions, LANGUAGE.S, LANGUAGE.V)))
        self.law = weight / weight.sum(2, keepdims=True)
        self.tokenizer = char_tokenizer(TEXT + "0123456789")
        self.state = {prefix: s for s, prefix in enumerate(LANGUAGE.prefixes)}
        self.asked, self.tokens, self.calls = [], 0, 0

    def sync(self, version): ...
    def close(self): ...

    def generate(self, prompts, draw):
        self.calls += 1
        each = len(draw.seeds) // len(prompts)
        points = uniform_numbers(draw.seeds, LANGUAGE.H)
        found = []
        for n, limit in enumerate(draw.limits):
            prompt = prompts[n // each]
            found.append(self.one(prompt, points[n, :limit]))
            self.asked.append((prompt, draw.seeds[n]))
            self.tokens += len(found[-1].ids)
        return found

    def one(self, prompt, points):
        text = self.tokenizer.decode(prompt[1:])
        prefix = tuple(TEXT.index(char) for char in text[1:])
        ids, logps = [], []
        for point in points:
            law = self.law[int(text[0]), self.state[prefix]]
            token = int(min((law.cumsum() <= point).sum(), LANGUAGE.eos))
            logps.append(float(np.log(law[token])))
            ids.append(END if token == LANGUAGE.eos else FIRST + token)
            if token == LANGUAGE.eos:
                return Completion(tuple(ids), tuple(logps), "eos")
            prefix += (token,)
        return Completion(tuple(ids), tuple(logps), "length")


class Exact:
    """The exact value of each prefix: a table, by the text."""

    name = "exact"

    def __init__(self, seed=1):
        rng = np.random.default_rng(seed)
        texts = [
            "".join(w) for n in range(LANGUAGE.H + 1) for w in itertools.product(TEXT, repeat=n)
        ]
        self.of = {(q, text): rng.random() for q in "01" for text in texts}
        self.seen = []

    def __call__(self, questions):
        self.seen += [(one.id, a.text, a.ids) for one in questions for a in one.answers]
        return [[self.result(one.prompt, a.text) for a in one.answers] for one in questions]

    def result(self, prompt, text):
        return Score(self.of[prompt, text])


def rows(count=2):
    return [Row({"prompt": str(i % 2)}, f"row {i}", f"q{i}") for i in range(count)]


def draw(**changes):
    plain = Draw("test", 0, 7, 1, LANGUAGE.H, 1.0)
    return replace(plain, **changes)


def a_token(**changes):
    """A step is a token."""
    return TreeShape(**{"delimiters": (), "step_tokens": 1, **changes})


def answers(found):
    return [
        [(a.text, a.ids, a.finish, a.logp, dict(a.scores)) for a in f.question.answers]
        for f in found
    ]


def test_a_search_that_keeps_all_finds_the_best_of_all_answers():
    table, exact = Table(), Exact()
    shape = a_token(beams=320, branches=16)
    found = tree_search(table, exact, rows(), shape, draw())
    for one in found:
        texts = {"".join(TEXT[t] for t in y if t != LANGUAGE.eos): y for y in LANGUAGE.completions}
        best = max(texts, key=lambda text: exact.of[one.question.prompt, text])
        choice = one.choice("exact")
        assert one.question.answers[choice.place].text == best
        assert choice.value == exact.of[one.question.prompt, best]


def test_one_prefix_of_many_branches_is_the_greedy_path_of_the_values():
    table, exact = Table(), Exact()
    shape = a_token(beams=200, branches=200)
    for one in tree_search(table, exact, rows(), shape, draw()):
        q, path = one.question.prompt, ""
        while len(path) < LANGUAGE.H:
            stay = exact.of[q, path]  # the model may end the answer here
            step = max(TEXT, key=lambda char: exact.of[q, path + char])
            if stay > exact.of[q, path + step]:
                break
            path += step
        place = one.choice("exact").place
        assert one.question.answers[place].text == path


@pytest.mark.parametrize("subtrees", [1, 2, 8])
def test_one_branch_a_beam_is_plain_sampling(subtrees):
    table = Table()
    shape = a_token(beams=8, branches=1, subtrees=subtrees)
    found = tree_search(table, Exact(), rows(), shape, draw())
    seeds = draw(num_generations=8).seeds_of([row.id for row in rows()])
    plain = Table()
    prompts = [tuple(plain.tokenizer(str(q))["input_ids"]) for q in range(2)]
    done = plain.generate(prompts, draw(seeds=seeds, limits=(LANGUAGE.H,) * 16))
    for q, one in enumerate(found):
        want = sorted(c.ids for c in done[8 * q : 8 * q + 8])
        assert sorted(a.ids for a in one.question.answers) == want
    assert table.tokens == plain.tokens == sum(one.tokens for one in found)


def test_a_seed_is_continued_as_if_it_had_not_been_stopped():
    whole = uniform_numbers([12345], 9)[0]
    rest = uniform_numbers([later_seed(12345, 4)], 5)[0]
    assert (whole[4:] == rest).all() and later_seed(2**64 - 1, 1) < 2**64


@pytest.mark.parametrize("subtrees", [1, 4])
def test_tokens_are_those_drawn_and_no_step_is_drawn_twice(subtrees):
    table, exact = Table(), Exact()
    shape = a_token(beams=16, branches=4, subtrees=subtrees)
    found = tree_search(table, exact, rows(6), shape, draw())
    assert sum(one.tokens for one in found) == table.tokens
    assert sum(one.steps for one in found) == len(table.asked)
    assert len(set(exact.seen)) == len(exact.seen) < len(table.asked)  # equal prefixes once
    assert all(one.steps <= 16 * one.depth and one.depth <= LANGUAGE.H for one in found)
    assert len(set(table.asked)) == len(table.asked)
    # of a depth all questions, and all of their beams, are one call
    assert table.calls == max(one.depth for one in found)
    assert found[0].choice("exact").tokens == found[0].tokens


@pytest.mark.parametrize(
    ("subtrees", "kept"), [(1, [5, 4, 7, 6]), (2, [1, 0, 5, 4]), (4, [1, 2, 5, 7])]
)
def test_subtrees_do_not_compete(subtrees, kept):
    shape = a_token(beams=8, branches=2, subtrees=subtrees)
    growth = Growth(rows()[0], (1,), shape, draw(), 9)
    values = [0.2, 0.3, 0.15, 0.1, 0.8, 0.9, 0.4, 0.5]
    drawn = [Completion((FIRST,), (-1.0,), "length") for _ in values]
    beams = [
        replace(beam, ids=(place,), result=Score(value))
        for place, (beam, value) in enumerate(
            zip(growth.grown(drawn, ["a"] * 8), values, strict=True)
        )
    ]
    growth.take(beams, drawn)
    assert [beam.ids for beam in growth.live] == [(place,) for place in kept]
    assert not growth.ended and growth.tokens == 8 and len(growth.wants()) == 8


def test_seeds_decide():
    found = [
        answers(tree_search(Table(), Exact(), rows(3), a_token(), draw(seed=seed)))
        for seed in (7, 7, 8)
    ]
    assert found[0] == found[1] != found[2]
    # a question's search does not depend on its neighbours
    [alone] = answers(tree_search(Table(), Exact(), rows(3)[2:], a_token(), draw()))
    assert alone == found[0][2]


class Killed(Exception):
    pass


class Mortal:
    """Ends the process, as it were, at its n-th call."""

    def __init__(self, inner, at):
        self.inner, self.left = inner, at

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def count(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def generate(self, prompts, draw):
        self.count()
        return self.inner.generate(prompts, draw)

    def __call__(self, questions):
        self.count()
        return self.inner(questions)


def test_killed_and_continued_is_undisturbed(tmp_path):
    shape = a_token(beams=8, branches=2)
    table, exact = Table(), Exact()
    whole = tree_search(table, exact, rows(3), shape, draw())
    for at in range(3):
        again, judge, path = Table(), Exact(), tmp_path / f"{at}.jsonl"
        for generator, value in ((Mortal(again, at), judge), (again, Mortal(judge, 0))):
            with pytest.raises(Killed):
                tree_search(generator, value, rows(3), shape, draw(), file=TreeFile(path, {"a": 1}))
            with path.open("ab") as file:
                file.write(b'{"drawn": [["q0", 1')  # cut short
        found = tree_search(again, judge, rows(3), shape, draw(), file=TreeFile(path, {"a": 1}))
        assert found == whole
        assert sorted(again.asked) == sorted(table.asked) and again.tokens == table.tokens
        assert sorted(judge.seen) == sorted(exact.seen)
        # a third time nothing is drawn at all
        last = tree_search(
            Mortal(again, 0), Mortal(judge, 0), rows(3), shape, draw(), file=TreeFile(path)
        )
        assert last == whole
    assert all(json.loads(line) for line in path.read_text().splitlines())
    with pytest.raises(UsageError, match=r"another a\."):
        TreeFile(path, {"a": 2})


class Failing(Exact):
    def result(self, prompt, text):
        if prompt == "1":
            return Failed("the model is gone")
        return Abstain("no opinion") if "b" in text else super().result(prompt, text)


def test_a_prefix_without_a_value_never_wins():
    found = tree_search(Table(), Failing(), rows(), a_token(beams=32, branches=4), draw())
    choice = found[0].choice("exact")
    assert choice.place is not None and "b" not in found[0].question.answers[choice.place].text
    assert any("b" in a.text for a in found[0].question.answers) and choice.left_out
    for votes in (False, True):
        lost = found[1].choice("exact", votes=votes)
        assert lost.place is None and "failed on every answer: the model is gone" in lost.reason
        assert lost.tokens == found[1].tokens > 0
    kept = ranked([Beam((1,), result=Failed("x")), Beam((2,), result=Score(-9.0))])
    assert [one.ids for one in kept] == [(2,), (1,)]


def test_equal_prefixes_wait_behind_others():
    beams = [
        Beam((1,), result=Score(0.9)),
        Beam((1,), result=Score(0.9)),
        Beam((2,), result=Score(0.1)),
    ]
    assert [one.ids for one in ranked(beams)] == [(1,), (2,), (1,)]
    assert [one.ids for one in ranked(beams, distinct=False)] == [(1,), (1,), (2,)]


@pytest.mark.parametrize(
    "changes", [{"beams": 10}, {"subtrees": 3}, {"branches": 0}, {"delimiters": ()}]
)
def test_a_shape_that_cannot_be(changes):
    with pytest.raises(UsageError):
        TreeShape(**changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model that writes lines of a and b, and a process model that nobody trained."""
    folder = tmp_path_factory.mktemp("small")
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_scratch(folder / "model", alphabet="ab\n?", max_position_embeddings=64, **tiny)
    load_scorer(str(folder / "model"), num_labels=3, device="cpu").save(folder / "prm")
    return Sampler(load_policy(TrainConfig(model=str(folder / "model"), device="cpu"))), str(
        folder / "prm"
    )


def lines(count=4):
    return [Row({"prompt": "ab?" + "a" * i}, f"row {i}", f"q{i}") for i in range(count)]


def test_a_model_without_branches_is_sampled_plainly(small):
    generator, prm = small
    value = RewardValue(load_rewards([f"prm:{prm}:min"], None, []))
    shape, how = TreeShape(beams=4, branches=1, max_steps=100), draw(max_completion_length=24)
    found = tree_search(generator, value, lines(), shape, how)
    seeds = replace(how, num_generations=4).seeds_of([row.id for row in lines()])
    prompts = [tuple(generator.tokenizer(row.columns["prompt"])["input_ids"]) for row in lines()]
    done = generator.generate(prompts, replace(how, seeds=seeds, num_generations=4))
    for q, one in enumerate(found):
        assert sorted(a.ids for a in one.question.answers) == sorted(
            c.ids for c in done[4 * q :][:4]
        )
        assert one.tokens == sum(len(c.ids) for c in done[4 * q :][:4])
        assert one.depth > 1  # the delimiter was met
        assert {a.finish for a in one.question.answers} <= {"eos", "length"}


def test_a_trained_scorer_values_prefixes(small):
    generator, prm = small
    value = RewardValue(load_rewards([f"prm:{prm}:product"], None, []))
    shape = TreeShape(beams=8, branches=2, subtrees=2, max_steps=5)
    found = tree_search(generator, value, lines(), shape, draw(max_completion_length=500))
    room = [64 - len(generator.tokenizer(row.columns["prompt"])["input_ids"]) for row in lines()]
    for one, most in zip(found, room, strict=True):
        assert one.depth <= 5 and all(len(a.ids) <= most for a in one.question.answers)
        scores = [a.score(value.name) for a in one.question.answers]
        place = one.choice(value.name).place
        assert place is not None and scores[place] == max(s for s in scores if s is not None)


def test_a_stop_string_ends_an_answer_and_a_delimiter_only_a_step(small):
    generator, _ = small

    def count(prompts, completions, **_):
        return [float(text.count("a")) for text in completions]

    value = RewardValue(load_rewards([count], None, []))
    how = draw(max_completion_length=40, stop=("\n\n",))
    found = tree_search(generator, value, lines(), TreeShape(beams=16, branches=4), how)
    stopped = [a for one in found for a in one.question.answers if a.finish == "stop"]
    assert stopped and all(a.text.endswith("\n\n") and a.text.count("\n\n") == 1 for a in stopped)


def test_one_failing_prefix_costs_no_other(small):
    generator, _ = small

    def fragile(prompts, completions, **_):
        if any("bb" in text for text in completions):
            raise RuntimeError("bb")
        return [1.0 / (1 + len(text)) for text in completions]

    value = RewardValue(load_rewards([fragile], None, []))
    shape = TreeShape(beams=16, branches=4)
    for one in tree_search(generator, value, lines(2), shape, draw(max_completion_length=30)):
        for answer in one.question.answers:
            failed = isinstance(answer.scores["fragile"], Failed)
            assert failed == ("bb" in answer.text)


def on_the_command_line(*words):
    parser = argparse.ArgumentParser()
    add_search(parser.add_subparsers(required=True))
    args = parser.parse_args(["search", *words])
    return args.run(args)


def test_the_verb_searches_once_and_goes_on(small, tmp_path, capsys):
    _, prm = small
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**row.columns, "answer": "1"}) + "\n" for row in lines()))
    words = ("--model", prm.replace("prm", "model"), "--dataset", str(data), "--device", "cpu")
    words += ("--scorers", f"prm:{prm}", "--num_generations", "8", "--branches", "2")
    words += ("--max_completion_length", "20", "--output_dir", str(tmp_path / "out"))
    assert on_the_command_line(*words) == 0
    tree = (tmp_path / "out" / "tree.jsonl").read_bytes()
    chosen = (tmp_path / "out" / "choices.jsonl").read_text()
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    drawn = [json.loads(line) for line in tree.splitlines()[1:]]
    steps = [step for line in drawn for *_, some in line.get("drawn", []) for step in some]
    ids = [step["ids"] for step in steps]
    assert facts["tokens"] == sum(map(len, ids)) and facts["steps"] == len(ids)
    assert f"{facts['tokens']} tokens in all" in capsys.readouterr().out
    # killed in the middle, and continued: the same choices
    (tmp_path / "out" / "tree.jsonl").write_bytes(tree[: 2 * len(tree) // 3])
    assert on_the_command_line(*words) == 0
    assert (tmp_path / "out" / "tree.jsonl").read_bytes() == tree
    assert (tmp_path / "out" / "choices.jsonl").read_text() == chosen
    with pytest.raises(UsageError, match=r"another subtrees\."):
        on_the_command_line(*words, "--subtrees", "4")


@pytest.mark.parametrize(
    ("yaml", "where"),
    [("adaptive: true", "adaptive"), ("scorers: []", "scorers"), ("branches: 3", "beams")],
)
def test_what_says_nothing_to_a_search_is_refused(yaml, where, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"scorers: [prm:nowhere]\n{yaml}\n".replace("scorers: [prm:nowhere]\nsc", "sc"))
    with pytest.raises(UsageError) as caught:
        on_the_command_line("--config", str(plan))
    assert where in str(caught.value)
