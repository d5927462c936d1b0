"""Findings that several tests look at, computed once a process."""

import functools

import pytest

from laurel.verify.suite import run_part


@pytest.fixture(scope="session")
def findings():
    """`findings("steps")` -> every finding of that part, in each of its precisions, or in those
    that are named.
    """
    return functools.cache(lambda part, *precisions: tuple(run_part(part, precisions=precisions)))
