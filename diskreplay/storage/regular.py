"""Files and folders of a store are its own: no link is followed out of it, no pipe waited for.

A store may come from elsewhere. A link in it would have a reader truncate, or a writer remove, what it leads to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from diskreplay.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MOST_DOCUMENT_BYTES = 16 << 20
_HINT = "Nothing in a store may be a link, a pipe or a device: put what it stands for in its place."


def open_regular(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file, made if `flags` say so.

    Raises:
        CorruptStoreError: If it is something else.
        OSError: As `os.open`.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as err:
        if err.errno in (errno.ELOOP, errno.ENXIO):
            raise CorruptStoreError(f"{path}: no regular file", path=path, hint=_HINT) from err
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CorruptStoreError(f"{path}: no regular file", path=path, hint=_HINT)
    return fd


def read_regular(path: Path, most: int = -1) -> bytes:
    """Return what a regular file holds, its first `most` bytes if that is given.

    Raises:
        CorruptStoreError: If it is something else.
        OSError: If it cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(most)


def read_zarr_json(path: Path) -> bytes:
    """Return what a zarr.json holds: few bytes, whatever its length claims.

    Raises:
        CorruptStoreError: If it is no regular file, or far too long.
        OSError: If it cannot be read.
    """
    content = read_regular(path, MOST_DOCUMENT_BYTES + 1)
    if len(content) > MOST_DOCUMENT_BYTES:
        raise CorruptStoreError(f"{path}: far too long for a zarr.json", path=path)
    return content


def require_own(paths: Iterable[Path], *, folders: bool = False) -> None:
    """Make sure that what is at these paths, if anything, are regular files, or folders.

    Raises:
        CorruptStoreError: If something is neither what was asked for nor missing.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) if folders else stat.S_ISREG(mode)):
                raise CorruptStoreError(f"{path}: no {'folder' if folders else 'regular file'}", path=path, hint=_HINT)
