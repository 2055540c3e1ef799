"""Which sealed segments stay: their shards decide, as far as the index still vouches for them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.fields import EPISODE, REWARD
from diskreplay.storage.upkeep.marks import Run, differences, follows, is_cut, tell
from diskreplay.storage.upkeep.mending_draft import Draft, Sound
from diskreplay.storage.upkeep.records import SegmentRecords, read_segment
from diskreplay.storage.upkeep.shards import Examined, ShardExaminer

if TYPE_CHECKING:
    from numpy.typing import NDArray

PORTION = 32


def mend_segments(draft: Draft, examiner: ShardExaminer) -> None:
    """Examine every segment's shards; keep those that are what was committed."""
    old = draft.old
    segments = sorted(set().union(*(old.keys[name] for name in ("segments", "quarantine", "files", "checks"))))
    segments = [s for s in segments if s not in old.garbage or s in old.keys["segments"]]
    sizes = {s: int(record["bytes_on_disk"]) for s, record in [*old.segments.items(), *old.quarantine.items()]}
    total, done = sum(sizes.values()), 0
    runs: dict[int, tuple[int, Run]] = {}
    owners = _owners(draft)
    chunks = sum(examiner.chunks)
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        for start in range(0, len(segments), PORTION):
            portion = segments[start : start + PORTION]
            known = [_known(draft, segment, chunks) for segment in portion]
            looks = pool.map(lambda pair: _look(examiner, *pair), zip(portion, known, strict=True))
            for segment, records, found in zip(portion, known, looks, strict=True):
                if records.record is not None and owners[segment] != records.record["stream"]:
                    draft.note(f"segment {segment} is of stream {owners[segment]} again, as its neighbours say")
                    records.record = records.record.copy()
                    records.record["stream"] = owners[segment]
                why = _judge(draft, examiner, segment, records, found, runs)
                if why:
                    _drop(draft, segment, records, why)
                done += sizes.get(segment, 0)
                if draft.progress is not None:
                    draft.progress(done, total)


def _owners(draft: Draft) -> dict[int, int]:
    """Return segment -> stream: what the record says, unless those before and behind it agree on another."""
    old, said = {**draft.old.quarantine, **draft.old.segments}, dict[int, list[int]]()
    for segment, record in old.items():
        previous, stream = int(record["previous"]), int(record["stream"])
        said.setdefault(segment, []).append(stream)
        if previous in old:
            said.setdefault(previous, []).append(stream)
            said[segment].append(int(old[previous]["stream"]))
    for number, data in draft.old.streams.items():
        said.setdefault(data["last_segment"], []).append(number)
    return {
        segment: max(
            said[segment], key=lambda n: (said[segment].count(n), n in draft.old.streams, n == record["stream"])
        )
        for segment, record in old.items()
    }


def _known(draft: Draft, segment: int, chunks: int) -> SegmentRecords:
    table = "quarantine" if segment in draft.old.quarantine and segment not in draft.old.segments else "segments"
    return read_segment(draft.txn, segment, len(draft.fields), chunks, draft.segment_steps, table)


def _judge(
    draft: Draft,
    examiner: ShardExaminer,
    segment: int,
    known: SegmentRecords,
    found: Examined | None,
    runs: dict[int, tuple[int, Run]],
) -> str:
    """Keep a segment; or say why it cannot be kept."""
    if found is None:
        return "; ".join(why for database, why in known.wrong if database != "episodes")
    if found.wrong:
        kind, path, what = found.wrong[0]
        return f"{path.relative_to(draft.root)}: {what if kind != 'missing file' else 'the file is missing'}"
    record = known.record.copy() if known.record is not None else _record(draft, examiner, segment, found)
    if record is None:
        return "its record is damaged, and no other names it: whose it is cannot be known"
    stream, previous = int(record["stream"]), int(record["previous"])
    before = Run() if previous < 0 else None
    if previous >= 0 and runs.get(stream, (-1, Run()))[0] == previous:
        before = runs[stream][1]
    told = tell(segment * draft.segment_steps, found.columns, before, cut=False)
    if told.wrong:
        return f"its rows contradict each other: {told.wrong[0]}"
    episodes = told.episodes
    if known.episodes is not None:
        stored = known.episodes[:-1] if is_cut(known.episodes, int(record["rows"])) else known.episodes
        if not differences(stored, told):
            episodes = stored
    if known.wrong or episodes is told.episodes:
        draft.note(f"segment {segment}: records made anew from its shards, which are what was committed")
    runs[stream] = (segment, told.after)
    if segment in draft.old.quarantine and segment not in draft.old.segments:
        draft.note(f"segment {segment} is whole and comes back from quarantine")
    draft.sound[segment] = Sound(
        record, found.files, found.checks, episodes, told.after, float(found.columns[REWARD][-1]),
        int(found.columns[EPISODE][0]),
    )  # fmt: skip
    return ""


def _record(draft: Draft, examiner: ShardExaminer, segment: int, found: Examined) -> Any:
    """Make a segment's record anew from what refers to it; None if nothing does."""
    following = [r for r in draft.old.segments.values() if r["previous"] == segment]
    writers = [n for n, data in draft.old.streams.items() if data["last_segment"] == segment]
    streams = {int(r["stream"]) for r in following} | set(writers)
    rows = len(found.columns[EPISODE])
    if len(streams) != 1 or not rows:
        return None
    stream = streams.pop()
    before = [s for s, kept in draft.sound.items() if kept.record["stream"] == stream]
    head = int(found.columns[EPISODE][0])
    gone = head // draft.segment_steps if head < segment * draft.segment_steps else -1
    record = np.zeros(1, layout.SEGMENT)[0]
    record["segment"], record["stream"], record["rows"] = segment, stream, rows
    record["previous"] = max(before, default=gone)
    record["sealed_at"] = examiner.path(draft.fields[-1], segment).stat().st_mtime
    record["seal"] = next((n for n, sealed in draft.old.seals.items() if sealed == segment), -1)
    return record


def _drop(draft: Draft, segment: int, known: SegmentRecords, why: str) -> None:
    draft.dropped.add(segment)
    record = known.record
    steps, episodes, stream = 0, 0, -1
    if record is not None:
        steps, episodes = int(record["rows"]) - int(record["ends"]), int(record["ends"])
        stream = int(record["stream"])
    draft.owners[segment] = stream
    draft.lose(f"segment {segment}", why, stream, steps, episodes)


def link_segments(draft: Draft) -> None:
    """Have each segment follow the one before it, or one that is gone."""
    before: dict[int, int] = {}
    for segment in sorted(draft.sound):
        kept = draft.sound[segment]
        stream, previous = int(kept.record["stream"]), int(kept.record["previous"])
        last = before.get(stream, -1)
        gone = previous >= 0 and previous not in draft.sound and last < previous < segment
        if previous != last and not gone:
            run = draft.sound[last].after if last in draft.sound else Run()
            if not follows(segment * draft.segment_steps, kept.head, run):  # what was before it is lost
                last = next((s for s in range(segment - 1, last, -1) if s not in draft.sound), -1)
                if last < 0:
                    del draft.sound[segment]
                    draft.dropped.add(segment)
                    draft.owners[segment] = stream
                    why = "what it follows cannot be told"
                    draft.lose(f"segment {segment}", why, stream, kept.transitions, len(kept.episodes))
                    continue
            draft.note(f"segment {segment} is linked to segment {last} again")
            kept.record["previous"] = last
        before[stream] = segment


def cut_episodes(draft: Draft) -> None:
    """End the episodes that went on in segments that are gone."""
    follows = {int(kept.record["previous"]) for kept in draft.sound.values()}
    for data in draft.streams.values():
        if data["tails"] and draft.tails[data["tails"][0]].available:
            follows.add(int(data["last_segment"]))
    for segment, kept in draft.sound.items():
        run, rows = kept.after, int(kept.record["rows"])
        if run.first_step_id < 0 or segment in follows:
            continue
        entry = layout.cut_episode(run.first_step_id, rows - 1, run.steps - 1, run.total - kept.last_reward)
        kept.episodes = np.concatenate([kept.episodes, entry])
        stored = draft.old.segments.get(segment)
        if stored is None or stored["last_end"] != rows - 1:
            step = segment * draft.segment_steps + rows - 1
            draft.cut_steps.add(step)
            why = "its next observation is lost: the segment that follows is gone"
            draft.lose(f"step {step}", why, int(kept.record["stream"]), 1)


def put_segments(draft: Draft) -> None:
    """Note the records of segments, but for `segments` itself: see `mend_seals`."""
    for segment, kept in draft.sound.items():
        record, key = kept.record, layout.segment_key(segment)
        stored = _stored_cut(draft, segment, kept)
        if stored is not None:
            kept.episodes = stored
        layout.note_episodes(record, kept.episodes)
        record["bytes_on_disk"] = kept.files["length"].sum()
        record["cut"] = is_cut(kept.episodes, int(record["rows"]))
        draft.put("files", key, kept.files.tobytes())
        draft.put("checks", key, kept.checks.tobytes())
        draft.put("episodes", key, kept.episodes.tobytes())
        draft.put("quarantine", key, None)
    for segment in draft.dropped | (draft.old.keys["episodes"] - set(draft.sound)):
        for database in ("segments", "quarantine", "files", "checks", "episodes"):
            draft.put(database, layout.segment_key(segment), None)


def _stored_cut(draft: Draft, segment: int, kept: Sound) -> NDArray[Any] | None:
    """Return the stored episodes if they differ from the ones made anew in how a cut one counts its rows alone."""
    try:
        stored = draft.txn.array("episodes", layout.segment_key(segment), layout.EPISODE)
    except CorruptStoreError:
        return None
    same = (
        stored is not None
        and len(stored) == len(kept.episodes)
        and is_cut(stored, int(kept.record["rows"]))
        and is_cut(kept.episodes, int(kept.record["rows"]))
        and stored[:-1].tobytes() == kept.episodes[:-1].tobytes()
        and stored[-1]["first_step_id"] == kept.episodes[-1]["first_step_id"]
    )
    return stored if same else None


def mend_seals(draft: Draft) -> None:
    """Have segments and the order of seals name each other."""
    wanted: dict[int, int] = {}
    counters = draft.old.counters
    stored = -1 if counters is None or "seals" in layout.impossible_counts(counters) else int(counters["seals"])
    known = {n for n in draft.old.seals if n < layout.MOST_SEGMENTS} | {
        int(s.record["seal"]) for s in draft.sound.values()
    }
    fresh = max(stored, max(known, default=-1) + 1)
    for segment in sorted(draft.sound):
        record = draft.sound[segment].record
        if int(record["seal"]) < 0 or int(record["seal"]) in wanted:
            record["seal"], fresh = fresh, fresh + 1
        wanted[int(record["seal"])] = segment
        draft.put("segments", layout.segment_key(segment), record.tobytes())
    for number in set(draft.old.seals) - set(wanted):
        draft.put("seals", layout.segment_key(number), None)
    made = [draft.put("seals", layout.segment_key(n), layout.segment_key(segment)) for n, segment in wanted.items()]
    if any(made):
        draft.note("the order of seals is made anew from the segments")
    draft.fresh_seal = fresh


def _look(examiner: ShardExaminer, segment: int, known: SegmentRecords) -> Examined | None:
    """Examine a segment's shards, if the index still vouches for them."""
    if known.files is None and known.checks is None:
        return None
    rows = None if known.record is None else int(known.record["rows"])
    return examiner.examine(segment, rows, known.files, known.checks)
