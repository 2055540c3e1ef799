"""The priorities of a store's live transitions, segment by segment, over a sum tree; loaded when first touched."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError, StepEvictedError
from diskreplay.priority import HugePages, SumTree, allow_huge_pages, batch_kernels, leaf_value, zeros
from diskreplay.sampling.changes import Changes
from diskreplay.sampling.sampler import REFRESHES
from diskreplay.storage import layout, planning_kernels
from diskreplay.storage.lookup import SegmentLookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.commit import SamplerRecord
    from diskreplay.storage.priorities import SamplerCheckpoint
    from diskreplay.store.access import SamplerAccess

UNSAMPLED = np.float32(-1.0)
TOTALS_AGREE = 1e-6
SPARSE, SPARSE_PLACES = 8, 1024
PORTION = 256


class SegmentPriorities:
    """Follow which transitions are live, and keep each one's priority p and the sum of p^alpha.

    A segment has a place, which is committed with it, so that draws are the same after a restart. A place is as many
    blocks of the tree as a segment has blocks of priorities; a block is loaded when it is first touched.
    Every method is to be called with the store's lock held.

    Args:
        access: The store, as samplers see it.
        name: The sampler under whose name priorities are committed.
        alpha: Exponent of the priorities.

    Attributes:
        tree: The sum tree.
        segment: (places,) segment of each place, -1 if it is free.
        largest: The largest priority seen, which new steps get.
    """

    def __init__(self, access: SamplerAccess, name: str, alpha: float) -> None:
        self.access = access
        self.name = name
        self.alpha = alpha
        self.steps = access.segment_steps
        self.size = min(self.steps, layout.PRIORITY_BLOCK)
        self.blocks = -(-self.steps // self.size)
        self.span = self.blocks * self.size
        self.tree = SumTree(self.size, self.blocks)
        self.segment = np.full(0, -1, np.int64)
        self.largest = np.float32(1.0)
        self._rows = np.zeros(0, np.int64)
        self._priority = np.zeros(0, np.float32)
        self._pages = HugePages(self.size * self._priority.itemsize)
        self._changes = Changes(self.size)
        self._next_update: int | None = None
        self._moved = np.zeros(0, np.bool_)
        self._place_of = SegmentLookup()
        self._newest = -1
        self._unloaded = 0
        self._free: list[int] = []
        self._version = -1
        self._cuts = 0
        self._rescaling = False
        self._interrupted: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self._torn = False
        saved = access.load_sampler(name)
        access.refresh()  # afterwards: segments have at least the rows that the checkpoint counts, or went
        if saved is not None:
            self._restore(saved)
        for _ in range(REFRESHES):
            try:
                self.sync()
                self._rescale()
                break
            except StepEvictedError:  # by another process, since the refresh
                access.refresh()
        else:
            self.sync()
            self._rescale()

    def sync(self) -> None:
        """Take in which steps came or went. Cost: O(segments that changed, and the new rows)."""
        self._finish()
        version = self.access.version
        if self._version == version:
            return
        self._require_whole()
        self._torn = True
        try:
            self._take_in(version)
        except Exception:
            self._torn = False  # it is done again from the beginning
            raise
        self._torn = False

    def _require_whole(self) -> None:
        if self._torn:
            raise ReplayError(
                f"{self.access.path}: sampler {self.name!r}: taking in what came or went was interrupted half-way",
                path=self.access.path,
                hint="Make the sampler anew: its priorities are those that were committed.",
            )

    def _take_in(self, version: int) -> None:
        changed = None if self._version < 0 else self.access.changed_since(self._version)
        if changed is None:
            segments, rows = self.access.live_segments()
            known = np.sort(self.segment[self.segment >= 0])
            gone = known[self.access.rows_of(known) < 0]
        else:
            segments = np.sort(np.array(changed, np.int64))
            rows = self.access.rows_of(segments)
            gone, segments, rows = segments[rows < 0], segments[rows >= 0], rows[rows >= 0]
        self._drop(gone.tolist())
        self._add(segments[self._place_of.find(segments) < 0].tolist())
        places = self._place_of.find(segments)
        for at in np.flatnonzero(self._rows[places] != rows).tolist():
            self._extend(int(places[at]), int(segments[at]), int(rows[at]))
        self._take_in_cuts()  # last: what is cut is a segment's last row
        self._version = version

    def leaves_of(self, step_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """Return the leaf of each step id, and which of them are live: not evicted, nor cut off from what followed.

        None instead of flags: all are.

        Raises:
            ValueError: If a step id is live but not that of a transition, or was never in the store.
        """
        places, rows = self._place_of.split(step_ids, self.steps)
        leaves = np.empty(len(step_ids), np.int64)
        if planning_kernels.join_leaves(
            places, rows, self.span, self._rows, self.size, self.tree.loaded, self._priority, leaves
        ):
            return leaves, None
        live = places >= 0
        leaves = places * np.int64(self.span) + rows
        self.load(leaves[live] // self.size)
        unknown = (step_ids < 0) | (step_ids // self.steps > self._newest)
        unknown[live] = (rows[live] >= self._rows[places[live]]) | (self._priority[leaves[live]] < 0)
        for at in np.flatnonzero(unknown & live).tolist():
            segment, row = divmod(int(step_ids[at]), self.steps)
            if row == self._rows[places[at]] - 1 and self.access.is_cut(segment):
                live[at] = unknown[at] = False
        if unknown.any():
            raise ValueError(f"step id {int(step_ids[np.flatnonzero(unknown)[0]])} is not that of a transition")
        return leaves, None if live.all() else live

    def step_ids(self, leaves: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the step ids of leaves."""
        found = np.empty(len(leaves), np.int64)
        planning_kernels.join_step_ids(leaves, self.span, self.segment, self.steps, found)
        return found

    def get(self, leaves: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the priorities of leaves that are loaded."""
        return np.asarray(self._priority[leaves], np.float32)

    def set(self, leaves: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Set the priorities of leaves that are loaded, an array this keeps; of one given twice the last wins."""
        self._interrupted = leaves, priorities
        self._finish()

    def _finish(self) -> None:
        """Do what `set` was about, again if it was interrupted (Ctrl-C): sums and priorities belong together."""
        if self._interrupted is None:
            return
        leaves, priorities = self._interrupted
        try:
            self.tree.update(leaves, leaf_value(priorities, self.alpha))
        except Exception:
            self._interrupted = None  # nothing was written
            raise
        self.largest = max(self.largest, np.float32(batch_kernels.put_all(self._priority, leaves, priorities)))
        self._changes.touch(leaves)
        self._interrupted = None

    def forget(self) -> None:
        """Give every live transition the priority 1."""
        self._finish()
        self._require_whole()
        self._torn, self._version = True, -1
        for place in np.flatnonzero(self.segment >= 0).tolist():
            self._clear(place)
        self.largest = np.float32(1.0)
        self._torn = False
        self.sync()

    def load(self, blocks: NDArray[np.int64]) -> None:
        """Have the leaves of these blocks of the tree in memory. Cost: O(rows of those that are not).

        Their sums may be others then, if the priorities' owner went on or rows became final.

        Raises:
            CorruptStoreError: If the index holds other priorities than the checkpoint says.
        """
        loaded = self.tree.is_loaded(blocks)
        if loaded.all():
            return
        missing = np.unique(blocks[~loaded])
        for block, priorities in self._stored(missing):
            self._load(block, priorities, trusted=not self._rescaling)
            self._unloaded -= 1
            if not self.tree.dense and 2 * self._unloaded < self.tree.blocks:
                self.tree.dense = True
                allow_huge_pages(self._priority, allowed=True)
        if self.tree.dense:
            self._pages.note(missing, self.tree.loaded, *self.tree.parts, (self._priority, self.size))
        if not self._unloaded:
            self.access.forget_journal(self.name)

    def _key(self, block: int) -> tuple[int, int]:
        """Return the segment of a block of the tree, and which of its blocks it is."""
        return int(self.segment[block // self.blocks]), block % self.blocks

    def _blocks_of(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the blocks that hold rows of places (n,), place after place, and how many each has, (n,)."""
        counts = -(-self._rows[places] // self.size)
        begin = places * self.blocks - (np.cumsum(counts) - counts)
        return np.repeat(begin, counts) + np.arange(int(counts.sum())), counts

    def _stored(self, blocks: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (block, committed priorities), so many at a time that they take little memory."""
        for start in range(0, len(blocks), PORTION):
            portion = blocks[start : start + PORTION].tolist()
            found = self.access.load_priorities(self.name, [self._key(block) for block in portion])
            yield from zip(portion, found, strict=True)

    def _load(self, block: int, priorities: NDArray[np.float32], *, trusted: bool) -> None:
        place, first = block // self.blocks, block % self.blocks * self.size
        segment, known = int(self.segment[place]), int(self._rows[place])
        rows = min(known - first, self.size)
        where = f"{self.access.path}: sampler {self.name!r}, segment {segment}"
        if not self.access.writable:
            # Their owner may have gone on since the sums were read: what is there now counts.
            if len(priorities) < rows:
                raise CorruptStoreError(f"{where}: {len(priorities)} of {rows} priorities", segment=segment)
            if known <= first + self.size:
                live = int(self.access.rows_of(np.array([segment]))[0])
                rows = min(len(priorities), max(live - first, rows))
                self._rows[place] = first + rows
            priorities, trusted = priorities[:rows], False
        if not np.isfinite(priorities).all():
            raise CorruptStoreError(f"{where}: a priority is not finite", segment=segment)
        if len(priorities) != rows:
            raise CorruptStoreError(
                f"{where}: {len(priorities)} priorities from row {first} on, the checkpoint counts {rows}",
                segment=segment,
            )
        if self.access.is_cut(segment):  # perhaps since this sampler's last commit
            priorities, trusted = priorities.copy(), False
            final = self.access.final_rows(segment) - first
            priorities[final[(final >= 0) & (final < rows)]] = UNSAMPLED
        # Before the block counts as loaded: an interrupt (Ctrl-C) may come between any two lines.
        self._priority[block * self.size : block * self.size + rows] = priorities
        try:  # pow() may differ in the last bit between processors, so not ==
            self.tree.set_block(block, self._powers(priorities), tolerance=TOTALS_AGREE if trusted else np.inf)
        except ArithmeticError as err:
            what = f"{where}: the priorities are not those of the checkpoint: {err}"
            raise CorruptStoreError(what, segment=segment) from err

    def collect(self, record: SamplerRecord) -> None:
        """Put into a record what changed since the last commit. Cost: O(changes), see changes.py."""
        changes = self._changes
        if self._next_update is not None:
            changes.restored(self.access.list_updates(self.name), self._next_update)
            self._next_update = None
        within = np.arange(self.blocks) * self.size
        rows = np.clip(self._rows[:, None] - within, 0, self.size).reshape(-1)
        step_ids = np.where(self.segment[:, None] < 0, -1 << 62, self.segment[:, None] * self.steps + within)
        plan = changes.plan(rows, step_ids.reshape(-1), self._priority)
        whole = np.flatnonzero(plan.whole)
        self._collect_blocks(record, whole, rows, plan.folded)
        moved = np.flatnonzero(self._moved)
        self._collect_sums(record, np.concatenate([whole // self.blocks, plan.leaves // self.span, moved]))
        record.state["next_update"] = plan.folded
        record.update, record.kept = plan.first, plan.kept
        record.updates = {update.number: update.payload() for update in plan.updates}

    def _collect_blocks(
        self, record: SamplerRecord, whole: NDArray[np.int64], rows: NDArray[np.int64], folded: int
    ) -> None:
        here = self.tree.is_loaded(whole)
        for block in whole[here].tolist():
            values = self._priority[block * self.size : block * self.size + int(rows[block])]
            record.blocks[self._key(block)] = layout.priorities_payload(folded, values)
        for block, values in self._stored(whole[~here]):
            record.blocks[self._key(block)] = layout.priorities_payload(folded, values)

    def _collect_sums(self, record: SamplerRecord, places: NDArray[np.int64]) -> None:
        places = np.flatnonzero(np.bincount(places, minlength=len(self.segment)))
        rows = self._rows[places]
        blocks, counts = self._blocks_of(places)
        first, within = np.cumsum(counts) - counts, blocks % self.blocks
        sums = np.zeros(len(blocks), layout.SUM)
        sums["total"], sums["place"] = self.tree.block_totals(blocks), np.repeat(places, counts)
        sums["rows"] = np.minimum(np.repeat(rows, counts) - within * self.size, self.size)
        payload, size = sums.tobytes(), layout.SUM.itemsize
        for segment, at, count in zip(self.segment[places].tolist(), first.tolist(), counts.tolist(), strict=True):
            record.sums[segment] = payload[at * size : (at + count) * size]

    def committed(self) -> None:
        """Hear that what was collected is durable."""
        self._changes.committed()
        self._moved[:] = False

    def check_valid(self) -> tuple[bool, str]:
        """Return whether tree, priorities and store agree, and if not, how. Cost: O(segments, and rows loaded)."""
        sound, why = self.tree.check_valid()
        if not sound:
            return False, why
        for segment, count in zip(*(column.tolist() for column in self.access.live_segments()), strict=True):
            place = self._place_of.get(segment)
            if place < 0 or self._rows[place] != count or self.segment[place] != segment:
                return False, f"segment {segment} has {count} rows, its place {place} knows others"
            blocks = np.arange(place * self.blocks, place * self.blocks - (-count // self.size))
            for block in blocks[self.tree.is_loaded(blocks)].tolist():
                first = block % self.blocks * self.size
                leaves = block * self.size + np.arange(min(self.size, count - first))
                priorities = self._priority[leaves]
                if not np.array_equal(self.tree.get(leaves), self._powers(priorities)):
                    return False, f"segment {segment}: leaves are not priority^alpha"
                final = self.access.final_rows(segment) - first
                if not np.array_equal(np.flatnonzero(priorities < 0), final[(final >= 0) & (final < len(leaves))]):
                    return False, f"segment {segment}: final rows differ"
        return True, ""

    def _powers(self, priorities: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.where(priorities < 0, 0.0, leaf_value(np.maximum(priorities, 0), self.alpha))

    def _restore(self, saved: SamplerCheckpoint) -> None:
        """Put the committed sums where they were in the tree; leaves follow when they are touched."""
        self.largest = np.float32(saved.state.get("largest", 1.0))
        live = self.access.rows_of(saved.segments) >= saved.rows
        self._next_update = saved.state.get("next_update", 0)
        if not (isinstance(self._next_update, int) and 0 <= self._next_update < 1 << 62):
            raise CorruptStoreError(f"{self.access.path}: sampler {self.name!r}: impossible state of its journal")
        moved, segments, places, counts = False, saved.segments[live], saved.places[live], saved.blocks[live]
        totals = saved.totals if live.all() else saved.totals[np.repeat(live, saved.blocks)]
        if not len(segments):
            return
        if places.min() < 0 or (np.diff(np.sort(places)) == 0).any():
            raise CorruptStoreError(f"{self.access.path}: sampler {self.name!r}: impossible places in the sum tree")
        if not 0 <= totals.min() <= totals.max() < np.inf:
            raise CorruptStoreError(f"{self.access.path}: sampler {self.name!r}: impossible sums of priorities")
        if places.max() >= max(SPARSE_PLACES, SPARSE * len(places)):  # most of a large store was evicted
            places, moved = np.arange(len(places)), True
        self.tree.dense = False
        self._unloaded = len(totals)
        self._reserve(int(places.max()) + 1)
        self._moved[places] = moved
        self.segment[places], self._rows[places] = segments, saved.rows[live]
        self._place_of.add_many(segments, places)
        self.tree.set_block_totals(totals, places * self.blocks, counts)
        self._newest = int(segments.max())
        self._free = np.flatnonzero(self.segment < 0).tolist()
        self._rescaling = saved.state.get("alpha") != self.alpha

    def _rescale(self) -> None:
        """Load everything, if the committed sums are of another alpha than this sampler's. Cost: O(rows) then."""
        if not self._rescaling:
            return
        blocks, _ = self._blocks_of(np.flatnonzero(self.segment >= 0))
        try:
            self.load(blocks)
        except ValueError as err:
            what = f"{self.access.path}: sampler {self.name!r}: a priority to the power of alpha={self.alpha}: {err}"
            raise ReplayError(what, path=self.access.path, hint="Take a smaller alpha.") from err
        self._changes.whole[blocks] = True
        self._rescaling = False

    def _drop(self, segments: list[int]) -> None:
        """Free the places of segments that went."""
        for segment in segments:
            if segment in self._place_of:
                place = self._place_of.pop(segment)
                self._clear(place)
                self.segment[place] = -1
                heapq.heappush(self._free, place)

    def _clear(self, place: int) -> None:
        blocks = np.arange(place * self.blocks, place * self.blocks - (-int(self._rows[place]) // self.size))
        self._unloaded -= int((~self.tree.is_loaded(blocks)).sum())
        for block in blocks.tolist():
            self.tree.clear_block(block)
        self._changes.clear(slice(place * self.blocks, (place + 1) * self.blocks))
        self._rows[place], self._moved[place] = 0, False

    def _add(self, segments: list[int]) -> None:
        """Give places to segments that came."""
        missing = len(segments) - len(self._free)
        if missing > 0:
            have = len(self.segment)
            self._reserve(have + missing)
            self._free += range(have, have + missing)  # they are larger than all others: a heap still
        for segment in segments:
            place = heapq.heappop(self._free)
            self._place_of.add(segment, place)
            self.segment[place] = segment
            self._newest = max(self._newest, segment)

    def _extend(self, place: int, segment: int, rows: int) -> None:
        """Give new rows of a segment the largest priority; final rows none."""
        known = int(self._rows[place])
        if known % self.size:
            self.load(np.array([place * self.blocks + known // self.size]))
            known = int(self._rows[place])
        priorities = np.full(rows - known, self.largest, np.float32)
        final = self.access.final_rows(segment)
        priorities[final[final >= known] - known] = UNSAMPLED
        powers, at = self._powers(priorities), place * self.span
        self._priority[at + known : at + rows] = priorities
        for within in range(known // self.size, -(-rows // self.size)):
            block, at = place * self.blocks + within, within * self.size
            start, stop = max(known, at), min(rows, at + self.size)
            self.tree.update_range(block, start - at, powers[start - known : stop - known])
            self._changes.touch_rows(block, start - at, stop - at)
        self._rows[place] = rows

    def _take_in_cuts(self) -> None:
        """Stop drawing rows that became episodes' ends because what followed them is lost."""
        for segment in self.access.cuts(self._cuts):
            self._cuts += 1
            place = self._place_of.get(segment)
            if place >= 0 and self._rows[place]:
                row = int(self._rows[place]) - 1
                leaf = np.array([place * self.span + row])
                self.load(leaf // self.size)
                self._priority[leaf] = UNSAMPLED
                self.tree.update(leaf, np.zeros(1))
                self._changes.touch(leaf)

    def _reserve(self, places: int) -> None:
        """Have room for so many places."""
        have = len(self.segment)
        if places <= have:
            return
        self.tree.grow(places * self.blocks)
        self._pages.forget()
        self.segment = np.concatenate([self.segment, np.full(places - have, -1, np.int64)])
        self._rows = np.concatenate([self._rows, np.zeros(places - have, np.int64)])
        self._changes.reserve(places * self.blocks)
        self._moved = np.concatenate([self._moved, np.zeros(places - have, np.bool_)])
        if len(self._priority) < places * self.span:
            room = zeros(max(places, 2 * have) * self.span, np.dtype(np.float32), huge=self.tree.dense)
            blocks = np.arange(have * self.blocks)
            for block in blocks[self.tree.is_loaded(blocks)].tolist():  # pages never written take no memory
                if self._rows[block // self.blocks] > block % self.blocks * self.size:
                    room[block * self.size : (block + 1) * self.size] = self._rows_of(block)
            self._priority = room

    def _rows_of(self, block: int) -> NDArray[np.float32]:
        return self._priority[block * self.size : (block + 1) * self.size]
