"""Read back what a sampler committed: its state, the upper level of its sum tree, its priorities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import documents, layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.transactions import Reading, Writing
    from diskreplay.storage.updates import Journal


@dataclass(frozen=True)
class SamplerCheckpoint:
    """What a sampler committed.

    Attributes:
        state: Its JSON state.
        segments: (n,) segments that have priorities, ascending.
        places: (n,) place of each in the sum tree.
        rows: (n,) rows of each that have a priority.
        blocks: (n,) how many blocks of priorities each has.
        totals: (sum of blocks,) float64 sums of priority^alpha, segment after segment.
    """

    state: dict[str, Any]
    segments: NDArray[np.int64]
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    blocks: NDArray[np.int64]
    totals: NDArray[np.float64]


def load_sampler(txn: Reading, name: str) -> SamplerCheckpoint | None:
    """Return what the sampler of that name committed last, or None. Cost: O(segments), not O(rows)."""
    state = load_state(txn, name)
    if state is None:
        return None
    segments, found, lengths = txn.by_segment("sums", name.encode() + b"\0")
    sums = layout.records(found, layout.SUM, f"sums of sampler {name!r}")
    blocks = lengths // layout.SUM.itemsize
    if (blocks < 1).any() or (lengths % layout.SUM.itemsize).any():
        raise CorruptStoreError(f"index: sampler {name!r} has sums that are none")
    if not len(segments):
        return SamplerCheckpoint(state, segments, blocks, blocks, blocks, np.zeros(0))
    last = np.cumsum(blocks) - 1
    first = last - blocks + 1
    size, held, places = layout.PRIORITY_BLOCK, sums["rows"][last], sums["place"][first]
    if not (
        np.count_nonzero(sums["rows"] != size) == np.count_nonzero(held != size)  # all but the last are full
        and ((held > 0) & (held <= size)).all()
        and np.array_equal(np.minimum.reduceat(sums["place"], first), places)
        and np.array_equal(np.maximum.reduceat(sums["place"], first), places)
    ):
        raise CorruptStoreError(f"index: sampler {name!r} has impossible sums of priorities")
    rows = (blocks - 1) * size + held
    return SamplerCheckpoint(
        state, segments, places.astype(np.int64), rows, blocks, np.ascontiguousarray(sums["total"])
    )


def load_state(txn: Reading, name: str) -> dict[str, Any] | None:
    """Return the JSON state that the sampler of that name committed last, or None.

    Raises:
        CorruptStoreError: If it is damaged, or missing although there are priorities.
    """
    payload = dict(txn.items("samplers")).get(name.encode())  # all, so that it is noticed if one is missing
    if payload is not None:
        return documents.parse("samplers", payload, f"sampler {name!r}")
    if next(txn.keys("sums", name.encode() + b"\0"), None) is not None:
        raise CorruptStoreError(f"index: sampler {name!r} has priorities, but its state is missing")
    return None


def load_priorities(
    txn: Reading, journal: Journal, name: str, wanted: Sequence[tuple[int, int]], segment_steps: int
) -> list[NDArray[np.float32]]:
    """Return the priorities of blocks, (segment, block) each; -1 where a row cannot be sampled.

    Empty where the sampler has none of that block. Cost: O(their rows), and the journal, once.

    Raises:
        CorruptStoreError: If a record is damaged, or a row has no priority. `segment` is set where one is to blame.
    """
    journal.require(txn)
    size = layout.PRIORITY_BLOCK
    values = np.full((len(wanted), min(size, segment_steps)), np.nan, np.float32)
    folded, rows = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
    for at, (segment, block) in enumerate(wanted):
        try:
            found = _load_block(txn, name, segment, block)
        except CorruptStoreError as err:
            raise CorruptStoreError(f"segment {segment}: {err}", segment=segment) from err
        if found is not None:
            rows[at], folded[at], held = found
            values[at, : len(held)] = held
    first = np.array([segment * segment_steps + block * size for segment, block in wanted], np.int64)
    journal.apply(first, folded, rows, values)
    parts = [values[at, :count] for at, count in enumerate(rows.tolist())]
    for (segment, block), part in zip(wanted, parts, strict=True):
        if np.isnan(part).any():
            what = f"segment {segment}: {int(np.isnan(part).sum())} rows of block {block} have no priority"
            raise CorruptStoreError(what, segment=segment)
    return parts


def _load_block(txn: Reading, name: str, segment: int, block: int) -> tuple[int, int, NDArray[np.float32]] | None:
    """Return rows, `folded` and written priorities of a block, perhaps fewer than rows; None if there is no SUM."""
    sums = txn.array("sums", layout.sum_key(name, segment), layout.SUM)
    if sums is None or block >= len(sums):
        return None
    rows, key = int(sums[block]["rows"]), layout.priority_key(name, segment, block)
    value = txn.raw("priorities", key)
    if layout.record_checksum(value) != sums[block]["check"]:
        raise CorruptStoreError(f"index: block {block} of its priorities is not the one that was committed")
    if value is None:
        return rows, 0, np.zeros(0, np.float32)
    payload = layout.open_record("priorities", key, value)
    folded, held = layout.parse_priorities(payload, f"priorities of segment {segment}, block {block}")
    if not len(held) <= rows <= layout.PRIORITY_BLOCK:
        raise CorruptStoreError(f"{len(held)} priorities in block {block}, its sum counts {rows}")
    return rows, folded, held


def sampler_segments(txn: Reading, name: str) -> Iterator[int]:
    """Yield the segments for which the sampler committed priorities."""
    for key, _ in list(txn.items("sums", name.encode() + b"\0")):
        yield int.from_bytes(key[-8:], "big")


def is_live(txn: Reading, segment: int) -> bool:
    """Return whether a segment is sealed and not evicted, or in the tail of a stream."""
    return txn.has("segments", layout.segment_key(segment)) or segment in open_segments(txn)


def open_segments(txn: Reading) -> set[int]:
    """Return the segments in the tails of streams. Cost: O(streams)."""
    return {segment for _, data in txn.streams() for segment in data.get("tails", [])}


def forget_priorities(txn: Writing, segment: int) -> None:
    """Remove what every sampler committed of a segment that leaves the catalogue."""
    for name, _ in list(txn.items("samplers")):
        txn.delete("sums", layout.sum_key(name.decode(), segment))
        txn.delete_prefix("priorities", name + b"\0" + layout.segment_key(segment))
