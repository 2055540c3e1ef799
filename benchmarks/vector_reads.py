"""How fast are prioritized batches of small vectors, when everything fits into the page cache?

Observations of 17 floats, actions of 6, batches of 256, n-step 1, priorities of every batch updated. The rows are
random numbers and stay raw on disk. TorchRL holds every observation twice, as its environments hand them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import data, goals, ours
from benchmarks.harness import Case, Contestant, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Vector reads: 17 floats, warm, prioritized, batch 256"
MEASURE = "transitions_per_second"
CPPRB, TORCHRL = "cpprb, RAM", "TorchRL, memmap"


def cases(settings: Settings) -> list[Case]:
    """Return the one case."""
    steps, seconds = settings.pick(1_000_000, 10_000), settings.pick(3.0, 0.2)
    folder = data.vectors(settings.data, steps)
    rows, compare = str(folder / "rows"), "benchmarks.compare"
    read = {"rows": rows, "stack": 1, "seconds": seconds}
    store = str(data.store_of(folder, "auto"))
    who = (
        Contestant(ours.NAME, "benchmarks.ours:Loader", {"store": store, "seconds": seconds, "warm": True}),
        Contestant(CPPRB, f"{compare}.cpprb_buffers:Prioritized", read, needs="cpprb", note="next_of"),
        Contestant(
            TORCHRL, f"{compare}.torchrl_buffers:Memmap", {**read, "scratch": str(settings.data / "scratch-memmap")},
            needs="torchrl", environment="torchrl",
            note="LazyMemmapStorage, PrioritizedSampler; prefetching if faster",
        ),
        Contestant("SB3, RAM (uniform)", f"{compare}.sb3_buffers:Uniform", read, needs="stable_baselines3",
                   note="optimize_memory_usage; no priorities"),
        Contestant("numpy, RAM (uniform)", f"{compare}.numpy_arrays:Windows", read,
                   note="fancy indexing; no priorities, no checks: the limit"),
    )  # fmt: skip
    return [Case("17 floats", who, {"steps": steps, "batch": 256, "n_step": 1})]


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    (case,) = found
    work = "17 floats"
    return [
        goals.at_least(case, work, ours.NAME, CPPRB, MEASURE, 1),
        goals.at_least(case, work, ours.NAME, TORCHRL, MEASURE, 2),
    ]
