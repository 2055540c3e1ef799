"""cpprb as a rival: PrioritizedReplayBuffer, with `next_of` and `stack_compress`, so that each frame is kept once."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer

from benchmarks.rows import Rows
from benchmarks.worker import memory, repeat

ALPHA, BETA = 0.6, 0.4
PIECE = 2_000


def make_buffer(rows: Rows, size: int, stack: int, prefix: str | None = None) -> PrioritizedReplayBuffer:
    """Make an empty buffer; cpprb wants the stack as the last axis."""
    shape = rows.observation.shape[1:]
    fields = {
        "obs": {"shape": (*shape, stack) if stack > 1 else shape, "dtype": rows.observation.dtype},
        "act": {"shape": rows.action.shape[1:] or 1, "dtype": rows.action.dtype},
        "rew": {},
        "done": {"dtype": np.bool_},
    }
    options = {"mmap_prefix": prefix} if prefix else {}
    compressed = {"stack_compress": "obs"} if stack > 1 else {}
    return PrioritizedReplayBuffer(size, fields, next_of="obs", alpha=ALPHA, **compressed, **options)


def stacked(rows: Rows, steps: np.ndarray, stack: int) -> dict[str, np.ndarray]:
    """Return the transitions that start at these rows, as cpprb takes them."""
    window = rows.windows(steps, stack)
    if stack > 1:
        seen = np.moveaxis(rows.observation[window], 1, -1)
        observation, following = seen[..., :-1], seen[..., 1:]
    else:
        observation, following = rows.observation[steps], rows.observation[steps + 1]
    return {"obs": observation, "next_obs": following, "act": rows.action[steps], "rew": rows.reward[steps],
            "done": rows.terminated[steps]}  # fmt: skip


def fill(buffer: PrioritizedReplayBuffer, rows: Rows, stack: int) -> None:
    """Add all episodes."""
    for episode in rows.episodes():
        for begin in range(episode.start, episode.stop - 1, PIECE):
            buffer.add(**stacked(rows, np.arange(begin, min(begin + PIECE, episode.stop - 1)), stack))
        buffer.on_episode_end()


class Prioritized:
    """Prioritized batches from RAM, or with `mmap_prefix` from a memory map."""

    def __init__(self, rows: str, *, stack: int, seconds: float, scratch: str = "", batch_size: int = 256) -> None:
        self.folder, self.stack, self.seconds, self.batch_size = Path(rows), stack, seconds, batch_size
        self.scratch = Path(scratch) if scratch else None

    def prepare(self) -> dict[str, Any]:
        """Fill, sample some batches."""
        rows = Rows.load(self.folder, mapped=True)
        before = memory()["anonymous"]
        if self.scratch:
            self.scratch.mkdir(parents=True)
        steps = len(rows.transitions)
        self.buffer = make_buffer(rows, steps, self.stack, f"{self.scratch}/" if self.scratch else None)
        fill(self.buffer, rows, self.stack)
        self.errors = np.random.default_rng(0).random(self.batch_size)
        for _ in range(1 if self.scratch else 20):
            self.deliver()
        size = memory()["anonymous"] - before
        if self.scratch:
            size = sum(path.stat().st_blocks * 512 for path in self.scratch.iterdir())
        return {"steps": steps, "bytes": size, "bytes_per_step": round(size / steps, 1)}

    def deliver(self) -> None:
        """Sample a batch, give its priorities back."""
        batch = self.buffer.sample(self.batch_size, BETA)
        self.buffer.update_priorities(batch["indexes"], self.errors)

    def run(self) -> dict[str, float]:
        """Return transitions a second."""
        calls, took = repeat(self.deliver, self.seconds)
        return {"transitions_per_second": calls * self.batch_size / took}

    def close(self) -> None:
        """Remove the map's files."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


class Tree:
    """cpprb's trees, with one float a step around them, for they are not to be had alone."""

    def __init__(self, *, leaves: int, batches: int, batch_size: int = 256) -> None:
        self.leaves, self.batches, self.batch_size = leaves, batches, batch_size

    def prepare(self) -> None:
        """Fill the trees."""
        rng = np.random.default_rng(0)
        self.buffer = PrioritizedReplayBuffer(self.leaves, {"x": {}}, alpha=1.0)
        for begin in range(0, self.leaves, 1_000_000):
            count = min(1_000_000, self.leaves - begin)
            self.buffer.add(x=np.zeros(count, np.float32), priorities=rng.random(count) + 0.01)
        self.priorities = rng.random(self.batch_size) + 0.01
        self.run()

    def run(self) -> dict[str, float]:
        """Return the median seconds of a batch."""
        times = np.empty((self.batches, 2))
        for i in range(self.batches):
            began = time.perf_counter()
            batch = self.buffer.sample(self.batch_size, BETA)
            sampled = time.perf_counter()
            self.buffer.update_priorities(batch["indexes"], self.priorities)
            times[i] = sampled - began, time.perf_counter() - sampled
        sample, update = np.median(times, axis=0)
        both = float(np.median(times.sum(axis=1)))
        return {"sample_seconds": float(sample), "update_seconds": float(update), "both_seconds": both}


class Loading:
    """`load_transitions` of as many small steps, and a batch. It does not keep priorities."""

    def __init__(self, folder: str, *, steps: int) -> None:
        self.path, self.steps = Path(folder) / f"cpprb-{steps}.npz", steps

    def prepare(self) -> None:
        """Save the transitions, if they were not before."""
        if not self.path.exists():
            buffer = self._empty()
            for begin in range(0, self.steps, 1_000_000):
                count = min(1_000_000, self.steps - begin)
                seen = np.zeros((count, 1), np.uint8)
                buffer.add(obs=seen, next_obs=seen, act=seen, rew=np.zeros(count), done=np.zeros(count))
            partial = self.path.with_name(f"making-{self.path.name}")
            buffer.save_transitions(str(partial))
            partial.rename(self.path)

    def run(self) -> dict[str, float]:
        """Return seconds and memory from nothing to the first batch."""
        before, began = memory()["anonymous"], time.perf_counter()
        buffer = self._empty()
        buffer.load_transitions(str(self.path))
        buffer.sample(256, BETA)
        took = time.perf_counter() - began
        return {"first_batch_seconds": took, "memory_bytes": memory()["anonymous"] - before}

    def _empty(self) -> PrioritizedReplayBuffer:
        fields = {"obs": {"dtype": np.uint8}, "act": {"dtype": np.uint8}, "rew": {}, "done": {"dtype": np.bool_}}
        return PrioritizedReplayBuffer(self.steps, fields, next_of="obs", alpha=ALPHA)


class Adding:
    """`add` of stacked transitions that are in RAM: an episode at a time, or step by step. Nothing is durable."""

    def __init__(self, rows: str, *, stack: int, steps: int, one_by_one: bool) -> None:
        self.folder, self.stack, self.steps, self.one_by_one = Path(rows), stack, steps, one_by_one

    def prepare(self) -> dict[str, Any]:
        """Stack the frames, as an environment's wrapper would have."""
        self.rows = Rows.load(self.folder, mapped=True)
        self.episodes, count = [], 0
        for episode in self.rows.episodes():
            if count >= self.steps:
                break
            self.episodes.append(stacked(self.rows, np.arange(episode.start, episode.stop - 1), self.stack))
            count += episode.stop - 1 - episode.start
        self.count = count
        return {"steps": count}

    def run(self) -> dict[str, float]:
        """Return steps a second into an empty buffer."""
        buffer = make_buffer(self.rows, self.count, self.stack)
        began = time.perf_counter()
        for episode in self.episodes:
            if self.one_by_one:
                for i in range(len(episode["rew"])):
                    buffer.add(**{name: values[i] for name, values in episode.items()})
            else:
                buffer.add(**episode)
            buffer.on_episode_end()
        return {"steps_per_second": self.count / (time.perf_counter() - began)}
