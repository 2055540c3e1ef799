"""Cross-examine catalogue, files and tails; change nothing."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import ReplayError
from diskreplay.storage import layout
from diskreplay.storage.durable import PARTIAL
from diskreplay.storage.fields import EPISODE, IS_LAST, REWARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diskreplay.storage.engine import Engine


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "missing file", "damaged file", "damaged record", "inconsistent" or "orphan".
        where: Path, or record of the index.
        what: In words.
    """

    kind: str
    where: str
    what: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def verify_store(engine: Engine) -> list[Problem]:
    """Compare every file with its length and crc32, decode every mark, and compare counts.

    An orphan is a shard that no catalogue entry names: harmless, left by a crash.
    """
    with engine.lock:
        engine.refresh()
        return [*_records(engine), *_segments(engine), *_tails(engine), *_orphans(engine)]


def _records(engine: Engine) -> Iterator[Problem]:
    """Check the checksum of every record that nothing below looks at."""
    with engine.index.read() as txn:
        for database in ("meta", "seals", "samplers", "sums", "priorities"):
            try:
                for _ in txn.items(database):
                    pass
            except ReplayError as err:
                yield Problem("damaged record", database, str(err))


def _segments(engine: Engine) -> Iterator[Problem]:
    with engine.index.read() as txn:
        items = txn.items("segments")
        while True:
            try:
                key, payload = next(items)
            except StopIteration:
                return
            except ReplayError as err:
                yield Problem("damaged record", "segments", str(err))
                return
            record = np.frombuffer(payload, layout.SEGMENT)[0]
            segment = int(record["segment"])
            try:
                files = txn.array("files", key, layout.FILE)
                episodes = txn.array("episodes", key, layout.EPISODE)
            except ReplayError as err:
                yield Problem("damaged record", f"segment {segment}", str(err))
                continue
            if files is None or episodes is None or len(files) != len(engine.fields):
                yield Problem("damaged record", f"segment {segment}", "its files or episodes are missing")
                continue
            found = list(_files(engine, segment, files))
            yield from found
            if not found:
                yield from _marks(engine, record, episodes)


def _files(engine: Engine, segment: int, files: Any) -> Iterator[Problem]:
    for item, known in zip(engine.fields, files, strict=True):
        folder = layout.field_path(engine.root, item.name)
        path = folder / layout.shard_name(segment, 1 + len(item.shape))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            yield Problem("missing file", str(path), f"segment {segment} is in the catalogue")
            continue
        except OSError as err:
            yield Problem("damaged file", str(path), str(err))
            continue
        if len(data) != known["length"]:
            what = f"{len(data)} bytes, {int(known['length'])} were committed"
            yield Problem("damaged file", str(path), what)
        elif zlib.crc32(data) != known["crc32"]:
            yield Problem("damaged file", str(path), "its crc32 is not the one committed")


def _marks(engine: Engine, record: Any, episodes: Any) -> Iterator[Problem]:
    segment = int(record["segment"])
    if segment not in engine.table:
        return
    slot, rows = engine.table.slot(segment), int(record["rows"])
    where = np.full(rows, slot, np.int32)
    every = np.arange(rows, dtype=np.int32)
    try:
        last, owner, reward = (engine.reader.rows(n, where, every) for n in (IS_LAST, EPISODE, REWARD))
    except ReplayError as err:
        yield Problem("damaged file", f"segment {segment}", str(err))
        return
    if not np.array_equal(np.flatnonzero(last), episodes["end_row"]):
        yield Problem("inconsistent", f"segment {segment}", "is_last and the episodes differ")
    if (owner < 0).any() or not np.isfinite(reward).all():
        yield Problem("inconsistent", f"segment {segment}", "a row has no episode or no finite reward")
    if record["ends"] != len(episodes):
        yield Problem("inconsistent", f"segment {segment}", "the catalogue counts other episodes")


def _tails(engine: Engine) -> Iterator[Problem]:
    """Check that tail records belong to segments that their stream has not sealed."""
    with engine.index.read() as txn:
        try:
            open_segments = {
                (number, segment)
                for key, _ in txn.items("streams")
                for number in [int.from_bytes(key, "big")]
                for segment in (txn.json("streams", key) or {}).get("tails", [])
            }
            for key, _ in txn.items("tails"):
                stream, segment = int.from_bytes(key[:4], "big"), int.from_bytes(key[4:12], "big")
                if (stream, segment) not in open_segments:
                    what = f"stream {stream} has no open segment {segment}"
                    yield Problem("inconsistent", f"tail record {key.hex()}", what)
        except ReplayError as err:
            yield Problem("damaged record", "tails", str(err))


def _orphans(engine: Engine) -> Iterator[Problem]:
    with engine.index.read() as txn:
        live = {int.from_bytes(key, "big") for key, _ in txn.items("segments")}
    for item in engine.fields:
        folder = layout.field_path(engine.root, item.name)
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            parts = path.name.split(".")
            if path.name.endswith(PARTIAL):
                yield Problem("orphan", str(path), "left by an interrupted write")
            elif parts[0] == "c" and parts[1].isdigit() and int(parts[1]) not in live:
                yield Problem("orphan", str(path), "no catalogue entry names it")
