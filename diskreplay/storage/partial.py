"""A folder that is made under a temporary name beside its own, and put there when it is whole.

What a process leaves that is killed meanwhile, the next that makes a folder of that name removes. A lock in it tells
the living from the dead; it gets its name only once it is held, so that one which is not held is a dead process's.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
import uuid
from typing import TYPE_CHECKING

from diskreplay.errors import ReplayError, StoreExistsError
from diskreplay.storage import layout
from diskreplay.storage.durable import PARTIAL, Disk, disk_error
from diskreplay.storage.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNLOCKED_S = 60.0  # between a folder's making and its locking
NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextlib.contextmanager
def partial_folder(path: Path, disk: Disk) -> Iterator[Path]:
    """Yield a new folder, which becomes `path`, durably, when the context is left; if by an error, it is removed.

    Whoever fills it syncs what is in it.

    Raises:
        StoreExistsError: If there is something at `path` by then.
    """
    _remove_dead(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    unnamed = partial / (layout.LOCKS + PARTIAL)
    lock = _lock_at(unnamed / _lock_file(partial).name)
    try:
        disk.make_directory(partial)
        disk.make_directory(unnamed)
        _acquire(lock)
        disk.move(unnamed, partial / layout.LOCKS)
        yield partial
        _put(partial, path)
        disk.sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise
    finally:
        lock.release()


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(shared=True)  # the store's own: who opens it as soon as it is there finds it in use, not held
    except ReplayError as err:
        # A backup may lie where there are no locks; there nobody gets one to remove it, either.
        if not isinstance(err.__cause__, OSError) or err.__cause__.errno not in NO_FLOCK:
            raise


def _put(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError as err:
        if not path.exists():
            raise disk_error(err, path) from err
        raise StoreExistsError(f"{path}: exists already", path=path) from err


def _lock_file(folder: Path) -> Path:
    return layout.lock_path(folder, "store")


def _lock_at(file: Path) -> FileLock:
    return FileLock(file, f"{file}: a store that is being made")


def _remove_dead(path: Path) -> None:
    """Remove what processes left that died while they made a folder of this name."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
    with contextlib.suppress(OSError):
        for folder in [folder for folder in path.parent.iterdir() if ours.fullmatch(folder.name)]:
            with contextlib.suppress(OSError, ReplayError):
                if _lock_file(folder).exists():
                    with _lock_at(_lock_file(folder)).acquire():
                        shutil.rmtree(folder)
                elif time.time() - folder.stat().st_mtime > UNLOCKED_S:
                    shutil.rmtree(folder)
