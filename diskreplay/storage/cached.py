"""What is kept in memory, verified once, instead of being read again and again.

A reward is 4 bytes, and a system call to read it half a microsecond; to read and check a chunk of frames is a quarter
of what a window of them costs. Which raw fields are kept: the smallest, as long as the rows of all live segments fit
into a share of the memory that this process may use; and the shards of coded fields, as they are, if all that is on
disk fits into what is left of it. So data larger than memory are not kept at all, and there is no replacement policy
to go wrong. A segment's shard is taken in whole when the segment has been used a few times.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from diskreplay.storage import kernels, native
from diskreplay.storage.shard import ABSENT, CRC_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

MEMORY_SHARE = 1 / 16  # every process that reads a store keeps its own
USES = 4
TOGETHER_BYTES = 256  # of a row; the frames of a stack are copied at once where they follow each other
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's."""
    limit = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in (*_own_groups(), *CGROUP_LIMITS):
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            limit = min(limit, int(text))
    return limit


def _own_groups() -> list[Path]:
    """Return the limits of the control groups that /proc says this process is in, and of those above them."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            base, name = (
                (Path("/sys/fs/cgroup"), "memory.max")
                if not controllers
                else (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
            )
            place = base / group.lstrip("/")
            found += [parent / name for parent in (place, *place.parents) if parent.is_relative_to(base)]
    return found


def fields_to_keep(
    fields: Sequence[Field], codings: Mapping[str, Coding], rows: int, on_disk: int, budget: float | None = None
) -> list[str]:
    """Return the fields that a batch reads and that fit into the budget.

    Args:
        fields: All there are.
        codings: How each is coded.
        rows: Of each field.
        on_disk: Bytes of all shards.
        budget: In bytes; None: this process's.
    """
    left = memory_limit() * MEMORY_SHARE if budget is None else budget
    coded = [f.name for f in fields if f.hot and codings[f.name].codec != "none"]
    kept = coded if coded and on_disk <= left else []
    left -= on_disk if kept else 0
    for field in sorted((f for f in fields if f.hot), key=lambda f: f.row_bytes):
        if field.name in kept:
            continue
        left -= field.row_bytes * rows
        if left < 0:
            break
        if codings[field.name].codec == "none":
            kept.append(field.name)
    return kept


def read_rows(
    fd: int, field: Field, coding: Coding, checks: NDArray[np.uint32], length: int, out: NDArray[np.uint8]
) -> bool:
    """Read the rows of a raw shard; return whether every chunk is what was committed.

    Args:
        fd: The shard.
        field: What it holds.
        coding: How.
        checks: (chunks,) u32: the crc32c of each chunk, 0 from the first on that a short segment lacks.
        length: Of the file, in bytes.
        out: (rows of the segment, bytes of a row), filled in; its rows may lie apart.
    """
    size = coding.chunk_steps * field.row_bytes
    chunks = min(len(checks), (length - 16 * len(checks) - CRC_BYTES) // (size + CRC_BYTES))
    if chunks * coding.chunk_steps < len(out):
        return False
    data = np.empty((chunks, size + CRC_BYTES), np.uint8)
    if not _fill(fd, data.reshape(-1)):
        return False
    if native.AVAILABLE:
        return bool(kernels.unframe(data, checks, coding.chunk_steps, out))
    for chunk, check in zip(data, checks.tolist(), strict=False):
        if google_crc32c.value(chunk[:-CRC_BYTES].tobytes()) != check:
            return False
    out[:] = data[:, :-CRC_BYTES].reshape(-1, field.row_bytes)[: len(out)]
    return True


def rooms(fields: Sequence[Field], rows: int) -> dict[str, NDArray[np.uint8]]:
    """Return room for so many rows of each field, (rows, bytes of a row): small ones of a step side by side.

    What a batch reads of a step is then in a cache line or two, and not in one a field: of a billion steps, none of
    which is in a cache, 256 transitions of three fields are taken in 22 us instead of 47.
    """
    together = [field for field in fields if field.row_bytes <= TOGETHER_BYTES]
    steps = np.empty((rows, sum(field.row_bytes for field in together)), np.uint8)
    out, at = {}, 0
    for field in together:
        out[field.name] = steps[:, at : at + field.row_bytes]
        at += field.row_bytes
    return out | {f.name: np.empty((rows, f.row_bytes), np.uint8) for f in fields if f.name not in out}


def read_coded(fd: int, index: NDArray[np.uint64], checks: NDArray[np.uint32], length: int) -> NDArray[np.uint8] | None:
    """Return a coded shard as it is, or None if not every chunk is what was committed.

    Args:
        fd: The shard.
        index: (chunks, 2) u64: byte offset and length of each chunk, its checksum included.
        checks: (chunks,) u32: the crc32c of each chunk.
        length: Of the file, in bytes.
    """
    data = np.empty(length, np.uint8)
    if not _fill(fd, data):
        return None
    here = bytes(data)
    for (offset, size), check in zip(index.tolist(), checks.tolist(), strict=True):
        if offset == size == ABSENT:
            continue
        if offset + size > length or size <= CRC_BYTES:
            return None
        if google_crc32c.value(here[offset : offset + size - CRC_BYTES]) != check:
            return None
    return data


def _fill(fd: int, data: NDArray[np.uint8]) -> bool:
    """Read the first bytes of a file; return whether they are all there."""
    done, view = 0, memoryview(data.data)
    while done < len(view):
        got = os.preadv(fd, [view[done:]], done)
        if not got:
            return False
        done += got
    return True
