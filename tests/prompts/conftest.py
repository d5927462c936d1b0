"""Fits that several tests ask about are made once a run; tests whose point is not the search for a
model search among three.
"""

import pickle
from pathlib import Path

import pytest

from laurel_prompts import fit as fitting
from laurel_prompts.models import Logistic, Rates
from laurel_prompts.synthetic import synthetic_log


@pytest.fixture(scope="session")
def fitted(once):
    """(log, truth, fit): of 3,000 queries with an interaction, by the whole grid."""

    def make(folder: Path) -> None:
        log, truth = synthetic_log(3000)
        (folder / "fit").write_bytes(pickle.dumps((log, truth, fitting.fit(log))))

    return pickle.loads((once("prompt-fit", make) / "fit").read_bytes())


@pytest.fixture(params=["three models", pytest.param("the whole grid", marks=pytest.mark.whole)])
def models(request, monkeypatch):
    """Cross-validation chooses from a constant, a line and a line over prompts' features; behind
    `make verify` from all there are.

    The whole grid is searched in the suite, too: by `fitted`, where there is nothing to find, and
    from the command line.
    """
    if request.param == "three models":
        monkeypatch.setattr(
            fitting,
            "candidate_models",
            lambda: [
                Rates(),
                Logistic("heads", 100.0),
                Logistic("features", 100.0),
            ],
        )
