"""Copy a store that is in use: one moment of the index, and exactly the shards that it names.

The index is copied first, by LMDB itself: nothing else may open its files while it is in use. Shards are never
rewritten, so a hard link is as good as a copy. Only eviction takes them away: where it was faster, the index is
copied again, and what is new since is added.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError, StoreExistsError, StoreNotFoundError
from diskreplay.storage import layout
from diskreplay.storage.durable import Disk, disk_error
from diskreplay.storage.environment import MAP_SIZE, Transaction
from diskreplay.storage.lmdb_errors import translated
from diskreplay.storage.partial import partial_folder
from diskreplay.storage.regular import open_regular, read_zarr_json
from diskreplay.storage.shard import shard_name
from diskreplay.storage.transactions import Reading
from diskreplay.storage.upkeep.arrays import DOCUMENT
from diskreplay.storage.upkeep.records import Catalogue, read_catalogue

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from diskreplay.storage.engine import Engine
    from diskreplay.storage.fields import Field

    Progress = Callable[[int, int], None]

ATTEMPTS = 8
COPIED_AT_ONCE = 1 << 20
REPAIR_FIRST = "See what is damaged with `diskreplay verify`; back up after `diskreplay repair`."
NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP})


@dataclass
class Backup:
    """What a backup holds.

    Attributes:
        path: The copy.
        segments: Segments in it.
        transitions: Steps in it that can be sampled.
        bytes: Length of its shards.
        linked, copied: Shards that share their bytes with the store's own, and that do not.
        seconds: Wall time.
    """

    path: Path
    segments: int = 0
    transitions: int = 0
    bytes: int = 0
    linked: int = 0
    copied: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**asdict(self), "path": str(self.path)}


def backup_store(engine: Engine, dest: Path, progress: Progress | None = None) -> Backup:
    """Make a copy of what is committed; a store of its own, complete or not there at all.

    Args:
        engine: The open store's. Others may go on writing it.
        dest: Where; nothing may be there yet.
        progress: Told (bytes copied, bytes in all) as it goes.

    Raises:
        StoreExistsError: If there is something at `dest`.
        StoreNotFoundError: If the folder it should lie in does not exist.
        CorruptStoreError: If a shard is missing, and not because it was evicted, or is not as long as was committed, or
            a file is none of the store's own: a link, a pipe.
    """
    began = time.monotonic()
    dest = dest.absolute()
    if dest.exists() or dest.is_symlink():
        raise StoreExistsError(f"{dest}: exists already", path=dest, hint="Choose another path.")
    if not dest.parent.is_dir():
        raise StoreNotFoundError(f"{dest.parent}: no such folder", path=dest, hint="Make it first.")
    if dest.resolve().is_relative_to(engine.root.resolve()):
        raise ReplayError(f"{dest}: lies inside the store", path=dest, hint="Choose a path outside.")
    try:
        with partial_folder(dest, Disk()) as partial:
            done = _Copying(engine, partial, progress).run()
    except ReplayError:  # some of which are OSErrors, too
        raise
    except OSError as err:
        raise disk_error(err, err.filename or dest) from err
    done.path, done.seconds = dest, time.monotonic() - began
    return done


class _Copying:
    def __init__(self, engine: Engine, partial: Path, progress: Progress | None) -> None:
        self.engine = engine
        self.partial = partial
        self.progress = progress
        self.out = Backup(partial)
        self._have: dict[int, int] = {}
        self._new: list[int] = []  # segments to copy, ascending, and how long their shards are, field by field
        self._lengths: NDArray[np.int64] = np.empty((0, len(engine.fields)), np.int64)

    def run(self) -> Backup:
        self.engine.index.require_in_place()
        (self.partial / layout.STEPS).mkdir()
        for item in self.engine.fields:
            layout.field_path(self.partial, item.name).mkdir()
        for _ in range(ATTEMPTS):
            catalogue = self._copy_index()
            missing = self._copy_shards(catalogue)
            if not missing:
                break
            self._require_evicted(missing)
        else:
            raise ReplayError(
                f"{self.engine.root}: segments are evicted faster than they can be copied",
                hint="Copy to the same file system, where a backup is made of links.",
            )
        self._remove_evicted(catalogue)
        self._copy_documents(catalogue)
        self.engine.index.require_in_place()  # else the index is one store's, and the shards are another's
        Disk().sync_everything(self.partial)
        return self.out

    def _copy_index(self) -> Catalogue:
        """Copy the index; return what the copy says."""
        folder = self.partial / layout.INDEX
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir()
        self.engine.index.copy(folder)
        # Not as an Index: nobody else has this copy, and it may lie where no store should be used.
        with translated(folder):
            environment = lmdb.open(
                str(folder), map_size=MAP_SIZE, max_dbs=len(layout.DATABASES) + 2, readonly=True, lock=False,
                lib_version=0,
            )  # fmt: skip
            try:
                with environment.begin() as txn:
                    tables = {name: environment.open_db(name.encode(), txn, create=False) for name in layout.DATABASES}
                    looking = Reading(Transaction(txn, tables))
                    catalogue = read_catalogue(looking, self.engine.fields, self.engine.segment_steps)
                    self._new = [segment for segment in sorted(catalogue.segments) if segment not in self._have]
                    self._lengths = self._read_lengths(looking)
            finally:
                environment.close()
        if catalogue.problems:
            problem = catalogue.problems[0]
            raise CorruptStoreError(f"{problem.where}: {problem.what}", path=self.engine.root)
        self.out.transitions = int(catalogue.counters["transitions"])
        return catalogue

    def _read_lengths(self, txn: Reading) -> NDArray[np.int64]:
        out = np.empty((len(self._new), len(self.engine.fields)), np.int64)
        for segment, lengths in zip(self._new, out, strict=True):
            files = txn.array("files", layout.segment_key(segment), layout.FILE)
            if files is None or len(files) != len(lengths):
                what = f"{self.engine.root}: the index does not list the files of segment {segment}"
                raise CorruptStoreError(what, path=self.engine.root, hint=REPAIR_FIRST, segment=segment)
            lengths[:] = files["length"]
        return out

    def _copy_shards(self, catalogue: Catalogue) -> list[tuple[int, Path]]:
        """Copy what is not there yet; return the segments, and files, that are missing."""
        sizes = {s: int(record["bytes_on_disk"]) for s, record in catalogue.segments.items()}
        total, done, missing = sum(sizes.values()), sum(self._have.values()), []
        for segment, lengths in zip(self._new, self._lengths, strict=True):
            try:
                for item, length in zip(self.engine.fields, lengths.tolist(), strict=True):
                    self._copy(segment, item, length)
            except FileNotFoundError:
                missing.append((segment, self._shard(segment, item)))
                continue
            self._have[segment] = sizes[segment]
            done += sizes[segment]
            if self.progress is not None:
                self.progress(done, total)
        for segment in catalogue.quarantine:
            for item in self.engine.fields:
                with contextlib.suppress(FileNotFoundError, CorruptStoreError):  # it is damaged anyway
                    self._copy(segment, item)
        return missing

    def _shard(self, segment: int, item: Field) -> Path:
        return layout.field_path(self.engine.root, item.name) / shard_name(segment, item)

    def _copy(self, segment: int, item: Field, length: int = -1) -> None:
        """Link or copy a shard.

        Raises:
            CorruptStoreError: If it is no regular file, or not as long as was committed.
        """
        source = self._shard(segment, item)
        target = layout.field_path(self.partial, item.name) / source.name
        if target.exists():
            return
        with os.fdopen(open_regular(source), "rb") as file:
            here = os.fstat(file.fileno()).st_size
            if length not in (-1, here):
                what = f"segment {segment}, field {item.name}: {source}: {here} bytes, {length} were committed"
                raise CorruptStoreError(what, path=source, hint=REPAIR_FIRST, segment=segment)
            try:
                os.link(source, target, follow_symlinks=False)
                self.out.linked += 1
            except OSError as err:
                if err.errno not in NO_LINKS:
                    raise
                with target.open("xb") as copy:
                    shutil.copyfileobj(file, copy, COPIED_AT_ONCE)
                self.out.copied += 1

    def _require_evicted(self, missing: list[tuple[int, Path]]) -> None:
        """Make sure that what is missing was evicted since the index was copied.

        Raises:
            CorruptStoreError: If it was not.
        """
        with self.engine.index.read() as txn:
            for segment, path in missing:
                if txn.get("segments", layout.segment_key(segment)) is not None:
                    raise CorruptStoreError(f"{path} is missing: there is nothing to copy", path=path)

    def _remove_evicted(self, catalogue: Catalogue) -> None:
        """Drop what an earlier attempt copied and the last copy of the index does not name any more."""
        named = {*catalogue.segments, *catalogue.quarantine}
        for item in self.engine.fields:
            wanted = {shard_name(segment, item) for segment in named}
            for path in layout.field_path(self.partial, item.name).iterdir():
                if path.name not in wanted:
                    path.unlink()
        self.out.segments = len(catalogue.segments)
        self.out.bytes = sum(int(record["bytes_on_disk"]) for record in catalogue.segments.values())

    def _copy_documents(self, catalogue: Catalogue) -> None:
        """Copy the zarr.json files, last: they may be ahead of the index, but not behind it.

        Raises:
            CorruptStoreError: If one is missing, far too long, or no regular file.
        """
        names = [DOCUMENT, f"{layout.STEPS}/{DOCUMENT}"]
        if catalogue.codings:  # no arrays before the first segment
            names += [f"{layout.STEPS}/{item.name}/{DOCUMENT}" for item in self.engine.fields]
        for name in names:
            path = self.engine.root / name
            try:
                (self.partial / name).write_bytes(read_zarr_json(path))
            except FileNotFoundError as err:
                what = f"{path} is missing: zarr could not read the copy"
                raise CorruptStoreError(what, path=path, hint=REPAIR_FIRST) from err
