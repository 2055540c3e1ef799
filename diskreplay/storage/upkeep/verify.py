"""Cross-examine the index, the files and the rows; change nothing.

No lock is held and no look at the index lasts longer than reading one portion of it, so writers go on meanwhile
and LMDB's pages are used again. What is evicted while it is examined is passed over.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.creation import require_own_folders, use_store
from diskreplay.storage.fields import fields_of
from diskreplay.storage.probe import probe
from diskreplay.storage.upkeep.arrays import array_documents, array_problems, group_problems
from diskreplay.storage.upkeep.consistency import check_catalogue
from diskreplay.storage.upkeep.damaged import description_of, open_index, require_store
from diskreplay.storage.upkeep.free_pages import free_pages_trouble
from diskreplay.storage.upkeep.leftovers import find_leftovers
from diskreplay.storage.upkeep.marks import Run, differences, is_cut, of_tail, tail_differences, tell
from diskreplay.storage.upkeep.records import (
    INCONSISTENT,
    RECORD,
    Catalogue,
    Problem,
    SegmentRecords,
    check_digest,
    name_of,
    read_catalogue,
    read_segment,
    read_tail,
)
from diskreplay.storage.upkeep.sampled import Rows, check_sampler, strays
from diskreplay.storage.upkeep.shards import Examined, ShardExaminer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diskreplay.storage.engine import Engine
    from diskreplay.storage.fields import Field
    from diskreplay.storage.index import Index
    from diskreplay.storage.transactions import Reading

    Progress = Callable[[int, int], None]

__all__ = ["Problem", "Verification", "verify_index", "verify_path", "verify_store"]

PORTION = 32
MOST_BYTES = 1 << 30
THREADS = 4


def verify_store(engine: Engine, *, quick: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Compare every file with what was committed, every row with the index, and the index with itself.

    Args:
        engine: The open store's.
        quick: Read no file's contents: the index, and which files there are and how long.
        progress: Told (bytes examined, bytes in all) as it goes.
    """
    trouble = probe(engine.root / layout.INDEX)
    if trouble:  # what it is might end this process
        return [Problem(RECORD, str(engine.root / layout.INDEX), trouble)]
    return verify_index(engine.root, engine.fields, engine.segment_steps, engine.index, quick=quick, progress=progress)


def verify_index(
    root: Path,
    fields: Sequence[Field],
    segment_steps: int,
    index: Index,
    *,
    quick: bool = False,
    progress: Progress | None = None,
) -> list[Problem]:
    """Do as `verify_store` where the engine may refuse to open the store."""
    return _Verification(root, fields, segment_steps, index, quick=quick, progress=progress).run()


@dataclass
class Verification:
    """What came of verifying a store.

    Attributes:
        path: The store.
        problems: What is wrong.
        bytes: Length of the files that were examined; 0 if only the index was.
        seconds: Wall time.
    """

    path: Path
    problems: list[Problem]
    bytes: int
    seconds: float

    @property
    def sound(self) -> bool:
        """Return whether nothing is lost or wrong; files that nothing names are neither."""
        return all(problem.harmless for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "store": str(self.path),
            "ok": self.sound,
            "problems": [problem.to_json() for problem in self.problems],
            "bytes": self.bytes,
            "seconds": self.seconds,
            "gigabytes_per_second": self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0,
        }


def verify_path(path: str | os.PathLike[str], *, quick: bool = False, progress: Progress | None = None) -> Verification:
    """Verify a store that may be too damaged to be opened: that, too, is a problem found, and not an error.

    Raises:
        StoreNotFoundError: If there is no store at the path.
        FormatVersionError: If it is of a format this release does not read.
        StoreLockedError: If it is being repaired.
    """
    root, began, seen = Path(path).absolute(), time.monotonic(), [0]
    require_store(root)

    def count(done: int, total: int) -> None:
        seen[0] = done
        if progress is not None:
            progress(done, total)

    lock = use_store(root, required=False)
    try:
        problems = _verify_path(root, quick=quick, progress=count)
    finally:
        lock.release()
    return Verification(root, problems, 0 if quick else seen[0], time.monotonic() - began)


def _verify_path(root: Path, *, quick: bool, progress: Progress) -> list[Problem]:
    where = root / layout.INDEX
    trouble = probe(where)
    if trouble:
        return [Problem(RECORD, str(where), trouble), *group_problems(root, None)]
    try:
        description, _ = description_of(root, where)
        require_own_folders(root, description.spec)
        index, stale = open_index(where)
    except CorruptStoreError as err:
        return [Problem(RECORD, str(err.path or root), str(err))]
    try:
        fields, steps = fields_of(description.spec), description.segment_steps
        problems = [Problem(RECORD, str(where), stale)] if stale else []
        return problems + verify_index(root, fields, steps, index, quick=quick, progress=progress)
    finally:
        index.close()


class _Verification:
    def __init__(
        self,
        root: Path,
        fields: Sequence[Field],
        segment_steps: int,
        index: Index,
        *,
        quick: bool,
        progress: Progress | None,
    ) -> None:
        self.root = root
        self.fields = tuple(fields)
        self.segment_steps = segment_steps
        self.index = index
        self.quick = quick
        self.progress = progress
        self.problems: list[Problem] = []
        self.catalogue = Catalogue()
        self.transitions = 0
        self._runs: dict[int, tuple[int, Run | None]] = {}

    def run(self) -> list[Problem]:
        with self.index.read() as txn:
            self.catalogue = read_catalogue(txn, self.fields, self.segment_steps)
        self.problems += self.catalogue.problems
        self.problems += check_catalogue(self.catalogue)
        self.problems += group_problems(self.root, self.catalogue.description)
        if self.catalogue.codings:
            documents = array_documents(self.fields, self.segment_steps, self.catalogue.codings)
            self.problems += array_problems(self.root, documents, self._needed_rows())
            self._segments()
        elif self.catalogue.segments and not self.catalogue.codings_lost:
            self.problems.append(Problem(INCONSISTENT, "index: meta fields", "no codings, but there are segments"))
        self._tails()
        self._totals()
        for name, state in self.catalogue.samplers.items():
            self.problems += check_sampler(self.index, name, state, self._rows_of, self.segment_steps)
        self._strays()
        if all(problem.harmless for problem in self.problems):
            self.problems += check_digest(self.index)
        trouble = free_pages_trouble(self.index, quick=self.quick)
        if trouble:
            self._say(RECORD, "index: free pages", f"{trouble}: commits would fail, or write over what is in use")
        self.problems += find_leftovers(self.root, self.fields, self.segment_steps, self.index)
        return self.problems

    def _needed_rows(self) -> int:
        return (max(self.catalogue.segments, default=-1) + 1) * self.segment_steps

    def _say(self, kind: str, where: str, what: str) -> None:
        self.problems.append(Problem(kind, where, what))

    # Segments, portion by portion, each portion's files by several threads.

    def _segments(self) -> None:
        examiner = ShardExaminer(self.root, self.fields, self.segment_steps, self.catalogue.codings)
        segments = sorted(self.catalogue.keys["segments"])
        sizes = {s: int(record["bytes_on_disk"]) for s, record in self.catalogue.segments.items()}
        total, done = sum(sizes.values()), 0
        largest = max(sizes.values(), default=0)
        threads = max(1, min(THREADS, os.cpu_count() or 1, MOST_BYTES // max(1, largest)))
        with ThreadPoolExecutor(threads, thread_name_prefix="diskreplay-verify") as pool:
            for start in range(0, len(segments), PORTION):
                portion = segments[start : start + PORTION]
                with self.index.read() as txn:
                    records = [
                        read_segment(txn, s, len(self.fields), sum(examiner.chunks), self.segment_steps)
                        for s in portion
                    ]
                for segment, known, found in zip(
                    portion, records, pool.map(lambda p: self._look(examiner, *p), zip(portion, records, strict=True)),
                    strict=True,
                ):  # fmt: skip
                    if found is not None:
                        self._judge(segment, known, found)
                    elif not self._evicted(segment):
                        self._broken_records(segment, known)
                    done += sizes.get(segment, 0)
                    if self.progress is not None:
                        self.progress(done, total)

    def _look(self, examiner: ShardExaminer, segment: int, known: SegmentRecords) -> Examined | None:
        if known.wrong:
            return None
        if self.quick and known.files is not None:
            return examiner.lengths(segment, known.files)
        return examiner.examine(segment, int(known.record["rows"]), known.files, known.checks)

    def _broken_records(self, segment: int, known: SegmentRecords) -> None:
        for database, why in known.wrong:
            where = name_of(database, layout.segment_key(segment))
            if where not in {problem.where for problem in self.catalogue.problems}:
                self._say(RECORD, where, why)

    def _judge(self, segment: int, known: SegmentRecords, found: Examined) -> None:
        if found.wrong and self._evicted(segment):
            return
        for kind, path, what in found.wrong:
            self._say(kind, str(path), what)
        record, episodes, where = known.record, known.episodes, f"segment {segment}"
        rows, ends = int(record["rows"]), episodes["end_row"]  # type: ignore[index]
        expected = record.copy()
        layout.note_episodes(expected, episodes)  # type: ignore[arg-type]
        expected["cut"] = is_cut(episodes, rows)  # type: ignore[arg-type]
        if record.tobytes() != expected.tobytes():
            self._say(INCONSISTENT, where, "the catalogue counts other episodes")
        if record["bytes_on_disk"] != known.files["length"].sum():  # type: ignore[index]
            self._say(INCONSISTENT, where, "the catalogue knows another size of its files")
        self.transitions += rows - len(ends)
        if self.quick or found.wrong:
            return
        previous, stream = int(record["previous"]), int(record["stream"])
        before = Run() if previous < 0 else None
        if previous >= 0 and self._runs.get(stream, (-1, None))[0] == previous:
            before = self._runs[stream][1]
        told = tell(segment * self.segment_steps, found.columns, before, cut=is_cut(episodes, rows))  # type: ignore[arg-type]
        for what in [*told.wrong, *differences(episodes, told)]:  # type: ignore[arg-type]
            self._say(INCONSISTENT, where, what)
        self._runs[stream] = (segment, told.after)

    def _evicted(self, segment: int) -> bool:
        """Look whether the catalogue has forgotten a segment since it was read."""
        with self.index.read() as txn:
            try:
                return txn.get("segments", layout.segment_key(segment)) is None
            except CorruptStoreError:
                return False

    # Tails, stream by stream.

    def _tails(self) -> None:
        for number in sorted(self.catalogue.streams):
            try:
                with self.index.read() as txn:
                    data = txn.json("streams", layout.stream_key(number))
                    if data is not None:
                        self._stream_tails(txn, number, data)
            except CorruptStoreError as err:
                self._say(RECORD, f"index: tail of stream {number}", str(err))

    def _stream_tails(self, txn: Reading, number: int, data: dict[str, Any]) -> None:
        previous, before = self._runs.get(number, (-1, None))
        last = int(data["last_segment"])
        before = Run() if last < 0 else before if last == previous else None
        pending = True
        for segment in data["tails"]:
            tail = read_tail(txn, number, int(segment), self.fields, self.segment_steps)
            self.transitions += tail.rows - tail.n_ends
            pending = tail.pending
            if tail.rows:
                told = of_tail(tail, before)
                for what in tail_differences(tail, told, newest=segment == data["tails"][-1]):
                    self._say(INCONSISTENT, f"index: tail of stream {number}, segment {segment}", what)
                before = told.after
        if before is not None and before.first_step_id >= 0 and not pending:
            self._say(INCONSISTENT, f"index: stream {number}", "its newest step has no next observation")

    def _rows_of(self, txn: Reading, segment: int) -> Rows | None:
        key = layout.segment_key(segment)
        record = txn.array("segments", key, layout.SEGMENT)
        if record is not None:
            episodes = txn.array("episodes", key, layout.EPISODE)
            if episodes is None:
                raise CorruptStoreError(f"the episodes of segment {segment} are missing")
            rows = int(record[0]["rows"])
            return Rows(rows, episodes["end_row"], is_cut(episodes, rows))
        for name in txn.keys("streams"):  # as they are now: one may have been made since the verification began
            number = int.from_bytes(name, "big")
            sound = ("streams", name) not in self.catalogue.raw
            if sound and segment in (txn.json("streams", name) or {}).get("tails", []):
                tail = read_tail(txn, number, segment, self.fields, self.segment_steps)
                return Rows(tail.rows, tail.ends[: tail.n_ends])
        return None

    def _totals(self) -> None:
        """Compare the counts of steps and bytes, if nothing was committed meanwhile."""
        counters = self.catalogue.counters
        if counters is None or self.problems:
            return
        with self.index.read() as txn:
            if txn.counters()["commits"] != counters["commits"]:
                return
        size = sum(int(record["bytes_on_disk"]) for record in self.catalogue.segments.values())
        for name, found in (("transitions", self.transitions), ("bytes_on_disk", size)):
            if name in (layout.COUNTERS.names or ()) and int(counters[name]) != found:
                what = f"{name} is counted as {int(counters[name])}, it is {found}"
                self._say(INCONSISTENT, "index: meta counters", what)

    def _strays(self) -> None:
        with self.index.read() as txn:
            try:
                names = {key.decode() for key, _ in txn.items("samplers")}
            except ReplayError:
                return  # whose they are cannot be known
            for database, key in strays(txn, names):
                self._say(INCONSISTENT, name_of(database, key), "there is no sampler of that name")
