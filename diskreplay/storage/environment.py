"""One LMDB environment.

Owns the settings (the 0.9 engine, full sync unless the store's durability is "process", no writemap as it dies on a
full disk, no read-ahead), and what LMDB does not do for us:

- Past the end of its file a memory map is SIGBUS: the file is made as long as its meta page says, and a little longer,
  and what a record claims beyond is not touched. That it was cut off, or that LMDB fell back to its older meta page, is
  known from a note beside it (watermark.py).
- A failed commit can leave it refusing everything: the environment is opened anew before it is used again.
- A reader that died keeps pages from being used again: readers are checked at open and by committers, every 30 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from diskreplay.errors import CorruptStoreError, ReadOnlyError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.filesystem import check_filesystem
from diskreplay.storage.gate import Gate
from diskreplay.storage.lmdb_errors import translated
from diskreplay.storage.probe import probe
from diskreplay.storage.regular import require_own
from diskreplay.storage.watermark import Watermark, read_watermark, write_watermark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAP_SIZE = 1 << 40
MAX_READERS = 1024
SMALLEST = 8192
SLACK = 1 << 16
PATIENCE_S = 5.0
READER_CHECK_S = 30.0
MOST_AHEAD = 64 << 20  # pages that a transaction took at the file's end and gave back are not written


@dataclass
class Transaction:
    """An LMDB transaction, the databases, and whether it changes anything."""

    lmdb: Any
    databases: dict[str, Any]
    within: Callable[[Any], bool] = lambda _: True
    changed: bool = False

    def copied(self, view: Any) -> bytes:
        """Copy a key or a value out of the map.

        Raises:
            CorruptStoreError: As `check`.
        """
        self.check(view)
        return bytes(view)

    def check(self, view: Any) -> None:
        """Make sure that a key or a value may be touched.

        Raises:
            CorruptStoreError: If it claims to reach past the end of the file, where touching it would be SIGBUS.
        """
        if len(view) > SLACK and not self.within(view):
            raise CorruptStoreError(f"index: a record claims {len(view)} bytes, which its file does not have")


class Environment:
    """One LMDB environment.

    Args:
        path: The folder of the index.
        create: Whether it is to be made.
        synced: Whether a commit is durable against power cuts.
        checked: Whether an index that holds less than is noted of it is refused.
    """

    def __init__(self, path: Path, *, create: bool, synced: bool, checked: bool = True) -> None:
        self.path = path
        self.data = path / "data.mdb"
        self.synced = synced
        self.writable = os.access(path, os.W_OK) and (create or os.access(self.data, os.W_OK))
        self.handles = 1
        self.gate = Gate()
        self._lmdb: Any = None
        self._databases: dict[str, Any] = {}
        self._broken = False
        self._noted = Watermark()
        self._base = 0
        self._identity: tuple[int, int] | None = None
        self._checked_at = time.monotonic()
        check_filesystem(path)
        require_own([path], folders=True)
        require_own([self.data, path / "lock.mdb"])
        if not create:
            self._check_length(checked=checked)
        self._open()
        self._check_newest()

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """Yield a transaction; commit it at the end if it writes.

        If committing fails, whether it counts can be unclear: what is written must be such that it can be written
        again.
        """
        if write:
            self.require_in_place()
        with self._inside():
            txn = Transaction(self._begin(write=write), self._databases, self._within)
            try:
                yield txn
                if write:
                    self._commit(txn)
                else:
                    txn.lmdb.abort()
            except BaseException:
                # Whatever it is, Ctrl-C before the commit too: others would wait for the write lock.
                with contextlib.suppress(lmdb.Error):
                    txn.lmdb.abort()
                raise

    def require_in_place(self) -> None:
        """Make sure that what is written beside the index, by its path, goes into the same store.

        Raises:
            ReplayError: If the store was moved, and perhaps another put in its place.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if identity(self.data) == self._identity:
                return
        raise ReplayError(
            f"{self.path}: not the index that was opened: its store was moved or replaced; nothing was written",
            path=self.path,
            hint="Move it back and go on; or close this handle, and open the store where it is now.",
        )

    def copy(self, path: Path) -> None:
        """Write a compact copy of the index, of one moment, into an empty folder."""
        with self._inside():
            self._lmdb.copy(str(path), compact=True)

    def close(self) -> None:
        """Close it for good; nobody may be inside."""
        self._broken = False  # else whoever still has it would open it again
        self._let_go()

    def reopen(self, *, synced: bool) -> None:
        """Have it opened anew before it is next used, if it is not as durable as it is to be now."""
        if synced != self.synced:
            self.synced, self._broken = synced, True

    def keep(self) -> None:
        """Make sure that it is never closed: in a child whose parent's threads were inside."""
        if self._lmdb is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._lmdb))

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        if self._broken:
            self._mend()
        with self.gate.visit(), translated(self.path):
            if self._lmdb is None:
                raise ReplayError(f"{self.path}: the store is closed", path=self.path, hint="Open it again.")
            yield

    def _begin(self, *, write: bool) -> Any:
        try:
            return self._lmdb.begin(write=write, buffers=True)
        except lmdb.ReadersFullError:  # perhaps by readers that are dead
            self._lmdb.reader_check()
            return self._lmdb.begin(write=write, buffers=True)

    def _within(self, view: Any) -> bool:
        """Return whether bytes of the map lie in the file, or in pages that a transaction has not written yet."""
        start = int(np.frombuffer(view, np.uint8).ctypes.data) - self._base
        inside = 0 <= start < MAP_SIZE
        return not self._base or not inside or start + len(view) <= self.data.stat().st_size

    def _commit(self, txn: Transaction) -> None:
        # This transaction's own sync covers all that the file was when it began.
        mark = Watermark(self.data.stat().st_size, int(txn.lmdb.id()))
        try:
            txn.lmdb.commit()
        except lmdb.MapFullError:
            raise
        except lmdb.Error:
            self._broken = True
            raise
        if txn.changed:  # else LMDB has not used its number, and another process may be about to
            self._noted = mark
            write_watermark(self.path, mark)
        if time.monotonic() - self._checked_at > READER_CHECK_S:
            self._checked_at = time.monotonic()
            self._lmdb.reader_check()

    def _mend(self) -> None:
        if not self.gate.close(PATIENCE_S):
            what = f"{self.path}: the index has to be opened again, and a thread of this process reads it still"
            raise ReplayError(what, path=self.path, hint="Try again, or wait for what reads it; perhaps a backup.")
        try:
            if self._broken:
                self._let_go()
                self._open()
                self._broken = False
        finally:
            self.gate.open()

    def _open(self) -> None:
        if self._identity is not None:
            self.require_in_place()
        if not self.writable:
            self._require_readers_table()
        with translated(self.path):
            self._lmdb = lmdb.open(
                str(self.path),
                map_size=MAP_SIZE,
                max_dbs=len(layout.DATABASES) + 2,
                max_readers=MAX_READERS,
                max_spare_txns=0,
                readahead=False,
                readonly=not self.writable,
                create=self.writable,
                sync=self.synced,
                metasync=self.synced,
                lib_version=0,
            )
            try:
                self._lmdb.reader_check()
                self._reach()
                self._base = _mapped_at(self.data)
                self._identity = identity(self.data)
                # In one transaction where that is possible; handles opened in a reading one would end with it.
                with self._lmdb.begin(write=True) if self.writable else contextlib.nullcontext() as txn:
                    self._databases = {
                        name: self._lmdb.open_db(name.encode(), txn=txn, create=self.writable)
                        for name in layout.DATABASES
                    }
            except BaseException:
                self._let_go()
                raise

    def _let_go(self) -> None:
        handle, self._lmdb = self._lmdb, None
        if handle is not None:
            handle.close()

    def _require_readers_table(self) -> None:
        """Make sure that writers will see which state we look at; on a read-only file system there are none."""
        table = self.path / "lock.mdb"
        if not os.access(table, os.W_OK) and not os.statvfs(self.path).f_flag & os.ST_RDONLY:
            raise ReadOnlyError(
                f"{table}: no permission to write: readers note in it which state they look at",
                path=table,
                hint="Allow it (`chmod a+w`); no step, priority or commit can be changed through it.",
            )

    def _check_length(self, *, checked: bool) -> None:
        if not self.data.is_file() or self.data.stat().st_size < SMALLEST:
            # LMDB would silently make a new, empty database of it.
            raise CorruptStoreError(f"{self.data}: the index is missing or cut off", path=self.path)
        if checked:
            self._noted = read_watermark(self.path)  # before the length, which others may be adding to
        length = self.data.stat().st_size
        if length < self._noted.length:
            raise CorruptStoreError(
                f"{self.data}: the index is cut off: {length} bytes, at least {self._noted.length} were committed",
                path=self.path,
            )

    def _check_newest(self) -> None:
        if int(self._lmdb.info()["last_txnid"]) < self._noted.transaction:
            self._let_go()
            raise CorruptStoreError(
                f"{self.data}: the index is not the newest that was committed: its last transaction is lost",
                path=self.path,
            )

    def _reach(self) -> None:
        """Have the file reach as far as its meta page says."""

        def needed() -> int:
            pages = int(self._lmdb.info()["last_pgno"]) + 1
            return pages * int(self._lmdb.stat()["psize"]) + SLACK

        length = self.data.stat().st_size
        if length >= needed():
            return
        if needed() > min(MAP_SIZE, 2 * length + MOST_AHEAD):
            what = f"{self.data}: the index claims {needed()} bytes, it has {length}"
            raise CorruptStoreError(what, path=self.path)
        if not self.writable:
            trouble = probe(self.path)
            if trouble:
                raise CorruptStoreError(f"{self.data}: the index is cut off: {trouble}", path=self.path)
            return
        with self._lmdb.begin(write=True):  # while we hold the write lock nobody makes it longer
            if self.data.stat().st_size < needed():
                os.truncate(self.data, needed())


def identity(data: Path) -> tuple[int, int]:
    """Return what tells a file from every other, whatever its path: device and inode."""
    status = data.stat()
    return status.st_dev, status.st_ino


def _mapped_at(data: Path) -> int:
    """Return the address at which a file is mapped; 0 if that cannot be told."""
    inode = str(data.stat().st_ino)
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            parts = line.split(maxsplit=5)
            if parts[4] == inode and parts[5] == str(data.resolve()):
                return int(parts[0].partition("-")[0], 16)
    return 0
