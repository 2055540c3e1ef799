"""Typed look-ups and changes of the index's records, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import digest, documents, layout, native, record_kernels
from diskreplay.storage.environment import SLACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.digest import Digest
    from diskreplay.storage.environment import Transaction

MANY = 4096  # for fewer records compiled code is not worth loading: 0.3 s once, beside a microsecond a record


class Reading:
    """Typed look-ups in one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.txn = transaction.lmdb
        self.databases = transaction.databases

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return a record without its checksum, or None.

        Raises:
            CorruptStoreError: If the checksum does not match.
        """
        value = self.raw(database, key)
        return None if value is None else layout.open_record(database, key, value)

    def json(self, database: str, key: bytes) -> dict[str, Any] | None:
        """Return a JSON record, or None.

        Raises:
            CorruptStoreError: If it is damaged, or nothing that this package writes there.
        """
        payload = self.get(database, key)
        return None if payload is None else documents.parse(database, payload, f"{database} {key!r}")

    def array(self, database: str, key: bytes, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return a record as an array, or None.

        Raises:
            CorruptStoreError: If it is damaged, or of another length; a SEGMENT is one.
        """
        payload = self.get(database, key)
        if payload is None:
            return None
        found = layout.records(payload, dtype, f"{database} {key!r}")
        if dtype is layout.SEGMENT and len(found) != 1:
            raise CorruptStoreError(f"index: the record of {database} {key!r} has {len(payload)} bytes")
        return found

    def streams(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, JSON record) of every stream."""
        for key, payload in self.items("streams"):
            number = int.from_bytes(key, "big")
            yield number, documents.parse("streams", payload, f"stream {number}")

    def items(self, database: str, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) in key order, from `start` on, as long as keys begin with `prefix`.

        Raises:
            CorruptStoreError: If records are damaged, out of order, or (for a whole table) not as many as it counts
                or not those that were committed: a page of the index that is another's, or its own of earlier, has
                sound records all the same.
        """
        first = start or prefix
        before, seen, total = b"", 0, 0
        for key, value in self.raw_items(database, prefix, start):
            expected = layout.KEY_BYTES.get(database, len(key))
            if key < first or (seen and key <= before) or len(key) != expected:
                raise CorruptStoreError(f"index: table {database}: {key!r} is not in its place")
            before, seen, total = key, seen + 1, total + layout.record_checksum(value)
            yield key, layout.open_record(database, key, value)
        if not first:
            self._require(database, seen, total)

    def by_segment(
        self, database: str, prefix: bytes = b""
    ) -> tuple[NDArray[np.int64], bytearray | memoryview, NDArray[np.int64]]:
        """Return the records of a table whose keys are a prefix and a segment; all the others are checked, too.

        Returns:
            (n,) segments, ascending; their records, one after the other; (n,) bytes of each record.

        Raises:
            CorruptStoreError: As `items`, or if a key is longer or shorter.
        """
        found = self._by_segment_compiled(database, prefix) if self._is_worth_compiled(database) else None
        return found or self._by_segment(database, prefix)

    def _is_worth_compiled(self, database: str) -> bool:
        return native.AVAILABLE and self.count(database) >= MANY

    def _by_segment(self, database: str, prefix: bytes) -> tuple[NDArray[np.int64], bytearray, NDArray[np.int64]]:
        # One loop, not `items` and what it calls, which take twice as long: large stores are opened with it.
        cursor, check = self.txn.cursor(db=self.databases[database]), self.transaction.check
        checksum = layout.record_checks(database)
        keys: list[bytes] = []
        lengths: list[int] = []
        records = bytearray()
        before, seen, total, width = b"", 0, 0, len(prefix) + 8
        for key, value in cursor if cursor.first() else ():
            check(value)
            name, held = bytes(key), bytes(value)
            record, stored = held[:-4], int.from_bytes(held[-4:], "little")
            if name <= before or checksum(name, record) != stored:
                break
            before, seen, total = name, seen + 1, total + stored
            if name.startswith(prefix):
                keys.append(name)
                lengths.append(len(record))
                records += record
        else:
            self._require(database, seen, total)
            if all(len(name) == width for name in keys):
                segments = np.frombuffer(b"".join([name[-8:] for name in keys]), ">u8").astype(np.int64)
                return segments, records, np.array(lengths, np.int64)
        for _ in self.items(database):  # says what is wrong
            pass
        raise CorruptStoreError(f"index: table {database}: a key that begins with {prefix!r} is no segment's")

    def _by_segment_compiled(
        self, database: str, prefix: bytes
    ) -> tuple[NDArray[np.int64], memoryview, NDArray[np.int64]] | None:
        """Do as `_by_segment`, small records in 0.6 of the time; None if something is wrong or a record is large."""
        cursor, before = self.txn.cursor(db=self.databases[database]), b""
        parts: list[bytes] = []
        note = parts.append
        for key, value in cursor if cursor.first() else ():  # one by one: views kept set off the garbage collector
            name = bytes(key)
            if name <= before or len(value) > SLACK:  # a damaged page may lead round in circles
                return None
            note(name)
            note(bytes(value))
            before = name
        flat, lengths = np.frombuffer(bytearray().join(parts), np.uint8), np.fromiter(map(len, parts), np.int64)
        records = len(parts) // 2
        numbers, sizes = np.empty((2, records), np.int64)
        owner = np.frombuffer(layout.record_owner(database, b""), np.uint8)
        total, taken, filled = record_kernels.check_records(
            flat, lengths, owner, np.frombuffer(prefix, np.uint8), numbers, sizes
        )
        if total < 0 or records != self.count(database) or not self._is_committed(database, total):
            return None
        return numbers[:taken], flat.data[:filled], sizes[:taken]

    def raw(self, database: str, key: bytes) -> bytes | None:
        """Return a value as it is, with its checksum, or None."""
        value = self.txn.get(key, db=self.databases[database])
        return None if value is None else self.transaction.copied(value)

    def raw_items(self, database: str, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) as they are, unchecked, from `start` on, as long as keys begin with `prefix`."""
        cursor, copied, first = self.txn.cursor(db=self.databases[database]), self.transaction.copied, start or prefix
        if cursor.set_range(first) if first else cursor.first():
            for key, value in cursor:
                name = copied(key)
                if not name.startswith(prefix):
                    return
                yield name, copied(value)

    def stamps(self, database: str, prefix: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
        """Yield (key, length of the record, its checksum) of keys that begin with `prefix`; no record is read."""
        cursor, copied = self.txn.cursor(db=self.databases[database]), self.transaction.copied
        if cursor.set_range(prefix) if prefix else cursor.first():
            for key, value in cursor:
                name = copied(key)
                if not name.startswith(prefix):
                    return
                self.transaction.check(value)
                yield name, len(value) - 4, layout.record_checksum(value)

    def keys(self, database: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, unchecked."""
        cursor = self.txn.cursor(db=self.databases[database])
        if cursor.set_range(prefix) if prefix else cursor.first():
            for key in cursor.iternext(keys=True, values=False):
                name = self.transaction.copied(key)
                if not name.startswith(prefix):
                    return
                yield name

    def count(self, database: str) -> int:
        """Return the number of records."""
        return int(self.txn.stat(self.databases[database])["entries"])

    def has(self, database: str, key: bytes) -> bool:
        """Return whether there is a record, sound or not."""
        return self.txn.get(key, db=self.databases[database]) is not None

    def digest(self) -> Digest:
        """Return what the tables must hold.

        Raises:
            CorruptStoreError: If it is missing or damaged.
        """
        return digest.parse_digest(self.get(layout.DIGEST, digest.KEY))

    def check_newest(self) -> None:
        """Make sure that this is the state that was committed last: LMDB's root may be a page of earlier.

        Raises:
            CorruptStoreError: If it is not.
        """
        if not self.digest().is_newest(int(self.txn.id())):
            raise CorruptStoreError("index: it is not the newest that was committed: a page of it is older")

    def check_table(self, database: str) -> None:
        """Make sure that a table's records are those that were committed. Cost: O(records); none is read.

        Raises:
            CorruptStoreError: If they are not.
        """
        found = [checksum for _, _, checksum in self.stamps(database)]
        self._require(database, len(found), sum(found))

    def _require(self, database: str, records: int, total: int) -> None:
        if records != self.count(database):
            raise CorruptStoreError(f"index: table {database}: {records} records, it counts {self.count(database)}")
        if not self._is_committed(database, total):
            raise CorruptStoreError(f"index: table {database} is not the one that was committed: some of it is older")

    def _is_committed(self, database: str, total: int) -> bool:
        return database == layout.DIGEST or self.digest().agrees(database, total)

    def counters(self) -> Any:
        """Return the store's counters, a record of one COUNTERS element that may be changed."""
        array = self.array("meta", b"counters", layout.COUNTERS)
        if array is None or len(array) != 1:
            raise CorruptStoreError("index: the counters are missing")
        wrong = layout.impossible_counts(array)
        if wrong:
            raise CorruptStoreError(f"index: the counters are damaged: impossible {', '.join(wrong)}")
        return array.copy()[0]


class Writing(Reading):
    """Typed changes in one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._sums: dict[str, int] = {}

    def put(self, database: str, key: bytes, payload: bytes) -> int:
        """Write a record; return the checksum it got."""
        value = layout.seal_record(database, key, payload)
        self._note(database, self.txn.get(key, db=self.databases[database]), value)
        self.txn.put(key, value, db=self.databases[database])
        return layout.record_checksum(value)

    def put_json(self, database: str, key: bytes, data: dict[str, Any]) -> None:
        """Write a JSON record."""
        self.put(database, key, layout.json_payload(data))

    def put_counters(self, counters: Any) -> None:
        """Write the store's counters."""
        self.put("meta", b"counters", counters.tobytes())

    def delete(self, database: str, key: bytes) -> None:
        """Remove a record, if it is there."""
        value = self.txn.get(key, db=self.databases[database])
        if value is not None:
            self._note(database, value)
            self.txn.delete(key, db=self.databases[database])

    def delete_range(self, database: str, start: bytes, stop: bytes) -> None:
        """Remove every record whose key is at least `start` and below `stop`."""
        self._delete_from(database, start, lambda key: key < stop)

    def delete_prefix(self, database: str, prefix: bytes, start: bytes = b"") -> None:
        """Remove every record whose key begins with `prefix`, from `start` on."""
        self._delete_from(database, start or prefix, lambda key: key.startswith(prefix))

    def digest(self) -> Digest:
        """Return what the tables must hold, this transaction's changes included."""
        return super().digest().changed(int(self.txn.id()), self._sums)

    def renew_digest(self) -> None:
        """Have what the tables hold be what they must hold. Cost: O(records); for `repair` and new indexes."""
        self._sums = {name: sum(checksum for _, _, checksum in self.stamps(name)) for name in digest.TABLES}
        self._write(digest.Digest())

    def finish(self) -> None:
        """Note what the tables hold from now on: the last thing of a transaction that changes anything."""
        if self.transaction.changed:
            self._write(super().digest())

    def _write(self, before: Digest) -> None:
        payload = before.changed(int(self.txn.id()), self._sums).payload()
        value = layout.seal_record(layout.DIGEST, digest.KEY, payload)
        self.txn.put(digest.KEY, value, db=self.databases[layout.DIGEST])
        self.transaction.changed, self._sums = True, {}

    def _note(self, database: str, before: Any, value: bytes | None = None) -> None:
        """Note that a value takes the place of another; None: of none, or there is none from now on."""
        if before is not None:
            self.transaction.check(before)
        change = layout.record_checksum(value) - layout.record_checksum(before)
        self._sums[database] = self._sums.get(database, 0) + change
        self.transaction.changed = True

    def _delete_from(self, database: str, start: bytes, inside: Callable[[bytes], bool]) -> None:
        cursor = self.txn.cursor(db=self.databases[database])
        while cursor.set_range(start) and inside(bytes(cursor.key())):
            self._note(database, cursor.value())
            cursor.delete()
