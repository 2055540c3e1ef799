"""Choose how each field is cut and compressed, by writing and reading some of its rows in every way in question.

What is timed is the store's own read path (pread, checksum, decoding, copy) on random windows of a shard in memory.
The fastest way wins among those that take at most `MOST_BYTES` times the room of the smallest, or so little of the
raw rows' (`SMALL_ENOUGH`) that speed matters more; of ways about as fast the smallest wins. Compressing counts, too: a
step is compressed once and read `READS` times, say (a DQN of Atari reads it 8 times, offline training 100). Rows that
hardly compress, or are a few bytes, stay raw.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diskreplay.storage.fields import Coding
from diskreplay.storage.gather import Geometry, Pieces
from diskreplay.storage.shard import encode_shard, parse_shard_index, shard_index_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diskreplay.storage.fields import Compression, Field

RAW_CHUNK_BYTES = 1024
CODED_CHUNK_BYTES = (2048, 256 << 10)
COLD_CHUNK_BYTES = 8192
SMALL_ROW_BYTES = 64
MIN_RATIO = 1.5
MOST_BYTES = 2.0
SMALL_ENOUGH = 1 / 40
AS_FAST = 1.1
READS = 32
CANDIDATES = 5
SAMPLE_BYTES = 4 << 20
STACKED, SINGLE = 5, 2
WINDOWS, REPEATS = 64, 5


class Trial(NamedTuple):
    """What a coding costs: bytes a row on disk, and seconds to read a window, writing its share of a step included."""

    coding: Coding
    row_bytes: float
    seconds: float


def choose_coding(
    field: Field,
    rows: NDArray[Any],
    *,
    segment_steps: int,
    compression: Compression,
    chunk_steps: int | None = None,
) -> Coding:
    """Choose codec and chunk length for a field by trying its first rows. Cost: about a tenth of a second.

    Args:
        field: The field.
        rows: (N, *shape); the rows of the segment about to be sealed.
        segment_steps: Rows of a full segment; the chunk length divides it.
        compression: "auto" tries; anything else is taken for the hot fields.
        chunk_steps: Taken for observations instead of trying.
    """
    if not field.hot:
        return Coding("zstd", _chunk(field.row_bytes, COLD_CHUNK_BYTES, segment_steps))
    given = chunk_steps if field.role == "observation" else None
    raw = Coding("none", given or _chunk(field.row_bytes, RAW_CHUNK_BYTES, segment_steps))
    if compression == "none" or (compression == "auto" and field.row_bytes <= SMALL_ROW_BYTES):
        return raw  # a few bytes a step: decoding would cost more than the disk it saves
    codecs: tuple[Any, ...] = ("zstd", "lz4", "lz4hc") if compression == "auto" else (compression,)
    lengths = [given] if given else _lengths(field.row_bytes, segment_steps)
    if len(codecs) * len(lengths) == 1:
        return Coding(codecs[0], lengths[0])
    sample = _sample(rows, max(lengths))
    trials = [try_coding(field, Coding(codec, steps), sample) for codec in codecs for steps in lengths]
    smallest = min(trial.row_bytes for trial in trials)
    if compression == "auto" and field.row_bytes < MIN_RATIO * smallest:
        return raw
    enough = max(MOST_BYTES * smallest, SMALL_ENOUGH * field.row_bytes)
    small = [trial for trial in trials if trial.row_bytes <= enough]
    fastest = min(trial.seconds for trial in small)
    return min((t for t in small if t.seconds <= AS_FAST * fastest), key=lambda t: t.row_bytes).coding


def try_coding(field: Field, coding: Coding, rows: NDArray[Any]) -> Trial:
    """Encode rows, (N, *shape), and read random windows of them back; the best of a few rounds counts."""
    steps = -(-len(rows) // coding.chunk_steps) * coding.chunk_steps
    began = time.thread_time_ns()
    data, checks = encode_shard(field, coding, rows, steps, threads=1)
    writing = (time.thread_time_ns() - began) / len(rows)
    chunks = steps // coding.chunk_steps
    index = parse_shard_index(bytes(data[-shard_index_bytes(chunks) :]), chunks, Path("memory")).astype(np.int64)
    length = STACKED if len(field.shape) > 1 else SINGLE
    first = np.random.default_rng(0).integers(max(1, len(rows) - length), size=(WINDOWS, 1))
    wanted = np.minimum(first + np.arange(length), len(rows) - 1).reshape(-1)
    chunk = wanted // coding.chunk_steps
    with os.fdopen(os.memfd_create("diskreplay-trial", os.MFD_CLOEXEC), "wb") as file:
        file.write(data.data)
        file.flush()
        pieces = Pieces(
            Geometry.of(field, coding), (WINDOWS, length), np.full(len(wanted), file.fileno(), np.int32),
            index[chunk, 0].copy(), index[chunk, 1].copy(), (wanted % coding.chunk_steps).astype(np.int32),
            checks[chunk], np.zeros(len(wanted), np.int64),
        )  # fmt: skip
        out, taken = np.empty((WINDOWS, length, *field.shape), field.dtype), []
        for _ in range(REPEATS):
            began = time.thread_time_ns()
            pieces.fetch(out)
            taken.append(time.thread_time_ns() - began)
    return Trial(coding, len(data) / len(rows), (min(taken) / WINDOWS + writing / READS) / 1e9)


def _lengths(row_bytes: int, segment_steps: int) -> list[int]:
    """Return chunk lengths worth trying: the longest ones within bounds, by halving."""
    low, high = CODED_CHUNK_BYTES
    longest = _chunk(row_bytes, high, segment_steps)
    lengths = [longest]
    while len(lengths) < CANDIDATES and lengths[-1] % 2 == 0 and lengths[-1] * row_bytes >= 2 * low:
        lengths.append(lengths[-1] // 2)
    return lengths


def _sample(rows: NDArray[Any], chunk: int) -> NDArray[Any]:
    """Return whole chunks of rows, spread evenly, of SAMPLE_BYTES in all or a little more."""
    most = max(1, SAMPLE_BYTES // max(1, chunk * rows[:1].nbytes))
    starts = range(0, max(1, len(rows) - chunk + 1), chunk)
    chosen = sorted({starts[int(i)] for i in np.linspace(0, len(starts) - 1, most)})
    return np.concatenate([rows[start : start + chunk] for start in chosen])


def _chunk(row_bytes: int, target: int, segment_steps: int) -> int:
    """Return the largest divisor of segment_steps, by halving, whose chunk fits the target."""
    steps = segment_steps
    while steps > 1 and steps % 2 == 0 and steps * row_bytes > target:
        steps //= 2
    return steps
