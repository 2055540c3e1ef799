"""The arrays of a store: which there are, and how each is cut and compressed.

Geometry and codec are chosen per field from its own data when the first segment is sealed (coding.py), and are then
the store's for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numcodecs import Blosc

from diskreplay.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diskreplay.experience import StepSpec

Codec = Literal["zstd", "lz4", "lz4hc", "none"]
Compression = Literal["auto", "zstd", "lz4", "lz4hc", "none"]
COMPRESSIONS: tuple[Compression, ...] = ("auto", "zstd", "lz4", "lz4hc", "none")
LEVELS = {"zstd": 1, "lz4": 5, "lz4hc": 3}

SEGMENT_BYTES = 32 << 20
SEGMENT_STEPS = (256, 1 << 19)

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

    codec: Codec
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
            codec not in COMPRESSIONS[1:]
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


def blosc(codec: Codec, typesize: int) -> Blosc:
    """Return the blosc coder that "lz4" or "lz4hc" stands for; lz4 decodes what either writes."""
    return Blosc(cname=codec, clevel=LEVELS[codec], shuffle=Blosc.NOSHUFFLE, typesize=typesize)
