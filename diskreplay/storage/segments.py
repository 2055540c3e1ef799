"""Write segments as zarr v3 shards, and the arrays they belong to: metadata through zarr-python, shards by shard.py.

A shard is written once: to a temporary name, synced, renamed, its folder synced. Only then may the catalogue name
it. The arrays' shape is ahead of what is written, in powers of two, so that zarr.json is rewritten rarely.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from diskreplay.errors import CorruptStoreError, ReplayError
from diskreplay.storage import layout
from diskreplay.storage.durable import PARTIAL, Disk, DurableStore, disk_error
from diskreplay.storage.fields import LEVELS
from diskreplay.storage.locks import FileLock
from diskreplay.storage.regular import read_zarr_json, require_own
from diskreplay.storage.shard import encode_shard, shard_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from diskreplay.storage.durable import FileRecord, Staged
    from diskreplay.storage.fields import Coding, Field
    from diskreplay.storage.tail import Tail

FIRST_SEGMENTS = 16
MOST_STAGED = 64  # files open at a time


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
        self._rows = 0

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

    def write(self, tails: Sequence[Tail], codings: Mapping[str, Coding]) -> list[tuple[list[FileRecord], bytes]]:
        """Write one shard a field for each tail, durably; return what the catalogue must know of files and chunks.

        Raises:
            StoreFullError: If there is no room; the shards written so far do not count.
        """
        self._fit_arrays(max(tail.segment for tail in tails), codings)
        written: list[tuple[list[FileRecord], bytes]] = []
        with contextlib.ExitStack() as stack:
            staged: list[Staged] = []
            for tail in tails:
                records, checks = [], []
                for field in self.fields:
                    rows, done = (
                        tail.arrays[field.name][: tail.rows],
                        tail.ahead.parts(field.name) if tail.ahead else (),
                    )
                    data, check = encode_shard(field, codings[field.name], rows, self.segment_steps, ahead=done)
                    path = layout.field_path(self.root, field.name) / shard_name(tail.segment, field)
                    staged.append(stack.enter_context(self.disk.stage(path, data)))
                    records.append(staged[-1].record)
                    checks.append(check.tobytes())
                written.append((records, b"".join(checks)))
                if len(staged) + len(self.fields) > MOST_STAGED:
                    self.disk.settle(staged)
                    staged = []
                    stack.close()
            self.disk.settle(staged)
        self.sync_fields()
        return written

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
                    lost = self.root / layout.LOST
                    target = lost / layout.STEPS / field.name
                    require_own([lost, target.parent, target], folders=True)
                    self.disk.make_directory(target)
                    self.disk.move(path, target / name)

    def sync_fields(self) -> None:
        """Make the names of shards, new or removed, durable."""
        self.disk.sync_directories([layout.field_path(self.root, field.name) for field in self.fields])

    def _fit_arrays(self, segment: int, codings: Mapping[str, Coding]) -> None:
        """Have the arrays' shapes reach past a segment, and be what the index says of the fields."""
        needed = (segment + 1) * self.segment_steps
        if needed <= self._rows:
            return
        with FileLock(layout.lock_path(self.root, "layout"), "the layout"):
            lengths = []
            for field in self.fields:
                path = f"{layout.STEPS}/{field.name}"
                with _disk_errors(self.root / path):
                    # zarr would follow links, and read it whatever its length.
                    read_zarr_json(self.root / path / "zarr.json")
                    array = zarr.open_array(self._store, path=path, mode="r+", zarr_format=3)
                    self._check_array(array, field, codings[field.name])
                    length = max(array.shape[0], self.segment_steps)
                    while length < needed:
                        length *= 2
                    if length != array.shape[0]:
                        array.resize((length, *field.shape))
                    lengths.append(length)
        self._rows = min(lengths)

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
        attributes = layout.loads(read_zarr_json(path))["attributes"][layout.GROUP_KEY]
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise CorruptStoreError(f"{path}: the store's description is missing", path=root) from err
        raise disk_error(err, path) from err
    except (ValueError, KeyError, TypeError) as err:
        raise CorruptStoreError(f"{path}: not the group of a replay store: {err!r}", path=root) from err
    if not isinstance(attributes, dict):
        raise CorruptStoreError(f"{path}: not the group of a replay store", path=root)
    return attributes


def _compressors(field: Field, coding: Coding) -> list[Any]:
    if coding.codec == "zstd":
        return [ZstdCodec(level=LEVELS[coding.codec], checksum=False)]
    if coding.codec == "none":
        return []
    size, level = np.dtype(field.dtype).itemsize, LEVELS[coding.codec]
    return [BloscCodec(cname=coding.codec, clevel=level, shuffle="noshuffle", typesize=size)]


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
        if isinstance(err, RuntimeError) and "thread" in str(err):  # of zarr's own
            raise ReplayError(
                f"{self.path}: {err}",
                path=self.path,
                hint="Raise the limits of this process (`ulimit -u`, `ulimit -v`).",
            ) from err
        if isinstance(err, (ValueError, KeyError, AttributeError, TypeError, RuntimeError)):
            raise CorruptStoreError(f"{self.path}: zarr cannot use this array: {err!r}") from err
