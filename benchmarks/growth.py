"""Does reading slow down as a store grows?

Prioritized batches of 256 from stores of steps of a few bytes, in the page cache as far as memory goes: what is read
from the disk all the same stands beside. All sizes take turns. Before the first round so many batches are drawn that
nearly all of the sum tree has been loaded.
"""

from __future__ import annotations

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
    """Return one case in which all sizes take turns."""
    sizes = settings.sizes or settings.pick(SIZES, (10_000, 100_000))
    options = {"seconds": settings.pick(3.0, 0.2), "warm": True}
    who = tuple(
        Contestant(_name(steps), "benchmarks.ours:Loader",
                   {"store": str(data.tiny(settings.data, steps)), "warm_batches": _enough(steps), **options},
                   group="diskreplay", x=steps)
        for steps in sizes
    )  # fmt: skip
    return [Case("growth", who, {"sizes": list(sizes), "batch": 256})]


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goal."""
    (case,) = found
    smallest, *_, largest = sorted(case["about"]["sizes"])
    work = f"{largest:,} steps beside {smallest:,}: slower by"
    return [goals.slower_below(case, work, _name(smallest), _name(largest), MEASURE, 2)]


def _enough(steps: int) -> int:
    """Return how many batches, of 256 drawn from as many shares, load nearly all of the tree's blocks."""
    return max(20, 12 * (steps // PRIORITY_BLOCK) // 256)


def _name(steps: int) -> str:
    return f"{steps:,} steps"
