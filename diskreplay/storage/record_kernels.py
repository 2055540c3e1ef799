"""The compiled loop that checks many records of the index at once."""

from __future__ import annotations

import numpy as np
from numba import njit

from diskreplay.storage import native
from diskreplay.storage.kernels import u32
from diskreplay.storage.shard import CRC_BYTES

KEY_BYTES = 8


@njit(cache=True)
def check_records(flat, lengths, owner, prefix, numbers, sizes):
    """Check records that follow each other, and take apart those whose keys are a prefix and a number.

    Args:
        flat: u8: key, value, key, value, ...; those records without their checksums then lie at its beginning.
        lengths: (2 records,) of each of them.
        owner: u8: what the checksums cover before keys.
        prefix: u8.
        numbers: (records,) i64, filled: the number, u64 BE, behind the prefix.
        sizes: (records,) i64, filled: the length of each without its checksum.

    Returns:
        The sum of all checksums, -1 if a record is damaged or a key is not as long as it should be; how many were taken
        apart; how many bytes they take.
    """
    base = np.uint64(flat.ctypes.data)
    start = native.crc32c_extend(np.uint32(0), np.uint64(owner.ctypes.data), np.uint64(len(owner)))
    total = taken = filled = at = np.int64(0)
    for i in range(len(lengths) // 2):
        key, value = lengths[2 * i], lengths[2 * i + 1]
        body = value - CRC_BYTES
        if body < 0:
            return -1, 0, 0
        check = u32(flat, at + key + body)
        if np.int64(native.crc32c_extend(start, base + np.uint64(at), np.uint64(key + body))) != check:
            return -1, 0, 0
        total += check
        if _begins_with(flat, at, key, prefix):
            if key != len(prefix) + KEY_BYTES:
                return -1, 0, 0
            number = np.uint64(0)
            for j in range(KEY_BYTES):
                number = (number << np.uint64(8)) | np.uint64(flat[at + len(prefix) + j])
            numbers[taken], sizes[taken] = np.int64(number), body
            for j in range(body):  # to the left, or nowhere
                flat[filled + j] = flat[at + key + j]
            taken += 1
            filled += body
        at += key + value
    return total, taken, filled


@njit(inline="always")
def _begins_with(flat, at, length, prefix):
    same = length >= len(prefix)
    for j in range(len(prefix) if same else 0):
        same &= flat[at + j] == prefix[j]
    return same
