"""Advisory locks on a store's files: who writes a stream, who owns a sampler, who has the store open.

flock(2) on files of their own, which are never removed: removing one would let two processes lock two files of one
name. A lock dies with its process, and with nothing else: forked children close their copy at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import socket
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from diskreplay.errors import StoreLockedError
from diskreplay.storage import layout
from diskreplay.storage.durable import disk_error
from diskreplay.storage.regular import open_regular, require_own

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()
_opening = threading.RLock()  # a signal handler may come in the midst of it, and take a lock, too


def _let_go_in_child() -> None:
    # A lock lives as long as any copy of its file descriptor; a child must not keep its parent's.
    _opening.release()
    for lock in list(_held):
        lock.let_go()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_let_go_in_child)


@dataclass(eq=False)
class FileLock:
    """A lock that says who holds it.

    An exclusive holder writes who it is into the file; of shared holders /proc/locks tells the processes. A lock that
    nobody refers to any more is given back: an interrupt (Ctrl-C) may come before `release` has done anything. It may
    come in `__del__`, too, so the file is a FileIO, which closes itself.
    """

    path: Path
    what: str
    _file: io.FileIO | None = None

    def acquire(self, *, wait: bool = False, shared: bool = False) -> FileLock:
        """Take the lock.

        Raises:
            StoreLockedError: If another holder is in the way; the message names who.
        """
        with _opening:  # no fork in between: the child would keep a file that it does not know of
            fd = self._open(shared=shared)
            self._file = io.FileIO(fd)
            _held.add(self)
        try:
            self._lock(fd, wait=wait, shared=shared)
            self._sign(fd, shared=shared)
        except BaseException as err:  # an interrupt, too: a lock that nobody knows of would be waited for for ever
            who = self._holder(fd) if isinstance(err, OSError) else ""
            self.release()
            if not isinstance(err, OSError):
                raise
            if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise disk_error(err, self.path) from err
            raise StoreLockedError(f"{self.what} is held by {who}", path=self.path) from err
        return self

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._file is not None:
            # Unlocked and not only closed: a child that was just forked may still have a copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self.let_go()

    def let_go(self) -> None:
        """Close this process's copy of the lock, and no more."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            file.close()

    def __del__(self) -> None:
        self.release()  # in a forked child nothing is held any more

    def __enter__(self) -> Self:
        if self._file is None:
            self.acquire(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _open(self, *, shared: bool) -> int:
        try:
            require_own([self.path.parent], folders=True)
            self.path.parent.mkdir(exist_ok=True)
            return open_regular(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as err:
            if not shared or err.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise disk_error(err, self.path) from err
        try:  # flock needs no more than an open file: a reader may have no permission to write
            return open_regular(self.path)
        except OSError as err:
            raise disk_error(err, self.path) from err

    def _lock(self, fd: int, *, wait: bool, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))

    def _sign(self, fd: int, *, shared: bool) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # the text is for people; on a full disk there is none
            if os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            if not shared:
                os.pwrite(fd, json.dumps(holder).encode(), 0)

    def _holder(self, fd: int) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            holder = layout.loads(os.pread(fd, 4096, 0))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        with contextlib.suppress(OSError):
            inode = f":{os.fstat(fd).st_ino} "
            lines = Path("/proc/locks").read_text().splitlines()
            found = sorted(
                {int(line.split()[4]) for line in lines if inode in line and " FLOCK " in line and "->" not in line}
            )
            if found:
                return "process " + ", ".join(str(pid) for pid in found)
        return "another process"
