"""What a store offers to those who read it: transitions, sequences, episodes, columns, statistics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import ReplayError
from diskreplay.experience import Batch, SequenceBatch, StepSpec
from diskreplay.experience.spec import build
from diskreplay.storage.sequences import fetch_sequences
from diskreplay.store.stats import EpisodeTable, StoreStats, collect_stats, column, episode_table
from diskreplay.store.windows import as_step_ids, assemble, check_window

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Literal

    from numpy.typing import ArrayLike, NDArray

    from diskreplay.storage.durable import Durability
    from diskreplay.storage.engine import Engine
    from diskreplay.storage.eviction import Capacity
    from diskreplay.storage.reading import Fetched, WindowPlan
    from diskreplay.store.access import SamplerAccess

    Padding = Literal["first", "zeros"]


class StoreView:
    """The reading half of a `ReplayStore`, which opens and closes it."""

    path: Path
    spec: StepSpec
    segment_steps: int
    capacity: Capacity
    durability: Durability
    access: SamplerAccess
    _engine: Engine
    _closing: bool
    _closed: bool
    _pid: int

    def __len__(self) -> int:
        with self._engine.lock:
            return self._engine.table.transitions

    @property
    def num_episodes(self) -> int:
        """Return how many finished episodes end in the store's live segments."""
        with self._engine.lock:
            tails = self._engine.table.tails.values()
            return self._engine.episodes_sealed + sum(tail.n_ends for tail in tails)

    @property
    def streams(self) -> tuple[str, ...]:
        """Return the names of the streams."""
        with self._engine.lock:
            return tuple(stream.name for stream in self._engine.streams.values())

    @property
    def metadata(self) -> dict[str, Any]:
        """Return a copy of the JSON object kept with the store."""
        return dict(self._engine.metadata)

    def refresh(self) -> bool:
        """Take in what other processes committed since; return whether there was anything.

        Cost: one small read if nothing changed, else in proportion to what did.
        """
        self.check_open()
        with self._engine.lock:
            self.access.settle()
            return self._engine.refresh()

    def read(
        self,
        step_ids: ArrayLike,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        *,
        padding: Padding = "first",
    ) -> Batch:
        """Read the transitions that start at these steps.

        A window stays in its episode: the return sums m <= n_step rewards and stops at the episode's end, or at
        the newest step of a running one; next_observation is m steps later. A stack of k observations ends with
        the step's own; before the episode's first observation that one is repeated (padding="first") or zeros
        stand (padding="zeros"). Where the rows before were evicted, the oldest row left counts as the first.

        Args:
            step_ids: (B,) int64.
            n_step: Rewards to sum, at least 1.
            gamma: Discount a step, in [0, 1].
            frame_stack: k; adds an axis of length k before the observation's own, k = 1 adds none.
            padding: What stands before an episode's first observation.

        Returns:
            A batch of numpy arrays; `weight` is 1.

        Raises:
            StepEvictedError: If a step id is not in the store, or names an episode's last observation.
            CorruptStoreError: If stored bytes are damaged.
        """
        plan = self.plan(step_ids, n_step=n_step, gamma=gamma, frame_stack=frame_stack, padding=padding)
        weight = np.ones(len(plan.step_ids), np.float32)
        return self.assemble(plan, plan.fetch(), weight)

    def read_sequences(self, step_ids: ArrayLike, length: int) -> SequenceBatch:
        """Read `length` consecutive steps from each of these on, cut at the episode's end.

        Raises:
            StepEvictedError: As for `read`.
        """
        self.check_open()
        ids = as_step_ids(step_ids)
        check_window(length, 1.0, 1, "first")
        with self._engine.lock:
            found = fetch_sequences(self._engine.reader, ids, length)
        return SequenceBatch(
            observation=build(self.spec.observation, iter(found.observation)),
            action=build(self.spec.action, iter(found.action)),
            reward=found.reward,
            terminated=found.terminated,
            truncated=found.truncated,
            mask=found.mask,
            weight=np.ones(len(ids), np.float32),
            step_ids=ids,
        )

    def plan(
        self,
        step_ids: ArrayLike,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        padding: Padding = "first",
    ) -> WindowPlan:
        """Find where the windows of `read` lie, to fetch them later, elsewhere; for loaders."""
        self.check_open()
        check_window(n_step, gamma, frame_stack, padding)
        ids = as_step_ids(step_ids)
        with self._engine.lock:
            self._engine.require_whole()
            return self._engine.reader.plan(
                ids,
                n_step=n_step,
                gamma=gamma,
                frame_stack=frame_stack,
                pad_zeros=padding == "zeros",
            )

    def assemble(self, plan: WindowPlan, fetched: Fetched, weight: Any) -> Batch:
        """Nest what a plan fetched as the spec is nested."""
        return assemble(self.spec, plan, fetched, weight)

    def episodes(self) -> EpisodeTable:
        """Return the finished episodes as columns, in the order of their segments. Cost: O(episodes)."""
        self.check_open()
        with self._engine.lock:
            return episode_table(self._engine)

    def column(self, field: str) -> Iterator[NDArray[Any]]:
        """Yield a field's values over the live steps, a block a segment. Cost: reads the whole field."""
        self.check_open()
        return column(self._engine, field)

    @property
    def lock(self) -> threading.RLock:
        """Return the lock that guards the store's tables; samplers hold it while they draw."""
        return self._engine.lock

    def step_ids_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the step ids of the transitions of these ranks, counted in the order of step ids.

        Args:
            ranks: (B,) integers, each in [0, len(store)).

        Raises:
            ValueError: If one is not.
        """
        self.check_open()
        with self._engine.lock:
            return self._engine.reader.step_ids_of(as_step_ids(ranks, "ranks"))

    def priorities(self, sampler: str = "prioritized") -> Iterator[NDArray[np.float32]]:
        """Yield the committed priorities of the transitions, a block a segment; nothing if there are none."""
        self.check_open()
        return self.access.priorities(sampler)

    def stats(self) -> StoreStats:
        """Describe the store: counts, sizes, rewards, returns, lengths, priorities. Cost: reads all rewards."""
        self.check_open()
        return collect_stats(self)

    def check_open(self) -> None:
        """Refuse to go on with a store that is closed, or was opened before a fork.

        Raises:
            ReplayError: If it is; says what to do.
        """
        if self._closing or self._closed:
            raise ReplayError(f"{self.path}: the store is closed", path=self.path, hint="Open it again.")
        if self._pid != os.getpid():
            raise ReplayError(
                f"{self.path}: the store was opened before a fork and cannot be used in the child",
                path=self.path,
                hint="Open the store again in the child process.",
            )
