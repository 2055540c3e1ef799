"""The live segments of a store, as columns that compiled code can walk.

One slot a segment, sealed or open. Slots are this process's own and are used again after an eviction; step ids and
segment ids are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import StepEvictedError
from diskreplay.storage.layout import CUT, INTERRUPTED
from diskreplay.storage.lookup import SegmentLookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Field
    from diskreplay.storage.tail import Tail

_COLUMNS = {
    "segment": (np.int64, -1),
    "stream": (np.int32, -1),
    "rows": (np.int32, 0),
    "available": (np.int32, 0),
    "n_ends": (np.int32, 0),
    "first_end": (np.int32, -1),
    "last_end": (np.int32, -1),
    "first_flags": (np.uint8, 0),
    "cut": (np.bool_, False),
    "previous": (np.int32, -1),
    "following": (np.int32, -1),
    "ends_address": (np.int64, 0),
    "flags_address": (np.int64, 0),
    "bytes_on_disk": (np.int64, 0),
    "used": (np.int64, 0),
    "pins": (np.int32, 0),
}


class FieldTable:
    """Where one field's rows lie, per slot: an open shard, or memory."""

    def __init__(self, size: int) -> None:
        self.fd = np.full(size, -1, np.int32)
        self.base = np.zeros(size, np.int64)
        self.index = np.zeros(size, np.int64)
        self.check = np.zeros(size, np.int64)
        self.size = np.zeros(size, np.int64)

    def resize(self, size: int) -> None:
        """Make room for more slots."""
        self.fd = _grown(self.fd, size, -1)
        self.base, self.index, self.check, self.size = (
            _grown(a, size, 0) for a in (self.base, self.index, self.check, self.size)
        )


class SegmentTable:
    """Columns over the live segments, indexed by slot, and the way from step ids to slots.

    Attributes:
        version: Goes up with every change that a sampler must hear of.
        transitions: Steps that can be sampled.
    """

    segment: NDArray[np.int64]
    stream: NDArray[np.int32]
    rows: NDArray[np.int32]
    available: NDArray[np.int32]
    n_ends: NDArray[np.int32]
    first_end: NDArray[np.int32]
    last_end: NDArray[np.int32]
    first_flags: NDArray[np.uint8]
    cut: NDArray[np.bool_]
    previous: NDArray[np.int32]
    following: NDArray[np.int32]
    ends_address: NDArray[np.int64]
    flags_address: NDArray[np.int64]
    bytes_on_disk: NDArray[np.int64]
    used: NDArray[np.int64]
    pins: NDArray[np.int32]

    def __init__(self, fields: Sequence[Field], segment_steps: int) -> None:
        self.segment_steps = segment_steps
        self.version = 0
        self.size = 0
        self._free: list[int] = []
        for name, (dtype, fill) in _COLUMNS.items():
            setattr(self, name, np.full(16, fill, dtype))
        self.by_field = {field.name: FieldTable(16) for field in fields}
        self.ends: dict[int, NDArray[np.int32]] = {}
        self.flags: dict[int, NDArray[np.uint8]] = {}
        self.tails: dict[int, Tail] = {}
        self._slot_of = SegmentLookup()

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, segment: int) -> bool:
        return segment in self._slot_of

    @property
    def transitions(self) -> int:
        """Return how many steps can be sampled. Cost: O(slots)."""
        return int((self.rows[: self.size] - self.n_ends[: self.size]).sum(dtype=np.int64))

    def slot(self, segment: int) -> int:
        """Return a live segment's slot."""
        return self._slot_of[segment]

    def live(self) -> NDArray[np.int64]:
        """Return the slots in use, in the order of their segments."""
        slots = np.flatnonzero(self.segment[: self.size] >= 0)
        return np.asarray(slots[np.argsort(self.segment[slots])], np.int64)

    def add(self, segment: int, stream: int, previous: int) -> int:
        """Give a segment a slot; `previous` is the segment before it in its stream, or -1."""
        if self._free:
            slot = self._free.pop()
        else:
            slot, self.size = self.size, self.size + 1
            if self.size > len(self.segment):
                self._grow(2 * len(self.segment))
        for name, (_, fill) in _COLUMNS.items():
            getattr(self, name)[slot] = fill
        self.segment[slot], self.stream[slot] = segment, stream
        before = self._slot_of.get(previous)
        self.previous[slot] = before
        if before >= 0:
            self.following[before] = slot
        self._slot_of.add(segment, slot)
        self.version += 1
        return slot

    def fill(self, slot: int, record: Any, *, keep_rows: bool = False) -> None:
        """Take over what the catalogue says of a sealed segment."""
        if not keep_rows:
            self.rows[slot] = self.available[slot] = record["rows"]
        self.n_ends[slot] = record["ends"]
        self.first_end[slot], self.last_end[slot] = record["first_end"], record["last_end"]
        self.first_flags[slot], self.cut[slot] = record["first_flags"], record["cut"]
        self.bytes_on_disk[slot] = record["bytes_on_disk"]
        self.version += 1

    def attach_tail(self, slot: int, tail: Tail) -> None:
        """Point a slot to rows in memory."""
        self.tails[slot] = tail
        self.ends[slot], self.flags[slot] = tail.ends, tail.flags
        self.ends_address[slot] = tail.ends.ctypes.data
        self.flags_address[slot] = tail.flags.ctypes.data
        for name, table in self.by_field.items():
            table.base[slot] = tail.arrays[name].ctypes.data
        self.follow_tail(slot, tail)

    def follow_tail(self, slot: int, tail: Tail) -> None:
        """Take over how far a tail has come."""
        count = tail.n_ends
        if count:
            self.first_end[slot], self.first_flags[slot] = tail.ends[0], tail.flags[0]
            self.last_end[slot] = tail.ends[count - 1]
        self.n_ends[slot] = count
        self.rows[slot] = tail.rows
        self.available[slot] = tail.rows + tail.pending
        self.version += 1

    def detach_tail(self, slot: int) -> None:
        """Stop pointing to rows in memory: the segment is sealed."""
        self.tails.pop(slot, None)
        self.drop_ends(slot)
        for table in self.by_field.values():
            table.base[slot] = 0

    def ends_episode(self, slot: int) -> bool:
        """Return whether a segment's last row is an episode's last."""
        return bool(self.last_end[slot] == self.rows[slot] - 1)

    def cut_after(self, slot: int) -> None:
        """Make a sealed segment's last row the end of an interrupted episode: what followed is lost."""
        row = int(self.rows[slot]) - 1
        if not self.n_ends[slot]:
            self.first_end[slot], self.first_flags[slot] = row, INTERRUPTED | CUT
        self.n_ends[slot] += 1
        self.last_end[slot], self.cut[slot] = row, True
        self.drop_ends(slot)
        self.version += 1

    def hold_ends(self, slot: int, ends: NDArray[np.int32], flags: NDArray[np.uint8]) -> None:
        """Keep a sealed segment's episode ends in memory."""
        self.ends[slot], self.flags[slot] = ends, flags
        self.ends_address[slot], self.flags_address[slot] = ends.ctypes.data, flags.ctypes.data

    def drop_ends(self, slot: int) -> None:
        """Forget a sealed segment's episode ends."""
        self.ends.pop(slot, None)
        self.flags.pop(slot, None)
        self.ends_address[slot] = self.flags_address[slot] = 0

    def remove(self, segment: int) -> int:
        """Take an evicted segment's slot back; return it."""
        slot = self._slot_of.pop(segment)
        for neighbour, column in (
            (self.previous[slot], self.following),
            (self.following[slot], self.previous),
        ):
            if neighbour >= 0:
                column[neighbour] = -1
        self.detach_tail(slot)
        self.segment[slot] = -1
        self.rows[slot] = self.available[slot] = self.n_ends[slot] = self.bytes_on_disk[slot] = 0
        self._free.append(slot)
        self._free.sort(reverse=True)
        self.version += 1
        return slot

    def slots_of(self, step_ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return slot and row of each step id; slot -1 where its segment is not live."""
        slots = self._slot_of.find(step_ids // self.segment_steps)
        rows = (step_ids % self.segment_steps).astype(np.int32)
        return slots, rows

    def step_ids(self, slots: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the step ids of rows."""
        return np.asarray(self.segment[slots] * self.segment_steps + rows, np.int64)

    def require(self, step_ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return slot and row of each step id.

        Raises:
            StepEvictedError: If one is not in the store; names it.
        """
        slots, rows = self.slots_of(step_ids)
        known = slots >= 0
        known[known] = rows[known] < self.available[slots[known]]
        if not known.all():
            bad = int(step_ids[np.flatnonzero(~known)[0]])
            raise StepEvictedError(f"step id {bad} is not in the store: evicted, or never written")
        return slots, rows

    def _grow(self, size: int) -> None:
        for name, (_, fill) in _COLUMNS.items():
            setattr(self, name, _grown(getattr(self, name), size, fill))
        for table in self.by_field.values():
            table.resize(size)


def _grown(array: NDArray[Any], size: int, fill: int) -> NDArray[Any]:
    out = np.full(size, fill, array.dtype)
    out[: len(array)] = array
    return out
