"""Write segments as zarr v3 shards, and the arrays they belong to. Everything goes through zarr-python.

A shard is written once: to a temporary name, synced, renamed, its folder synced. Only then may the catalogue name
it. The arrays' shape is ahead of what is written, in powers of two, so that zarr.json is rewritten rarely.
"""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.durable import PARTIAL, Disk, DurableStore, FileRecord, disk_error
from diskreplay.storage.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field

FIRST_SEGMENTS = 16
MOST_DESCRIPTION_BYTES = 16 << 20


class SegmentWriter:
    """Write the rows of full tails into a store's arrays.

    Args:
        root: The store's folder.
        fields: The store's fields.
        segment_steps: Rows of a segment.
        disk: The seam to the disk.
    """

    def __init__(self, root: Path, fields: Sequence[Field], segment_steps: int, disk: Disk) -> None:
        self.root = root
        self.fields = tuple(fields)
        self.segment_steps = segment_steps
        self.disk = disk
        self._store = DurableStore(root, disk=disk)
        self._arrays: dict[str, Any] = {}

    def create_group(self, attributes: dict[str, Any]) -> None:
        """Write the store's group, with the attributes that describe it, and the group of its arrays."""
        with _disk_errors(self.root):
            zarr.create_group(self._store, zarr_format=3, attributes={layout.GROUP_KEY: attributes})
            zarr.create_group(self._store, path=layout.STEPS, zarr_format=3)
        self.disk.sync_directory(self.root)

    def create_arrays(self, codings: Mapping[str, Coding]) -> None:
        """Create every field's array, in place of what an interrupted attempt may have left.

        The caller holds the layout lock and puts the codings into the index afterwards.
        """
        for field in self.fields:
            coding = codings[field.name]
            with _disk_errors(layout.field_path(self.root, field.name)):
                zarr.create_array(
                    self._store,
                    name=f"{layout.STEPS}/{field.name}",
                    shape=(FIRST_SEGMENTS * self.segment_steps, *field.shape),
                    chunks=(coding.chunk_steps, *field.shape),
                    shards=(self.segment_steps, *field.shape),
                    dtype=field.dtype,
                    compressors=[*_compressors(field, coding), Crc32cCodec()],
                    filters=None,
                    fill_value=field.fill,
                    chunk_key_encoding={"name": "default", "separator": "."},
                    dimension_names=["step", *(f"axis_{i}" for i in range(len(field.shape)))],
                    overwrite=True,
                )
        self.disk.sync_directory(self.root / layout.STEPS)

    def write(
        self,
        segment: int,
        arrays: Mapping[str, NDArray[Any]],
        rows: int,
        codings: Mapping[str, Coding],
    ) -> tuple[list[FileRecord], bytes]:
        """Write one shard a field, durably; return what the catalogue must know of files and chunks.

        Raises:
            StoreFullError: If there is no room; the shards written so far do not count.
        """
        start = segment * self.segment_steps
        records, checks = [], []
        for field in self.fields:
            chunk = codings[field.name].chunk_steps
            chunks = -(-rows // chunk)
            values = arrays[field.name][: chunks * chunk]
            if rows < len(values):
                values = values.copy()
                values[rows:] = field.fill
            array = self._array(field, codings[field.name], segment)
            key = f"{layout.STEPS}/{field.name}/{shard_name(segment, field)}"
            self._store.written.pop(key, None)
            if os.path.lexists(self.root / key):
                # zarr would read, and merge with, what an interrupted attempt has left.
                self.disk.unlink(self.root / key)
            with _disk_errors(self.root / key):
                array[start : start + len(values)] = values
            record, data = self._store.written.pop(key, (None, memoryview(b"")))
            if record is None:
                raise ReplayError(f"{self.root / key}: zarr did not write this shard", path=self.root)
            records.append(record)
            checks.append(self._checks(field, codings[field.name], data, chunks, self.root / key))
        return records, b"".join(checks)

    def _checks(self, field: Field, coding: Coding, data: memoryview, written: int, path: Path) -> bytes:
        """Return the crc32c of every chunk of a shard, in order; 0 for those past the `written` first."""
        chunks = self.segment_steps // coding.chunk_steps
        index = parse_shard_index(bytes(data[-shard_index_bytes(chunks) :]), chunks, path)[:written].astype(np.int64)
        if coding.codec == "none" and not is_regular(index, coding.chunk_steps * field.row_bytes + 4):
            raise ReplayError(f"{path}: zarr laid out this shard in another order than chunk by chunk")
        checks = np.zeros((chunks, 4), np.uint8)
        checks[:written] = np.frombuffer(data, np.uint8)[index[:, :1] + index[:, 1:] - 4 + np.arange(4)]
        return bytes(checks.tobytes())

    def remove(self, segment: int) -> None:
        """Unlink an evicted segment's shards and sync their folders. The index has forgotten them already."""
        for field in self.fields:
            folder = layout.field_path(self.root, field.name)
            self.disk.unlink(folder / shard_name(segment, field))

    def set_aside(self, segments: Sequence[int]) -> None:
        """Move shards that no catalogue entry names into lost+found."""
        for segment in segments:
            for field in self.fields:
                name = shard_name(segment, field)
                path = layout.field_path(self.root, field.name) / name
                self.disk.unlink(path.with_name(name + PARTIAL))
                if path.exists():
                    target = self.root / layout.LOST / layout.STEPS / field.name
                    self.disk.make_directory(target)
                    self.disk.move(path, target / name)

    def sync_fields(self) -> None:
        """Make removals durable."""
        for field in self.fields:
            self.disk.sync_directory(layout.field_path(self.root, field.name))

    def _array(self, field: Field, coding: Coding, segment: int) -> Any:
        array = self._arrays.get(field.name)
        needed = (segment + 1) * self.segment_steps
        if array is None or array.shape[0] < needed:
            with FileLock(layout.lock_path(self.root, "layout"), "the layout"):
                path = f"{layout.STEPS}/{field.name}"
                with _disk_errors(self.root / path):
                    array = zarr.open_array(self._store, path=path, mode="r+", zarr_format=3)
                    self._check_array(array, field, coding)
                    if array.shape[0] < needed:
                        length = max(array.shape[0], self.segment_steps)
                        while length < needed:
                            length *= 2
                        array.resize((length, *field.shape))
            # An all-zero chunk is data like any other; by default zarr would leave it out.
            array = array.with_config({"write_empty_chunks": True})
            self._arrays[field.name] = array
        return array

    def _check_array(self, array: Any, field: Field, coding: Coding) -> None:
        """Refuse an array that is not what the index says of the field: what it wrote could not be read."""
        expected = {
            "dtype": np.dtype(field.dtype),
            "chunks": (coding.chunk_steps, *field.shape),
            "shards": (self.segment_steps, *field.shape),
            "compressors": (*_compressors(field, coding), Crc32cCodec()),
            "filters": (),
            "fill_value": field.fill,
        }
        wrong = [name for name, value in expected.items() if getattr(array, name) != value]
        if wrong or array.shape[1:] != field.shape:
            raise ValueError(f"its {', '.join(wrong) or 'shape'} is not what the index says")


def shard_name(segment: int, field: Field) -> str:
    """Return the file name of a segment's shard of this field."""
    return layout.shard_name(segment, 1 + len(field.shape))


def change_attributes(root: Path, changes: dict[str, Any], disk: Disk) -> None:
    """Change what the store's group says of the store, atomically."""
    with _disk_errors(layout.group_path(root)):
        group = zarr.open_group(DurableStore(root, disk=disk), mode="r+", zarr_format=3)
        group.update_attributes({layout.GROUP_KEY: {**read_attributes(root), **changes}})


def read_attributes(root: Path) -> dict[str, Any]:
    """Return what the store's group says of the store.

    Raises:
        CorruptStoreError: If zarr.json is not readable or lacks diskreplay's attributes.
    """
    path = layout.group_path(root)
    try:
        if path.stat().st_size > MOST_DESCRIPTION_BYTES:
            raise ValueError("far too long")
        attributes = json.loads(path.read_bytes())["attributes"][layout.GROUP_KEY]
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise CorruptStoreError(f"{path}: the store's description is missing", path=root) from err
        raise disk_error(err, path) from err
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CorruptStoreError(f"{path}: not the group of a replay store: {err!r}", path=root) from err
    if not isinstance(attributes, dict):
        raise CorruptStoreError(f"{path}: not the group of a replay store", path=root)
    return attributes


def parse_shard_index(data: bytes, chunks: int, path: Path) -> NDArray[np.uint64]:
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
    return 16 * chunks + 4


def _compressors(field: Field, coding: Coding) -> list[Any]:
    if coding.codec == "zstd":
        return [ZstdCodec(level=1, checksum=False)]
    if coding.codec == "lz4":
        size = np.dtype(field.dtype).itemsize
        return [BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=size)]
    return []


class _disk_errors:  # noqa: N801  a context manager that reads like one
    """Turn what zarr lets through into errors of our own, naming the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, err: BaseException | None, _trace: object) -> None:
        if isinstance(err, ReplayError):
            return
        if isinstance(err, OSError):
            raise disk_error(err, self.path) from err
        if isinstance(err, (ValueError, KeyError, AttributeError, TypeError, RuntimeError)):
            raise CorruptStoreError(f"{self.path}: zarr cannot use this array: {err!r}") from err
