"""Where a test runs: its body on the CPU, here and everywhere; the same body on CUDA, behind the
mark `gpu`.
"""

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
