"""Do what a plan of repair says: dump records, change or replace the index, set files aside. See repair.py."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.digest import TABLES
from diskreplay.storage.durable import PARTIAL, Disk
from diskreplay.storage.index import Index
from diskreplay.storage.regular import read_zarr_json
from diskreplay.storage.upkeep.damaged import open_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from diskreplay.storage.transactions import Reading, Writing
    from diskreplay.storage.upkeep.meta_pages import MetaPage
    from diskreplay.storage.upkeep.rebuilding import Rebuilt

    Changes = Mapping[tuple[str, bytes], bytes | None]

FRESH = layout.INDEX + PARTIAL
LONGEST_DUMP = 240


def changed_since(root: Path) -> ReplayError:
    """Return the error that says that a plan is not of the store as it is."""
    return ReplayError(f"{root}: the store has changed since the plan was made", path=root, hint="Plan again.")


def change_index(root: Path, changes: Changes, transaction: int, aside: Path, disk: Disk, *, anew: bool) -> None:
    """Dump the records that change, then change them.

    Args:
        root: The store's folder.
        changes: (database, key) -> new payload, or None: to be removed.
        transaction: The state that was planned for.
        aside: Where to dump.
        disk: The seam to the disk.
        anew: Whether the records go into a new index, and the old one aside: the old one cannot be written safely.

    Raises:
        ReplayError: If the index is in another state.
    """
    index, _ = open_index(root / layout.INDEX)
    try:
        with index.read() as txn:
            if txn.txn.id() != transaction:
                raise changed_since(root)
            _dump(txn, changes, aside, root, disk)
            if anew:
                with _fresh_index(root, aside, disk) as fresh, fresh.write() as writing:
                    for database in TABLES:
                        for key, value in txn.raw_items(database):
                            writing.txn.put(key, value, db=writing.databases[database])
                    _change(writing, changes)
        if changes and not anew:
            with index.write() as writing:
                _change(writing, changes)
    finally:
        index.close()
    if anew:
        _put_in_place(root, aside, disk)


def _change(writing: Writing, changes: Changes) -> None:
    for (database, key), payload in changes.items():
        if payload is None:
            writing.delete(database, key)
        else:
            writing.put(database, key, payload)
    writing.renew_digest()


def _dump(txn: Reading, changes: Changes, aside: Path, root: Path, disk: Disk) -> None:
    folders = set()
    for database, key in changes:
        value = txn.raw(database, key)
        if value is not None:
            folder = aside / "index" / database
            make_folders(disk, folder, root)
            name = _dump_name(key)
            disk.write_file(folder / name, bytes(value))
            if name != key.hex():
                disk.write_file(folder / f"{name}.key", key)
            folders.add(folder)
    for folder in folders:
        disk.sync_directory(folder)


def _dump_name(key: bytes) -> str:
    """Return the file name of a record that is set aside; whole keys can be longer than names."""
    name = key.hex()
    return name if len(name) <= LONGEST_DUMP else f"{name[: LONGEST_DUMP - 32]}-{hashlib.sha256(key).hexdigest()[:24]}"


def replace_meta_page(page: MetaPage, root: Path, aside: Path, disk: Disk) -> None:
    """Keep what a page of the index is, and make it anew."""
    folder = aside / layout.INDEX
    make_folders(disk, folder, root)
    disk.write_file(folder / f"page-{page.number}", page.before)
    disk.sync_directory(folder)
    page.write(root / layout.INDEX / "data.mdb", disk)


def replace_index(rebuilt: Rebuilt, root: Path, aside: Path, disk: Disk) -> None:
    """Put a new index of these records in the place of the one that is there, which is set aside."""
    with _fresh_index(root, aside, disk) as index, index.write() as txn:
        for (database, key), payload in rebuilt.records.items():
            txn.put(database, key, payload)
    _put_in_place(root, aside, disk)


@contextlib.contextmanager
def _fresh_index(root: Path, aside: Path, disk: Disk) -> Iterator[Index]:
    fresh = root / FRESH
    if fresh.exists():
        disk.move(fresh, aside / fresh.name)
    index = Index(fresh, create=True)
    try:
        yield index
    finally:
        index.close()
    disk.sync_directory(fresh)


def _put_in_place(root: Path, aside: Path, disk: Disk) -> None:
    if (root / layout.INDEX).exists():
        disk.move(root / layout.INDEX, aside / layout.INDEX)
        disk.sync_directory(aside)
    disk.move(root / FRESH, root / layout.INDEX)
    disk.sync_directory(root)


def keep_copy(root: Path, name: str, aside: Path, disk: Disk) -> None:
    """Keep what a rewritten zarr.json was; one that cannot be read, or is far too long, is moved."""
    if (root / name).is_file() and not (root / name).is_symlink():  # what a link names is not the store's
        make_folders(disk, (aside / name).parent, root)
        try:
            disk.write_file(aside / name, read_zarr_json(root / name))
        except (OSError, CorruptStoreError):
            disk.move(root / name, aside / name)
        disk.sync_directory((aside / name).parent)
    elif os.path.lexists(root / name):
        move([name], root, aside, disk)


def move(names: list[str], root: Path, aside: Path, disk: Disk) -> None:
    """Set files aside, under their own paths."""
    folders = set()
    for name in names:
        if not os.path.lexists(root / name):
            continue
        target = aside / name
        make_folders(disk, target.parent, root)
        disk.move(root / name, target)
        folders |= {target.parent, (root / name).parent}
    for folder in sorted(folders):
        disk.sync_directory(folder)


def make_folders(disk: Disk, folder: Path, root: Path) -> None:
    """Create a folder below the store and those above it, durably."""
    if folder != root and not folder.is_dir():
        make_folders(disk, folder.parent, root)
        disk.make_directory(folder)
