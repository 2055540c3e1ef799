"""LMDB environments: one a process and store, shared by every handle, at rest while the process forks.

Owns the settings (the 0.9 engine, full sync unless the store's durability is "process", no writemap as it dies on a
full disk, no read-ahead), the translation of errors, and what LMDB does not do for us:

- It must not be opened twice in one process: handles share an environment, found by the file's device and inode.
- What a child inherits, it can only close safely if no thread was inside: a fork waits until all are out, so the
  child closes its copy and may open the store again by itself. Where that takes too long (a backup under way, a
  fork inside a transaction) the child's copy is never touched, and a new open says why it cannot be.
- Past the end of its file a memory map is SIGBUS: the file is made as long as its meta page says. That it was cut
  off, or that LMDB fell back to its older meta page, is known from a note beside it (watermark.py).
- A failed commit can leave it refusing everything: the environment is opened anew before it is used again.
- A reader that died keeps pages from being used again: readers are checked at open and by committers, every 30 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lmdb

from diskreplay.errors import (
    CorruptStoreError,
    FormatVersionError,
    ReadOnlyError,
    ReplayError,
    StoreFullError,
    StoreLockedError,
)
from diskreplay.storage import layout
from diskreplay.storage.filesystem import check_filesystem
from diskreplay.storage.watermark import Watermark, read_watermark, write_watermark

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAP_SIZE = 1 << 40
MAX_READERS = 1024
SMALLEST = 8192
ROOM = 1 << 20
FORK_PATIENCE_S = 5.0
READER_CHECK_S = 30.0
_WALK = """
import sys, lmdb
env = lmdb.open(sys.argv[1], map_size=1 << 40, max_dbs=32, readonly=True, lock=False, lib_version=0)
with env.begin() as txn:
    for name, _ in txn.cursor():
        for key, value in txn.cursor(db=env.open_db(name, txn=txn, create=False)):
            len(key), sum(value[::4096])
"""


class Gate:
    """Let any number of threads in, as deep as they like; or close, once all are out."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False
        self._local = threading.local()

    @property
    def depth(self) -> int:
        """Return how deep this thread is inside."""
        return getattr(self._local, "depth", 0)

    def __enter__(self) -> None:
        depth = self.depth
        if not depth:
            with self._condition:
                while self._closed:
                    self._condition.wait()
                self._inside += 1
        self._local.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._local.depth = depth = self.depth - 1
        if not depth:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def close(self, patience: float) -> bool:
        """Wait until nobody is inside, and let nobody in; return whether that came true in time."""
        if self.depth:
            return False
        with self._condition:
            if not self._condition.wait_for(lambda: not self._closed, patience):
                return False
            self._closed = True
            if self._condition.wait_for(lambda: not self._inside, patience):
                return True
            self._closed = False
            self._condition.notify_all()
            return False

    def open(self) -> None:
        """Let threads in again."""
        with self._condition:
            self._closed = False
            self._condition.notify_all()


@dataclass
class Transaction:
    """An LMDB transaction, the databases, and whether it changes anything."""

    lmdb: Any
    databases: dict[str, Any]
    changed: bool = False


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
        self._checked_at = time.monotonic()
        check_filesystem(path)
        if not create:
            self._check_length(checked=checked)
        self._open()
        if int(self._lmdb.info()["last_txnid"]) < self._noted.transaction:
            self.close()
            raise CorruptStoreError(
                f"{self.data}: the index is not the newest that was committed: its last transaction is lost", path=path
            )

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """Yield a transaction; commit it at the end if it writes.

        If committing fails, whether it counts can be unclear: what is written must be such that it can be written
        again.
        """
        if self._broken:
            self._mend()
        with self.gate, translated(self.path):
            txn = Transaction(self._lmdb.begin(write=write), self._databases)
            try:
                yield txn
            except BaseException:
                txn.lmdb.abort()
                raise
            if write:
                self._commit(txn)
            else:
                txn.lmdb.abort()

    def copy(self, path: Path) -> None:
        """Write a compact copy of the index, of one moment, into an empty folder."""
        if self._broken:
            self._mend()
        with self.gate, translated(self.path):
            self._lmdb.copy(str(path), compact=True)

    def close(self) -> None:
        """Close it; nobody may be inside."""
        handle, self._lmdb = self._lmdb, None
        if handle is not None:
            handle.close()

    def keep(self) -> None:
        """Make sure that it is never closed: in a child whose parent's threads were inside."""
        if self._lmdb is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._lmdb))

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
        if not self.gate.close(FORK_PATIENCE_S):
            raise ReplayError(f"{self.path}: a commit failed, and the index cannot be opened again yet", path=self.path)
        try:
            if self._broken:
                self.close()
                self._open()
                self._broken = False
        finally:
            self.gate.open()

    def _open(self) -> None:
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
                # In one transaction where that is possible; handles opened in a reading one would end with it.
                with self._lmdb.begin(write=True) if self.writable else contextlib.nullcontext() as txn:
                    self._databases = {
                        name: self._lmdb.open_db(name.encode(), txn=txn, create=self.writable)
                        for name in layout.DATABASES
                    }
            except BaseException:
                self.close()
                raise

    def _check_length(self, *, checked: bool) -> None:
        if not self.data.is_file() or self.data.stat().st_size < SMALLEST:
            # LMDB would silently make a new, empty database of it.
            raise CorruptStoreError(f"{self.data}: the index is missing or cut off", path=self.path)
        length = self.data.stat().st_size
        if checked:
            self._noted = read_watermark(self.path)
        if length < self._noted.length:
            raise CorruptStoreError(
                f"{self.data}: the index is cut off: {length} bytes, at least {self._noted.length} were committed",
                path=self.path,
            )

    def _reach(self) -> None:
        """Have the file reach as far as its meta page says."""

        def needed() -> int:
            pages = int(self._lmdb.info()["last_pgno"]) + 1
            return pages * int(self._lmdb.stat()["psize"])

        if self.data.stat().st_size >= needed():
            return
        if needed() > MAP_SIZE:
            raise CorruptStoreError(f"{self.data}: the index claims {needed()} bytes", path=self.path)
        if not self.writable:
            walk = subprocess.run(  # noqa: S603  our own interpreter; what may crash there must not crash us
                [sys.executable, "-c", _WALK, str(self.path)], check=False, capture_output=True
            )
            if walk.returncode:
                raise CorruptStoreError(f"{self.data}: the index is cut off", path=self.path)
            return
        with self._lmdb.begin(write=True):  # while we hold the write lock nobody makes it longer
            if self.data.stat().st_size < needed():
                os.truncate(self.data, needed())


_registry: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.Lock()
_to_leave: list[tuple[tuple[int, int], Environment]] = []
_closed_for_fork: list[Environment] = []


def enter(path: Path, *, create: bool, synced: bool, checked: bool = True) -> tuple[tuple[int, int], Environment]:
    """Return the process's environment of an index, and the key to give it back by."""
    data = path / "data.mdb"
    with _registry_lock:
        while _to_leave:
            _leave(*_to_leave.pop())
        if data.exists():
            status = data.stat()
            known = _registry.get((status.st_dev, status.st_ino))
            if known is not None:
                known.handles += 1
                return (status.st_dev, status.st_ino), known
        environment = Environment(path, create=create, synced=synced, checked=checked)
        status = data.stat()
        key = (status.st_dev, status.st_ino)
        _registry[key] = environment
        return key, environment


def leave(key: tuple[int, int], environment: Environment, *, wait: bool) -> None:
    """Give an environment back; it closes with its last handle.

    Args:
        key: What `enter` returned.
        environment: Likewise.
        wait: Take part in the registry's lock. False in finalisers: the garbage collector may run them in the very
            thread that holds it; whoever comes next then does it.
    """
    if not _registry_lock.acquire(blocking=wait):
        _to_leave.append((key, environment))
        return
    try:
        _leave(key, environment)
    finally:
        _registry_lock.release()


def _leave(key: tuple[int, int], environment: Environment) -> None:
    environment.handles -= 1
    if not environment.handles:
        _registry.pop(key, None)
        environment.close()


def _before_fork() -> None:
    _registry_lock.acquire()
    until = time.monotonic() + FORK_PATIENCE_S
    _closed_for_fork[:] = [
        environment for environment in _registry.values() if environment.gate.close(max(0.0, until - time.monotonic()))
    ]


def _after_fork_in_parent() -> None:
    for environment in _closed_for_fork:
        environment.gate.open()
    _closed_for_fork.clear()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for environment in _registry.values():
        if environment in _closed_for_fork:
            environment.close()
        else:
            environment.keep()
    _closed_for_fork.clear()
    _to_leave.clear()
    _registry.clear()
    _registry_lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn LMDB's errors into those of our own tree."""
    try:
        yield
    except lmdb.MapFullError as err:
        raise StoreFullError(f"{path}: the index is full", path=path) from err
    except (lmdb.VersionMismatchError, lmdb.InvalidError) as err:
        raise FormatVersionError(f"{path}: no LMDB 0.9 index: {err}", path=path) from err
    except (lmdb.CorruptedError, lmdb.PageNotFoundError) as err:
        raise CorruptStoreError(f"{path}: the index is damaged: {err}", path=path) from err
    except (lmdb.ReadersFullError, lmdb.LockError) as err:
        raise StoreLockedError(f"{path}: the index is locked: {err}", path=path) from err
    except lmdb.NotFoundError as err:
        raise CorruptStoreError(f"{path}: the index lacks a table: {err}", path=path) from err
    except lmdb.ReadonlyError as err:
        raise ReadOnlyError(f"{path}: {err}", path=path) from err
    except lmdb.Error as err:
        if "already open" in str(err):
            raise ReplayError(
                f"{path}: a thread of the parent process was using the index when this process was forked",
                path=path,
                hint="Start the process with spawn or forkserver, or fork while no backup or verification runs.",
            ) from err
        with contextlib.suppress(OSError):
            room = os.statvfs(path)
            if room.f_bavail * room.f_frsize < ROOM:
                raise StoreFullError(f"{path}: the disk is full", path=path) from err
        raise ReplayError(f"{path}: {err}", path=path) from err
