"""A sampler's journal: scattered changes of priorities, one record or a few of each commit.

Records are read once: a look at the index compares lengths and checksums with those of the records read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.transactions import Reading

ENTRY_BYTES = 12


@dataclass(frozen=True, eq=False)
class Update:
    """What changed in a commit: step ids, (n,) int64, ascending, and their priorities, (n,) float32."""

    number: int
    step_ids: NDArray[np.int64]
    values: NDArray[np.float32]

    def payload(self) -> bytes:
        """Return the record, without its checksum."""
        return self.step_ids.astype("<i8").tobytes() + self.values.astype("<f4").tobytes()


def parse_update(payload: bytes, number: int, what: str) -> Update:
    """Return the record of a journal.

    Raises:
        CorruptStoreError: If it is none.
    """
    count, rest = divmod(len(payload), ENTRY_BYTES)
    if rest or not count:
        raise CorruptStoreError(f"index: the record of {what} has {len(payload)} bytes")
    step_ids, values = np.frombuffer(payload, "<i8", count), np.frombuffer(payload, "<f4", count, 8 * count)
    if step_ids[0] < 0 or (np.diff(step_ids) <= 0).any():
        raise CorruptStoreError(f"index: the record of {what} is not in the order of step ids")
    return Update(number, step_ids.astype(np.int64), values.astype(np.float32))


class Journal:
    """A sampler's journal, as the transaction that was followed last sees it.

    Attributes:
        updates: The sound records, oldest first.
        bad: (key, why) of those that cannot be read.
    """

    def __init__(self, name: str) -> None:
        self.prefix = name.encode() + b"\0"
        self.updates: list[Update] = []
        self.bad: list[tuple[bytes, str]] = []
        self._read: dict[tuple[bytes, int, int], Update] = {}
        self._commits = -1

    def follow(self, txn: Reading) -> None:
        """Take in what was committed. Cost: O(records), and the bytes of those that are new."""
        known, self._read, self.updates, self.bad = self._read, {}, [], []
        for key, length, checksum in txn.stamps("updates", self.prefix):
            update = known.get((key, length, checksum))
            if update is None:
                try:
                    update = self._parse(txn, key)
                except CorruptStoreError as err:
                    self.bad.append((key, str(err)))
                    continue
            self._read[key, length, checksum] = update
            self.updates.append(update)

    def require(self, txn: Reading) -> None:
        """Do as `follow`, unless nothing was committed since.

        Raises:
            CorruptStoreError: If a record cannot be read, or some are missing.
        """
        commits = int(txn.counters()["commits"])
        if commits == self._commits:
            return
        self.follow(txn)
        if self.bad:
            raise CorruptStoreError(self.bad[0][1])
        txn.check_table("updates")
        self._commits = commits

    def apply(
        self, first: NDArray[np.int64], folded: NDArray[np.int64], rows: NDArray[np.int64], values: NDArray[np.float32]
    ) -> None:
        """Overwrite priorities by what the journal says of them; of several entries the last counts.

        Args:
            first: (m,) step id of the first row of each run.
            folded: (m,) number of the record from which on entries count.
            rows: (m,) rows of each run.
            values: (m, most rows), changed.
        """
        for update in self.updates:
            low = np.searchsorted(update.step_ids, first)
            high = np.where(update.number >= folded, np.searchsorted(update.step_ids, first + rows), low)
            counts = high - low
            total = int(counts.sum())
            if total:
                run = np.repeat(np.arange(len(first)), counts)
                at = np.arange(total) + np.repeat(low - (np.cumsum(counts) - counts), counts)
                values[run, update.step_ids[at] - first[run]] = update.values[at]

    def _parse(self, txn: Reading, key: bytes) -> Update:
        what = f"updates {key!r}"
        if len(key) != len(self.prefix) + 8:
            raise CorruptStoreError(f"index: {what} is no record of a journal")
        return parse_update(txn.get("updates", key) or b"", int.from_bytes(key[-8:], "big"), what)


def list_updates(txn: Reading, name: str) -> list[tuple[int, int]]:
    """Return the number of each record of a sampler's journal, ascending, and how many entries it has."""
    prefix = name.encode() + b"\0"
    return [
        (int.from_bytes(key[-8:], "big"), length // ENTRY_BYTES) for key, length, _ in txn.stamps("updates", prefix)
    ]


def split_updates(number: int, step_ids: NDArray[np.int64], values: NDArray[np.float32], most: int) -> Sequence[Update]:
    """Cut entries into records of bounded size, numbered from `number` on."""
    return [
        Update(number + at // most, step_ids[at : at + most], values[at : at + most])
        for at in range(0, len(step_ids), most)
    ]
