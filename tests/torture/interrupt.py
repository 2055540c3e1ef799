"""An interrupt (Ctrl-C) at a moment at which one can come.

CPython runs signal handlers in the main thread, where a Python function begins and where a call of a C function has
ended. Such moments count that are in diskreplay's own code, or in the context managers and locks that it uses; not
those inside numba, LMDB's binding or numpy, which cannot be held to it.

Most moments of a life are repeats of others, and what happens once in a life is seldom met by chance: so moments are
told apart by their place, the line and instruction of diskreplay's innermost function and of those that called it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import diskreplay

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = str(Path(diskreplay.__file__).parent)
OTHERS = {contextlib.__file__, threading.__file__}
DEPTH = 3  # frames of diskreplay's own: 3,300 places in a life; with all of them 13,800


class Interrupt:
    """Raise KeyboardInterrupt at the n-th moment at a place; a context manager, for the thread that enters it.

    Attributes:
        met: How often each place was, up to the interrupt.
    """

    def __init__(self, place: str = "", at: int = 1) -> None:
        self.place = place
        self.at = at
        self.met: Counter[str] = Counter()
        self._last = int(place.partition(" ")[0].rpartition("+")[2]) if place else -1

    def __enter__(self) -> Self:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in {"call", "c_return"} or (self.place and frame.f_lasti != self._last):
            return
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) and name not in OTHERS:
            return
        place = place_of(frame)
        if place:
            self.met[place] += 1
            if place == self.place and self.met[place] == self.at:
                sys.setprofile(None)
                raise KeyboardInterrupt


def place_of(frame: FrameType | None) -> str:
    """Return where a moment is, innermost first; empty where diskreplay's own code has no part in it."""
    parts: list[str] = []
    left = DEPTH
    while frame is not None and left:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            left -= 1
        elif code.co_filename not in OTHERS:
            break
        parts.append(f"{Path(code.co_filename).stem}.{code.co_qualname}:{frame.f_lineno}+{frame.f_lasti}")
        frame = frame.f_back
    return " < ".join(parts) if left < DEPTH else ""
