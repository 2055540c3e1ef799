"""One shard: the rows that a segment has of one field, encoded as zarr v3's sharding codec lays them out.

    chunk 0 | crc32c || chunk 1 | crc32c || ... || index: (offset, length) u64 a chunk | crc32c

Sealing goes through here and not through zarr-python, which needs 5 ms for every shard however small; the bytes are
the same, and a test compares them. Chunks past a short segment's rows are absent: (2^64 - 1, 2^64 - 1) in the index.
"""

from __future__ import annotations

import itertools
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import Zstd

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import encoding_kernels, kernels, layout, native
from diskreplay.storage.fields import LEVELS, blosc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

CRC_BYTES = 4
ABSENT = np.uint64((1 << 64) - 1)
MOST_THREADS, BYTES_A_THREAD = 4, 1 << 20


class Encoded(NamedTuple):
    """Chunks as they lie in a shard, one after the other.

    Attributes:
        data: u8: each chunk, followed by its checksum.
        lengths: (chunks,) bytes of each, its checksum included.
        checks: (chunks,) u32: their crc32c.
    """

    data: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    checks: NDArray[np.uint32]


def encode_shard(
    field: Field,
    coding: Coding,
    rows: NDArray[Any],
    segment_steps: int,
    *,
    threads: int | None = None,
    ahead: Sequence[Encoded] = (),
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Encode a segment's rows of one field.

    Args:
        field: The field.
        coding: Its chunk length and codec.
        rows: (N, *shape) in the field's dtype, 1 <= N <= segment_steps; the last chunk is filled up.
        segment_steps: Rows of a full segment.
        threads: That compress; None: as many as pay.
        ahead: What `encode_chunks` made of the first rows, in their order.

    Returns:
        The shard's bytes, and (chunks,) u32: the crc32c of every chunk, 0 for those that are absent.
    """
    steps, chunks = coding.chunk_steps, segment_steps // coding.chunk_steps
    written = -(-len(rows) // steps)
    rest = rows[sum(len(part.lengths) for part in ahead) * steps :]
    if len(rest) % steps:
        full = np.full((-(-len(rest) // steps) * steps, *field.shape), field.fill, field.dtype)
        full[: len(rest)] = rest
        rest = full
    parts = [*ahead, *_encode_side_by_side(rest, coding, threads)]
    lengths = np.concatenate([part.lengths for part in parts])
    entries = np.full((chunks, 2), ABSENT, "<u8")
    entries[:written] = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    checks = np.zeros(chunks, "<u4")
    checks[:written] = np.concatenate([part.checks for part in parts])
    index = np.frombuffer(layout.seal_value(entries.tobytes()), np.uint8)
    return np.concatenate([*(part.data for part in parts), index]), checks


def encode_chunks(rows: NDArray[Any], coding: Coding) -> Encoded:
    """Encode whole chunks of one field: (chunks * chunk_steps, *shape) in its dtype."""
    values = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    raw = values.reshape(len(rows) // coding.chunk_steps, -1).view(np.uint8)
    if coding.codec == "none":
        return _frame(raw)
    return _encode(raw, coding, rows.dtype.itemsize) if native.AVAILABLE else _encode_python(raw, coding, rows.dtype)


def _encode_side_by_side(rows: NDArray[Any], coding: Coding, threads: int | None) -> list[Encoded]:
    """Encode whole chunks, by threads if that pays."""
    if threads is None:
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), rows.nbytes // BYTES_A_THREAD)
    if coding.codec == "none" or threads <= 1:
        return [encode_chunks(rows, coding)] if len(rows) else []
    bounds = np.linspace(0, len(rows) // coding.chunk_steps, threads + 1).astype(int) * coding.chunk_steps
    pieces = [rows[first:last] for first, last in itertools.pairwise(bounds.tolist()) if first < last]
    with ThreadPoolExecutor(threads, thread_name_prefix="diskreplay-encode") as pool:
        return list(pool.map(encode_chunks, pieces, itertools.repeat(coding)))


def parse_shard_index(data: bytes, chunks: int, path: Path | str) -> NDArray[np.uint64]:
    """Return a shard's index, (chunks, 2) of byte offset and length, from the end of its file.

    Raises:
        CorruptStoreError: If its checksum does not match.
    """
    try:
        payload = layout.open_value(data, "a shard's index")
    except CorruptStoreError as err:
        raise CorruptStoreError(f"{path}: the shard's index is damaged (checksum)", path=path) from err
    return np.frombuffer(payload, "<u8").reshape(chunks, 2)


def is_regular(index: NDArray[Any], length: int) -> bool:
    """Return whether chunks of this many bytes follow each other from the start of the file."""
    return bool((index[:, 0] == np.arange(len(index)) * length).all() and (index[:, 1] == length).all())


def shard_index_bytes(chunks: int) -> int:
    """Return the length of a shard's index in bytes."""
    return 16 * chunks + CRC_BYTES


def most_shard_bytes(field: Field, coding: Coding, segment_steps: int) -> int:
    """Return a length that no shard of a field exceeds, however badly its rows compress."""
    raw, chunks = coding.chunk_steps * field.row_bytes, segment_steps // coding.chunk_steps
    return chunks * (raw + raw // 128 + 512) + shard_index_bytes(chunks)


def shard_name(segment: int, field: Field) -> str:
    """Return the file name of a segment's shard of this field."""
    return layout.shard_name(segment, 1 + len(field.shape))


def _frame(raw: NDArray[np.uint8]) -> Encoded:
    """Put a crc32c behind every chunk of raw rows."""
    framed = np.empty((len(raw), raw.shape[1] + CRC_BYTES), np.uint8)
    checks = np.empty(len(raw), np.uint32)
    if native.AVAILABLE:
        encoding_kernels.frame(raw, framed, checks)
    else:
        checks[:] = [google_crc32c.value(chunk.tobytes()) for chunk in raw]
        framed[:, :-CRC_BYTES], framed[:, -CRC_BYTES:] = raw, checks.astype("<u4")[:, None].view(np.uint8)
    return Encoded(framed.reshape(-1), np.full(len(raw), framed.shape[1], np.int64), checks)


def _encode(raw: NDArray[np.uint8], coding: Coding, item_bytes: int) -> Encoded:
    """Compress every chunk and put a crc32c behind it."""
    out = np.empty(len(raw) * encoding_kernels.most_bytes(raw.shape[1]), np.uint8)
    lengths, checks = np.empty(len(raw), np.int64), np.empty(len(raw), np.uint32)
    compressor = np.frombuffer(coding.codec.encode() + b"\0", np.uint8)
    context = native.ZstdContext("encoder")
    taken = encoding_kernels.encode(
        raw, kernels.CODECS[coding.codec], LEVELS[coding.codec], item_bytes, compressor.ctypes.data, context.address,
        out, lengths, checks,
    )  # fmt: skip
    if taken < 0:
        raise MemoryError(f"{coding.codec}: a chunk of {raw.shape[1]:,} bytes cannot be compressed")
    return Encoded(out[:taken].copy(), lengths, checks)


def _encode_python(raw: NDArray[np.uint8], coding: Coding, dtype: np.dtype[Any]) -> Encoded:
    coder = Zstd(level=LEVELS["zstd"]) if coding.codec == "zstd" else blosc(coding.codec, dtype.itemsize)
    parts, lengths, checks = [], [], []
    for data in (bytes(coder.encode(chunk.view(dtype))) for chunk in raw):
        check = google_crc32c.value(data)
        parts += [data, struct.pack("<I", check)]
        lengths.append(len(data) + CRC_BYTES)
        checks.append(check)
    return Encoded(np.frombuffer(b"".join(parts), np.uint8), np.array(lengths, np.int64), np.array(checks, np.uint32))
