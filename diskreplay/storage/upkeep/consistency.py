"""Does the catalogue agree with itself? Pure: what it says goes in, what is wrong comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diskreplay.storage import layout
from diskreplay.storage.upkeep.records import BY_SEGMENT, INCONSISTENT, QUARANTINED, Catalogue, Problem, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_catalogue(catalogue: Catalogue) -> Iterator[Problem]:
    """Compare segments, streams, tails, seals and counters with each other."""
    chains = chains_of(catalogue)
    yield from _check_keys(catalogue)
    yield from _check_links(catalogue, chains)
    yield from _check_counters(catalogue)
    yield from _check_seals(catalogue)
    names: set[str] = set()
    for number, data in sorted(catalogue.streams.items()):
        where = f"index: stream {number}"
        if data["name"] in names:
            yield Problem(INCONSISTENT, where, f"another stream is called {data['name']!r} too")
        names.add(data["name"])
        for what in _check_stream(catalogue, number, data, chains.live.get(number, [])):
            yield Problem(INCONSISTENT, where, what)


@dataclass
class Chains:
    """How the live segments follow each other.

    Attributes:
        live: stream -> its sealed segments, ascending: the order in which they were written.
        after: sealed segment -> the live segment, sealed or open, that goes on where it stops.
    """

    live: dict[int, list[int]] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)


def chains_of(catalogue: Catalogue) -> Chains:
    """Follow the links of segments and streams."""
    chains = Chains()
    for segment, record in sorted(catalogue.segments.items()):
        chains.live.setdefault(int(record["stream"]), []).append(segment)
        chains.after[int(record["previous"])] = segment
    for number, data in catalogue.streams.items():
        if data["tails"] and (number, int(data["tails"][0])) in catalogue.tails:
            chains.after[data["last_segment"]] = data["tails"][0]
    chains.after.pop(-1, None)
    return chains


def _check_keys(catalogue: Catalogue) -> Iterator[Problem]:
    known = catalogue.keys["segments"] | catalogue.keys["quarantine"]
    for database in BY_SEGMENT:
        for segment in sorted(catalogue.keys[database] - known):
            # What stands in another table's page has keys of any length.
            foreign = segment >= 1 << 64
            where = f"index: {database}" if foreign else name_of(database, layout.segment_key(segment))
            yield Problem(INCONSISTENT, where, "the catalogue has no such segment")
    for segment in sorted(catalogue.keys["segments"] & catalogue.keys["quarantine"]):
        yield Problem(INCONSISTENT, f"segment {segment}", "it is in the catalogue and in quarantine")
    for segment in sorted(catalogue.keys["segments"] & catalogue.garbage):
        yield Problem(INCONSISTENT, f"segment {segment}", "it is in the catalogue, and its shards are to be removed")
    for segment in sorted(catalogue.keys["quarantine"]):
        yield Problem(QUARANTINED, f"segment {segment}", "a reader found it damaged; it is left out")
    for stream, segment in sorted(catalogue.tails):
        data = catalogue.streams.get(stream)
        if (data is None and _readable(catalogue, stream)) or (data is not None and segment not in data["tails"]):
            what = f"stream {stream} has no open segment {segment}"
            yield Problem(INCONSISTENT, f"index: tail of stream {stream}, segment {segment}", what)


def _check_links(catalogue: Catalogue, chains: Chains) -> Iterator[Problem]:
    for segment, record in sorted(catalogue.segments.items()):
        if int(record["stream"]) not in catalogue.streams and _readable(catalogue, int(record["stream"])):
            what = f"stream {int(record['stream'])} is not in the index"
            yield Problem(INCONSISTENT, f"segment {segment}", what)
        if int(record["last_end"]) != int(record["rows"]) - 1 and segment not in chains.after:
            what = "its last episode goes on, and the segment that follows is gone"
            yield Problem(INCONSISTENT, f"segment {segment}", what)


def _readable(catalogue: Catalogue, stream: int) -> bool:
    """Return whether a stream that is not there is missing, rather than damaged and reported as such."""
    return ("streams", layout.stream_key(stream)) not in catalogue.raw


def _check_counters(catalogue: Catalogue) -> Iterator[Problem]:
    counters, where = catalogue.counters, "index: meta counters"
    if counters is None:
        return
    used = ids_in_use(catalogue)
    if used and counters["next_segment"] <= max(used):
        what = f"the next segment is {int(counters['next_segment'])}, but {max(used)} is in use"
        yield Problem(INCONSISTENT, where, what)
    if catalogue.streams and counters["next_stream"] <= max(catalogue.streams):
        what = f"the next stream is {int(counters['next_stream'])}, but {max(catalogue.streams)} is in use"
        yield Problem(INCONSISTENT, where, what)
    for name in layout.impossible_counts(counters):
        yield Problem(INCONSISTENT, where, f"{name} cannot be {int(counters[name])}")


def ids_in_use(catalogue: Catalogue) -> set[int]:
    """Return every segment id that the index knows."""
    tails = {segment for _, segment in catalogue.tails}
    return set().union(*catalogue.keys.values(), catalogue.open_segments(), tails)


def _check_seals(catalogue: Catalogue) -> Iterator[Problem]:
    for number, segment in sorted(catalogue.seals.items()):
        record = catalogue.segments.get(segment)
        if record is None and segment not in catalogue.keys["segments"]:
            yield Problem(INCONSISTENT, f"index: seal {number}", f"segment {segment} is not in the catalogue")
        elif record is not None and record["seal"] != number:
            what = f"segment {segment} says it was sealed as number {int(record['seal'])}"
            yield Problem(INCONSISTENT, f"index: seal {number}", what)
        if catalogue.counters is not None and number >= catalogue.counters["seals"]:
            what = f"the counters know {int(catalogue.counters['seals'])} seals"
            yield Problem(INCONSISTENT, f"index: seal {number}", what)
    for segment, record in sorted(catalogue.segments.items()):
        number = int(record["seal"])
        if number not in catalogue.seals and ("seals", layout.segment_key(number)) not in catalogue.raw:
            what = f"seal {number} is missing from the order of seals"
            yield Problem(INCONSISTENT, f"segment {segment}", what)


def _check_stream(catalogue: Catalogue, number: int, data: dict[str, Any], live: list[int]) -> Iterator[str]:
    last, tails = data["last_segment"], data["tails"]
    before = -1
    for segment in live:
        previous = int(catalogue.segments[segment]["previous"])
        gone = previous >= 0 and previous not in catalogue.segments and before < previous < segment
        if previous != before and not gone:
            yield f"segment {segment} says it follows {previous}, the one before it is {before}"
        before = segment
    if last < before or (last > before and last in catalogue.segments):
        yield f"its last sealed segment is said to be {last}, it is {before}"
    if catalogue.counters is not None and last >= catalogue.counters["next_segment"]:
        yield f"its last sealed segment is said to be {last}, which never was"
    if any(one >= other for one, other in pairwise([last, *tails])):
        yield f"its open segments {tails} do not follow segment {last} in order"
    for segment in tails:
        if segment in catalogue.segments:
            yield f"segment {segment} is open and sealed"
    for segment in tails[:-1]:
        if (number, segment) not in catalogue.tails:
            yield f"open segment {segment} has no rows"
