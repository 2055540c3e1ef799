"""Which segments are open for reading: their files, shard indexes and episode ends.

Bounded by open files. What is in use by a read plan stays open until the plan is gone, whatever is evicted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError, StepEvictedError
from diskreplay.storage import layout, planning_kernels
from diskreplay.storage.cached import USES, fields_to_keep, read_coded, read_rows, rooms
from diskreplay.storage.durable import disk_error
from diskreplay.storage.mapping import fields_to_map, map_file
from diskreplay.storage.regular import open_regular
from diskreplay.storage.shard import most_shard_bytes, parse_shard_index, shard_index_bytes, shard_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field
    from diskreplay.storage.index import Index
    from diskreplay.storage.mapping import FileMap
    from diskreplay.storage.table import SegmentTable
    from diskreplay.storage.transactions import Reading

MOST_FILES = 65_536
SHARE_OF_LIMIT = 2
FEW_FILES = 256


class OpenSegment:
    """The open shards of one segment; they close when the last plan that reads them is gone."""

    __slots__ = ("checks", "fds", "indexes", "kept", "lengths", "maps", "segment", "uses")

    def __init__(self, segment: int, lengths: Mapping[str, int], checks: Mapping[str, NDArray[np.uint32]]) -> None:
        self.segment = segment
        self.lengths = dict(lengths)
        self.checks = dict(checks)
        self.fds: dict[str, int] = {}
        self.indexes: dict[str, NDArray[np.uint64]] = {}
        self.kept: dict[str, NDArray[np.uint8]] = {}
        self.maps: dict[str, FileMap] = {}
        self.uses = 0

    def __del__(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def file_budget() -> int:
    """Return how many shards may be open: half of what the process may open, its limit raised if allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES * SHARE_OF_LIMIT
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
            soft = ceiling
        except (ValueError, OSError):
            pass
    return MOST_FILES if soft == resource.RLIM_INFINITY else max(16, soft // SHARE_OF_LIMIT)


def expect_files(count: int) -> None:
    """Have the kernel lengthen its table of this process's files once, in the background, for so many.

    It doubles the table whenever that is full, and in a process with threads it then waits until every processor has
    seen the new one: of 70 ms that a first batch from 1,908 segments took these waits were 20.
    """
    if count > FEW_FILES:
        threading.Thread(target=_lengthen, args=(count + FEW_FILES,), name="diskreplay-files", daemon=True).start()


def _lengthen(files: int) -> None:
    with contextlib.suppress(OSError):  # the table then grows as it must
        fd = os.open(os.sep, os.O_PATH | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(files, SHARE_OF_LIMIT * file_budget()) - 1))
        finally:
            os.close(fd)


class Residency:
    """Open segments on demand and close the least recently used.

    Not thread-safe: the caller holds the store's lock.

    Attributes:
        memory: Bytes to keep rows in; None: a share of what the process may use.
    """

    def __init__(self, root: Path, fields: Sequence[Field], table: SegmentTable, index: Index) -> None:
        self.root = root
        self.memory: int | None = None
        self.fields = {field.name: field for field in fields}
        self.table = table
        self.index = index
        self.codings: dict[str, Coding] = {}
        self._open: dict[int, OpenSegment] = {}
        self._young: dict[int, OpenSegment] = {}  # those not used often enough yet for their rows to be kept
        self._files = 0
        self._tick = 0
        self._budget = 0
        self._kept: list[str] = []
        self._mapped: frozenset[str] = frozenset()
        self._kept_for = -1
        # Strings: putting pathlib's paths together took a fifth of the time of a first batch from many segments.
        self._folders = {field.name: f"{layout.field_path(root, field.name)}{os.sep}" for field in fields}

    def need_ends(self, slots: NDArray[np.int32]) -> None:
        """Have the episode ends of these slots in memory."""
        table = self.table
        if not planning_kernels.lacks_ends(slots, table.n_ends, table.ends_address):
            return
        missing = slots[(table.ends_address[slots] == 0) & (table.n_ends[slots] > 0)]
        with self.index.read() as txn:
            for slot in np.unique(missing).tolist():
                self._load_ends(txn, slot)

    def _load_ends(self, txn: Reading, slot: int) -> None:
        table, segment = self.table, int(self.table.segment[slot])
        episodes = self._record(txn, "episodes", segment, layout.EPISODE)
        if episodes is None:
            self._gone(segment, "its episodes are missing from the index")
            return
        ends, flags = np.ascontiguousarray(episodes["end_row"]), np.ascontiguousarray(episodes["flags"])
        if table.cut[slot] and len(ends) == table.n_ends[slot] - 1:  # not committed yet, or by a reader never
            ends = np.append(ends, np.int32(table.rows[slot] - 1))
            flags = np.append(flags, np.uint8(layout.INTERRUPTED | layout.CUT))
        elif len(ends) == table.n_ends[slot] + 1 and flags[-1] & layout.CUT:
            ends, flags = ends[:-1].copy(), flags[:-1].copy()  # cut by another process: `refresh` takes that in
        if len(ends) != table.n_ends[slot]:
            self._gone(segment, "its episodes are missing from the index")
            return
        if (np.diff(ends) <= 0).any() or ends[0] < 0 or ends[-1] >= table.rows[slot]:
            raise CorruptStoreError(f"{self.root}: segment {segment}: impossible episode ends", segment=segment)
        table.hold_ends(slot, ends, flags)

    def _record(self, txn: Reading, database: str, segment: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        try:
            return txn.array(database, layout.segment_key(segment), dtype)
        except CorruptStoreError as err:
            what = f"{self.root}: segment {segment}: {err}"
            raise CorruptStoreError(what, path=self.root, segment=segment) from err

    def need_files(self, slots: Sequence[NDArray[np.int32]], names: Sequence[str]) -> object:
        """Have these fields' shards of the slots, arrays of them, open.

        Returns:
            What must be kept as long as the files are read or the rows in memory are copied.
        """
        table = self.table
        self._tick += 1
        found, count = np.empty(min(len(table.used), sum(map(len, slots))), np.int32), 0
        for some in slots:
            count = planning_kernels.stamp_slots(some, table.used, self._tick, found, count)
        wanted = found[:count]
        fields = [table.by_field[name] for name in names]
        if any(planning_kernels.lacks_files(wanted, places.fd, places.base) for places in fields):
            closed = np.zeros(len(wanted), np.bool_)
            for places in fields:
                closed |= (places.fd[wanted] < 0) & (places.base[wanted] == 0)
            self._make_room(int(closed.sum()) * len(names))
            try:
                with self.index.read() as txn:
                    for slot in wanted[closed].tolist():
                        self._open_slot(txn, slot, names)
            except ReplayError:
                self.close()  # so that too many open files do not stand in the way of what comes next
                raise
        if self._young:
            self._count_uses(wanted.tolist())
        return table.holder[wanted]

    def _count_uses(self, slots: Sequence[int]) -> None:
        for slot in slots:
            segment = self._young.get(slot)
            if segment is not None:
                segment.uses += 1
                if segment.uses == USES:
                    del self._young[slot]
                    self._keep_rows(slot, segment)

    def _keep_rows(self, slot: int, opened: OpenSegment) -> None:
        """Keep a segment's rows of small fields in memory, and map what is raw of the others.

        What is damaged stays where it is until it is read.
        """
        if self._kept_for != len(self.table):
            self._kept_for = len(self.table)
            rows = self._kept_for * self.table.segment_steps
            on_disk = int(self.table.bytes_on_disk[self.table.live()].sum())
            self._kept = fields_to_keep(list(self.fields.values()), self.codings, rows, on_disk, self.memory)
            self._mapped = fields_to_map(list(self.fields.values()), self.codings, rows)
        names = [name for name in self._kept if name in opened.fds and name not in opened.kept]
        raw = [self.fields[name] for name in names if self.codings[name].codec == "none"]
        room = rooms(raw, int(self.table.rows[slot]))
        for name in names:
            places = self.table.by_field[name]
            with contextlib.suppress(OSError):
                kept = self._read_kept(opened, name, room.get(name))
                if kept is not None:
                    opened.kept[name] = kept
                    if name in room:
                        places.base[slot], places.step[slot] = kept.ctypes.data, kept.strides[0]
                    else:
                        places.coded[slot] = kept.ctypes.data
        for name in self._mapped.intersection(opened.fds).difference(opened.kept, opened.maps):
            mapped = map_file(opened.fds[name], opened.lengths[name])
            if mapped is not None:
                opened.maps[name] = mapped
                self.table.by_field[name].coded[slot] = mapped.address

    def _read_kept(self, opened: OpenSegment, name: str, room: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        fd, checks, length = opened.fds[name], opened.checks[name], opened.lengths[name]
        if room is None:
            return read_coded(fd, opened.indexes[name], checks, length)
        return room if read_rows(fd, self.fields[name], self.codings[name], checks, length, room) else None

    def forget(self, slot: int) -> None:
        """Stop offering a slot's files: its segment was evicted or the store is closing."""
        segment = self._open.pop(slot, None)
        self._young.pop(slot, None)
        if segment is not None:
            self._files -= len(segment.fds)
            self.table.holder[slot] = None
        for places in self.table.by_field.values():
            places.fd[slot], places.index[slot], places.check[slot], places.size[slot] = -1, 0, 0, 0
            if segment is not None:
                places.base[slot] = places.coded[slot] = 0

    def close(self) -> None:
        """Close every file that no plan uses."""
        for slot in list(self._open):
            self.forget(slot)

    def _open_slot(self, txn: Reading, slot: int, names: Sequence[str]) -> None:
        table = self.table
        segment = int(table.segment[slot])
        opened = self._open.get(slot)
        if opened is None:
            counts = self._chunks()
            files = self._record(txn, "files", segment, layout.FILE)
            checks = self._record(txn, "checks", segment, layout.CHECK)
            if files is None or checks is None or len(files) != len(counts) or len(checks) != sum(counts):
                self._gone(segment, "its files are missing from the index")
                return
            parts = [checks[stop - count : stop] for count, stop in zip(counts, accumulate(counts), strict=True)]
            opened = OpenSegment(
                segment,
                dict(zip(self.fields, files["length"].tolist(), strict=True)),
                dict(zip(self.fields, parts, strict=True)),
            )
            self._open[slot] = self._young[slot] = table.holder[slot] = opened
        for name in names:
            if name not in opened.fds:
                self._open_file(slot, segment, name, opened)

    def _open_file(self, slot: int, segment: int, name: str, opened: OpenSegment) -> None:
        path = self._folders[name] + shard_name(segment, self.fields[name])
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            self._gone(segment, f"field {name}: {path} is missing")
            return
        except CorruptStoreError as err:
            what = f"segment {segment}, field {name}: {err}"
            raise CorruptStoreError(what, path=path, hint=err.hint, segment=segment) from err
        except OSError as err:
            raise disk_error(err, path) from err
        try:
            self._take_file(slot, name, fd, path, opened)
        except BaseException:
            os.close(fd)
            raise
        opened.fds[name] = fd
        self._files += 1

    def _take_file(self, slot: int, name: str, fd: int, path: str, opened: OpenSegment) -> None:
        coding, places = self.codings[name], self.table.by_field[name]
        expected, length = opened.lengths[name], os.fstat(fd).st_size
        if length != expected:
            what = f"segment {opened.segment}, field {name}: {path}: {length} bytes, {expected} were committed"
            raise CorruptStoreError(what, path=path, segment=opened.segment)
        if length > most_shard_bytes(self.fields[name], coding, self.table.segment_steps):
            what = f"segment {opened.segment}, field {name}: {path}: {length} bytes are more than a shard can have"
            raise CorruptStoreError(what, path=path, segment=opened.segment)
        address = 0
        if coding.codec != "none":
            chunks = self.table.segment_steps // coding.chunk_steps
            size = shard_index_bytes(chunks)
            try:
                data = os.pread(fd, size, max(0, length - size))
            except OSError as err:
                raise disk_error(err, path) from err
            try:
                opened.indexes[name] = parse_shard_index(data, chunks, path)
            except CorruptStoreError as err:
                what = f"segment {opened.segment}, field {name}: {err}"
                raise CorruptStoreError(what, path=path, segment=opened.segment) from err
            address = opened.indexes[name].ctypes.data
        places.index[slot], places.check[slot] = address, opened.checks[name].ctypes.data
        places.fd[slot], places.size[slot] = fd, length

    def _chunks(self) -> list[int]:
        """Return how many chunks a shard of each field has."""
        return [self.table.segment_steps // self.codings[name].chunk_steps for name in self.fields]

    def _gone(self, segment: int, what: str) -> None:
        with self.index.read() as now:  # not the caller's view, which may be older than the eviction
            gone = now.get("segments", layout.segment_key(segment)) is None
        if gone:
            raise StepEvictedError(
                f"segment {segment} was evicted by another process",
                hint="Call store.refresh().",
            )
        raise CorruptStoreError(f"{self.root}: segment {segment}: {what}", path=self.root, segment=segment)

    def _make_room(self, files: int) -> None:
        self._budget = self._budget or file_budget()
        if self._files + files <= self._budget or not self._open:
            return
        slots = np.fromiter(self._open, np.int64)
        oldest = slots[np.argsort(self.table.used[slots], kind="stable")]
        for slot in oldest.tolist():
            if self._files + files <= self._budget * 3 // 4 or self.table.used[slot] == self._tick:
                break
            self.forget(slot)
