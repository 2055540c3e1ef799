"""What LMDB's errors amount to in our own tree."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING

import lmdb

from diskreplay.errors import (
    CorruptStoreError,
    FormatVersionError,
    ReadOnlyError,
    ReplayError,
    StoreFullError,
    StoreLockedError,
)
from diskreplay.storage.durable import FULL, TOO_MANY, disk_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOM = 1 << 20
MAGIC, MAGIC_AT = 0xBEEFC0DE, (16, 24)  # where a meta page says that it is one: LMDB 0.9, 1.0

_MEANINGS: tuple[tuple[tuple[type[Exception], ...], type[ReplayError], str], ...] = (
    ((lmdb.MapFullError,), StoreFullError, "the index is full"),
    ((lmdb.DiskError,), StoreFullError, "the disk is full"),
    ((lmdb.VersionMismatchError, lmdb.InvalidError), CorruptStoreError, "the index's first pages are damaged: {}"),
    ((lmdb.CorruptedError, lmdb.PageNotFoundError), CorruptStoreError, "the index is damaged: {}"),
    ((lmdb.NotFoundError,), CorruptStoreError, "the index lacks a table: {}"),
    ((lmdb.ReadersFullError, lmdb.LockError), StoreLockedError, "the index is locked: {}"),
    ((lmdb.ReadonlyError,), ReadOnlyError, "{}"),
)

_HINTS = (
    (
        "already open",
        "a thread of the parent process was using the index when this process was forked",
        "Start the process with spawn or forkserver, or fork while no backup or verification runs.",
    ),
    (
        os.strerror(errno.ENOMEM),
        "there is no room among this process's addresses for the index",
        "It takes 1 TiB of addresses, and hardly any memory: raise the limit (`ulimit -v unlimited`).",
    ),
)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn LMDB's errors into those of our own tree."""
    try:
        yield
    except OSError as err:
        raise disk_error(err, path) from err
    except lmdb.Error as err:
        raise _meaning(err, path) from err


def _is_another_version(data: Path) -> bool:
    """Return whether both meta pages are those of another version of LMDB, rather than damaged."""
    with contextlib.suppress(OSError, struct.error), data.open("rb") as file:
        content = file.read(mmap.PAGESIZE + 64)
        for at in MAGIC_AT:
            one, two = (struct.unpack_from("<II", content, page + at) for page in (0, mmap.PAGESIZE))
            if one == two and one[0] == MAGIC:
                return True
    return False


def _meaning(err: Exception, path: Path) -> ReplayError:
    if isinstance(err, (lmdb.VersionMismatchError, lmdb.InvalidError)) and _is_another_version(path / "data.mdb"):
        return FormatVersionError(f"{path}: the index is of another version of LMDB: {err}", path=path)
    for kinds, ours, text in _MEANINGS:
        if isinstance(err, kinds):
            return ours(f"{path}: {text.format(err)}", path=path)
    for number in FULL | TOO_MANY:
        if os.strerror(number) in str(err):
            return disk_error(OSError(number, os.strerror(number)), path)
    for said, text, hint in _HINTS:
        if said in str(err):
            return ReplayError(f"{path}: {text}", path=path, hint=hint)
    with contextlib.suppress(OSError):
        room = os.statvfs(path)
        if room.f_bavail * room.f_frsize < ROOM:
            return StoreFullError(f"{path}: the disk is full", path=path)
    return ReplayError(f"{path}: {err}", path=path)
