"""Which priorities changed since the last commit, and which of them a commit writes as blocks, which into the journal.

A block of which much changed is written whole: then no entry of the journal counts for it any more. The others'
changes go into the journal, 12 bytes each. Once the journal holds half of what it may, a sweep begins: each commit
also writes some blocks whole, in the share of the other half that its own entries take; when all have had their turn,
what the journal held at the beginning is removed. So a commit's cost follows from what changed, with a bounded factor:
per entry 12 bytes, and at most 8 bytes for every live row that the journal may not hold an entry for. The journal may
hold an entry for every eighth live row, at most `MOST`: about 90 bytes an entry up to 64 million rows, 1.2 kB at a
billion.

Nothing here takes effect until `committed`. A commit that failed is planned anew; since it may count all the same (its
end failed), the next plan does what that one did, and more: it writes the same blocks whole, joins the same record,
and drops as many of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.storage.updates import Update, split_updates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DENSE = 24  # changes in a block, times this, at least its rows: cheaper to write it whole
LEAST, MOST, SHARE = 1 << 16, 1 << 23, 8
JOIN = 4096  # a record of fewer entries is joined with that of the next commit
RECORD = 1 << 16
KEPT = 1 << 22


@dataclass
class Plan:
    """What a commit is to write.

    Attributes:
        whole: (blocks,) bool: which are written whole.
        leaves: (n,) that go into the journal. ids: (n,) their step ids, ascending.
        folded: The number from which on entries will count for blocks written whole.
        updates: New records of the journal, the first numbered `first`; all that is there from that number on goes.
        kept: Records with a lower number go.
        swept: How far the sweep has come; -1: there is none.
    """

    whole: NDArray[np.bool_]
    leaves: NDArray[np.int64]
    first: int
    folded: int
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    updates: Sequence[Update] = ()
    kept: int = 0
    sweep: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sweep_from: int = 0
    swept: int = 0


class Changes:
    """Follow which priorities changed; plan commits.

    Args:
        size: Rows of a block.

    Attributes:
        folded: (blocks,) number of the journal's record from which on entries count for each block; 0 where this
            process has not written it.
        until: (blocks,) number that all entries for the block are below; up to `folded`: there is none that counts.
        whole: (blocks,) bool: of which so much changed that they are to be written whole.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.folded = np.zeros(0, np.int64)
        self.until = np.zeros(0, np.int64)
        self.whole = np.zeros(0, np.bool_)
        self.next = 0
        self._entries: dict[int, int] | None = None
        self._last: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._leaves: list[NDArray[np.int64]] = []
        self._count = 0
        self._sweep = np.zeros(0, np.int64)
        self._sweep_from = 0
        self._swept = 0
        self._plan: Plan | None = None
        self._kept = 0  # by a plan that failed: records with a lower number may be gone
        self._joined = False  # by a plan that failed: the last record may be

    @property
    def in_journal(self) -> int:
        """Return how many entries the journal has."""
        return sum(n for number, n in (self._entries or {}).items() if number >= self._kept)

    def reserve(self, blocks: int) -> None:
        """Have room for so many blocks."""
        self.folded, self.until, self.whole = (_grown(old, blocks) for old in (self.folded, self.until, self.whole))

    def clear(self, blocks: slice) -> None:
        """Forget blocks: another segment may get them."""
        self.folded[blocks], self.until[blocks], self.whole[blocks] = 0, 0, False

    def touch(self, leaves: NDArray[np.int64]) -> None:
        """Note that leaves changed; the array is kept."""
        self._leaves.append(leaves)
        self._count += len(leaves)
        if self._count > max(KEPT, len(self._leaves[0])):
            self._leaves = [_distinct(np.concatenate(self._leaves))]
            self._count = 0

    def touch_rows(self, block: int, first: int, stop: int) -> None:
        """Note that a block's rows [first, stop) are new; it ends there."""
        if (stop - first) * DENSE >= stop:
            self.whole[block] = True
        else:
            self.touch(block * self.size + np.arange(first, stop))

    def restored(self, updates: list[tuple[int, int]], next_number: int) -> None:
        """Go on with a journal: (number, entries) of its records."""
        self._entries = dict(updates)
        self.next = max([next_number, *(number + 1 for number in self._entries)])
        if updates:
            self.until[self.folded < self.next] = self.next  # not known better, and not read to find out

    def plan(self, rows: NDArray[np.int64], step_ids: NDArray[np.int64], priorities: NDArray[np.float32]) -> Plan:
        """Plan a commit. Cost: O(changes), and a look at the flags of all blocks.

        Args:
            rows: (blocks,) rows of each, 0 where a block is free.
            step_ids: (blocks,) step id of each block's first row; negative where it is free.
            priorities: (leaves,) all priorities.
        """
        if self._plan is not None:
            self._owe(self._plan)
        leaves = _distinct(np.concatenate([np.zeros(0, np.int64), *self._leaves]))
        self._leaves, self._count = [leaves], 0
        blocks = leaves // self.size
        leaves = leaves[leaves - blocks * self.size < rows[blocks]]  # of segments that went
        blocks = leaves // self.size
        if len(blocks):
            start = np.flatnonzero(np.diff(blocks, prepend=-1))
            counts, some = np.diff(start, append=len(blocks)), blocks[start]
            dense = some[counts * DENSE >= rows[some]]
        else:
            dense = blocks
        whole = self.whole & (rows > 0)
        whole[dense] = True
        plan = Plan(whole, leaves, self.next, self.next)
        self._plan_sweep(plan, int((~whole[blocks]).sum()), rows)
        plan.leaves = leaves[~plan.whole[blocks]]
        if len(plan.leaves) or self._joined:
            self._plan_records(plan, plan.leaves, step_ids, priorities)
        self._plan = plan
        return plan

    def committed(self) -> None:
        """Hear that what was planned is durable."""
        plan, entries, last = self._plan, self._entries or {}, self._last
        if plan is None:
            return
        entries = {number: n for number, n in entries.items() if plan.kept <= number < plan.first}
        entries |= {update.number: len(update.values) for update in plan.updates}
        if plan.updates:
            last = (plan.folded - 1, plan.leaves, plan.ids) if len(plan.leaves) < JOIN else None
        elif last is not None and last[0] not in entries:
            last = None
        # From here on nothing is called and nothing loops, so no interrupt (Ctrl-C) comes between: all of it or none.
        self.whole[:] = False
        self.until[plan.leaves // self.size] = plan.folded
        self.folded[plan.whole] = plan.folded
        self.next, self._entries, self._last = plan.folded, entries, last
        self._sweep, self._sweep_from, self._swept = plan.sweep, plan.sweep_from, plan.swept
        self._leaves, self._count, self._plan, self._kept, self._joined = [], 0, None, 0, False

    def _owe(self, failed: Plan) -> None:
        """Have the next plan do what one did that failed, or seemed to."""
        self.whole[: len(failed.whole)] |= failed.whole
        self._kept = max(self._kept, failed.kept)
        self._joined |= failed.first < self.next
        self._sweep, self._sweep_from, self._swept = failed.sweep, failed.sweep_from, failed.swept

    def _plan_sweep(self, plan: Plan, coming: int, rows: NDArray[np.int64]) -> None:
        """Choose the blocks that are written whole so that the journal stays within its bounds."""
        half = max(LEAST, min(MOST, int(rows.sum()) // SHARE)) // 2
        plan.sweep, plan.sweep_from, plan.swept = self._sweep, self._sweep_from, self._swept
        plan.kept = self._kept
        if not len(plan.sweep):
            held = self.in_journal
            if held + coming <= half or not held:
                return
            plan.sweep, plan.sweep_from, plan.swept = np.flatnonzero(self.until > self.folded), self.next, 0
        portion = -(-len(plan.sweep) * max(coming, 1) // half)
        now = plan.sweep[plan.swept : plan.swept + portion]
        plan.swept += len(now)
        plan.whole[now[(rows[now] > 0) & (self.until[now] > self.folded[now])]] = True
        if plan.swept >= len(plan.sweep):
            plan.kept, plan.sweep, plan.swept = plan.sweep_from, np.zeros(0, np.int64), 0

    def _plan_records(
        self, plan: Plan, leaves: NDArray[np.int64], step_ids: NDArray[np.int64], priorities: NDArray[np.float32]
    ) -> None:
        if self._last is not None:
            plan.first, before, ids = self._last
            blocks = before // self.size
            counts = (self.folded[blocks] <= plan.first) & ~plan.whole[blocks]
            counts &= step_ids[blocks] + (before - blocks * self.size) == ids  # else of a segment that went
            leaves = _distinct(np.concatenate([before[counts], leaves]))
        blocks = leaves // self.size
        ids = step_ids[blocks] + (leaves - blocks * self.size)
        order = np.argsort(ids, kind="stable")
        plan.leaves, plan.ids = leaves[order], ids[order]
        plan.updates = split_updates(self.next, plan.ids, priorities[plan.leaves], RECORD)
        plan.folded = self.next + len(plan.updates)


def _grown(old: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the array with zeros behind it, pages that the system commits when they are written."""
    new = np.zeros(size, old.dtype)
    new[: len(old)] = old
    return new


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return them ascending, each once; numpy's own way through a hash table takes several times as long."""
    values = np.sort(values)
    return np.asarray(values[np.diff(values, prepend=-1) != 0], np.int64)
