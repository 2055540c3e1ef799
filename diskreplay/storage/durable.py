"""The one seam to the disk: everything the engine writes to a file goes through `Disk`.

Owns fsync and atomic replacement. LMDB writes past it, by its own protocol. A failed fsync is never retried: the
attempt's temporary files are removed and the error raised, because a second fsync of the same file may succeed
although the data are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from zarr.storage import LocalStore

from diskreplay.errors import ReadOnlyError, ReplayError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.core.buffer import Buffer

PARTIAL = ".partial"
SYNCING = 8  # threads
_libc = ctypes.CDLL(None, use_errno=True)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE})
Durability = Literal["power", "process"]
DURABILITIES: tuple[Durability, ...] = ("power", "process")


class FileRecord(NamedTuple):
    """What the catalogue keeps of a file, to recognise it by."""

    length: int
    crc32: int


def disk_error(err: OSError, path: str | os.PathLike[str]) -> ReplayError:
    """Return the error of our own tree that an OSError at `path` amounts to."""
    if err.errno in FULL:
        return StoreFullError(f"{path}: {err.strerror}; the steps are not committed", path=path)
    if err.errno in TOO_MANY:
        return ReplayError(
            f"{path}: {err.strerror}",
            path=path,
            hint="Raise the limit (`ulimit -n`), draw fewer batches ahead (prefetch) or close files; then go on.",
        )
    if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyError(f"{path}: {err.strerror}", path=path, hint="Make the store writable, then go on.")
    return ReplayError(f"{path}: {err.strerror or err}", path=path)


@dataclass
class Staged:
    """A file written under a temporary name; leaving the context closes it, and removes it if it is still there."""

    path: Path
    partial: Path
    fd: int
    record: FileRecord
    placed: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and remove what was not settled."""
        with contextlib.suppress(OSError):
            os.close(self.fd)
        if not self.placed:
            with contextlib.suppress(OSError):
                self.partial.unlink()


class Disk:
    """Write, sync and remove files; tests replace it to count, fail or drop calls.

    Args:
        durability: "power": what is written survives a power cut once the call returns. "process": it survives the
            end of this process, however violent; nothing is synced.
    """

    def __init__(self, durability: Durability = "power") -> None:
        self.durability = durability

    def sync(self, fd: int) -> None:
        """Make an open file or directory durable, as far as was asked for."""
        if self.durability == "power":
            os.fsync(fd)

    def write_file(self, path: Path, data: Any) -> FileRecord:
        """Replace `path` atomically by `data`, durable but for the directory entry.

        Raises:
            StoreFullError: If the disk or a quota is full.
            ReplayError: On any other failed call; `path` is then what it was before.
        """
        with self.stage(path, data) as staged:
            self.settle([staged])
        return staged.record

    def stage(self, path: Path, data: Any) -> Staged:
        """Write what is to replace `path` beside it; `settle` puts it there. A context manager: see `Staged`.

        Raises:
            StoreFullError: If the disk or a quota is full.
            ReplayError: On any other failed call.
        """
        view = memoryview(data).cast("B")
        # One name, so that what a crash leaves is replaced by the next attempt; only one process at a time writes a
        # file: a shard belongs to a stream's writer, an array's zarr.json to the holder of the layout lock.
        partial = path.with_name(path.name + PARTIAL)
        try:
            partial.unlink(missing_ok=True)  # and not truncated: it could be a link to something else
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as err:
            raise disk_error(err, path) from err
        staged = Staged(path, partial, fd, FileRecord(len(view), zlib.crc32(view)))
        try:
            written = 0
            while written < len(view):
                written += os.write(fd, view[written:])
        except BaseException as err:
            staged.close()
            if isinstance(err, OSError):
                raise disk_error(err, path) from err
            raise
        return staged

    def settle(self, staged: Sequence[Staged]) -> None:
        """Sync staged files side by side, then rename each into place; durable but for the directory entries.

        Side by side, because syncs that are on their way together share the disk's flush: 14 one after the other
        took 75 ms where these took 12.

        Raises:
            StoreFullError: If the disk or a quota is full.
            ReplayError: On any other failed call; some files may be in place.
        """
        self._sync_all([(item.fd, item.path) for item in staged])
        for item in staged:
            try:
                item.partial.rename(item.path)
            except OSError as err:
                raise disk_error(err, item.path) from err
            item.placed = True

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        self.sync_directories([path])

    def sync_directories(self, paths: Sequence[Path]) -> None:
        """Make the names in directories durable, side by side."""
        with contextlib.ExitStack() as stack:
            fds = []
            for path in paths:
                try:
                    fds.append((os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path))
                except OSError as err:
                    raise disk_error(err, path) from err
                stack.callback(os.close, fds[-1][0])
            self._sync_all(fds)

    def _sync_all(self, files: Sequence[tuple[int, Path]]) -> None:
        """Sync open files or directories, each once, in a few threads; raise what failed first."""
        waiting, failed = deque(files), list[BaseException]()

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not failed:
                    fd, path = waiting.popleft()
                    try:
                        self.sync(fd)
                    except OSError as err:
                        failed.append(disk_error(err, path))
                    except BaseException as err:  # noqa: BLE001  raised below, once no thread uses the files any more
                        failed.append(err)

        failed += _side_by_side(work, min(SYNCING, len(files)) if self.durability == "power" else 1)
        if failed:
            raise failed[0]

    def sync_everything(self, path: Path) -> None:
        """Make all that was ever written to the file system of this folder durable, whatever the durability.

        Raises:
            ReplayError: If something could not be written.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _libc.syncfs(fd):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
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

    def move(self, path: Path, to: Path) -> None:
        """Give a file another name on the same file system; neither folder is synced."""
        try:
            path.rename(to)
        except OSError as err:
            raise disk_error(err, path) from err


def _side_by_side(work: Callable[[], None], threads: int) -> list[BaseException]:
    """Do `work`, which raises nothing, in so many threads, this one included; return what came up while waiting."""
    helpers = [threading.Thread(target=work, name="diskreplay-sync") for _ in range(threads - 1)]
    interrupts = []
    with contextlib.suppress(RuntimeError):  # no more threads are to be had, or the interpreter is shutting down
        for helper in helpers:
            helper.start()
    work()
    for helper in helpers:
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as err:  # noqa: BLE001  the caller closes files that the others may still use
                interrupts.append(err)
    return interrupts


class DurableStore(LocalStore):
    """A zarr store on the local disk that syncs what it writes.

    zarr's own LocalStore renames but never syncs: after a power cut none of its chunks need be there.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, disk: Disk | None = None) -> None:
        super().__init__(root, read_only=read_only)
        self.disk = disk or Disk()

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, read-only or not."""
        return type(self)(self.root, read_only=read_only, disk=self.disk)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one key durably; its directory is synced too."""
        self._check_writable()
        path = Path(self.root) / key
        self.disk.make_directory(path.parent)
        self.disk.write_file(path, value.as_buffer_like())
        self.disk.sync_directory(path.parent)

    async def set(self, key: str, value: Buffer) -> None:
        """Write one key durably."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one key durably unless it is there."""
        if not (Path(self.root) / key).exists():
            await self.set(key, value)
