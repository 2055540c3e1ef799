"""zarr-python and tensorstore on a store's own arrays: random windows, and whole episodes to compare byte by byte."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import repeat


def open_field(reader: str, store: Path, field: str) -> Any:
    """Open an array of a store with "zarr" or "tensorstore"; diskreplay has no part in it."""
    path = store / "steps" / field
    if reader == "zarr":
        import zarr  # noqa: PLC0415  only the one that is asked for

        return zarr.open_array(path, mode="r")
    import tensorstore  # noqa: PLC0415

    return tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path}"}).result()


class Windows:
    """Uniform windows of k + 1 observations by the reader's own indexing."""

    def __init__(self, store: str, reader: str, *, stack: int, seconds: float, batch_size: int = 256) -> None:
        self.store, self.reader, self.stack = Path(store), reader, stack
        self.seconds, self.batch_size = seconds, batch_size

    def prepare(self) -> None:
        """Open, read a few batches."""
        self.array = open_field(self.reader, self.store, "observation")
        episode = np.asarray(open_field(self.reader, self.store, "episode")[:])
        same = np.all([episode[self.stack - 1 : -1] == episode[i : len(episode) - self.stack + i]
                       for i in range(self.stack + 1)], axis=0)  # fmt: skip
        self.rows = np.flatnonzero(same & (episode[self.stack - 1 : -1] >= 0)) + self.stack - 1
        self.rng = np.random.default_rng(0)
        self.deliver()

    def deliver(self) -> Any:
        """Read a batch of windows."""
        rows = self.rows[self.rng.integers(len(self.rows), size=self.batch_size)]
        window = (rows[:, None] + np.arange(-self.stack + 1, 2)).ravel()
        if self.reader == "zarr":
            return self.array.oindex[window]
        return self.array[window].read().result()

    def run(self) -> dict[str, float]:
        """Return transitions a second."""
        calls, took = repeat(self.deliver, self.seconds)
        return {"transitions_per_second": calls * self.batch_size / took}


class Hashes:
    """Hash every finished episode's observations, and count those that the emulator gave."""

    def __init__(self, store: str, reader: str, *, expected: str) -> None:
        self.store, self.reader, self.expected = Path(store), reader, Path(expected)

    def prepare(self) -> None:
        """Nothing to prepare."""

    def run(self) -> dict[str, float]:
        """Return how many episodes are byte for byte the emulator's, and how many are not."""
        episode, ended, cut = (
            np.asarray(open_field(self.reader, self.store, name)[:]) for name in ("episode", "terminated", "truncated")
        )
        frames = open_field(self.reader, self.store, "observation")
        finished = np.unique(episode[(ended | cut) & (episode >= 0)])
        given = set(self.expected.read_text("ascii").split())
        same = 0
        for number in finished.tolist():
            rows = np.flatnonzero(episode == number)
            seen = np.ascontiguousarray(np.asarray(frames[int(rows[0]) : int(rows[-1]) + 1])[rows - rows[0]])
            same += hashlib.sha256(seen.tobytes()).hexdigest() in given
        return {"episodes_equal": same, "episodes_not_equal": len(finished) - same}
