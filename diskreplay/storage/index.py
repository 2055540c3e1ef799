"""The LMDB index: the only truth about what is committed. A handle to it; transactions.py is what one does with it.

No user code, no file writing inside a write transaction. environment.py is what is behind it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from diskreplay.errors import ReplayError
from diskreplay.storage import digest, layout, sharing
from diskreplay.storage.durable import disk_error
from diskreplay.storage.transactions import Reading, Writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diskreplay.storage.environment import Environment


class Index:
    """A handle to a store's LMDB environment.

    Args:
        path: The index's folder.
        create: Whether it is to be made.
        synced: Whether a commit survives a power cut; the end of the process it always survives.
        checked: Whether an index that holds less than is noted of it is refused; `repair` takes what is left.

    Raises:
        CorruptStoreError: If the index is missing, cut off or no LMDB file.
        FormatVersionError: If it was written by another LMDB format.
    """

    def __init__(self, path: Path, *, create: bool = False, synced: bool = True, checked: bool = True) -> None:
        self.path = path
        if create:
            try:
                path.mkdir()
            except OSError as err:
                raise disk_error(err, path) from err
        self._pid = os.getpid()
        self._created = create
        self._environment: Environment | None = None
        self._key, self._environment = sharing.enter(path, create=create, synced=synced, checked=checked)

    def close(self, *, wait: bool = True) -> None:
        """Close the handle; in a forked child there is nothing to close.

        Args:
            wait: False in finalisers, see `sharing.leave`.
        """
        shared, self._environment = self._environment, None
        if shared is not None and self._pid == os.getpid():
            sharing.leave(self._key, shared, wait=wait)

    @property
    def writable(self) -> bool:
        """Return whether this process may write the index's files."""
        return self._use().writable

    def require_in_place(self) -> None:
        """Make sure that what is written beside the index goes into the same store; raise ReplayError if not."""
        self._use().require_in_place()

    @contextlib.contextmanager
    def read(self) -> Iterator[Reading]:
        """Look at one consistent state of the index."""
        with self._use().transaction(write=False) as txn:
            yield Reading(txn)

    @contextlib.contextmanager
    def write(self) -> Iterator[Writing]:
        """Change the index; all of it, durably, or nothing."""
        with self._use().transaction(write=True) as txn:
            writing = Writing(txn)
            if self._created and not writing.has(layout.DIGEST, digest.KEY):
                writing.renew_digest()
            yield writing
            writing.finish()

    def copy(self, path: Path) -> None:
        """Write a compact copy of the index, of one moment, into an empty folder."""
        self._use().copy(path)

    def _use(self) -> Environment:
        if self._environment is None:
            raise ReplayError(f"{self.path}: the store is closed", hint="Open it again.")
        if self._pid != os.getpid():
            raise ReplayError(
                f"{self.path}: the store was opened before a fork and cannot be used in the child",
                hint="Open the store again in the child process.",
            )
        return self._environment
