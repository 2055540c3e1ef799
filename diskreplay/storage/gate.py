"""A gate that lets threads in, until it has to close: what a fork and a reopening wait at."""

from __future__ import annotations

import threading
import time
import weakref

LOOK_S = 0.1  # how often a gate that closes looks whether who is inside left without saying so


class Visit:
    """A thread's way in and out; made by `Gate.visit`.

    The gate holds no reference: a visit that an interrupt (Ctrl-C) ended before it could say so is over when the
    interpreter has let go of it.
    """

    __slots__ = ("__weakref__", "_gate", "thread")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        self._gate.enter(self)

    def __exit__(self, *_: object) -> None:
        self._gate.leave(self)


class Gate:
    """Let any number of threads in, as deep as they like; or close, once all are out."""

    def __init__(self) -> None:
        # Taken by itself, not through the condition, whose own methods are Python: an interrupt in them keeps it.
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._visits: weakref.WeakSet[Visit] = weakref.WeakSet()
        self._closed = False

    def visit(self) -> Visit:
        """Return a context manager within which the gate does not close."""
        return Visit(self)

    def enter(self, visit: Visit) -> None:
        """Let a visit in; one that is deeper inside passes a closed gate, too."""
        with self._lock:
            while self._closed and not self._is_inside(visit.thread):
                self._condition.wait()
            self._visits.add(visit)

    def leave(self, visit: Visit) -> None:
        """Let it out."""
        with self._lock:
            self._visits.discard(visit)
            self._condition.notify_all()

    def close(self, patience: float) -> bool:
        """Wait until nobody is inside, and let nobody in; return whether that came true in time."""
        until = time.monotonic() + patience
        with self._lock:
            if self._is_inside(threading.get_ident()):
                return False
            if not self._condition.wait_for(lambda: not self._closed, patience):
                return False
            out = False
            try:
                self._closed = True
                while not (out := not self._visits) and (left := until - time.monotonic()) > 0:
                    self._condition.wait(min(left, LOOK_S))
            finally:  # an interrupt may end the wait, and must not leave the others waiting for good
                if not out:
                    self._closed = False
                    self._condition.notify_all()
            return out

    def open(self) -> None:
        """Let threads in again."""
        with self._lock:
            self._closed = False
            self._condition.notify_all()

    def _is_inside(self, thread: int) -> bool:
        return any(visit.thread == thread for visit in self._visits)
