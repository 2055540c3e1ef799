"""A folder that is made under a temporary name beside its own, and put there when it is whole.

What a process leaves that is killed meanwhile, the next that makes a folder of that name removes. A lock in it tells
the living from the dead.
"""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def partial_folder(path: Path, disk: Disk) -> Iterator[Path]:
    """Yield a new folder, which becomes `path`, durably, when the context is left; if by an error, it is removed.

    Whoever fills it syncs what is in it.

    Raises:
        StoreExistsError: If there is something at `path` by then.
    """
    _remove_dead(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    lock = _lock_of(partial)
    try:
        disk.make_directory(partial)
        disk.make_directory(partial / layout.LOCKS)
        lock.acquire(shared=True)
        yield partial
        _put(partial, path)
        disk.sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise
    finally:
        lock.release()


def _put(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError as err:
        if not path.exists():
            raise disk_error(err, path) from err
        raise StoreExistsError(f"{path}: exists already", path=path) from err


def _lock_of(folder: Path) -> FileLock:
    # The store's own: who opens it as soon as it is there finds it in use, not held.
    return FileLock(layout.lock_path(folder, "store"), f"{folder}: a store that is being made")


def _remove_dead(path: Path) -> None:
    """Remove what processes left that died while they made a folder of this name."""
    for folder in path.parent.glob(f".{_quoted(path.name)}.????????{PARTIAL}"):
        with contextlib.suppress(OSError, ReplayError):
            lock = _lock_of(folder)
            if lock.path.exists():
                with lock.acquire():
                    shutil.rmtree(folder)
            elif time.time() - folder.stat().st_mtime > UNLOCKED_S:
                shutil.rmtree(folder)


def _quoted(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
