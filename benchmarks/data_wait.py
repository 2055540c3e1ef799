"""How long does a DQN learner on a CPU wait for its data?

`diskreplay train`'s own learner and batches, beside the same learner on the same transitions in RAM, gathered uniformly
by fancy indexing in the learner's thread. Waiting is the time that the next batch takes to come, drawing included;
updating the priorities is counted apart, and freeing the batch before as the learner's own. torch has the threads that
`train` gives it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import data, goals
from benchmarks.harness import Case, Contestant, Settings
from benchmarks.rows import Rows
from diskreplay import ReplayStore
from diskreplay.experience import Batch
from diskreplay.learning import TrainConfig
from diskreplay.learning.batches import Batches
from diskreplay.learning.learner import Learner
from diskreplay.learning.manners import torch_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Waiting for data: DQN on a CPU"
MEASURE = "wait_share"
MEASURES = ("wait_share", "priorities_share", "updates_per_second")
OURS, RAM = "diskreplay", "numpy, RAM (uniform)"


class Training:
    """Updates for some seconds, from the store or from RAM."""

    def __init__(self, store: str, *, rows: str = "", seconds: float) -> None:
        self.path, self.rows_folder, self.seconds = Path(store), rows, seconds

    def prepare(self) -> None:
        """Build the learner; a few updates."""
        self.store = ReplayStore.open(self.path, mode="r" if self.rows_folder else "a")
        self.config = config = TrainConfig.for_spec(self.store.spec, eval_episodes=0, normalise=False)
        self.learner, self.updates = Learner(self.store.spec, config), 0
        self.batches: Any = InRam(self.rows_folder, config) if self.rows_folder else Batches(self.store, config)
        self._train(min(2.0, self.seconds))

    def run(self) -> dict[str, float]:
        """Return shares of the time, and updates a second."""
        return self._train(self.seconds)

    def _train(self, seconds: float) -> dict[str, float]:
        waited, gave, updates = 0.0, 0.0, 0
        with torch_threads(self.config.torch_threads):
            began = now = time.perf_counter()
            while now - began < seconds or updates < 3:
                batch = self.batches.next()
                came = time.perf_counter()
                update = self.learner.update(batch, self.updates % self.config.updates)
                learned = time.perf_counter()
                self.batches.set_priorities(batch, update.td_error)
                given = time.perf_counter()
                del batch  # else it would be freed when the next has come, and count as waiting for it
                waited, gave = waited + came - now, gave + given - learned
                now, updates, self.updates = time.perf_counter(), updates + 1, self.updates + 1
        took = now - began
        return {"wait_share": waited / took, "priorities_share": gave / took, "updates_per_second": updates / took}

    def close(self) -> None:
        """Close the store."""
        self.batches.close()
        self.store.close()


class InRam:
    """The same batches from arrays in RAM."""

    def __init__(self, rows: str, config: TrainConfig) -> None:
        self.rows, self.config, self.rng = Rows.load(Path(rows)), config, np.random.default_rng(0)
        self.reward, self.discount, self.following = self.rows.n_step(config.n_step, config.gamma)

    def next(self) -> Batch:
        """Gather a batch."""
        rows, size, stack = self.rows, self.config.batch_size, self.config.frame_stack
        at = rows.transitions[self.rng.integers(len(rows.transitions), size=size)]
        seen, following = (self._stack(rows, which, stack) for which in (at, self.following[at]))
        arrays = (seen, rows.action[at], self.reward[at], self.discount[at], following, np.ones(size, np.float32), at)
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def set_priorities(self, batch: Batch, td_error: torch.Tensor) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is open."""

    @staticmethod
    def _stack(rows: Rows, at: np.ndarray[Any, Any], stack: int) -> np.ndarray[Any, Any]:
        return rows.observation[at] if stack == 1 else rows.observation[rows.windows(at, stack)[:, :-1]]


def cases(settings: Settings) -> list[Case]:
    """Return a case of images and one of vectors, each with `train`'s own settings for them."""
    breakout = data.atari(settings.data, "Breakout", settings.pick(100_000, 2_000))
    cartpole = data.recorded(settings.data, "CartPole-v1", settings.pick(50_000, 2_000))
    found = []
    for name, folder, about in (("Breakout", breakout, "batch 32, stack 4"), ("CartPole", cartpole, "batch 256")):
        options = {"store": str(folder / "auto.replay"), "seconds": settings.pick(10.0, 0.3)}
        who = (
            Contestant(OURS, "benchmarks.data_wait:Training", options, note="prioritized"),
            Contestant(RAM, "benchmarks.data_wait:Training", {**options, "rows": str(folder / "rows")},
                       note="no priorities, no checks"),
        )  # fmt: skip
        found.append(Case(name, who, {"network": about}))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goal."""
    verdicts = []
    for case in found:
        share, ram = (goals.median(case, name, MEASURE) for name in (OURS, RAM))
        beside = f"{RAM}: {100 * ram:.2g} %" if ram is not None else RAM
        verdicts.append(goals.below(f"{case['name']}, waiting", beside, share and 100 * share, 2, " %"))
    return verdicts
