"""ReplayStore: one store, as its users see it."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from diskreplay.errors import ReadOnlyError, StoreLockedError
from diskreplay.experience import StepSpec
from diskreplay.storage import layout
from diskreplay.storage.commit import Committer
from diskreplay.storage.creation import (
    agreed_durability,
    change_durability,
    check_durability,
    create_store,
    describe,
    parse_memory,
    read_description,
    require_own_folders,
    use_store,
)
from diskreplay.storage.durable import Disk, Durability
from diskreplay.storage.engine import Engine
from diskreplay.storage.index import Index
from diskreplay.storage.quarantine import quarantine
from diskreplay.store.access import SamplerAccess
from diskreplay.store.view import StoreView
from diskreplay.store.writer import StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskreplay.storage.fields import Compression
    from diskreplay.storage.upkeep.backup import Backup
    from diskreplay.storage.upkeep.verify import Problem

    Mode = Literal["r", "a"]


class ReplayStore(StoreView):
    """A replay store on disk. Made by `create` or `open`; a context manager.

    Steps written in this process can be sampled at once; what other processes committed, after `refresh`.

    Attributes:
        path: The store's folder.
        mode: "r" or "a".
        spec: What a step is.
        segment_steps: Rows of a segment, the unit of sealing and eviction.
        capacity: The limit beyond which the oldest segments are evicted.
        compression, chunk_steps, durability: As they were given when it was made; see `create`.
    """

    def __init__(self, path: Path, mode: Mode, disk: Disk | None = None, memory: int | None = None) -> None:
        """Open the store at `path`; use `ReplayStore.open` or `ReplayStore.create`."""
        self._pid = os.getpid()
        read_description(path)
        self._use = use_store(path, required=mode == "a")
        try:
            self._open(path, mode, disk)
            self._engine.residency.memory = memory
        except BaseException:
            self._use.release()
            raise

    def _open(self, path: Path, mode: Mode, disk: Disk | None) -> None:
        description = read_description(path)
        require_own_folders(path, description.spec)
        self.path = path
        self.mode = mode
        self.spec: StepSpec = description.spec
        self.segment_steps = description.segment_steps
        self.capacity = description.capacity
        self.created = description.created
        self.compression: Compression = description.compression
        self.chunk_steps = description.chunk_steps
        self.durability: Durability = description.durability
        self._index = Index(path / layout.INDEX, synced=self.durability == "power")
        try:
            self.durability = agreed_durability(path, description, self._index)
            if self.durability != description.durability:
                self._index.close()
                self._index = Index(path / layout.INDEX)
            if mode == "a" and not self._index.writable:
                raise ReadOnlyError(f"{path}: no permission to write", path=path)
            disk = disk or Disk(self.durability)
            self._engine = Engine(path, self.spec, self.segment_steps, self._index, disk)
        except BaseException:
            self._index.close()
            raise
        self._committer = Committer(
            self._engine, description.capacity, description.compression, description.chunk_steps
        )
        self.access = SamplerAccess(self.path, self._engine, writable=mode == "a")
        self._writers: weakref.WeakSet[StreamWriter] = weakref.WeakSet()
        self._closing = self._closed = False

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: StepSpec,
        *,
        capacity: int | str | None = None,
        segment_steps: int | None = None,
        compression: Compression = "auto",
        chunk_steps: int | None = None,
        durability: Durability = "power",
        metadata: dict[str, Any] | None = None,
        memory: int | str | None = None,
    ) -> ReplayStore:
        """Make an empty store and open it for appending.

        Args:
            path: Where; by custom `name.replay`. Nothing may be there yet.
            spec: What a step is, usually `StepSpec.from_spaces(...)`.
            capacity: Most transitions to keep, or most bytes on disk ("200GB"), or None: keep all. Beyond it
                the oldest segments are evicted, whole ones, by whoever commits next. Rows that are not sealed
                yet count, and cannot be evicted: keep segment_steps times the number of streams well below it.
            segment_steps: Rows of a segment. Larger: fewer files; smaller: finer eviction, and less that
                lies in the index before it is sealed. Default: about 32 MiB of raw rows, 524,288 steps at most, and at
                most a 16th of the capacity.
            compression: "auto" tries the first segment, a field at a time: codecs and chunk lengths are timed on
                its rows, and the fastest of those that need at most twice the room of the smallest, or a fortieth of
                the raw rows', is taken. "zstd", "lz4", "lz4hc" (smaller and faster to read than "lz4", ten times
                slower to write) or "none" is taken for what a batch reads.
            chunk_steps: Rows of a chunk of observations, instead of trying; must divide segment_steps.
            durability: What commits survive. "power": also a power cut or a crash of the machine; files and index
                are synced. "process": the end of the process, however violent, but not of the machine; nothing is
                synced until `sync` or `close`. It is the store's, whoever opens it. Measured on a cloud disk, commits a
                second: of 1 step 1,800 and 5,800, of an episode of 100 steps 1,300 and 3,300.
            metadata: A small JSON object to keep with the store.
            memory: This handle's, see `open`; not kept.

        Raises:
            StoreExistsError: If there is something at the path.
            ValueError: If an option is out of range, or the metadata are no JSON object.
        """
        where, keep = Path(path).absolute(), parse_memory(memory)
        description = describe(
            spec,
            capacity=capacity,
            segment_steps=segment_steps,
            compression=compression,
            chunk_steps=chunk_steps,
            durability=durability,
        )
        create_store(where, description, layout.plain_json(metadata or {}, "the metadata"), Disk(durability))
        return cls(where, "a", memory=keep)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Mode = "r",
        durability: Durability | None = None,
        memory: int | str | None = None,
    ) -> ReplayStore:
        """Open a store, to read it (mode="r") or to append to it too (mode="a").

        Args:
            path: The store's folder.
            mode: "r" or "a".
            durability: Change the store's, see `create`; with mode="a", while nobody else has it open.
            memory: Most bytes to keep rows in ("8GB"), beside the page cache and the priorities' 9 bytes a step. What
                does not fit, the smallest fields first, is read, and checked, each time. Default: a 16th of what the
                process may use, for every process that reads keeps its own; a learner with a machine to itself can
                have more.

        Raises:
            StoreLockedError: If it is being repaired, or others are in the way of a change of durability.
            StoreNotFoundError: If there is none at the path.
            FormatVersionError: If it is of a format this release does not read.
            CorruptStoreError: If it is damaged.
            ReadOnlyError: If mode="a" and its files may not be written.
            ValueError: If an option is none of those named.
        """
        keep = parse_memory(memory)
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' or 'a', got {mode!r}")
        where = Path(path).absolute()
        if durability is not None:
            check_durability(durability)
            if read_description(where).durability != durability:
                if mode != "a":
                    raise ReadOnlyError(f"{where}: opened with mode='r', so its durability stays", path=where)
                change_durability(where, durability)
        return cls(where, mode, memory=keep)

    def update_metadata(self, changes: dict[str, Any]) -> None:
        """Merge changes into the metadata; durable after the next commit.

        Raises:
            ValueError: If they are no JSON object.
        """
        self._require_writable()
        changes = layout.plain_json(changes, "the metadata")
        with self._engine.lock:
            self._engine.metadata = {**self._engine.metadata, **changes}
            self._engine.metadata_changes.update(changes)

    def writer(self, stream: str = "stream-0") -> StreamWriter:
        """Become the writer of a stream, which is made if there is none of that name.

        Raises:
            StoreLockedError: If another writer, here or in another process, has the stream; names it.
            ReadOnlyError: If the store was opened with mode="r".
        """
        self._require_writable()
        if not isinstance(stream, str) or not 0 < len(stream.encode()) <= 200:
            raise ValueError(f"a stream's name has 1 to 200 bytes, got {stream!r}")
        with self._engine.lock:
            self.access.settle_plans()
            claimed = self._engine.claim(stream)
            claimed.closing = True  # until it has its writer: an interrupt may come before
            writer = StreamWriter(self, claimed)
            self._writers.add(writer)
            claimed.closing = False
        return writer

    @property
    def steady(self) -> bool:
        """Return whether steps come and go by calls of this handle only: none of its writers is open."""
        return not self._writers

    def pin(self, stream: str, *, pinned: bool = True) -> None:
        """Keep a stream's segments from eviction (demonstrations that must stay), or let them go again."""
        self._require_writable()
        with self._engine.lock:
            found = [s for s in self._engine.streams.values() if s.name == stream]
            if not found:
                raise ValueError(f"{self.path}: no stream {stream!r}; there are {self.streams}")
            self._engine.pin(found[0], pinned=pinned)

    def commit(self) -> None:
        """Make everything so far durable: steps, priorities and sampler states, in one transaction.

        Raises:
            StoreFullError: If there is no room; the commit did not happen and can be tried again.
            ReadOnlyError: If the store was opened with mode="r".
            WriterStateError: If a signal handler asks in the midst of a commit, or a step was interrupted half-way.
        """
        self._require_writable()
        self._committer.require_outside()
        with self._engine.lock:
            self.access.settle_plans()
        self._committer.commit(self.access.participants)

    def seal(self) -> None:
        """Commit, and turn the tails into segments however short, so that zarr holds every step.

        Tails of streams that another process writes stay as they are. Every call can leave a short segment a
        stream, so call it at the end of a job, not after every step.

        Raises:
            WriterStateError: If a signal handler asks in the midst of a commit.
        """
        self._require_writable()
        self._committer.require_outside()
        claimed = []
        try:
            with self._engine.lock:
                self.access.settle_plans()
                self._engine.refresh()
                for stream in list(self._engine.streams.values()):
                    if stream.lock is None and stream.tails:
                        with contextlib.suppress(StoreLockedError):
                            claimed.append(self._engine.claim(stream.name))
            self._committer.commit(self.access.participants, seal=True)
        finally:
            with self._engine.lock:
                for stream in claimed:
                    self._engine.keep_until_committed(stream)

    def quarantine(self, segment: int, why: str) -> bool:
        """Leave a damaged segment out of all sampling, for good with the next commit; return whether it was there.

        Its files stay where they are. In a store opened with mode="r" it lasts until the store is closed.
        """
        self.check_open()
        with self._engine.lock:
            self.access.settle()
            return quarantine(self._engine, segment, why)

    @property
    def quarantined(self) -> dict[int, str]:
        """Return the segments that this process found damaged and left out, and why."""
        return dict(self._engine.quarantined)

    def sync(self) -> None:
        """Make what was committed survive a power cut too, if the store's durability is "process".

        Until the next commit: LMDB writes later ones into pages that it had freed, and a power cut while the system
        has written back some of these and not what refers to them can take the index. `backup` leaves a synced copy
        that no later commit touches.

        Cost: writes out what the operating system holds back, of the whole file system.
        """
        self.check_open()
        if self.durability != "power":
            self._engine.disk.sync_everything(self.path)

    def evict(self, transitions: int) -> int:
        """Drop the oldest segments until so many transitions are gone; return how many went.

        Whole segments only, pinned streams and unsealed tails left out. Works on a full disk.

        Raises:
            WriterStateError: If a signal handler asks in the midst of a commit.
        """
        self._require_writable()
        self._committer.require_outside()
        if isinstance(transitions, bool) or int(transitions) != transitions or transitions < 1:
            raise ValueError(f"transitions must be a whole number of at least 1, got {transitions!r}")
        with self._engine.lock:
            self.access.settle_plans()
        return self._committer.evict(int(transitions))

    def verify(self, *, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
        """Compare the index, the files and the rows with each other; return what is wrong.

        Holds no lock meanwhile. Rows that are not committed are not looked at.

        Args:
            quick: Read no file's contents.
            progress: Told (bytes examined, bytes in all) as it goes.
        """
        self.check_open()
        from diskreplay.storage.upkeep.verify import verify_store  # noqa: PLC0415  only who verifies waits for it

        return verify_store(self._engine, quick=quick, progress=progress)

    def backup(self, dest: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Backup:
        """Copy what is committed to a new store at `dest`, of one moment, whoever writes meanwhile.

        On the same file system shards are linked, not copied.

        Raises:
            StoreExistsError: If there is something at `dest`.
        """
        self.check_open()
        from diskreplay.storage.upkeep.backup import backup_store  # noqa: PLC0415  only who needs it waits for it

        return backup_store(self._engine, Path(dest), progress)

    def close(self) -> None:
        """Close writers and files. What was not committed is lost.

        Raises:
            WriterStateError: If a signal handler asks in the midst of a commit.
        """
        if self._closed:
            return
        if self._pid != os.getpid():
            self._closed = True  # all there is to close is the parent's
            return
        self._committer.require_outside()
        for writer in list(self._writers):
            writer.close()
        self._closing = True
        # A commit on its way writes shards that the streams' next writers may write, too: their locks stay till then.
        self._committer.alone(self._give_back)
        if self.mode == "a" and self.durability != "power":
            self._engine.disk.sync_everything(self.path)

    def _give_back(self) -> None:
        with self._engine.lock:
            self._engine.close()
            self._index.close()
            self._use.release()
            self._closed = True  # last: after an interrupt (Ctrl-C) the rest is still to be done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._pid == os.getpid():
                self._engine.close()
                self._use.release()
            self._index.close(wait=False)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self):,} transitions, {self.num_episodes:,} episodes"
        return f"ReplayStore({str(self.path)!r}, mode={self.mode!r}: {state})"

    def _writer_closed(self, writer: StreamWriter) -> None:
        self._engine.keep_until_committed(writer._stream)  # noqa: SLF001
        self._writers.discard(writer)

    def _require_writable(self) -> None:
        self.check_open()
        if self.mode != "a":
            raise ReadOnlyError(f"{self.path}: opened with mode='r'", path=self.path)
