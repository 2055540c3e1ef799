"""TorchRL as a rival: LazyMemmapStorage with PrioritizedSampler, prefetching where that turns out faster."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl._torchrl import SumSegmentTreeFp32
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, PrioritizedSliceSampler

from benchmarks.rows import Rows
from benchmarks.worker import memory, repeat

ALPHA, BETA = 0.6, 0.4
PIECE = 1_000


def stacked(rows: Rows, steps: np.ndarray, stack: int) -> TensorDict:
    """Return the transitions that start at these rows, laid out as TorchRL's environments do."""
    seen = rows.observation[rows.windows(steps, stack)]
    observation, following = (seen[:, :-1], seen[:, 1:]) if stack > 1 else (seen[:, 0], seen[:, 1])
    ended = torch.from_numpy(rows.terminated[steps])[:, None]
    cut = torch.from_numpy(rows.truncated[steps])[:, None]
    return TensorDict(
        {
            "observation": torch.from_numpy(np.ascontiguousarray(observation)),
            "action": torch.from_numpy(rows.action[steps]),
            "next": {
                "observation": torch.from_numpy(np.ascontiguousarray(following)),
                "reward": torch.from_numpy(rows.reward[steps])[:, None],
                "terminated": ended,
                "truncated": cut,
                "done": ended | cut,
            },
        },
        batch_size=[len(steps)],
    )


class Memmap:
    """Prioritized batches from a memory map that holds observation and next observation of every transition.

    Args:
        rows: The rows' folder.
        scratch: Where its files go; made, and removed in the end.
        warm: Sample some batches, with and without prefetching, and go on with what is faster.
    """

    batch_rows = 1

    def __init__(
        self, rows: str, *, scratch: str, stack: int, seconds: float, warm: bool = True, batch_size: int = 256
    ) -> None:
        self.folder, self.scratch, self.stack = Path(rows), Path(scratch), stack
        self.seconds, self.warm, self.batch_size = seconds, warm, batch_size

    def prepare(self) -> dict[str, Any]:
        """Fill the storage."""
        self.rows = Rows.load(self.folder, mapped=True)
        steps = self.count()
        self.storage = LazyMemmapStorage(steps, scratch_dir=self.scratch)
        first = self.buffer(steps, 0)
        self.fill(first)
        del self.rows  # a map that is held would keep pages cached for the other contestants
        size = sum(path.stat().st_blocks * 512 for path in self.scratch.rglob("*") if path.is_file())
        details = {"steps": steps, "bytes": size, "bytes_per_step": round(size / steps, 1)}
        self.errors = torch.rand(self.batch_size * self.batch_rows, generator=torch.Generator().manual_seed(0))
        self.replay, self.prefetch = first, 0
        if not self.warm:
            return details
        second = self.buffer(steps, 4)
        second.sampler.update_priority(torch.arange(steps), torch.ones(steps))
        rates = {}
        for prefetch, replay in ((0, first), (4, second)):
            self.replay = replay
            repeat(self.deliver, 0.3)
            calls, took = repeat(self.deliver, 1.0)
            rates[prefetch] = calls / took
        self.prefetch = max(rates, key=rates.__getitem__)
        self.replay = second if self.prefetch else first
        return {**details, "prefetch": self.prefetch}

    def count(self) -> int:
        """Return how many items the storage holds."""
        return len(self.rows.transitions)

    def buffer(self, steps: int, prefetch: int) -> TensorDictReplayBuffer:
        """Make a buffer over the storage."""
        return TensorDictReplayBuffer(
            storage=self.storage,
            sampler=PrioritizedSampler(steps, alpha=ALPHA, beta=BETA),
            batch_size=self.batch_size,
            **({"prefetch": prefetch} if prefetch else {}),
        )

    def fill(self, replay: TensorDictReplayBuffer) -> None:
        """Extend by the transitions, PIECE at a time."""
        steps = self.rows.transitions
        for begin in range(0, len(steps), PIECE):
            replay.extend(stacked(self.rows, steps[begin : begin + PIECE], self.stack))

    def deliver(self) -> None:
        """Sample a batch, give its priorities back."""
        batch = self.replay.sample()
        self.replay.update_priority(batch["index"], self.errors[: len(batch)])

    def run(self) -> dict[str, float]:
        """Return transitions a second; what was read ahead while others ran does not count."""
        for _ in range(self.prefetch):
            self.replay.sample()
        calls, took = repeat(self.deliver, self.seconds)
        return {"transitions_per_second": calls * self.batch_size / took}

    def close(self) -> None:
        """Remove the map's files."""
        shutil.rmtree(self.scratch, ignore_errors=True)


class Slices(Memmap):
    """Each frame once, and windows as slices of k + 1 rows by PrioritizedSliceSampler: no windows at episode starts."""

    @property
    def batch_rows(self) -> int:  # type: ignore[override]
        """Rows of a slice."""
        return self.stack + 1

    def count(self) -> int:
        """Return how many rows there are."""
        return len(self.rows.reward)

    def buffer(self, steps: int, prefetch: int) -> TensorDictReplayBuffer:
        """Make a buffer over the storage."""
        sampler = PrioritizedSliceSampler(
            steps, alpha=ALPHA, beta=BETA, slice_len=self.batch_rows, traj_key="episode", strict_length=True,
            cache_values=True,
        )  # fmt: skip
        return TensorDictReplayBuffer(
            storage=self.storage,
            sampler=sampler,
            batch_size=self.batch_size * self.batch_rows,
            **({"prefetch": prefetch} if prefetch else {}),
        )

    def fill(self, replay: TensorDictReplayBuffer) -> None:
        """Extend by the rows, PIECE at a time."""
        rows = self.rows
        for begin in range(0, len(rows.reward), PIECE):
            part = slice(begin, begin + PIECE)
            columns = {
                "observation": torch.from_numpy(np.ascontiguousarray(rows.observation[part])),
                "action": torch.from_numpy(rows.action[part]),
                "reward": torch.from_numpy(rows.reward[part]),
                "terminated": torch.from_numpy(rows.terminated[part]),
                "episode": torch.from_numpy(rows.first[part]),
            }
            replay.extend(TensorDict(columns, batch_size=[len(columns["reward"])]))


class Tree:
    """TorchRL's C++ sum tree alone; `stratified` gives it sorted targets, which its own sampler does not."""

    def __init__(self, *, leaves: int, batches: int, stratified: bool, batch_size: int = 256) -> None:
        self.leaves, self.batches, self.batch_size, self.stratified = leaves, batches, batch_size, stratified

    def prepare(self) -> None:
        """Fill the tree."""
        self.rng = np.random.default_rng(0)
        self.tree = SumSegmentTreeFp32(self.leaves)
        for begin in range(0, self.leaves, 1_000_000):
            at = np.arange(begin, min(begin + 1_000_000, self.leaves))
            self.tree[at] = self.rng.random(len(at), dtype=np.float32) + np.float32(0.01)
        self.values = self.rng.random(self.batch_size, dtype=np.float32) + np.float32(0.01)
        self.run()

    def run(self) -> dict[str, float]:
        """Return the median seconds of a batch."""
        times, size = np.empty((self.batches, 2)), self.batch_size
        for i in range(self.batches):
            began = time.perf_counter()
            total = self.tree.query(0, self.leaves)
            if self.stratified:
                mass = ((self.rng.random(size) + np.arange(size)) * (total / size)).astype(np.float32)
            else:
                mass = self.rng.uniform(0.0, total, size).astype(np.float32)
            at = np.minimum(self.tree.scan_lower_bound(mass), self.leaves - 1)
            self.tree[at]
            sampled = time.perf_counter()
            self.tree[at] = self.values
            times[i] = sampled - began, time.perf_counter() - sampled
        sample, update = np.median(times, axis=0)
        both = float(np.median(times.sum(axis=1)))
        return {"sample_seconds": float(sample), "update_seconds": float(update), "both_seconds": both}


class Loading:
    """`loads` of as many small transitions with their priorities, and a batch."""

    def __init__(self, folder: str, *, steps: int) -> None:
        self.path, self.steps = Path(folder) / f"torchrl-{steps}", steps

    def prepare(self) -> None:
        """Dump the buffer, if it was not before."""
        if not self.path.exists():
            partial = self.path.with_name(f"making-{self.path.name}")
            shutil.rmtree(partial, ignore_errors=True)
            replay = self._empty(partial / "storage")
            self._fill(replay, self.steps)
            replay.dumps(partial / "dump")
            partial.rename(self.path)

    def run(self) -> dict[str, float]:
        """Return seconds and memory from nothing to the first batch."""
        scratch = self.path.with_name(f"loaded-{self.steps}")
        before, began = memory()["anonymous"], time.perf_counter()
        replay = self._empty(scratch)
        replay.loads(self.path / "dump")
        replay.sample()
        took = time.perf_counter() - began
        used = memory()["anonymous"] - before
        shutil.rmtree(scratch, ignore_errors=True)
        return {"first_batch_seconds": took, "memory_bytes": used}

    def _empty(self, scratch: Path) -> TensorDictReplayBuffer:
        return TensorDictReplayBuffer(
            storage=LazyMemmapStorage(self.steps, scratch_dir=scratch),
            sampler=PrioritizedSampler(self.steps, alpha=ALPHA, beta=BETA),
            batch_size=256,
        )

    def _fill(self, replay: TensorDictReplayBuffer, steps: int) -> None:
        for begin in range(0, steps, 1_000_000):
            count = min(1_000_000, steps - begin)
            small = torch.zeros(count, 1, dtype=torch.uint8)
            columns = {"observation": small, "action": small, "reward": torch.zeros(count, 1)}
            replay.extend(TensorDict({**columns, "next": {"observation": small}}, batch_size=[count]))


class DumpPriorities:
    """The sampler's own `dumps`: all priorities, whatever changed."""

    def __init__(self, folder: str, *, steps: int) -> None:
        self.path, self.steps = Path(folder) / f"torchrl-priorities-{steps}", steps

    def prepare(self) -> None:
        """Fill the trees."""
        self.sampler = PrioritizedSampler(self.steps, alpha=ALPHA, beta=BETA)
        for begin in range(0, self.steps, 1_000_000):
            at = torch.arange(begin, min(begin + 1_000_000, self.steps))
            self.sampler.update_priority(at, torch.rand(len(at)))

    def run(self) -> dict[str, float]:
        """Return the seconds of a dump."""
        began = time.perf_counter()
        self.sampler.dumps(self.path)
        took = time.perf_counter() - began
        shutil.rmtree(self.path)
        return {"commit_seconds": took}


class Extending:
    """`extend` by stacked transitions that are in RAM, 1,000 at a time, or `add` of one. Nothing is durable."""

    def __init__(self, rows: str, *, scratch: str, stack: int, steps: int, one_by_one: bool) -> None:
        self.folder, self.scratch, self.stack, self.steps = Path(rows), Path(scratch), stack, steps
        self.one_by_one = one_by_one

    def prepare(self) -> dict[str, Any]:
        """Stack the frames, as an environment's transform would have."""
        rows = Rows.load(self.folder, mapped=True)
        steps = rows.transitions[: self.steps]
        self.pieces = [stacked(rows, steps[i : i + PIECE], self.stack) for i in range(0, len(steps), PIECE)]
        self.count = len(steps)
        if self.one_by_one:
            self.pieces = [step for piece in self.pieces for step in piece.unbind(0)]
        return {"steps": self.count}

    def run(self) -> dict[str, float]:
        """Return steps a second into an empty buffer."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        replay = TensorDictReplayBuffer(
            storage=LazyMemmapStorage(self.count, scratch_dir=self.scratch),
            sampler=PrioritizedSampler(self.count, alpha=ALPHA, beta=BETA),
            batch_size=256,
        )
        take = replay.add if self.one_by_one else replay.extend
        began = time.perf_counter()
        for piece in self.pieces:
            take(piece)
        took = time.perf_counter() - began
        shutil.rmtree(self.scratch, ignore_errors=True)
        return {"steps_per_second": self.count / took}
