"""A clone of the authors' repository, as it is: its files by their names, with the questions, with
embeddings of them, with neither.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from laurel.cli.main import main
from laurel.core.errors import UsageError
from laurel_prompts.clone import TRIED, find_clone_root, read_clone
from laurel_prompts.logs import count_leaked_queries

LATE = ("gpt4_0", "gpt4_1")
TRAIN, TEST = 60, 20
ALL = (*TRIED, *LATE)
SCRIPT = f"""import fire
raise SystemExit("it is read, not run")
def main(prompt_idx: int = 0):
    PROMPT_LIST = {[f"Say {name}: " for name in ALL]!r}
    ALIAS_LIST = {list(ALL)!r}
    prompt = PROMPT_LIST[prompt_idx]
"""


def right(prompt: str, n: int) -> bool:
    return (n * 7 + ALL.index(prompt) * 3) % 5 < 2


def lines(folder: Path, name: str, prompt: str, numbers: range) -> None:
    """Results and answers as the authors' first script appends them."""
    (folder / f"{name.replace('*', 'corr')}.txt").write_text(
        "".join(f"{(k, right(prompt, n))}\n" for k, n in enumerate(numbers))
    )
    answers = [(k, f" Because\nit is {n}.") for k, n in enumerate(numbers)]
    said = (f"{answer}\n\n====================\n" for answer in answers)
    (folder / f"{name.replace('*', 'answers_list')}.txt").write_text("".join(said))


@pytest.fixture
def clone(tmp_path):
    """GSM8K with a file for its test queries, MAWPS with all queries in one; two late prompts on
    test queries only.
    """
    root = tmp_path / "Prompt-OIRL"
    for dataset in ("gsm8k", "mawps"):
        folder = root / "llama_exps" / "llama2_chat_logs" / dataset
        folder.mkdir(parents=True)
        for prompt in TRIED:
            lines(
                folder,
                f"llama_{dataset}_*_{prompt}",
                prompt,
                range(TRAIN if dataset == "gsm8k" else TRAIN + TEST),
            )
            if dataset == "gsm8k":
                lines(folder, f"llama_gsm8k_test_*_{prompt}", prompt, range(TRAIN, TRAIN + TEST))
        for prompt in LATE:
            lines(folder, f"llama_{dataset}_*_{prompt}", prompt, range(TRAIN, TRAIN + TEST))
    (root / "llama_exps" / "llama_step1_gen_offline.py").write_text(SCRIPT)
    return root


def with_questions(root: Path) -> None:
    (root / "data").mkdir()
    for part, numbers in (
        ("train", range(TRAIN)),
        ("test", range(TRAIN, TRAIN + TEST + 30)),
    ):  # more than were asked, as published
        rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in numbers]
        (root / "data" / f"{part}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    for fold in range(5):
        folder = root / "data" / "cv_mawps" / f"fold{fold}"
        folder.mkdir(parents=True)
        with (folder / "train.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["Question", "Numbers", "Equation", "Answer"])
            table.writerows(
                [f"Add number0 , number1 for {n}", f"{n}.0 4", "+ number0 number1", "1"]
                for n in range(16)
            )  # every fold the same


def with_embeddings(root: Path) -> None:
    (root / "embeddings").mkdir()
    vectors = np.random.default_rng(0).standard_normal((TRAIN + TEST, 12))
    vectors[TRAIN] = vectors[3] * (1 + 1e-6)  # a test question that is a training question
    np.save(root / "embeddings" / "GSM8K_train_Q_embeddings.npy", vectors[:TRAIN])
    np.save(
        root / "embeddings" / "GSM8K_test_Q_embeddings.npy",
        np.concatenate([vectors[TRAIN:], np.ones((30, 12))]),
    )


def expected(log) -> np.ndarray:
    table = np.array([[float(right(name, n)) for name in ALL] for n in range(TRAIN + TEST)])
    table[:TRAIN, len(TRIED) :] = np.nan
    return table


def test_a_clone_with_the_questions_where_its_scripts_read_them(clone, tmp_path):
    with_questions(clone)
    (clone / "critics").mkdir()
    for p in range(len(ALL)):
        np.save(
            clone / "critics" / f"Processed_llama_gsm8k_prompt_{p}_confidence.npy",
            np.full(TEST, p / 10),
        )
    for given in (clone, clone / "llama_exps"):
        log, features = read_clone(find_clone_root(given), "gsm8k", cache=tmp_path)
        np.testing.assert_array_equal(log.reward_SP, expected(log))
        assert (log.names, log.prompts[1], features) == (ALL, "Say CoT: ", "")
        assert log.queries[0] == "What is 0 and 0?" and log.queries[-1] == "What is 79 and 79?"
        assert (
            log.test_S.tolist() == [False] * TRAIN + [True] * TEST
            and count_leaked_queries(log) == 0
        )
        assert (
            log.responses[TRAIN + 1, 7] == " Because\nit is 61."
            and len(log.responses) == TRAIN * 6 + TEST * 8
        )
        assert np.isnan(log.confidence_SP[:TRAIN]).all() and log.confidence_SP[-1].tolist() == [
            p / 10 for p in range(8)
        ]
    log, _ = read_clone(clone, "mawps", cache=tmp_path)
    np.testing.assert_array_equal(log.reward_SP, expected(log))
    assert (
        log.queries[0] == log.queries[16] == "Add 0.0 , 4 for 0"
        and count_leaked_queries(log) == TEST
    )  # folds share their questions
    assert find_clone_root(tmp_path) is None


def test_a_clone_as_it_is_is_fitted_by_its_embeddings(clone, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "laurel_prompts.models.has_trees", lambda: False
    )  # the logistic models are enough here
    with_embeddings(clone)
    assert main(["prompt", "fit", str(clone), "--output_dir", str(tmp_path / "p")]) == 0
    out = capsys.readouterr()
    assert "data set gsm8k, of gsm8k, mawps" in out.err and "by the authors' embeddings" in out.err
    assert "out of fold over all 60 queries" in out.out
    assert main(["prompt", "choose", str(tmp_path / "p"), "gsm8k test 3"]) == 0
    log, features = read_clone(clone, "gsm8k", cache=tmp_path)
    np.testing.assert_array_equal(log.reward_SP, expected(log))
    assert features.endswith(".npz") and log.queries[TRAIN] == "gsm8k test 0"
    assert (
        log.question_S[TRAIN] == log.question_S[3]
        and count_leaked_queries(log) == 1
        and len(np.unique(log.question_S)) == TRAIN + TEST - 1
    )


def test_what_a_clone_lacks_is_told_with_what_to_do(clone, tmp_path):
    said = []
    log, features = read_clone(clone, "", cache=tmp_path, say=said.append)
    np.testing.assert_array_equal(log.reward_SP, expected(log))
    assert features == "" and any(
        "only which prompt is best" in line and "openai/grade-school-math" in line for line in said
    )
    with pytest.raises(
        UsageError, match=r"test questions repeat training questions.*arkilpatel/SVAMP"
    ):
        read_clone(clone, "mawps", cache=tmp_path)
    with pytest.raises(UsageError, match=r"no data set `gsm` in this clone.*gsm8k"):
        read_clone(clone, "gsm", cache=tmp_path)
    with_questions(clone)
    (clone / "data" / "test.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(UsageError, match="61 questions for 80 results"):
        read_clone(clone, "gsm8k", cache=tmp_path)


@pytest.mark.parametrize("broken", ["(1, Maybe)\n", "(5, True)\n", ""])
def test_a_result_that_is_none_is_named_by_its_line(clone, tmp_path, broken):
    path = clone / "llama_exps" / "llama2_chat_logs" / "gsm8k" / "llama_gsm8k_corr_CoT.txt"
    good = path.read_text().splitlines(keepends=True)
    path.write_text("".join([good[0], broken or "\n", *good[2:]]))
    with pytest.raises(UsageError, match=r"llama_gsm8k_corr_CoT\.txt:2: "):
        read_clone(clone, "gsm8k", cache=tmp_path)
