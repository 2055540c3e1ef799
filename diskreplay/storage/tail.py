"""The open segment of a stream: rows in memory, and the records that make them durable.

A tail holds up to S rows. Row `rows` may be pending: its observation is known, its action is not. Committed rows
lie in LMDB as tail records until the segment is sealed. A record's payload is

    header length u32 LE | header JSON | blobs, in the header's order

with the header {segment, row, rows, pending, running: [first step id, length, return], blobs: [[name, codec,
bytes]]}; observations have one row more if one is pending, and the blob "#episodes" holds the EPISODE records of
the episodes that ended in these rows. `running` is the state after the record.

A record takes the place of those before it where FANs of a size have come together, up to MERGED_BYTES: so a tail has
few records however often it is committed, and a row is written once for each power of FAN in a record's rows.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import Zstd

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.documents import parse_tail_header
from diskreplay.storage.fields import EPISODE, IS_LAST, REWARD, TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.ahead import Ahead
    from diskreplay.storage.fields import Field

EPISODES_BLOB = "#episodes"
WORTH_CODING = 256
MERGED_BYTES = 256 << 10
FAN = 8


@dataclass
class Running:
    """The episode a stream is in: its first step id (-1: none), its steps and rewards so far."""

    first_step_id: int = -1
    length: int = 0
    episode_return: float = 0.0


class Tail:
    """The rows of one open segment, in memory.

    Attributes:
        segment: The id whose rows these are.
        rows: Rows that are complete: they have an action, or are an episode's last.
        pending: Whether row `rows` has an observation already.
        committed: Rows that are durable.
        n_ends: Episodes' last rows among them.
        closed: Takes no more rows although there is room: it is to become a short segment.
        running: The episode going on after the newest row.
        ahead: Encodes its chunks while it fills.
    """

    def __init__(self, segment: int, fields: Sequence[Field], segment_steps: int) -> None:
        self.segment = segment
        self.segment_steps = segment_steps
        self.fields = tuple(fields)
        self.arrays: dict[str, NDArray[Any]] = {
            field.name: np.empty((segment_steps, *field.shape), field.dtype) for field in fields
        }
        self.ends = np.empty(segment_steps, np.int32)
        self.flags = np.empty(segment_steps, np.uint8)
        self.episodes = np.empty(segment_steps, layout.EPISODE)
        self.rows = 0
        self.pending = False
        self.n_ends = 0
        self.running = Running()
        self.committed = 0
        self.closed = False
        self.ahead: Ahead | None = None
        self._committed_pending = False
        self._starts: list[int] = []  # first rows of the committed records
        self._tried = segment_steps  # first row of the record that a commit tried to write
        self._row_bytes = sum(field.row_bytes for field in self.fields)
        self._observations = [self.arrays[f.name] for f in fields if f.role == "observation"]
        self._actions = [self.arrays[f.name] for f in fields if f.role == "action"]

    @property
    def first_step_id(self) -> int:
        """Return the step id of row 0."""
        return self.segment * self.segment_steps

    @property
    def available(self) -> int:
        """Return the rows whose observation is known."""
        return self.rows + self.pending

    @property
    def full(self) -> bool:
        """Return whether it takes no more rows and can be sealed."""
        return self.closed or self.rows == self.segment_steps

    @property
    def dirty(self) -> bool:
        """Return whether there is anything that is not committed."""
        return self.rows > self.committed or self.pending != self._committed_pending

    def observe(self, observation: Sequence[Any]) -> None:
        """Put the observation that follows, one value a leaf; the row is pending from now on."""
        row = self.rows
        for array, value in zip(self._observations, observation, strict=True):
            array[row] = value
        if self.running.first_step_id < 0:
            self.running = Running(self.first_step_id + row)
        self.arrays[EPISODE][row] = self.running.first_step_id
        self.arrays[IS_LAST][row] = False
        self.pending = True

    def act(self, action: Sequence[Any], reward: float, *, terminated: bool, truncated: bool) -> int:
        """Complete the pending row with what was done in it and what followed; return its step id."""
        row, arrays = self.rows, self.arrays
        for array, value in zip(self._actions, action, strict=True):
            array[row] = value
        arrays[REWARD][row] = reward
        arrays[TERMINATED][row] = terminated
        arrays[TRUNCATED][row] = truncated
        self.running.length += 1
        self.running.episode_return += float(reward)
        self.rows, self.pending = row + 1, False
        return self.first_step_id + row

    def extend(
        self,
        observations: Sequence[NDArray[Any]],
        actions: Sequence[NDArray[Any]],
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        """Append N complete rows of the running episode at once, the pending row being the first of them.

        The observation that follows the last of them must be given to `observe` next.
        """
        row, count, arrays = self.rows, len(rewards), self.arrays
        rows = slice(row, row + count)
        for array, values in zip(self._observations, observations, strict=True):
            array[rows] = values
        for array, values in zip(self._actions, actions, strict=True):
            array[rows] = values
        arrays[REWARD][rows], arrays[TERMINATED][rows] = rewards, terminated
        arrays[TRUNCATED][rows], arrays[IS_LAST][rows] = truncated, False
        if self.running.first_step_id < 0:
            self.running = Running(self.first_step_id + row)
        arrays[EPISODE][rows] = self.running.first_step_id
        self.running.length += count
        self.running.episode_return += float(rewards.sum(dtype=np.float64))
        self.rows, self.pending = row + count, False

    def finish(self, flags: int) -> None:
        """Make the pending row the last of its episode."""
        row = self.rows
        for array in self._actions:
            array[row] = 0
        for name in (REWARD, TERMINATED, TRUNCATED):
            self.arrays[name][row] = 0
        self.arrays[IS_LAST][row] = True
        run = self.running
        self.ends[self.n_ends], self.flags[self.n_ends] = row, flags
        self.episodes[self.n_ends] = (
            run.first_step_id,
            row,
            run.length,
            run.episode_return,
            flags,
        )
        self.n_ends += 1
        self.rows, self.pending, self.running = row + 1, False, Running()

    def abandon(self) -> None:
        """Drop a pending row that begins an episode in which nothing was done."""
        self.pending, self.running = False, Running()

    def record(self, *, whole: bool = False) -> tuple[int, bytes]:
        """Return the row at which the next tail record starts, and its payload; it replaces records from there on.

        Args:
            whole: Whether all rows are to go into it.
        """
        first, last = 0 if whole else self._next_start(), self.rows
        self._tried = first
        ends = int(np.searchsorted(self.ends[: self.n_ends], first))
        blobs: list[tuple[str, str, bytes]] = []
        for field in self.fields:
            pending = self.pending and (field.role == "observation" or field.name == EPISODE)
            rows = self.arrays[field.name][first : last + pending]
            data = rows.tobytes()
            coded = Zstd(level=1).encode(data) if len(data) > WORTH_CODING else data
            blobs.append(
                (field.name, "zstd", coded) if len(coded) < len(data) else (field.name, "none", data),
            )
        blobs.append((EPISODES_BLOB, "none", self.episodes[ends : self.n_ends].tobytes()))
        run = self.running
        header = json.dumps(
            {
                "segment": self.segment,
                "row": first,
                "rows": last - first,
                "pending": self.pending,
                "running": [run.first_step_id, run.length, run.episode_return],
                "blobs": [[name, codec, len(blob)] for name, codec, blob in blobs],
            },
            separators=(",", ":"),
        ).encode()
        return first, b"".join([struct.pack("<I", len(header)), header, *(blob for _, _, blob in blobs)])

    def _next_start(self) -> int:
        """Return where the next record starts: never after one that may have been committed although its end failed."""
        bounds, most = [*self._starts, self.committed], 1
        while (self.rows - bounds[-1]) * self._row_bytes <= MERGED_BYTES:
            while most < self.rows - bounds[-1]:
                most *= FAN
            at = len(bounds) - 1
            while at and bounds[at] - bounds[at - 1] <= most:
                at -= 1
            if len(bounds) - at < FAN or (self.rows - bounds[at]) * self._row_bytes > MERGED_BYTES:
                break
            del bounds[at + 1 :]
        return min(bounds[-1], self._tried)

    def mark_committed(self) -> None:
        """Remember that everything up to here is durable."""
        if self.dirty:
            self._note_record(min(self._tried, self.committed))
        self._tried = self.segment_steps
        self.committed, self._committed_pending = self.rows, self.pending

    def _note_record(self, first: int) -> None:
        self._starts = [*(start for start in self._starts if start < first), first]

    def apply(self, payload: bytes, what: str, *, again: bool = False) -> None:
        """Append a record read from the index; it must start where the tail ends.

        Args:
            payload: The record.
            what: Names it in errors.
            again: Whether it may begin with rows that the tail has: records are merged as they become many.

        Raises:
            CorruptStoreError: If it does not follow, or its lengths do not add up.
        """
        try:
            header = parse_tail_header(payload)
            first, count, pending = header.row, header.rows, header.pending
            known = first <= self.rows <= first + count if again else first == self.rows
            if header.segment != self.segment or not known:
                raise ValueError("it does not follow the rows before it")
            self.n_ends = int(np.searchsorted(self.ends[: self.n_ends], first))
            if first + count + pending > self.segment_steps:
                raise ValueError("it holds more rows than a segment")
            shapes = {field.name: field for field in self.fields}
            offset = header.size
            for name, codec, length in header.blobs:
                blob = payload[offset : offset + length]
                offset += length
                if name == EPISODES_BLOB:
                    self._apply_episodes(np.frombuffer(blob, layout.EPISODE), first + count)
                    continue
                field = shapes.pop(name)
                rows = count + (pending and (field.role == "observation" or name == EPISODE))
                self.arrays[name][first : first + rows] = _decoded(blob, codec, field, rows)
            if shapes:
                raise ValueError(f"it lacks {sorted(shapes)}")
            if pending:
                self.arrays[IS_LAST][first + count] = False
            self.rows, self.pending = first + count, pending
            self.running = Running(*header.running)
        except (ValueError, KeyError, TypeError, RuntimeError, struct.error) as err:
            raise CorruptStoreError(f"index: {what} is damaged: {err}") from err
        self._note_record(first)
        self.committed, self._committed_pending = self.rows, self.pending

    def _apply_episodes(self, episodes: NDArray[Any], rows: int) -> None:
        stop = self.n_ends + len(episodes)
        if stop > self.segment_steps:
            raise ValueError("it holds more episodes than rows")
        ends = np.concatenate([self.ends[self.n_ends - 1 : self.n_ends], episodes["end_row"]])
        if (np.diff(ends) <= 0).any() or (len(ends) and not 0 <= ends[-1] < rows):
            raise ValueError("its episodes end in impossible rows")
        self.episodes[self.n_ends : stop] = episodes
        self.ends[self.n_ends : stop] = episodes["end_row"]
        self.flags[self.n_ends : stop] = episodes["flags"]
        self.n_ends = stop


def _decoded(blob: bytes, codec: str, field: Field, rows: int) -> NDArray[Any]:
    """Return a blob's rows, decoded into memory of the size that the spec says, whatever the blob claims."""
    values = np.empty((rows, *field.shape), field.dtype)
    raw = memoryview(values.reshape(-1).view(np.uint8).data)
    if codec != "zstd":
        raw[:] = blob
    elif len(Zstd().decode(blob, out=raw)) != len(raw):
        raise ValueError(f"{field.name}: it decodes to another length")
    return values
