"""Threads that plan and read batches, and what they know of each on its way."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskreplay.experience import Batch
    from diskreplay.sampling import Draw
    from diskreplay.sampling.sampler import Request
    from diskreplay.storage.reading import WindowPlan


class Coming:
    """A batch on its way: asked for, planned, read, or failed.

    Attributes:
        request: What asked for its draw.
        planned: The draw and where its windows lie, from when that is known until they are read.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.planned: tuple[Draw, WindowPlan] | None = None
        self._outcome: tuple[Draw, Batch] | Exception | None = None
        self._finished = threading.Lock()  # the cheapest thing to wait for
        self._finished.acquire()

    def pass_through(self, stage: Callable[[Coming], None]) -> None:
        """Have it planned or read; what goes wrong is for the one who waits, and ends it."""
        if self._outcome is None:
            try:
                stage(self)
            except Exception as err:  # noqa: BLE001  raised by `result`
                self.finish(err)

    def finish(self, outcome: tuple[Draw, Batch] | Exception) -> None:
        """Note what came of it."""
        self.planned, self._outcome = None, outcome
        self._finished.release()

    def result(self) -> tuple[Draw, Batch]:
        """Wait for draw and batch; return them, once: held here they would keep their buffer from being used again."""
        self._finished.acquire()
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None  # noqa: S101  finished
        return outcome


class Readers:
    """Threads that take batches through both stages, planning and reading.

    What waits to be planned is planned before a thread reads another batch, so that the kernel reads ahead for all
    batches on their way. Mostly the thread that plans a batch reads it, too: to hand it over to another would cost
    more than its planning.

    Args:
        count: Threads.
        plan, fetch: The stages.
    """

    def __init__(self, count: int, plan: Callable[[Coming], None], fetch: Callable[[Coming], None]) -> None:
        self._plan, self._fetch = plan, fetch
        self._asked: SimpleQueue[Coming | None] = SimpleQueue()
        self._planned: deque[Coming] = deque()
        self._stopped = False
        self._pid = os.getpid()
        self._count = count
        self._threads: list[threading.Thread] = []

    def ask(self, coming: Coming) -> None:
        """Have a batch planned and read."""
        if not self._threads:
            self._start()
        self._asked.put(coming)

    def _start(self) -> None:
        atexit.register(self.stop)
        for number in range(self._count):
            # Daemons: else the interpreter would wait at its end for those that wait for work.
            thread = threading.Thread(target=self._work, name=f"diskreplay-read-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let each thread finish what it is about, and wait for that; what else is on its way stays where it is."""
        atexit.unregister(self.stop)
        self._stopped = True
        if self._pid == os.getpid():  # else the threads are the parent's
            for _ in self._threads:
                self._asked.put(None)
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while not self._stopped:
            try:
                coming = self._asked.get(block=not self._planned)
            except Empty:
                self._read()
            else:
                if coming is not None:
                    coming.pass_through(self._plan)
                    self._planned.append(coming)

    def _read(self) -> None:
        try:
            coming = self._planned.popleft()
        except IndexError:  # another thread took it
            return
        if self._planned:
            self._asked.put(None)  # wakes a thread that waits, if there is one
        coming.pass_through(self._fetch)
