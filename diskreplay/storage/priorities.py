"""Read back what a sampler committed: its state, the upper level of its sum tree, its priorities."""

from __future__ import annotations

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
        totals: (n,) float64 sums of priority^alpha.
        places: (n,) block of each in the sum tree.
        rows: (n,) rows of each that have a priority.
    """

    state: dict[str, Any]
    segments: NDArray[np.int64]
    totals: NDArray[np.float64]
    places: NDArray[np.int32]
    rows: NDArray[np.int32]


def load_sampler(txn: Reading, name: str) -> SamplerCheckpoint | None:
    """Return what the sampler of that name committed last, or None. Cost: O(segments), not O(rows)."""
    payload = dict(txn.items("samplers")).get(name.encode())  # all, so that it is noticed if one is missing
    if payload is None:
        if next(txn.keys("sums", name.encode() + b"\0"), None) is not None:
            raise CorruptStoreError(f"index: sampler {name!r} has priorities, but its state is missing")
        return None
    state = layout.parse_json(payload, f"sampler {name!r}")
    keys, values = [], []
    for key, payload in txn.items("sums"):  # all, so that it is noticed if some are missing
        if key[:-8] == name.encode() + b"\0":
            keys.append(key[-8:])
            values.append(payload)
    sums = layout.records(b"".join(values), layout.SUM, f"sums of sampler {name!r}")
    segments = np.frombuffer(b"".join(keys), ">u8").astype(np.int64)
    return SamplerCheckpoint(state, segments, sums["total"], sums["place"], sums["rows"])


def load_priorities(txn: Reading, name: str, segment: int) -> NDArray[np.float32]:
    """Return the priorities of a segment's first rows; -1 where a row cannot be sampled."""
    prefix = name.encode() + b"\0" + layout.segment_key(segment)
    joined = b"".join(payload for _, payload in txn.items("priorities", prefix))
    return layout.records(joined, np.dtype(np.float32), f"priorities of segment {segment}")


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
