"""From segment ids to slots, for many at once: an array over the span of ids, or a sorted list if that is absurd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.storage import planning_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WIDE = 1 << 22
SPARSE = 64


class SegmentLookup:
    """A dictionary from segment to slot that answers for arrays. Cost of `find`: O(1) an id, O(log n) if sparse.

    Ids are dense in practice, for the oldest go first; pinned streams make gaps, and a damaged index anything.
    """

    def __init__(self) -> None:
        self._slot_of: dict[int, int] = {}
        self._base = 0
        self._dense: NDArray[np.int32] | None = np.full(64, -1, np.int32)
        self._sorted: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, segment: int) -> bool:
        return segment in self._slot_of

    def __getitem__(self, segment: int) -> int:
        return self._slot_of[segment]

    def __iter__(self) -> Iterator[int]:
        return iter(self._slot_of)

    def get(self, segment: int) -> int:
        """Return a segment's slot, or -1."""
        return self._slot_of.get(segment, -1)

    def add(self, segment: int, slot: int) -> None:
        """Note a segment's slot."""
        self._slot_of[segment] = slot
        self._sorted = None
        dense = self._dense
        if dense is not None and len(self._slot_of) == 1:
            self._base = segment
            dense[:] = -1
        if dense is None or not 0 <= segment - self._base < len(dense):
            self._spread()
        else:
            dense[segment - self._base] = slot

    def add_many(self, segments: NDArray[np.int64], slots: NDArray[Any]) -> None:
        """Note many segments' slots."""
        if not len(segments):
            return
        self._slot_of.update(zip(segments.tolist(), slots.tolist(), strict=True))
        self._spread()

    def pop(self, segment: int) -> int:
        """Forget a segment; return the slot it had."""
        slot = self._slot_of.pop(segment)
        self._sorted = None
        if self._dense is not None:
            self._dense[segment - self._base] = -1
        return slot

    def find(self, segments: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the slot of each segment, -1 where there is none."""
        if self._dense is not None:
            place = segments - self._base
            inside = (place >= 0) & (place < len(self._dense))
            return np.where(inside, self._dense[np.where(inside, place, 0)], -1).astype(np.int32)
        if self._sorted is None:
            keys = np.fromiter(self._slot_of, np.int64, len(self._slot_of))
            slots = np.fromiter(self._slot_of.values(), np.int32, len(self._slot_of))
            order = np.argsort(keys)
            self._sorted = keys[order], slots[order]
        keys, slots = self._sorted
        if not len(keys):
            return np.full(len(segments), -1, np.int32)
        place = np.minimum(np.searchsorted(keys, segments), len(keys) - 1)
        return np.where(keys[place] == segments, slots[place], -1).astype(np.int32)

    def split(self, step_ids: NDArray[np.int64], steps: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return slot, -1 where there is none, and row of each step id in segments of so many steps."""
        if self._dense is None:
            return self.find(step_ids // steps), (step_ids % steps).astype(np.int32)
        slots, rows = np.empty(len(step_ids), np.int32), np.empty(len(step_ids), np.int32)
        ids = np.ascontiguousarray(step_ids, np.int64)
        if not ids.flags.writeable:
            ids = ids.copy()  # else the kernel would be compiled anew
        planning_kernels.split_step_ids(ids, steps, self._base, self._dense, slots, rows)
        return slots, rows

    def _spread(self) -> None:
        self._sorted = None
        first, last = min(self._slot_of), max(self._slot_of)
        span = last - first + 1
        if span > WIDE and span > SPARSE * len(self._slot_of):
            self._dense = None
            return
        keys = np.fromiter(self._slot_of, np.int64, len(self._slot_of))
        self._base, self._dense = first, np.full(max(64, 2 * span), -1, np.int32)
        self._dense[keys - first] = np.fromiter(self._slot_of.values(), np.int32, len(self._slot_of))
