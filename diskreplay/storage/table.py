"""The live segments of a store, as columns that compiled code can walk.

One slot a segment, sealed or open. Slots are this process's own and are used again after an eviction; step ids and
segment ids are not.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

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
    "counted": (np.int64, 0),
    "holder": (np.object_, None),  # may not refer to the table: the cycle collector does not look into arrays
}
_SEALED = (
    "segment", "stream", "rows", "first_end", "last_end", "first_flags", "cut", "bytes_on_disk",
)  # fmt: skip
REMEMBERED = 1 << 16  # changes


class FieldTable:
    """Where one field's rows lie, per slot: an open shard, memory, or both, coded as they are.

    Attributes:
        base, step: Address of the rows in memory, 0 if they are not, and the bytes from one to the next.
    """

    def __init__(self, size: int) -> None:
        self.fd = np.full(size, -1, np.int32)
        self.base = np.zeros(size, np.int64)
        self.step = np.zeros(size, np.int64)
        self.coded = np.zeros(size, np.int64)
        self.index = np.zeros(size, np.int64)
        self.check = np.zeros(size, np.int64)
        self.size = np.zeros(size, np.int64)

    def resize(self, size: int) -> None:
        """Make room for more slots."""
        self.fd = _grown(self.fd, size, -1)
        self.base, self.step, self.coded, self.index, self.check, self.size = (
            _grown(a, size, 0) for a in (self.base, self.step, self.coded, self.index, self.check, self.size)
        )


class SegmentTable:
    """Columns over the live segments, indexed by slot, and the way from step ids to slots.

    Attributes:
        version: Goes up with every change that a sampler must hear of.
        transitions: Steps that can be sampled.
        holder: What owns the rows of a slot that can be read: a tail, or an open segment.
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
    counted: NDArray[np.int64]
    holder: NDArray[np.object_]

    def __init__(self, fields: Sequence[Field], segment_steps: int) -> None:
        self.segment_steps = segment_steps
        self.version = 0
        self.transitions = 0
        self.size = 0
        self._free: list[int] = []
        self._changes: OrderedDict[int, int] = OrderedDict()
        self._forgotten = 0
        self._live = np.zeros(0, np.int64)
        self._live_segments = np.zeros(0, np.int64)
        self._came: list[int] = []
        self._went = False
        self._ranked = -1
        self._until = np.zeros(0, np.int64)
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

    def slot(self, segment: int) -> int:
        """Return a live segment's slot."""
        return self._slot_of[segment]

    def live(self) -> NDArray[np.int64]:
        """Return the slots in use, in the order of their segments; not to be written to.

        Cost: nothing unless segments came or went, else O(segments) to copy them.
        """
        if self._went:
            stay = self.segment[self._live] == self._live_segments  # a slot may have been given out again
            self._live, self._live_segments = self._live[stay], self._live_segments[stay]
        if self._came:
            came = [slot for slot in map(self._slot_of.get, sorted(set(self._came))) if slot >= 0]
            live = np.concatenate([self._live, np.array(came, np.int64)])
            ids, at = self.segment[live], len(self._live)
            if 0 < at < len(ids) and ids[at] <= ids[at - 1]:
                ids, order = np.unique(ids, return_index=True)
                live = live[order]
            self._live, self._live_segments = live, ids
        if self._went or self._came:
            self._went, self._came, self._ranked = False, [], -1
            self._live.flags.writeable = False
        return self._live

    def changed_since(self, version: int) -> list[int] | None:
        """Return the segments that came, changed or went since that version; None if that is too long ago.

        Cost: O(what changed).
        """
        if version < self._forgotten:
            return None
        found = []
        for segment in reversed(self._changes):
            if self._changes[segment] <= version:
                break
            found.append(segment)
        return found

    def transitions_until(self) -> NDArray[np.int64]:
        """Return how many transitions there are up to and with each of the live segments, (segments,).

        Cost: O(segments behind the oldest one that changed since the last call).
        """
        live = self.live()
        changed = None if self._ranked < 0 else self.changed_since(self._ranked)
        if changed is None:
            self._until = np.cumsum(self.counted[live], dtype=np.int64)
        elif changed:
            start = int(np.searchsorted(self._live_segments, min(changed)))
            np.cumsum(self.counted[live[start:]], out=self._until[start:])
            self._until[start:] += self._until[start - 1] if start else 0
        self._ranked = self.version
        return self._until

    def add(self, segment: int, stream: int, previous: int) -> int:
        """Give a segment a slot; `previous` is the segment before it in its stream, or -1."""
        if self._free:
            slot = heapq.heappop(self._free)
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
        self._came.append(segment)
        self._note(slot)
        return slot

    def add_sealed(self, records: NDArray[Any]) -> None:
        """Give many sealed segments, ascending, their slots, and take over what the catalogue says of them."""
        first, count = self.size, len(records)
        if first or not count:
            for record in records:
                slot = self.add(int(record["segment"]), int(record["stream"]), int(record["previous"]))
                self.fill(slot, record)
            return
        self.size = count
        if count > len(self.segment):
            self._grow(count)
        slots = np.arange(count, dtype=np.int32)
        for column, name in (("n_ends", "ends"), ("available", "rows"), *((c, c) for c in _SEALED)):
            getattr(self, column)[:count] = records[name]
        self._slot_of.add_many(self.segment[:count], slots)
        self.previous[:count] = before = self._slot_of.find(records["previous"].astype(np.int64))
        self.following[before[before >= 0]] = slots[before >= 0]
        self._live, self._live_segments = np.arange(count), self.segment[:count].copy()
        self._live.flags.writeable = False
        self.counted[:count] = self.rows[:count] - self.n_ends[:count]
        self.transitions = int(self.counted[:count].sum())
        self.version += 1
        self._forgotten = self.version

    def fill(self, slot: int, record: Any, *, keep_rows: bool = False) -> None:
        """Take over what the catalogue says of a sealed segment."""
        if not keep_rows:
            self.rows[slot] = self.available[slot] = record["rows"]
        self.n_ends[slot] = record["ends"]
        self.first_end[slot], self.last_end[slot] = record["first_end"], record["last_end"]
        self.first_flags[slot], self.cut[slot] = record["first_flags"], record["cut"]
        self.bytes_on_disk[slot] = record["bytes_on_disk"]
        self._note(slot)

    def attach_tail(self, slot: int, tail: Tail) -> None:
        """Point a slot to rows in memory."""
        self.tails[slot] = self.holder[slot] = tail
        self.ends[slot], self.flags[slot] = tail.ends, tail.flags
        self.ends_address[slot] = tail.ends.ctypes.data
        self.flags_address[slot] = tail.flags.ctypes.data
        for name, table in self.by_field.items():
            rows = tail.arrays[name]
            table.base[slot], table.step[slot] = rows.ctypes.data, rows.strides[0]
        self.follow_tail(slot, tail)

    def follow_tail(self, slot: int, tail: Tail) -> None:
        """Take over how far a tail has come."""
        rows, count = tail.rows, tail.n_ends
        if count != self.n_ends[slot]:
            self.n_ends[slot] = count
            if count:
                self.first_end[slot], self.first_flags[slot] = tail.ends[0], tail.flags[0]
                self.last_end[slot] = tail.ends[count - 1]
        self.rows[slot] = rows
        self.available[slot] = rows + tail.pending
        self._note_count(slot, tail.segment, rows - count)

    def detach_tail(self, slot: int) -> None:
        """Stop pointing to rows in memory: the segment is sealed."""
        if self.tails.pop(slot, None) is not None:
            self.holder[slot] = None
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
        self._note(slot)

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
        self.rows[slot] = self.available[slot] = self.n_ends[slot] = self.bytes_on_disk[slot] = 0
        self._note(slot)
        self.segment[slot] = -1
        self._went = True
        heapq.heappush(self._free, slot)
        return slot

    def find(self, segments: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the slot of each segment, -1 where it is not live."""
        return self._slot_of.find(segments)

    def slots_of(self, step_ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return slot and row of each step id; slot -1 where its segment is not live."""
        return self._slot_of.split(step_ids, self.segment_steps)

    def _note(self, slot: int) -> None:
        """Note that something of a slot's segment changed."""
        self._note_count(slot, int(self.segment[slot]), int(self.rows[slot]) - int(self.n_ends[slot]))

    def _note_count(self, slot: int, segment: int, count: int) -> None:
        """Note that something of a segment changed, and how many transitions it has."""
        self.transitions += count - self.counted.item(slot)
        self.counted[slot] = count
        self.version = version = self.version + 1
        changes = self._changes
        changes[segment] = version
        changes.move_to_end(segment)
        if len(changes) > REMEMBERED:
            self._forgotten = changes.popitem(last=False)[1]

    def _grow(self, size: int) -> None:
        for name, (_, fill) in _COLUMNS.items():
            setattr(self, name, _grown(getattr(self, name), size, fill))
        for table in self.by_field.values():
            table.resize(size)


def _grown(array: NDArray[Any], size: int, fill: int | None) -> NDArray[Any]:
    out = np.full(size, fill, array.dtype)
    out[: len(array)] = array
    return out
