"""The commit protocol. What it promises: after `commit` returns, nothing before it is lost.

1. Rows are validated and buffered in tails. Nothing is promised.
   If it stops here: the rows since the last commit are gone, as they were never acknowledged.
2. Full tails are written as shards: temporary name, fsync, rename, fsync of the folder (segments.py).
   If it stops here: the shards are orphans that no catalogue names; the rows are still in tail records, as far
   as they were committed. The next seal of the same segment replaces them.
3. One LMDB transaction: catalogue entries of sealed segments, removal of their tail records, new tail records,
   streams, priorities, sampler states, evictions, counters.
   If it stops here: LMDB's last good state is the previous commit. If the transaction's end fails, it can be unclear
   whether it counts; so it is such that doing it again is right either way.
4. The transaction is durable: acknowledged. Tables in memory follow.
   If it stops here: the next open reads the same from the index.
5. Shards of evicted segments are unlinked, their folders synced. The index lists them as garbage since step 3, and
   the next commit takes them off the list.
   If it stops here: the next commit, of whichever process, does it again.

When the disk is full in step 2 or 3, what the capacity says is over anyway is evicted first, by a transaction of its
own, and the commit tried once more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError, StoreFullError, WriterStateError
from diskreplay.storage import layout
from diskreplay.storage.coding import choose_coding
from diskreplay.storage.durable import FileRecord
from diskreplay.storage.eviction import Capacity, evict_oldest, take_garbage
from diskreplay.storage.locks import FileLock
from diskreplay.storage.priorities import open_segments
from diskreplay.storage.quarantine import put_quarantine
from diskreplay.storage.tail import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diskreplay.storage.engine import Engine
    from diskreplay.storage.fields import Compression
    from diskreplay.storage.streams import Stream
    from diskreplay.storage.tail import Tail
    from diskreplay.storage.transactions import Reading, Writing

Result = TypeVar("Result")


@dataclass
class SamplerRecord:
    """What a sampler wants committed with the data.

    Attributes:
        name: The sampler's.
        state: JSON: random state, draws in flight, settings.
        blocks: (segment, block) -> record of its priorities.
        sums: segment -> its SUM records, of every segment of which anything changed.
        updates: number -> record of the journal.
        update: The number that the first of them has or would have; whatever is there from it on is replaced.
        kept: Records of the journal with a lower number go: no block needs them.
    """

    name: str
    state: dict[str, Any]
    blocks: dict[tuple[int, int], bytes] = field(default_factory=dict)
    sums: dict[int, bytes] = field(default_factory=dict)
    updates: dict[int, bytes] = field(default_factory=dict)
    update: int | None = None
    kept: int = 0


class Participant(Protocol):
    """Something whose state is committed together with the data."""

    def collect(self) -> SamplerRecord | None:
        """Return what changed since the last commit; called with the store's lock held."""

    def committed(self) -> None:
        """Hear that what was collected is durable."""


@dataclass
class _Job:
    stream: Stream
    tail: Tail
    files: list[FileRecord] = field(default_factory=list)
    checks: bytes = b""
    record: Any = None
    quarantined: bool = False


class Committer:
    """Make an engine's state durable.

    Args:
        engine: The state.
        capacity: Beyond it, whole segments are evicted, oldest first.
        compression, chunk_steps: How to choose the codings when the first segment is sealed, see `choose_coding`.
    """

    def __init__(
        self, engine: Engine, capacity: Capacity, compression: Compression, chunk_steps: int | None = None
    ) -> None:
        self.engine = engine
        self.capacity = capacity
        self.compression = compression
        self.chunk_steps = chunk_steps
        self._one_at_a_time = threading.RLock()  # not a Lock: a signal handler would wait for ever
        self._thread: int | None = None
        self._unclear = False
        self._garbage: set[int] = set()
        self._swept: set[int] = set()

    def require_outside(self) -> None:
        """Make sure that this thread is not in the midst of a commit already, and a signal handler asks.

        Raises:
            WriterStateError: If so: it would wait for itself.
        """
        if self._thread == threading.get_ident():
            raise WriterStateError(
                f"{self.engine.root}: a signal handler cannot commit, seal, evict or close in the midst of a commit",
                path=self.engine.root,
                hint="Let the handler set a flag, and look at the flag between steps.",
            )

    def alone(self, work: Callable[[], Result]) -> Result:
        """Do it when no other thread commits, evicts or closes, and let none begin meanwhile."""
        with self._one_at_a_time:
            self.require_outside()
            self._thread = threading.get_ident()
            try:  # not a context manager of our own: interrupted, its frame could outlive the block
                return work()
            finally:
                self._thread = None

    def commit(self, participants: Callable[[], Sequence[Participant]] = list, *, seal: bool = False) -> None:
        """Make everything so far durable.

        Args:
            participants: Returns those whose states are committed in the same transaction. Asked at its beginning, with
                the lock held: while shards are written another sampler may take the place of one.
            seal: Also turn this process's tails into segments, however short.

        Raises:
            StoreFullError: If there is no room. Nothing of this commit counts; it can be tried again.
            WriterStateError: If a signal handler asks in the midst of a commit, or a step was interrupted half-way.
        """

        def work() -> None:
            self._settle()
            if seal:
                with self.engine.lock:
                    self._require_whole()
                    self._close_tails()
            try:
                self._commit(participants)
            except StoreFullError:
                if not self._evict_now()[1]:
                    raise
                self._commit(participants)

        self.alone(work)

    def evict(self, transitions: int = 0) -> int:
        """Drop the oldest segments until so many transitions are gone; return how many went.

        Without a number: until the capacity is kept, what is about to be committed included. Works on a full disk:
        it needs no more than pages of the index that are free.
        """

        def work() -> int:
            self._settle()
            return self._evict_now(transitions)[0]

        return self.alone(work)

    def _settle(self) -> None:
        """Take in what a transaction did that failed: it may count all the same."""
        if self._unclear:
            with self.engine.lock:
                self.engine.refresh()
            self._unclear = False

    def _evict_now(self, transitions: int = 0) -> tuple[int, bool]:
        """Do as `evict`; return also whether any segment went, quarantined ones included."""
        engine = self.engine
        with engine.lock:
            try:
                with engine.index.write() as txn:
                    counters = txn.counters()
                    before = int(counters["transitions"])
                    if transitions:
                        limit = Capacity(max(0, before - transitions))
                    else:
                        limit = self._capacity_before(txn, counters)
                    evicted = self._evict(txn, counters, limit)
                    counters["commits"] += bool(evicted)
                    txn.put_counters(counters)
            except BaseException:
                self._unclear = True
                raise
            with engine.changing():
                self._forget(evicted, counters)
        self._sweep()
        return before - int(counters["transitions"]), bool(evicted)

    def _capacity_before(self, txn: Writing, counters: Any) -> Capacity:
        """Return the capacity less what the next commit is going to add."""
        streams = [stream for stream in self.engine.streams.values() if stream.lock is not None]
        coming = sum(_coming_steps(txn, stream) for stream in streams)
        full = sum(tail.full for stream in streams for tail in stream.tails)
        size = full * int(counters["bytes_on_disk"]) // max(1, txn.count("segments"))
        steps, most = self.capacity.steps, self.capacity.size_bytes
        return Capacity(
            None if steps is None else max(0, steps - coming),
            None if most is None else max(0, most - size),
        )

    def _commit(self, participants: Callable[[], Sequence[Participant]]) -> None:
        engine = self.engine
        with engine.lock:
            self._require_whole()
            jobs = [
                _Job(stream, tail)
                for stream in engine.streams.values()
                if stream.lock is not None
                for tail in stream.tails
                if tail.full
            ]
        if jobs:
            engine.index.require_in_place()
            self._choose_codings(jobs)
            written = engine.writer.write([job.tail for job in jobs], engine.codings)
            for job, (files, checks) in zip(jobs, written, strict=True):
                job.files, job.checks = files, checks
        with engine.lock:
            self._transact(jobs, participants)
        self._sweep()

    def _require_whole(self) -> None:
        """Make sure that no step was interrupted half-way. With the lock held nobody is about one."""
        self.engine.require_whole()
        for stream in self.engine.streams.values():
            stream.require_whole()

    def _sweep(self) -> None:
        """Do step 5. The commit counts already, so what cannot be removed now is left for the next one."""
        if self._garbage:
            with contextlib.suppress(ReplayError):
                self.engine.index.require_in_place()
                for segment in self._garbage:
                    self.engine.writer.remove(segment)
                self.engine.writer.sync_fields()
                self._swept |= self._garbage
                self._garbage = set()

    def _close_tails(self) -> None:
        """Close the tails that hold complete rows; a pending row moves on to a new one."""
        engine = self.engine
        for stream in engine.streams.values():
            tail = stream.open_tail
            if stream.lock is None or tail is None or not tail.rows or tail.full:
                continue
            new = engine.new_tails(stream, int(tail.pending))
            with engine.changing():
                self._close(stream, tail, new)

    def _close(self, stream: Stream, tail: Tail, new: list[Tail]) -> None:
        engine = self.engine
        tail.pending, tail.closed = False, True
        if new and not tail.running.length:
            tail.running = Running()  # it begins with the row that moves on
        engine.table.follow_tail(engine.table.slot(tail.segment), tail)
        for following in new:
            engine.start_tail(stream, following)
            names = [item.name for item in engine.fields if item.role == "observation"]
            following.observe([tail.arrays[name][tail.rows] for name in names])
            engine.table.follow_tail(engine.table.slot(following.segment), following)

    def _choose_codings(self, jobs: list[_Job]) -> None:
        engine = self.engine
        with FileLock(layout.lock_path(engine.root, "layout"), f"{engine.root}: the layout"):
            with engine.index.read() as txn:
                if engine.load_codings(txn):
                    return
                if txn.count("segments") or txn.count("quarantine"):
                    # Making the arrays anew would remove the shards that are there.
                    raise CorruptStoreError(f"{engine.root}: the index has lost how the fields are coded")
            tail = jobs[0].tail
            codings = {
                item.name: choose_coding(
                    item,
                    tail.arrays[item.name][: tail.rows],
                    segment_steps=engine.segment_steps,
                    compression=self.compression,
                    chunk_steps=self.chunk_steps,
                )
                for item in engine.fields
            }
            engine.writer.create_arrays(codings)
            with engine.index.write() as txn:
                txn.put_json("meta", b"fields", {k: v.to_json() for k, v in codings.items()})
        with engine.lock:
            engine.codings.update(codings)

    def _transact(self, jobs: list[_Job], participants: Callable[[], Sequence[Participant]]) -> None:
        """Do step 3, and 4."""
        engine = self.engine
        self._require_whole()  # again: writers went on meanwhile
        jobs = [job for job in jobs if job.stream.lock is not None]  # of others the tails may be another's by now
        records = [(p, p.collect()) for p in participants()]
        before = {s.number: s.last_segment for s in engine.streams.values()}
        try:
            with engine.index.write() as txn:
                counters = txn.counters()
                alone = counters["commits"] == engine.seen["commits"]
                jobs, lost = self._split(txn, jobs)
                self._put_streams(txn, jobs, lost, counters)
                put_quarantine(txn, engine, counters)
                evicted = self._evict(txn, counters, self.capacity)
                gone = self._gone(txn, [*evicted, *(job.tail.segment for job in lost)])
                for _, record in records:
                    if record is not None:
                        _put_sampler(txn, record, gone)
                if engine.metadata_changes:
                    engine.metadata = {**(txn.json("meta", b"metadata") or {}), **engine.metadata_changes}
                    txn.put_json("meta", b"metadata", engine.metadata)
                counters["commits"] += 1
                txn.put_counters(counters)
        except BaseException:
            self._unclear = True
            for number, segment in before.items():
                engine.streams[number].last_segment = segment
            raise
        with engine.changing():
            self._follow(jobs, evicted, counters, alone=bool(alone))
            for job in lost:
                engine.drop(job.tail.segment)
                if not job.quarantined:  # else its files are for `repair`
                    self._garbage.add(job.tail.segment)
        for participant, record in records:
            if record is not None:
                participant.committed()

    def _follow(self, jobs: list[_Job], evicted: list[int], counters: Any, *, alone: bool) -> None:
        """Do step 4: let the tables in memory say what the index says now."""
        engine = self.engine
        engine.metadata_changes = {}
        engine.quarantine_changes = {}
        for job in jobs:
            job.stream.tails.remove(job.tail)
            engine.take_sealed(job.record)
        for stream in engine.streams.values():
            if stream.lock is not None:
                for tail in stream.tails:
                    tail.mark_committed()
                if stream.closing:
                    engine.release(stream)
        if alone:
            engine.seen = counters
        self._swept.clear()
        self._forget(evicted, counters)

    def _forget(self, evicted: list[int], counters: Any) -> None:
        engine = self.engine
        for segment in evicted:
            if segment in engine.table:
                engine.drop(segment)
        self._garbage.update(evicted)
        engine.steps_evicted = int(counters["steps_evicted"])
        engine.episodes_evicted = int(counters["episodes_evicted"])

    def _split(self, txn: Writing, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """Return the jobs, and apart those of segments that went: a commit that failed sealed them and counted."""
        left: list[_Job] = []
        lost: list[_Job] = []
        for job in jobs:
            segment, record = job.tail.segment, txn.json("streams", layout.stream_key(job.stream.number)) or {}
            known = segment in [*record.get("tails", []), *record.get("taken", [])]
            known |= txn.has("segments", layout.segment_key(segment))
            job.quarantined = txn.has("quarantine", layout.segment_key(segment))
            (left if known else lost).append(job)
        return left, lost

    def _put_streams(self, txn: Writing, jobs: list[_Job], lost: list[_Job], counters: Any) -> None:
        for job in jobs:
            self._put_segment(txn, job, counters)
        for job in lost:
            job.stream.last_segment = max(job.stream.last_segment, job.tail.segment)
        sealed = {job.tail.segment for job in (*jobs, *lost)}
        for stream in self.engine.streams.values():
            if stream.lock is not None and stream.dirty:  # a tail that is full is, too
                counters["transitions"] += _coming_steps(txn, stream)
                self._put_tail(txn, stream, sealed)

    def _gone(self, txn: Writing, evicted: list[int]) -> Callable[[int], bool]:
        """Return a test for segments that are not there any more, here or through another process."""
        dropped, streams = set(evicted), self.engine.streams.values()
        mine = {tail.segment for stream in streams if stream.lock is not None for tail in stream.tails}
        others = cache(lambda: open_segments(txn))

        def gone(segment: int) -> bool:
            if segment in dropped:
                return True
            known = segment in mine or txn.has("segments", layout.segment_key(segment))
            return not known and segment not in others()

        return gone

    def _put_segment(self, txn: Writing, job: _Job, counters: Any) -> None:
        tail, stream, key = job.tail, job.stream, layout.segment_key(job.tail.segment)
        record = np.zeros(1, layout.SEGMENT)
        entry = record[0]
        # A commit whose end failed may count all the same: then the record is there, with its own seal number, and the
        # stream's last segment may be this one already.
        known = txn.array("segments", key, layout.SEGMENT)
        entry["segment"] = tail.segment
        entry["previous"] = stream.last_segment if known is None else known[0]["previous"]
        entry["stream"], entry["rows"] = stream.number, tail.rows
        layout.note_episodes(entry, tail.episodes[: tail.n_ends])
        entry["bytes_on_disk"] = sum(item.length for item in job.files)
        seal = counters["seals"] if known is None else known[0]["seal"]
        entry["sealed_at"], entry["seal"] = time.time(), seal
        files = np.array([tuple(item) for item in job.files], layout.FILE)
        txn.put("segments", key, record.tobytes())
        txn.put("files", key, files.tobytes())
        txn.put("checks", key, job.checks)
        txn.put("episodes", key, tail.episodes[: tail.n_ends].tobytes())
        txn.put("seals", layout.segment_key(int(seal)), key)
        if known is None:
            counters["seals"] += 1
            counters["bytes_on_disk"] += int(entry["bytes_on_disk"])
        stream.last_segment = tail.segment
        job.record = record[0]

    def _put_tail(self, txn: Writing, stream: Stream, sealed: set[int]) -> None:
        left = []
        for tail in stream.tails:
            if tail.segment in sealed:
                txn.delete_prefix("tails", layout.tail_key(stream.number, tail.segment))
                continue
            left.append(tail)
            if tail.dirty:
                row, payload = tail.record()
                key = layout.tail_key(stream.number, tail.segment, row)
                txn.delete_prefix("tails", layout.tail_key(stream.number, tail.segment), key)
                txn.put("tails", key, payload)
        txn.put_json("streams", layout.stream_key(stream.number), stream.to_json(left))

    def _evict(self, txn: Writing, counters: Any, capacity: Capacity) -> list[int]:
        self._garbage |= take_garbage(txn, self._swept)
        return evict_oldest(txn, counters, capacity)


def _with_checks(sums: bytes, before: Any, written: Sequence[tuple[int, int]]) -> bytes:
    """Have SUM records say which checksum each block has: as it was written now, or as the index says already."""
    out = np.frombuffer(sums, layout.SUM).copy()
    if before is not None:
        same = min(len(out), len(before))
        out["check"][:same] = before["check"][:same]
    for block, check in written:
        out["check"][block] = check
    return out.tobytes()


def _coming_steps(txn: Reading, stream: Stream) -> int:
    """Return how many steps of a stream the index does not count yet."""
    known = txn.json("streams", layout.stream_key(stream.number)) or {}
    return stream.steps - int(known.get("steps", 0))


def _put_sampler(txn: Writing, record: SamplerRecord, gone: Callable[[int], bool]) -> None:
    txn.put_json("samplers", record.name.encode(), record.state)
    live = {segment: sums for segment, sums in record.sums.items() if not gone(segment)}
    checks: dict[int, list[tuple[int, int]]] = {}
    for (segment, block), payload in record.blocks.items():
        if segment in live:  # of every segment whose blocks changed the sums did
            check = txn.put("priorities", layout.priority_key(record.name, segment, block), payload)
            checks.setdefault(segment, []).append((block, check))
    for segment, sums in live.items():
        key = layout.sum_key(record.name, segment)
        txn.put("sums", key, _with_checks(sums, txn.array("sums", key, layout.SUM), checks.get(segment, ())))
    if record.update is not None:
        # A commit whose end failed may have left records of its own.
        name = record.name
        txn.delete_range("updates", layout.update_key(name, record.update), name.encode() + b"\1")
        for number, payload in record.updates.items():
            txn.put("updates", layout.update_key(name, number), payload)
        txn.delete_range("updates", layout.update_key(name, 0), layout.update_key(name, record.kept))
