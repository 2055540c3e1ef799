"""What a run does to its process, and undoes at its end: signal handlers, torch's threads."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch's operations use `count` threads inside the block; with None, all it would use but one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or max(before - 1, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def set_on_signals(event: threading.Event) -> Iterator[None]:
    """Set the event at the first SIGINT or SIGTERM inside the block; the second acts as it always does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(_number: int, _frame: FrameType | None) -> None:
        event.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()
