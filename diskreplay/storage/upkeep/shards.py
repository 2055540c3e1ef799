"""Examine a segment's shards byte by byte: are they the files that were committed, and does every chunk decode?

Reads past the engine: no lock of the store is taken, and several threads may examine segments at once. The loops
(crc32, crc32c, decoding) run without the GIL.
"""

from __future__ import annotations

import os
import threading
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.fields import EPISODE, IS_LAST, REWARD, TERMINATED, TRUNCATED
from diskreplay.storage.gather import Geometry, Pieces
from diskreplay.storage.regular import open_regular, require_own
from diskreplay.storage.shard import is_regular, most_shard_bytes, parse_shard_index, shard_index_bytes, shard_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

MARKS = (REWARD, TERMINATED, TRUNCATED, IS_LAST, EPISODE)
ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)
MISSING, DAMAGED = "missing file", "damaged file"
_local = threading.local()


@dataclass
class Examined:
    """What a segment's shards turned out to be.

    Attributes:
        wrong: (kind, path, what) of every file that is not what it should be.
        files: (fields,) FILE, as they lie on disk.
        checks: The crc32c of every chunk, field after field.
        columns: The rows that tell of episodes, by field; empty if a file is wrong.
    """

    wrong: list[tuple[str, Path, str]] = field(default_factory=list)
    files: NDArray[Any] = field(default_factory=lambda: np.zeros(0, layout.FILE))
    checks: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, layout.CHECK))
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)


class ShardExaminer:
    """Examine the shards of a store's segments.

    Args:
        root: The store's folder.
        fields: The store's fields.
        segment_steps: Rows of a segment.
        codings: How the fields are coded.
    """

    def __init__(self, root: Path, fields: Sequence[Field], segment_steps: int, codings: Mapping[str, Coding]) -> None:
        self.root = root
        self.fields = tuple(fields)
        self.segment_steps = segment_steps
        self.codings = codings
        self.chunks = [segment_steps // codings[item.name].chunk_steps for item in self.fields]

    def path(self, item: Field, segment: int) -> Path:
        """Return the path of a segment's shard."""
        return layout.field_path(self.root, item.name) / shard_name(segment, item)

    def paths(self, segment: int) -> list[Path]:
        """Return the paths of a segment's shards."""
        return [self.path(item, segment) for item in self.fields]

    def lengths(self, segment: int, files: NDArray[Any]) -> Examined:
        """Look at existence and length alone.

        Args:
            segment: The segment.
            files: (fields,) FILE, as committed.
        """
        found = Examined()
        for item, known in zip(self.fields, files, strict=True):
            path = self.path(item, segment)
            try:
                require_own([path])
                length = path.stat().st_size
            except CorruptStoreError as err:
                found.wrong.append((DAMAGED, path, str(err).removeprefix(f"{path}: ")))
            except FileNotFoundError:
                found.wrong.append((MISSING, path, _listed(segment)))
            except OSError as err:
                found.wrong.append((DAMAGED, path, str(err.strerror or err)))
            else:
                if length != known["length"]:
                    found.wrong.append((DAMAGED, path, _other_length(length, known)))
        return found

    def examine(
        self,
        segment: int,
        rows: int | None = None,
        files: NDArray[Any] | None = None,
        checks: NDArray[np.uint32] | None = None,
    ) -> Examined:
        """Read every byte.

        Args:
            segment: The segment.
            rows: How many it has; None: as many as the `episode` field says.
            files: (fields,) FILE, as committed; None: unknown.
            checks: The crc32c of every chunk, as committed; None: unknown.
        """
        found = Examined()
        sizes, sums, columns = [], [], {}
        parts = [None] * len(self.fields) if checks is None else np.split(checks, np.cumsum(self.chunks)[:-1])
        order = sorted(range(len(self.fields)), key=lambda i: self.fields[i].name != EPISODE)
        for i in order:
            item, path = self.fields[i], self.path(self.fields[i], segment)
            try:
                known = None if files is None else files[i]
                size, part, values = self._examine(path, item, rows, known, parts[i], self.chunks[i])
            except FileNotFoundError:
                found.wrong.append((MISSING, path, _listed(segment)))
                continue
            except (OSError, CorruptStoreError) as err:
                what = str(err).removeprefix(f"{path}: ") if isinstance(err, CorruptStoreError) else err.strerror
                found.wrong.append((DAMAGED, path, str(what)))
                continue
            if item.name == EPISODE and rows is None and values is not None:
                rows = int((values >= 0).sum())
            sizes.append((i, size))
            sums.append((i, part))
            if values is not None:
                columns[item.name] = values
        if found.wrong:
            return found
        found.files = np.array([size for _, size in sorted(sizes, key=lambda pair: pair[0])], layout.FILE)
        found.checks = np.concatenate([part for _, part in sorted(sums, key=lambda pair: pair[0])])
        found.columns = {name: values[:rows] for name, values in columns.items()}
        return found

    def _examine(
        self, path: Path, item: Field, rows: int | None, known: Any, checks: NDArray[np.uint32] | None, chunks: int
    ) -> tuple[tuple[int, int], NDArray[np.uint32], NDArray[Any] | None]:
        """Return (length, crc32), the chunks' checksums and, for fields that tell of episodes, the rows."""
        fd = open_regular(path)
        try:
            length = os.fstat(fd).st_size
            if known is not None and length != known["length"]:
                raise CorruptStoreError(_other_length(length, known))
            most = most_shard_bytes(item, self.codings[item.name], self.segment_steps)
            if length > most:
                raise CorruptStoreError(f"{length} bytes, a shard of this field has {most} at most")
            data = _read(fd, length)
            crc = zlib.crc32(data.data)
            if known is not None and crc != known["crc32"]:
                raise CorruptStoreError("its crc32 is not the one committed")
            index, written = self._index(path, item, data, rows, chunks)
            sums = np.zeros(chunks, layout.CHECK)
            trailers = data[index[:, :1] + index[:, 1:] - 4 + np.arange(4)]
            sums[:written] = np.ascontiguousarray(trailers).view(layout.CHECK)[:, 0]
            if checks is not None and not np.array_equal(sums, checks):
                at = int(np.flatnonzero(sums != checks)[0])
                raise CorruptStoreError(f"the checksum of chunk {at} is not the one committed")
            values = self._decode(fd, item, index, sums[:written], all_rows=item.name in MARKS)
        finally:
            os.close(fd)
        return (length, crc), sums, values

    def _index(
        self, path: Path, item: Field, data: NDArray[np.uint8], rows: int | None, chunks: int
    ) -> tuple[NDArray[np.int64], int]:
        """Return where the chunks lie, (written, 2), and how many were written."""
        coding, end = self.codings[item.name], len(data) - shard_index_bytes(chunks)
        if end < 0:
            raise CorruptStoreError(f"{len(data)} bytes are no shard")
        entries = parse_shard_index(data[end:].tobytes(), chunks, path)
        absent = (entries == ABSENT).all(axis=1)
        written = int((~absent).sum()) if rows is None else -(-rows // coding.chunk_steps)
        if absent[:written].any() or not absent[written:].all():
            raise CorruptStoreError(f"the shard's index lists other chunks than the {written} first")
        found = entries[:written]
        limit = np.uint64(end)
        if ((found > limit).any() or (found[:, 1] <= 4).any()) or (found.sum(axis=1, dtype=np.uint64) > limit).any():
            raise CorruptStoreError("the shard's index points outside the file")
        index = found.astype(np.int64)
        if coding.codec == "none" and not is_regular(index, coding.chunk_steps * item.row_bytes + 4):
            raise CorruptStoreError("the chunks do not follow each other")
        return index, written

    def _decode(
        self, fd: int, item: Field, index: NDArray[np.int64], sums: NDArray[np.uint32], *, all_rows: bool
    ) -> NDArray[Any] | None:
        """Check every chunk's crc32c and decode it; return the rows if asked for them."""
        geometry = Geometry.of(item, self.codings[item.name])
        each = geometry.chunk_steps if all_rows else 1
        count = len(index) * each
        pieces = Pieces(
            geometry,
            (count,),
            np.full(count, fd, np.int32),
            np.repeat(index[:, 0], each),
            np.repeat(index[:, 1], each),
            np.tile(np.arange(each, dtype=np.int32), len(index)),
            np.repeat(sums, each).astype(np.uint32),
            np.zeros(count, np.int64),
        )
        values = pieces.fetch()
        return values if all_rows else None


def _listed(segment: int) -> str:
    return f"segment {segment} is in the catalogue"


def _other_length(length: int, known: Any) -> str:
    return f"{length} bytes, {int(known['length'])} were committed"


def _read(fd: int, length: int) -> NDArray[np.uint8]:
    """Return a file's bytes, in a buffer that the thread's next call uses again."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < length:
        buffer = _local.buffer = np.empty(max(length, 1 << 20), np.uint8)
    view, done = buffer.data[:length], 0
    while done < length:
        got = os.preadv(fd, [view[done:]], done)
        if not got:
            raise CorruptStoreError(f"the file ends at byte {done}, {length} were expected")
        done += got
    return np.asarray(buffer[:length])
