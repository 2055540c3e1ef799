"""What samplers committed, examined: priorities, the sums above them, and whether they fit the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb
import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.drawn import unpack_drawn
from diskreplay.storage.updates import Journal
from diskreplay.storage.upkeep.records import INCONSISTENT, RECORD, Problem, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.index import Index
    from diskreplay.storage.transactions import Reading

    RowsOf = Callable[[Reading, int], "Rows | None"]

SUMS_AGREE = 1e-6  # pow() may differ in the last bit between processors, and with it a leaf
LEAST = float(np.finfo(np.float32).tiny)
UNSAMPLED = np.float32(-1.0)
PORTION = 64


@dataclass
class Priorities:
    """A sampler's records of one segment.

    Attributes:
        segment: Which.
        first_step_id: Of the segment.
        journal: The sampler's.
        sums: [SUM]; None if they are missing or damaged.
        blocks: block -> `folded` and priorities.
        checks: block -> checksum of its record.
        bad: Keys of damaged records, and what is wrong with each.
    """

    segment: int
    first_step_id: int
    journal: Journal
    sums: NDArray[Any] | None = None
    blocks: dict[int, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    checks: dict[int, int] = field(default_factory=dict)
    bad: list[tuple[str, bytes, str]] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Return the segment's place in the tree; -1 if that is not known."""
        return -1 if self.sums is None else int(self.sums["place"][0])

    def values(self, rows: int) -> NDArray[np.float32]:
        """Return the priorities of the first rows, of blocks and journal; NaN where there is none."""
        size, count = layout.PRIORITY_BLOCK, -(-rows // layout.PRIORITY_BLOCK)
        out, folded = np.full((count, size), np.nan, np.float32), np.zeros(count, np.int64)
        for block, (number, held) in self.blocks.items():
            if block < count:
                out[block, : len(held)], folded[block] = held[:size], number
        first = np.arange(count) * size
        self.journal.apply(self.first_step_id + first, folded, np.minimum(rows - first, size), out)
        return out.reshape(-1)[:rows]

    def beyond(self, state: dict[str, Any]) -> bool:
        """Return whether a block says that it holds more of the journal than there ever was."""
        return any(folded > state.get("next_update", 0) for folded, _ in self.blocks.values())

    @property
    def older(self) -> list[int]:
        """Return the blocks that are not those that their sums were committed with."""
        sums = {} if self.sums is None else dict(enumerate(self.sums["check"].tolist()))
        return sorted(block for block in sums.keys() | self.checks if sums.get(block, 0) != self.checks.get(block, 0))

    @property
    def written(self) -> int:
        """Return up to which row there are blocks, whatever is missing before."""
        return max((block * layout.PRIORITY_BLOCK + len(held) for block, (_, held) in self.blocks.items()), default=0)


def sampled_segments(txn: Reading, sampler: str) -> list[int]:
    """Return every segment of which there are sums or priorities under a sampler's name."""
    prefix, found = sampler.encode() + b"\0", set()
    for database, size in (("sums", 8), ("priorities", 10)):
        for key in txn.keys(database, prefix):
            if len(key) == len(prefix) + size:
                found.add(int.from_bytes(key[len(prefix) : len(prefix) + 8], "big"))
    return sorted(found)


def read_priorities(txn: Reading, sampler: str, segment: int, journal: Journal, segment_steps: int) -> Priorities:
    """Read a sampler's records of a segment, sound or not; the journal follows the same transaction."""
    out, key = Priorities(segment, segment * segment_steps, journal), layout.sum_key(sampler, segment)
    value = txn.raw("sums", key)
    if value is not None:
        try:
            what = name_of("sums", key)
            array = layout.records(layout.open_record("sums", key, bytes(value), what), layout.SUM, what)
            if not len(array):
                raise CorruptStoreError(f"{name_of('sums', key)}: the record has no entries")
            out.sums = array
        except CorruptStoreError as err:
            out.bad.append(("sums", key, str(err)))
    for name, raw in txn.raw_items("priorities", key):
        if len(name) != len(key) + 2:
            continue
        try:
            what = name_of("priorities", name)
            payload, block = layout.open_record("priorities", name, raw, what), int.from_bytes(name[-2:], "big")
            out.blocks[block] = layout.parse_priorities(payload, what)
            out.checks[block] = layout.record_checksum(raw)
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
    count = int(found.sums["rows"].sum(dtype=np.int64))
    if count > rows.complete:
        return [f"there are priorities of {count} rows, the segment has {rows.complete}"]
    values = found.values(count)
    if found.written > count or np.isnan(values).any():
        known = max(found.written, count - int(np.isnan(values).sum()))
        return [f"there are {known} priorities, or some are not finite; the sum counts {count}"]
    wrong, stop = [], min(count, rows.complete - rows.cut)
    if not np.array_equal(np.flatnonzero(values[:stop] < 0), rows.final[rows.final < stop]):
        wrong.append("the rows without a priority are not the last ones of episodes")
    if not (np.isfinite(values).all() and (values[values < 0] == UNSAMPLED).all()):
        return [*wrong, "a priority is negative or not finite"]
    wanted = sums_of(values, alpha, found.place)
    if not np.array_equal(wanted["rows"], found.sums["rows"]):
        return [*wrong, f"there is not one sum for every {layout.PRIORITY_BLOCK} rows"]
    for total, stored in zip(wanted["total"].tolist(), found.sums["total"].tolist(), strict=True):
        if not abs(total - stored) <= SUMS_AGREE * max(total, stored) < np.inf:
            wrong.append(f"the priorities sum to {total}, the index says {stored}")
            break
    if found.place < 0 or (found.sums["place"] != found.place).any():
        wrong.append(f"its place in the tree is {found.sums['place'].tolist()}")
    return wrong


def sums_of(values: NDArray[np.float32], alpha: float, place: int) -> NDArray[Any]:
    """Return the SUM records of priorities; rows without one, and priorities of 0, count for nothing."""
    first = np.arange(0, len(values), layout.PRIORITY_BLOCK)
    powers, some = np.zeros(len(values)), values > 0
    # As the tree's leaves hold them: rounded to float32, and never to 0.
    powers[some] = np.maximum(np.power(values[some].astype(np.float64), alpha), LEAST).astype(np.float32)
    sums = np.zeros(len(first), layout.SUM)
    sums["place"], sums["rows"] = place, np.minimum(len(values) - first, layout.PRIORITY_BLOCK)
    sums["total"] = [powers[start : start + layout.PRIORITY_BLOCK].sum() for start in first.tolist()]
    return sums


def alpha_of(state: dict[str, Any]) -> float | None:
    """Return a sampler's exponent; None if it keeps no priorities."""
    alpha = state.get("alpha")
    return None if alpha is None else float(alpha)


def check_sampler(
    index: Index, name: str, state: dict[str, Any], rows_of: RowsOf, segment_steps: int
) -> Iterator[Problem]:
    """Examine what a sampler committed, a portion of the segments at a time.

    Args:
        index: The index.
        name: The sampler's.
        state: Its state, when the catalogue was read.
        rows_of: Returns the rows of a segment, or None if it is not live.
        segment_steps: Rows of a segment.
    """
    places, journal = dict[int, int](), Journal(name)
    with index.read() as txn:
        segments = sampled_segments(txn, name)
        journal.follow(txn)
        state = _state(txn, name, state)
        yield from check_journal(journal, state)
        yield from check_draws(name, state)
    for start in range(0, len(segments), PORTION):
        with index.read() as txn:
            journal.follow(txn)
            state = _state(txn, name, state)
            for segment in segments[start : start + PORTION]:
                where = f"sampler {name!r}, segment {segment}"
                found = read_priorities(txn, name, segment, journal, segment_steps)
                yield from (Problem(RECORD, name_of(database, key), what) for database, key, what in found.bad)
                if found.bad or (found.sums is None and not found.blocks):
                    continue  # damaged, or evicted meanwhile
                try:
                    known = rows_of(txn, segment)
                except CorruptStoreError:
                    continue  # reported where segments and tails are examined
                yield from (Problem(INCONSISTENT, where, what) for what in _wrong(found, state, known))
                if found.sums is not None and known is not None:
                    other = places.setdefault(found.place, segment)
                    if other != segment:
                        yield Problem(INCONSISTENT, where, f"segment {other} has the same place in the tree")


def _state(txn: Reading, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """Return the sampler's state now: it may go on while it is examined."""
    try:
        return txn.json("samplers", name.encode()) or before
    except CorruptStoreError:
        return before  # reported with the catalogue


def _wrong(found: Priorities, state: dict[str, Any], known: Rows | None) -> list[str]:
    alpha = alpha_of(state)
    if known is None:
        return ["there are priorities of a segment that is not live"]
    if alpha is None:
        return ["there are priorities, but the sampler has no alpha"]
    later = ["its priorities are of a later time than the sampler's state"] if found.beyond(state) else []
    older = [f"blocks {found.older} are not those that were committed"] if found.older else []
    return [*later, *older, *contradictions(found, alpha, known)]


def steps_drawn(draw: list[str]) -> NDArray[np.int64] | None:
    """Return the step ids of a batch that a sampler drew ahead, as its state holds it; None if it holds none."""
    try:
        return unpack_drawn(draw)[0]
    except ValueError:
        return None


def check_draws(name: str, state: dict[str, Any]) -> Iterator[Problem]:
    """Examine the batches that a sampler drew ahead."""
    wrong = sum(steps_drawn(draw) is None for draw in state["in_flight"])
    if wrong:
        yield Problem(INCONSISTENT, f"sampler {name!r}", f"{wrong} batches that it drew ahead are none")


def check_journal(journal: Journal, state: dict[str, Any]) -> Iterator[Problem]:
    """Examine a sampler's journal by itself."""
    yield from (Problem(RECORD, name_of("updates", key), what) for key, what in journal.bad)
    last = max((update.number for update in journal.updates), default=-1)
    known = state.get("next_update", 0)
    if last >= known:
        where = f"sampler {journal.prefix[:-1].decode(errors='backslashreplace')!r}"
        yield Problem(INCONSISTENT, where, f"its journal has record {last}, the next is said to be {known}")


def strays(txn: Reading, samplers: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (database, key) of what belongs to no sampler that has a state."""
    for database, size in (("sums", 9), ("priorities", 11), ("updates", 9)):
        known = {name.encode() for name in samplers}
        try:
            for key in txn.keys(database):
                name = bytes(key[:-size])
                if name not in known or key[-size : -size + 1] != b"\0":
                    yield database, bytes(key)
        except lmdb.Error:
            return  # reported by whoever walked it first
