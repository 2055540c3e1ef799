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
        begun: Whether somebody plans it, or did.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.planned: tuple[Draw, WindowPlan] | None = None
        self.begun = False
        self._over = False
        self._outcome: tuple[Draw, Batch] | Exception | None = None
        self._finished = threading.Lock()  # the cheapest thing to wait for
        self._finished.acquire()

    def pass_through(self, stage: Callable[[Coming], None]) -> None:
        """Have it planned or read; what goes wrong is for the one who waits, and ends it."""
        if not self._over:
            try:
                stage(self)
            except Exception as err:  # noqa: BLE001  raised by `result`
                self.finish(err)

    def finish(self, outcome: tuple[Draw, Batch] | Exception) -> None:
        """Note what came of it."""
        self.planned, self._outcome, self._over = None, outcome, True
        self._finished.release()

    def let_go(self) -> None:
        """Give up the plan, which holds its files open, and the batch: nobody will ask for it."""
        self.planned = self._outcome = None
        self._over = True
        self.request.let_go()

    def result(self) -> tuple[Draw, Batch]:
        """Wait for draw and batch; return them, once: held here they would keep their buffer from being used again."""
        self._finished.acquire()
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome  # it holds this frame: a cycle with all that its traceback sees
        assert outcome is not None  # noqa: S101  finished
        return outcome


class Readers:
    """Threads that take batches through both stages, planning and reading.

    What waits to be planned is planned before a thread reads another batch, so that the kernel reads ahead for all
    batches on their way. Mostly the thread that plans a batch reads it, too: to hand it over to another would cost
    more than its planning.

    Args:
        count: Threads.
        most: Threads while reads wait for a disk, see `widen`.
        plan, fetch: The stages.
    """

    def __init__(self, count: int, most: int, plan: Callable[[Coming], None], fetch: Callable[[Coming], None]) -> None:
        self._plan, self._fetch = plan, fetch
        self._most = most
        self._wide = False
        self._changing = threading.Lock()
        self._asked: SimpleQueue[Coming | None] = SimpleQueue()
        self._planned: deque[Coming] = deque()
        self._stopped = False
        self._pid = os.getpid()
        self._count = count
        self._threads: dict[int, threading.Thread] = {}

    def ask(self, coming: Coming) -> None:
        """Have a batch planned and read."""
        if not self._threads:
            self._start()
        self._asked.put(coming)

    def widen(self, *, wide: bool) -> None:
        """Have more threads while reads wait for a disk, and no more than there are cores while they do not.

        Threads that wait for a disk leave the cores idle; more threads than cores that decode push each other's
        chunks out of the caches.
        """
        if wide != self._wide:
            with self._changing:
                self._wide = wide
                if wide and not self._stopped:
                    self._start_threads(self._count, self._most)

    def _start(self) -> None:
        atexit.register(self.stop)
        with self._changing:
            self._start_threads(0, self._count)

    def _start_threads(self, first: int, stop: int) -> None:
        for number in range(first, stop):
            if number not in self._threads:
                # Daemons: else the interpreter would wait at its end for those that wait for work.
                name = f"diskreplay-read-{number}"
                thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
                self._threads[number] = thread
                thread.start()

    def stop(self) -> None:
        """Let each thread finish what it is about, and wait for that; what else is on its way stays where it is."""
        atexit.unregister(self.stop)
        self._stopped = True
        if self._pid == os.getpid():  # else the threads are the parent's
            with self._changing:
                threads = list(self._threads.values())
            for _ in threads:
                self._asked.put(None)
            for thread in threads:
                thread.join()

    def _work(self, number: int) -> None:
        while not self._stopped and not self._leave(number):
            try:
                coming = self._asked.get(block=not self._planned)
            except Empty:
                self._read()
            else:
                if coming is not None:
                    coming.pass_through(self._plan)
                    self._planned.append(coming)

    def _leave(self, number: int) -> bool:
        """Return whether this thread is one too many by now."""
        if number < self._count:
            return False
        with self._changing:
            if self._wide:
                return False
            del self._threads[number]
        self._asked.put(None)  # another sees to what this one planned
        return True

    def _read(self) -> None:
        try:
            coming = self._planned.popleft()
        except IndexError:  # another thread took it
            return
        if self._planned:
            self._asked.put(None)  # wakes a thread that waits, if there is one
        coming.pass_through(self._fetch)
