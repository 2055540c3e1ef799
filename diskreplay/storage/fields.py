"""The arrays of a store: which there are, and how each is cut and compressed.

Geometry and codec are chosen per field from its own data when the first segment is sealed, and are then the
store's for good. Measured on real frames: small chunks of zstd give 50 to 200 times and cost 15 to 20 us to
decode; what does not compress is better left raw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numcodecs import Blosc, Zstd

from diskreplay.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from diskreplay.experience import StepSpec

Compression = Literal["auto", "zstd", "lz4", "none"]
COMPRESSIONS: tuple[Compression, ...] = ("auto", "zstd", "lz4", "none")

SEGMENT_BYTES = 32 << 20
SEGMENT_STEPS = (256, 65_536)
RAW_CHUNK_BYTES = 2048
CODED_CHUNK_BYTES = 112 << 10
COLD_CHUNK_BYTES = 8192
MIN_RATIO = 1.5
LZ4_ENOUGH = 0.8

REWARD, TERMINATED, TRUNCATED = "reward", "terminated", "truncated"
IS_LAST, EPISODE = "is_last", "episode"


@dataclass(frozen=True)
class Field:
    """One array of the store; `hot` if a batch reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Literal["observation", "action", "outcome", "mark"]
    hot: bool
    fill: int = 0

    @cached_property
    def row_bytes(self) -> int:
        """Return the bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Coding:
    """How a field's segments are cut into chunks and compressed."""

    codec: Literal["zstd", "lz4", "none"]
    chunk_steps: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"codec": self.codec, "chunk_steps": self.chunk_steps}

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any], segment_steps: int) -> Coding:
        """Build from `to_json`'s object.

        Raises:
            CorruptStoreError: If it is not one that this version writes.
        """
        data = data if isinstance(data, dict) else {"not": "an object"}
        codec, steps = data.get("codec"), data.get("chunk_steps")
        if (
            codec not in ("zstd", "lz4", "none")
            or not isinstance(steps, int)
            or not 1 <= steps <= segment_steps
            or segment_steps % steps
        ):
            raise CorruptStoreError(f"index: field {name} has the impossible coding {dict(data)!r}")
        return cls(codec, steps)


def fields_of(spec: StepSpec) -> tuple[Field, ...]:
    """List the arrays in which steps of this spec are stored, in their fixed order."""
    return (
        *(Field(a.name, a.shape, a.dtype, "observation", hot=True) for a in spec.observation_leaves),
        *(Field(a.name, a.shape, a.dtype, "action", hot=True) for a in spec.action_leaves),
        Field(REWARD, (), "float32", "outcome", hot=True),
        Field(TERMINATED, (), "bool", "outcome", hot=False),
        Field(TRUNCATED, (), "bool", "outcome", hot=False),
        Field(IS_LAST, (), "bool", "mark", hot=False),
        Field(EPISODE, (), "int64", "mark", hot=False, fill=-1),
    )


def default_segment_steps(spec: StepSpec, capacity_steps: int | None) -> int:
    """Return a power of two: about 32 MiB of raw rows, and at least 16 segments to a capacity."""
    low, high = SEGMENT_STEPS
    steps = SEGMENT_BYTES // max(1, spec.row_bytes + 16)
    if capacity_steps is not None:
        steps, low = min(steps, capacity_steps // 16), 16
    return 1 << (max(low, min(high, steps)).bit_length() - 1)


def choose_coding(
    field: Field,
    rows: NDArray[Any],
    *,
    segment_steps: int,
    compression: Compression,
) -> Coding:
    """Choose codec and chunk length for a field by trying its first rows.

    Args:
        field: The field.
        rows: (N, *shape); the rows of the segment about to be sealed.
        segment_steps: Rows of a full segment; the chunk length divides it.
        compression: "auto" tries; anything else is taken for the hot fields.
    """
    if not field.hot:
        return Coding("zstd", _chunk(field.row_bytes, COLD_CHUNK_BYTES, segment_steps))
    raw = Coding("none", _chunk(field.row_bytes, RAW_CHUNK_BYTES, segment_steps))
    steps = _chunk(field.row_bytes, CODED_CHUNK_BYTES if field.row_bytes > 512 else 4096, segment_steps)
    if compression == "none":
        return raw
    if compression in ("zstd", "lz4"):
        return Coding(compression, steps)
    if field.row_bytes <= 64:
        return raw  # a few bytes a step: decoding would cost more than the disk it saves
    sample = [np.ascontiguousarray(rows[i : i + steps]) for i in _spread(len(rows), steps, 8)]
    size = sum(chunk.nbytes for chunk in sample)
    zstd = sum(len(Zstd(level=1).encode(chunk)) for chunk in sample)
    if size < MIN_RATIO * zstd:
        return raw
    lz4 = sum(len(blosc(chunk.dtype.itemsize).encode(chunk)) for chunk in sample)
    return Coding("lz4" if zstd > LZ4_ENOUGH * lz4 else "zstd", steps)


def blosc(typesize: int) -> Blosc:
    """Return the blosc-lz4 coder that the "lz4" coding stands for."""
    return Blosc(cname="lz4", clevel=5, shuffle=Blosc.NOSHUFFLE, typesize=typesize)


def _chunk(row_bytes: int, target: int, segment_steps: int) -> int:
    """Return the largest divisor of segment_steps, by halving, whose chunk fits the target."""
    steps = segment_steps
    while steps > 1 and steps % 2 == 0 and steps * row_bytes > target:
        steps //= 2
    return steps


def _spread(rows: int, chunk: int, most: int) -> list[int]:
    """Return starts of up to `most` chunks, spread evenly over the rows."""
    starts = range(0, max(1, rows - chunk + 1), chunk)
    return [starts[int(i)] for i in np.linspace(0, len(starts) - 1, min(most, len(starts)))]
