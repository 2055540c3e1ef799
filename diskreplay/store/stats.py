"""Describe a store: counts, sizes, rewards, returns, lengths, priorities."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import StepEvictedError
from diskreplay.storage import layout
from diskreplay.storage.fields import REWARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.engine import Engine
    from diskreplay.store.view import StoreView


@dataclass(frozen=True)
class EpisodeTable:
    """Finished episodes as columns.

    Attributes:
        episode_return: (E,) float64, the sum of rewards.
        length: (E,) int64, steps.
        terminated: (E,) bool; False: truncated or interrupted.
        first_step_id: (E,) int64.
        stream: (E,) int32.
    """

    episode_return: NDArray[np.float64]
    length: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    first_step_id: NDArray[np.int64]
    stream: NDArray[np.int32]


@dataclass(frozen=True)
class StoreStats:
    """What `diskreplay stats` shows. Sizes in bytes; `bytes_raw` is what the live rows take uncompressed."""

    path: str
    format_version: int
    steps: int
    transitions: int
    episodes: int
    streams: int
    segments: int
    tail_steps: int
    steps_evicted: int
    capacity: int | str | None
    segment_steps: int
    bytes_on_disk: int
    bytes_index: int
    bytes_raw: int
    compression_ratio: float
    durability: str
    quarantined: list[int]
    fields: dict[str, dict[str, Any]]
    reward: dict[str, float | int | None]
    episode_return: dict[str, float | int | None]
    episode_length: dict[str, float | int | None]
    priority: dict[str, float | int | str | None]
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def episode_table(engine: Engine) -> EpisodeTable:
    """Return the finished episodes; the caller holds the store's lock."""
    parts: list[tuple[int, NDArray[Any]]] = []
    table = engine.table
    with engine.index.read() as txn:
        for slot in table.live().tolist():
            tail = table.tails.get(slot)
            if tail is not None:
                parts.append((int(table.stream[slot]), tail.episodes[: tail.n_ends].copy()))
                continue
            key = layout.segment_key(int(table.segment[slot]))
            episodes = txn.array("episodes", key, layout.EPISODE)
            if episodes is not None:
                parts.append((int(table.stream[slot]), episodes))
    joined = np.concatenate([np.empty(0, layout.EPISODE), *(episodes for _, episodes in parts)])
    streams = [np.full(len(episodes), stream, np.int32) for stream, episodes in parts]
    return EpisodeTable(
        episode_return=joined["episode_return"].astype(np.float64),
        length=joined["length"].astype(np.int64),
        terminated=(joined["flags"] & layout.TERMINATED) > 0,
        first_step_id=joined["first_step_id"].astype(np.int64),
        stream=np.concatenate([np.empty(0, np.int32), *streams]),
    )


def column(engine: Engine, field: str) -> Iterator[NDArray[Any]]:
    """Yield a field's values over the live steps, final rows left out, a block a segment."""
    if field not in engine.reader.fields:
        raise ValueError(f"no field {field!r}; there are {sorted(engine.reader.fields)}")
    with engine.lock:
        segments = engine.table.segment[engine.table.live()].tolist()
    for segment in segments:
        with engine.lock:
            if segment not in engine.table:
                continue
            slot = engine.table.slot(segment)
            slots = np.full(int(engine.table.rows[slot]), slot, np.int32)
            try:
                ends = engine.reader.final_rows(segment).copy()
                values = engine.reader.rows(field, slots, np.arange(len(slots), dtype=np.int32))
            except StepEvictedError:
                continue  # by another process, meanwhile
        yield np.delete(values, ends, axis=0)


def collect_stats(store: StoreView) -> StoreStats:
    """Gather everything `StoreStats` holds."""
    engine = store._engine  # noqa: SLF001  stats belong to the store
    rewards, episodes, priorities = Moments(), store.episodes(), Moments()
    for values in store.column(REWARD):
        rewards.add(values)
    for values in store.priorities():
        priorities.add(values[values >= 0])
    with engine.lock:
        table = engine.table
        rows = int(table.rows[: table.size].sum(dtype=np.int64))
        sealed = [slot for slot in table.live().tolist() if slot not in table.tails]
        sealed_rows = int(table.rows[sealed].sum(dtype=np.int64))
        tail_steps = sum(tail.rows - tail.n_ends for tail in table.tails.values())
        transitions, sizes = table.transitions, _field_sizes(engine)
        segments, streams = len(sealed), len(engine.streams)
    fields = {}
    for item in engine.fields:
        coding, raw = engine.codings.get(item.name), sealed_rows * item.row_bytes
        fields[item.name] = {
            "shape": list(item.shape),
            "dtype": item.dtype,
            "codec": coding.codec if coding else None,
            "chunk_steps": coding.chunk_steps if coding else None,
            "bytes_on_disk": sizes[item.name],
            "bytes_raw": raw,
            "compression_ratio": raw / sizes[item.name] if sizes[item.name] else None,
        }
    index = sum(p.stat().st_blocks * 512 for p in (store.path / layout.INDEX).iterdir())
    on_disk = index + sum(sizes.values())
    raw_bytes = rows * sum(item.row_bytes for item in engine.fields)
    capacity = store.capacity
    return StoreStats(
        path=str(store.path),
        format_version=layout.FORMAT_VERSION,
        steps=transitions,
        transitions=transitions,
        episodes=store.num_episodes,
        streams=streams,
        segments=segments,
        tail_steps=int(tail_steps),
        steps_evicted=engine.steps_evicted,
        capacity=capacity.steps if capacity.size_bytes is None else f"{capacity.size_bytes} bytes",
        segment_steps=store.segment_steps,
        bytes_on_disk=on_disk,
        bytes_index=index,
        bytes_raw=raw_bytes,
        compression_ratio=raw_bytes / on_disk if on_disk else 0.0,
        durability=store.durability,
        quarantined=_quarantined(engine),
        fields=fields,
        reward={**rewards.to_json(), "nonzero_share": rewards.nonzero_share},
        episode_return=_summary(episodes.episode_return),
        episode_length=_summary(episodes.length),
        priority={**priorities.to_json(), "sampler": "prioritized" if priorities.count else None},
        metadata=store.metadata,
    )


class Moments:
    """Count, extremes, mean and deviation of values that come in blocks."""

    def __init__(self) -> None:
        self.count = 0
        self._total = self._squares = 0.0
        self._nonzero = 0
        self._low, self._high = np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take in a block."""
        if len(values):
            wide = values.astype(np.float64)
            self.count += len(wide)
            self._total += float(wide.sum())
            self._squares += float((wide * wide).sum())
            self._nonzero += int(np.count_nonzero(wide))
            self._low = min(self._low, float(wide.min()))
            self._high = max(self._high, float(wide.max()))

    @property
    def nonzero_share(self) -> float | None:
        """Return the share of values that are not 0."""
        return self._nonzero / self.count if self.count else None

    def to_json(self) -> dict[str, Any]:
        """Return count, min, max, mean and std; None where nothing was counted."""
        if not self.count:
            return {"count": 0, "min": None, "max": None, "mean": None, "std": None}
        mean = self._total / self.count
        deviation = max(0.0, self._squares / self.count - mean * mean) ** 0.5
        return {
            "count": self.count,
            "min": self._low,
            "max": self._high,
            "mean": mean,
            "std": deviation,
        }


def _summary(values: NDArray[Any]) -> dict[str, float | int | None]:
    moments = Moments()
    moments.add(values)
    return {**moments.to_json(), "median": float(np.median(values)) if len(values) else None}


def _quarantined(engine: Engine) -> list[int]:
    with engine.index.read() as txn:
        known = {int.from_bytes(key, "big") for key, _ in txn.items("quarantine")}
    return sorted(known | set(engine.quarantined))


def _field_sizes(engine: Engine) -> dict[str, int]:
    total = np.zeros(len(engine.fields), np.int64)
    with engine.index.read() as txn:
        for key, payload in txn.items("files"):
            if int.from_bytes(key, "big") in engine.table:
                total += np.frombuffer(payload, layout.FILE)["length"]
    return {item.name: int(size) for item, size in zip(engine.fields, total, strict=True)}
