"""What an index must hold: of each table the sum of its records' checksums, and the newest transaction.

LMDB has no checksums. A page of an index that its own of a few commits ago has replaced holds records that are sound,
in their places, in the right number: only older. Each change of a record changes its table's sum, in the same
transaction, so tables of different age do not go together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout

KEY = b"tables"
TABLES = tuple(name for name in layout.DATABASES if name != layout.DIGEST)
_RECORD = np.dtype([("transaction", "<u8"), ("sums", "<u8", (len(TABLES),))])
_ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Digest:
    """What an index must hold.

    Attributes:
        transaction: The newest.
        sums: table -> sum of its values' crc32c, modulo 2^64; 0 where it is missing.
    """

    transaction: int = 0
    sums: dict[str, int] = field(default_factory=dict)

    def payload(self) -> bytes:
        """Return the record, without its checksum."""
        record = np.zeros(1, _RECORD)
        record["transaction"] = self.transaction
        record["sums"] = [self.sums.get(name, 0) for name in TABLES]
        return record.tobytes()

    def changed(self, transaction: int, changes: dict[str, int]) -> Digest:
        """Return what it is after a transaction that changed the tables' sums by so much."""
        sums = {name: (self.sums.get(name, 0) + changes.get(name, 0)) & _ALL for name in TABLES}
        return Digest(transaction, sums)

    def agrees(self, database: str, total: int) -> bool:
        """Return whether a table whose checksums sum to `total` is the one that was committed."""
        return self.sums.get(database, 0) == total & _ALL

    def is_newest(self, transaction: int) -> bool:
        """Return whether this was written by the transaction whose state a look at an index says it sees, or later.

        Later, where others committed twice while the look began: LMDB reads the number first, and then what is there.
        And an index that LMDB copied counts from 1 again.
        """
        return self.transaction >= transaction


def parse_digest(payload: bytes | None) -> Digest:
    """Read a digest from its record without its checksum.

    Raises:
        CorruptStoreError: If there is none.
    """
    if payload is None or len(payload) != _RECORD.itemsize:
        raise CorruptStoreError("index: what its tables must hold is missing")
    record = np.frombuffer(payload, _RECORD)[0]
    return Digest(int(record["transaction"]), dict(zip(TABLES, record["sums"].tolist(), strict=True)))
