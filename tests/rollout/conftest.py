"""What the tests of servers that sample have in common."""

import pytest

from laurel.core import http
from laurel.model.scratch import save_scratch


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small model's folder."""
    folder = tmp_path_factory.mktemp("engine") / "model"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_scratch(folder, alphabet="0123456789+=", seed=0, **shape)
    return folder


@pytest.fixture
def hasty(monkeypatch):
    """Short pauses between tries."""
    monkeypatch.setattr(http, "PAUSES", (0.02, 0.05))
