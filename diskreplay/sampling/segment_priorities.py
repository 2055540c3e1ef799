"""The priorities of a store's live transitions, segment by segment, over a sum tree; loaded when first touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError, StepEvictedError
from diskreplay.priority import SumTree, leaf_value
from diskreplay.sampling.sampler import REFRESHES
from diskreplay.storage.layout import PRIORITY_BLOCK
from diskreplay.storage.lookup import SegmentLookup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diskreplay.storage.commit import SamplerRecord
    from diskreplay.store.access import SamplerAccess

UNSAMPLED = np.float32(-1.0)
TOTALS_AGREE = 1e-6
SPARSE, SPARSE_PLACES = 8, 1024


class SegmentPriorities:
    """Follow which transitions are live, and keep each one's priority p and the sum of p^alpha.

    A segment is a block of the tree; which block is committed with it, so that draws are the same after a restart.
    Every method is to be called with the store's lock held.

    Args:
        access: The store, as samplers see it.
        name: The sampler under whose name priorities are committed.
        alpha: Exponent of the priorities.

    Attributes:
        tree: The sum tree.
        segment: (blocks,) segment of each block, -1 if it is free.
        largest: The largest priority seen, which new steps get.
    """

    def __init__(self, access: SamplerAccess, name: str, alpha: float) -> None:
        self.access = access
        self.name = name
        self.alpha = alpha
        self.steps = access.segment_steps
        self.tree = SumTree(self.steps, 1)
        self.segment = np.full(0, -1, np.int64)
        self.largest = np.float32(1.0)
        self._rows = np.zeros(0, np.int64)
        self._priority = np.zeros(0, np.float32)
        self._chunks = -(-self.steps // PRIORITY_BLOCK)
        self._dirty = np.zeros((0, self._chunks), np.bool_)
        self._moved = np.zeros(0, np.bool_)
        self._block_of = SegmentLookup()
        self._newest = -1
        self._free: list[int] = []
        self._live = np.zeros(0, np.int64)
        self._version = -1
        self._cuts = 0
        self._live_rows: dict[int, int] = {}
        access.refresh()
        self._restore()
        for _ in range(REFRESHES):
            try:
                self.sync()
                break
            except StepEvictedError:  # by another process, since the refresh
                access.refresh()

    def sync(self) -> None:
        """Take in which steps came or went. Cost: nothing if none did, else O(segments) and the new rows."""
        if self._version == self.access.version:
            return
        segments, rows = self.access.live_segments()
        if not self.access.writable:
            self._live_rows = dict(zip(segments.tolist(), rows.tolist(), strict=True))
        if not np.array_equal(segments, self._live):
            self._match(segments)
            self._live = segments
        self._take_in_cuts()
        blocks = self._block_of.find(segments)
        for at in np.flatnonzero(self._rows[blocks] != rows).tolist():
            self._extend(int(blocks[at]), int(segments[at]), int(rows[at]))
        self._version = self.access.version

    def leaves_of(self, step_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the leaf of each step id, and which of them are live.

        Raises:
            ValueError: If a step id is live but not that of a transition, or was never in the store.
        """
        segments, rows = step_ids // self.steps, step_ids % self.steps
        unknown = (step_ids < 0) | (segments > self._newest)
        blocks = self._block_of.find(segments).astype(np.int64)
        live = blocks >= 0
        self.load(blocks[live])
        leaves = blocks * self.steps + rows
        unknown[live] = (rows[live] >= self._rows[blocks[live]]) | (self._priority[leaves[live]] < 0)
        if unknown.any():
            raise ValueError(f"step id {int(step_ids[np.flatnonzero(unknown)[0]])} is not that of a transition")
        return leaves, live

    def get(self, leaves: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the priorities of leaves that are loaded."""
        return np.asarray(self._priority[leaves], np.float32)

    def set(self, leaves: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Set the priorities of leaves that are loaded; of one given twice the last wins."""
        self.tree.update(leaves, leaf_value(priorities, self.alpha))
        self._priority[leaves] = priorities
        blocks = leaves // self.steps
        self._dirty[blocks, (leaves - blocks * self.steps) // PRIORITY_BLOCK] = True
        self.largest = max(self.largest, priorities.max())

    def forget(self) -> None:
        """Give every live transition the priority 1."""
        self.largest = np.float32(1.0)
        for segment in self._block_of:
            block = self._block_of[segment]
            self.tree.set_block(block, np.zeros(0))
            self._rows[block] = 0
        self._version = -1
        self.sync()

    def load(self, blocks: NDArray[np.int64], *, trusted: bool = True) -> None:
        """Have the leaves of these blocks in memory.

        Raises:
            CorruptStoreError: If the index holds other priorities than the checkpoint says.
        """
        missing = blocks[~self.tree.is_loaded(blocks)]
        for block in np.unique(missing).tolist():
            segment, rows = int(self.segment[block]), int(self._rows[block])
            priorities = self.access.load_priorities(self.name, segment)
            where = f"{self.access.path}: sampler {self.name!r}, segment {segment}"
            if not self.access.writable:
                # Their owner may have gone on since the sums were read: what is there now counts.
                if len(priorities) < rows:
                    raise CorruptStoreError(f"{where}: {len(priorities)} of {rows} priorities", segment=segment)
                rows = self._rows[block] = min(len(priorities), self._live_rows.get(segment, rows))
                priorities, trusted = priorities[:rows], False
            if len(priorities) != rows:
                raise CorruptStoreError(
                    f"{where}: {len(priorities)} priorities, the checkpoint counts {rows}", segment=segment
                )
            if self.access.is_cut(segment):  # perhaps since this sampler's last commit
                priorities, trusted = priorities.copy(), False
                final = self.access.final_rows(segment)
                priorities[final[final < rows]] = UNSAMPLED
            before = self.tree.block_totals()[block]
            self.tree.set_block(block, self._powers(priorities))
            self._priority[block * self.steps : block * self.steps + rows] = priorities
            after = self.tree.block_totals()[block]
            # pow() may differ in the last bit between processors, so not ==.
            if trusted and abs(after - before) > TOTALS_AGREE * max(after, before):
                raise CorruptStoreError(
                    f"{where}: priorities sum to {after}, the checkpoint to {before}", segment=segment
                )

    def collect(self, record: SamplerRecord) -> None:
        """Put into a record what changed since the last commit."""
        totals, size = self.tree.block_totals(), self.steps
        for block, chunk in np.argwhere(self._dirty).tolist():
            start = block * size + chunk * PRIORITY_BLOCK
            stop = block * size + min((chunk + 1) * PRIORITY_BLOCK, int(self._rows[block]))
            record.blocks[int(self.segment[block]), chunk] = self._priority[start:stop].tobytes()
        for block in np.flatnonzero(self._dirty.any(axis=1) | self._moved).tolist():
            record.sums[int(self.segment[block])] = (float(totals[block]), block, int(self._rows[block]))

    def committed(self) -> None:
        """Hear that what was collected is durable."""
        self._dirty[:] = False
        self._moved[:] = False

    def check_valid(self) -> tuple[bool, str]:
        """Return whether tree, priorities and store agree, and if not, how. Cost: O(rows loaded)."""
        sound, why = self.tree.check_valid()
        if not sound:
            return False, why
        for segment, count in zip(*(column.tolist() for column in self.access.live_segments()), strict=True):
            block = self._block_of.get(segment)
            if block < 0 or self._rows[block] != count or self.segment[block] != segment:
                return False, f"segment {segment} has {count} rows, its block {block} knows others"
            if not self.tree.is_loaded([block])[0]:
                continue
            leaves = block * self.steps + np.arange(count)
            priorities = self._priority[leaves]
            if not np.array_equal(self.tree.get(leaves), self._powers(priorities)):
                return False, f"segment {segment}: leaves are not priority^alpha"
            if not np.array_equal(np.flatnonzero(priorities < 0), self.access.final_rows(segment)):
                return False, f"segment {segment}: final rows differ"
        return True, ""

    def _powers(self, priorities: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.where(priorities < 0, 0.0, leaf_value(np.maximum(priorities, 0), self.alpha))

    def _restore(self) -> None:
        """Put the committed sums where they were in the tree; leaves follow when they are touched."""
        saved = self.access.load_sampler(self.name)
        if saved is None:
            return
        self.largest = np.float32(saved.state.get("largest", 1.0))
        self._live_rows = dict(zip(*(column.tolist() for column in self.access.live_segments()), strict=True))
        fits = [self._live_rows.get(s, -1) >= r for s, r in zip(saved.segments.tolist(), saved.rows, strict=True)]
        live = np.array(fits, np.bool_)
        moved = False
        segments, places = saved.segments[live], saved.places[live].astype(np.int64)
        if not len(segments):
            return
        if places.min() < 0 or len(np.unique(places)) < len(places):
            raise CorruptStoreError(f"{self.access.path}: sampler {self.name!r}: impossible places in the sum tree")
        if places.max() >= max(SPARSE_PLACES, SPARSE * len(places)):  # most of a large store was evicted
            places, moved = np.arange(len(places)), True
        self._reserve(int(places.max()) + 1)
        self._moved[places] = moved
        self.segment[places], self._rows[places] = segments, saved.rows[live]
        for segment, place, total in zip(segments.tolist(), places.tolist(), saved.totals[live].tolist(), strict=True):
            self._block_of.add(segment, place)
            self.tree.set_block_total(place, total)
        self._newest = int(segments.max())
        self._free = np.flatnonzero(self.segment < 0).tolist()
        if saved.state.get("alpha") != self.alpha:
            self.load(places, trusted=False)
            self._dirty[places] = np.arange(self._chunks) * PRIORITY_BLOCK < self._rows[places, None]

    def _match(self, segments: NDArray[np.int64]) -> None:
        """Free the blocks of segments that went; give blocks to those that came."""
        live = set(segments.tolist())
        for segment in [known for known in self._block_of if known not in live]:
            block = self._block_of.pop(segment)
            self.tree.clear_block(block)
            self.segment[block], self._rows[block] = -1, 0
            self._dirty[block] = self._moved[block] = False
            self._free.append(block)
        self._free.sort(reverse=True)
        for segment in segments.tolist():
            if segment not in self._block_of:
                if not self._free:
                    self._reserve(len(self.segment) + 1)
                    self._free.append(len(self.segment) - 1)
                block = self._free.pop()
                self._block_of.add(segment, block)
                self.segment[block] = segment
                self._newest = max(self._newest, segment)

    def _extend(self, block: int, segment: int, rows: int) -> None:
        """Give new rows of a block the largest priority; final rows none."""
        self.load(np.array([block]))
        known = int(self._rows[block])
        priorities = np.full(rows - known, self.largest, np.float32)
        final = self.access.final_rows(segment)
        priorities[final[final >= known] - known] = UNSAMPLED
        self._priority[block * self.steps + known : block * self.steps + rows] = priorities
        self.tree.update_range(block, known, self._powers(priorities))
        self._rows[block] = rows
        self._dirty[block, known // PRIORITY_BLOCK : (rows - 1) // PRIORITY_BLOCK + 1] = True

    def _take_in_cuts(self) -> None:
        """Stop drawing rows that became episodes' ends because what followed them is lost."""
        for segment in self.access.cuts(self._cuts):
            self._cuts += 1
            block = self._block_of.get(segment)
            if block >= 0 and self._rows[block]:
                self.load(np.array([block]))
                row = int(self._rows[block]) - 1
                self._priority[block * self.steps + row] = UNSAMPLED
                self.tree.update(np.array([block * self.steps + row]), np.zeros(1))
                self._dirty[block, row // PRIORITY_BLOCK] = True

    def _reserve(self, blocks: int) -> None:
        """Have room for so many blocks."""
        have = len(self.segment)
        if blocks <= have:
            return
        self.tree.grow(blocks)
        self.segment = np.concatenate([self.segment, np.full(blocks - have, -1, np.int64)])
        self._rows = np.concatenate([self._rows, np.zeros(blocks - have, np.int64)])
        self._dirty = np.concatenate([self._dirty, np.zeros((blocks - have, self._chunks), np.bool_)])
        self._moved = np.concatenate([self._moved, np.zeros(blocks - have, np.bool_)])
        if len(self._priority) < blocks * self.steps:
            room = np.zeros(2 * blocks * self.steps, np.float32)
            room[: len(self._priority)] = self._priority
            self._priority = room
