"""ReplayLoader: a torch DataLoader over a sampler, reading ahead in threads or in worker processes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from functools import partial
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from diskreplay.errors import ReplayError
from diskreplay.experience import Batch
from diskreplay.loading.pipeline import Pipeline, Planner
from diskreplay.loading.tensors import Buffers, to_device, to_tensors
from diskreplay.sampling import Draw
from diskreplay.storage.reading import FileCache, WindowPlan
from diskreplay.store.windows import assemble, check_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diskreplay.experience import StepSpec
    from diskreplay.sampling import Sampler

MOST_THREADS = 4


class ReplayLoader(DataLoader[Any]):
    """Iterate for ever over batches of transitions, as tensors.

    Batches are asked for `prefetch` ahead and drawn in that order, so that a seed fixes them whatever the threads
    do; they are drawn, read, checked and decoded in the background. Drawing ahead means that a
    batch does not know the priorities updated since, `prefetch` batches long.

    Args:
        sampler: Draws the step ids and weights.
        batch_size: B.
        n_step, gamma, frame_stack, padding: The window, as for `ReplayStore.read`.
        prefetch: Batches drawn and read ahead; at least 1. Of batches of a few kilobytes, between half of it and all.
        threads: Threads that read; None: as many as there are cores, 4 at most, one for batches of a few kilobytes,
            and always 4 while they wait for a disk.
            0: `next()` reads, which is faster for batches so small that handing them from thread to thread costs more.
            Ignored with worker processes.
        device: Where the tensors go; batches for a CUDA device pass through pinned memory.
        num_workers: Worker processes that read instead of threads. Slower, for batches then cross between
            processes; each gets plain read plans and opens neither the store nor its index.
        on_corruption: What damage met on the way does. "raise": the batch raises `CorruptStoreError`. "skip": the
            segment is quarantined (see `ReplayStore.quarantine`), a `CorruptionWarning` says so, its steps are drawn
            again elsewhere, and `skipped` counts it.
        options: Further arguments of `torch.utils.data.DataLoader`, such as `multiprocessing_context`.
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
        on_corruption: Literal["raise", "skip"] = "raise",
        **options: Any,
    ) -> None:
        check_window(n_step, gamma, frame_stack, padding)
        if batch_size < 1 or prefetch < 1 or (threads is not None and threads < 0):
            raise ValueError(
                f"batch_size and prefetch must be at least 1, threads 0, got {batch_size}, {prefetch}, {threads}",
            )
        self.replay_sampler = sampler
        self.device = torch.device(device)
        self.prefetch = prefetch
        self._most_threads = MOST_THREADS if threads is None else threads
        self._waited = [0.0]
        self.window: dict[str, Any] = {
            "n_step": n_step,
            "gamma": gamma,
            "frame_stack": frame_stack,
            "padding": padding,
        }
        self._planner = Planner(sampler, self.window, skip_damaged=on_corruption == "skip")
        if threads is None:
            threads = 1 if self._planner.is_small(batch_size) else min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self.threads = threads
        self._rows = batch_size
        if on_corruption not in ("raise", "skip"):
            raise ValueError(f"on_corruption must be 'raise' or 'skip', got {on_corruption!r}")
        if not options.get("in_order", True):
            raise ValueError("in_order=False would let go of which batch is which")
        if num_workers:
            options.setdefault("prefetch_factor", max(1, -(-prefetch // num_workers)))
            options.setdefault("persistent_workers", True)
            options["worker_init_fn"] = partial(_begin_work, options.get("worker_init_fn"))
        super().__init__(
            _PlanReader(sampler.store.spec),
            sampler=_Plans(self._planner, batch_size),
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

    @property
    def wait_seconds(self) -> float:
        """Return the seconds that `next()` has taken so far: drawing, and waiting for data."""
        return self._waited[0]

    @property
    def redrawn(self) -> int:
        """Return how many transitions were drawn again because theirs had been evicted before they were read."""
        return self._planner.redrawn

    @property
    def skipped(self) -> dict[int, str]:
        """Return the segments that were found damaged and quarantined on the way, and why."""
        return dict(self._planner.skipped)

    def _with_threads(self) -> Iterator[Batch]:
        pipeline = Pipeline(
            self._planner,
            batch_size=self._rows,
            depth=self.prefetch,
            threads=self.threads,
            most=self._most_threads,
            device=self.device,
        )
        return pipeline.batches(self._waited)

    def _with_workers(self) -> Iterator[Batch]:
        sampler, plans = self.replay_sampler, self.sampler
        assert isinstance(plans, _Plans)  # noqa: S101  made in __init__
        if plans.drawn or plans.failed:
            raise ValueError("with worker processes a loader has one iterator at a time: close the other first")
        try:
            self._iterator = batches = super().__iter__()
            while True:
                started = time.perf_counter()
                if not plans.drawn:
                    raise plans.failed.pop()
                try:
                    batch = next(batches)
                except (ConnectionError, EOFError) as err:  # torch has words of its own only for one that is idle
                    raise RuntimeError("a worker process of the loader died while it handed a batch over") from err
                draw, _ = plans.drawn[0]
                if isinstance(batch, _Unread):
                    batch = self._read_again(draw)
                sampler.delivered(draw)
                plans.drawn.popleft()
                batch = batch if self.device.type == "cpu" else to_device(batch, self.device)
                self._waited[0] += time.perf_counter() - started
                yield batch
        except GeneratorExit:
            if not self.persistent_workers:
                self.close()
            raise
        except BaseException:
            self.close()  # if a worker died, torch would not begin again with another
            raise
        finally:
            sampler.recall([draw for draw, _ in plans.drawn])
            plans.drawn.clear()
            plans.failed.clear()

    def _read_again(self, draw: Draw) -> Batch:
        """Read a batch here that a worker process could not read: only what this process finds damaged is left out."""
        planner = self._planner
        draw, plan = planner.plan(draw)
        draw, plan, fetched = planner.fetch(draw, plan, Buffers(0))
        return to_tensors(assemble(self.replay_sampler.store.spec, plan, fetched, draw.weight))


class _Unread:
    """What a worker process returns for a batch that it could not read, whatever the reason."""


class _Plans:
    """What torch takes for its sampler: an endless row of read plans, drawn in the main process."""

    def __init__(self, planner: Planner, batch_size: int) -> None:
        self.planner = planner
        self.batch_size = batch_size
        self.drawn: deque[tuple[Draw, WindowPlan]] = deque()  # plans keep their files open
        self.failed: list[Exception] = []  # what comes after them, if anything

    def __iter__(self) -> Iterator[tuple[WindowPlan, Any]]:
        while True:
            draw = None
            try:
                draw = self.planner.draw_ahead(self.batch_size)
                draw, plan = self.planner.plan(draw)
                item = plan.portable(), draw.weight
            except Exception as err:  # noqa: BLE001  raised in its turn: torch, half made, would leave its workers
                self.failed.append(err)
                self.planner.sampler.recall([draw] if draw else [])
                return
            self.drawn.append((draw, plan))
            yield item


class _PlanReader(Dataset[Any]):
    """What torch takes for its dataset: executes a read plan in a worker process."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self._files: FileCache | None = None

    def __getitem__(self, item: tuple[WindowPlan, Any]) -> Batch | _Unread:
        if self._files is None:
            self._files = FileCache()
        plan, weight = item
        try:
            here = plan.resolved(self._files)
            batch = to_tensors(assemble(self.spec, here, here.fetch(), weight))
        except ReplayError:
            return _Unread()
        finally:
            self._files.trim()
        return batch


LAST = -100  # of the finalizers, after the one that waits until a queue's contents are sent


def _begin_work(then: Callable[[int], None] | None, worker: int) -> None:
    """Do as the `worker_init_fn` that was given, in a worker process that is to end as soon as its work is done."""
    util.Finalize(None, _end_at_once, exitpriority=LAST)
    if then is not None:
        then(worker)


def _end_at_once() -> None:
    """End a worker process without the interpreter's finalization.

    That would end threads which are still inside torch's C++, and with them, now and then, the process by SIGABRT.
    """
    if sys.exc_info()[0] is None:  # else multiprocessing is about to print it
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
                stream.flush()
        os._exit(0)
