"""A store as its samplers see it: which segments are live, which priorities are committed, and when to commit."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diskreplay.errors import CorruptStoreError, StepEvictedError, StoreLockedError
from diskreplay.storage import layout
from diskreplay.storage.priorities import (
    SamplerCheckpoint,
    is_live,
    load_priorities,
    load_sampler,
    load_state,
    sampler_segments,
)
from diskreplay.storage.updates import Journal, list_updates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.commit import Participant
    from diskreplay.storage.engine import Engine


class Drawing(Protocol):
    """A sampler, which may have been asked for draws that it has not made yet."""

    def serve(self) -> None:
        """Make them."""


class Planning(Protocol):
    """A loader's batches on their way, of which some may not be planned yet."""

    def plan_all(self) -> None:
        """Plan them."""


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
        self._journals: dict[str, Journal] = {}
        self._participants: dict[str, weakref.ref[Participant]] = {}
        self._drawing: weakref.WeakSet[Drawing] = weakref.WeakSet()
        self._planning: weakref.WeakSet[Planning] = weakref.WeakSet()

    @property
    def writable(self) -> bool:
        """Return whether this handle may own priorities."""
        return self._writable

    def settle(self) -> None:
        """Have the draws made that samplers were asked for, before steps come or go."""
        for sampler in list(self._drawing):
            sampler.serve()

    def settle_plans(self) -> None:
        """Have also planned what loaders have on its way, before steps come or go through this handle."""
        self.settle()
        for loading in list(self._planning):
            loading.plan_all()

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

    def load_state(self, sampler: str) -> dict[str, Any] | None:
        """Return the state that the sampler of that name committed last, without its priorities, or None."""
        with self._engine.index.read() as txn:
            return load_state(txn, sampler)

    def load_priorities(self, sampler: str, blocks: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """Return the committed priorities of blocks, (segment, block) each; -1 where a row cannot be sampled.

        All are of one moment, the journal included.

        Raises:
            StepEvictedError: If there are none because another process evicted a segment.
        """
        journal = self._journals.setdefault(sampler, Journal(sampler))
        with self._engine.index.read() as txn:
            try:
                found = load_priorities(txn, journal, sampler, blocks, self.segment_steps)
            except CorruptStoreError as err:
                raise CorruptStoreError(f"{self.path}: {err}", path=self.path, segment=err.segment) from err
            for (segment, _), priorities in zip(blocks, found, strict=True):
                if not len(priorities) and not is_live(txn, segment):
                    raise StepEvictedError(f"segment {segment} was evicted by another process")
        return found

    def list_updates(self, sampler: str) -> list[tuple[int, int]]:
        """Return the number of each record of a sampler's journal, ascending, and how many entries it has."""
        with self._engine.index.read() as txn:
            return list_updates(txn, sampler)

    def forget_journal(self, sampler: str) -> None:
        """Give the memory back that a sampler's journal takes: all blocks are loaded."""
        self._journals.pop(sampler, None)

    def priorities(self, sampler: str) -> Iterator[NDArray[np.float32]]:
        """Yield the committed priorities of the transitions, a block a segment."""
        with self._engine.index.read() as txn:
            segments, journal = list(sampler_segments(txn, sampler)), Journal(sampler)
        for segment in segments:
            with self._engine.index.read() as txn:  # closed while the caller has the values
                sums = txn.array("sums", layout.sum_key(sampler, segment), layout.SUM)
                blocks = [(segment, block) for block in range(0 if sums is None else len(sums))]
                found = load_priorities(txn, journal, sampler, blocks, self.segment_steps)
            values = np.concatenate([np.zeros(0, np.float32), *found])
            yield values[values >= 0]

    def watch(self, sampler: Drawing) -> None:
        """Have a sampler serve its requests before steps come or go."""
        self._drawing.add(sampler)

    def watch_plans(self, loading: Planning) -> None:
        """Have a loader plan its batches before steps come or go through this handle."""
        self._planning.add(loading)

    def claim(self, name: str) -> None:
        """Become the process that commits priorities under a name, if this handle may at all.

        Raises:
            StoreLockedError: If another process does.
        """
        if self._writable:
            self._engine.claim_sampler(name)

    def join(self, name: str, participant: Participant) -> None:
        """Have a participant's state committed with the data; it takes the place of one of the same name."""
        if self._writable:
            self._participants[name] = weakref.ref(participant)

    def require_joined(self, name: str, participant: Participant) -> None:
        """Make sure that a participant's state is still the one that is committed under this name.

        Raises:
            StoreLockedError: If another has taken its place.
        """
        joined = self._participants.get(name)
        if self._writable and (joined is None or joined() is not participant):
            raise StoreLockedError(
                f"{self.path}: sampler {name!r} was made once more from this store; this one's are not committed",
                path=self.path,
                hint="Use the newer one, or give each a name of its own.",
            )

    def participants(self) -> list[Participant]:
        """Return the participants that are still alive."""
        found = {name: ref() for name, ref in self._participants.items()}
        self._participants = {n: self._participants[n] for n, alive in found.items() if alive is not None}
        return [participant for participant in found.values() if participant is not None]
