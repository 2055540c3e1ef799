"""ReplayLoader: a torch DataLoader over a sampler, reading ahead in threads or in worker processes."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diskreplay.errors import StepEvictedError
from diskreplay.experience import Batch
from diskreplay.loading.tensors import Buffers, to_device, to_tensors
from diskreplay.sampling import Draw
from diskreplay.storage.reading import FileCache, WindowPlan
from diskreplay.store.windows import assemble, check_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diskreplay.experience import StepSpec
    from diskreplay.sampling import Sampler

MOST_THREADS = 4
REDRAWS = 3


class ReplayLoader(DataLoader[Any]):
    """Iterate for ever over batches of transitions, as tensors.

    Batches are drawn in the calling thread, `prefetch` ahead and in a fixed order, so that a seed fixes them
    whatever the threads do; they are read, checked and decoded in the background. Drawing ahead means that a
    batch does not know the priorities updated since, `prefetch` batches long.

    Args:
        sampler: Draws the step ids and weights.
        batch_size: B.
        n_step, gamma, frame_stack, padding: The window, as for `ReplayStore.read`.
        prefetch: Batches drawn and read ahead; at least 1.
        threads: Threads that read; None: as many as there are cores, 4 at most. Ignored with worker processes.
        device: Where the tensors go; batches for a CUDA device pass through pinned memory.
        num_workers: Worker processes that read instead of threads. Slower, for batches then cross between
            processes; each gets plain read plans and opens neither the store nor its index.
        options: Further arguments of `torch.utils.data.DataLoader`, such as `multiprocessing_context`.

    Attributes:
        wait_seconds: Seconds that `next()` has waited for data so far.
        redrawn: Transitions drawn again because theirs had been evicted before they were read.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        batch_size: int = 256,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        padding: str = "first",
        prefetch: int = 8,
        threads: int | None = None,
        device: str | torch.device = "cpu",
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        check_window(n_step, gamma, frame_stack, padding)
        if batch_size < 1 or prefetch < 1 or (threads is not None and threads < 1):
            raise ValueError(
                f"batch_size, prefetch and threads must be at least 1, got {batch_size}, {prefetch}, {threads}",
            )
        self.replay_sampler = sampler
        self.device = torch.device(device)
        self.prefetch = prefetch
        self.threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self.wait_seconds = 0.0
        self.redrawn = 0
        self.window: dict[str, Any] = {
            "n_step": n_step,
            "gamma": gamma,
            "frame_stack": frame_stack,
            "padding": padding,
        }
        self._rows = batch_size
        if num_workers:
            options.setdefault("prefetch_factor", max(1, -(-prefetch // num_workers)))
            options.setdefault("persistent_workers", True)
        super().__init__(
            _PlanReader(sampler.store.spec),
            sampler=_Plans(self),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=bool(num_workers) and self.device.type == "cuda",
            **options,
        )
        # torch knows no batches of its own here, but who asks shall be told the truth.
        object.__setattr__(self, "batch_size", batch_size)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return self._with_workers() if self.num_workers else self._with_threads()

    def __len__(self) -> int:
        raise TypeError("a ReplayLoader has no length: it goes on for ever")

    def close(self) -> None:
        """Stop worker processes, if there are any."""
        iterator, self._iterator = getattr(self, "_iterator", None), None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()  # noqa: SLF001  torch offers no other way

    def draw_plan(self) -> tuple[Draw, WindowPlan]:
        """Draw the next batch and find where it lies; steps evicted in between are drawn again."""
        store, sampler = self.replay_sampler.store, self.replay_sampler
        with store.lock:
            draw = sampler.draw_ahead(self._rows)
            for _ in range(REDRAWS):
                try:
                    return draw, store.plan(draw.step_ids, **self.window)
                except StepEvictedError:
                    # Drawn before a restart or an eviction; whatever is gone is replaced, the rest stays.
                    store.refresh()
                    draw = self._replace_evicted(draw)
            return draw, store.plan(draw.step_ids, **self.window)

    def _replace_evicted(self, draw: Draw) -> Draw:
        store, sampler = self.replay_sampler.store, self.replay_sampler
        segments, _ = store.access.live_segments()
        gone = ~np.isin(draw.step_ids // store.segment_steps, segments)
        other = sampler.draw_ahead(self._rows)
        sampler.delivered(other)
        self.redrawn += int(gone.sum())
        sampler.delivered(draw)
        return sampler.replaced(
            Draw(
                np.where(gone, other.step_ids, draw.step_ids),
                np.where(gone, other.weight, draw.weight).astype(np.float32),
            ),
        )

    def _with_threads(self) -> Iterator[Batch]:
        spec, sampler = self.replay_sampler.store.spec, self.replay_sampler
        buffers = Buffers(self.prefetch + self.threads + 2)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="diskreplay-read")
        announcer = ThreadPoolExecutor(1, thread_name_prefix="diskreplay-announce")
        waiting: deque[tuple[Draw, Future[Batch]]] = deque()

        def read(draw: Draw, plan: WindowPlan) -> Batch:
            batch = assemble(spec, plan, plan.fetch(buffers.take(plan.observations)), draw.weight)
            tensors = to_tensors(batch, pin=self.device.type == "cuda")
            return tensors if self.device.type == "cpu" else to_device(tensors, self.device)

        def submit() -> None:
            draw, plan = self.draw_plan()
            announcer.submit(plan.announce)
            waiting.append((draw, pool.submit(read, draw, plan)))

        try:
            while True:
                while len(waiting) < self.prefetch:
                    submit()
                draw, future = waiting.popleft()
                started = time.perf_counter()
                batch = future.result()
                self.wait_seconds += time.perf_counter() - started
                del future
                sampler.delivered(draw)
                yield batch
                del batch
        finally:
            announcer.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)
            sampler.recall()

    def _with_workers(self) -> Iterator[Batch]:
        sampler, plans = self.replay_sampler, self.sampler
        assert isinstance(plans, _Plans)  # noqa: S101  made in __init__
        plans.draws.clear()
        batches = super().__iter__()
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches)
                self.wait_seconds += time.perf_counter() - started
                sampler.delivered(plans.draws.popleft())
                yield batch if self.device.type == "cpu" else to_device(batch, self.device)
        finally:
            sampler.recall()


class _Plans:
    """What torch takes for its sampler: an endless row of read plans, drawn in the main process."""

    def __init__(self, loader: ReplayLoader) -> None:
        self.loader = loader
        self.draws: deque[Draw] = deque()

    def __iter__(self) -> Iterator[tuple[WindowPlan, Any]]:
        while True:
            draw, plan = self.loader.draw_plan()
            self.draws.append(draw)
            yield plan.portable(), draw.weight


class _PlanReader(Dataset[Any]):
    """What torch takes for its dataset: executes a read plan in a worker process."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self._files: FileCache | None = None

    def __getitem__(self, item: tuple[WindowPlan, Any]) -> Batch:
        if self._files is None:
            self._files = FileCache()
        plan, weight = item
        here = plan.resolved(self._files)
        batch = to_tensors(assemble(self.spec, here, here.fetch(), weight))
        self._files.trim()
        return batch
