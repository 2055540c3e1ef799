"""A store's state in one process: the live segments, the streams and their tails, kept in step with the index.

Owns opening, refreshing and the claims on streams. How things become durable is in commit.py. Every method is to
be called with `engine.lock` held.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.ahead import Ahead
from diskreplay.storage.durable import Disk
from diskreplay.storage.fields import Coding, fields_of
from diskreplay.storage.locks import FileLock
from diskreplay.storage.reading import Reader
from diskreplay.storage.residency import Residency, expect_files
from diskreplay.storage.segments import SegmentWriter
from diskreplay.storage.streams import Stream
from diskreplay.storage.table import SegmentTable
from diskreplay.storage.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.experience import StepSpec
    from diskreplay.storage.index import Index
    from diskreplay.storage.transactions import Reading


MOST_QUOTED = 200  # of a file name, which has at most 255 bytes

_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


def _new_locks_in_child() -> None:
    # Another thread may have held it; what it guarded is of no use in the child, but must not hang.
    for engine in list(_alive):
        engine.lock = threading.RLock()


os.register_at_fork(after_in_child=_new_locks_in_child)


class Engine:
    """The storage floor's state of one open store.

    Args:
        root: The store's folder.
        spec: What a step is.
        segment_steps: Rows of a segment.
        index: The open index.
        disk: The seam to the disk.
    """

    def __init__(
        self,
        root: Path,
        spec: StepSpec,
        segment_steps: int,
        index: Index,
        disk: Disk | None = None,
    ) -> None:
        self.root = root
        self.fields = fields_of(spec)
        self.segment_steps = segment_steps
        self.index = index
        self.disk = disk or Disk()
        self.lock = threading.RLock()
        self.table = SegmentTable(self.fields, segment_steps)
        self.residency = Residency(root, self.fields, self.table, index)
        self.reader = Reader(self.fields, self.table, self.residency)
        self.writer = SegmentWriter(root, self.fields, segment_steps, self.disk)
        self.streams: dict[int, Stream] = {}
        self._sampler_locks: dict[str, FileLock] = {}
        self._encoder: threading.Thread | None = None
        self.metadata: dict[str, Any] = {}
        self.metadata_changes: dict[str, Any] = {}
        self.codings: dict[str, Coding] = self.residency.codings
        self.quarantined: dict[int, str] = {}
        self.quarantine_changes: dict[int, Any] = {}
        self.cuts: list[int] = []
        self.torn = False
        self.episodes_sealed = 0
        self.steps_evicted = 0
        self.episodes_evicted = 0
        self.seen = np.zeros(1, layout.COUNTERS)[0]
        self._load()
        _alive.add(self)

    @contextlib.contextmanager
    def changing(self, *, again: bool = False) -> Iterator[None]:
        """Change what belongs together, with the lock held: what an interrupt (Ctrl-C) leaves is not used again.

        Args:
            again: What an error of our own leaves may be: the change is done again from the beginning.
        """
        before, self.torn = self.torn, True
        try:
            yield
        except Exception:
            if again:
                self.torn = before
            raise
        self.torn = before

    def require_whole(self) -> None:
        """Make sure that no change of this handle's tables was interrupted; call with the lock held.

        Raises:
            ReplayError: If one was: rows could be read from where others lie now.
        """
        if self.torn:
            raise ReplayError(
                f"{self.root}: taking in a commit was interrupted half-way, so this handle is of no use any more",
                path=self.root,
                hint="Close it and open the store anew: everything that was committed is there.",
            )

    def refresh(self) -> bool:
        """Take in what other processes committed; return whether there was anything."""
        self.require_whole()
        with self.index.read() as txn:
            counters = txn.counters()
            if counters["commits"] == self.seen["commits"]:
                return False
            txn.check_newest()
            with self.changing(again=True):
                self._take_in(txn, counters)
        return True

    def claim(self, name: str) -> Stream:
        """Become the writer of a stream; make it if there is none of that name.

        An episode that its last writer left unfinished ends as interrupted.

        Raises:
            StoreLockedError: If somebody else writes it; names the holder.
        """
        stream = self._named(name)
        if stream.closing:
            stream.closing = False
            return stream
        self.index.require_in_place()
        lock = FileLock(
            layout.lock_path(self.root, f"stream-{stream.number}"),
            f"{self.root}: stream {name!r}",
        )
        lock.acquire()
        try:
            self.refresh()
        except BaseException:
            lock.release()
            raise
        stream.lock = lock
        try:
            self._set_aside_leftovers(stream)
            tail = stream.open_tail
            if tail is not None and tail.pending:
                self.end_episode(stream, layout.INTERRUPTED)
        except BaseException:
            self.release(stream)
            raise
        return stream

    def release(self, stream: Stream) -> None:
        """Stop writing a stream."""
        if stream.lock is not None:
            stream.lock.release()
            stream.lock = None
        stream.closing = False

    def keep_until_committed(self, stream: Stream) -> None:
        """Stop writing a stream, once its rows are committed."""
        if stream.dirty:
            stream.closing = True
        else:
            self.release(stream)

    def pin(self, stream: Stream, *, pinned: bool) -> None:
        """Have eviction pass a stream over, or not any more.

        Raises:
            StoreLockedError: If another process writes the stream.
        """
        mine = stream.lock is not None
        if not mine:
            self.claim(stream.name)
        try:
            with self.index.write() as txn:
                key, counters = layout.stream_key(stream.number), txn.counters()
                record = txn.json("streams", key)
                if record is None:
                    raise CorruptStoreError(f"{self.root}: the index has no record of stream {stream.name!r}")
                txn.put_json("streams", key, {**record, "pinned": pinned})
                counters["commits"] += 1  # so that others take it in
                txn.put_counters(counters)
            stream.pinned = pinned
        finally:
            if not mine:
                self.keep_until_committed(stream)

    def tail_to_write(self, stream: Stream) -> Tail:
        """Return the stream's tail that has room for a row; start a segment if there is none."""
        tail = stream.open_tail
        return self.start_tail(stream, *self.new_tails(stream, 1)) if tail is None or tail.full else tail

    def take_segments(self, stream: Stream, count: int) -> list[int]:
        """Return ids for new segments; taken in the index, so no process ever gets them again.

        The stream's record lists them until its next commit: should this process die before, the stream's next
        writer knows which shards are leftovers. Callers take ids before they change anything, for this can fail.
        """
        if not count:
            return []
        with self.index.write() as txn:
            counters, key = txn.counters(), layout.stream_key(stream.number)
            first = int(counters["next_segment"])
            taken = list(range(first, first + count))
            counters["next_segment"] += count
            txn.put_counters(counters)
            record = txn.json("streams", key)
            if record is None:
                raise CorruptStoreError(f"{self.root}: the index has no record of stream {stream.name!r}")
            txn.put_json("streams", key, {**record, "taken": [*record.get("taken", []), *taken]})
        return taken

    def new_tails(self, stream: Stream, count: int) -> list[Tail]:
        """Return tails for `start_tail`, with ids of their own. Made before anything is changed: memory may not do."""
        return [Tail(segment, self.fields, self.segment_steps) for segment in self.take_segments(stream, count)]

    def start_tail(self, stream: Stream, tail: Tail) -> Tail:
        """Put a new tail behind what the stream has."""
        last = stream.open_tail
        self._add_tail(stream, tail, last.segment if last else stream.last_segment)
        if last is not None:
            tail.running = last.running
        return tail

    def _add_tail(self, stream: Stream, tail: Tail, previous: int) -> Tail:
        slot = self.table.add(tail.segment, stream.number, previous)
        self.table.attach_tail(slot, tail)
        stream.tails.append(tail)
        return tail

    def encode_ahead(self, stream: Stream) -> None:
        """Have the complete rows of a stream's open segment encoded in the background, if it is time to.

        One block at a time, however many streams there are: their threads would take the cores from the writers.
        """
        tail = stream.open_tail
        if tail is None:  # another thread has sealed them
            return
        if tail.ahead is None and self.codings:
            tail.ahead = Ahead(tail, self.fields, self.codings)
        if tail.ahead is None or tail.closed or not tail.ahead.due(tail.rows):
            return
        if self._encoder is None or not self._encoder.is_alive():
            self._encoder = tail.ahead.begin(tail.rows)

    def end_episode(self, stream: Stream, flags: int) -> None:
        """Make the stream's pending row the last of its episode; an episode without steps leaves no row."""
        tail = stream.tails[-1]
        if tail.running.length:
            tail.finish(flags)
            stream.episodes += 1
        else:
            tail.abandon()
        self.table.follow_tail(self.table.slot(tail.segment), tail)

    def load_codings(self, txn: Reading) -> bool:
        """Take over the fields' codings, if they are chosen yet."""
        if self.codings:
            return True
        data = txn.json("meta", b"fields")
        if data is None:
            return False
        if set(data) != {field.name for field in self.fields}:
            raise CorruptStoreError(f"{self.root}: the index knows other fields: {sorted(data)}")
        self.codings.update({name: Coding.from_json(name, coding, self.segment_steps) for name, coding in data.items()})
        return True

    def claim_sampler(self, name: str) -> None:
        """Become the process that owns a sampler's priorities.

        Raises:
            StoreLockedError: If another process does; names it.
        """
        if name not in self._sampler_locks:
            quoted = quote(name, safe="")
            if len(quoted) > MOST_QUOTED:
                quoted = hashlib.sha256(name.encode()).hexdigest()
            path = layout.lock_path(self.root, f"sampler-{quoted}")
            self._sampler_locks[name] = FileLock(path, f"{self.root}: sampler {name!r}").acquire()

    def close(self) -> None:
        """Give back locks and files."""
        for lock in self._sampler_locks.values():
            lock.release()
        self._sampler_locks.clear()
        for stream in self.streams.values():
            self.release(stream)
            for tail in stream.tails:
                if tail.ahead is not None:
                    tail.ahead.wait()
        self.residency.close()

    def _load(self) -> None:
        with self.index.read() as txn:
            txn.check_newest()
            for name in ("meta", "quarantine", "garbage", "tails"):
                txn.check_table(name)
            counters = txn.counters()
            expect_files(txn.count("segments") * len(self.fields))
            self.load_codings(txn)
            self._add_sealed(self._read_segments(txn, counters))
            applied = self._load_streams(txn)
            if applied != txn.count("tails"):
                raise CorruptStoreError(
                    f"{self.root}: the index counts {txn.count('tails')} tail records, its streams have {applied}"
                )
            self.metadata = txn.json("meta", b"metadata") or {}
            self._see(counters)

    def _take_in(self, txn: Reading, counters: Any) -> None:
        self.load_codings(txn)
        if counters["evictions"] != self.seen["evictions"]:
            self._take_in_evictions(txn, int(counters["evictions"] - self.seen["evictions"]))
        first = layout.segment_key(int(self.seen["seals"]))
        for _, key in txn.items("seals", start=first):
            records = txn.array("segments", key, layout.SEGMENT)
            if records is not None:
                self._check_segments(records, np.frombuffer(key, ">u8"), counters)
                self._add_sealed(records)
        if self._sealed(txn) != txn.count("segments"):
            self._compare_all(txn, counters)
        if counters["cuts"] != self.seen["cuts"]:  # after the seals: a tail is not cut
            self._take_in_cuts(txn, counters)
        self._load_streams(txn)
        self.metadata = {**(txn.json("meta", b"metadata") or {}), **self.metadata_changes}
        self._see(counters)

    def _take_in_evictions(self, txn: Reading, count: int) -> None:
        """Drop so many segments that are gone. Cost: O(they, and older ones that are pinned): the oldest go first."""
        table = self.table
        for slot in table.live().tolist():
            segment = int(table.segment[slot])
            if slot not in table.tails and not txn.has("segments", layout.segment_key(segment)):
                self.drop(segment)
                count -= 1
                if not count:
                    return

    def _compare_all(self, txn: Reading, counters: Any) -> None:
        """Know the segments that the catalogue names, and no others. Cost: O(segments)."""
        records = self._read_segments(txn, counters)
        alive = set(records["segment"].tolist())
        for slot in self.table.live().tolist():
            segment = int(self.table.segment[slot])
            if slot not in self.table.tails and segment not in alive:
                self.drop(segment)
        self._add_sealed(records)

    def _sealed(self, txn: Reading) -> int:
        """Return how many sealed segments this process knows that the catalogue should name."""
        left_out = sum(txn.has("segments", layout.segment_key(segment)) for segment in self.quarantined)
        return len(self.table) - len(self.table.tails) + left_out

    def _take_in_cuts(self, txn: Reading, counters: Any) -> None:
        records = self._read_segments(txn, counters)
        for segment in records["segment"][records["cut"] > 0].tolist():
            if segment in self.table and not self.table.cut[self.table.slot(segment)]:
                self.table.cut_after(self.table.slot(segment))
                self.cuts.append(segment)
                self.episodes_sealed += 1

    def _see(self, counters: Any) -> None:
        self.seen = counters
        self.steps_evicted = int(counters["steps_evicted"])
        self.episodes_evicted = int(counters["episodes_evicted"])

    def drop(self, segment: int) -> int:
        """Forget an evicted segment; return the slot it had."""
        slot = self.table.slot(segment)
        if slot in self.table.tails:
            stream = self.streams[int(self.table.stream[slot])]
            stream.tails = [tail for tail in stream.tails if tail.segment != segment]
        else:
            self.episodes_sealed -= int(self.table.n_ends[slot])
        self.residency.forget(slot)
        return self.table.remove(segment)

    def take_sealed(self, record: Any) -> None:
        """Turn a tail into the sealed segment of this record."""
        slot = self.table.slot(int(record["segment"]))
        self.table.detach_tail(slot)
        self.table.fill(slot, record)
        self.episodes_sealed += int(record["episodes"])

    def _read_segments(self, txn: Reading, counters: Any) -> NDArray[Any]:
        """Return the whole catalogue, (segments,) SEGMENT, ascending."""
        segments, payload, lengths = txn.by_segment("segments")
        if (lengths != layout.SEGMENT.itemsize).any():
            raise CorruptStoreError(f"{self.root}: the index has a record of a segment that is none")
        records = np.frombuffer(payload, layout.SEGMENT)
        self._check_segments(records, segments, counters)
        return records

    def _check_segments(self, records: NDArray[Any], keys: NDArray[Any], counters: Any) -> None:
        rows, ends, segments = records["rows"], records["ends"], records["segment"]
        sound = np.zeros(len(keys), np.bool_)
        if len(records) == len(keys):
            sound = (segments == keys.astype(np.int64)) & (segments >= 0) & (segments < counters["next_segment"])
            sound &= (rows > 0) & (rows <= self.segment_steps) & (ends >= 0) & (ends <= rows)
            sound &= records["last_end"] < rows
        if not sound.all():
            segment = int(keys[np.flatnonzero(~sound)[0]])
            raise CorruptStoreError(f"{self.root}: the index has an impossible record of segment {segment}")

    def _add_sealed(self, records: NDArray[Any]) -> None:
        table = self.table
        known = table.find(records["segment"]) >= 0
        fresh = records[~known & ~np.isin(records["segment"], list(self.quarantined))]
        table.add_sealed(fresh)
        self.episodes_sealed += int(fresh["episodes"].sum(dtype=np.int64))
        for record in records[known] if table.tails else ():
            segment = int(record["segment"])
            if table.slot(segment) not in table.tails:
                continue
            stream = self.streams[int(record["stream"])]
            if stream.lock is None:
                stream.tails = [tail for tail in stream.tails if tail.segment != segment]
                self.take_sealed(record)
                if record["cut"]:
                    self.cuts.append(segment)  # samplers may know its last row as one of a running episode

    def _load_streams(self, txn: Reading) -> int:
        """Take in the streams that others write; return how many tail records that were."""
        applied = 0
        for number, data in txn.streams():
            stream = self.streams.get(number)
            if stream is None:
                stream = self.streams[number] = Stream(number, "")
            if stream.lock is None:
                applied += self._load_tails(txn, stream, stream.update(data))
        return applied

    def _load_tails(self, txn: Reading, stream: Stream, segments: list[int]) -> int:
        applied = 0
        for old in list(stream.tails):
            if old.segment not in segments:
                # Neither sealed nor in the index: its rows were never committed.
                self.drop(old.segment)
        known = {tail.segment: tail for tail in stream.tails}
        previous = stream.last_segment
        for segment in segments:
            tail = known.get(segment)
            if tail is None:
                tail = self._add_tail(stream, Tail(segment, self.fields, self.segment_steps), previous)
            prefix = layout.tail_key(stream.number, segment)
            next_row = layout.tail_key(stream.number, segment, tail.rows)
            # The record before it may have taken rows in, and ones that followed.
            start = max((key for key in txn.keys("tails", prefix) if key <= next_row), default=prefix)
            for _, payload in txn.items("tails", prefix, start):
                tail.apply(payload, f"the tail of stream {stream.name!r}", again=True)
                applied += 1
            self.table.follow_tail(self.table.slot(segment), tail)
            previous = segment
        return applied

    def _set_aside_leftovers(self, stream: Stream) -> None:
        """Move aside what a writer that died had written for segments that never were committed."""
        with self.index.read() as txn:
            record = txn.json("streams", layout.stream_key(stream.number))
            if record is not None:
                stream.update(record)
            taken = [s for s in stream.taken if txn.get("segments", layout.segment_key(s)) is None]
        known = {tail.segment for tail in stream.tails}
        self.index.require_in_place()
        self.writer.set_aside([segment for segment in taken if segment not in known])

    def _named(self, name: str) -> Stream:
        for stream in self.streams.values():
            if stream.name == name:
                return stream
        with self.index.write() as txn:
            with self.changing(again=True):
                self._take_in(txn, txn.counters())
            for stream in self.streams.values():
                if stream.name == name:
                    return stream
            counters = txn.counters()
            made = Stream(int(counters["next_stream"]), name)
            counters["next_stream"] += 1
            txn.put_counters(counters)
            txn.put_json("streams", layout.stream_key(made.number), made.to_json([]))
        self.streams[made.number] = made  # known from when it is there: another process may get the number else
        return made
