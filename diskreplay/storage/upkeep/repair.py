"""Cut a damaged store back to the largest part of it that is sound. Deletes nothing.

`plan_repair` looks and says what would leave the store; `apply` does it. What leaves is set aside in
`lost+found/<time>-<pid>/`: files under their own path, records of the index as `index/<database>/<key in hex>`, and
`report.json`, which says why. The order lets a repair that is interrupted be run again: (1) records dumped, synced;
(2) one transaction changes the index; (3) zarr.json files rewritten; (4) files that the index no longer names moved.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.creation import require_own_folders
from diskreplay.storage.durable import Disk
from diskreplay.storage.fields import fields_of
from diskreplay.storage.index import Index
from diskreplay.storage.locks import FileLock
from diskreplay.storage.probe import probe
from diskreplay.storage.regular import require_own
from diskreplay.storage.upkeep.arrays import group_documents, group_problems
from diskreplay.storage.upkeep.damaged import description_of, open_index, require_store
from diskreplay.storage.upkeep.mending import Loss, Mended, mend
from diskreplay.storage.upkeep.meta_pages import MetaPage, find_damaged_meta_page
from diskreplay.storage.upkeep.rebuilding import Rebuilt, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None]

REBUILD = "Restore the index from a backup; or rebuild it from the shards alone, with --rebuild-index."


@dataclass
class RepairPlan:
    """What a repair would do.

    Attributes:
        path: The store's.
        mended: What changes.
        rebuilt: The records of a new index, if it is to be made from the shards alone.
        transaction: The index's state that was looked at.
        meta_page: The page of the index that has to be made anew before anything else can be looked at.
    """

    path: Path
    mended: Mended
    rebuilt: Rebuilt | None = None
    transaction: int = -1
    meta_page: MetaPage | None = None

    @property
    def losses(self) -> list[Loss]:
        """Return what leaves the store."""
        return self.mended.losses

    @property
    def notes(self) -> list[str]:
        """Return what is made anew, in words."""
        return self.mended.notes

    @property
    def moves(self) -> list[str]:
        """Return the files to be set aside, by their path in the store."""
        return self.mended.moves

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to do."""
        done = self.mended
        remade = self.rebuilt is not None or self.meta_page is not None
        return not (remade or done.changes or done.documents or done.moves)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "path": str(self.path),
            "empty": self.empty,
            "steps_lost": self.mended.steps_lost,
            "episodes_lost": sum(loss.episodes for loss in self.losses),
            "losses": [asdict(loss) for loss in self.losses],
            "notes": self.notes,
            "files_set_aside": self.moves,
            "files_rewritten": sorted(self.mended.documents),
            "records_changed": len(self.mended.changes),
            "index_rebuilt": self.rebuilt is not None,
        }


@dataclass
class Repaired:
    """What a repair did: the plan it followed, and where it put what left the store (None: nothing did)."""

    plan: RepairPlan
    aside: Path | None = None
    seconds: float = field(default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        aside = None if self.aside is None else str(self.aside)
        return {**self.plan.to_json(), "set_aside_in": aside, "seconds": self.seconds}


def plan_repair(
    path: str | os.PathLike[str], *, rebuild_index: bool = False, progress: Progress | None = None
) -> RepairPlan:
    """Find what it takes to make a store sound. Changes nothing. Cost: reads every file.

    Args:
        path: The store's folder.
        rebuild_index: Make the index anew from the shards alone, where it cannot be read at all. Rows that were not
            sealed yet, priorities and the streams' names are lost, and a sound shard in another's place would not
            be noticed.
        progress: Told (bytes examined, bytes in all) as it goes.

    Raises:
        StoreLockedError: If somebody has the store open; names the processes.
        CorruptStoreError: If it cannot be repaired; says what is missing.
    """
    root = Path(path).absolute()
    with _alone(root):
        return _plan(root, rebuild_index=rebuild_index, progress=progress)


def apply(plan: RepairPlan, disk: Disk | None = None) -> Repaired:
    """Do what a plan says.

    Raises:
        StoreLockedError: If somebody has the store open; names the processes.
        ReplayError: If the store has changed since the plan was made.
    """
    began = time.monotonic()
    done = Repaired(plan)
    if plan.empty:
        return done
    disk = disk or Disk()
    root = plan.path
    with _alone(root):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        done.aside = root / layout.LOST / f"{stamp}-{os.getpid()}"
        _make_folders(disk, done.aside, root)
        disk.write_file(done.aside / "report.json", json.dumps(plan.to_json(), indent=1).encode())
        disk.sync_directory(done.aside)
        if plan.meta_page is not None:
            _replace_meta_page(plan.meta_page, root, done.aside, disk)
        elif plan.rebuilt is not None:
            _replace_index(plan.rebuilt, root, done.aside, disk)
        else:
            _change_index(plan, done.aside, disk)
        for name, content in plan.mended.documents.items():
            _keep_copy(root, name, done.aside, disk)
            _make_folders(disk, (root / name).parent, root)
            disk.write_file(root / name, content)
            disk.sync_directory((root / name).parent)
        _move(plan.mended.moves, root, done.aside, disk)
    done.seconds = time.monotonic() - began
    return done


def repair_store(
    path: str | os.PathLike[str], *, rebuild_index: bool = False, progress: Progress | None = None
) -> Repaired:
    """Plan a repair and do it."""
    done = apply(plan_repair(path, rebuild_index=rebuild_index, progress=progress))
    if done.plan.meta_page is None:
        return done
    return repair_store(path, progress=progress)


def _alone(root: Path) -> FileLock:
    """Have the store alone, if there is one."""
    require_store(root)
    return FileLock(layout.lock_path(root, "store"), f"{root}: the store").acquire()


def _plan(root: Path, *, rebuild_index: bool, progress: Progress | None) -> RepairPlan:
    if not rebuild_index:  # which would lose tails and priorities where a link is all that has to go
        require_own(root / layout.INDEX / name for name in ("data.mdb", "lock.mdb"))
    trouble = probe(root / layout.INDEX)
    page = find_damaged_meta_page(root / layout.INDEX / "data.mdb") if trouble else None
    if page is not None and not rebuild_index:
        note = f"page {page.number} of the index is made anew from the other that it begins with; then look again"
        return RepairPlan(root, Mended(notes=[note]), meta_page=page)
    if trouble and not rebuild_index:
        raise CorruptStoreError(f"{root / layout.INDEX}: {trouble}", path=root, hint=REBUILD)
    description, attributes = description_of(root, None if trouble else root / layout.INDEX)
    require_own_folders(root, description.spec)
    fields = fields_of(description.spec)
    if rebuild_index:
        found, rebuilt = rebuild(root, fields, description.segment_steps, attributes, progress)
        return RepairPlan(root, found, rebuilt)
    index, stale = open_index(root / layout.INDEX)
    try:
        with index.read() as txn:
            found = mend(root, fields, description.segment_steps, txn, attributes, progress, stale=stale)
            transaction = txn.txn.id()
    finally:
        index.close()
    wrong = {problem.where: problem.what for problem in group_problems(root, attributes)}
    if wrong:
        for name, content in group_documents(attributes).items():
            if str(root / name) in wrong:
                found.documents[name] = content
                found.notes.append(f"{name} is written anew: {wrong[str(root / name)]}")
    return RepairPlan(root, found, None, transaction)


def _change_index(plan: RepairPlan, aside: Path, disk: Disk) -> None:
    index, _ = open_index(plan.path / layout.INDEX)
    try:
        with index.read() as txn:
            if txn.txn.id() != plan.transaction:
                raise ReplayError(f"{plan.path}: the store has changed since the plan was made", hint="Plan again.")
            folders = set()
            for database, key in plan.mended.changes:
                value = txn.raw(database, key)
                if value is not None:
                    folder = aside / "index" / database
                    _make_folders(disk, folder, plan.path)
                    disk.write_file(folder / key.hex(), bytes(value))
                    folders.add(folder)
            for folder in folders:
                disk.sync_directory(folder)
        if plan.mended.changes:
            with index.write() as writing:
                for (database, key), payload in plan.mended.changes.items():
                    if payload is None:
                        writing.delete(database, key)
                    else:
                        writing.put(database, key, payload)
                writing.renew_digest()
    finally:
        index.close()


def _replace_meta_page(page: MetaPage, root: Path, aside: Path, disk: Disk) -> None:
    folder = aside / layout.INDEX
    _make_folders(disk, folder, root)
    disk.write_file(folder / f"page-{page.number}", page.before)
    disk.sync_directory(folder)
    page.write(root / layout.INDEX / "data.mdb", disk)


def _replace_index(rebuilt: Rebuilt, root: Path, aside: Path, disk: Disk) -> None:
    fresh = root / (layout.INDEX + ".partial")
    if fresh.exists():
        disk.move(fresh, aside / fresh.name)
    index = Index(fresh, create=True)
    try:
        with index.write() as txn:
            for (database, key), payload in rebuilt.records.items():
                txn.put(database, key, payload)
    finally:
        index.close()
    disk.sync_directory(fresh)
    if (root / layout.INDEX).exists():
        disk.move(root / layout.INDEX, aside / layout.INDEX)
        disk.sync_directory(aside)
    disk.move(fresh, root / layout.INDEX)
    disk.sync_directory(root)


def _keep_copy(root: Path, name: str, aside: Path, disk: Disk) -> None:
    """Keep what a rewritten file was; a file that cannot be read is moved."""
    if (root / name).is_file() and not (root / name).is_symlink():  # what a link names is not the store's
        _make_folders(disk, (aside / name).parent, root)
        try:
            disk.write_file(aside / name, (root / name).read_bytes())
        except OSError:
            disk.move(root / name, aside / name)
        disk.sync_directory((aside / name).parent)
    elif os.path.lexists(root / name):
        _move([name], root, aside, disk)


def _move(names: list[str], root: Path, aside: Path, disk: Disk) -> None:
    folders = set()
    for name in names:
        if not os.path.lexists(root / name):
            continue
        target = aside / name
        _make_folders(disk, target.parent, root)
        disk.move(root / name, target)
        folders |= {target.parent, (root / name).parent}
    for folder in sorted(folders):
        disk.sync_directory(folder)


def _make_folders(disk: Disk, folder: Path, root: Path) -> None:
    """Create a folder below the store and those above it, durably."""
    if folder != root and not folder.is_dir():
        _make_folders(disk, folder.parent, root)
        disk.make_directory(folder)
