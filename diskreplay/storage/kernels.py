"""Compiled loops of the read path: which rows a window needs, where they lie, and fetching them.

All release the GIL. `plan_windows` and `locate` compute only; `gather` and `announce` call into C libraries
(native.py) and have a plain Python twin in gather.py. Addresses are int64; tables are indexed by slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from diskreplay.storage import native

ZERO = -1
RUNNING, ENDED, TERMINATED = 0, 1, 2
CODEC_NONE, CODEC_ZSTD, CODEC_LZ4 = 0, 1, 2
SHORT, DAMAGED, UNDECODABLE = 1, 2, 3
WILLNEED = 3


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def codegen(_cgctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), codegen


@njit(nogil=True, cache=True)
def plan_windows(slots, rows, n, k, shared, pad_zeros, available, previous, following, first_end, last_end,
                 first_flags, n_ends, ends_address, flags_address, out_slot, out_row, reward_slot, reward_row,
                 lengths, outcome):  # fmt: skip
    """Choose the rows of B windows: k observations up to step t, k up to t + m, and m rewards, m <= n.

    A window stays in its episode: m is cut at the episode's last row, or at the newest row of a running episode;
    stacks are filled up with the episode's first row (or with nothing, `ZERO`, if pad_zeros).

    Args:
        slots, rows: (B,) slot and row of step t.
        n, k: n-step and frame stack.
        shared: Write k + 1 columns, of which the next observation's are columns 1..k (only with n = 1).
        available, previous, following, first_end, last_end, first_flags, n_ends: The segment table.
        ends_address, flags_address: Per slot, address of i32 rows of episode ends and of u8 flags;
            needed for the slots of the steps themselves only.
        out_slot, out_row: (B, 2k) or (B, k + 1), filled in.
        reward_slot, reward_row: (B, n), filled in; ZERO past the window.
        lengths: (B,) m, filled in.
        outcome: (B,) RUNNING, ENDED or TERMINATED after m steps, filled in.

    Returns:
        -1, or the first position whose row is not a step that can be sampled.
    """
    for i in range(len(slots)):
        slot, row = slots[i], rows[i]
        count = n_ends[slot]
        low, high = 0, count
        if count > 0:
            ends = carray(_pointer(ends_address[slot]), (count,), np.int32)
            while low < high:
                middle = (low + high) // 2
                if ends[middle] < row:
                    low = middle + 1
                else:
                    high = middle
            if low < count and ends[low] == row:
                return i
        # backwards: rows of the episode before t, at most k - 1
        back = 0
        if low > 0:
            back = min(k - 1, row - carray(_pointer(ends_address[slot]), (count,), np.int32)[low - 1] - 1)
        else:
            back = min(k - 1, row)
            here = previous[slot]
            while back < k - 1 and here >= 0:
                if last_end[here] >= 0:
                    back += min(k - 1 - back, available[here] - 1 - last_end[here])
                    break
                back += min(k - 1 - back, available[here])
                here = previous[here]
        # forwards: steps until the episode's last row, at most n
        ahead, done = 0, RUNNING
        if low < count:
            ends = carray(_pointer(ends_address[slot]), (count,), np.int32)
            ahead = min(n, ends[low] - row)
            if ahead == ends[low] - row:
                flags = carray(_pointer(flags_address[slot]), (count,), np.uint8)
                done = TERMINATED if flags[low] & 1 else ENDED
        else:
            ahead = min(n, available[slot] - 1 - row)
            here = slot
            while ahead < n and following[here] >= 0:
                here = following[here]
                if available[here] == 0:
                    break
                if first_end[here] >= 0:
                    step = min(n - ahead, first_end[here] + 1)
                    ahead += step
                    if step == first_end[here] + 1:
                        done = TERMINATED if first_flags[here] & 1 else ENDED
                    break
                ahead += min(n - ahead, available[here])
        if ahead <= 0:
            return i
        lengths[i] = ahead
        outcome[i] = done
        width = k + 1 if shared else 2 * k
        for j in range(width):
            if j < k:
                offset = j - (k - 1)
            elif shared:
                offset = 1
            else:
                offset = ahead - (k - 1) + (j - k)
            if offset < -back:
                if pad_zeros:
                    out_slot[i, j] = ZERO
                    continue
                offset = -back
            if 0 <= row + offset < available[slot]:
                out_slot[i, j], out_row[i, j] = slot, row + offset
            elif not _walk(slot, row + offset, available, previous, following, out_slot, out_row, i, j):
                return i
        for j in range(n):
            if j < ahead:
                if row + j < available[slot]:
                    reward_slot[i, j], reward_row[i, j] = slot, row + j
                elif not _walk(slot, row + j, available, previous, following, reward_slot, reward_row, i, j):
                    return i
            else:
                reward_slot[i, j] = ZERO
    return -1


@njit(nogil=True, cache=True)
def _walk(slot, row, available, previous, following, out_slot, out_row, i, j):
    """Find the segment that holds a row given relative to `slot`, and write (slot, row) to the plan.

    Returns:
        Whether there is one; always, unless the tables contradict each other.
    """
    while row < 0:
        slot = previous[slot]
        if slot < 0:
            return False
        row += available[slot]
    while row >= available[slot]:
        row -= available[slot]
        slot = following[slot]
        if slot < 0:
            return False
    out_slot[i, j] = slot
    out_row[i, j] = row
    return True


@njit(nogil=True, cache=True)
def nth_steps(slots, nth, n_ends, ends_address):
    """Return the row of each slot's nth step that can be sampled, (B,), counting from 0."""
    rows = np.empty(len(slots), np.int32)
    for i in range(len(slots)):
        low, high = 0, n_ends[slots[i]]
        if high > 0:
            ends = carray(_pointer(ends_address[slots[i]]), (high,), np.int32)
            while low < high:
                middle = (low + high) // 2
                if ends[middle] - middle > nth[i]:
                    high = middle
                else:
                    low = middle + 1
        rows[i] = nth[i] + low
    return rows


@njit(nogil=True, cache=True)
def locate(slots, rows, chunk_steps, chunk_bytes, row_bytes, fds, bases, indexes, checks, sizes,
    out_fd, out_offset, out_length, out_inner, out_check, out_address):  # fmt: skip
    """Find where each row of one field lies: in memory, or in which chunk of which shard.

    Args:
        slots, rows: (N,); slot ZERO stands for a row of zeros.
        chunk_steps, chunk_bytes, row_bytes: The field's geometry.
        fds, bases, indexes, checks, sizes: Per slot: open shard, address of rows in memory, address of the
            shard index (0: chunks follow each other, uncompressed), address of the chunks' checksums, length of
            the shard file in bytes.
        out_*: (N,) filled in: file, byte offset and length of the chunk, row in the chunk, the chunk's checksum;
            or the row's address.

    Returns:
        -1, or the first position whose slot is neither open nor in memory or whose shard index is impossible.
    """
    for i in range(len(slots)):
        slot = slots[i]
        out_fd[i] = -1
        out_address[i] = 0
        if slot == ZERO:
            out_address[i] = ZERO
        elif bases[slot] != 0:
            out_address[i] = bases[slot] + rows[i] * row_bytes
        elif fds[slot] < 0:
            return i
        else:
            chunk = rows[i] // chunk_steps
            out_fd[i] = fds[slot]
            out_inner[i] = rows[i] - chunk * chunk_steps
            out_check[i] = carray(_pointer(checks[slot] + chunk * 4), (1,), np.uint32)[0]
            if indexes[slot] == 0:
                out_offset[i] = chunk * (chunk_bytes + 4)
                out_length[i] = chunk_bytes + 4
            else:
                entry = carray(_pointer(indexes[slot] + chunk * 16), (2,), np.uint64)
                if entry[0] > sizes[slot] or entry[1] > sizes[slot] or entry[1] <= 4:
                    return i
                out_offset[i] = np.int64(entry[0])
                out_length[i] = np.int64(entry[1])
            if out_offset[i] + out_length[i] > sizes[slot]:
                return i
    return -1


@njit(nogil=True, cache=True)
def announce(fds, offsets, lengths):
    """Tell the kernel which bytes will be read soon, so that it reads them side by side."""
    fd, start, end = np.int32(-1), np.int64(0), np.int64(0)
    for i in range(len(fds)):
        if fds[i] < 0 or (fds[i] == fd and start <= offsets[i] and offsets[i] + lengths[i] <= end):
            continue
        if fds[i] == fd and offsets[i] == end:
            end += lengths[i]
            continue
        if fd >= 0:
            native.posix_fadvise(fd, start, end - start, WILLNEED)
        fd, start, end = fds[i], offsets[i], offsets[i] + lengths[i]
    if fd >= 0:
        native.posix_fadvise(fd, start, end - start, WILLNEED)


@njit(nogil=True, cache=True)
def _read(fd, address, length, offset):
    """Read so many bytes of a file to an address; return whether they are all there."""
    done = np.int64(0)
    while done < length:
        got = native.pread(fd, address + np.uint64(done), np.uint64(length - done), offset + done)
        if got <= 0:
            return False
        done += got
    return True


@njit(nogil=True, cache=True)
def gather(
    fds,
    offsets,
    lengths,
    inners,
    checks,
    addresses,
    row_bytes,
    chunk_bytes,
    codec,
    out,
    raw,
    decoded,
    context,
):
    """Copy N rows to `out`, one after the other, checking the crc32c of every chunk read.

    Args:
        fds, offsets, lengths, inners, checks, addresses: (N,) from `locate`.
        row_bytes, chunk_bytes: The field's geometry.
        codec: CODEC_NONE, CODEC_ZSTD or CODEC_LZ4.
        out: (N * row_bytes,) u8.
        raw: Scratch for an encoded chunk, as long as the longest. decoded: (2 * chunk_bytes,) scratch: the two
            chunks decoded last stay there, since a window's stacks visit the same two in turn.
        context: Address of a zstd decompression context.

    Returns:
        -1, or position * 4 + SHORT, DAMAGED or UNDECODABLE.
    """
    raw_address = np.uint64(raw.ctypes.data)
    decoded_address = np.uint64(decoded.ctypes.data)
    out_address = np.uint64(out.ctypes.data)
    held_fd = np.full(2, -1, np.int64)
    held_offset = np.full(2, -1, np.int64)
    held = 0
    size = np.uint64(row_bytes)
    alone = codec == CODEC_NONE and row_bytes == chunk_bytes
    for i in range(len(fds)):
        target = out_address + np.uint64(i) * size
        if addresses[i] == ZERO:
            native.memset(target, np.int32(0), size)
            continue
        if addresses[i] != 0:
            native.memcpy(target, np.uint64(addresses[i]), size)
            continue
        if alone:  # a chunk of one raw row is read to where it is wanted
            if not _read(fds[i], target, chunk_bytes, offsets[i]):
                return i * 4 + SHORT
            if native.crc32c_extend(np.uint32(0), target, size) != checks[i]:
                return i * 4 + DAMAGED
            continue
        if held_fd[held] != fds[i] or held_offset[held] != offsets[i]:
            held = 1 - held
            if held_fd[held] != fds[i] or held_offset[held] != offsets[i]:
                held_fd[held] = -1
                body = lengths[i] - 4
                place = decoded_address + np.uint64(held * chunk_bytes)
                source = place if codec == CODEC_NONE else raw_address
                if body > len(raw):
                    return i * 4 + DAMAGED
                if codec == CODEC_NONE and body != chunk_bytes:
                    return i * 4 + UNDECODABLE
                if not _read(fds[i], source, body, offsets[i]):
                    return i * 4 + SHORT
                if native.crc32c_extend(np.uint32(0), source, np.uint64(body)) != checks[i]:
                    return i * 4 + DAMAGED
                if codec == CODEC_ZSTD:
                    got_bytes = native.zstd_decompress(
                        np.uint64(context),
                        place,
                        np.uint64(chunk_bytes),
                        raw_address,
                        np.uint64(body),
                    )
                    if got_bytes != np.uint64(chunk_bytes):
                        return i * 4 + UNDECODABLE
                elif codec == CODEC_LZ4:
                    if body < 16 or _u32(raw, 4) != chunk_bytes or _u32(raw, 12) != body:
                        return i * 4 + UNDECODABLE
                    if native.blosc_decompress(raw_address, place, np.uint64(chunk_bytes), np.int32(1)) != chunk_bytes:
                        return i * 4 + UNDECODABLE
                held_fd[held] = fds[i]
                held_offset[held] = offsets[i]
        source = decoded_address + np.uint64(held * chunk_bytes) + np.uint64(inners[i]) * size
        native.memcpy(target, source, size)
    return -1


@njit(nogil=True, cache=True)
def frame(rows, framed, checks):
    """Copy raw chunks, (N, bytes) u8, into (N, bytes + 4) u8, each followed by its crc32c; note those in (N,) u32."""
    size = np.uint64(rows.shape[1])
    source, target = np.uint64(rows.ctypes.data), np.uint64(framed.ctypes.data)
    for i in range(len(rows)):
        check = native.crc32c_extend(np.uint32(0), source, size)
        native.memcpy(target, source, size)
        checks[i] = check
        for j in range(4):
            framed[i, rows.shape[1] + j] = (check >> np.uint32(8 * j)) & np.uint32(255)
        source += size
        target += size + np.uint64(4)


@njit(nogil=True, cache=True)
def unframe(framed, checks, rows):
    """Copy the chunks of (N, bytes + 4) u8 into (N, bytes) u8; return whether each has the crc32c of (N,) u32."""
    size = np.uint64(rows.shape[1])
    source, target = np.uint64(framed.ctypes.data), np.uint64(rows.ctypes.data)
    for i in range(len(framed)):
        if native.crc32c_extend(np.uint32(0), source, size) != checks[i]:
            return False
        native.memcpy(target, source, size)
        source += size + np.uint64(4)
        target += size
    return True


@njit(nogil=True, cache=True)
def _u32(raw, at):
    return (np.int64(raw[at]) | (np.int64(raw[at + 1]) << 8) | (np.int64(raw[at + 2]) << 16)
            | (np.int64(raw[at + 3]) << 24))  # fmt: skip
