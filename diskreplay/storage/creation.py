"""Make a store's folder and read what it says of itself."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diskreplay.errors import (
    CorruptStoreError,
    FormatVersionError,
    ReplayError,
    SpecMismatchError,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
)
from diskreplay.experience import StepSpec
from diskreplay.storage import layout
from diskreplay.storage.durable import DURABILITIES, Disk, Durability, disk_error
from diskreplay.storage.eviction import Capacity
from diskreplay.storage.fields import COMPRESSIONS, Compression, default_segment_steps, fields_of
from diskreplay.storage.index import Index
from diskreplay.storage.locks import FileLock
from diskreplay.storage.partial import partial_folder
from diskreplay.storage.regular import require_own
from diskreplay.storage.segments import SegmentWriter, change_attributes, read_attributes

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MOST_SEGMENT_STEPS = 1 << 20
MOST_SEGMENT_BYTES = 1 << 36
LONGEST_NAME = 200
MOST_VERSION = 1000


@dataclass(frozen=True)
class Description:
    """What a store says of itself, fixed when it is made."""

    spec: StepSpec
    segment_steps: int
    capacity: Capacity
    compression: Compression
    identity: str
    created: float
    durability: Durability = "power"
    chunk_steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes of the store's zarr group."""
        return {
            "format_version": layout.FORMAT_VERSION,
            "uuid": self.identity,
            "spec": self.spec.to_json(),
            "segment_steps": self.segment_steps,
            "capacity": {"steps": self.capacity.steps, "bytes": self.capacity.size_bytes},
            "compression": self.compression,
            "created": self.created,
            "durability": self.durability,
            "chunk_steps": self.chunk_steps,
        }


def describe(
    spec: StepSpec,
    *,
    capacity: int | str | None,
    segment_steps: int | None,
    compression: Compression,
    durability: Durability = "power",
    chunk_steps: int | None = None,
) -> Description:
    """Check the options of a new store and fill in what was left open.

    Raises:
        ValueError: If an option is out of range; names it.
    """
    limit = parse_capacity(capacity)
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {COMPRESSIONS}, got {compression!r}")
    check_durability(durability)
    for leaf in (*spec.observation_leaves, *spec.action_leaves):
        if len(leaf.name.encode()) > LONGEST_NAME:
            raise SpecMismatchError(f"{leaf.name[:60]}…: a field's name has at most {LONGEST_NAME} bytes")
    steps = default_segment_steps(spec, limit.steps) if segment_steps is None else segment_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_SEGMENT_STEPS:
        raise ValueError(f"segment_steps must be in [1, {MOST_SEGMENT_STEPS}], got {segment_steps!r}")
    if limit.steps is not None and steps > limit.steps:
        raise ValueError(f"capacity {limit.steps} is below one segment of {steps} steps")
    if steps * spec.row_bytes > MOST_SEGMENT_BYTES:
        raise ValueError(
            f"a segment of {steps} steps of {spec.row_bytes} bytes takes more than {MOST_SEGMENT_BYTES >> 30} GiB"
        )
    if not may_be_chunk(chunk_steps, steps):
        raise ValueError(f"chunk_steps must divide the {steps} steps of a segment, got {chunk_steps!r}")
    return Description(spec, steps, limit, compression, uuid.uuid4().hex, time.time(), durability, chunk_steps)


def may_be_chunk(chunk_steps: Any, segment_steps: int) -> bool:
    """Return whether a segment can be cut into chunks of so many steps; None: of what serves best."""
    if chunk_steps is None:
        return True
    sound = isinstance(chunk_steps, int) and not isinstance(chunk_steps, bool) and 1 <= chunk_steps <= segment_steps
    return sound and segment_steps % chunk_steps == 0


def check_durability(durability: str) -> None:
    """Check a durability.

    Raises:
        ValueError: If it is none.
    """
    if durability not in DURABILITIES:
        raise ValueError(f"durability must be one of {DURABILITIES}, got {durability!r}")


def parse_capacity(capacity: int | str | None) -> Capacity:
    """Read a capacity: transitions, or bytes such as "200GB" or "64 MiB", or None.

    >>> parse_capacity("2 MiB").size_bytes
    2097152

    Raises:
        ValueError: If it is neither, or not positive.
    """
    if capacity is None:
        return Capacity()
    if isinstance(capacity, str):
        if capacity.strip().isdigit():
            return parse_capacity(int(capacity))
        size = _size_of(capacity)
        if not size:
            raise ValueError(f"capacity must be a number of transitions or a size like '200GB', got {capacity!r}")
        return Capacity(size_bytes=size)
    if isinstance(capacity, bool) or int(capacity) != capacity or not 0 < capacity < 1 << 62:
        raise ValueError(f"capacity must be a positive number of transitions, got {capacity!r}")
    return Capacity(steps=int(capacity))


def parse_memory(memory: int | str | None) -> int | None:
    """Read an amount of memory: bytes, or a size such as "8GB" or "64 MiB", or None.

    >>> parse_memory("2 MiB")
    2097152

    Raises:
        ValueError: If it is neither, or negative.
    """
    if memory is None:
        return None
    if isinstance(memory, str):
        size = int(memory) if memory.strip().isdigit() else _size_of(memory)
    else:
        size = None if isinstance(memory, bool) or int(memory) != memory else int(memory)
    if size is None or not 0 <= size < 1 << 62:
        raise ValueError(f"memory must be a number of bytes or a size like '8GB', got {memory!r}")
    return size


def _size_of(text: str) -> int | None:
    """Return the bytes of a size such as "200GB"; None if it is none."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b\s*", text, re.IGNORECASE)
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (BINARY_UNITS if binary else UNITS)[unit.lower()])


def create_store(path: Path, description: Description, metadata: dict[str, Any], disk: Disk) -> None:
    """Make the folder of an empty store: under a temporary name, synced, renamed.

    Raises:
        StoreExistsError: If there is something at the path.
        StoreNotFoundError: If the folder it should lie in does not exist.
    """
    if path.exists() or path.is_symlink():
        raise StoreExistsError(f"{path}: exists already", path=path)
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"{path.parent}: no such folder", path=path, hint="Make it first.")
    with partial_folder(path, disk) as partial:
        writer = SegmentWriter(partial, fields_of(description.spec), description.segment_steps, disk)
        writer.create_group(description.to_json())
        index = Index(partial / layout.INDEX, create=True, synced=disk.durability == "power")
        try:
            with index.write() as txn:
                txn.put_counters(np.zeros(1, layout.COUNTERS)[0])
                txn.put_json("meta", b"metadata", metadata)
                txn.put_json("meta", b"description", description.to_json())
        finally:
            index.close()
        for folder in (partial / layout.INDEX, partial / layout.STEPS, partial):
            disk.sync_directory(folder)


def require_own_folders(path: Path, spec: StepSpec) -> None:
    """Make sure that a store's folders are its own, none a link to another.

    Raises:
        CorruptStoreError: If one is.
    """
    fields = (layout.field_path(path, item.name) for item in fields_of(spec))
    names = (layout.INDEX, layout.LOCKS, layout.LOST, layout.STEPS)
    try:
        require_own([*(path / name for name in names), *fields], folders=True)
    except OSError as err:
        raise disk_error(err, err.filename or path) from err


def read_description(path: Path) -> Description:
    """Read what a store says of itself.

    Raises:
        StoreNotFoundError: If there is no store at the path.
        FormatVersionError: If it is of another format version.
        CorruptStoreError: If its description is damaged.
    """
    if not path.exists():
        raise StoreNotFoundError(f"{path}: no such store", path=path)
    if not path.is_dir() or (not (path / layout.INDEX).is_dir() and not layout.group_path(path).is_file()):
        raise StoreNotFoundError(f"{path}: not a replay store", path=path)
    return parse_description(path, read_attributes(path))


def parse_description(path: Path, data: dict[str, Any]) -> Description:
    """Read a store's description from the attributes of its group, or from the copy of them in the index.

    Raises:
        FormatVersionError: If it is of another format version.
        CorruptStoreError: If it is damaged.
    """
    version = data.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < MOST_VERSION:
        raise CorruptStoreError(f"{layout.group_path(path)}: {version!r} is no format version", path=path)
    if version != layout.FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: format version {version!r}, this release reads {layout.FORMAT_VERSION}",
            path=path,
        )
    try:
        capacity = data["capacity"]
        steps, size = capacity["steps"], capacity["bytes"]
        segment_steps = data["segment_steps"]
        if not isinstance(segment_steps, int):
            raise TypeError("segment_steps is no whole number")
        spec, durability = StepSpec.from_json(data["spec"]), data.get("durability", "power")
        if not 1 <= segment_steps <= MOST_SEGMENT_STEPS or data["compression"] not in COMPRESSIONS:
            raise ValueError("out of range")
        if segment_steps * spec.row_bytes > MOST_SEGMENT_BYTES or durability not in DURABILITIES:
            raise ValueError("out of range")
        if not may_be_chunk(data.get("chunk_steps"), segment_steps):
            raise ValueError("chunk_steps does not divide segment_steps")
        return Description(
            spec,
            segment_steps,
            Capacity(None if steps is None else int(steps), None if size is None else int(size)),
            data["compression"],
            str(data["uuid"]),
            float(data["created"]),
            durability,
            data.get("chunk_steps"),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as err:
        raise CorruptStoreError(
            f"{layout.group_path(path)}: the store's description is damaged: {err!r}",
            path=path,
        ) from err


def agreed_durability(path: Path, description: Description, index: Index) -> Durability:
    """Return the durability that a store promises; its zarr.json, which anybody may edit, must be what the index says.

    Where the two name different durabilities, as a change of it that was cut short leaves them, the stronger holds.

    Raises:
        CorruptStoreError: If anything else differs; says what.
    """
    with index.read() as txn:
        copy = txn.json("meta", b"description")
    if copy is None:
        raise CorruptStoreError(f"{path}: the index has lost its copy of the store's description", path=path)
    here = description.to_json()
    wrong = sorted(name for name in here.keys() | copy.keys() if here.get(name) != copy.get(name))
    if set(wrong) - {"durability"}:
        raise CorruptStoreError(
            f"{layout.group_path(path)}: it is not what the index says of the store: {', '.join(wrong)}",
            path=path,
            hint="`diskreplay repair` writes it anew, as it was.",
        )
    return "power" if wrong else description.durability


def use_store(path: Path, *, required: bool) -> FileLock:
    """Take the shared lock that everybody who has the store open holds.

    Args:
        path: The store's folder.
        required: Raise if it cannot be taken for want of permission; a reader on read-only media goes without.

    Raises:
        StoreLockedError: If somebody holds the store alone: it is being repaired.
    """
    lock = FileLock(layout.lock_path(path, "store"), f"{path}: the store")
    try:
        lock.acquire(shared=True)
    except StoreLockedError:
        raise
    except ReplayError:
        if required:
            raise
    return lock


def change_durability(path: Path, durability: Durability) -> None:
    """Change a store's durability; before "power" is promised, everything so far is made durable.

    Raises:
        StoreLockedError: If somebody has the store open; names the processes.
    """
    disk = Disk("power")
    with FileLock(layout.lock_path(path, "store"), f"{path}: the store").acquire():
        disk.sync_everything(path)
        change_attributes(path, {"durability": durability}, disk)
        index = Index(path / layout.INDEX)
        try:
            with index.write() as txn:
                description = txn.json("meta", b"description")
                if description is not None:
                    txn.put_json("meta", b"description", {**description, "durability": durability})
        finally:
            index.close()
