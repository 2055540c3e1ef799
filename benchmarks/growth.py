"""Does reading slow down as a store grows?

Prioritized batches of 256 from stores of steps of a few bytes, in the page cache as far as memory goes: what is read
from the disk all the same stands beside. All sizes take turns. Before the first round so many batches are drawn that
nearly all of the sum tree has been loaded. "growth": each store is opened with `memory="8GB"`, as by a learner with a
machine to itself; "default": with what a process gives to rows unasked, a 16th of the memory. "memory" is the limit,
by itself: columns of as many steps in RAM, gathered by numpy at random, uniformly, with nothing drawn, checked or
updated.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks import data, goals
from benchmarks.harness import Case, Contestant, Settings
from diskreplay.storage.layout import PRIORITY_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Growth: transitions a second as stores grow"
MEASURE = "transitions_per_second"
MEASURES = ("transitions_per_second", "read_per_batch_bytes")
SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def cases(settings: Settings) -> list[Case]:
    """Return two cases in which all sizes take turns, and one of the memory itself."""
    sizes = settings.sizes or settings.pick(SIZES, (10_000, 100_000))
    about = {"sizes": list(sizes), "batch": 256}
    options = {"seconds": settings.pick(3.0, 0.2), "warm": True}
    found = []
    for name, memory in (("growth", "8GB"), ("default", None)):
        who = [
            Contestant(_name(steps), "benchmarks.ours:Loader",
                       {"store": str(data.tiny(settings.data, steps)), "warm_batches": _enough(steps),
                        "memory": memory, **options}, group="diskreplay", x=steps)
            for steps in sizes
        ]  # fmt: skip
        found.append(Case(name, tuple(who), about))
    limit = tuple(
        Contestant(_name(steps), "benchmarks.compare.numpy_arrays:Columns",
                   {"steps": steps, "seconds": settings.pick(1.0, 0.2)}, group="numpy, RAM (uniform)", x=steps)
        for steps in sizes
    )  # fmt: skip
    return [*found, Case("memory", limit, about)]


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goal."""
    smallest, *_, largest = sorted(found[0]["about"]["sizes"])
    falls = goals.ratios(goals.find(found, "memory"), _name(smallest), _name(largest), MEASURE)
    beside = f"diskreplay itself; numpy, RAM: {statistics.median(falls):.2f}x" if falls else "diskreplay itself"
    works = {"growth": f"{largest:,} steps beside {smallest:,}, 8 GB for rows: slower by",
             "default": f"{largest:,} steps beside {smallest:,}: slower by"}  # fmt: skip
    return [
        goals.slower_below(goals.find(found, name), work, _name(smallest), _name(largest), MEASURE, 2, beside=beside)
        for name, work in works.items()
    ]


def _enough(steps: int) -> int:
    """Return how many batches, of 256 drawn from as many shares, load nearly all of the tree's blocks."""
    return max(20, 12 * (steps // PRIORITY_BLOCK) // 256)


def _name(steps: int) -> str:
    return f"{steps:,} steps"
