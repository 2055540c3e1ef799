"""An interrupt (Ctrl-C) at the n-th moment at which one can come.

CPython runs signal handlers in the main thread, where a Python function begins and where a call of a C function has
ended. Such moments count that are in diskreplay's own code, or in the context managers and locks that it uses; not
those inside numba, LMDB's binding or numpy, which cannot be held to it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import diskreplay

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = str(Path(diskreplay.__file__).parent)
OTHERS = {contextlib.__file__, threading.__file__}


class Interrupt:
    """Raise KeyboardInterrupt at a moment; a context manager, for the thread that enters it.

    Attributes:
        moments: How many there have been.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.moments = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in {"call", "c_return"}:
            return
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE) or (name in OTHERS and _is_ours(frame)):
            self.moments += 1
            if self.moments == self.at:
                sys.setprofile(None)
                raise KeyboardInterrupt


def _is_ours(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename in OTHERS:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)
