"""What samplers committed, examined: priorities, the sums above them, and whether they fit the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb
import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.upkeep.records import INCONSISTENT, RECORD, Problem, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.index import Index, Reading

    RowsOf = Callable[[Reading, int], "Rows | None"]

SUMS_AGREE = 1e-9
UNSAMPLED = np.float32(-1.0)
PORTION = 64


@dataclass
class Priorities:
    """A sampler's records of one segment.

    Attributes:
        segment: Which.
        sums: [SUM]; None if they are missing or damaged.
        blocks: block -> priorities.
        bad: Keys of damaged records, and what is wrong with each.
    """

    segment: int
    sums: NDArray[Any] | None = None
    blocks: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    bad: list[tuple[str, bytes, str]] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Return the segment's place in the tree; -1 if that is not known."""
        return -1 if self.sums is None else int(self.sums["place"][0])

    @property
    def values(self) -> NDArray[np.float32]:
        """Return the priorities of all blocks, one after the other."""
        return np.concatenate([np.zeros(0, np.float32), *(self.blocks[n] for n in sorted(self.blocks))])

    @property
    def complete(self) -> bool:
        """Return whether the blocks follow each other from the first, all full but the last."""
        sizes = [len(self.blocks[n]) for n in sorted(self.blocks)]
        full = all(size == layout.PRIORITY_BLOCK for size in sizes[:-1])
        return sorted(self.blocks) == list(range(len(sizes))) and full and all(sizes)


def sampled_segments(txn: Reading, sampler: str) -> list[int]:
    """Return every segment of which there are sums or priorities under a sampler's name."""
    prefix, found = sampler.encode() + b"\0", set()
    for database, size in (("sums", 8), ("priorities", 10)):
        for key in txn.keys(database, prefix):
            if len(key) == len(prefix) + size:
                found.add(int.from_bytes(key[len(prefix) : len(prefix) + 8], "big"))
    return sorted(found)


def read_priorities(txn: Reading, sampler: str, segment: int) -> Priorities:
    """Read a sampler's records of a segment, sound or not."""
    out, key = Priorities(segment), layout.sum_key(sampler, segment)
    value = txn.raw("sums", key)
    if value is not None:
        try:
            array = layout.open_array(bytes(value), layout.SUM, name_of("sums", key))
            if not len(array):
                raise CorruptStoreError(f"{name_of('sums', key)}: the record has no entries")
            out.sums = array
        except CorruptStoreError as err:
            out.bad.append(("sums", key, str(err)))
    for name, raw in txn.raw_items("priorities", key):
        if len(name) != len(key) + 2:
            continue
        try:
            block = layout.open_array(raw, np.dtype(np.float32), name_of("priorities", name))
            out.blocks[int.from_bytes(name[-2:], "big")] = block
        except CorruptStoreError as err:
            out.bad.append(("priorities", name, str(err)))
    return out


class Rows(NamedTuple):
    """A live segment's complete rows, those that hold an episode's last observation, and whether it was cut.

    The last row of a cut segment may still have the priority from before.
    """

    complete: int
    final: NDArray[np.int32]
    cut: bool = False


def contradictions(found: Priorities, alpha: float, rows: Rows) -> list[str]:
    """Say what is wrong with sound records of a segment's priorities, under an exponent."""
    if found.sums is None:
        return ["there are priorities, but no sum of them"]
    values, count = found.values, int(found.sums["rows"].sum(dtype=np.int64))
    if not found.complete or len(values) != count:
        return [f"there are {len(values)} priorities, the sum counts {count}"]
    if count > rows.complete:
        return [f"there are priorities of {count} rows, the segment has {rows.complete}"]
    wrong, stop = [], min(count, rows.complete - rows.cut)
    if not np.array_equal(np.flatnonzero(values[:stop] < 0), rows.final[rows.final < stop]):
        wrong.append("the rows without a priority are not the last ones of episodes")
    if not (np.isfinite(values).all() and (values[values < 0] == UNSAMPLED).all()):
        return [*wrong, "a priority is negative or not finite"]
    wanted = sums_of(values, alpha, found.place)
    if not np.array_equal(wanted["rows"], found.sums["rows"]):
        return [*wrong, f"there is not one sum for every {layout.SUM_ROWS} rows"]
    for total, stored in zip(wanted["total"].tolist(), found.sums["total"].tolist(), strict=True):
        if not abs(total - stored) <= SUMS_AGREE * max(total, stored):
            wrong.append(f"the priorities sum to {total}, the index says {stored}")
            break
    if found.place < 0 or (found.sums["place"] != found.place).any():
        wrong.append(f"its place in the tree is {found.sums['place'].tolist()}")
    return wrong


def sums_of(values: NDArray[np.float32], alpha: float, place: int) -> NDArray[Any]:
    """Return the SUM records of priorities; rows without one, and priorities of 0, count for nothing."""
    first = np.arange(0, len(values), layout.SUM_ROWS)
    powers = np.zeros(len(values))
    powers[values > 0] = np.power(values[values > 0].astype(np.float64), alpha)
    sums = np.zeros(len(first), layout.SUM)
    sums["place"], sums["rows"] = place, np.minimum(len(values) - first, layout.SUM_ROWS)
    sums["total"] = [powers[start : start + layout.SUM_ROWS].sum() for start in first.tolist()]
    return sums


def alpha_of(state: dict[str, Any]) -> float | None:
    """Return a sampler's exponent; None if it keeps no priorities."""
    alpha = state.get("alpha")
    return float(alpha) if isinstance(alpha, (int, float)) and 0 <= alpha < np.inf else None


def check_sampler(index: Index, name: str, state: dict[str, Any], rows_of: RowsOf) -> Iterator[Problem]:
    """Examine what a sampler committed, a portion of the segments at a time.

    Args:
        index: The index.
        name: The sampler's.
        state: Its state.
        rows_of: Returns the rows of a segment, or None if it is not live.
    """
    alpha, places = alpha_of(state), dict[int, int]()
    with index.read() as txn:
        segments = sampled_segments(txn, name)
    for start in range(0, len(segments), PORTION):
        with index.read() as txn:
            for segment in segments[start : start + PORTION]:
                where = f"sampler {name!r}, segment {segment}"
                found = read_priorities(txn, name, segment)
                yield from (Problem(RECORD, name_of(database, key), what) for database, key, what in found.bad)
                if found.bad or (found.sums is None and not found.blocks):
                    continue  # damaged, or evicted meanwhile
                try:
                    known = rows_of(txn, segment)
                except CorruptStoreError:
                    continue  # reported where segments and tails are examined
                if known is None:
                    yield Problem(INCONSISTENT, where, "there are priorities of a segment that is not live")
                    continue
                if alpha is None:
                    yield Problem(INCONSISTENT, where, "there are priorities, but the sampler has no alpha")
                    continue
                for what in contradictions(found, alpha, known):
                    yield Problem(INCONSISTENT, where, what)
                if found.sums is not None:
                    other = places.setdefault(found.place, segment)
                    if other != segment:
                        yield Problem(INCONSISTENT, where, f"segment {other} has the same place in the tree")


def strays(txn: Reading, samplers: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (database, key) of what belongs to no sampler that has a state."""
    for database, size in (("sums", 9), ("priorities", 11)):
        known = {name.encode() for name in samplers}
        try:
            for key in txn.keys(database):
                name = bytes(key[:-size])
                if name not in known or key[-size : -size + 1] != b"\0":
                    yield database, bytes(key)
        except lmdb.Error:
            return  # reported by whoever walked it first
