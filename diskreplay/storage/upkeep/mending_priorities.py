"""Which priorities stay: all that are sound; the others begin anew at the largest, as those of new steps do."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.upkeep.mending_draft import Draft
from diskreplay.storage.upkeep.sampled import (
    UNSAMPLED,
    Priorities,
    Rows,
    alpha_of,
    contradictions,
    read_priorities,
    sampled_segments,
    strays,
    sums_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def mend_samplers(draft: Draft) -> None:
    """Have every sampler's records fit the segments that stay."""
    known = {name: alpha_of(state) for name, state in draft.old.samplers.items()}
    for database, key in list(strays(draft.txn, set(known))):
        draft.put(database, key, None)
    for key in [key for database, key in draft.old.raw if database == "samplers"]:
        draft.put("samplers", key, None)
        draft.lose(f"sampler {key.decode(errors='replace')!r}", "its state is damaged: it begins anew")
    for name, alpha in known.items():
        places: dict[int, int] = {}
        for segment in sampled_segments(draft.txn, name):
            _sampler_segment(draft, name, alpha, segment, places)
        _draws_in_flight(draft, name)


def _sampler_segment(draft: Draft, name: str, alpha: float | None, segment: int, places: dict[int, int]) -> None:
    found, known = read_priorities(draft.txn, name, segment), draft.rows_of(segment)
    where = f"priorities of sampler {name!r} in segment {segment}"
    if known is None or alpha is None or found.blocks == {} or not found.complete:
        if known is not None and alpha is not None:
            draft.lose(where, _first(found, "they are incomplete") + ": they begin anew at the largest")
        _forget(draft, name, segment)
        return
    if any(database == "priorities" for database, _, _ in found.bad):
        draft.lose(where, _first(found, "") + ": they begin anew at the largest")
        _forget(draft, name, segment)
        return
    place = found.place
    if place < 0 or place in places:
        used = {*places, *_places(draft, name)}
        place = next(n for n in range(len(used) + 1) if n not in used)
    places[place] = segment
    if place == found.place and not contradictions(found, alpha, known):
        return
    _fit(draft, name, alpha, found, place, known)


def _fit(draft: Draft, name: str, alpha: float, found: Priorities, place: int, known: Rows) -> None:
    """Have a segment's priorities fit its rows; those that are not wrong stay what they are."""
    rows, final = known.complete, known.final
    values = found.values[:rows].copy()
    largest = np.float32(draft.old.samplers[name].get("largest", 1.0))
    final = final[final < len(values)]
    marked = np.zeros(len(values), np.bool_)
    marked[final] = True
    wrong = ~marked & ~(np.isfinite(values) & (values >= 0))
    values[wrong], values[final] = largest, UNSAMPLED
    _forget(draft, name, found.segment)
    for block in range(-(-len(values) // layout.PRIORITY_BLOCK)):
        part = values[block * layout.PRIORITY_BLOCK : (block + 1) * layout.PRIORITY_BLOCK]
        draft.replace("priorities", layout.priority_key(name, found.segment, block), part.tobytes())
    draft.replace("sums", layout.sum_key(name, found.segment), sums_of(values, alpha, place).tobytes())
    draft.note(f"sampler {name!r}: the priorities of segment {found.segment} are made to fit its steps")


def _places(draft: Draft, name: str) -> Iterator[int]:
    for key, value in draft.txn.raw_items("sums", name.encode() + b"\0"):
        sums = value[:-4]
        whole = len(sums) > 0 and len(sums) % layout.SUM.itemsize == 0
        if whole and _is_sound(value) and draft.rows_of(int.from_bytes(key[-8:])):
            yield int(np.frombuffer(sums, layout.SUM)[0]["place"])


def _forget(draft: Draft, name: str, segment: int) -> None:
    key = layout.sum_key(name, segment)
    draft.put("sums", key, None)
    for other, _ in draft.txn.raw_items("priorities", key):
        draft.put("priorities", other, None)


def _draws_in_flight(draft: Draft, name: str) -> None:
    """Take out batches that name a step of a live segment that can no longer be sampled."""
    state = draft.old.samplers[name]
    drawn = state.get("in_flight")
    if not isinstance(drawn, list):
        return
    kept = [draw for draw in drawn if not _is_stale(draft, draw)]
    if len(kept) < len(drawn):
        draft.put_json("samplers", name.encode(), {**state, "in_flight": kept})
        draft.note(f"sampler {name!r}: {len(drawn) - len(kept)} batches drawn ahead are dropped")


def _is_stale(draft: Draft, draw: Any) -> bool:
    try:
        ids = np.frombuffer(base64.b85decode(draw[0]), np.int64)
    except (ValueError, TypeError, LookupError):
        return True
    for step in ids.tolist():
        tail = draft.tails.get(step // draft.segment_steps)
        if step in draft.cut_steps or (tail is not None and step % draft.segment_steps >= tail.rows):
            return True
    return False


def _first(found: Priorities, otherwise: str) -> str:
    return found.bad[0][2] if found.bad else otherwise


def _is_sound(value: bytes) -> bool:
    try:
        layout.open_value(bytes(value), "")
    except CorruptStoreError:
        return False
    return True
