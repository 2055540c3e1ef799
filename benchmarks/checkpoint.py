"""What does committing changed priorities cost, beside writing all of them?

Batches of 256 are drawn by priority from steps of a few bytes and updated, then committed: 100 batches, then 1,000.
Beside it all priorities are written to a file as float32 and synced, and up to a million by TorchRL's own `dumps`. At
one commit a minute it should take less than 1 % of the time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import data, goals
from benchmarks.harness import Case, Contestant, Settings
from diskreplay import PrioritizedSampler, ReplayStore

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Checkpointing priorities"
MEASURE = "commit_seconds"
MEASURES = ("commit_seconds", "small_commit_seconds", "update_seconds")
SIZES = (1_000_000, 10_000_000, 100_000_000)
MOST_FOR_TORCHRL = 1_000_000
OURS, ALL, TORCHRL = "diskreplay", "all priorities to a file", "TorchRL, dumps"


class Checkpoint:
    """diskreplay: update, then commit."""

    def __init__(self, store: str, *, batches: int) -> None:
        self.path, self.batches = Path(store), batches

    def prepare(self) -> None:
        """Open, as the learner; have one commit done."""
        self.store = ReplayStore.open(self.path, mode="a", durability="power")
        self.sampler = PrioritizedSampler(self.store, seed=0)
        self.errors = np.random.default_rng(0).random(256)
        self._commit_after(10)

    def run(self) -> dict[str, float]:
        """Return the seconds of a commit after few and after many batches, and of the updates before it."""
        small, _ = self._commit_after(self.batches // 10)
        commit, updates = self._commit_after(self.batches)
        return {"commit_seconds": commit, "small_commit_seconds": small, "update_seconds": updates}

    def _commit_after(self, batches: int) -> tuple[float, float]:
        began = time.perf_counter()
        for _ in range(batches):
            self.sampler.update_priorities(self.sampler.draw(256).step_ids, self.errors)
        updated = time.perf_counter()
        self.store.commit()
        return time.perf_counter() - updated, updated - began

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def cases(settings: Settings) -> list[Case]:
    """Return one case a size."""
    found = []
    for steps in settings.sizes or settings.pick(SIZES, (100_000,)):
        store, folder = data.tiny(settings.data, steps), str(settings.data)
        options = {"folder": folder, "steps": steps}
        who = [
            Contestant(OURS, "benchmarks.checkpoint:Checkpoint",
                       {"store": str(store), "batches": settings.pick(1_000, 20)}, x=steps),
            Contestant(ALL, "benchmarks.compare.numpy_arrays:RewritePriorities", options, x=steps,
                       note="float32, fsync"),
        ]  # fmt: skip
        if steps <= MOST_FOR_TORCHRL:
            torchrl = {"needs": "torchrl", "environment": "torchrl", "x": steps}
            who.append(Contestant(TORCHRL, "benchmarks.compare.torchrl_buffers:DumpPriorities", options, **torchrl))
        found.append(Case(f"{steps:,} steps", tuple(who), {"steps": steps, "batch": 256}))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    verdicts = []
    for case in found:
        work = f"{case['name']}, 1,000 batches"
        commit = goals.median(case, OURS, "commit_seconds")
        verdicts += [
            goals.at_least(case, work, OURS, ALL, MEASURE, 1),
            goals.below(f"{work}, one commit a minute", "training time", commit and 100 * commit / 60, 1, " %"),
        ]
        grew = goals.ratios({"contestants": {"few": _as(case, "small_commit_seconds"), "many": _as(case, MEASURE)}},
                            "few", "many", MEASURE)  # fmt: skip
        verdicts.append(
            goals.Verdict(
                f"{case['name']}, 1,000 batches beside 100", "diskreplay itself",
                "grows with what changed, at most 10x",
                f"{np.median(grew):.1f}x" if grew else "did not run", bool(np.median(grew) <= 10) if grew else None,
            )
        )  # fmt: skip
    return verdicts


def _as(case: goals.Case, measure: str) -> dict[str, list[dict[str, float]]]:
    return {"samples": [{MEASURE: value} for value in goals.samples(case, OURS, measure)]}
