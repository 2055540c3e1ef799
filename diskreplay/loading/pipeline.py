"""Batches on their way from a draw to tensors: drawn by the caller, planned, announced and read in the background."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diskreplay.errors import StepEvictedError
from diskreplay.experience import Batch
from diskreplay.loading.tensors import Buffers, to_device, to_tensors
from diskreplay.sampling import Draw
from diskreplay.store.windows import assemble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diskreplay.sampling import Sampler
    from diskreplay.storage.reading import WindowPlan

REDRAWS = 3


class Planner:
    """Find where a draw's windows lie; steps evicted since they were drawn are drawn again.

    Args:
        sampler: Drew the steps.
        window: The window's options, as `ReplayStore.plan` takes them.

    Attributes:
        redrawn: Transitions drawn again so far.
    """

    def __init__(self, sampler: Sampler, window: dict[str, Any]) -> None:
        self.sampler = sampler
        self.window = window
        self.redrawn = 0

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
                    draw = self._mend(draw)
            return draw, store.plan(draw.step_ids, **self.window)

    def _mend(self, draw: Draw) -> Draw:
        store, sampler = self.sampler.store, self.sampler
        segments, _ = store.access.live_segments()
        gone = ~np.isin(draw.step_ids // store.segment_steps, segments)
        other = sampler.draw(len(draw.step_ids))
        self.redrawn += int(gone.sum())
        weight = np.where(gone, other.weight, draw.weight).astype(np.float32)
        return sampler.mend(draw, np.where(gone, other.step_ids, draw.step_ids), weight)


class Pipeline:
    """Keep `depth` batches on their way, and hand them out in the order they were drawn.

    One thread plans and announces, so that the kernel reads ahead for all batches on their way; the others fetch.

    Args:
        planner: Plans the draws.
        batch_size: B.
        depth: Batches on their way.
        threads: Threads that fetch.
        device: Where the tensors go.
    """

    def __init__(self, planner: Planner, *, batch_size: int, depth: int, threads: int, device: torch.device) -> None:
        self._planner = planner
        self._batch_size = batch_size
        self._depth = depth
        self._device = device
        self._pid = os.getpid()
        self._buffers = Buffers(depth + threads + 2)
        self._planning = ThreadPoolExecutor(1, thread_name_prefix="diskreplay-plan")
        self._reading = ThreadPoolExecutor(threads, thread_name_prefix="diskreplay-read")
        self._waiting: deque[tuple[Draw, Future[Future[tuple[Draw, Batch]]]]] = deque()

    def batches(self, waited: list[float]) -> Iterator[Batch]:
        """Yield batches without end; add to `waited[0]` the seconds that each call took."""
        sampler = self._planner.sampler
        try:
            while True:
                started = time.perf_counter()
                while len(self._waiting) < self._depth:
                    drawn = sampler.draw_ahead(self._batch_size)
                    self._waiting.append((drawn, self._planning.submit(self._plan, drawn)))
                _, future = self._waiting[0]
                draw, batch = future.result().result()
                self._waiting.popleft()
                del future  # it holds the batch, whose buffer would count as held
                sampler.delivered(draw)
                waited[0] += time.perf_counter() - started
                yield batch
                del batch
        finally:
            if self._pid != os.getpid():
                return  # the threads are the parent's
            self._planning.shutdown(wait=True, cancel_futures=True)
            self._reading.shutdown(wait=True, cancel_futures=True)
            sampler.recall([draw for draw, _ in self._waiting])

    def _plan(self, draw: Draw) -> Future[tuple[Draw, Batch]]:
        draw, plan = self._planner.plan(draw)
        plan.announce()
        return self._reading.submit(self._fetch, draw, plan)

    def _fetch(self, draw: Draw, plan: WindowPlan) -> tuple[Draw, Batch]:
        fetched = plan.fetch(self._buffers.take(plan.observations))
        batch = assemble(self._planner.sampler.store.spec, plan, fetched, draw.weight)
        tensors = to_tensors(batch, pin=self._device.type == "cuda")
        return draw, tensors if self._device.type == "cpu" else to_device(tensors, self._device)
