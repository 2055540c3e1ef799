"""A gate that lets threads in, until it has to close: what a fork and a reopening wait at."""

from __future__ import annotations

import threading


class Gate:
    """Let any number of threads in, as deep as they like; or close, once all are out."""

    def __init__(self) -> None:
        # Taken by itself, not through the condition, whose own methods are Python: an interrupt in them keeps it.
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._inside = 0
        self._closed = False
        self._local = threading.local()

    @property
    def depth(self) -> int:
        """Return how deep this thread is inside."""
        return getattr(self._local, "depth", 0)

    def __enter__(self) -> None:
        depth = self.depth
        if not depth:
            with self._lock:
                while self._closed:
                    self._condition.wait()
                self._inside += 1
        self._local.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._local.depth = depth = self.depth - 1
        if not depth:
            with self._lock:
                self._inside -= 1
                self._condition.notify_all()

    def close(self, patience: float) -> bool:
        """Wait until nobody is inside, and let nobody in; return whether that came true in time."""
        if self.depth:
            return False
        with self._lock:
            if not self._condition.wait_for(lambda: not self._closed, patience):
                return False
            out = False
            try:
                self._closed = True
                out = self._condition.wait_for(lambda: not self._inside, patience)
            finally:  # an interrupt (Ctrl-C) may end the wait, and must not leave the others waiting for good
                if not out:
                    self._closed = False
                    self._condition.notify_all()
            return out

    def open(self) -> None:
        """Let threads in again."""
        with self._lock:
            self._closed = False
            self._condition.notify_all()
