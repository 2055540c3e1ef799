"""The LMDB index: the only truth about what is committed.

Owns the environment, its settings and the translation of its errors. One environment a process and store, shared
by every handle, because LMDB must not be opened twice in one process. No user code, no file writing inside a write
transaction. Settings: the 0.9 engine, full sync, no writemap (it dies on a full disk), no read-ahead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from diskreplay.errors import (
    CorruptStoreError,
    FormatVersionError,
    ReplayError,
    StoreFullError,
    StoreLockedError,
)
from diskreplay.storage import layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAP_SIZE = 1 << 40
MAX_READERS = 1024
SMALLEST = 8192
ROOM = 1 << 20

_registry: dict[tuple[int, int], _Shared] = {}
_registry_lock = threading.Lock()
_to_close: list[Index] = []


class _Shared:
    """One LMDB environment and how many handles use it."""

    def __init__(self, environment: Any, *, writable: bool) -> None:
        self.environment = environment
        self.writable = writable
        self.handles = 1
        with environment.begin(write=writable) as txn:
            self.databases = {
                name: environment.open_db(name.encode(), txn=txn, create=writable) for name in layout.DATABASES
            }


def _forget_in_child() -> None:
    # Closing an inherited environment can wait for ever for threads the child does not have; so it is made
    # immortal there, and never used.
    for shared in _registry.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared.environment))
    _registry.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class Index:
    """A handle to a store's LMDB environment.

    Raises:
        CorruptStoreError: If the index is missing, empty or no LMDB file.
        FormatVersionError: If it was written by another LMDB format.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        data = path / "data.mdb"
        if create:
            path.mkdir()
        elif not data.is_file() or data.stat().st_size < SMALLEST:
            # LMDB would silently make a new, empty database of it.
            raise CorruptStoreError(f"{data}: the index is missing or cut off", path=path)
        self._pid = os.getpid()
        self._shared: _Shared | None = None
        with _registry_lock:
            while _to_close:
                _to_close.pop().leave()
            self._key, self._shared = self._enter(data)

    def _enter(self, data: Path) -> tuple[tuple[int, int], _Shared]:
        if data.exists():
            status = data.stat()
            shared = _registry.get((status.st_dev, status.st_ino))
            if shared is not None:
                shared.handles += 1
                return (status.st_dev, status.st_ino), shared
        writable = os.access(self.path, os.W_OK) and (not data.exists() or os.access(data, os.W_OK))
        with self._translate():
            environment = lmdb.open(
                str(self.path),
                map_size=MAP_SIZE,
                max_dbs=len(layout.DATABASES) + 2,
                max_readers=MAX_READERS,
                max_spare_txns=0,
                readahead=False,
                readonly=not writable,
                create=writable,
                lib_version=0,
            )
            environment.reader_check()
            shared = _Shared(environment, writable=writable)
        status = data.stat()
        _registry[status.st_dev, status.st_ino] = shared
        return (status.st_dev, status.st_ino), shared

    def close(self, *, wait: bool = True) -> None:
        """Close the handle; the environment goes with the last one.

        Args:
            wait: Take part in the registry's lock. False in finalisers: the garbage collector may run them in the
                very thread that holds it; the handle is then closed by whoever comes next.
        """
        if self._pid != os.getpid() or self._shared is None:
            return
        if not _registry_lock.acquire(blocking=wait):
            _to_close.append(self)
            return
        try:
            self.leave()
        finally:
            _registry_lock.release()

    def leave(self) -> None:
        """Give the handle back; called with the registry's lock held."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.handles -= 1
            if not shared.handles:
                _registry.pop(self._key, None)
                shared.environment.close()

    @property
    def writable(self) -> bool:
        """Return whether this process may write the index's files."""
        return self._use().writable

    @contextlib.contextmanager
    def read(self) -> Iterator[Reading]:
        """Look at one consistent state of the index."""
        shared = self._use()
        with self._translate(), shared.environment.begin() as txn:
            yield Reading(txn, shared.databases)

    @contextlib.contextmanager
    def write(self) -> Iterator[Writing]:
        """Change the index; all of it, durably, or nothing."""
        shared = self._use()
        with self._translate(), shared.environment.begin(write=True) as txn:
            yield Writing(txn, shared.databases)

    def _use(self) -> _Shared:
        if self._shared is None:
            raise ReplayError(f"{self.path}: the store is closed", hint="Open it again.")
        if self._pid != os.getpid():
            raise ReplayError(
                f"{self.path}: the index was opened before a fork and cannot be used in the child",
                hint="Start the process with spawn or forkserver and open the store there.",
            )
        return self._shared

    @contextlib.contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError as err:
            raise StoreFullError(f"{self.path}: the index is full", path=self.path) from err
        except (lmdb.VersionMismatchError, lmdb.InvalidError) as err:
            raise FormatVersionError(f"{self.path}: no LMDB 0.9 index: {err}", path=self.path) from err
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as err:
            raise CorruptStoreError(f"{self.path}: the index is damaged: {err}", path=self.path) from err
        except (lmdb.ReadersFullError, lmdb.LockError) as err:
            raise StoreLockedError(f"{self.path}: the index is locked: {err}", path=self.path) from err
        except lmdb.NotFoundError as err:
            raise CorruptStoreError(f"{self.path}: the index lacks a table: {err}", path=self.path) from err
        except lmdb.Error as err:
            with contextlib.suppress(OSError):
                room = os.statvfs(self.path)
                if room.f_bavail * room.f_frsize < ROOM:
                    raise StoreFullError(f"{self.path}: the disk is full", path=self.path) from err
            raise ReplayError(f"{self.path}: {err}", path=self.path) from err


class Reading:
    """Typed look-ups in one transaction."""

    def __init__(self, txn: Any, databases: dict[str, Any]) -> None:
        self.txn = txn
        self.databases = databases

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return a record without its checksum, or None.

        Raises:
            CorruptStoreError: If the checksum does not match.
        """
        value = self.txn.get(key, db=self.databases[database])
        return None if value is None else layout.open_value(value, f"{database} {key!r}")

    def json(self, database: str, key: bytes) -> dict[str, Any] | None:
        """Return a JSON record, or None."""
        value = self.txn.get(key, db=self.databases[database])
        return None if value is None else layout.open_json(value, f"{database} {key!r}")

    def array(self, database: str, key: bytes, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return a record as an array, or None."""
        value = self.txn.get(key, db=self.databases[database])
        return None if value is None else layout.open_array(value, dtype, f"{database} {key!r}")

    def items(self, database: str, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) in key order, from `start` on, as long as keys begin with `prefix`."""
        cursor = self.txn.cursor(db=self.databases[database])
        first = start or prefix
        if not (cursor.set_range(first) if first else cursor.first()):
            return
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, layout.open_value(value, f"{database} {key!r}")

    def count(self, database: str) -> int:
        """Return the number of records."""
        return int(self.txn.stat(self.databases[database])["entries"])

    def counters(self) -> Any:
        """Return the store's counters, a record of one COUNTERS element that may be changed."""
        array = self.array("meta", b"counters", layout.COUNTERS)
        if array is None or len(array) != 1:
            raise CorruptStoreError("index: the counters are missing")
        return array.copy()[0]


class Writing(Reading):
    """Typed changes in one transaction."""

    def put(self, database: str, key: bytes, payload: bytes) -> None:
        """Write a record, with its checksum."""
        self.txn.put(key, layout.seal_value(payload), db=self.databases[database])

    def put_json(self, database: str, key: bytes, data: dict[str, Any]) -> None:
        """Write a JSON record."""
        self.txn.put(key, layout.json_value(data), db=self.databases[database])

    def put_counters(self, counters: Any) -> None:
        """Write the store's counters."""
        self.put("meta", b"counters", counters.tobytes())

    def delete(self, database: str, key: bytes) -> None:
        """Remove a record, if it is there."""
        self.txn.delete(key, db=self.databases[database])

    def delete_prefix(self, database: str, prefix: bytes) -> int:
        """Remove every record whose key begins with `prefix`; return how many there were."""
        cursor = self.txn.cursor(db=self.databases[database])
        removed = 0
        while cursor.set_range(prefix) and cursor.key().startswith(prefix):
            cursor.delete()
            removed += 1
        return removed
