"""A store as its samplers see it: which segments are live, which priorities are committed, and when to commit."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError, StepEvictedError
from diskreplay.storage.priorities import SamplerCheckpoint, is_live, load_priorities, load_sampler, sampler_segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.commit import Participant
    from diskreplay.storage.engine import Engine


class SamplerAccess:
    """What a sampler needs of a store and a user does not. Call with the store's lock held.

    Args:
        path: The store's.
        engine: The store's.
        writable: Whether the store was opened with mode="a": only then are samplers' states committed.
    """

    def __init__(self, path: Path, engine: Engine, *, writable: bool) -> None:
        self.path = path
        self.segment_steps = engine.segment_steps
        self._engine = engine
        self._writable = writable
        self._participants: dict[str, weakref.ref[Participant]] = {}

    @property
    def writable(self) -> bool:
        """Return whether this handle may own priorities."""
        return self._writable

    def refresh(self) -> bool:
        """Take in what other processes committed."""
        return self._engine.refresh()

    @property
    def version(self) -> int:
        """Return a number that changes whenever steps come or go in this process's view."""
        return self._engine.table.version

    def live_segments(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the live segments' ids, ascending, and how many complete rows each has. Cost: O(segments)."""
        table = self._engine.table
        live = table.live()
        return table.segment[live], table.rows[live].astype(np.int64)

    def changed_since(self, version: int) -> list[int] | None:
        """Return the segments that came, changed or went since a version; None if that is too long ago."""
        return self._engine.table.changed_since(version)

    def rows_of(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many complete rows each segment has, -1 where it is not live."""
        slots = self._engine.table.find(segments)
        return np.where(slots >= 0, self._engine.table.rows[slots], -1).astype(np.int64)

    def final_rows(self, segment: int) -> NDArray[np.int32]:
        """Return the rows of a live segment that hold an episode's last observation and cannot be sampled."""
        return self._engine.reader.final_rows(segment)

    def cuts(self, since: int) -> list[int]:
        """Return the segments whose last row became an episode's end because what followed is lost; all but `since`."""
        return self._engine.cuts[since:]

    def is_cut(self, segment: int) -> bool:
        """Return whether a live segment's last row is an episode's end only because what followed is lost."""
        table = self._engine.table
        return bool(table.cut[table.slot(segment)])

    def can_sample(self, step_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which step ids are those of live transitions."""
        table = self._engine.table
        slots, rows = table.slots_of(step_ids)
        live = slots >= 0
        live[live] = rows[live] < table.rows[slots[live]]
        for slot in np.unique(slots[live]).tolist():
            here = slots == slot
            live[here] &= ~np.isin(rows[here], self.final_rows(int(table.segment[slot])))
        return live

    def load_sampler(self, sampler: str) -> SamplerCheckpoint | None:
        """Return what the sampler of that name committed last, or None. Cost: O(segments), not O(rows)."""
        with self._engine.index.read() as txn:
            return load_sampler(txn, sampler)

    def load_priorities(self, sampler: str, rows: Sequence[tuple[int, int, int]]) -> list[NDArray[np.float32]]:
        """Return the committed priorities of rows, (segment, first, stop) each, as far as there are any.

        -1 where a row cannot be sampled. All are of one moment.

        Raises:
            StepEvictedError: If there are none because another process evicted a segment.
        """
        found = []
        with self._engine.index.read() as txn:
            for segment, first, stop in rows:
                try:
                    priorities = load_priorities(txn, sampler, segment, first, stop)
                except CorruptStoreError as err:
                    what = f"{self.path}: segment {segment}: {err}"
                    raise CorruptStoreError(what, path=self.path, segment=segment) from err
                if not len(priorities) and not is_live(txn, segment):
                    raise StepEvictedError(f"segment {segment} was evicted by another process")
                found.append(priorities)
        return found

    def priorities(self, sampler: str) -> Iterator[NDArray[np.float32]]:
        """Yield the committed priorities of the transitions, a block a segment."""
        with self._engine.index.read() as txn:
            segments = list(sampler_segments(txn, sampler))
        for segment in segments:
            with self._engine.index.read() as txn:  # closed while the caller has the values
                values = load_priorities(txn, sampler, segment)
            yield values[values >= 0]

    def join(self, name: str, participant: Participant, *, exclusive: bool = False) -> None:
        """Have a participant's state committed with the data; it takes the place of one of the same name.

        Raises:
            StoreLockedError: If `exclusive` and another process has a participant of that name.
        """
        if self._writable:
            if exclusive:
                self._engine.claim_sampler(name)
            self._participants[name] = weakref.ref(participant)

    def participants(self) -> list[Participant]:
        """Return the participants that are still alive."""
        found = {name: ref() for name, ref in self._participants.items()}
        self._participants = {n: self._participants[n] for n, alive in found.items() if alive is not None}
        return [participant for participant in found.values() if participant is not None]
