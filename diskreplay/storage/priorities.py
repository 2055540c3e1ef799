"""Read back what a sampler committed: its state, the upper level of its sum tree, its priorities."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.index import Reading, Writing


@dataclass(frozen=True)
class SamplerCheckpoint:
    """What a sampler committed.

    Attributes:
        state: Its JSON state.
        segments: (n,) segments that have priorities, ascending.
        places: (n,) place of each in the sum tree.
        rows: (n,) rows of each that have a priority.
        parts: (n,) how many sums each has: one for every SUM_ROWS rows.
        totals: (sum of parts,) float64 sums of priority^alpha, segment after segment.
    """

    state: dict[str, Any]
    segments: NDArray[np.int64]
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: NDArray[np.int64]
    totals: NDArray[np.float64]


def load_sampler(txn: Reading, name: str) -> SamplerCheckpoint | None:
    """Return what the sampler of that name committed last, or None. Cost: O(segments), not O(rows)."""
    payload = dict(txn.items("samplers")).get(name.encode())  # all, so that it is noticed if one is missing
    if payload is None:
        if next(txn.keys("sums", name.encode() + b"\0"), None) is not None:
            raise CorruptStoreError(f"index: sampler {name!r} has priorities, but its state is missing")
        return None
    state = layout.parse_json(payload, f"sampler {name!r}")
    keys, payloads = txn.whole("sums")  # all, so that it is noticed if some are missing
    start, stop = (bisect_left(keys, name.encode() + end) for end in (b"\0", b"\1"))
    if not set(map(len, keys[start:stop])) <= {len(name.encode()) + 9}:
        raise CorruptStoreError(f"index: sampler {name!r} has sums that are no segment's")
    segments = np.frombuffer(b"".join([key[-8:] for key in keys[start:stop]]), ">u8").astype(np.int64)
    sums = layout.records(b"".join(payloads[start:stop]), layout.SUM, f"sums of sampler {name!r}")
    lengths = np.fromiter(map(len, payloads[start:stop]), np.int64, stop - start)
    parts = lengths // layout.SUM.itemsize
    if start == stop:
        return SamplerCheckpoint(state, segments, parts, parts, parts, np.zeros(0))
    last = np.cumsum(parts) - 1
    first = last - parts + 1
    full = np.full(len(sums), layout.SUM_ROWS, np.int64)
    full[last] = sums["rows"][last]
    places = sums["place"][first].astype(np.int64)
    if not (
        (parts > 0).all()
        and (lengths % layout.SUM.itemsize == 0).all()
        and np.array_equal(sums["rows"], full)
        and ((full > 0) & (full <= layout.SUM_ROWS)).all()
        and np.array_equal(sums["place"], np.repeat(places, parts))
    ):
        raise CorruptStoreError(f"index: sampler {name!r} has impossible sums of priorities")
    return SamplerCheckpoint(state, segments, places, np.add.reduceat(full, first), parts, sums["total"])


def load_priorities(
    txn: Reading, name: str, segment: int, first: int = 0, stop: int | None = None
) -> NDArray[np.float32]:
    """Return the priorities of a segment's rows [first, stop), as far as there are any.

    -1 where a row cannot be sampled. Cost: O(the rows).
    """
    prefix = name.encode() + b"\0" + layout.segment_key(segment)
    block = before = first // layout.PRIORITY_BLOCK
    parts = []
    for key, payload in txn.items("priorities", prefix, prefix + block.to_bytes(2, "big")):
        ended = stop is not None and block * layout.PRIORITY_BLOCK >= stop
        if ended or int.from_bytes(key[-2:], "big") != block:
            break
        parts.append(layout.records(payload, np.dtype(np.float32), f"priorities of segment {segment}"))
        block += 1
        if len(parts[-1]) != layout.PRIORITY_BLOCK:
            break
    joined = np.concatenate([np.zeros(0, np.float32), *parts])
    start = first - before * layout.PRIORITY_BLOCK
    return joined[start:] if stop is None else joined[start : start + stop - first]


def sampler_segments(txn: Reading, name: str) -> Iterator[int]:
    """Yield the segments for which the sampler committed priorities."""
    for key, _ in list(txn.items("sums", name.encode() + b"\0")):
        yield int.from_bytes(key[-8:], "big")


def is_live(txn: Reading, segment: int) -> bool:
    """Return whether a segment is sealed and not evicted, or in the tail of a stream."""
    if txn.get("segments", layout.segment_key(segment)) is not None:
        return True
    return any(segment in data.get("tails", []) for _, data in txn.streams())


def forget_priorities(txn: Writing, segment: int) -> None:
    """Remove what every sampler committed of a segment that leaves the catalogue."""
    for name, _ in list(txn.items("samplers")):
        txn.delete("sums", layout.sum_key(name.decode(), segment))
        txn.delete_prefix("priorities", name + b"\0" + layout.segment_key(segment))
