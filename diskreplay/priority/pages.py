"""Large arrays of zeros of which little is touched: no huge pages for them, as one written byte would take 2 MB.

numpy asks for huge pages for every large array. They make a tree whose leaves are all in use faster, so they are
asked for again once most of it is.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HUGE, _NOT_HUGE = 14, 15  # MADV_HUGEPAGE, MADV_NOHUGEPAGE


def allow_huge_pages(array: NDArray[Any], *, allowed: bool) -> None:
    """Tell the kernel whether the array's pages may be huge; where it has no such call, nothing happens."""
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (array.ctypes.data + array.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if length > 0 and advise is not None:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_HUGE if allowed else _NOT_HUGE))
