"""The one seam to the disk: everything the engine writes to a file goes through `Disk`.

Owns fsync, atomic replacement and advisory locks. LMDB writes past it, by its own protocol. A failed fsync is
never retried: the attempt's temporary file is removed and the error raised, because a second fsync of the same
file may succeed although the data are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from zarr.storage import LocalStore

from diskreplay.errors import ReplayError, StoreFullError, StoreLockedError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

PARTIAL = ".partial"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FileRecord(NamedTuple):
    """What the catalogue keeps of a file, to recognise it by."""

    length: int
    crc32: int


def disk_error(err: OSError, path: str | os.PathLike[str]) -> ReplayError:
    """Return the error of our own tree that an OSError at `path` amounts to."""
    if err.errno in FULL:
        return StoreFullError(f"{path}: {err.strerror}; the steps are not committed", path=path)
    return ReplayError(f"{path}: {err.strerror or err}", path=path)


class Disk:
    """Write, sync and remove files; tests replace it to count, fail or drop calls."""

    def write_file(self, path: Path, data: Any) -> FileRecord:
        """Replace `path` atomically by `data`, durable but for the directory entry.

        Raises:
            StoreFullError: If the disk or a quota is full.
            ReplayError: On any other failed call; `path` is then what it was before.
        """
        view = memoryview(data).cast("B")
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                written = 0
                while written < len(view):
                    written += os.write(fd, view[written:])
                os.fsync(fd)
            finally:
                os.close(fd)
            partial.rename(path)
        except OSError as err:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise disk_error(err, path) from err
        return FileRecord(len(view), zlib.crc32(view))

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise disk_error(err, path) from err

    def make_directory(self, path: Path) -> None:
        """Create a directory, and make its name durable, unless it is there already."""
        if path.is_dir():
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise disk_error(err, path) from err
        self.sync_directory(path.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is fine."""
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise disk_error(err, path) from err


class DurableStore(LocalStore):
    """A zarr store on the local disk that syncs what it writes and remembers it until it is asked.

    zarr's own LocalStore renames but never syncs: after a power cut none of its chunks need be there.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, disk: Disk | None = None) -> None:
        super().__init__(root, read_only=read_only)
        self.disk = disk or Disk()
        self.written: dict[str, tuple[FileRecord, memoryview]] = {}

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, read-only or not."""
        return type(self)(self.root, read_only=read_only, disk=self.disk)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one key durably; its directory is synced too."""
        self._check_writable()
        path = Path(self.root) / key
        self.disk.make_directory(path.parent)
        data = memoryview(value.as_buffer_like()).cast("B")
        self.written[key] = self.disk.write_file(path, data), data
        self.disk.sync_directory(path.parent)

    async def set(self, key: str, value: Buffer) -> None:
        """Write one key durably."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one key durably unless it is there."""
        if not (Path(self.root) / key).exists():
            await self.set(key, value)


_held: set[FileLock] = set()


def _let_go_in_child() -> None:
    # A lock lives as long as any copy of its file descriptor; a child must not keep its parent's.
    for lock in list(_held):
        lock.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(eq=False)
class FileLock:
    """An advisory lock that dies with its process, and says who holds it.

    flock(2) on a file of its own; the file's text names the holder for the error message. The file is never
    removed, since removing it would let two processes lock two files of one name.
    """

    path: Path
    what: str
    _fd: int = -1

    def acquire(self, *, wait: bool = False) -> FileLock:
        """Take the lock.

        Raises:
            StoreLockedError: If another holder has it; the message names that holder.
        """
        self.path.parent.mkdir(exist_ok=True)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as err:
            raise disk_error(err, self.path) from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as err:
            who = "another process"
            with contextlib.suppress(OSError, ValueError, KeyError):
                holder = json.loads(os.pread(fd, 4096, 0))
                who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            os.close(fd)
            raise StoreLockedError(f"{self.what} is held by {who}", path=self.path) from err
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # the text is for people; on a full disk there is none
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        self._fd = fd
        _held.add(self)
        return self

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._fd >= 0:
            # Unlocked and not only closed: a child that was just forked may still have a copy.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.let_go()

    def let_go(self) -> None:
        """Close this process's copy of the lock, and no more."""
        os.close(self._fd)
        self._fd = -1
        _held.discard(self)

    def __enter__(self) -> Self:
        if self._fd < 0:
            self.acquire(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
