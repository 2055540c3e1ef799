"""Cut a damaged store back to the largest part of it that is sound. Deletes nothing.

`plan_repair` looks and says what would leave the store; `apply` does it. What leaves is set aside in
`lost+found/<time>-<pid>/`: files under their own path, records of the index as `index/<database>/<key in hex>` (where
that is longer than a name may be: its beginning and a hash, and `<that>.key` beside it), and
`report.json`, which says why. The order lets a repair that is interrupted be run again: (1) records dumped, synced;
(2) one transaction changes the index; (3) zarr.json files rewritten; (4) files that the index no longer names moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.creation import require_own_folders
from diskreplay.storage.durable import Disk
from diskreplay.storage.fields import fields_of
from diskreplay.storage.locks import FileLock
from diskreplay.storage.probe import probe
from diskreplay.storage.regular import read_regular, require_own
from diskreplay.storage.upkeep.applying import (
    change_index,
    changed_since,
    keep_copy,
    make_folders,
    move,
    replace_index,
    replace_meta_page,
)
from diskreplay.storage.upkeep.arrays import group_documents, group_problems
from diskreplay.storage.upkeep.damaged import description_of, open_index, require_store
from diskreplay.storage.upkeep.free_pages import free_pages_trouble
from diskreplay.storage.upkeep.mending import Loss, Mended, mend
from diskreplay.storage.upkeep.meta_pages import MetaPage, find_damaged_meta_page
from diskreplay.storage.upkeep.rebuilding import Rebuilt, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None]

META_BYTES = 1 << 17
REBUILD = "Restore the index from a backup; or rebuild it from the shards alone, with --rebuild-index."


@dataclass
class RepairPlan:
    """What a repair would do.

    Attributes:
        path: The store's.
        mended: What changes.
        rebuilt: The records of a new index, if it is to be made from the shards alone.
        transaction: The index's state that was looked at.
        stamp: What tells the files that were looked at from later ones, where no transaction does.
        meta_page: The page of the index that has to be made anew before anything else can be looked at.
        anew: Whether the index's records go into a new one, as the old one cannot be written safely.
    """

    path: Path
    mended: Mended
    rebuilt: Rebuilt | None = None
    transaction: int = -1
    stamp: str = ""
    meta_page: MetaPage | None = None
    anew: bool = False

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
        remade = self.rebuilt is not None or self.meta_page is not None or self.anew
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
        if plan.stamp and plan.stamp != _stamp(root):
            raise changed_since(root)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        done.aside = root / layout.LOST / f"{stamp}-{os.getpid()}"
        make_folders(disk, done.aside, root)
        disk.write_file(done.aside / "report.json", json.dumps(plan.to_json(), indent=1).encode())
        disk.sync_directory(done.aside)
        if plan.meta_page is not None:
            replace_meta_page(plan.meta_page, root, done.aside, disk)
        elif plan.rebuilt is not None:
            replace_index(plan.rebuilt, root, done.aside, disk)
        else:
            change_index(root, plan.mended.changes, plan.transaction, done.aside, disk, anew=plan.anew)
        for name, content in plan.mended.documents.items():
            keep_copy(root, name, done.aside, disk)
            make_folders(disk, (root / name).parent, root)
            disk.write_file(root / name, content)
            disk.sync_directory((root / name).parent)
        move(plan.mended.moves, root, done.aside, disk)
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
        return RepairPlan(root, Mended(notes=[note]), stamp=_stamp(root), meta_page=page)
    if trouble and not rebuild_index:
        raise CorruptStoreError(f"{root / layout.INDEX}: {trouble}", path=root, hint=REBUILD)
    description, attributes = description_of(root, None if trouble else root / layout.INDEX)
    require_own_folders(root, description.spec)
    fields = fields_of(description.spec)
    if rebuild_index:
        stamp = _stamp(root)
        found, rebuilt = rebuild(root, fields, description.segment_steps, attributes, progress)
        return RepairPlan(root, found, rebuilt, stamp=stamp)
    index, stale = open_index(root / layout.INDEX)
    try:
        with index.read() as txn:
            found = mend(root, fields, description.segment_steps, txn, attributes, progress, stale=stale)
            transaction = txn.txn.id()
        trouble = free_pages_trouble(index)
        if trouble:
            found.notes.append(f"the index is copied, record by record: its list of free pages is damaged: {trouble}")
    finally:
        index.close()
    wrong = {problem.where: problem.what for problem in group_problems(root, attributes)}
    if wrong:
        for name, content in group_documents(attributes).items():
            if str(root / name) in wrong:
                found.documents[name] = content
                found.notes.append(f"{name} is written anew: {wrong[str(root / name)]}")
    return RepairPlan(root, found, None, transaction, anew=bool(trouble))


def _stamp(root: Path) -> str:
    """Return what is another after every commit, and after a file came, changed or went."""
    found = hashlib.sha256()
    with contextlib.suppress(OSError, CorruptStoreError):
        found.update(read_regular(root / layout.INDEX / "data.mdb", META_BYTES))  # with the newest transaction's number
    folders = [root, root / layout.INDEX, root / layout.STEPS]
    with contextlib.suppress(OSError):
        folders += [path for path in sorted((root / layout.STEPS).iterdir()) if path.is_dir() and not path.is_symlink()]
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode) and path.name != "lock.mdb":
                    seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                    found.update(f"{path.relative_to(root)}\0{seen}\0".encode(errors="surrogateescape"))
    return found.hexdigest()
