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
_HUGE, _NOT_HUGE = 14, 15  # MADV_HUGEPAGE, MADV_NOHUGEPAGE


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


@cache
def _madvise() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "madvise", None)
