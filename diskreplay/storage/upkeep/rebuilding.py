"""Make an index anew from the shards alone, where the old one cannot be read.

What only the index knew is lost: rows that were not sealed, priorities, samplers, the streams' names, the user's
metadata, and the checksums that tie a shard to its place: a sound shard in another's place is taken as it is. Two
segments are taken as following each other only if the episode that goes on at the end of one goes on in the other,
and every segment between their ids is there: else rows could be missing between them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.fields import EPISODE, REWARD
from diskreplay.storage.upkeep.arrays import DOCUMENT, array_documents, array_problems, coding_of, read_document
from diskreplay.storage.upkeep.leftovers import candidates
from diskreplay.storage.upkeep.marks import Told, tell
from diskreplay.storage.upkeep.mending import Loss, Mended
from diskreplay.storage.upkeep.shards import ShardExaminer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diskreplay.storage.fields import Coding, Field
    from diskreplay.storage.upkeep.shards import Examined

    Progress = Callable[[int, int], None]


@dataclass
class Rebuilt:
    """The records of a new index: (database, key) -> payload."""

    records: dict[tuple[str, bytes], bytes] = field(default_factory=dict)


@dataclass
class _Segment:
    found: Examined
    told: Told
    sealed_at: float
    stream: int = -1
    previous: int = -1
    followed: bool = False


def rebuild(
    root: Path, fields: Sequence[Field], segment_steps: int, description: dict[str, Any], progress: Progress | None
) -> tuple[Mended, Rebuilt]:
    """Find the records that the shards tell of, and what has to leave the store.

    Raises:
        CorruptStoreError: If it cannot be known how the fields are coded.
    """
    out, made = Mended(), Rebuilt()
    present, written = set[int](), set[str]()
    for item in candidates(root, fields):
        if item.segment >= 0 and not item.partial:
            present.add(item.segment)
            written.add(item.path.parent.name)
    lacking = [item.name for item in fields if item.name not in written]
    codings = _codings(root, fields, segment_steps) if present and not lacking else {}
    kept: dict[int, _Segment] = {}
    if lacking:
        why = f"{layout.STEPS}/{lacking[0]} holds no shard: no segment is whole"
        out.losses += [Loss(f"segment {segment}", why) for segment in sorted(present)]
    if codings:
        kept = _examine(ShardExaminer(root, fields, segment_steps, codings), sorted(present), out, progress)
        made.records["meta", b"fields"] = layout.json_payload({n: c.to_json() for n, c in codings.items()})
        wrong = list(array_problems(root, array_documents(fields, segment_steps, codings), 0))
        if wrong:
            raise CorruptStoreError(f"{wrong[0].where}: {wrong[0].what}", path=root)
    _link(kept, segment_steps)
    streams = _put(kept, segment_steps, made, out)
    counters = np.zeros(1, layout.COUNTERS)
    counters["commits"], counters["seals"], counters["next_stream"] = 1, len(kept), streams
    counters["next_segment"] = max(present, default=-1) + 1
    records = [np.frombuffer(p, layout.SEGMENT)[0] for (name, _), p in made.records.items() if name == "segments"]
    counters["transitions"] = sum(int(record["rows"]) - int(record["ends"]) for record in records)
    counters["bytes_on_disk"] = sum(int(record["bytes_on_disk"]) for record in records)
    made.records["meta", b"counters"] = counters.tobytes()
    made.records["meta", b"metadata"] = b"{}"
    made.records["meta", b"description"] = layout.json_payload(description)
    out.moves += [
        str(item.path.relative_to(root))
        for item in candidates(root, fields)
        if (item.partial or item.segment not in kept) and item.path.parent.name != layout.INDEX
    ]
    lost = "the index cannot be read: rows not sealed yet, priorities, streams' names and metadata went with it"
    out.losses.append(Loss("the index", lost))
    out.steps_lost = sum(loss.steps for loss in out.losses)
    out.notes.append(f"an index of {len(kept)} segments in {streams} streams is made from the shards")
    return out, made


def _codings(root: Path, fields: Sequence[Field], segment_steps: int) -> dict[str, Coding]:
    found = {}
    for item in fields:
        path = layout.field_path(root, item.name) / DOCUMENT
        document, problem = read_document(path)
        coding = None if document is None else coding_of(document, segment_steps)
        if coding is None:
            raise CorruptStoreError(
                f"{path}: {problem.what or 'no array of this store'}: how {item.name} is coded cannot be known",
                path=root,
                hint="Put that zarr.json back from a backup, then run repair again.",
            )
        found[item.name] = coding
    return found


def _examine(
    examiner: ShardExaminer, segments: list[int], out: Mended, progress: Progress | None
) -> dict[int, _Segment]:
    """Return the segments whose shards are all there and sound."""
    kept = {}
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        for number, (segment, found) in enumerate(zip(segments, pool.map(examiner.examine, segments), strict=True)):
            why = ""
            if found.wrong:
                kind, path, what = found.wrong[0]
                why = f"{path.name} of {path.parent.name}: {'missing' if kind == 'missing file' else what}"
            elif not len(found.columns[EPISODE]):
                why = "it has no rows"
            else:
                told = tell(segment * examiner.segment_steps, found.columns, None, cut=False)
                why = told.wrong[0] if told.wrong else ""
            if why:
                out.losses.append(Loss(f"segment {segment}", why))
            else:
                sealed_at = examiner.path(examiner.fields[-1], segment).stat().st_mtime
                kept[segment] = _Segment(found, told, sealed_at)
            if progress is not None:
                progress(number + 1, len(segments))
    return kept


def _link(kept: dict[int, _Segment], segment_steps: int) -> None:
    """Give each segment its stream and the one before it."""
    running: dict[int, int] = {}
    streams, last_gap = 0, -1
    before = -1
    for segment, here in sorted(kept.items()):
        if segment != before + 1:
            last_gap = segment
        before = segment
        head = int(here.found.columns[EPISODE][0])
        first = segment * segment_steps
        earlier = running.pop(head, -1) if head < first else -1
        if earlier >= last_gap and earlier >= 0:
            here.previous, here.stream = earlier, kept[earlier].stream
            kept[earlier].followed = True
            run = kept[earlier].told.after
            here.told = tell(first, here.found.columns, run, cut=False)
        else:
            here.previous = -1
            if head < first:
                # What is before is lost: its id must not be that of a live segment, or links would lead there.
                here.previous = next((s for s in range(segment - 1, -1, -1) if s not in kept), -1)
            here.stream, streams = streams, streams + 1
        if here.told.after.first_step_id >= 0:
            running[here.told.after.first_step_id] = segment


def _put(kept: dict[int, _Segment], segment_steps: int, made: Rebuilt, out: Mended) -> int:
    """Write the records of segments and streams; return how many streams there are."""
    streams: dict[int, dict[str, Any]] = {}
    for seal, (segment, here) in enumerate(sorted(kept.items())):
        rows = len(here.found.columns[EPISODE])
        episodes, run = here.told.episodes, here.told.after
        cut = run.first_step_id >= 0 and not here.followed
        if cut:
            total = run.total - float(here.found.columns[REWARD][-1])
            end = layout.cut_episode(run.first_step_id, rows - 1, run.steps - 1, total)
            episodes = np.concatenate([episodes, end])
            why = "the next observation is lost, or cannot be told for certain"
            out.losses.append(Loss(f"step {segment * segment_steps + rows - 1}", why, steps=1))
        record = np.zeros(1, layout.SEGMENT)
        entry = record[0]
        entry["segment"], entry["previous"], entry["stream"] = segment, here.previous, here.stream
        entry["rows"] = rows
        layout.note_episodes(entry, episodes)
        entry["bytes_on_disk"] = here.found.files["length"].sum()
        entry["sealed_at"], entry["seal"], entry["cut"] = here.sealed_at, seal, cut
        key = layout.segment_key(segment)
        made.records["segments", key] = record.tobytes()
        made.records["files", key] = here.found.files.tobytes()
        made.records["checks", key] = here.found.checks.tobytes()
        made.records["episodes", key] = episodes.tobytes()
        made.records["seals", layout.segment_key(seal)] = key
        stream = streams.setdefault(
            here.stream,
            {"name": f"recovered-{here.stream}", "tails": [], "steps": 0, "episodes": 0, "pinned": False},
        )
        stream["last_segment"] = segment
        stream["steps"] += rows - len(episodes)
        stream["episodes"] += len(episodes)
    for number, data in streams.items():
        made.records["streams", layout.stream_key(number)] = layout.json_payload(data)
    return len(streams)
