"""Compiled loops that move bytes: announcing, reading, checking, decoding, copying.

All but `take_rows` release the GIL. They call into C libraries (native.py); each has a plain Python twin beside its
only caller. Addresses are int64.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from diskreplay.addresses import ask_for_line, pointer
from diskreplay.storage import native
from diskreplay.storage.planning_kernels import ZERO
from diskreplay.storage.streaming_kernels import ask_for, fence, stream

CODEC_NONE, CODEC_ZSTD, CODEC_LZ4 = 0, 1, 2
CODECS = {"none": CODEC_NONE, "zstd": CODEC_ZSTD, "lz4": CODEC_LZ4, "lz4hc": CODEC_LZ4}
SHORT, DAMAGED, UNDECODABLE, FAILED = 1, 2, 3, 4
REASONS = 8
WILLNEED = 3
SOON = 4  # rows
BLOSC_LZ4, BLOSC_UNUSUAL = 1, 0b111  # format; shuffled by byte or bit, or a copy


@njit(nogil=True, cache=True)
def announce(fds, offsets, lengths, addresses, codec):
    """Tell the kernel which bytes will be read soon, so that it reads them side by side; those of a map, too."""
    mapped = codec == CODEC_NONE
    fd, start, end = np.int32(-1), np.int64(0), np.int64(0)
    for i in range(len(fds)):
        known = addresses[i] != 0 and not (mapped and addresses[i] < ZERO)
        if known or (fds[i] == fd and start <= offsets[i] and offsets[i] + lengths[i] <= end):
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
    """Read so many bytes of a file to an address; return 0, SHORT, or FAILED if the system could not read it."""
    done = np.int64(0)
    while done < length:
        got = native.pread(fd, address + np.uint64(done), np.uint64(length - done), offset + done)
        if got <= 0:
            return SHORT if got == 0 else FAILED
        done += got
    return 0


@njit(nogil=True, cache=True)
def _take(fd, address, source, length, offset, check):
    """Bring so many bytes of a file to an address: out of its map at `source`, unless that is 0; check their crc32c.

    What a map does not give reads as zeros (mapping.py). Then pread is asked, and says what is wrong, if anything.

    Returns:
        0, SHORT, DAMAGED or FAILED.
    """
    if source != 0:
        native.memcpy(address, source, np.uint64(length))
        if native.crc32c_extend(np.uint32(0), address, np.uint64(length)) == check:
            return 0
    status = _read(fd, address, length, offset)
    if status != 0:
        return status
    return 0 if native.crc32c_extend(np.uint32(0), address, np.uint64(length)) == check else DAMAGED


@njit(nogil=True, cache=True)
def _decode_lz4(source, body, place, chunk_bytes, wanted):
    """Decode the first bytes of a blosc frame of LZ4 blocks, and more of it if that is simpler.

    Args:
        source, body: Address and length of the frame.
        place, chunk_bytes: Address and length of the decoded chunk.
        wanted: Bytes of it that are needed.

    Returns:
        How many bytes of the chunk are there, at least `wanted`; 0 if it cannot be decoded.
    """
    if body < 16:
        return 0
    raw = carray(pointer(source), (body,), np.uint8)
    if u32(raw, 4) != chunk_bytes or u32(raw, 12) != body:
        return 0
    flags, block = raw[2], u32(raw, 8)
    if flags & BLOSC_UNUSUAL or flags >> 5 != BLOSC_LZ4 or raw[3] != 1 or block <= 0:
        if native.blosc_decompress(source, place, np.uint64(chunk_bytes), np.int32(1)) != chunk_bytes:
            return 0
        return chunk_bytes
    first = 16 + 4 * ((chunk_bytes + block - 1) // block)
    if body < first:
        return 0
    done = 0
    while done < wanted:
        at = u32(raw, 16 + 4 * (done // block))
        if at < first or at + 4 > body:
            return 0
        length, size = u32(raw, at), min(block, chunk_bytes - done)
        if length > body - at - 4:
            return 0
        size_here = min(size, wanted - done)
        target, encoded = place + np.uint64(done), source + np.uint64(at + 4)
        if length == size:
            native.memcpy(target, encoded, np.uint64(size_here))
        elif size_here > native.lz4_decompress(
            encoded, target, np.int32(length), np.int32(size_here), np.int32(size_here)
        ):
            return 0
        done += size_here
    return done


@njit(cache=True)
def take_rows(slots, rows, bases, steps, row_bytes, out):
    """Copy rows of one field to `out`, unless one of them is not in memory; return whether it was done.

    A few kilobytes, and so the GIL stays: a thread that gives it up waits far longer for it than this takes.

    Args:
        slots, rows: (N,); slot ZERO stands for a row of zeros.
        bases, steps: Per slot, the address of its rows, 0 if they are not in memory, and bytes from one to the next.
        row_bytes: Bytes of a row.
        out: (N * row_bytes,) u8.
    """
    for i in range(len(slots)):
        if slots[i] == ZERO:
            continue
        base = bases[slots[i]]
        if base == 0:
            return False
        ask_for_line(np.uint64(base + rows[i] * steps[slots[i]]))  # of a large store each lies in memory alone
    size, target = np.uint64(row_bytes), np.uint64(out.ctypes.data)
    for i in range(len(slots)):
        if slots[i] == ZERO:
            native.memset(target, np.int32(0), size)
        else:
            native.memcpy(target, np.uint64(bases[slots[i]] + rows[i] * steps[slots[i]]), size)
        target += size
    return True


@njit(nogil=True, cache=True)
def _copy(target, source, size, past):
    if past:
        stream(target, source, size)
    else:
        native.memcpy(target, source, size)


@njit(nogil=True, cache=True)
def gather(
    fds,
    offsets,
    lengths,
    inners,
    checks,
    addresses,
    width,
    row_bytes,
    chunk_bytes,
    codec,
    out,
    raw,
    decoded,
    context,
    past,
):
    """Copy N rows to `out`, one after the other, checking the crc32c of every chunk read.

    A compressed chunk that `locate` found in memory was checked when it was taken there; a raw one lies in a map.

    Args:
        fds, offsets, lengths, inners, checks, addresses: (N,) from `locate`.
        width: Rows of a window, by which N can be divided: of a chunk no more is decoded than a window takes.
        row_bytes, chunk_bytes: The field's geometry.
        codec: CODEC_NONE, CODEC_ZSTD or CODEC_LZ4.
        out: (N * row_bytes,) u8.
        raw: Scratch for an encoded chunk, as long as the longest. decoded: (2 * chunk_bytes,) scratch: the two
            chunks decoded last stay there, since a window's stacks visit the same two in turn.
        context: Address of a zstd decompression context.
        past: Whether rows are copied past the caches.

    Returns:
        -1, or position * REASONS + SHORT, DAMAGED, UNDECODABLE or FAILED.
    """
    raw_address = np.uint64(raw.ctypes.data)
    decoded_address = np.uint64(decoded.ctypes.data)
    out_address = np.uint64(out.ctypes.data)
    held_fd = np.full(2, -1, np.int64)
    held_offset = np.full(2, -1, np.int64)
    held_bytes = np.zeros(2, np.int64)
    held = 0
    size = np.uint64(row_bytes)
    alone = codec == CODEC_NONE and row_bytes == chunk_bytes
    for i in range(len(fds)):  # their pages' addresses are looked up side by side then
        if addresses[i] < ZERO and (i == 0 or addresses[i] != addresses[i - 1]):
            ask_for(np.uint64(-addresses[i]), np.uint64(1))
    i = 0
    while i < len(fds):
        soon = i + SOON
        if soon < len(fds) and addresses[soon] < ZERO and addresses[soon] != addresses[soon - 1]:
            ask_for(np.uint64(-addresses[soon]), np.uint64(lengths[soon]))
        target = out_address + np.uint64(i) * size
        if addresses[i] == ZERO:
            native.memset(target, np.int32(0), size)
            i += 1
            continue
        if addresses[i] > 0:
            until = i + 1
            while until < len(fds) and addresses[until] == addresses[until - 1] + row_bytes:
                until += 1
            _copy(target, np.uint64(addresses[i]), np.uint64(until - i) * size, past)
            i = until
            continue
        mapped = np.uint64(-addresses[i]) if codec == CODEC_NONE and addresses[i] < ZERO else np.uint64(0)
        if alone:  # a chunk of one raw row is read to where it is wanted
            here = past and mapped != 0  # or checked first, in a cache: bytes of a map may change until they are copied
            status = _take(fds[i], decoded_address if here else target, mapped, chunk_bytes, offsets[i], checks[i])
            if status != 0:
                return i * REASONS + status
            if here:
                stream(target, decoded_address, size)
            i += 1
            continue
        # rows that follow each other in the chunk, and the last row that the window takes from it
        until, last = i + 1, inners[i]
        for j in range(i + 1, i - i % width + width):
            if fds[j] == fds[i] and offsets[j] == offsets[i] and addresses[j] == addresses[i]:
                if until == j and inners[j] == inners[j - 1] + 1:
                    until = j + 1
                last = max(last, inners[j])
        wanted = (np.int64(last) + 1) * row_bytes
        for k in range(2):
            if held_fd[k] == fds[i] and held_offset[k] == offsets[i] and held_bytes[k] >= wanted:
                held = k
                break
        else:
            held = 1 - held
            held_fd[held] = -1
            body = lengths[i] - 4
            place = decoded_address + np.uint64(held * chunk_bytes)
            source = place if codec == CODEC_NONE else raw_address
            if body > len(raw):
                return i * REASONS + DAMAGED
            if codec == CODEC_NONE and body != chunk_bytes:
                return i * REASONS + UNDECODABLE
            if addresses[i] < ZERO and mapped == 0:
                source = np.uint64(-addresses[i])
            else:
                status = _take(fds[i], source, mapped, body, offsets[i], checks[i])
                if status != 0:
                    return i * REASONS + status
            held_bytes[held] = chunk_bytes
            if codec == CODEC_ZSTD:
                got_bytes = native.zstd_decompress(
                    np.uint64(context),
                    place,
                    np.uint64(chunk_bytes),
                    source,
                    np.uint64(body),
                )
                if got_bytes != np.uint64(chunk_bytes):
                    return i * REASONS + UNDECODABLE
            elif codec == CODEC_LZ4:
                held_bytes[held] = _decode_lz4(source, body, place, chunk_bytes, wanted)
                if held_bytes[held] == 0:
                    return i * REASONS + UNDECODABLE
            held_fd[held] = fds[i]
            held_offset[held] = offsets[i]
        source = decoded_address + np.uint64(held * chunk_bytes) + np.uint64(inners[i]) * size
        _copy(target, source, np.uint64(until - i) * size, past)
        i = until
    if past:
        fence()
    return -1


@njit(nogil=True, cache=True)
def unframe(framed, checks, chunk_steps, rows):
    """Copy the first rows of chunks, (N, bytes + 4) u8, into (rows, row bytes) u8, apart as they may be.

    Returns:
        Whether each chunk has the crc32c of (N,) u32.
    """
    size = rows.shape[1]
    length = chunk_steps * size
    source = np.uint64(framed.ctypes.data)
    for i in range(len(framed)):
        if native.crc32c_extend(np.uint32(0), source, np.uint64(length)) != checks[i]:
            return False
        first = i * chunk_steps
        stop = min(first + chunk_steps, len(rows))
        if rows.strides[0] == size:
            native.memcpy(np.uint64(rows.ctypes.data + first * size), source, np.uint64(max(0, stop - first) * size))
        else:
            for j in range(first, stop):
                for k in range(size):
                    rows[j, k] = framed[i, (j - first) * size + k]
        source += np.uint64(length + 4)
    return True


@njit(nogil=True, cache=True)
def u32(raw, at):
    """Return the u32, LE, of four bytes, as i64."""
    return (np.int64(raw[at]) | (np.int64(raw[at + 1]) << 8) | (np.int64(raw[at + 2]) << 16)
            | (np.int64(raw[at + 3]) << 24))  # fmt: skip
