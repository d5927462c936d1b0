"""Reward functions from files: what they return, and what they import."""

import asyncio
import itertools
import textwrap
from fractions import Fraction

import numpy as np
import pytest
import torch

from laurel.core.errors import LaurelError, UsageError
from laurel.core.load import load_file
from laurel.core.result import Failed, Score, as_result
from laurel.core.sample import Group, Key, Sample
from laurel.reward.load import load_reward
from laurel.reward.mixture import load_rewards
from laurel.rollout.episode import load_env
from laurel.train.relabel import load_relabel


def group(n):
    samples = tuple(
        Sample(
            Key("r", "d", "p", i, 0),
            (1,),
            (2,),
            (0.0,),
            (True,),
            1.0,
            "eos",
            f"t{i}",
            ({"role": "assistant", "content": f"t{i}"},),
        )
        for i in range(n)
    )
    return Group("p", {"prompt": "x"}, samples)


def score(function, n=4):
    return load_rewards([function], None, [{"prompt": "x"}], max_failed_fraction=1.0).score(
        [group(n)]
    )[0]


NO_LISTS = {
    "dict": lambda n: dict.fromkeys(range(n), 0.5),
    "dict_keys": lambda n: dict.fromkeys(range(n), 0.5).keys(),
    "set": lambda n: set(range(n)),
    "dict_values": lambda n: dict.fromkeys(range(n), 0.5).values(),
    "frozenset": lambda n: frozenset(range(n)),
    "str": lambda n: "1" * n,
    "bytes": lambda n: b"1" * n,
    "bytearray": lambda n: bytearray(n),
    "float": lambda n: 1.0,
    "NoneType": lambda n: None,
    "bool": lambda n: True,
    "Tensor": lambda n: torch.ones(n, 1),
    "ndarray": lambda n: np.ones((n, 1)),
    "float64": lambda n: np.float64(1),
}


@pytest.mark.parametrize("kind", NO_LISTS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_K19_what_is_no_list_of_scores_is_refused_by_name(kind, asynchronous):
    """A dict would give its keys, a set its members in any order, a text its characters: every
    sample fails, and says what came.
    """

    def plain(completions, **columns):
        return NO_LISTS[kind](len(completions))

    async def awaited(completions, **columns):
        return plain(completions)

    found = score(awaited if asynchronous else plain)
    assert found.rewards == (None,) * 4
    (reasons,) = found.results.values()
    assert all(
        isinstance(result, Failed) and result.reason.startswith(f"returned {kind}")
        for result in reasons
    )
    with pytest.raises(LaurelError, match=f"returned {kind}"):
        load_rewards([plain], None, [{"prompt": "x"}]).score([group(4)])


@pytest.mark.parametrize(
    "values",
    [
        lambda n: [0.0, 1.0, 2.0, 3.0],
        lambda n: (0, 1, 2, 3),
        lambda n: np.arange(4),
        lambda n: torch.arange(4.0),
        lambda n: range(4),
        lambda n: (float(i) for i in range(4)),
        lambda n: map(float, range(4)),
        lambda n: [False, True, Fraction(2), np.float32(3)],
        lambda n: [torch.tensor(float(i)) for i in range(4)],
    ],
)
def test_what_has_an_order_is_a_list(values):
    assert score(lambda completions: values(len(completions))).rewards == (0.0, 1.0, 2.0, 3.0)


def test_a_list_of_what_are_no_numbers_fails_item_by_item():
    for bad in (
        [1],
        {"score": 1},
        b"1",
        "good",
        1j,
        np.ones(1),
        torch.ones(1),
        10**400,
        float("nan"),
        {1},
        object(),
    ):
        assert isinstance(as_result(bad), Failed), bad
    found = score(lambda completions: [1.0, [1.0], {"a": 1}, None])
    assert found.rewards == (1.0, None, None, None)
    assert "returned more values for 4 completions" in str(
        score(lambda completions: itertools.count()).results
    )


def test_a_generator_that_raises_fails_its_own_sample_only():
    def one_by_one(completions, **columns):
        for text in completions:
            if text == "t2":
                raise TypeError("no such text")
            yield 1.0

    found = score(one_by_one)
    assert (
        found.rewards == (1.0, 1.0, None, 1.0)
        and "no such text" in found.results["one_by_one"][2].reason
    )


# K18


FILE = """
    from __future__ import annotations
    from dataclasses import dataclass
    import helpers
    import tools.deep as deep
    from tools import WHERE

    @dataclass
    class Box:
        x: int = 0

    def early(completions, **columns):
        return [helpers.WHO + WHERE + deep.helpers.WHO for _ in completions]

    def lazy(completions, **columns):
        import helpers as other
        from tools import WHERE as where
        def inner():
            import helpers
            return helpers.WHO
        return [other.WHO + where + inner() for _ in completions]

    async def awaited(completions, **columns):
        from helpers import WHO
        return [WHO for _ in completions]

    def judge(answer, row):
        from helpers import WHO
        return WHO

    def relabel(prompts, completions, **columns):
        import helpers
        return [str(helpers.WHO) for _ in completions]

    class World:
        def reset(self, row):
            return []

        def step(self, text):
            import helpers
            return [{"role": "user", "content": str(helpers.WHO)}]
"""


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same names in them, and other contents."""
    for number, name in enumerate(("one", "two two"), start=1):
        folder = tmp_path / name
        (folder / "tools").mkdir(parents=True)
        (folder / "helpers.py").write_text(f"WHO = {number}\n")
        (folder / "tools" / "__init__.py").write_text("from .deep import WHERE\n")
        (folder / "tools" / "deep.py").write_text("import helpers\nWHERE = 10 * helpers.WHO\n")
        (folder / "mine.py").write_text(textwrap.dedent(FILE))
        (folder / "my-rewards.v2.py").write_text(textwrap.dedent(FILE))
    return tmp_path


@pytest.mark.parametrize("file", ["mine.py", "my-rewards.v2.py"])
def test_K18_files_import_their_neighbours_and_no_others(folders, file):
    """While they load and when they run, as rewards, verifiers, environments and relabellers; two
    folders are not mixed up.
    """
    for _ in range(2):
        for number, name in enumerate(("one", "two two"), start=1):
            path = folders / name / file
            assert load_reward(f"{path}:early").function(completions=["a"]) == [12 * number]
            assert load_reward(f"{path}:lazy").function(completions=["a"]) == [12 * number]
            assert asyncio.run(load_reward(f"{path}:awaited").function(completions=["a"])) == [
                number
            ]
            assert load_reward(f"{path}:judge").function("a", {}) == number
            assert load_relabel(f"{path}:relabel").function(prompts=["p"], completions=["a"]) == [
                str(number)
            ]
            assert load_env(f"{path}:World")().step("x")[0]["content"] == str(number)
            assert load_file(path, "test").Box(3) == load_file(path, "test").Box(3)


def test_K18_module_function_is_found_in_the_current_folder(folders, monkeypatch):
    """Without any help from sys.path, which the command `laurel` does not have."""
    monkeypatch.setattr("sys.path", [part for part in __import__("sys").path if part])
    for number, name in enumerate(("one", "two two"), start=1):
        monkeypatch.chdir(folders / name)
        assert load_reward("mine.lazy").function(completions=["a"]) == [12 * number]
        assert load_reward("mine.py:lazy").function is load_reward("mine.lazy").function
    with pytest.raises(UsageError, match=r"module `nowhere` does not load.*current folder"):
        load_reward("nowhere.f")


def test_a_neighbour_is_not_a_second_copy_of_what_is_installed(tmp_path):
    """A folder that holds a package's own source, or a plain folder of its name, gives the one that
    everybody has.
    """
    import laurel

    (tmp_path / "torch").mkdir()
    (tmp_path / "mine.py").write_text(
        "import torch, json\nfrom laurel.core.result import Score\ndef f(completions): return"
        " [Score(1.0)]\n"
    )
    module = load_file(tmp_path / "mine.py", "test")
    assert module.torch is torch and module.Score is Score
    beside = tmp_path / "laurel"
    beside.symlink_to(laurel.__path__[0])
    (tmp_path / "other.py").write_text("from laurel.core.result import Score\n")
    assert load_file(tmp_path / "other.py", "test").Score is Score


def test_a_file_that_does_not_load_names_what_is_missing(tmp_path):
    (tmp_path / "helpers.py").write_text("x = 1\n")
    for text, says in (
        ("import nothing_here", "nothing_here"),
        ("from helpers import y", "cannot import name 'y' from 'helpers'"),
        ("raise SystemExit(3)", "SystemExit"),
    ):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(UsageError, match="does not load") as caught:
            load_reward(f"{tmp_path / 'bad.py'}:f")
        assert says in str(caught.value) and "laurel_at" not in str(caught.value).replace(
            str(tmp_path), ""
        )
