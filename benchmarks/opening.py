"""How long from nothing to the first prioritized batch, and how much memory, as stores grow?

Steps of a few bytes, committed priorities. Every round is a new process with the library imported and compiled; the
page cache is warm. TorchRL loads storage and trees with `loads`; cpprb's `load_transitions` keeps no priorities. Both
are left out beyond ten million steps, which take them minutes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import data, goals
from benchmarks.harness import Case, Contestant, Settings
from benchmarks.worker import memory
from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Opening a store, and the first prioritized batch"
MEASURE = "first_batch_seconds"
MEASURES = ("first_batch_seconds", "memory_bytes")
SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
MOST_FOR_RIVALS = 10_000_000


class Opening:
    """diskreplay: open, draw, read."""

    def __init__(self, store: str) -> None:
        self.store = Path(store)

    def prepare(self) -> None:
        """Have everything compiled, on another store."""
        with tempfile.TemporaryDirectory() as folder:
            self._first_batch(data.tiny(Path(folder), data.TINY_EPISODE))

    def run(self) -> dict[str, float]:
        """Return seconds and memory from nothing to the first batch."""
        before, began = memory()["anonymous"], time.perf_counter()
        self._first_batch(self.store)
        took = time.perf_counter() - began
        return {"first_batch_seconds": took, "memory_bytes": memory()["anonymous"] - before}

    def _first_batch(self, path: Path) -> None:
        self.kept = store = ReplayStore.open(path)
        self.batch = next(iter(ReplayLoader(PrioritizedSampler(store, seed=0), batch_size=256, prefetch=1)))


def cases(settings: Settings) -> list[Case]:
    """Return one case in which all sizes take turns."""
    sizes = settings.sizes or settings.pick(SIZES, (10_000, 100_000))
    who = [_ours(steps, data.tiny(settings.data, steps)) for steps in sizes]
    folder = str(settings.data)
    for steps in (steps for steps in sizes if steps <= MOST_FOR_RIVALS):
        options = {"folder": folder, "steps": steps}
        where = {"x": steps, "fresh": True}
        who += [
            Contestant(f"TorchRL, {steps:,}", "benchmarks.compare.torchrl_buffers:Loading", options, needs="torchrl",
                       environment="torchrl", group="TorchRL", note="loads", **where),
            Contestant(f"cpprb, {steps:,}", "benchmarks.compare.cpprb_buffers:Loading", options, needs="cpprb",
                       group="cpprb", note="load_transitions; no priorities", **where),
        ]  # fmt: skip
    return [Case("opening", tuple(who), {"sizes": list(sizes), "batch": 256})]


def _ours(steps: int, store: Path) -> Contestant:
    return Contestant(
        name_of(steps), "benchmarks.opening:Opening", {"store": str(store)}, group="diskreplay", x=steps, fresh=True
    )


def name_of(steps: int) -> str:
    """Return what a size is called."""
    return f"diskreplay, {steps:,}"


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    (case,) = found
    smallest, *_, largest = sorted(case["about"]["sizes"])
    last = goals.median(case, name_of(largest), MEASURE)
    used = goals.median(case, name_of(largest), "memory_bytes")
    return [
        goals.slower_below(
            case, f"{largest:,} steps beside {smallest:,}", name_of(smallest), name_of(largest), MEASURE, 3
        ),
        goals.below(f"{largest:,} steps", "the clock", last, 2, " s"),
        goals.below(f"{largest:,} steps, memory", "a limit", used and used / 1e6, 200, " MB"),
        *(
            goals.at_least(case, f"{steps:,} steps", name_of(steps), f"{rival}, {steps:,}", MEASURE, 1)
            for steps in case["about"]["sizes"]
            if steps <= MOST_FOR_RIVALS
            for rival in ("TorchRL", "cpprb")
        ),
    ]
