"""Transitions in proportion to a power of their priority (Schaul et al. 2016, arXiv:1511.05952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError, NotEnoughStepsError
from diskreplay.priority import LinearSchedule, SumTree, importance_weights, leaf_value
from diskreplay.sampling.sampler import Draw, Sampler
from diskreplay.storage.layout import PRIORITY_BLOCK

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from diskreplay.storage.commit import SamplerRecord
    from diskreplay.storage.priorities import SamplerCheckpoint
    from diskreplay.store import ReplayStore

UNSAMPLED = -1.0
TOTALS_AGREE = 1e-6


class PrioritizedSampler(Sampler):
    """Draw transition i with probability p_i^alpha / sum_k p_k^alpha, stratified over the batch.

    A segment is a block of the sum tree. Blocks whose priorities are in the index are loaded when a draw or an
    update first touches them, so making a sampler costs what the catalogue costs, not what the rows cost.
    New steps get the largest priority seen. A sampler over a store opened with mode="a" owns the priorities of
    its name: `store.commit()` writes what changed, together with the data. With mode="r" they live in memory only.

    Args:
        store: The store.
        alpha: 0 is uniform over priorities above 0, 1 proportional.
        beta: Exponent of the importance weights, or a schedule of it over the batches drawn.
        eps: Added to |td_error|, so that no transition is lost for ever.
        seed: Where the random numbers begin; None: go on from the committed state, or begin anywhere.
        name: Under which name priorities and state are kept.
        resume: Go on from the committed random state, if there is one. Default: if no seed is given.

    Attributes:
        stale: Updates dropped because their step had been evicted.

    Raises:
        StoreLockedError: If another process owns the priorities of that name.
    """

    exclusive = True

    def __init__(
        self,
        store: ReplayStore,
        *,
        alpha: float = 0.6,
        beta: float | LinearSchedule = 0.4,
        eps: float = 1e-6,
        seed: int | None = None,
        name: str = "prioritized",
        resume: bool | None = None,
    ) -> None:
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha!r}")
        if not isinstance(beta, LinearSchedule) and not 0 <= beta < np.inf:
            raise ValueError(f"beta must be at least 0 and finite, got {beta!r}")
        if not 0 <= eps < np.inf:
            raise ValueError(f"eps must be at least 0 and finite, got {eps!r}")
        self.alpha = float(alpha)
        self.beta = beta
        self.eps = float(eps)
        self.stale = 0
        self.largest = np.float32(1.0)
        self._steps = store.segment_steps
        self._chunks = -(-self._steps // PRIORITY_BLOCK)
        self._tree = SumTree(self._steps, 1)
        self._block_of: dict[int, int] = {}
        self._free: list[int] = []
        self._segment = np.full(0, -1, np.int64)
        self._rows = np.zeros(0, np.int64)
        self._priority = np.zeros(0, np.float32)
        self._dirty = np.zeros((0, self._chunks), np.bool_)
        self._first, self._lookup = 0, np.zeros(0, np.int64)
        self._live = np.zeros(0, np.int64)
        self._version = -1
        super().__init__(store, seed=seed, name=name, resume=resume)

    def update_priorities(self, step_ids: ArrayLike, td_errors: ArrayLike) -> None:
        """Set the priorities of these steps to |td_error| + eps; of a step given twice the last wins.

        Steps that were evicted meanwhile are dropped and counted in `stale`.

        Args:
            step_ids: (B,) integers; arrays or tensors.
            td_errors: (B,) finite numbers; arrays or tensors on any device.

        Raises:
            ValueError: If an error is NaN or infinite, or a step id was never that of a transition.
        """
        self.set_priorities(step_ids, np.abs(_array(td_errors).astype(np.float64)) + self.eps)

    def set_priorities(self, step_ids: ArrayLike, priorities: ArrayLike) -> None:
        """Set the priorities of these steps; 0 means never drawn again. Otherwise as `update_priorities`.

        Raises:
            ValueError: If a priority is negative, NaN or infinite as a float32, or a step id was never that of
                a transition; nothing was changed.
        """
        ids, given = _array(step_ids), _array(priorities)
        if ids.ndim != 1 or ids.shape != given.shape or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"expected step_ids (B,) of integers and as many numbers, got {ids.dtype} {ids.shape}, {given.shape}",
            )
        with np.errstate(over="ignore"):
            values = given.astype(np.float32)
        wrong = ~(values >= 0) | ~np.isfinite(values)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"priorities must be finite and not negative: step id {int(ids[at])} got {given[at]}",
            )
        ids = ids.astype(np.int64)
        with self.store.lock:
            self._sync()
            blocks = self._blocks_of(ids)
            live = blocks >= 0
            if not live.all():
                self.stale += int((~live).sum())
                ids, values, blocks = ids[live], values[live], blocks[live]
            if not len(ids):
                return
            self._load(blocks)
            rows = ids % self._steps
            leaves = blocks * self._steps + rows
            unknown = (rows >= self._rows[blocks]) | (self._priority[leaves] < 0)
            if unknown.any():
                raise ValueError(
                    f"step id {int(ids[np.flatnonzero(unknown)[0]])} is not that of a transition",
                )
            self._tree.update(leaves, leaf_value(values, self.alpha))
            self._priority[leaves] = values
            self._dirty[blocks, rows // PRIORITY_BLOCK] = True
            self.largest = max(self.largest, values.max())

    def priorities_of(self, step_ids: ArrayLike) -> NDArray[np.float32]:
        """Return the priorities of live transitions, (B,).

        Raises:
            ValueError: If a step id is not that of a live transition.
        """
        ids = _array(step_ids).astype(np.int64)
        with self.store.lock:
            self._sync()
            blocks = self._blocks_of(ids)
            if (blocks < 0).any():
                raise ValueError(f"step id {int(ids[blocks < 0][0])} was evicted")
            self._load(blocks)
            values = self._priority[blocks * self._steps + ids % self._steps]
            if (values < 0).any() or (ids % self._steps >= self._rows[blocks]).any():
                raise ValueError("a step id is not that of a transition")
            return np.asarray(values, np.float32)

    @property
    def total(self) -> float:
        """Return the sum of p^alpha over the live transitions."""
        with self.store.lock:
            self._sync()
            return self._tree.total

    def check_valid(self) -> tuple[bool, str]:
        """Return whether tree, priorities and store agree, and if not, how. Cost: O(rows loaded)."""
        with self.store.lock:
            self._sync()
            sound, why = self._tree.check_valid()
            if not sound:
                return False, why
            segments, rows = self.store.live_segments()
            for segment, count in zip(segments.tolist(), rows.tolist(), strict=True):
                block = self._block_of.get(segment, -1)
                if block < 0 or self._rows[block] != count or self._segment[block] != segment:
                    return False, f"segment {segment} has {count} rows, its block {block} knows others"
                if not self._tree.is_loaded([block])[0]:
                    continue
                leaves = block * self._steps + np.arange(count)
                priorities = self._priority[leaves]
                expected = np.where(priorities < 0, 0.0, leaf_value(np.maximum(priorities, 0), self.alpha))
                if not np.array_equal(self._tree.get(leaves), expected):
                    return False, f"segment {segment}: leaves are not priority^alpha"
                final = np.flatnonzero(priorities < 0)
                if not np.array_equal(final, self.store.final_rows(segment)):
                    return False, f"segment {segment}: final rows differ"
            return True, ""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a JSON object; the priorities themselves are committed beside it."""
        return {
            **super().state_dict(),
            "alpha": self.alpha,
            "largest": float(self.largest),
            "stale": self.stale,
        }

    def collect(self) -> SamplerRecord:
        """Return the priorities that changed, the sums above them, and the state."""
        self._sync()
        record = super().collect()
        size = self._steps
        for block, chunk in np.argwhere(self._dirty).tolist():
            start = block * size + chunk * PRIORITY_BLOCK
            stop = block * size + min((chunk + 1) * PRIORITY_BLOCK, int(self._rows[block]))
            record.blocks[int(self._segment[block]), chunk] = self._priority[start:stop].tobytes()
        totals = self._tree.block_totals()
        for block in np.flatnonzero(self._dirty.any(axis=1)).tolist():
            record.sums[int(self._segment[block])] = (float(totals[block]), block, int(self._rows[block]))
        return record

    def committed(self) -> None:
        """Hear that what was collected is durable."""
        self._dirty[:] = False

    def _start(self) -> None:
        saved = self.store.load_sampler(self.name)
        if saved is not None:
            self.largest = np.float32(saved.state.get("largest", 1.0))
            self._restore(saved)
        self._sync()

    def _restore(self, saved: SamplerCheckpoint) -> None:
        """Put the saved totals where they were in the tree; leaves follow when they are touched."""
        live = set(self.store.live_segments()[0].tolist())
        for segment, total, place, rows in zip(
            saved.segments.tolist(), saved.totals.tolist(), saved.places.tolist(), saved.rows.tolist(), strict=True,
        ):  # fmt: skip
            if segment in live:
                self._reserve(place + 1)
                self._block_of[segment] = place
                self._segment[place], self._rows[place] = segment, rows
                self._tree.set_block_total(place, total)
        self._free = [b for b in range(len(self._segment)) if self._segment[b] < 0]
        if saved.state.get("alpha") != self.alpha:
            places = np.array(sorted(self._block_of.values()), np.int64)
            self._load(places, trusted=False)
            self._dirty[places] = np.arange(self._chunks) * PRIORITY_BLOCK < self._rows[places, None]
        self._index()

    def _sync(self) -> None:
        """Take in which segments came, grew or went; called with the store's lock held."""
        if self._version == self.store.version:
            return
        segments, rows = self.store.live_segments()
        if not np.array_equal(segments, self._live):
            self._match(segments)
            self._live = segments
        blocks = self._blocks_of_live(segments)
        grown = np.flatnonzero(self._rows[blocks] != rows)
        for at in grown.tolist():
            self._extend(int(blocks[at]), int(segments[at]), int(rows[at]))
        self._version = self.store.version

    def _match(self, segments: NDArray[np.int64]) -> None:
        live = set(segments.tolist())
        for segment in [s for s in self._block_of if s not in live]:
            block = self._block_of.pop(segment)
            self._tree.clear_block(block)
            self._segment[block], self._rows[block] = -1, 0
            self._dirty[block] = False
            self._free.append(block)
        self._free.sort()
        for segment in segments.tolist():
            if segment not in self._block_of:
                if not self._free:
                    self._reserve(len(self._segment) + 1)
                    self._free.append(len(self._segment) - 1)
                block = self._free.pop(0)
                self._block_of[segment] = block
                self._segment[block] = segment
        self._index()

    def _extend(self, block: int, segment: int, rows: int) -> None:
        """Give new rows of a block the largest priority; final rows none."""
        self._load(np.array([block]))
        known = int(self._rows[block])
        priorities = np.full(rows - known, self.largest, np.float32)
        final = self.store.final_rows(segment)
        priorities[final[final >= known] - known] = UNSAMPLED
        leaves = np.where(priorities < 0, 0.0, leaf_value(np.maximum(priorities, 0), self.alpha))
        self._priority[block * self._steps + known : block * self._steps + rows] = priorities
        self._tree.update_range(block, known, leaves)
        self._rows[block] = rows
        self._dirty[block, known // PRIORITY_BLOCK : (rows - 1) // PRIORITY_BLOCK + 1] = True

    def _load(self, blocks: NDArray[np.int64], *, trusted: bool = True) -> None:
        """Have the leaves of these blocks in memory.

        Raises:
            CorruptStoreError: If the index holds other priorities than the checkpoint says.
        """
        missing = blocks[~self._tree.is_loaded(blocks)]
        for block in np.unique(missing).tolist():
            segment, rows = int(self._segment[block]), int(self._rows[block])
            priorities = self.store.load_priorities(self.name, segment)
            total = self._tree.block_totals()[block]
            if len(priorities) != rows:
                raise CorruptStoreError(
                    f"{self.store.path}: sampler {self.name!r}, segment {segment}: {len(priorities)} priorities, "
                    f"the checkpoint counts {rows}",
                )
            leaves = np.where(priorities < 0, 0.0, leaf_value(np.maximum(priorities, 0), self.alpha))
            self._tree.set_block(block, leaves)
            self._priority[block * self._steps : block * self._steps + rows] = priorities
            now = self._tree.block_totals()[block]
            if trusted and abs(now - total) > TOTALS_AGREE * max(now, total):
                raise CorruptStoreError(
                    f"{self.store.path}: sampler {self.name!r}, segment {segment}: priorities sum to {now}, "
                    f"the checkpoint to {total}",
                )

    def _draw(self, batch_size: int) -> Draw:
        self._sync()
        if not self._tree.total > 0:
            raise NotEnoughStepsError(
                f"{self.store.path}: every priority is 0, so nothing can be drawn",
                hint="Give some transition a priority with set_priorities.",
            )
        targets = self._tree.stratified_targets(batch_size, self._random)
        blocks, residual = self._tree.locate_blocks(targets)
        self._load(blocks)
        leaves = self._tree.find_in_blocks(blocks, residual)
        probabilities = self._tree.get(leaves) / self._tree.total
        beta = self.beta(self.batches) if isinstance(self.beta, LinearSchedule) else float(self.beta)
        weight = importance_weights(probabilities, size=len(self.store), beta=beta)
        block = leaves // self._steps
        return Draw(self._segment[block] * self._steps + leaves % self._steps, weight)

    def _blocks_of(self, step_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the block of each step's segment; -1 if it was evicted."""
        segments = step_ids // self._steps
        last = self._first + len(self._lookup) - 1
        if len(step_ids) and (segments.max() > last or step_ids.min() < 0):
            bad = step_ids[(segments > last) | (step_ids < 0)][0]
            raise ValueError(f"step id {int(bad)} was never in the store")
        place = segments - self._first
        return np.where(place >= 0, self._lookup[np.maximum(place, 0)], -1)

    def _blocks_of_live(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._lookup[segments - self._first]

    def _index(self) -> None:
        self._lookup[:] = -1
        if self._block_of:
            self._first = min(self._block_of)
            self._lookup = np.full(max(self._block_of) - self._first + 1, -1, np.int64)
            for segment, block in self._block_of.items():
                self._lookup[segment - self._first] = block

    def _reserve(self, blocks: int) -> None:
        """Have room for so many blocks."""
        have = len(self._segment)
        if blocks <= have:
            return
        self._tree.grow(blocks)
        self._segment = np.concatenate([self._segment, np.full(blocks - have, -1, np.int64)])
        self._rows = np.concatenate([self._rows, np.zeros(blocks - have, np.int64)])
        self._dirty = np.concatenate([self._dirty, np.zeros((blocks - have, self._chunks), np.bool_)])
        if len(self._priority) < blocks * self._steps:
            room = np.zeros(2 * blocks * self._steps, np.float32)
            room[: len(self._priority)] = self._priority
            self._priority = room


def _array(values: ArrayLike) -> NDArray[Any]:
    """Return an array of what may be a tensor on some device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)
