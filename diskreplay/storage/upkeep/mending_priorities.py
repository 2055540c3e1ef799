"""Which priorities stay: all that are sound; the others begin anew at the largest, as those of new steps do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.updates import Journal
from diskreplay.storage.upkeep.mending_draft import Draft
from diskreplay.storage.upkeep.records import INCONSISTENT
from diskreplay.storage.upkeep.sampled import (
    UNSAMPLED,
    Priorities,
    Rows,
    alpha_of,
    check_journal,
    contradictions,
    read_priorities,
    sampled_segments,
    steps_drawn,
    strays,
    sums_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def mend_samplers(draft: Draft) -> None:
    """Have every sampler's records fit the segments that stay."""
    known = {name: alpha_of(state) for name, state in draft.old.samplers.items()}
    for database, key in list(strays(draft.txn, set(known))):
        draft.put(database, key, None)
    for key in [key for database, key in draft.old.raw if database == "samplers"]:
        draft.put("samplers", key, None)
        draft.lose(f"sampler {key.decode(errors='replace')!r}", "its state is damaged: it begins anew")
    for name, alpha in known.items():
        journal = _journal(draft, name)
        places: dict[int, int] = {}
        for segment in sorted({*sampled_segments(draft.txn, name), *_journaled_segments(draft, journal)}):
            found = read_priorities(draft.txn, name, segment, journal, draft.segment_steps)
            _sampler_segment(draft, name, alpha, found, places)
        _draws_in_flight(draft, name)


def _journaled_segments(draft: Draft, journal: Journal) -> Iterator[int]:
    """Yield the live segments that a journal has priorities of: it may be the only one that knows them."""
    known = [np.unique(update.step_ids // draft.segment_steps) for update in journal.updates]
    for segment in {segment for segments in known for segment in segments.tolist()}:
        if draft.rows_of(segment) is not None:
            yield segment


def _journal(draft: Draft, name: str) -> Journal:
    """Return a sampler's journal, from which damaged records leave."""
    journal, state = Journal(name), draft.old.samplers[name]
    journal.follow(draft.txn)
    for key, why in journal.bad:
        draft.put("updates", key, None)
        draft.lose(f"sampler {name!r}: a record of its journal", f"{why}: its priorities are those of before")
    for problem in check_journal(journal, state):
        if problem.kind == INCONSISTENT:
            following = 1 + max((update.number for update in journal.updates), default=-1)
            draft.old.samplers[name] = state = {**state, "next_update": following}
            draft.put_json("samplers", name.encode(), state)
            draft.note(f"sampler {name!r}: its journal goes on with number {following}")
    return journal


def _sampler_segment(draft: Draft, name: str, alpha: float | None, found: Priorities, places: dict[int, int]) -> None:
    segment, known = found.segment, draft.rows_of(found.segment)
    where = f"priorities of sampler {name!r} in segment {segment}"
    if known is None or alpha is None:
        _forget(draft, name, segment)
        return
    if found.sums is None:
        rows = known.complete  # what the journal alone knows stands behind the blocks
        rows = 1 + int(max(np.flatnonzero(~np.isnan(found.values(rows))), default=-1))
    else:
        rows = min(max(int(found.sums["rows"].sum(dtype=np.int64)), found.written), known.complete)
    values = found.values(rows)
    if not rows or any(database == "priorities" for database, _, _ in found.bad) or np.isnan(values).all():
        draft.lose(where, _first(found, "they are incomplete") + ": they begin anew at the largest")
        _forget(draft, name, segment)
        return
    place = found.place
    if place < 0 or place in places:
        used = {*places, *_places(draft, name)}
        place = next(n for n in range(len(used) + 1) if n not in used)
    places[place] = segment
    fits = not (contradictions(found, alpha, known) or found.older or found.beyond(draft.old.samplers[name]))
    if place == found.place and fits:
        return
    if found.older and found.sums is not None:
        draft.lose(where, "some are not those that were committed: they are of before")
    if np.isnan(values).any():
        draft.lose(where, f"{int(np.isnan(values).sum())} are missing or not finite: they begin anew at the largest")
    _fit(draft, name, alpha, found, place, known, values)


def _fit(
    draft: Draft, name: str, alpha: float, found: Priorities, place: int, known: Rows, values: NDArray[np.float32]
) -> None:
    """Have a segment's priorities fit its rows; those that are not wrong stay what they are."""
    final, state = known.final, draft.old.samplers[name]
    largest = np.float32(state.get("largest", 1.0))
    final = final[final < len(values)]
    marked = np.zeros(len(values), np.bool_)
    marked[final] = True
    wrong = ~marked & ~(np.isfinite(values) & (values >= 0))
    values[wrong], values[final] = largest, UNSAMPLED
    _forget(draft, name, found.segment)
    sums = sums_of(values, alpha, place)
    for block in range(-(-len(values) // layout.PRIORITY_BLOCK)):
        part = values[block * layout.PRIORITY_BLOCK : (block + 1) * layout.PRIORITY_BLOCK]
        payload = layout.priorities_payload(int(state.get("next_update", 0)), part)
        key = layout.priority_key(name, found.segment, block)
        draft.replace("priorities", key, payload)
        sums["check"][block] = layout.record_checksum(layout.seal_record("priorities", key, payload))
    draft.replace("sums", layout.sum_key(name, found.segment), sums.tobytes())
    draft.note(f"sampler {name!r}: the priorities of segment {found.segment} are made to fit its steps")


def _places(draft: Draft, name: str) -> Iterator[int]:
    for key, value in draft.txn.raw_items("sums", name.encode() + b"\0"):
        sums = value[:-4]
        whole = len(sums) > 0 and len(sums) % layout.SUM.itemsize == 0
        if whole and _is_sound("sums", key, value) and draft.rows_of(int.from_bytes(key[-8:])):
            yield int(np.frombuffer(sums, layout.SUM)[0]["place"])


def _forget(draft: Draft, name: str, segment: int) -> None:
    key = layout.sum_key(name, segment)
    draft.put("sums", key, None)
    for other, _ in draft.txn.raw_items("priorities", key):
        draft.put("priorities", other, None)


def _draws_in_flight(draft: Draft, name: str) -> None:
    """Take out batches that name a step of a live segment that can no longer be sampled."""
    state = draft.old.samplers[name]
    drawn = state["in_flight"]
    kept = [draw for draw in drawn if not _is_stale(draft, draw)]
    if len(kept) < len(drawn):
        draft.put_json("samplers", name.encode(), {**state, "in_flight": kept})
        draft.note(f"sampler {name!r}: {len(drawn) - len(kept)} batches drawn ahead are dropped")


def _is_stale(draft: Draft, draw: list[str]) -> bool:
    ids = steps_drawn(draw)
    if ids is None:
        return True
    for step in ids.tolist():
        tail = draft.tails.get(step // draft.segment_steps)
        if step in draft.cut_steps or (tail is not None and step % draft.segment_steps >= tail.rows):
            return True
    return False


def _first(found: Priorities, otherwise: str) -> str:
    return found.bad[0][2] if found.bad else otherwise


def _is_sound(database: str, key: bytes, value: bytes) -> bool:
    try:
        layout.open_record(database, key, bytes(value))
    except CorruptStoreError:
        return False
    return True
