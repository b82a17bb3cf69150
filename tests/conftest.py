"""What every test starts from."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

# torch's tensors are small here: one thread is as fast as many, and never waits for another on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random numbers are the same in every run and whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
