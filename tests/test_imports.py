"""Importing is cheap: nothing heavy is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import diskreplay


@pytest.mark.parametrize("code", ["import diskreplay", "from diskreplay.commands import main"])
def test_importing_loads_nothing_heavy(code):
    """Neither torch nor numba, zarr, gymnasium or matplotlib."""
    heavy = ["torch", "numba", "zarr", "lmdb", "gymnasium", "matplotlib", "numpy"]
    script = f"import sys; {code}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_needs_no_torch():
    """Only loaders and learners do."""
    script = "import sys; from diskreplay import ReplayStore, PrioritizedSampler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there():
    """`__all__`, the lazy table and `dir` agree."""
    for name in diskreplay.__all__:
        assert getattr(diskreplay, name).__doc__
        assert name in dir(diskreplay)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diskreplay.nothing  # noqa: B018
