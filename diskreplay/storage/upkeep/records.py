"""Read the records of the index as they are, sound or not: what verify, repair and backup look at.

Nothing here raises because of damage: what cannot be read is listed, the rest is returned.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import documents, layout
from diskreplay.storage.digest import TABLES
from diskreplay.storage.fields import Coding
from diskreplay.storage.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Field
    from diskreplay.storage.index import Index
    from diskreplay.storage.transactions import Reading

BY_SEGMENT = ("files", "checks", "episodes")
RECORD, INCONSISTENT, ORPHAN, QUARANTINED = "damaged record", "inconsistent", "orphan", "quarantined"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "missing file", "damaged file", "damaged record", "inconsistent", "quarantined" (damage that a reader
            came upon earlier), or "orphan" (a file that nothing names; nothing is lost by it).
        where: Path, or record of the index.
        what: In words.
    """

    kind: str
    where: str
    what: str

    @property
    def harmless(self) -> bool:
        """Return whether nothing is lost or wrong by it."""
        return self.kind == ORPHAN

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


@dataclass
class Catalogue:
    """What one state of the index says, but for the rows in tails and the priorities.

    Attributes:
        problems: Records that cannot be read.
        raw: (database, key) -> the value of each record in `problems`, as far as it can be had.
        counters: None if damaged or missing.
        codings: Empty if none are chosen yet, or if `codings_lost`.
        description: The copy of the group's attributes; None if there is none.
        streams: number -> JSON.
        segments, quarantine: segment -> SEGMENT.
        seals: seal number -> segment.
        samplers: name -> JSON.
        keys: database -> the segments it has records of, sound or not: segments, files, checks, episodes,
            quarantine, garbage.
        tails: (stream, segment) -> rows at which its records start.
    """

    problems: list[Problem] = field(default_factory=list)
    raw: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    counters: Any = None
    codings: dict[str, Coding] = field(default_factory=dict)
    codings_lost: bool = False
    description: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    streams: dict[int, dict[str, Any]] = field(default_factory=dict)
    segments: dict[int, Any] = field(default_factory=dict)
    quarantine: dict[int, Any] = field(default_factory=dict)
    seals: dict[int, int] = field(default_factory=dict)
    samplers: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, set[int]] = field(default_factory=dict)
    tails: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    @property
    def garbage(self) -> set[int]:
        """Return the segments whose shards may still have to be unlinked."""
        return self.keys["garbage"]

    def open_segments(self) -> set[int]:
        """Return the segments of which shards may lie on disk that the catalogue does not name yet."""
        streams = self.streams.values()
        return {segment for data in streams for name in ("tails", "taken") for segment in data.get(name, [])}


def read_catalogue(txn: Reading, fields: Sequence[Field], segment_steps: int) -> Catalogue:
    """Read the catalogue. Cost: O(segments); no row, no priority and no chunk's checksum is read."""
    out = Catalogue()
    _read_meta(txn, out, fields, segment_steps)
    _read_streams(txn, out)
    for database, found in (("segments", out.segments), ("quarantine", out.quarantine)):
        for key, payload in _sound(txn, out, database):
            segment = int.from_bytes(key, "big")
            why = impossible(payload, segment, segment_steps)
            if why:
                _note(out, database, key, why, layout.seal_record(database, key, payload))
            else:
                found[segment] = np.frombuffer(payload, layout.SEGMENT)[0]
    for key, payload in _sound(txn, out, "seals"):
        if len(payload) == layout.KEY_BYTES["segments"]:
            out.seals[int.from_bytes(key, "big")] = int.from_bytes(payload, "big")
        else:
            what = f"the record has {len(payload)} bytes"
            _note(out, "seals", key, what, layout.seal_record("seals", key, payload))
    for key, payload in _sound(txn, out, "samplers"):
        try:
            out.samplers[key.decode()] = documents.parse("samplers", payload, f"samplers {key!r}")
        except (CorruptStoreError, UnicodeDecodeError) as err:
            _note(out, "samplers", key, str(err), layout.seal_record("samplers", key, payload))
    for database in ("segments", "quarantine", "garbage", *BY_SEGMENT):
        out.keys[database] = {int.from_bytes(key, "big") for key in _whole_keys(txn, out, database)}
    for key in _whole_keys(txn, out, "tails"):
        number, segment, row = (int.from_bytes(part, "big") for part in (key[:4], key[4:12], key[12:]))
        out.tails.setdefault((number, segment), []).append(row)
    return out


@dataclass
class SegmentRecords:
    """The records of one segment; None where there is none or it is damaged.

    Attributes:
        wrong: (database, why) of each that is missing or damaged.
    """

    record: Any = None
    files: NDArray[Any] | None = None
    checks: NDArray[np.uint32] | None = None
    episodes: NDArray[Any] | None = None
    wrong: list[tuple[str, str]] = field(default_factory=list)


def read_segment(
    txn: Reading, segment: int, fields: int, chunks: int, segment_steps: int, database: str = "segments"
) -> SegmentRecords:
    """Read what the index says of a segment.

    Args:
        txn: A look at the index.
        segment: Which.
        fields: How many fields there are.
        chunks: How many chunks the shards of a segment have together.
        segment_steps: Rows of a segment.
        database: Where its SEGMENT lies.
    """
    key, out = layout.segment_key(segment), SegmentRecords()
    lengths = {"files": fields, "checks": chunks, "episodes": None, database: 1}
    dtypes = {"files": layout.FILE, "checks": layout.CHECK, "episodes": layout.EPISODE, database: layout.SEGMENT}
    for name, count in lengths.items():
        try:
            array = txn.array(name, key, dtypes[name])
        except ReplayError as err:
            out.wrong.append((name, str(err)))
            continue
        except lmdb.Error as err:
            out.wrong.append((name, f"index: {name} {key!r} cannot be read: {err}"))
            continue
        if array is None:
            out.wrong.append((name, "the record is missing"))
        elif count is not None and len(array) != count:
            out.wrong.append((name, f"the record lists {len(array)}, not {count}"))
        elif name == database:
            why = impossible(array.tobytes(), segment, segment_steps)
            if why:
                out.wrong.append((name, why))
            else:
                out.record = array[0]
        else:
            setattr(out, name, array)
    return out


def impossible(payload: bytes, segment: int, segment_steps: int) -> str:
    """Say why a payload is no SEGMENT of this segment; nothing if it is one."""
    if len(payload) != layout.SEGMENT.itemsize:
        return f"the record of segment {segment} has {len(payload)} bytes"
    record = np.frombuffer(payload, layout.SEGMENT)[0]
    rows, ends = int(record["rows"]), int(record["ends"])
    first, last = int(record["first_end"]), int(record["last_end"])
    sound = (
        record["segment"] == segment
        and 0 < rows <= segment_steps
        and 0 <= ends <= rows
        and -1 <= record["previous"] < segment
        and record["stream"] >= 0
        and 0 <= record["seal"] < layout.MOST_SEGMENTS
        and ((first, last) == (-1, -1) if not ends else 0 <= first <= last < rows)
    )
    return "" if sound else f"the record of segment {segment} is impossible"


def read_tail(txn: Reading, stream: int, segment: int, fields: Sequence[Field], segment_steps: int) -> Tail:
    """Return the rows of an open segment.

    Raises:
        CorruptStoreError: If one of its records is damaged.
    """
    tail = Tail(segment, fields, segment_steps)
    for _, payload in txn.items("tails", layout.tail_key(stream, segment)):
        tail.apply(payload, f"the tail of stream {stream}")
    return tail


def check_digest(index: Index) -> Iterator[Problem]:
    """Compare each table with what it must hold, in a look of its own. Cost: O(records)."""
    try:
        with index.read() as txn:
            txn.check_newest()
    except CorruptStoreError as err:
        yield Problem(RECORD, "index", str(err))
        return
    for name in TABLES:
        try:
            with index.read() as txn:
                txn.check_table(name)
        except CorruptStoreError as err:
            yield Problem(RECORD, f"index: {name}", str(err))


def _read_streams(txn: Reading, out: Catalogue) -> None:
    for key, payload in _sound(txn, out, "streams"):
        try:
            out.streams[int.from_bytes(key, "big")] = documents.parse("streams", payload, f"streams {key!r}")
        except CorruptStoreError as err:
            _note(out, "streams", key, str(err), layout.seal_record("streams", key, payload))


def _read_meta(txn: Reading, out: Catalogue, fields: Sequence[Field], segment_steps: int) -> None:
    found = dict(_sound(txn, out, "meta"))
    lost = {key for database, key in out.raw if database == "meta"}
    counters = found.get(b"counters")
    if counters is not None and len(counters) == layout.COUNTERS.itemsize:
        out.counters = np.frombuffer(counters, layout.COUNTERS).copy()[0]
    elif b"counters" not in lost:
        _note(out, "meta", b"counters", "the counters are missing")
    if b"description" not in found and b"description" not in lost:
        _note(out, "meta", b"description", "the copy of the store's description is missing")
    parsed: dict[bytes, dict[str, Any]] = {}
    for key in (b"fields", b"metadata", b"description"):
        if key in found:
            try:
                parsed[key] = layout.parse_json(found[key], f"meta {key!r}")
            except CorruptStoreError as err:
                _note(out, "meta", key, str(err), layout.seal_record("meta", key, found[key]))
                lost.add(key)
    out.metadata, out.description = parsed.get(b"metadata", {}), parsed.get(b"description")
    out.codings_lost = b"fields" in lost
    codings = parsed.get(b"fields")
    if codings is None:
        return
    try:
        if set(codings) != {item.name for item in fields}:
            raise CorruptStoreError(f"the index knows other fields: {sorted(codings)}")
        out.codings = {item.name: Coding.from_json(item.name, codings[item.name], segment_steps) for item in fields}
    except (CorruptStoreError, AttributeError) as err:
        out.codings_lost = True
        _note(out, "meta", b"fields", str(err), layout.seal_record("meta", b"fields", found[b"fields"]))


def _sound(txn: Reading, out: Catalogue, database: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, payload) of the records whose checksum is right; note the others."""
    try:
        for key, value in txn.raw_items(database):
            try:
                payload = layout.open_record(database, key, value)
            except CorruptStoreError as err:
                _note(out, database, key, str(err), value)
            else:
                yield key, payload
    except lmdb.Error as err:
        out.problems.append(Problem(RECORD, f"index: {database}", f"the table cannot be walked: {err}"))


def _keys(txn: Reading, out: Catalogue, database: str) -> Iterator[bytes]:
    try:
        yield from txn.keys(database)
    except lmdb.Error as err:
        out.problems.append(Problem(RECORD, f"index: {database}", f"the table cannot be walked: {err}"))


def _whole_keys(txn: Reading, out: Catalogue, database: str) -> Iterator[bytes]:
    """Yield the keys that name a segment that can be; note the others: a flipped bit makes such."""
    segment = slice(4, 12) if database == "tails" else slice(None)
    for key in _keys(txn, out, database):
        whole = len(key) == layout.KEY_BYTES[database]
        if whole and int.from_bytes(key[segment], "big") < layout.MOST_SEGMENTS:
            yield key
        elif (database, key) not in out.raw:
            value = (txn.raw(database, key) if key else None) or b""
            _note(out, database, key, "its key names no segment that can be", value)


def _note(out: Catalogue, database: str, key: bytes, what: str, value: bytes = b"") -> None:
    out.raw[database, key] = value
    out.problems.append(Problem(RECORD, name_of(database, key), what))


def name_of(database: str, key: bytes) -> str:
    """Return how people call a record."""

    def number(start: int, stop: int | None = None) -> int:
        return int.from_bytes(key[start:stop], "big")

    name = _text(key)
    if database in ("segments", "quarantine", "garbage", *BY_SEGMENT) and len(key) == 8:
        name = f"of segment {number(0)}"
    elif database == "tails" and len(key) == 16:
        return f"index: tail of stream {number(0, 4)}, segment {number(4, 12)}, row {number(12)}"
    elif database == "sums" and len(key) > 9:
        name = f"of sampler {_text(key[:-9])!r}, segment {number(-8)}"
    elif database == "updates" and len(key) > 9:
        name = f"of sampler {_text(key[:-9])!r}, number {number(-8)}"
    elif database == "priorities" and len(key) > 11:
        name = f"of sampler {_text(key[:-11])!r}, segment {number(-10, -2)}, block {number(-2)}"
    elif (database, len(key)) in (("seals", 8), ("streams", 4)):
        return f"index: {database[:-1]} {number(0)}"
    return f"index: {database} {name}"


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
