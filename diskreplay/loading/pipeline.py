"""Batches on their way from a draw to tensors: drawn by the caller, planned, announced and read in the background."""

from __future__ import annotations

import contextlib
import os
import resource
import time
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diskreplay.errors import CorruptionWarning, CorruptStoreError, StepEvictedError
from diskreplay.loading.tensors import Buffers, to_device, to_tensors
from diskreplay.loading.threads import Coming, Readers
from diskreplay.storage.gather import are_few
from diskreplay.store.windows import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diskreplay.experience import Batch
    from diskreplay.sampling import Draw, Sampler
    from diskreplay.storage.reading import Fetched, WindowPlan

REDRAWS = 200  # by others who fill the store within a second, say


class Planner:
    """Find where a draw's windows lie; steps evicted since they were drawn are drawn again.

    Args:
        sampler: Drew the steps.
        window: The window's options, as `ReplayStore.plan` takes them.
        skip_damaged: Quarantine damaged segments and go on, instead of raising.

    Attributes:
        redrawn: Transitions drawn again so far.
        skipped: Segments quarantined so far, and why.
    """

    def __init__(self, sampler: Sampler, window: dict[str, Any], *, skip_damaged: bool = False) -> None:
        self.sampler = sampler
        self.window = window
        self.skip_damaged = skip_damaged
        self.redrawn = 0
        self.skipped: dict[int, str] = {}

    def is_small(self, batch_size: int) -> bool:
        """Return whether a batch is so small that its rows are taken while it is planned, if they are in memory."""
        spec, stack = self.sampler.store.spec, self.window["frame_stack"]
        rows = batch_size * 2 * stack
        seen = all(are_few(rows, leaf.row_bytes) for leaf in spec.observation_leaves)
        return seen and all(are_few(batch_size, leaf.row_bytes) for leaf in spec.action_leaves)

    def draw_ahead(self, batch_size: int) -> Draw:
        """Draw a batch that is to be delivered later."""
        return self._drawn(self.sampler.draw_ahead, batch_size)

    def plan(self, draw: Draw) -> tuple[Draw, WindowPlan]:
        """Return the draw, mended if it had to be, and where its windows lie."""
        store = self.sampler.store
        with store.lock:
            for _ in range(REDRAWS):
                try:
                    return draw, store.plan(draw.step_ids, **self.window)
                except StepEvictedError:
                    # Here, since the draw, or by another process; whatever is gone is replaced, the rest stays.
                    store.refresh()
                except CorruptStoreError as err:
                    self.skip(err)
                with contextlib.suppress(StepEvictedError):  # again, while one looks what is gone
                    draw = self.mend(draw)
            return draw, store.plan(draw.step_ids, **self.window)

    def fetch(self, draw: Draw, plan: WindowPlan, buffers: Buffers) -> tuple[Draw, WindowPlan, Fetched]:
        """Read a plan; a damaged segment is left out and its steps drawn again, if that was asked for."""
        while True:
            try:
                return draw, plan, plan.fetch(buffers.take(plan.observations))
            except CorruptStoreError as err:
                self.skip(err)
                draw, plan = self.plan(draw)  # which mends it

    def skip(self, err: CorruptStoreError) -> None:
        """Quarantine the segment that an error is about; raise it, if that was not asked for or there is none."""
        store = self.sampler.store
        try:
            if not self.skip_damaged or err.segment is None:
                raise err
            with store.lock:
                if store.quarantine(err.segment, str(err)):
                    warnings.warn(f"segment {err.segment} is left out: {err}", CorruptionWarning, stacklevel=2)
                    self.skipped[err.segment] = str(err)
                elif err.segment in store.access.live_segments()[0]:
                    raise err
        finally:
            del err  # it holds this frame: a cycle with all that its traceback sees

    def mend(self, draw: Draw) -> Draw:
        """Draw those steps again that cannot be sampled any more."""
        sampler = self.sampler
        draw, count = sampler.mend(draw, lambda size: self._drawn(sampler.draw_again, size))
        self.redrawn += count
        return draw

    def _drawn(self, how: Callable[[int], Draw], size: int) -> Draw:
        while True:
            try:
                return how(size)
            except CorruptStoreError as err:
                self.skip(err)


class Announcing:
    """Announce plans to the kernel, but not each of them while all that is read lies in the page cache anyway.

    What a thread reads from a disk the kernel counts. After `WARM` announcements that began no read, one plan in
    `PROBE` is announced, until a read is seen again.

    Attributes:
        cold: Whether reads were seen lately.
    """

    WARM = 16
    PROBE = 16

    def __init__(self) -> None:
        self.cold = False
        self._quiet = 0
        self._plans = 0

    def announce(self, plan: WindowPlan) -> None:
        """Announce a plan, unless there seems to be no need."""
        self._plans += 1
        if self._quiet < self.WARM or self._plans % self.PROBE == 0:
            before = _blocks_read()
            plan.announce()
            self._note(read=_blocks_read() != before)

    @contextlib.contextmanager
    def fetching(self) -> Iterator[None]:
        """Note whether what is done in this context reads from a disk."""
        before = _blocks_read()
        yield
        if _blocks_read() != before:
            self._note(read=True)

    def _note(self, *, read: bool) -> None:
        self._quiet = 0 if read else self._quiet + 1
        self.cold = read or (self.cold and self._quiet < self.WARM)


def _blocks_read() -> int:
    """Return how much this thread has had read from disks."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class Pipeline:
    """Keep `depth` batches on their way, and hand them out in the order they were drawn.

    Args:
        planner: Plans the draws.
        batch_size: B.
        depth: Batches on their way, at most. Small batches are asked for half as many at a time: then a thread is
            woken, and takes the GIL, once for several.
        threads: Threads that plan and read; 0: the caller does everything, planning ahead all the same.
        most: Threads while reads wait for a disk.
        device: Where the tensors go.
    """

    def __init__(
        self, planner: Planner, *, batch_size: int, depth: int, threads: int, most: int, device: torch.device
    ) -> None:
        self._planner = planner
        self._depth = depth
        self._draw = partial(planner.draw_ahead, batch_size)
        self._at_once = max(1, depth // 2) if planner.is_small(batch_size) else 1
        self._device = device
        self._pid = os.getpid()
        self._buffers = Buffers(depth + most + 2)
        self._readers = Readers(threads, most, self._plan, self._fetch) if threads else None
        self._waiting: deque[Coming] = deque()
        self._announcing = Announcing()
        planner.sampler.store.access.watch_plans(self)

    def plan_all(self) -> None:
        """Plan what is on its way, before steps come or go: a seed fixes the batches whatever the threads do."""
        if self._pid == os.getpid():
            for coming in list(self._waiting):
                coming.pass_through(self._plan)

    def batches(self, waited: list[float]) -> Iterator[Batch]:
        """Yield batches without end; add to `waited[0]` the seconds that each call took."""
        sampler = self._planner.sampler
        try:
            while True:
                started = time.perf_counter()
                sampler.store.check_open()
                self._request()
                coming = self._waiting[0]
                if self._readers is None:
                    coming.pass_through(self._fetch)
                draw, batch = coming.result()
                self._waiting.popleft()
                sampler.delivered(draw)
                waited[0] += time.perf_counter() - started
                yield batch
                del batch  # its buffer would count as held
        finally:
            if self._pid == os.getpid():  # else the threads are the parent's
                if self._readers is not None:
                    self._readers.stop()
                    self._readers = None  # it holds this: a cycle would keep buffers and sampler until it is collected
                sampler.serve()
                sampler.recall([coming.request.made for coming in self._waiting if coming.request.made is not None])
                for coming in self._waiting:  # else only the garbage collector would close their files, some day
                    coming.let_go()
                self._waiting.clear()

    def _request(self) -> None:
        """Have `depth` batches on their way, unless enough of them are.

        The threads draw and plan them, so that the learner need not wait; but not while steps may come at any time
        through a writer: then both is done at once, so that a seed still fixes the batch.
        """
        sampler = self._planner.sampler
        # A function of the batches delivered in all, so that a run that goes on after a cut asks at the same times.
        wanted = self._depth - sampler.batches_delivered % self._at_once
        while len(self._waiting) < wanted:
            coming = Coming(sampler.request(self._draw))
            self._waiting.append(coming)
            if self._readers is None or not sampler.store.steady:
                coming.pass_through(self._plan)
            if self._readers is not None:
                self._readers.ask(coming)

    def _plan(self, coming: Coming) -> None:
        with self._planner.sampler.store.lock:
            if coming.begun:
                return
            coming.begun = True
            self._planner.sampler.serve()
            planned = coming.planned = self._planner.plan(coming.request.result())
        if not planned[1].complete:
            self._announcing.announce(planned[1])

    def _fetch(self, coming: Coming) -> None:
        assert coming.planned is not None  # noqa: S101  by _plan
        if coming.planned[1].complete:
            draw, plan = coming.planned
            fetched = plan.fetch()
        else:
            with self._announcing.fetching():
                draw, plan, fetched = self._planner.fetch(*coming.planned, self._buffers)
            if self._readers is not None:
                self._readers.widen(wide=self._announcing.cold)
        batch = assemble(self._planner.sampler.store.spec, plan, fetched, draw.weight)
        tensors = to_tensors(batch, pin=self._device.type == "cuda")
        coming.finish((draw, tensors if self._device.type == "cpu" else to_device(tensors, self._device)))
