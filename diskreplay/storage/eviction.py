"""Which segments have to go, and taking them off the catalogue: part of a commit's transaction.

Counts and order are the index's own, so it does not matter which process commits. The shards of what went are listed
as garbage in the same transaction; they are unlinked after it, and a later commit takes them off the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diskreplay.storage import layout
from diskreplay.storage.priorities import forget_priorities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diskreplay.storage.transactions import Reading, Writing


@dataclass(frozen=True)
class Capacity:
    """How much a store may hold; None: no limit of that kind."""

    steps: int | None = None
    size_bytes: int | None = None

    def exceeded(self, counters: Any) -> bool:
        """Return whether a store with these counters holds too much."""
        return self.too_many_bytes(counters) or (self.steps is not None and bool(counters["transitions"] > self.steps))

    def too_many_bytes(self, counters: Any) -> bool:
        """Return whether a store with these counters takes too much disk."""
        return self.size_bytes is not None and bool(counters["bytes_on_disk"] > self.size_bytes)


def take_garbage(txn: Writing, swept: set[int]) -> set[int]:
    """Take off the list what is `swept`; return what is still to be unlinked."""
    listed = {int.from_bytes(key, "big") for key, _ in txn.items("garbage")}
    for segment in listed & swept:
        txn.delete("garbage", layout.segment_key(segment))
    return listed - swept


def evict_oldest(txn: Writing, counters: Any, capacity: Capacity) -> list[int]:
    """Take the oldest segments that are not pinned off the catalogue, as long as there is too much; return them.

    Where it is the disk that is short, segments in quarantine go first: nothing is drawn from them.
    """
    evicted: list[int] = []
    for key, record in _records(txn, "quarantine"):
        if not capacity.too_many_bytes(counters):
            break
        counters["bytes_on_disk"] -= int(record["bytes_on_disk"])
        _forget(txn, key, record, "quarantine")
        evicted.append(int.from_bytes(key, "big"))
    if not capacity.exceeded(counters):
        return evicted
    pinned = {number for number, data in txn.streams() if data.get("pinned")}
    for key, record in _records(txn, "segments"):
        if not capacity.exceeded(counters):
            break
        if int(record["stream"]) in pinned:
            continue
        transitions = int(record["rows"]) - int(record["ends"])
        counters["transitions"] -= transitions
        counters["bytes_on_disk"] -= int(record["bytes_on_disk"])
        counters["steps_evicted"] += transitions
        counters["episodes_evicted"] += int(record["episodes"])
        counters["evictions"] += 1
        _forget(txn, key, record, "segments")
        evicted.append(int.from_bytes(key, "big"))
    return evicted


def _records(txn: Reading, database: str) -> Iterator[tuple[bytes, Any]]:
    """Yield (key, SEGMENT record), oldest first; each may be deleted before the next is asked for."""
    start = b""
    while (item := next(txn.items(database, start=start), None)) is not None:
        key, payload = item
        yield key, layout.records(payload, layout.SEGMENT, f"{database} {key!r}")[0]
        start = key + b"\0"


def _forget(txn: Writing, key: bytes, record: Any, catalogue: str) -> None:
    txn.delete("seals", layout.segment_key(int(record["seal"])))
    for database in (catalogue, "files", "checks", "episodes"):
        txn.delete(database, key)
    forget_priorities(txn, int.from_bytes(key, "big"))
    txn.put("garbage", key, b"")
