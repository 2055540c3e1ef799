"""The JSON among the index's records, with its types and bounds checked: everybody reads it through here.

A record's checksum says that it is what somebody wrote, not that this package did.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Test = Callable[[Any], bool]

MOST = 1 << 62
LARGEST = float(np.finfo(np.float32).max)
CODECS = ("none", "zstd")  # of blobs in tail records


class TailHeader(NamedTuple):
    """The header of a tail record, see tail.py, and how many bytes it and its length take."""

    segment: int
    row: int
    rows: int
    pending: bool
    running: tuple[int, int, float]
    blobs: list[tuple[str, str, int]]
    size: int


def parse(database: str, payload: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a record of this table holds, without its checksum.

    Raises:
        CorruptStoreError: If it is none, or not one that this package writes into this table; `what` names the record.
    """
    data = layout.parse_json(payload, what)
    try:
        if database in _RECORDS:
            _require(data, *_RECORDS[database])
    except ValueError as err:
        raise CorruptStoreError(f"index: the record of {what} is damaged: {err}") from err
    return data


def parse_tail_header(payload: bytes) -> TailHeader:
    """Return the header of a tail record without its checksum.

    Raises:
        ValueError: If it is none.
    """
    if len(payload) < 4:
        raise ValueError("it has no header")
    size = 4 + struct.unpack_from("<I", payload)[0]
    data = layout.loads(bytes(payload[4:size]))
    if not isinstance(data, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004  read from disk, not passed
    _require(data, _TAIL)
    running, blobs = data["running"], data["blobs"]
    return TailHeader(
        data["segment"],
        data["row"],
        data["rows"],
        data["pending"],
        (running[0], running[1], float(running[2])),
        [(name, codec, length) for name, codec, length in blobs],
        size,
    )


def _require(data: Mapping[str, Any], needed: Mapping[str, Test], possible: Mapping[str, Test] | None = None) -> None:
    for name, test in needed.items():
        if name not in data:
            raise ValueError(f"it lacks {name!r}")
        if not test(data[name]):
            raise ValueError(f"{name!r} cannot be {repr(data[name])[:80]}")
    for name, test in (possible or {}).items():
        if name in data and not test(data[name]):
            raise ValueError(f"{name!r} cannot be {repr(data[name])[:80]}")


def _whole(least: int, below: int = MOST) -> Test:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def _number(least: float, most: float) -> Test:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _list(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _row(*tests: Test) -> Test:
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(tests)
        and all(test(part) for test, part in zip(tests, value, strict=True))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_draw(value: Any) -> bool:
    try:  # step ids, weights and, in younger stores, the logarithm of their scale
        return (
            _list(_is_text)(value) and len(value) in (2, 3) and all(map(math.isfinite, map(float.fromhex, value[2:])))
        )
    except (ValueError, OverflowError):
        return False


def _is_random_state(value: Any) -> bool:
    try:
        np.random.default_rng(0).bit_generator.state = value
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return False
    return True


_count, _segments = _whole(0), _list(_whole(0, layout.MOST_SEGMENTS))
_finite = _number(-float(np.finfo(np.float64).max), float(np.finfo(np.float64).max))

_RECORDS: dict[str, tuple[Mapping[str, Test], Mapping[str, Test]]] = {
    "streams": (
        {
            "name": _is_text,
            "last_segment": _whole(-1, layout.MOST_SEGMENTS),
            "tails": _segments,
            "steps": _count,
            "episodes": _count,
            "pinned": lambda value: isinstance(value, int) and value in (0, 1),
        },
        {"taken": _segments},
    ),
    "samplers": (
        {"kind": _is_text, "random": _is_random_state, "batches": _count, "in_flight": _list(_is_draw)},
        {
            "alpha": _number(0, float(np.finfo(np.float64).max)),
            "largest": _number(0, LARGEST),
            "stale": _count,
            "next_update": _count,
        },
    ),
}
_TAIL: Mapping[str, Test] = {
    "segment": _count,
    "row": _count,
    "rows": _count,
    "pending": _is_flag,
    "running": _row(_whole(-1), _count, _finite),
    "blobs": _list(_row(_is_text, lambda codec: codec in CODECS, _count)),
}
