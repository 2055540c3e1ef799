"""Leave a damaged segment out: of this process at once, of the store with the next commit.

The segment before it in its stream loses the observation that followed its last row. So that row becomes the end of
an interrupted episode, in the index alone (flag CUT): shards are never rewritten. The damaged segment's records stay,
but for its entry in the catalogue, which moves to `quarantine`: `diskreplay repair` takes it back if its files are
whole again, or sets it aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError, StepEvictedError
from diskreplay.storage import layout
from diskreplay.storage.fields import EPISODE, REWARD
from diskreplay.storage.priorities import forget_priorities

if TYPE_CHECKING:
    from diskreplay.storage.engine import Engine
    from diskreplay.storage.transactions import Writing


def quarantine(engine: Engine, segment: int, why: str) -> bool:
    """Leave a sealed segment out from now on; return whether it was there. Call with the engine's lock held.

    A segment before it that turns out damaged too goes with it: no other, whatever else goes wrong.

    Raises:
        ReplayError: If what is before it cannot be read for another reason; the segment is left where it is.
    """
    pending: list[tuple[int, str]] = [(segment, why)]
    found = False
    while pending:
        bad, reason = pending.pop()
        if bad not in engine.table or engine.table.slot(bad) in engine.table.tails:
            continue
        before, entry = int(engine.table.previous[engine.table.slot(bad)]), None
        if before >= 0 and before not in engine.table.tails and not engine.table.ends_episode(before):
            entry, also = _cut_episode(engine, before)
            pending += also
        with engine.changing():
            engine.drop(bad)
            engine.quarantined[bad] = reason
            engine.quarantine_changes[bad] = entry
            if entry is not None:
                engine.table.cut_after(before)
                engine.episodes_sealed += 1
                engine.cuts.append(int(engine.table.segment[before]))
        found = True
    return found


def put_quarantine(txn: Writing, engine: Engine, counters: Any) -> None:
    """Make the quarantine of segments durable, in the transaction of a commit."""
    for segment, entry in engine.quarantine_changes.items():
        key = layout.segment_key(segment)
        try:
            records = txn.array("segments", key, layout.SEGMENT)
        except CorruptStoreError:
            continue  # it is the record itself: for `repair`
        if records is None:
            continue  # evicted meanwhile
        record = records[0]
        txn.put("quarantine", key, record.tobytes())
        txn.delete("segments", key)
        txn.delete("seals", layout.segment_key(int(record["seal"])))
        forget_priorities(txn, segment)
        counters["transitions"] -= int(record["rows"]) - int(record["ends"])
        counters["evictions"] += 1  # so that other processes drop it
        if entry is not None:
            put_cut(txn, int(record["previous"]), entry, counters)


def put_cut(txn: Writing, segment: int, entry: Any, counters: Any) -> None:
    """Make a segment's last row the end of an interrupted episode; `entry` is its EPISODE record."""
    key = layout.segment_key(segment)
    records = txn.array("segments", key, layout.SEGMENT)
    episodes = txn.array("episodes", key, layout.EPISODE)
    if records is None or episodes is None:
        return
    record = records.copy()[0]
    if record["last_end"] == record["rows"] - 1:
        return
    joined = np.concatenate([episodes, entry])
    layout.note_episodes(record, joined)
    record["cut"] = 1
    txn.put("segments", key, record.tobytes())
    txn.put("episodes", key, joined.tobytes())
    counters["transitions"] -= 1
    counters["cuts"] += 1


def _cut_episode(engine: Engine, slot: int) -> tuple[Any, list[tuple[int, str]]]:
    """Return the EPISODE record of the episode that a segment's last row is the end of, if nothing follows.

    None if that segment went, or is damaged itself. Also which segments turn out damaged, and why. The record counts
    the rows that can be read, as where the episode's beginning was evicted.
    """
    table = engine.table
    last = int(table.rows[slot]) - 1
    first, length, total, here, stop = -1, 0, 0.0, slot, last
    while here >= 0:
        segment = int(table.segment[here])
        try:
            if first < 0:
                first = int(_rows(engine, EPISODE, slot, last, last + 1)[0])
            inside = first // engine.segment_steps == segment
            start = first % engine.segment_steps if inside else 0
            rewards = _rows(engine, REWARD, here, start, stop)
        except (StepEvictedError, CorruptStoreError) as err:
            damaged = [(segment, str(err))] if isinstance(err, CorruptStoreError) else []
            if here == slot:
                return None, damaged
            return layout.cut_episode(first, last, length, total), damaged
        length += stop - start
        total += float(rewards.sum(dtype=np.float64))
        if inside:
            break
        here = int(table.previous[here])
        stop = int(table.rows[here])
    return layout.cut_episode(first, last, length, total), []


def _rows(engine: Engine, field: str, slot: int, start: int, stop: int) -> Any:
    rows = np.arange(start, stop, dtype=np.int32)
    return engine.reader.rows(field, np.full(len(rows), slot, np.int32), rows)
