"""Large arrays of zeros of which little may ever be touched.

Each has a mapping of its own, so that a page takes memory when it is first written and all of them go with the array.
On the C library's heap, where arrays of up to 32 MB come to lie once one was freed, zeros are written over what room
was used before, what is freed mostly stays with the process, and what the kernel is told of an array's pages outlives
it and cuts the heap into ever more mappings, of which a process may have 65,530.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ALIGNMENT = 128  # a tree's siblings start on such an address: two cache lines, never three; leaves on half of it
LEAST = 1 << 17  # bytes of a mapping of its own: as for the C library, before it has freed any
HUGE = 2 << 20  # bytes of a huge page
MOSTLY = 3 / 4  # of a huge page in use is enough
TRIES = 2  # at finding room for one
_HUGE, _NOT_HUGE, _COLLAPSE = 14, 15, 25  # MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE


def zeros(size: int, dtype: np.dtype[Any], *, huge: bool) -> NDArray[Any]:
    """Return an array of zeros, (size,), that starts on a multiple of `ALIGNMENT`.

    Args:
        size: Elements.
        dtype: Their type.
        huge: As for `allow_huge_pages`.
    """
    length = size * dtype.itemsize
    if length < LEAST:
        room = np.zeros(length + ALIGNMENT, np.uint8)
        skip = -room.ctypes.data % ALIGNMENT
        return room[skip : skip + length].view(dtype)
    array = np.frombuffer(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype)
    allow_huge_pages(array, allowed=huge)
    return array


def allow_huge_pages(array: NDArray[Any], *, allowed: bool) -> None:
    """Tell the kernel whether pages of an array of `zeros` may be huge; where it has no such call, nothing happens.

    They make a tree whose leaves are all in use faster. Where few are, one written byte would take 2 MB.
    """
    if array.nbytes >= LEAST and (advise := _madvise()) is not None:
        advice = ctypes.c_int(_HUGE if allowed else _NOT_HUGE)
        advise(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), advice)


class HugePages:
    """Puts what was loaded block by block into huge pages, wherever one of them is mostly in use.

    Until then pages must be small: else a block that is touched would take 2 MB. Of a tree of a billion leaves draws
    and updates take three quarters of the time afterwards, for fewer pages' addresses have to be looked up. The
    kernel would do it by itself, at 16 MB in 10 s.

    Args:
        block_bytes: Bytes of a block in the array that has most of them.
    """

    def __init__(self, block_bytes: int) -> None:
        self._blocks = max(1, HUGE // block_bytes)
        self._seen: set[int] = set()
        self._waiting: list[int] = []

    def forget(self) -> None:
        """Begin anew: the arrays are others."""
        self._seen.clear()
        self._waiting.clear()

    def note(self, blocks: NDArray[np.int64], loaded: NDArray[np.bool_], *arrays: tuple[NDArray[Any], int]) -> None:
        """Note that blocks were loaded; make huge pages for one region of those that are mostly in use by now.

        Args:
            blocks: (n,).
            loaded: Which blocks are loaded, (blocks,) or longer.
            arrays: Each array and its elements per block.

        Cost: 2 to 10 ms where huge pages are made, and so for one region a call: nobody is to wait for all of them.
        """
        for region in sorted(set((blocks // self._blocks).tolist()).difference(self._seen)):
            if loaded[region * self._blocks : (region + 1) * self._blocks].sum() >= MOSTLY * self._blocks:
                self._seen.add(region)
                self._waiting.append(region)
        if self._waiting:
            first = self._waiting.pop() * self._blocks
            for array, size in arrays:
                _collapse(array, first * size, (first + self._blocks) * size)


def _collapse(array: NDArray[Any], first: int, stop: int) -> None:
    """Have the kernel put elements of an array, and what else their huge pages would hold, into such pages."""
    advise, begin, end = _madvise(), array.ctypes.data, array.ctypes.data + array.nbytes
    start = max(begin, (begin + first * array.itemsize) // HUGE * HUGE)
    end = min(end, -(-(begin + stop * array.itemsize) // HUGE) * HUGE)
    if advise is not None and array.nbytes >= HUGE and start < end:
        for _ in range(TRIES):
            if not advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(_COLLAPSE)):
                break


@cache
def _madvise() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "madvise", None)
