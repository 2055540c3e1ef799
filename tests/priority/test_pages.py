"""Arrays with pages of their own take what is written, give it back, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diskreplay.priority.pages import ALIGNMENT, LEAST, allow_huge_pages, zeros

MEMORY, MAPPINGS = Path("/proc/self/smaps_rollup"), Path("/proc/self/maps")


def anonymous():
    """Return the kB of anonymous memory that this process has."""
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1])


def mappings():
    """Return how many mappings this process has."""
    return MAPPINGS.read_bytes().count(b"\n")


@pytest.mark.parametrize("size", [0, 1, 1000, LEAST // 8 - 1, LEAST // 8, LEAST])
@pytest.mark.parametrize("huge", [True, False])
def test_they_are_zeros(size, huge):
    """As numpy's are, on an address that suits the tree."""
    array = zeros(size, np.dtype(np.float64), huge=huge)
    assert array.shape == (size,)
    assert array.dtype is np.dtype(np.float64)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert size == 0 or array.ctypes.data % ALIGNMENT == 0
    assert not array.any()
    array[:] = 3
    assert array.sum() == 3 * size


@pytest.mark.skipif(not MEMORY.exists(), reason="Linux tells it in /proc")
def test_they_leave_nothing_behind():
    """Neither memory nor mappings, however often huge pages are allowed and not; small ones are let alone."""

    def use(turn):
        sizes = (1 << 10, (1 << 18) + 5000 * turn, 1 << 20)
        kept = [zeros(size, np.dtype(np.float32), huge=False) for size in sizes]
        for array in kept:
            array[:: 1 << 12] = 1
            allow_huge_pages(array, allowed=turn % 2 == 0)
        return np.ones(1 << 10)  # on the heap, it would come to lie between them

    behind = [use(turn) for turn in range(20)]
    memory, count = anonymous(), mappings()
    behind += [use(turn) for turn in range(100)]
    assert anonymous() - memory < 2048 + sum(array.nbytes for array in behind) // 1024
    assert mappings() - count < 10


@pytest.mark.skipif(not MEMORY.exists(), reason="Linux tells it in /proc")
def test_what_is_not_written_takes_no_memory():
    """Also where room of that size was freed before: on the heap it would be overwritten with zeros."""
    for _ in range(5):
        before = anonymous()
        array = zeros(1 << 20, np.dtype(np.float64), huge=False)
        array[[0, 1 << 19]] = 1
        assert anonymous() - before < 2048
        del array
