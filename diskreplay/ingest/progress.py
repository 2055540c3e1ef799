"""The clockwork every source shares: when to commit, what to show, what to report at the end."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    from diskreplay.store import ReplayStore

COMMIT_SECONDS = 5.0


@dataclass(frozen=True)
class IngestReport:
    """Say what one call of ingest did.

    Attributes:
        path: The store.
        source: Where the steps came from.
        steps: Steps this call added.
        episodes: Episodes this call finished.
        seconds: Wall time from the first step to the last commit.
        steps_per_second: steps / seconds.
        mean_return: Mean return of the finished episodes; None if there are none.
        mean_length: Mean length of the finished episodes in steps; None if there are none.
        total_steps: Steps the touched streams have taken in so far, this call's included.
        seed: Repeats this call on a store in the same state; None where nothing is random.
        interrupted: True if it was asked to stop before the end.
        notes: Sentences about data that were not taken as they were.
    """

    path: str
    source: str
    steps: int
    episodes: int
    seconds: float
    steps_per_second: float
    mean_return: float | None
    mean_length: float | None
    total_steps: int
    seed: int | None = None
    interrupted: bool = False
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the attributes' names."""
        return {**asdict(self), "notes": list(self.notes)}


class Progress:
    """Count steps and episodes, commit in time, and draw a bar on stderr.

    Args:
        store: The store to commit.
        total: Steps expected.
        commit_every: Commit after so many steps; also every few seconds.
        visible: Draw the bar; never drawn where stderr is not a terminal.
    """

    def __init__(self, store: ReplayStore, *, total: int, commit_every: int, visible: bool = False) -> None:
        from tqdm import tqdm  # noqa: PLC0415 - not needed to write a report

        self.steps = 0
        self.episodes = 0
        self._store = store
        self._every = commit_every
        self._return_sum = 0.0
        self._length_sum = 0
        self._committed = 0
        self._started = self._committed_at = time.monotonic()
        self._bar = tqdm(total=total, unit="step", disable=None if visible else True, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add_steps(self, count: int) -> None:
        """Count steps that were written; commit when it is time."""
        self.steps += count
        self._bar.update(count)
        pending = self.steps - self._committed
        if pending >= self._every or time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self._store.commit()
            self._committed, self._committed_at = self.steps, time.monotonic()

    def add_episode(self, episode_return: float, length: int) -> None:
        """Count an episode that ended."""
        self.episodes += 1
        self._return_sum += episode_return
        self._length_sum += length
        if not self._bar.disable:
            mean = self._return_sum / self.episodes
            self._bar.set_postfix(episodes=self.episodes, mean_return=f"{mean:.4g}", refresh=False)

    def report(self, **facts: Any) -> IngestReport:
        """Sum up; the other attributes of the report come from the caller."""
        seconds = time.monotonic() - self._started
        return IngestReport(
            steps=self.steps,
            episodes=self.episodes,
            seconds=seconds,
            steps_per_second=self.steps / seconds if seconds > 0 else 0.0,
            mean_return=self._return_sum / self.episodes if self.episodes else None,
            mean_length=self._length_sum / self.episodes if self.episodes else None,
            **facts,
        )
