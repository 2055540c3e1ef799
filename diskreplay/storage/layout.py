"""Every name and record on disk; this docstring is the specification of format version 1.

    name.replay/
      zarr.json                   zarr v3 group; attributes.diskreplay: {format_version, uuid, spec, segment_steps,
                                  capacity, compression, chunk_steps, created, durability}
      steps/zarr.json             zarr v3 group
      steps/<field>/zarr.json     zarr v3 array (rows, *shape), sharded: one shard is one segment of S = segment_steps
                                  rows; inner chunks of chunk_steps rows, codecs [bytes, (zstd | blosc), crc32c];
                                  shard index at the end, little-endian (offset, nbytes) u64 pairs, crc32c
      steps/<field>/c.<s>.0...    shard of segment s; written once, renamed into place, never changed
      index.lmdb/                 LMDB (0.9 file format): the only truth about which shards count
      index.lmdb/watermark        length of data.mdb u64, newest transaction u64, crc32c u32 (LE): lower bounds
      locks/                      flock(2) files: stream-<n>, sampler-<name>, layout, store (shared by all who have
                                  the store open, exclusive for repair and for a change of durability)
      lost+found/                 what was set aside; nothing reads it: steps/<field>/<shard> by a stream's next writer;
                                  <time>-<pid>/{report.json, index/<database>/<key in hex>, ...} by repair

Fields: one per leaf of the observation and the action, and
    reward f32, terminated bool, truncated bool   what followed the action of the row
    is_last bool                                  the row holds an episode's final observation, and no action
    episode i64                                   step id of the episode's first row; -1 where there is no row

The checks are what makes a shard the one that was committed: every part of a shard ends in its own crc32c, so a
swapped or stale shard is sound in itself. For the same reason a file's own checksum is zlib's crc32: the crc32c of
bytes that end in their crc32c is the same number whatever they are.

Row t of the arrays is step id t. Segment s owns rows [s*S, (s+1)*S); a short segment's shards lack the chunks past
its rows, so that the rest reads as the fill value: episode = -1. A reader without the index finds every sealed row by
episode >= 0.

LMDB databases (integers in keys are big-endian; every value ends in the crc32c, u32 LE, of the database's name, 0, its
key, and what precedes it in the value):
    meta        b"counters"  COUNTERS            b"fields"  JSON {field: {codec, chunk_steps}}
                b"metadata"  JSON, the user's     b"description"  JSON, a copy of the group's attributes
    streams     stream u32            JSON: name, last sealed segment, segments in the tail, counts, pinned; ids of
                                      segments taken since the last commit
    segments    segment u64           SEGMENT
    seals       seal number u64       segment u64: the order in which segments were sealed
    files       segment u64           [FILE] * fields, in the order of `fields`
    checks      segment u64           u32 * chunks, field after field: the crc32c that each chunk must have
    episodes    segment u64           [EPISODE]: the episodes whose last row lies in the segment. Flag CUT: the
                                      segment that followed was lost; the row is then not marked is_last in the shard
    quarantine  segment u64           SEGMENT: found damaged and left out; its other records stay where they are
    garbage     segment u64           empty: evicted, but its shards may not all be unlinked yet
    tails       stream u32, segment u64, row u32    tail record: rows committed but not sealed (see tail.py)
    priorities  sampler name, 0, segment u64, block u16: folded u64, then f32 * PRIORITY_BLOCK, the raw priorities;
                                      fewer at a segment's end, or where those that follow are in the journal alone
    updates     sampler name, 0, number u64     journal: step id i64 * n, ascending, then priority f32 * n.
                                      An entry overwrites a block if its record's number is at least the block's
                                      `folded` (0 without a block), in the order of numbers; segments may be gone
    samplers    sampler name          JSON: alpha, largest priority, random state, draws in flight, next_update: above
                                      all numbers used in the journal
    sums        sampler name, 0, segment u64    [SUM], one for each block of priorities: sum of priority^alpha, place
                                      of the segment in the tree, rows: the tree's upper level; and the crc32c that
                                      the block's record has, 0 without one: a block of earlier is sound in itself
    digest      b"tables"             LMDB's number u64 of the transaction that wrote it, the newest (an index that LMDB
                                      copied begins with 1 again); then, of each table above, in this order, the sum
                                      u64 of its values' crc32c
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from diskreplay.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

FORMAT_VERSION = 1
GROUP_KEY = "diskreplay"
INDEX = "index.lmdb"
STEPS = "steps"
LOCKS = "locks"
LOST = "lost+found"
PRIORITY_BLOCK = 4096
MOST_SEGMENTS = 10**12  # ids are below it, so that step ids fit 63 bits
DIGEST = "digest"

DATABASES = (
    "meta", "streams", "segments", "seals", "files", "checks", "episodes", "quarantine", "garbage", "tails",
    "priorities", "updates", "samplers", "sums", "digest",
)  # fmt: skip

KEY_BYTES = {
    "streams": 4, "segments": 8, "seals": 8, "files": 8, "checks": 8, "episodes": 8, "quarantine": 8, "garbage": 8,
    "tails": 16,
}  # fmt: skip

COUNTERS = np.dtype(
    [
        ("commits", "<i8"),
        ("next_segment", "<i8"),
        ("next_stream", "<i8"),
        ("seals", "<i8"),
        ("evictions", "<i8"),
        ("steps_evicted", "<i8"),
        ("episodes_evicted", "<i8"),
        ("transitions", "<i8"),
        ("bytes_on_disk", "<i8"),
        ("cuts", "<i8"),
    ],
)
COUNTED = COUNTERS.names or ()
MOST_COUNTED = np.full(len(COUNTED), 1 << 62)
MOST_COUNTED[[COUNTED.index(name) for name in ("next_segment", "seals")]] = MOST_SEGMENTS
MOST_COUNTED[COUNTED.index("next_stream")] = 1 << 31
SEGMENT = np.dtype(
    [
        ("segment", "<i8"),
        ("previous", "<i8"),
        ("stream", "<i4"),
        ("rows", "<i4"),
        ("ends", "<i4"),
        ("first_end", "<i4"),
        ("last_end", "<i4"),
        ("episodes", "<i4"),
        ("bytes_on_disk", "<i8"),
        ("sealed_at", "<f8"),
        ("seal", "<i8"),
        ("first_flags", "u1"),
        ("cut", "u1"),
    ],
)
FILE = np.dtype([("length", "<i8"), ("crc32", "<u4")])
CHECK = np.dtype("<u4")
EPISODE = np.dtype(
    [
        ("first_step_id", "<i8"),
        ("end_row", "<i4"),
        ("length", "<i4"),
        ("episode_return", "<f8"),
        ("flags", "u1"),
    ],
)
SUM = np.dtype([("total", "<f8"), ("place", "<i4"), ("rows", "<i4"), ("check", "<u4")])
TERMINATED, TRUNCATED, INTERRUPTED, CUT = 1, 2, 4, 8


def group_path(root: Path) -> Path:
    """Return the path of the store's own zarr.json."""
    return root / "zarr.json"


def field_path(root: Path, field: str) -> Path:
    """Return the folder of a field's array."""
    return root / STEPS / field


def shard_name(segment: int, dimensions: int) -> str:
    """Return the file name of a segment's shard in its field's folder."""
    return ".".join(["c", str(segment), *["0"] * (dimensions - 1)])


def shard_segment(path: str) -> int | None:
    """Return the segment that a shard's path names; None if it is no shard's."""
    parts = Path(path).name.removesuffix(" (deleted)").split(".")  # as /proc names an open file that was removed
    return int(parts[1]) if len(parts) > 1 and parts[0] == "c" and parts[1].isdecimal() else None


def lock_path(root: Path, name: str) -> Path:
    """Return the path of a lock file."""
    return root / LOCKS / name


def stream_key(stream: int) -> bytes:
    """Return the key of a stream."""
    return struct.pack(">I", stream)


def segment_key(segment: int) -> bytes:
    """Return the key of a segment (or of a seal number)."""
    return struct.pack(">Q", segment)


def tail_key(stream: int, segment: int, row: int | None = None) -> bytes:
    """Return the key of the tail record that starts at `row` of an open segment; without, their common prefix."""
    return struct.pack(">IQ", stream, segment) + (b"" if row is None else struct.pack(">I", row))


def priority_key(sampler: str, segment: int, block: int) -> bytes:
    """Return the key of a block of priorities."""
    return sampler.encode() + b"\0" + struct.pack(">QH", segment, block)


def update_key(sampler: str, number: int) -> bytes:
    """Return the key of a record of a sampler's journal."""
    return sampler.encode() + b"\0" + struct.pack(">Q", number)


def sum_key(sampler: str, segment: int) -> bytes:
    """Return the key of a segment's entry in the sum-tree checkpoint."""
    return sampler.encode() + b"\0" + struct.pack(">Q", segment)


def seal_value(payload: bytes, owner: bytes = b"") -> bytes:
    """Append the crc32c of a payload, and of what it belongs to."""
    return payload + _check(payload, owner)


def _check(payload: bytes, owner: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.extend(google_crc32c.value(owner), payload))


def open_value(value: bytes, what: str, owner: bytes = b"") -> bytes:
    """Return a payload without its checksum.

    Raises:
        CorruptStoreError: If the checksum does not match; `what` names the record.
    """
    payload = value[:-4]
    if len(value) < 4 or _check(payload, owner) != value[-4:]:
        raise CorruptStoreError(f"index: the record of {what} is damaged (checksum)")
    return payload


def record_owner(database: str, key: bytes) -> bytes:
    """Return what the checksum of an LMDB value covers besides the value.

    LMDB itself has no checksums, and keeps large values on pages of their own, without their keys: where two such
    pages are exchanged, each value would be sound, and another's.
    """
    return database.encode() + b"\0" + key


def seal_record(database: str, key: bytes, payload: bytes) -> bytes:
    """Append the checksum that every LMDB value carries."""
    return seal_value(payload, record_owner(database, key))


def record_checks(database: str) -> Callable[[bytes, bytes], int]:
    """Return a function of key and payload: the checksum that a value of this table must have; for many of them."""
    extend, start = google_crc32c.extend, google_crc32c.value(record_owner(database, b""))
    return lambda key, payload: int(extend(extend(start, key), payload))


def record_checksum(value: bytes | memoryview | None) -> int:
    """Return the crc32c that an LMDB value says it has; 0 of none."""
    return 0 if value is None else int.from_bytes(value[-4:], "little")


def open_record(database: str, key: bytes, value: bytes, what: str = "") -> bytes:
    """Return an LMDB value without its checksum.

    Raises:
        CorruptStoreError: If the checksum does not match; `what` names the record.
    """
    return open_value(value, what or f"{database} {key!r}", record_owner(database, key))


def priorities_payload(folded: int, values: NDArray[np.float32]) -> bytes:
    """Return a block of priorities as a record without its checksum."""
    return struct.pack("<Q", folded) + values.astype("<f4").tobytes()


def parse_priorities(payload: bytes, what: str) -> tuple[int, NDArray[np.float32]]:
    """Return `folded` and the priorities of a block.

    Raises:
        CorruptStoreError: If its length does not fit.
    """
    if len(payload) < 8:
        raise CorruptStoreError(f"index: the record of {what} has {len(payload)} bytes")
    return min(struct.unpack("<Q", payload[:8])[0], 1 << 62), records(payload[8:], np.dtype("<f4"), what)


def records(payload: bytes | bytearray | memoryview, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return a record without its checksum as a numpy array.

    Raises:
        CorruptStoreError: If its length does not fit.
    """
    if len(payload) % dtype.itemsize:
        raise CorruptStoreError(f"index: the record of {what} has {len(payload)} bytes")
    return np.frombuffer(payload, dtype=dtype)


def loads(text: bytes) -> Any:
    """Return what JSON from a file that anybody may have written stands for.

    Raises:
        ValueError: If it is no JSON, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err


def parse_json(payload: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a record without its checksum holds.

    Raises:
        CorruptStoreError: If it is none.
    """
    try:
        data = loads(payload)
    except ValueError as err:
        raise CorruptStoreError(f"index: the record of {what} is no JSON") from err
    if not isinstance(data, dict):
        raise CorruptStoreError(f"index: the record of {what} is no JSON object")
    return data


def plain_json(data: Any, what: str) -> dict[str, Any]:
    """Return a copy of a JSON object, as it will be read back.

    Raises:
        ValueError: If it is none: found out at a commit, it would stand in the way of that and every other.
    """
    try:
        return parse_json(json_payload(data), what)
    except (CorruptStoreError, TypeError, ValueError, RecursionError) as err:
        raise ValueError(f"{what} must be a JSON object: {err}") from err


def json_payload(data: Mapping[str, Any]) -> bytes:
    """Return a JSON object as a record without its checksum."""
    return json.dumps(data, separators=(",", ":")).encode()


def impossible_counts(counters: Any) -> list[str]:
    """Return the names of those of a store's counters that are negative, or beyond all ids."""
    values = counters.reshape(1).view(np.int64)
    return [COUNTED[i] for i in np.flatnonzero((values < 0) | (values > MOST_COUNTED))]


def note_episodes(segment: Any, episodes: NDArray[Any]) -> None:
    """Have a SEGMENT record say what the segment's EPISODE records say."""
    segment["ends"] = segment["episodes"] = len(episodes)
    segment["first_end"], segment["last_end"] = episodes["end_row"][[0, -1]] if len(episodes) else (-1, -1)
    segment["first_flags"] = episodes["flags"][0] if len(episodes) else 0


def cut_episode(first_step_id: int, end_row: int, length: int, episode_return: float) -> NDArray[Any]:
    """Return one EPISODE, of an episode that ends in this row because what followed is lost."""
    return np.array([(first_step_id, end_row, length, episode_return, INTERRUPTED | CUT)], EPISODE)
