"""The seeds that everything which learns must learn with: the first in every run of the suite, all
three behind `make verify`.
"""

import pytest

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.whole) for seed in (1, 2))]
