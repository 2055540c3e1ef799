"""Chunks of an open segment, encoded while it fills, so that its writer does not wait for all of them when it is full.

To compress frames takes longer than anything else that is done with them. A row that is complete never changes, so
what is encoded early is what would be encoded late; it lies in memory until then, and no call reaches the disk.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from diskreplay.storage import native
from diskreplay.storage.shard import encode_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diskreplay.storage.fields import Coding, Field
    from diskreplay.storage.shard import Encoded
    from diskreplay.storage.tail import Tail

BLOCK_BYTES = 2 << 20  # of rows: several milliseconds of work, for a thread that takes a tenth of one to begin


class Ahead:
    """Encode the rows of one tail, whole chunks at a time, in a thread that is begun for each block of them.

    It holds the tail's arrays, not the tail: a cycle would keep both, a segment's rows, until the next collection.

    Args:
        tail: Whose rows they are.
        fields, codings: Those that are compressed and large are encoded ahead.
    """

    def __init__(self, tail: Tail, fields: Sequence[Field], codings: Mapping[str, Coding]) -> None:
        self._arrays, self._segment_steps = tail.arrays, tail.segment_steps
        self._codings = {
            field.name: codings[field.name]
            for field in fields
            if codings[field.name].codec != "none" and field.row_bytes * tail.segment_steps > BLOCK_BYTES
        }
        self._blocks: list[tuple[int, int, dict[str, Encoded]]] = []  # first row, the one after the last, what they are
        self._chunk = math.lcm(*(coding.chunk_steps for coding in self._codings.values()))
        row_bytes = sum(field.row_bytes for field in fields if field.name in self._codings)
        self._block = max(1, BLOCK_BYTES // max(1, row_bytes) // self._chunk) * self._chunk
        self._due = self._block if self._codings and native.AVAILABLE else tail.segment_steps
        self._thread: threading.Thread | None = None

    def due(self, rows: int) -> bool:
        """Return whether, of so many complete rows, those of the next block are there and the segment is not full."""
        return self._due <= rows < self._segment_steps

    def begin(self, rows: int) -> threading.Thread | None:
        """Begin the next block of so many complete rows, unless one is under way; return its thread."""
        if self._thread is not None and self._thread.is_alive():
            return self._thread
        first, last = sum(part[1] - part[0] for part in self._sound()), rows // self._chunk * self._chunk
        self._due = last + self._block
        self._thread = threading.Thread(target=self._encode, args=(first, last), name="diskreplay-ahead")
        try:
            self._thread.start()
        except RuntimeError:  # no more threads; then it is done when the segment is full
            self._thread, self._due = None, self._segment_steps
        return self._thread

    def parts(self, name: str) -> list[Encoded]:
        """Return what is encoded of a field, from its first row on; wait for what is under way."""
        self.wait()
        return [parts[name] for _, _, parts in self._sound() if name in parts]

    def wait(self) -> None:
        """Wait for what is under way."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def _sound(self) -> list[tuple[int, int, dict[str, Encoded]]]:
        """Return the blocks that follow each other from the first row on.

        An interrupt while a thread is begun may leave it unnoticed, and another be begun for the same rows.
        """
        found, rows = [], 0
        for block in list(self._blocks):
            if block[0] == rows:
                found.append(block)
                rows = block[1]
        return found

    def _encode(self, first: int, last: int) -> None:
        try:
            parts = {
                name: encode_chunks(self._arrays[name][first:last], coding) for name, coding in self._codings.items()
            }
        except MemoryError:
            self._due = self._segment_steps
        else:
            self._blocks.append((first, last, parts))
