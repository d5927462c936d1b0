"""Texts as vectors: words, sentence-transformers, or vectors that you bring.

Words need no weights and are the default. Then a few principal directions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from scipy import sparse

from laurel.core.errors import UsageError

BUCKETS = 1 << 14
"""Words and pairs of words are counted in so many buckets."""
DIRECTIONS = 64
"""Kept of any encoding."""
WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|[?%$€£/:]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
Rows = Any
"""A numpy array or a sparse matrix of scipy, [n, d]."""


class Encoder(Protocol):
    """Texts to rows of numbers; `name` finds it again (see `encoder`)."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Rows: ...


class HashedWords:
    """Hashed words and pairs of words, log(1 + count), and a few counts.

    Length, numbers, their sizes. It needs no weights.

    A number is one token `#`, so that a question stays itself when its figures change; how many and
    how large they are is counted apart.
    """

    name = "words"

    def __call__(self, texts: Sequence[str]) -> Rows:
        """[n, BUCKETS + 8], sparse."""
        return sparse.hstack(
            [
                self._counts(texts),
                sparse.csr_matrix(
                    np.array([surface_features(text) for text in texts]).reshape(-1, 8)
                ),
            ]
        ).tocsr()

    def _counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        places: list[int] = []
        ends = [0]
        known: dict[str, int] = {}
        for text in texts:
            words = ["#" if word[0].isdigit() else word for word in WORD.findall(text.casefold())]
            for gram in (*words, *map(" ".join, pairwise(words))):
                place = known.get(gram)
                places.append(
                    known.setdefault(gram, crc32(gram.encode()) % BUCKETS)
                    if place is None
                    else place
                )
            ends.append(len(places))
        counts = sparse.csr_matrix(
            (np.ones(len(places)), places, ends), shape=(len(texts), BUCKETS)
        )
        counts.sum_duplicates()
        counts.data = np.log1p(counts.data)
        return counts


def surface_features(text: str) -> list[float]:
    """Eight numbers of a text.

    Length, how many numbers, how large, whether decimal, questions, sentences, money or percent,
    halves.
    """
    numbers = [
        float(number.replace(",", "")) if number.count(".") < 2 else 0.0
        for number in NUMBER.findall(text)
    ]
    folded = text.casefold()
    return [
        math.log1p(len(text.split())),
        math.log1p(len(numbers)),
        math.log1p(min(max(numbers, default=0.0), 1e12)),
        float(any(number != int(number) for number in numbers if math.isfinite(number))),
        math.log1p(text.count("?")),
        math.log1p(len(re.findall(r"[.!?]", text))),
        float("$" in text or "%" in text),
        float(
            any(
                word in folded for word in ("half", "twice", "third", "quarter", "times", "percent")
            )
        ),
    ]


class SentenceEncoder:
    """A model of sentence-transformers, by hub name or folder.

    Texts that it has seen are kept in the process.
    """

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            fix = "pip install 'laurel-rl[prompt]', or --features words, which needs no weights."
            raise UsageError(
                "`sentence-transformers` is not installed.", where=f"--features {name}", fix=fix
            )
        import sentence_transformers

        self.name = (
            str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
        )
        try:
            self.model = sentence_transformers.SentenceTransformer(self.name)
        except (OSError, ValueError) as error:
            message = " ".join(str(error).split())[:200]
            raise UsageError(
                f"no model of sentence-transformers: {message}",
                where=f"--features {name}",
                fix="Give a folder or a name.",
            ) from None
        self.seen: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32."""
        new = sorted(set(texts) - self.seen.keys())
        if new:
            self.seen.update(
                zip(
                    new,
                    np.asarray(
                        self.model.encode(new, batch_size=64, show_progress_bar=len(new) > 1000)
                    ),
                    strict=True,
                )
            )
        return np.stack([self.seen[text] for text in texts])


class VectorFile:
    """Vectors of a file: an .npz with `texts` and `vectors`, row by row."""

    def __init__(self, path: str) -> None:
        self.name = str(Path(path).expanduser().resolve())  # found again from another folder
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as file:
                texts, vectors = file["texts"], np.asarray(file["vectors"], dtype=np.float32)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            fix = "numpy.savez(FILE, texts=[...], vectors=[...]) makes one."
            raise UsageError(
                f"no file of vectors: {error}.", where=f"--features {path}", fix=fix
            ) from None
        if vectors.ndim != 2 or texts.shape != vectors.shape[:1] or not np.isfinite(vectors).all():
            raise UsageError(
                f"{texts.shape} texts and vectors of {vectors.shape}.",
                where=f"--features {path}",
                fix="One finite row a text.",
            )
        self.known = {str(text): row for text, row in zip(texts, vectors, strict=True)}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32."""
        missing = [text for text in texts if text not in self.known]
        if missing:
            fix = "Add every query and every prompt."
            raise UsageError(
                f"{len(missing)} texts have no vector, such as {missing[0]!r:.60}.",
                where=self.name,
                fix=fix,
            )
        return np.stack([self.known[text] for text in texts])


def encoder(name: str) -> Encoder:
    """`words`, a file `.npz` of vectors, or a model of sentence-transformers by folder or name."""
    if name == HashedWords.name:
        return HashedWords()
    return VectorFile(name) if name.endswith(".npz") else SentenceEncoder(name)


class PrincipalDirections:
    """An encoder's rows in at most `count` directions.

    Each has mean 0 and deviation 1 over the texts it was fitted on.

    Rows weighed by rarity where they are counts (log(n / documents)), then the leading right
    singular vectors. `arrays` is its whole state.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(cls, rows: Rows, *, count: int = DIRECTIONS, seed: int = 0) -> PrincipalDirections:
        """From the training texts; labels are not looked at."""
        plain = (
            8 if sparse.issparse(rows) else 0
        )  # the last columns of `HashedWords` go in as they are
        body = rows[:, : rows.shape[1] - plain]
        if sparse.issparse(rows):
            documents = np.asarray((body > 0).sum(0)).ravel()
            weight = np.where(documents > 0, np.log((1 + body.shape[0]) / (1 + documents)) + 1, 0.0)
        else:
            weight = np.ones(body.shape[1])
        made = cls(
            {
                "weight": weight,
                "basis": _basis(
                    _weigh_and_normalise(body, weight),
                    min(count, body.shape[0] - 1, body.shape[1]),
                    seed,
                ),
            }
        )
        made.arrays |= {"plain": np.array(plain), "mean": np.zeros(()), "scale": np.ones(())}
        raw = made(rows)
        spread = raw.std(0)
        made.arrays |= {
            "mean": raw.mean(0),
            "scale": np.where(spread > 1e-6, spread, np.inf),
        }  # a constant column says nothing
        return made

    def __call__(self, rows: Rows) -> np.ndarray:
        """[n, count (+ the plain columns)]."""
        plain = int(self.arrays["plain"])
        cut = rows.shape[1] - plain
        found = _weigh_and_normalise(rows[:, :cut], self.arrays["weight"]) @ self.arrays["basis"].T
        if plain:
            found = np.hstack([found, rows[:, cut:].toarray()])
        return (found - self.arrays["mean"]) / self.arrays["scale"]


def _weigh_and_normalise(rows: Rows, weight: np.ndarray) -> Rows:
    """Rows times weight, each then of length 1."""
    rows = (
        rows @ sparse.diags(weight)
        if sparse.issparse(rows)
        else np.asarray(rows, dtype=np.float64) * weight
    )
    length = (
        np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
        if sparse.issparse(rows)
        else np.linalg.norm(rows, axis=1)
    )
    length = np.where(length > 0, length, 1.0)
    return sparse.diags(1 / length) @ rows if sparse.issparse(rows) else rows / length[:, None]


def _basis(rows: Rows, count: int, seed: int) -> np.ndarray:
    """The `count` leading right singular vectors [count, d], by a randomised range finder.

    Halko et al. 2011, arXiv:0909.4061.
    """
    used = np.unique(
        rows.nonzero()[1]
    )  # few buckets hold any word: the others only make the decompositions slow
    basis = np.zeros((max(count, 0), rows.shape[1]))
    if count < 1 or not len(used):
        return basis
    probe = np.random.default_rng(seed).standard_normal(
        (rows.shape[1], min(count + 16, *rows.shape))
    )[used]
    if len(used) < probe.shape[1]:
        probe = np.eye(len(used))  # so few columns are their own range
    rows = rows[:, used]
    for _ in range(4):  # power iterations
        probe, _ = np.linalg.qr(rows.T @ np.linalg.qr(rows @ probe)[0])
    _, _, turned = np.linalg.svd(rows @ probe, full_matrices=False)
    found = (probe @ turned.T).T[:count]
    basis[: len(found), used] = found
    return basis


def fingerprint(name: str, texts: Sequence[str]) -> str:
    """A short name for (encoder, texts), by which rows that took long are kept."""
    digest = hashlib.sha256(name.encode())
    for text in texts:
        digest.update(b"\0" + text.encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def encode_cached(encode: Encoder, texts: Sequence[str], cache: Path | None = None) -> Any:
    """The encoder's rows.

    With a folder `cache`, those of sentence-transformers are kept there and read the next time.
    """
    if cache is None or not isinstance(encode, SentenceEncoder):
        return encode(texts)
    path = cache / f"{fingerprint(encode.name, texts)}.npy"
    if path.is_file():
        rows = np.load(path, allow_pickle=False)
        encode.seen.update(zip(texts, rows, strict=True))
        return rows
    rows = encode(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return rows
