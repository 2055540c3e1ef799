"""Arrays with pages of their own take what is written, give it back, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diskreplay.priority import pages
from diskreplay.priority.pages import ALIGNMENT, HUGE, LEAST, HugePages, allow_huge_pages, zeros

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


def test_regions_that_are_mostly_loaded_are_put_into_huge_pages(monkeypatch):
    """Each once, and one a call."""
    made = []
    monkeypatch.setattr(pages, "_collapse", lambda _, first, stop: made.append((first, stop)))
    huge = HugePages(HUGE // 4)
    loaded, array = np.zeros(12, np.bool_), np.zeros(12)
    for blocks, expected in (
        ([0, 1, 4], []),
        ([2, 5, 6], [(8, 16)]),
        ([3], [(0, 8)]),
        ([7], []),
        ([8, 9, 10, 11], [(16, 24)]),
    ):
        loaded[blocks] = True
        made.clear()
        huge.note(np.array(blocks), loaded, (array, 2))
        assert made == expected
    made.clear()
    huge.forget()
    huge.note(np.array([0]), loaded, (array, 2), (array, 1))
    assert made == [(0, 8), (0, 4)]


def test_huge_pages_hold_what_was_there():
    """Where the kernel gives them; where it does not, nothing happens."""
    array = zeros(3 * HUGE // 8, np.dtype(np.float64), huge=False)
    array[:] = np.arange(array.size)
    allow_huge_pages(array, allowed=True)
    huge = HugePages(HUGE // 2)
    for _ in range(3):
        huge.note(np.arange(6), np.ones(6, np.bool_), (array, array.size // 6))
    assert (array == np.arange(array.size)).all()
