"""Which streams there are, and which rows that are not sealed stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.documents import parse_tail_header
from diskreplay.storage.fields import EPISODE, REWARD
from diskreplay.storage.tail import Running, Tail
from diskreplay.storage.upkeep.marks import Run, of_tail, tail_differences
from diskreplay.storage.upkeep.mending_draft import Draft
from diskreplay.storage.upkeep.records import name_of


def mend_streams(draft: Draft) -> None:
    """Find the streams of the segments that stay, and their tails."""
    numbers = set(draft.old.streams) | {int(s.record["stream"]) for s in draft.sound.values()}
    numbers |= {stream for stream, _ in draft.old.tails}
    names: set[str] = set()
    for number in sorted(numbers):
        live = [s for s, kept in draft.sound.items() if kept.record["stream"] == number]
        data = dict(draft.old.streams.get(number) or _new_stream(draft, number, live))
        if data["name"] in names:
            draft.note(f"stream {number} is renamed: another one is called {data['name']!r}")
            data["name"] = _free_name(draft, number)
        names.add(data["name"])
        last = max(live, default=-1)
        known = data["last_segment"]
        if known < last or (known > last and (known in draft.sound or known >= _following(draft, number, last))):
            data["last_segment"] = last
        draft.streams[number] = data
        _tails(draft, number, data)


def _following(draft: Draft, number: int, last: int) -> int:
    """Return a segment that no sealed one of a stream can come after: of rows that are not, or not given out yet."""
    bounds = [segment for stream, segment in draft.old.tails if stream == number and segment > last]
    if draft.old.counters is not None and "next_segment" not in layout.impossible_counts(draft.old.counters):
        bounds.append(max(last + 1, int(draft.old.counters["next_segment"])))
    return min(bounds, default=layout.MOST_SEGMENTS)


def _new_stream(draft: Draft, number: int, live: list[int]) -> dict[str, Any]:
    name = _free_name(draft, number)
    draft.note(f"the record of stream {number} is lost; made anew from its segments, as {name!r}")
    steps = sum(draft.sound[s].transitions for s in live)
    episodes = sum(len(draft.sound[s].episodes) for s in live)
    last = max(live, default=-1)
    tails = sorted(s for stream, s in draft.old.tails if stream == number and s > last)
    for segment in tails:
        tail, _ = _read_tail(draft, number, segment, None, newest=False)
        steps, episodes = steps + tail.rows - tail.n_ends, episodes + tail.n_ends
        if segment == tails[0] and tail.rows:
            head, first = int(tail.arrays[EPISODE][0]), tail.first_step_id
            run = draft.sound[last].after.first_step_id if last in draft.sound else -1
            lost = [s for s, owner in draft.owners.items() if last < s < segment and owner in (-1, number)]
            if lost:
                last = max(lost)
            elif head != (first if run < 0 else run):  # what it follows is gone
                last = next((s for s in range(segment - 1, last, -1) if s not in draft.sound), last)
    draft.applied -= {key for key in draft.applied if key[:4] == layout.stream_key(number)}
    return {
        "name": name, "last_segment": last, "tails": tails, "steps": steps, "episodes": episodes, "pinned": False,
    }  # fmt: skip


def _free_name(draft: Draft, number: int) -> str:
    taken = {data["name"] for data in [*draft.old.streams.values(), *draft.streams.values()]}
    name = f"recovered-{number}"
    while name in taken:
        name += "-again"
    return name


def _tails(draft: Draft, number: int, data: dict[str, Any]) -> None:
    """Cut a stream's tail back to the rows before the first that cannot be trusted."""
    last = int(data["last_segment"])
    before = draft.sound[last].after if last in draft.sound else Run() if last < 0 else None
    listed, kept, why = _listed(draft, number, data), list[int](), ""
    for segment in listed:
        if segment in draft.sound or segment <= (kept[-1] if kept else last):
            draft.note(f"segment {segment} is not in the tail of stream {number} any more: it is sealed, or older")
            continue
        tail = Tail(segment, draft.fields, draft.segment_steps)
        if why:
            _lose_rows(draft, number, data, tail, f"it follows what is lost ({why})")
            continue
        tail, why = _read_tail(draft, number, segment, before, newest=segment == listed[-1])
        if not why and not tail.available and segment != listed[-1]:
            why = "its rows are missing"
        if why:
            _lose_rows(draft, number, data, tail, why)
        if tail.available or not why:
            kept.append(segment)
            draft.tails[segment] = tail
        if tail.rows:
            before = of_tail(tail, before).after
    while kept and before is not None and before.first_step_id >= 0 and not draft.tails[kept[-1]].available:
        del draft.tails[kept.pop()]  # nothing in it, and the rows before it need what followed
    data["tails"] = kept
    if kept and before is not None and before.first_step_id >= 0 and not draft.tails[kept[-1]].pending:
        _end_tail(draft, number, data, draft.tails[kept[-1]], before)


def _listed(draft: Draft, number: int, data: dict[str, Any]) -> list[int]:
    """Return a stream's open segments: those that its record lists, and those of which there are records."""
    written = {segment for stream, segment in draft.old.tails if stream == number}
    others = {segment for stream, segment in draft.old.tails if stream != number}
    found = ({int(segment) for segment in data["tails"]} | written) - (others - written) - set(draft.tails)
    extra = found - {int(segment) for segment in data["tails"]}
    if extra:
        draft.note(f"stream {number} has the open segments {sorted(extra)}, which its record did not list")
    return sorted(found)


def _read_tail(draft: Draft, stream: int, segment: int, before: Run | None, *, newest: bool) -> tuple[Tail, str]:
    """Return the longest sound prefix of a tail, and what is wrong with the record after it."""
    tail, good, why = Tail(segment, draft.fields, draft.segment_steps), list[tuple[bytes, bytes]](), ""
    for key, value in draft.txn.raw_items("tails", layout.tail_key(stream, segment)):
        try:
            payload = layout.open_record("tails", key, value, name_of("tails", key))
            tail.apply(payload, name_of("tails", key))
        except CorruptStoreError as err:
            tail, why = Tail(segment, draft.fields, draft.segment_steps), str(err).removeprefix("index: ")
            for _, sound in good:
                tail.apply(sound, "")
            break
        good.append((key, payload))
    if tail.rows:
        wrong = tail_differences(tail, of_tail(tail, before), newest=newest and not why)
        if wrong:
            return Tail(segment, draft.fields, draft.segment_steps), wrong[0]
    draft.applied |= {key for key, _ in good}
    return tail, why


def _lose_rows(draft: Draft, number: int, data: dict[str, Any], tail: Tail, why: str) -> None:
    """Note what a tail loses behind its sound rows, as far as its records tell."""
    steps = episodes = 0
    for _, value in draft.txn.raw_items("tails", layout.tail_key(number, tail.segment)):
        first, rows, ends = _tail_header(value)
        if first < 0 or not 0 <= ends <= rows <= draft.segment_steps:
            draft.uncounted.append((len(draft.out.losses), data))
        elif first >= tail.rows:
            steps, episodes = steps + rows - ends, episodes + ends
    _shorten(data, steps, episodes)
    draft.lose(f"rows of open segment {tail.segment} from {tail.rows} on", why, number, steps, episodes)


def _shorten(data: dict[str, Any], steps: int, episodes: int) -> None:
    data["steps"], data["episodes"] = max(0, data["steps"] - steps), max(0, data["episodes"] - episodes)


def _end_tail(draft: Draft, number: int, data: dict[str, Any], tail: Tail, run: Run) -> None:
    """Make a tail's last row the end of its episode, as what followed is lost."""
    tail.rows -= 1
    step = tail.first_step_id + tail.rows
    total = run.total - float(tail.arrays[REWARD][tail.rows])
    tail.running = Running(run.first_step_id, run.steps - 1, total)
    draft.cut_steps.add(step)
    _shorten(data, 1, 0)
    draft.lose(f"step {step}", "its next observation is lost", number, 1)
    if tail.running.length > 0:
        tail.finish(layout.INTERRUPTED)
        data["episodes"] += 1
    else:
        tail.abandon()
    row, payload = tail.record(whole=True)
    draft.applied -= {key for key in draft.applied if key[4:12] == layout.segment_key(tail.segment)}
    key = layout.tail_key(number, tail.segment, row)
    draft.applied.add(key)
    draft.put("tails", key, payload)


def drop_tail_records(draft: Draft) -> None:
    """Take out the records of tails that were not applied."""
    for (stream, segment), rows in sorted(draft.old.tails.items()):
        keys = {layout.tail_key(stream, segment, row) for row in rows}
        for key in sorted(keys - draft.applied):
            draft.put("tails", key, None)


def put_streams(draft: Draft) -> None:
    """Note the streams' records."""
    for number, data in draft.streams.items():
        key = layout.stream_key(number)
        if data != draft.old.streams.get(number):
            draft.put_json("streams", key, data)


def count_the_rest(draft: Draft) -> None:
    """Find how many steps are lost where a damaged record does not tell, if there is one such place."""
    if len({at for at, _ in draft.uncounted}) != 1 or draft.old.counters is None or draft.old.quarantine:
        return
    at, data = draft.uncounted[0]
    rest = int(draft.old.counters["transitions"]) - draft.transitions() - sum(x.steps for x in draft.out.losses)
    if rest > 0:
        _shorten(data, rest, 0)
        draft.out.losses[at] = replace(draft.out.losses[at], steps=draft.out.losses[at].steps + rest)


def _tail_header(value: bytes) -> tuple[int, int, int]:
    """Return first row, rows and episodes of a tail record; -1 first if they cannot be read."""
    try:
        header = parse_tail_header(value)
        ends = next(length for name, _, length in header.blobs if name == "#episodes") // layout.EPISODE.itemsize
    except (ValueError, StopIteration):
        return -1, 0, 0
    return header.row, header.rows, ends
