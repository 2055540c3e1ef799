"""One shard: the rows that a segment has of one field, encoded as zarr v3's sharding codec lays them out.

    chunk 0 | crc32c || chunk 1 | crc32c || ... || index: (offset, length) u64 a chunk | crc32c

Sealing goes through here and not through zarr-python, which needs 5 ms for every shard however small; the bytes are
the same, and a test compares them. Chunks past a short segment's rows are absent: (2^64 - 1, 2^64 - 1) in the index.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import Zstd

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import kernels, layout, native
from diskreplay.storage.fields import blosc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

CRC_BYTES = 4
ABSENT = np.uint64((1 << 64) - 1)
MOST_THREADS, BYTES_A_THREAD = 4, 1 << 20


def encode_shard(
    field: Field, coding: Coding, rows: NDArray[Any], segment_steps: int, *, threads: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Encode a segment's rows of one field.

    Args:
        field: The field.
        coding: Its chunk length and codec.
        rows: (N, *shape) in the field's dtype, 1 <= N <= segment_steps; the last chunk is filled up.
        segment_steps: Rows of a full segment.
        threads: That compress; None: as many as pay.

    Returns:
        The shard's bytes, and (chunks,) u32: the crc32c of every chunk, 0 for those that are absent.
    """
    steps, chunks = coding.chunk_steps, segment_steps // coding.chunk_steps
    written = -(-len(rows) // steps)
    if len(rows) < written * steps:
        full = np.full((written * steps, *field.shape), field.fill, field.dtype)
        full[: len(rows)] = rows
        rows = full
    values = np.ascontiguousarray(rows, np.dtype(field.dtype).newbyteorder("<")).reshape(written, -1)
    body, lengths, checks = _frame(values) if coding.codec == "none" else _encode(values, coding, threads)
    entries = np.full((chunks, 2), ABSENT, "<u8")
    entries[:written] = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    all_checks = np.zeros(chunks, "<u4")
    all_checks[:written] = checks
    return np.concatenate([body, np.frombuffer(layout.seal_value(entries.tobytes()), np.uint8)]), all_checks


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


def shard_name(segment: int, field: Field) -> str:
    """Return the file name of a segment's shard of this field."""
    return layout.shard_name(segment, 1 + len(field.shape))


def _frame(values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint32]]:
    """Put a crc32c behind every chunk of raw rows."""
    count, raw = len(values), values.view(np.uint8)
    framed = np.empty((count, raw.shape[1] + CRC_BYTES), np.uint8)
    checks = np.empty(count, np.uint32)
    if native.AVAILABLE:
        kernels.frame(raw, framed, checks)
    else:
        checks[:] = [google_crc32c.value(chunk.tobytes()) for chunk in raw]
        framed[:, :-CRC_BYTES], framed[:, -CRC_BYTES:] = raw, checks.astype("<u4")[:, None].view(np.uint8)
    return framed.reshape(-1), np.full(count, framed.shape[1], np.int64), checks


def _encode(
    values: NDArray[Any], coding: Coding, threads: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint32]]:
    """Compress every chunk and put a crc32c behind it."""
    coder = Zstd(level=1) if coding.codec == "zstd" else blosc(coding.codec, values.dtype.itemsize)
    if threads is None:
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), values.nbytes // BYTES_A_THREAD)
    if threads > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix="diskreplay-encode") as pool:
            encoded = list(pool.map(coder.encode, values))
    else:
        encoded = [coder.encode(chunk) for chunk in values]
    parts, lengths, checks = [], [], []
    for data in map(bytes, encoded):
        check = google_crc32c.value(data)
        parts += [data, struct.pack("<I", check)]
        lengths.append(len(data) + CRC_BYTES)
        checks.append(check)
    return np.frombuffer(b"".join(parts), np.uint8), np.array(lengths, np.int64), np.array(checks, np.uint32)
