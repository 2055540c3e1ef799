"""What a training run says when it ends, and the numbers it keeps while it goes."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diskreplay.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diskreplay.learning.learner import Update


@dataclass(frozen=True)
class TrainReport:
    """Sum up a run.

    Attributes:
        updates: Gradient steps in total, also those before a resume.
        updates_per_second: Rate of this call's updates; evaluations and checkpoints do not count.
        data_wait_share: Share of that time in which the learner waited for data, in [0, 1].
        eval_return_mean: Mean greedy return of the final network; None if it was not evaluated.
        eval_returns: Return of each of those episodes.
        quarantined: Segments that were found damaged and left out.
        interrupted: Whether the run was asked to stop before its end.
        seconds: Seconds this call took, all in all.
        out_dir: Folder with the checkpoint, metrics and curve.
    """

    updates: int
    updates_per_second: float
    data_wait_share: float
    eval_return_mean: float | None
    eval_returns: list[float]
    quarantined: list[int]
    interrupted: bool
    seconds: float
    out_dir: Path

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**dataclasses.asdict(self), "out_dir": str(self.out_dir)}


class Stopwatch:
    """Count seconds while it runs.

    Args:
        seconds: What it shows at first.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count inside the block."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._started = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count inside the block."""
        was_running = self._started is not None
        self._seconds, self._started = self.seconds, None
        try:
            yield
        finally:
            self._started = time.perf_counter() if was_running else None


class Tally:
    """Gather the numbers of the updates since the last line of metrics.

    Args:
        seconds: Seconds of learning so far.
        wait_seconds: Seconds of them spent waiting for data.
    """

    def __init__(self, seconds: float, wait_seconds: float) -> None:
        self._seconds, self._wait_seconds = seconds, wait_seconds
        self._updates: list[torch.Tensor] = []

    def add(self, update: Update) -> None:
        """Take in one update's numbers."""
        self._updates.append(update.numbers)

    def means(self) -> list[float]:
        """Return the means of loss, Q, |TD error| and gradient norm; nothing if there was no update.

        Raises:
            TrainingError: If one is not finite: the run diverged.
        """
        if not self._updates:
            return []
        means: list[float] = torch.stack(self._updates).mean(dim=0).tolist()
        if not all(math.isfinite(value) for value in means):
            raise diverged("the loss, Q or the gradient")
        return means

    def summary(self, seconds: float, wait_seconds: float) -> dict[str, float]:
        """Return the tally's numbers, and begin the next one.

        Args:
            seconds: Seconds of learning so far.
            wait_seconds: Seconds of them spent waiting for data.
        """
        names = ("loss", "mean_q", "td_error", "grad_norm")
        numbers = dict(zip(names, self.means(), strict=True))
        rate, share = pace(len(self._updates), seconds - self._seconds, wait_seconds - self._wait_seconds)
        self._seconds, self._wait_seconds, self._updates = seconds, wait_seconds, []
        return {**numbers, "updates_per_second": rate, "data_wait_share": share}


def diverged(what: str) -> TrainingError:
    """Return the error that ends a run which cannot go on."""
    return TrainingError(
        f"{what} is not finite any more; the last checkpoint is intact",
        hint="Lower the learning rate, or look at the rewards with `diskreplay stats`.",
    )


def pace(updates: int, seconds: float, wait_seconds: float) -> tuple[float, float]:
    """Return updates per second, and the share of the seconds spent waiting."""
    if seconds <= 0:
        return 0.0, 0.0
    return updates / seconds, min(wait_seconds / seconds, 1.0)
