"""What the engine knows of one stream: its tails, its counts, and whether this process writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diskreplay.errors import WriterStateError

if TYPE_CHECKING:
    from diskreplay.storage.locks import FileLock
    from diskreplay.storage.tail import Tail


@dataclass
class Stream:
    """One actor's ordered steps.

    Attributes:
        number, name: The stream's.
        last_segment: Its newest sealed segment, -1 if there is none.
        steps, episodes: Steps and finished episodes since it was made, evicted ones included.
        taken: Ids of segments that its writer took and had not committed, when the index was read.
        tails: Segments not sealed yet: full ones first, then the one being written.
        lock: Held while this process writes the stream.
        pinned: Whether eviction passes it over.
        closing: Whether its writer is closed and the lock is held only until its rows are committed.
        torn: Whether something is being written, or was when an interrupt (Ctrl-C) came: rows and counts may disagree.
    """

    number: int
    name: str
    last_segment: int = -1
    steps: int = 0
    episodes: int = 0
    pinned: bool = False
    closing: bool = False
    torn: bool = False
    taken: list[int] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    lock: FileLock | None = None

    @property
    def open_tail(self) -> Tail | None:
        """Return the tail that the next row goes to, if there is one."""
        return self.tails[-1] if self.tails else None

    def require_whole(self) -> None:
        """Make sure that nothing was interrupted half-way.

        Raises:
            WriterStateError: If something was: committed, an episode would go on with another's observation.
        """
        if self.torn:
            raise WriterStateError(
                f"stream {self.name!r}: writing a step was interrupted half-way, so what is not committed cannot be",
                hint="Close the store and open it anew: everything that was committed is there.",
            )

    @property
    def dirty(self) -> bool:
        """Return whether something of it is not committed, or is about to be sealed."""
        return any(tail.dirty or tail.full for tail in self.tails)

    def to_json(self, tails: list[Tail]) -> dict[str, Any]:
        """Return the record that goes into the index together with the rows of these tails."""
        return {
            "name": self.name,
            "last_segment": self.last_segment,
            "tails": [tail.segment for tail in tails],
            "steps": self.steps,
            "episodes": self.episodes,
            "pinned": self.pinned,
        }

    def update(self, data: dict[str, Any]) -> list[int]:
        """Take over a record from the index, as documents.py has checked it; return the segments in its tail."""
        self.name, self.pinned = data["name"], bool(data["pinned"])
        self.last_segment = data["last_segment"]
        self.steps, self.episodes = data["steps"], data["episodes"]
        self.taken = list(data.get("taken", []))
        return list(data["tails"])
