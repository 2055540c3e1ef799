"""Fetch rows of one field from shards and from memory: the hot read, compiled or in plain Python.

Both paths give the same bytes and the same errors. Where the compiled one is not to be had, `gather_python` serves.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import kernels, layout, native, planning_kernels
from diskreplay.storage.durable import disk_error
from diskreplay.storage.encoding_kernels import most_bytes
from diskreplay.storage.streaming_kernels import PAST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

FEW_BYTES = 1 << 16
AGAIN = 3
_REASONS = {
    kernels.SHORT: "is cut off",
    kernels.DAMAGED: "is damaged (checksum)",
    kernels.UNDECODABLE: "cannot be decoded",
}
_local = threading.local()


@dataclass(frozen=True)
class Geometry:
    """What reading a field takes to know."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int
    chunk_steps: int
    codec: int

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a decoded chunk."""
        return self.chunk_steps * self.row_bytes

    @property
    def longest(self) -> int:
        """Return the most bytes an encoded chunk can have."""
        return most_bytes(self.chunk_bytes)

    @classmethod
    def of(cls, item: Field, coding: Coding | None) -> Geometry:
        """Return the geometry of a field; without a coding, of one that is only in memory yet."""
        steps, codec = (coding.chunk_steps, kernels.CODECS[coding.codec]) if coding else (1, 0)
        return cls(item.name, item.shape, item.dtype, item.row_bytes, steps, codec)


@dataclass
class Pieces:
    """Where N rows of a field lie, in the order in which they are wanted.

    Attributes:
        geometry: The field's.
        leading: Shape that the N rows are given, (B,) or (B, width).
        fd, offset, length, inner, check: (N,); open file, the chunk's bytes in it, the row in the chunk, the
            crc32c it must have.
        address: (N,); address of the row in memory; 0: in the file; -1: a row of zeros; below that: minus the
            address of its chunk in memory, coded as in the file, or, of a raw field, in a map of the file.
        inline: Rows themselves, for those positions that `inline_at` lists (worker processes).
    """

    geometry: Geometry
    leading: tuple[int, ...]
    fd: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    inner: NDArray[np.int32]
    check: NDArray[np.uint32]
    address: NDArray[np.int64]
    inline_at: NDArray[np.int64] | None = None
    inline: NDArray[Any] | None = field(default=None, repr=False)

    def announce(self) -> None:
        """Tell the kernel which bytes will be read soon."""
        if native.AVAILABLE:
            kernels.announce(self.fd, self.offset, self.length, self.address, self.geometry.codec)
        else:
            mapped = (self.address < planning_kernels.ZERO) & (self.geometry.codec == kernels.CODEC_NONE)
            unread = (self.address == 0) | mapped
            columns = (column[unread].tolist() for column in (self.fd, self.offset, self.length))
            for fd, offset, length in set(zip(*columns, strict=True)):
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def fetch(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read the rows.

        Args:
            out: Array to fill, (*leading, *shape) of the field's dtype, contiguous; made if None.

        Raises:
            CorruptStoreError: If a chunk is short, does not match its checksum or cannot be decoded.
            ReplayError: If the system cannot read it, asked again: that says nothing of what the file holds.
        """
        geometry = self.geometry
        if out is None:
            out = np.empty((*self.leading, *geometry.shape), geometry.dtype)
        flat = out.reshape(-1).view(np.uint8)
        gather = gather_compiled if native.AVAILABLE else gather_python
        status = gather(self, flat)
        for _ in range(AGAIN):
            if status < 0 or status % kernels.REASONS != kernels.FAILED:
                break
            self._read_once(status // kernels.REASONS)
            status = gather(self, flat)
        if status >= 0:
            position, reason = divmod(status, kernels.REASONS)
            path = _path_of(int(self.fd[position]))
            segment = layout.shard_segment(path)
            what = f"segment {segment}, field {geometry.name}: {path}: the chunk at byte {int(self.offset[position])}"
            if reason == kernels.FAILED:
                raise ReplayError(f"{what} cannot be read now", path=path)
            raise CorruptStoreError(f"{what} {_REASONS[reason]}", path=path, segment=segment)
        if self.inline_at is not None:
            out.reshape(-1, *geometry.shape)[self.inline_at] = self.inline
        return out

    def _read_once(self, position: int) -> None:
        """Read a chunk that the system did not read a moment ago: what is wrong with it is known then."""
        fd = int(self.fd[position])
        try:
            os.pread(fd, int(self.length[position]), int(self.offset[position]))
        except OSError as err:
            raise disk_error(err, _path_of(fd)) from err

    def portable(self) -> tuple[Pieces, list[tuple[str, str]]]:
        """Return the pieces for another process: files by number, rows in memory as data.

        Of each file its name, and where this process has it open: there it can be had even after its segment was
        evicted, as long as this process keeps the plan.
        """
        geometry = self.geometry
        fds, numbers = np.unique(self.fd, return_inverse=True)
        here = f"/proc/{os.getpid()}/fd"
        paths = [(os.readlink(f"{here}/{fd}"), f"{here}/{fd}") if fd >= 0 else ("", "") for fd in fds.tolist()]  # noqa: PTH115
        memory = np.flatnonzero(self.address > 0)
        inline = np.empty((len(memory), *geometry.shape), geometry.dtype)
        target = inline.ctypes.data
        for i, address in enumerate(self.address[memory].tolist()):
            ctypes.memmove(target + i * geometry.row_bytes, address, geometry.row_bytes)
        address = np.where(self.address < planning_kernels.ZERO, 0, self.address)
        address[memory] = planning_kernels.ZERO
        return replace(
            self,
            fd=numbers.astype(np.int32),
            address=address,
            inline_at=memory,
            inline=inline,
        ), paths

    def resolved(self, fds: Sequence[int]) -> Pieces:
        """Return portable pieces with this process's files put in."""
        return replace(self, fd=np.asarray(fds, np.int32)[self.fd])


@dataclass
class Taken:
    """Rows of a field that were copied when the plan was made: they are few, and were in memory.

    Attributes:
        values: (*leading, *shape).
    """

    values: NDArray[Any]

    def announce(self) -> None:
        """Nothing will be read."""

    def fetch(self, out: NDArray[Any] | None = None) -> NDArray[Any]:  # noqa: ARG002  as of Pieces
        """Return the rows."""
        return self.values

    def portable(self) -> tuple[Taken, list[tuple[str, str]]]:
        """Return them for another process."""
        return self, []

    def resolved(self, fds: Sequence[int]) -> Taken:  # noqa: ARG002  as of Pieces
        """Return them: they need no files."""
        return self


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}") if os.path.isdir("/proc/self/fd") else f"fd {fd}"  # noqa: PTH112, PTH115


def are_few(rows: int, row_bytes: int) -> bool:
    """Return whether so many rows are taken while a batch is planned, if they are in memory."""
    return rows * row_bytes <= FEW_BYTES


def take(item: Field, leading: tuple[int, ...], *places: NDArray[Any]) -> Taken | None:
    """Copy rows that are all in memory, if they are few; else return None.

    Args:
        item: The field.
        leading: Shape that the rows are given.
        places: slots (N,), rows (N,), and where each slot's rows are, as `kernels.take_rows` takes them.
    """
    if not are_few(len(places[0]), item.row_bytes) or not native.AVAILABLE:
        return None
    values = np.empty((*leading, *item.shape), item.dtype)
    if not kernels.take_rows(*places, item.row_bytes, values.reshape(-1).view(np.uint8)):
        return None
    return Taken(values)


class _Scratch:
    def __init__(self) -> None:
        self.raw = np.empty(0, np.uint8)
        self.decoded = np.empty(0, np.uint8)
        self.context = native.ZstdContext()

    def fit(self, geometry: Geometry) -> _Scratch:
        if len(self.raw) < geometry.longest:
            self.raw = np.empty(geometry.longest, np.uint8)
        if len(self.decoded) < 2 * geometry.chunk_bytes:
            self.decoded = np.empty(2 * geometry.chunk_bytes, np.uint8)
        return self


def gather_compiled(pieces: Pieces, out: NDArray[np.uint8]) -> int:
    """Fetch rows without the GIL; return -1, or what went wrong and where, as the kernel says it."""
    scratch = getattr(_local, "scratch", None)
    if scratch is None:
        scratch = _local.scratch = _Scratch()
    geometry = pieces.geometry
    scratch.fit(geometry)
    return int(
        kernels.gather(
            pieces.fd, pieces.offset, pieces.length, pieces.inner, pieces.check, pieces.address,
            pieces.leading[1] if len(pieces.leading) > 1 else 1,
            geometry.row_bytes, geometry.chunk_bytes, geometry.codec,
            out, scratch.raw, scratch.decoded, scratch.context.address, len(out) >= PAST_BYTES,
        ),
    )  # fmt: skip


def gather_python(pieces: Pieces, out: NDArray[np.uint8]) -> int:
    """Fetch rows with nothing but Python; the same bytes and the same status."""
    geometry, size = pieces.geometry, pieces.geometry.row_bytes
    held: dict[tuple[int, int], bytes] = {}
    for i in range(len(pieces.fd)):
        target, address = out[i * size : (i + 1) * size], int(pieces.address[i])
        if address == planning_kernels.ZERO:
            target[:] = 0
            continue
        if address > 0:
            ctypes.memmove(target.ctypes.data, address, size)
            continue
        key = (int(pieces.fd[i]), int(pieces.offset[i]))
        if key not in held:
            length = int(pieces.length[i])
            if length > geometry.longest:
                return i * kernels.REASONS + kernels.DAMAGED
            try:
                data = _read(*key, length, address, int(pieces.check[i]))
            except OSError:
                return i * kernels.REASONS + kernels.FAILED
            if len(data) < length:
                return i * kernels.REASONS + kernels.SHORT
            if google_crc32c.value(data[:-4]) != int(pieces.check[i]):
                return i * kernels.REASONS + kernels.DAMAGED
            try:
                chunk = _decode(geometry, data[:-4])
            except (RuntimeError, ValueError):
                return i * kernels.REASONS + kernels.UNDECODABLE
            held = {**dict(list(held.items())[-1:]), key: chunk}
        start = int(pieces.inner[i]) * size
        target[:] = np.frombuffer(held[key], np.uint8, size, start)
    return -1


def _read(fd: int, offset: int, length: int, address: int, check: int) -> bytes:
    """Return a chunk out of a map or of memory, at minus the address, or out of the file."""
    if address:
        data = ctypes.string_at(-address, length)
        if google_crc32c.value(data[:-4]) == check:  # else the map failed
            return data
    return os.pread(fd, length, offset)


def _decode(geometry: Geometry, data: bytes) -> bytes:
    """Decode a chunk into as many bytes as it must have, whatever its header claims."""
    if geometry.codec == kernels.CODEC_NONE:
        chunk = data
    else:
        coder = Zstd() if geometry.codec == kernels.CODEC_ZSTD else Blosc()
        chunk = bytes(coder.decode(data, out=bytearray(geometry.chunk_bytes)))
    if len(chunk) != geometry.chunk_bytes:
        raise ValueError("another length")
    return chunk
