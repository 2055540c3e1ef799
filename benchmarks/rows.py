"""The steps that every contestant reads: plain arrays in row order, and the windows of a transition.

An episode of T steps has T + 1 rows; the last holds its final observation. numpy only: rivals in other
environments read them too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = ("observation", "action", "reward", "terminated", "truncated", "is_last")


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows of consecutive episodes; `about` says what they are."""

    observation: NDArray[Any]
    action: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    is_last: NDArray[np.bool_]
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, *, mapped: bool = False) -> Rows:
        """Read what `save` wrote; the observations as a memory map if asked."""
        kept = {name: np.load(folder / f"{name}.npy") for name in COLUMNS[1:]}
        observation = np.load(folder / "observation.npy", mmap_mode="r" if mapped else None)
        return cls(observation, about=json.loads((folder / "about.json").read_text("utf-8")), **kept)

    def save(self, folder: Path) -> None:
        """Write one file a column."""
        folder.mkdir(parents=True)
        for name in COLUMNS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "about.json").write_text(json.dumps(self.about), encoding="utf-8")

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Return the row each row's episode begins with, (R,)."""
        starts = np.flatnonzero(np.concatenate([[True], self.is_last[:-1]]))
        return starts[np.cumsum(np.concatenate([[0], self.is_last[:-1]]))]

    @cached_property
    def transitions(self) -> NDArray[np.int64]:
        """Return the rows that a transition starts at, (N,)."""
        return np.flatnonzero(~self.is_last)

    def windows(self, rows: NDArray[np.int64], stack: int) -> NDArray[np.int64]:
        """Return the rows of the k + 1 observations of each transition, (B, k + 1), the first one repeated."""
        window: NDArray[np.int64] = np.maximum(rows[:, None] + np.arange(-stack + 1, 2), self.first[rows][:, None])
        return window

    def episodes(self) -> Iterator[slice]:
        """Yield the rows of each episode, its last included."""
        ends = np.flatnonzero(self.is_last) + 1
        for begin, end in zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True):
            yield slice(begin, end)

    def n_step(self, n: int, gamma: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return the n-step return, the discount and the row of the next observation of every row, (R,) each."""
        count = len(self.reward)
        at = np.arange(count)
        total, factor, alive = np.zeros(count), np.ones(count), ~self.is_last
        for _ in range(n):
            total += np.where(alive, factor * self.reward[at], 0)
            factor = np.where(alive, factor * gamma * ~self.terminated[at], factor)
            at = np.where(alive, at + 1, at)
            alive &= ~self.is_last[at]
        return total.astype(np.float32), factor.astype(np.float32), at
