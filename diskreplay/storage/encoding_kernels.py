"""Compiled loops that lay out the chunks of a shard: copied or compressed, each followed by its checksum.

They release the GIL, once for many chunks: who encodes beside a busy interpreter gets it back only every few
milliseconds.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diskreplay.storage import native
from diskreplay.storage.kernels import CODEC_ZSTD

CHECK = np.uint64(4)  # bytes of a crc32c
OVERHEAD, BLOSC_OVERHEAD = 4096, 16  # zstd may add the former, beside a share


@njit(nogil=True, cache=True)
def frame(rows, framed, checks):
    """Copy raw chunks, (N, bytes) u8, into (N, bytes + 4) u8, each followed by its crc32c; note those in (N,) u32."""
    size = np.uint64(rows.shape[1])
    source, target = np.uint64(rows.ctypes.data), np.uint64(framed.ctypes.data)
    for i in range(len(rows)):
        check = native.crc32c_extend(np.uint32(0), source, size)
        native.memcpy(target, source, size)
        checks[i] = check
        native.memcpy(target + size, np.uint64(checks[i:].ctypes.data), CHECK)
        source += size
        target += size + CHECK


def most_bytes(chunk_bytes: int) -> int:
    """Return the most bytes that an encoded chunk takes, its checksum included."""
    return int(chunk_bytes + chunk_bytes // 128 + OVERHEAD + CHECK)


@njit(nogil=True, cache=True)
def encode(rows, codec, level, item_bytes, compressor, context, out, lengths, checks):
    """Compress chunks to `out`, one after the other, each followed by its crc32c.

    Args:
        rows: (N, bytes) u8.
        codec: CODEC_ZSTD or CODEC_LZ4.
        level: Of the codec.
        item_bytes: Of the field's dtype, which blosc notes.
        compressor: Address of blosc's name for the codec, ending in 0.
        context: Address of a compression context of zstd.
        out: u8, (N * `most_bytes`,).
        lengths: (N,) i64, filled: bytes of each, its checksum included.
        checks: (N,) u32 LE, filled.

    Returns:
        How many bytes of `out` they take; -1 if one could not be compressed.
    """
    size = np.uint64(rows.shape[1])
    source, target = np.uint64(rows.ctypes.data), np.uint64(out.ctypes.data)
    # Blosc is given what it asks for: with more it packs what nothing compresses in another way than zarr has it do.
    room = size + (size // np.uint64(128) + np.uint64(OVERHEAD) if codec == CODEC_ZSTD else np.uint64(BLOSC_OVERHEAD))
    for i in range(len(rows)):
        if codec == CODEC_ZSTD:
            got = np.int64(native.zstd_compress(np.uint64(context), target, room, source, size, np.int32(level)))
        else:
            got = np.int64(
                native.blosc_compress(
                    np.int32(level), np.int32(0), np.uint64(item_bytes), size, source, target, room,
                    np.uint64(compressor), np.uint64(0), np.int32(1),
                )
            )  # fmt: skip
        if got <= 0:  # zstd's errors are the largest numbers there are
            return -1
        checks[i] = native.crc32c_extend(np.uint32(0), target, np.uint64(got))
        native.memcpy(target + np.uint64(got), np.uint64(checks[i:].ctypes.data), CHECK)
        lengths[i] = got + np.int64(CHECK)
        source += size
        target += np.uint64(lengths[i])
    return np.int64(target - np.uint64(out.ctypes.data))
