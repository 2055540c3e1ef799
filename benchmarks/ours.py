"""diskreplay as a contestant, where several questions ask the same of it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import bytes_under
from benchmarks.worker import bytes_read, repeat
from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "diskreplay"


class Loader:
    """Prioritized batches through `ReplayLoader`, the priorities of each updated; checksums on, as always.

    Args:
        store: The store.
        frame_stack, batch_size, prefetch: As the loader's.
        seconds: Of a run.
        warm: Read all of the store's files first.
        warm_batches: Batches before the first run.
        memory: To keep rows in, as `ReplayStore.open` takes it.
    """

    def __init__(
        self,
        store: str,
        *,
        seconds: float,
        warm: bool,
        frame_stack: int = 1,
        batch_size: int = 256,
        prefetch: int = 8,
        warm_batches: int = 20,
        memory: str | None = None,
    ) -> None:
        self.memory = memory
        self.path, self.seconds, self.warm, self.prefetch = Path(store), seconds, warm, prefetch
        self.window = {"frame_stack": frame_stack, "n_step": 1}
        self.batch_size, self.warm_batches = batch_size, warm_batches

    def prepare(self) -> dict[str, Any]:
        """Open, and deliver some batches."""
        if self.warm:
            for path in (path for path in self.path.rglob("*") if path.is_file()):
                path.read_bytes()
        self.store = ReplayStore.open(self.path, memory=self.memory)
        self.sampler = PrioritizedSampler(self.store, seed=0)
        self.errors = np.random.default_rng(0).random(self.batch_size)
        rates = {threads: self.try_threads(threads) for threads in ((0, 1, None) if self.warm else ())}
        threads = max(rates, key=rates.__getitem__, default=None)
        loader = self.start(threads)
        steps = len(self.store)
        size = bytes_under(self.path)
        about = {"steps": steps, "bytes": size, "bytes_per_step": round(size / steps, 1)}
        return {**about, "threads": loader.threads}

    def start(self, threads: int | None) -> ReplayLoader:
        """Begin with so many threads, and deliver some batches."""
        loader = ReplayLoader(
            self.sampler, batch_size=self.batch_size, prefetch=self.prefetch, threads=threads, **self.window
        )
        self.batches: Iterator[Any] = iter(loader)
        for _ in range(self.warm_batches):
            self.deliver()
        return loader

    def try_threads(self, threads: int | None) -> float:
        """Return batches a second, as TorchRL's contestant tries how far it is to prefetch."""
        self.start(threads)
        calls, took = repeat(self.deliver, self.seconds / 4)
        self.batches.close()  # type: ignore[attr-defined]
        return calls / took

    def deliver(self) -> None:
        """Take a batch, give its priorities back."""
        batch = next(self.batches)
        self.sampler.update_priorities(batch.step_ids, self.errors)

    def run(self) -> dict[str, float]:
        """Return transitions a second; what was read ahead while others ran does not count."""
        for _ in islice(self.batches, self.prefetch):
            pass
        before = bytes_read()
        calls, took = repeat(self.deliver, self.seconds)
        read = (bytes_read() - before) / calls
        return {"transitions_per_second": calls * self.batch_size / took, "read_per_batch_bytes": read}

    def close(self) -> None:
        """Close the store."""
        self.batches.close()  # type: ignore[attr-defined]
        self.store.close()
