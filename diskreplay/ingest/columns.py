"""Cut flat columns of steps into episodes.

Two layouts are told apart by their lengths. N steps in E episodes come with N + E observations,
where each episode brings its final one (T steps, T + 1 observations); or, as in D4RL, with N:

    observations       o0 o1 o2 | o0 o1 | ...       next_observations   o1 o2 o3 | o1 o2 | ...
    terminals/timeouts  0  0  1 |  0  1 | ...       (optional; its last row of an episode is kept)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diskreplay.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_ROWS = 4096


class Episode(NamedTuple):
    """Hold an episode of T steps in the order `StreamWriter.write_episode` takes it."""

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Hold the columns of a data set; N steps.

    Attributes:
        observations: (N, *shape), or (N + E, *shape) with the final one of each of E episodes.
        actions: (N, *shape).
        rewards: (N,).
        terminations: (N,).
        truncations: (N,).
        next_observations: (N, *shape), or None.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    next_observations: NDArray[Any] | None = None


class EpisodeCutter:
    """Decide where the episodes of columns are, and yield them.

    Args:
        columns: At least one step.

    Attributes:
        notes: Sentences about steps that could not be taken as they are.
        lengths: (E,) steps of each episode that is yielded.

    Raises:
        SourceError: If the number of observations fits neither layout.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.notes: tuple[str, ...] = ()
        ends = columns.terminations | columns.truncations
        ends[-1] = True
        given, steps = len(columns.observations), len(ends)
        self._with_final = given == steps + int(ends.sum())
        if not self._with_final and given != steps:
            raise SourceError(
                f"{given} observations do not fit {steps} steps in {int(ends.sum())} episodes; "
                f"expected {steps}, or {steps + int(ends.sum())} with the final ones",
                hint="Mark the last step of every episode in terminations or truncations.",
            )
        following = columns.next_observations
        if not self._with_final and following is not None:
            gaps = _gaps(columns.observations, following) & ~ends[:-1]
            ends[:-1] |= gaps
            if gaps.any():
                self._note(
                    f"{int(gaps.sum())} steps are not followed by their next observation; the episode is cut off there"
                )
        self._stops = np.flatnonzero(ends) + 1
        self._starts = np.concatenate([[0], self._stops[:-1]])
        self.lengths = self._stops - self._starts
        if not self._with_final and following is None:
            self._drop_last_steps()

    def __iter__(self) -> Iterator[Episode]:
        for i, (start, length) in enumerate(zip(self._starts, self.lengths, strict=True)):
            if length:
                yield self._episode(i, int(start), int(start + length))

    def _note(self, sentence: str) -> None:
        self.notes = (*self.notes, sentence)

    def _drop_last_steps(self) -> None:
        """Shorten the episodes that were cut off: what followed their last step is not known."""
        last = self._stops - 1
        cut_off = ~self._columns.terminations[last]
        self.lengths = self.lengths - cut_off
        if cut_off.any():
            self._note(
                f"the last step of {int(cut_off.sum())} truncated episodes is lost: without "
                "next_observations nothing says what followed it"
            )

    def _episode(self, i: int, start: int, stop: int) -> Episode:
        columns = self._columns
        terminations, truncations = (
            columns.terminations[start:stop],
            columns.truncations[start:stop],
        )
        if not terminations[-1]:
            truncations = truncations.copy()
            truncations[-1] = True
        return Episode(
            self._observations(i, start, stop),
            columns.actions[start:stop],
            columns.rewards[start:stop],
            terminations,
            truncations,
        )

    def _observations(self, i: int, start: int, stop: int) -> NDArray[Any]:
        rows = self._columns.observations
        if self._with_final:
            return rows[start + i : stop + i + 1]
        if self._columns.next_observations is not None:
            final = self._columns.next_observations[stop - 1 : stop]
        elif stop < self._stops[i]:
            final = rows[stop : stop + 1]
        else:
            final = rows[stop - 1 : stop]  # terminal: nothing bootstraps from it
        return np.concatenate([rows[start:stop], final])


def _gaps(observations: NDArray[Any], following: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (N - 1,): True where the next observation is not the following row."""
    if following.shape != observations.shape:
        raise SourceError(
            f"next_observations has shape {following.shape}, observations {observations.shape}",
            hint="They must be equal, one row per step.",
        )
    gaps = np.zeros(len(observations) - 1, dtype=np.bool_)
    for start in range(0, len(gaps), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(gaps))
        differ = following[start:stop] != observations[start + 1 : stop + 1]
        gaps[start:stop] = differ.reshape(stop - start, -1).any(axis=1)
    return gaps
