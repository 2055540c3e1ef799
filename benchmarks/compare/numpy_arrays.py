"""numpy as a rival: fancy indexing of rows in RAM, or of a memory map, drawn uniformly; nothing is checked."""

from __future__ import annotations

import mmap
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from benchmarks.worker import repeat


class Gathering(ABC):
    """Gather batches for so many seconds a run."""

    seconds: float
    batch_size: int

    @abstractmethod
    def deliver(self) -> Any:
        """Gather a batch."""

    def run(self) -> dict[str, float]:
        """Return transitions a second."""
        calls, took = repeat(self.deliver, self.seconds)
        return {"transitions_per_second": calls * self.batch_size / took}


class Windows(Gathering):
    """Gather windows of k + 1 rows: the limit for arrays in RAM, page faults for a memory map.

    Args:
        rows: The folder of the rows.
        stack, batch_size: k and B.
        seconds: Of a run.
        mapped: A memory map instead of RAM.
        advised: Tell the kernel that the map is read at random: then a fault reads a page and nothing around it.
    """

    def __init__(
        self,
        rows: str,
        *,
        stack: int,
        seconds: float,
        mapped: bool = False,
        advised: bool = False,
        batch_size: int = 256,
    ) -> None:
        self.advised = advised
        self.folder, self.stack, self.seconds, self.batch_size = Path(rows), stack, seconds, batch_size
        self.mapped = mapped

    def prepare(self) -> dict[str, Any]:
        """Load, gather some batches."""
        self.rows = Rows.load(self.folder, mapped=self.mapped)
        if self.advised:
            self.rows.observation._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # noqa: SLF001  numpy offers no other way
        self.rng = np.random.default_rng(0)
        self.transitions = self.rows.transitions
        if not self.mapped:  # a page that is mapped now could not be made cold any more
            for _ in range(20):
                self.deliver()
        return {"steps": len(self.transitions), "bytes": self.rows.observation.nbytes}

    def deliver(self) -> Any:
        """Gather a batch; observation and next_observation are views of one window."""
        rows = self.transitions[self.rng.integers(len(self.transitions), size=self.batch_size)]
        window = self.rows.observation[self.rows.windows(rows, self.stack)]
        return window, self.rows.action[rows], self.rows.reward[rows], self.rows.terminated[rows]


class Columns(Gathering):
    """Gather steps of a few bytes from columns in RAM: how the machine's memory itself slows as they grow.

    Args:
        steps: Of each column.
        seconds: Of a run.
    """

    def __init__(self, *, steps: int, seconds: float, batch_size: int = 256) -> None:
        self.steps, self.seconds, self.batch_size = steps, seconds, batch_size

    def prepare(self) -> dict[str, Any]:
        """Have every page of the columns in memory, gather some batches."""
        self.observation = np.ones((self.steps + 1, 1), np.uint8)
        self.action, self.terminated = np.ones(self.steps, np.uint8), np.ones(self.steps, np.bool_)
        self.reward = np.ones(self.steps, np.float32)
        self.rng = np.random.default_rng(0)
        for _ in range(20):
            self.deliver()
        columns = (self.observation, self.action, self.terminated, self.reward)
        return {"steps": self.steps, "bytes": sum(column.nbytes for column in columns)}

    def deliver(self) -> Any:
        """Gather a batch."""
        at = self.rng.integers(self.steps, size=self.batch_size)
        return self.observation[at], self.observation[at + 1], self.action[at], self.reward[at], self.terminated[at]


class RewritePriorities:
    """Write the priorities of all steps to a new file, synced: what a checkpoint costs that knows no changes."""

    def __init__(self, folder: str, *, steps: int) -> None:
        self.path, self.steps = Path(folder) / f"priorities-{steps}", steps

    def prepare(self) -> None:
        """Make the priorities."""
        self.priorities = np.random.default_rng(0).random(self.steps, dtype=np.float32)

    def run(self) -> dict[str, float]:
        """Return the seconds of a checkpoint."""
        began = time.perf_counter()
        with self.path.open("wb") as file:
            self.priorities.tofile(file)
            os.fsync(file.fileno())
        took = time.perf_counter() - began
        self.path.unlink()
        return {"commit_seconds": took}
