"""Fixtures of the learning tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def rng():
    return np.random.default_rng(20160)


@pytest.fixture(autouse=True)
def _torch_seed():
    """Seed torch, so that a test sees the same weights in any order."""
    torch.manual_seed(0)
