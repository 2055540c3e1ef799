"""What a damaged store must become to be sound again: the largest part of it that is.

Looks only. Everything is recomputed from what is whole, shards first, and compared with what is there: a sound store
comes out unchanged. Nothing is guessed: a shard counts only if the index still vouches for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.digest import TABLES
from diskreplay.storage.segments import FIRST_SEGMENTS
from diskreplay.storage.upkeep.arrays import DOCUMENT, array_documents, array_problems, coding_of, read_document
from diskreplay.storage.upkeep.leftovers import candidates
from diskreplay.storage.upkeep.mending_draft import Draft, Loss, Mended
from diskreplay.storage.upkeep.mending_priorities import mend_samplers
from diskreplay.storage.upkeep.mending_segments import (
    cut_episodes,
    link_segments,
    mend_seals,
    mend_segments,
    put_segments,
)
from diskreplay.storage.upkeep.mending_tails import count_the_rest, drop_tail_records, mend_streams, put_streams
from diskreplay.storage.upkeep.shards import ShardExaminer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from diskreplay.storage.fields import Field
    from diskreplay.storage.transactions import Reading

    Progress = Callable[[int, int], None]

__all__ = ["Loss", "Mended", "mend"]


def mend(
    root: Path,
    fields: Sequence[Field],
    segment_steps: int,
    txn: Reading,
    description: dict[str, Any],
    progress: Progress | None = None,
    *,
    stale: str = "",
) -> Mended:
    """Find what the store must become. Cost: reads every file.

    Args:
        root: The store's folder.
        fields: The store's fields.
        segment_steps: Rows of a segment.
        txn: A look at the index.
        description: The attributes of the store's group.
        progress: Told (bytes examined, bytes in all) as it goes.
        stale: Why the index is not the newest state that was committed; it is taken as it is.

    Raises:
        CorruptStoreError: If that cannot be known.
    """
    draft = Draft(root, fields, segment_steps, txn, description, progress)
    unreadable = [p.where for p in draft.old.problems if "cannot be walked" in p.what]
    if unreadable:
        raise CorruptStoreError(f"{draft.root}: {', '.join(unreadable)} cannot be walked", path=draft.root)
    codings = _codings(draft)
    _description(draft)
    if codings:
        mend_segments(draft, ShardExaminer(draft.root, draft.fields, draft.segment_steps, codings))
    mend_streams(draft)
    drop_tail_records(draft)
    link_segments(draft)
    cut_episodes(draft)
    put_segments(draft)
    count_the_rest(draft)
    put_streams(draft)
    mend_seals(draft)
    mend_samplers(draft)
    _files(draft)
    renew = _newest(draft, stale)
    _counters(draft, renew=renew)
    _rest(draft)
    if codings:
        _arrays(draft, codings)
    draft.out.steps_lost = sum(loss.steps for loss in draft.out.losses)
    if draft.old.counters is not None and not draft.old.quarantine:
        counted = int(draft.old.counters["transitions"]) - draft.transitions()
        draft.out.steps_lost = max(draft.out.steps_lost, counted)
    return draft.out


def _codings(draft: Draft) -> dict[str, Any]:
    if draft.old.codings:
        return draft.old.codings
    used = draft.old.keys["segments"] | draft.old.keys["quarantine"]
    if not used:
        if draft.old.codings_lost:
            draft.note("how fields are coded is chosen anew with the first segment")
        return {}
    found = {}
    for item in draft.fields:
        path = layout.field_path(draft.root, item.name) / DOCUMENT
        document, problem = read_document(path)
        coding = None if document is None else coding_of(document, draft.segment_steps)
        if coding is None:
            what = f"{path}: {problem.what or 'no array of this store'}, and the index's own record is damaged"
            raise CorruptStoreError(
                f"{what}: how {item.name} is coded cannot be known",
                path=draft.root,
                hint="Put that zarr.json back from a backup, then run repair again.",
            )
        found[item.name] = coding
    for problem in array_problems(draft.root, array_documents(draft.fields, draft.segment_steps, found), 0):
        raise CorruptStoreError(
            f"{problem.where}: {problem.what}, and the index's own record of how fields are coded is damaged",
            path=draft.root,
            hint="Put that zarr.json back from a backup, then run repair again.",
        )
    draft.put_json("meta", b"fields", {name: coding.to_json() for name, coding in found.items()})
    draft.note("how fields are coded is taken from the arrays' zarr.json")
    return found


def _description(draft: Draft) -> None:
    known = draft.old.description
    damaged = ("meta", b"description") in draft.old.raw
    if (damaged or known not in (None, draft.description)) and draft.put_json(
        "meta", b"description", draft.description
    ):
        draft.note("the copy of the store's description in the index is written anew")


def _arrays(draft: Draft, codings: Mapping[str, Any]) -> None:
    documents = array_documents(draft.fields, draft.segment_steps, codings)
    needed = (max(draft.sound, default=-1) + 1) * draft.segment_steps
    wrong = {problem.where: problem for problem in array_problems(draft.root, documents, needed)}
    length = FIRST_SEGMENTS * draft.segment_steps
    while length < max(needed, *((s + 1) * draft.segment_steps for s in [*draft.tails, 0])):
        length *= 2
    for item in draft.fields:
        path = layout.field_path(draft.root, item.name) / DOCUMENT
        if str(path) in wrong:
            document = documents[item.name]
            document["shape"][0] = length
            draft.out.documents[str(path.relative_to(draft.root))] = _json(document)
            draft.note(f"{path.relative_to(draft.root)} is written anew: {wrong[str(path)].what}")


def _files(draft: Draft) -> None:
    garbage = draft.old.garbage - set(draft.sound)
    for segment in draft.old.garbage & set(draft.sound):
        draft.put("garbage", layout.segment_key(segment), None)
        draft.note(f"segment {segment} is in the catalogue; its shards are not to be removed")
    for segment in garbage & draft.dropped:
        draft.put("garbage", layout.segment_key(segment), None)
    for segment in garbage - draft.dropped:
        draft.put("garbage", layout.segment_key(segment), b"")
    named = (set(draft.sound) | garbage) - draft.dropped
    taken = {int(s) for data in draft.streams.values() for s in data.get("taken", [])} | set(draft.tails)
    ids = set().union(*draft.old.keys.values(), taken, (segment for _, segment in draft.old.tails))
    draft.ids = {segment for segment in ids if segment < layout.MOST_SEGMENTS}  # of what streams' records name, too
    for item in candidates(draft.root, draft.fields):
        draft.ids.add(item.segment)
        if item.partial or (item.segment not in named and item.segment not in taken):
            draft.out.moves.append(str(item.path.relative_to(draft.root)))


def _newest(draft: Draft, stale: str) -> bool:
    """Find whether the index is older than what was committed, or parts of it; return whether that has to be noted."""
    txn = draft.txn
    try:
        txn.digest()
    except CorruptStoreError:
        draft.note("what the index's tables must hold is summed up anew")
        return True
    if not stale and not draft.out.changes:  # else damaged records are reason enough for other sums
        try:
            txn.check_newest()
            for name in TABLES:
                txn.check_table(name)
        except CorruptStoreError as err:
            stale = str(err)
    if stale:
        draft.lose("what was committed last", stale)
    return bool(stale)


def _counters(draft: Draft, *, renew: bool) -> None:
    old, new = draft.old.counters, np.zeros(1, layout.COUNTERS)[0]
    if old is not None:
        new = old.copy()
        for name in layout.impossible_counts(old):
            draft.note(f"the counter {name} is made anew: it cannot be {int(old[name])}")
            new[name] = 0
    else:
        draft.note("the counters are made anew")
    new["next_segment"] = max(int(new["next_segment"]), max(draft.ids, default=-1) + 1)
    new["next_stream"] = max(int(new["next_stream"]), max(draft.streams, default=-1) + 1)
    new["seals"] = max(int(new["seals"]), draft.fresh_seal)
    new["transitions"] = draft.transitions()
    new["bytes_on_disk"] = sum(int(kept.record["bytes_on_disk"]) for kept in draft.sound.values())
    new["evictions"] += len(draft.dropped)
    new["cuts"] += len(draft.cut_steps)
    if old is None or new.tobytes() != old.tobytes() or draft.out.changes or renew:
        new["commits"] += 1
        draft.put("meta", b"counters", new.tobytes())


def _rest(draft: Draft) -> None:
    """Take out damaged records that nothing above has replaced."""
    for database, key in draft.old.raw:
        if (database, key) not in draft.out.changes:
            draft.put(database, key, None)
            if (database, key) == ("meta", b"metadata"):
                draft.lose("the metadata", "its record is damaged")


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
