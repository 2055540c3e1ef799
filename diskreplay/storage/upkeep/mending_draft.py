"""What a repair has found out so far: what stays, what leaves, what is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diskreplay.storage import layout
from diskreplay.storage.upkeep.marks import Run, is_cut
from diskreplay.storage.upkeep.records import Catalogue, read_catalogue
from diskreplay.storage.upkeep.sampled import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from diskreplay.storage.fields import Field
    from diskreplay.storage.tail import Tail
    from diskreplay.storage.transactions import Reading

    Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loss:
    """Something that leaves the store.

    Attributes:
        what: The segment, tail or sampler.
        why: What is wrong with it.
        stream: Whose it is, if known.
        steps, episodes: How many go with it, as far as can be known.
    """

    what: str
    why: str
    stream: str = ""
    steps: int = 0
    episodes: int = 0


@dataclass
class Sound:
    """A segment that stays; `head` is the episode of its first row."""

    record: Any
    files: NDArray[Any]
    checks: NDArray[np.uint32]
    episodes: NDArray[Any]
    after: Run
    last_reward: float
    head: int = -1

    @property
    def transitions(self) -> int:
        """Return the steps that can be sampled."""
        return int(self.record["rows"]) - len(self.episodes)


@dataclass
class Mended:
    """What a store must become.

    Attributes:
        changes: (database, key) -> new payload, or None: to be removed.
        documents: Path in the store -> new content.
        moves: Paths, in the store, of files to set aside.
        losses, notes: What is lost; what is made anew, in words.
        steps_lost: In all; more than the losses add up to where damaged records do not tell.
    """

    changes: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps_lost: int = 0


class Draft:
    """The state of a store as it is, `old`, and as it is to become.

    Attributes:
        out: What changes.
        old: What the index says.
        sound, dropped: Sealed segments that stay, and that leave.
        owners: segment that leaves -> its stream; -1: unknown.
        streams: number -> JSON, as it is to be.
        tails: Open segments that stay.
        applied: Keys of tail records that stay.
        uncounted: Losses, by number, of which nobody knows how many steps they are, and their streams.
        cut_steps: Steps that cannot be sampled any more, as what followed is lost.
        fresh_seal: The next seal number.
        ids: Every segment id that is, or was, in use.
    """

    def __init__(
        self,
        root: Path,
        fields: Sequence[Field],
        segment_steps: int,
        txn: Reading,
        description: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self.root = root
        self.fields = tuple(fields)
        self.segment_steps = segment_steps
        self.txn = txn
        self.description = description
        self.progress = progress
        self.out = Mended()
        self.old: Catalogue = read_catalogue(txn, fields, segment_steps)
        self.sound: dict[int, Sound] = {}
        self.dropped: set[int] = set()
        self.owners: dict[int, int] = {}
        self.streams: dict[int, dict[str, Any]] = {}
        self.tails: dict[int, Tail] = {}
        self.applied: set[bytes] = set()
        self.uncounted: list[tuple[int, dict[str, Any]]] = []
        self.cut_steps: set[int] = set()
        self.fresh_seal = 0
        self.ids: set[int] = set()

    def put(self, database: str, key: bytes, payload: bytes | None) -> bool:
        """Note a record's new payload, if it is another; return whether it is."""
        value = self.txn.raw(database, key)
        if payload is None and value is None:
            return False
        if payload is not None and value is not None and bytes(value) == layout.seal_record(database, key, payload):
            return False
        self.out.changes[database, key] = payload
        return True

    def put_json(self, database: str, key: bytes, data: Mapping[str, Any]) -> bool:
        """Note a JSON record, likewise."""
        return self.put(database, key, layout.json_payload(data))

    def lose(self, what: str, why: str, stream: int = -1, steps: int = 0, episodes: int = 0) -> None:
        """Note what leaves the store."""
        name = self.old.streams.get(stream, {}).get("name", f"number {stream}" if stream >= 0 else "")
        self.out.losses.append(Loss(what, why, name, steps, episodes))

    def note(self, text: str) -> None:
        """Note what is made anew."""
        self.out.notes.append(text)

    def replace(self, database: str, key: bytes, payload: bytes) -> None:
        """Note a record's new payload, whatever was noted of it before."""
        self.out.changes.pop((database, key), None)
        self.put(database, key, payload)

    def rows_of(self, segment: int) -> Rows | None:
        """Return the rows of a segment that stays; None of any other."""
        if segment in self.sound:
            kept = self.sound[segment]
            rows = int(kept.record["rows"])
            return Rows(rows, kept.episodes["end_row"], is_cut(kept.episodes, rows))
        if segment in self.tails:
            tail = self.tails[segment]
            return Rows(tail.rows, tail.ends[: tail.n_ends])
        return None

    def transitions(self) -> int:
        """Return the steps that can be sampled."""
        tails = self.tails.values()
        return sum(kept.transitions for kept in self.sound.values()) + sum(tail.rows - tail.n_ends for tail in tails)
