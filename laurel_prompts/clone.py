"""Read a clone of the authors' repository (github.com/holarissun/Prompt-OIRL).

It holds Llama-2's answers to three data sets, right or wrong.

A clone holds what each prompt did on each question, the prompts, and embeddings of the questions by
a model that is not in it. It does not hold the questions: the authors' scripts read them from
`data/`, out of GSM8K's and SVAMP's own repositories. Where they are there, they are read; else
questions go by number (`gsm8k test 12`), and the embeddings say what they are.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from laurel.core.errors import UsageError, nearest
from laurel_prompts.features import fingerprint
from laurel_prompts.logs import Log, question_numbers

LOGS, SCRIPT = "llama2_chat_logs", "llama_step1_gen_offline.py"
TRIED = ("nan", "CoT", "APE", "Dis", "ToT", "Decomp")
"""The prompts that training queries were sent with.

Those after them were written by GPT-4 and sent with test queries only.
"""
TRAINED = {"mawps": 6000, "svamp": 15000}
"""How many queries come before the test queries, in one file.

GSM8K's test queries have a file of their own.
"""
FOLDS = {"mawps": "cv_mawps", "svamp": "cv_svamp_augmented"}
EMBEDDINGS = {
    "gsm8k": ("GSM8K_train_Q", "GSM8K_test_Q"),
    "mawps": ("svamp_Q",),
    "svamp": ("aug_svamp_Q",),
}
"""As the authors' scripts read them: the file called `svamp` holds MAWPS."""
SAME = 0.9999  # cosine of two embeddings of one text


def find_clone_root(path: Path) -> Path | None:
    """The clone that this folder is, or whose `llama_exps` it is; None if neither."""
    if (path / "llama_exps" / LOGS).is_dir():
        return path
    return path.resolve().parent if (path / LOGS).is_dir() else None


def read_clone(
    root: Path, dataset: str, *, cache: Path, say: Callable[[str], None] = lambda line: None
) -> tuple[Log, str]:
    """(the log, the features of its questions).

    The features are "" where questions have texts, else a file of vectors in `cache`.
    """
    logs = root / "llama_exps" / LOGS
    dataset = _data_set(logs, dataset, say)
    texts = prompts(root)
    right_SP, first, names = _read_correctness(logs / dataset, dataset, list(texts))
    rows = len(right_SP)
    asked = _questions(root, dataset, first, rows)
    features = ""
    if asked is not None:
        question_S = question_numbers(asked)
    else:
        asked = [
            f"{dataset} {'test' if n >= first else 'train'} {n - first if n >= first else n}"
            for n in range(rows)
        ]
        vectors, question_S = _read_embeddings(root, dataset, first, rows), np.arange(rows)
        if vectors is not None:
            question_S = _group_same_texts(vectors)
            features = _save_vectors(cache, root, asked, vectors, [texts[name] for name in names])
        say(NO_TEXTS if features else f"{NO_VECTORS} {how_to_get_questions(dataset)}")
    log = Log(
        name=dataset,
        queries=tuple(asked),
        names=tuple(names),
        prompts=tuple(texts[name] for name in names),
        reward_SP=right_SP,
        test_S=np.arange(rows) >= first,
        question_S=question_S,
        confidence_SP=_confidence(root, dataset, right_SP.shape, first, list(texts), names),
        responses=_responses(logs / dataset, dataset, names, first),
    )
    return log, features


NO_RESULTS = "no prompt of the training queries has its results here."
NO_TEXTS = (
    "a clone has no texts of its questions: they go by number, and by the authors' embeddings"
)
NO_VECTORS = (
    "neither the questions nor their embeddings are here: only which prompt is best for all can be"
    " learned."
)


def _data_set(logs: Path, dataset: str, say: Callable[[str], None]) -> str:
    """The data set that was asked for, or the usual one; UsageError where it is not there."""
    known = sorted(
        path.name
        for path in logs.iterdir()
        if path.is_dir() and list(path.glob("llama_*_corr_*.txt"))
    )
    if dataset and dataset not in known:
        what = f"no data set `{dataset}` in this clone."
        raise UsageError(what, where="--dataset", fix=nearest(dataset, known))
    if not known:
        raise UsageError(
            "no results in this clone.", where=str(logs), fix="Clone it whole: git clone URL."
        )
    if not dataset:
        dataset = "gsm8k" if "gsm8k" in known else known[0]
        say(f"data set {dataset}, of {', '.join(known)} (--dataset)")
    return dataset


def prompts(root: Path) -> dict[str, str]:
    """alias -> text, as the authors' first script lists them. It is parsed, not run."""
    path = root / "llama_exps" / SCRIPT
    found: dict[str, list[str]] = {}
    try:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
            if isinstance(node, ast.Assign) and name in ("PROMPT_LIST", "ALIAS_LIST"):
                found[name] = ast.literal_eval(node.value)
        return dict(zip(found["ALIAS_LIST"], found["PROMPT_LIST"], strict=True))
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        what = (
            f"the script does not list PROMPT_LIST and ALIAS_LIST: {type(error).__name__} {error}."
        )
        raise UsageError(
            what, where=str(path), fix="The prompts are read from it: take the authors' file."
        ) from None


def _read_correctness(
    folder: Path, dataset: str, aliases: list[str]
) -> tuple[np.ndarray, int, list[str]]:
    """(1 right, 0 wrong, nan not tried [S, P]; the first test query; the prompts with a file)."""
    logged = _results(folder, f"llama_{dataset}_corr_{{}}.txt", aliases)
    test = _results(folder, f"llama_{dataset}_test_corr_{{}}.txt", aliases)
    # prompts that training does not use have results of test queries under the first name, too
    late = {name: values for name, values in logged.items() if name not in TRIED}
    early = {name: values for name, values in logged.items() if name in TRIED}
    if not early:
        fix = f"Such as llama_{dataset}_corr_nan.txt."
        raise UsageError(NO_RESULTS, where=str(folder), fix=fix)
    count = _longest_result(early)
    first = count if test else TRAINED.get(dataset, count)
    if late and not test:
        first = count - _longest_result(late)
    rows = first + max(map(len, [*test.values(), *late.values()]), default=count - first)
    names = [name for name in aliases if name in logged or name in test]
    right_SP = np.full((rows, len(names)), np.nan)
    for start, results in ((0, early), (first, test), (first, late)):
        for name, values in results.items():
            _fill(right_SP[start:, names.index(name)], values, name, folder)
    return right_SP, first, names


def _longest_result(results: dict[str, np.ndarray]) -> int:
    return max(map(len, results.values()))


def _fill(right_S: np.ndarray, values: np.ndarray, name: str, folder: Path) -> None:
    """Write a prompt's results into the beginning of its queries; UsageError for too many."""
    if len(values) > len(right_S):
        what = f"{len(values)} results of prompt `{name}` for {len(right_S)} queries."
        raise UsageError(what, where=str(folder))
    right_S[: len(values)] = values


def _results(folder: Path, pattern: str, names: list[str]) -> dict[str, np.ndarray]:
    """prompt -> the results in its file, of those that have one."""
    paths = {name: folder / pattern.format(name) for name in names}
    return {name: _verdicts(path) for name, path in paths.items() if path.is_file()}


def _verdicts(path: Path) -> np.ndarray:
    """Lines `(12, True)` in order."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        result = re.fullmatch(r"\((\d+), (True|False)\)", line.strip())
        if result is None or int(result[1]) != number - 1:
            raise UsageError(
                f"`{line:.40}` is not ({number - 1}, True or False).",
                where=f"{path}:{number}",
                fix="Fetch the file again.",
            )
        found.append(float(result[2] == "True"))
    return np.array(found)


def _questions(root: Path, dataset: str, first: int, rows: int) -> list[str] | None:
    """The questions where the authors' scripts read them.

    None where that folder does not hold them.
    """
    data = root / "data"
    if dataset in FOLDS:
        files = [data / FOLDS[dataset] / f"fold{k}" / "train.csv" for k in range(5)]
        found = [text for path in files if path.is_file() for text in _fold_questions(path)]
    else:
        files = [data / f"{part}.jsonl" for part in ("train", "test")]
        parts = [
            [json.loads(line)["question"] for line in path.open(encoding="utf-8") if line.strip()]
            for path in files
            if path.is_file()
        ]
        found = [
            text
            for part, cut in zip(parts, (first, rows - first), strict=False)
            for text in part[:cut]
        ]
    if not any(path.is_file() for path in files):
        return None
    if len(found) != rows:
        what = f"{len(found)} questions for {rows} results."
        raise UsageError(
            what,
            where=str(files[0].parent),
            fix=f"It should hold {', '.join(path.name for path in files)}, as published.",
        )
    return found


def _fold_questions(path: Path) -> Iterator[str]:
    """The questions of a fold: `number0` and its like stand for the entries of `Numbers`."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["Question"]
            for place, number in enumerate(row["Numbers"].split(" ")):
                text = text.replace(f"number{place}", number)
            yield text


def how_to_get_questions(dataset: str) -> str:
    """Where the questions come from, and where the authors' scripts read them."""
    files, source = "train.jsonl and test.jsonl", "github.com/openai/grade-school-math"
    if dataset in FOLDS:
        files, source = f"{FOLDS[dataset]}/fold0 to fold4/train.csv", "github.com/arkilpatel/SVAMP"
    return (
        f"The questions are {source}'s: put its {files} into `data` of this folder, where the"
        " authors' scripts read them."
    )


def _read_embeddings(root: Path, dataset: str, first: int, rows: int) -> np.ndarray | None:
    """The authors' embeddings of the questions [S, d], of as many test questions as were asked.
    GSM8K, whose questions are all
    different, can be read without (None); of the others nobody could tell which test questions are
    training questions, too.
    """
    paths = [root / "embeddings" / f"{name}_embeddings.npy" for name in EMBEDDINGS.get(dataset, ())]
    absent = [path.name for path in paths if not path.is_file()]
    if absent and dataset == "gsm8k":
        return None
    if absent or not paths:
        what = (
            f"neither the questions nor their embeddings ({', '.join(absent)}) are here, and test"
            " questions repeat training questions."
        )
        raise UsageError(what, where=str(root), fix=how_to_get_questions(dataset))
    try:
        parts = [np.load(path, allow_pickle=False) for path in paths]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the embeddings: {error}",
            where=str(paths[0].parent),
            fix="Fetch the files again.",
        ) from None
    found = (
        np.concatenate([parts[0][:first], parts[1][: rows - first]])
        if len(parts) == 2
        else parts[0][:rows]
    )
    if found.ndim != 2 or len(found) != rows:
        raise UsageError(
            f"{len(found)} embeddings for {rows} results.",
            where=str(paths[0]),
            fix=how_to_get_questions(dataset),
        )
    return found.astype(np.float32)


def _group_same_texts(vectors_SD: np.ndarray) -> np.ndarray:
    """Equal numbers for questions of one text: embeddings of a cosine of SAME or more.

    Neighbours along one direction are compared.
    """
    unit_SD = vectors_SD / np.maximum(np.linalg.norm(vectors_SD, axis=1, keepdims=True), 1e-12)
    along_S = unit_SD @ np.random.default_rng(0).standard_normal(unit_SD.shape[1]).astype(
        np.float32
    )
    order, group = np.argsort(along_S), np.arange(len(unit_SD))
    near = (
        6 * (2 - 2 * SAME) ** 0.5
    )  # unit vectors so alike are this near along a normal direction, six deviations allowed
    ends = np.searchsorted(along_S[order], along_S[order] + near, side="right")
    for place, end in enumerate(ends):
        one, others = order[place], order[place + 1 : end]
        if group[one] == one:  # else it is known as another's double, and so are its own doubles
            group[others[unit_SD[others] @ unit_SD[one] >= SAME]] = one
    return np.unique(group, return_inverse=True)[1]


def _save_vectors(
    cache: Path, root: Path, asked: list[str], vectors: np.ndarray, texts: list[str]
) -> str:
    """A file for `features.VectorFile`: questions and prompts in one space.

    Those of the prompts where the clone has them.
    """
    files = [root / "embeddings" / f"{name}_embeddings.npy" for name in ("prompt", "gpt4_prompt")]
    known = (
        np.concatenate([np.load(path, allow_pickle=False) for path in files])
        if all(path.is_file() for path in files)
        else None
    )
    fits = known is not None and known.shape[1:] == vectors.shape[1:] and len(known) >= len(texts)
    rows = (
        known[: len(texts)] if known is not None and fits else np.eye(len(texts), vectors.shape[1])
    )
    path = cache / f"clone-{fingerprint(str(vectors[:2].tobytes()), [*asked, *texts])}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        texts=np.array([*asked, *texts]),
        vectors=np.concatenate([vectors, rows]).astype(np.float32),
    )
    return str(path)


def _confidence(
    root: Path,
    dataset: str,
    shape: tuple[int, int],
    first: int,
    aliases: list[str],
    names: list[str],
) -> np.ndarray | None:
    """What Llama-2 said of its own answers to the test queries, where those files are there."""
    paths = [
        root / "critics" / f"Processed_llama_{dataset}_prompt_{aliases.index(name)}_confidence.npy"
        for name in names
    ]
    if not all(path.is_file() for path in paths):
        return None
    table = np.full(shape, np.nan)
    for p, path in enumerate(paths):
        values = np.load(path, allow_pickle=False)
        table[first : first + len(values), p] = values[: shape[0] - first]
    return table


def _responses(
    folder: Path, dataset: str, names: list[str], first: int
) -> dict[tuple[int, int], str]:
    """Answers by (query, prompt), of the files that are there."""
    found: dict[tuple[int, int], str] = {}
    for p, name in enumerate(names):
        starts = {
            f"llama_{dataset}_answers_list_{name}.txt": 0 if name in TRIED else first,
            f"llama_{dataset}_test_answers_list_{name}.txt": first,
        }
        for file, start in starts.items():
            if (folder / file).is_file():
                for n, text in _answers(folder / file):
                    found[start + n, p] = text
    return found


def _answers(path: Path) -> Iterator[tuple[int, str]]:
    """Records `(12, 'text')` between rules.

    What is no such record is an error: an answer must not move to another question.
    """
    for number, record in enumerate(
        path.read_text(encoding="utf-8").split("\n====================\n")
    ):
        if record.strip():
            try:
                place, text = ast.literal_eval(record.strip())
            except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
                raise UsageError(
                    f"answer {number} is not (number, text).",
                    where=str(path),
                    fix="Fetch the file again.",
                ) from None
            yield int(place), str(text)
