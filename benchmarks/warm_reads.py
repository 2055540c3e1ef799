"""How fast are prioritized batches of Atari windows, when everything fits into the page cache?

Batches of 256, four stacked 84x84 frames and the following four, n-step 1, priorities of every batch updated. Real
emulator frames of random play. diskreplay checks each chunk and hands out observation and next observation as views of
one window of five frames, as numpy and tensorstore do here; cpprb (frames as the last axis), TorchRL and SB3 return two
arrays of four. The uniform ones draw without priorities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import data, goals, ours
from benchmarks.harness import Case, Contestant, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TITLE = "Warm reads: Atari windows, prioritized, batch 256"
MEASURE = "transitions_per_second"
GAMES = ("Breakout", "Seaquest")
STACK = 4
RAW, CPPRB, TORCHRL, NUMPY = "diskreplay, raw", "cpprb, RAM", "TorchRL, memmap", "numpy, RAM (uniform)"


def cases(settings: Settings) -> list[Case]:
    """Return one case a game."""
    steps, seconds = settings.pick(100_000, 2_000), settings.pick(3.0, 0.2)
    found = []
    for game in settings.pick(GAMES, GAMES[:1]):
        folder = data.atari(settings.data, game, steps)
        about = {"steps": steps, "batch": 256, "frame_stack": STACK, "n_step": 1}
        found.append(Case(game, contestants(settings, folder, seconds), about))
    return found


def contestants(settings: Settings, folder: Path, seconds: float) -> tuple[Contestant, ...]:
    """Return who reads these rows."""
    rows, compare = str(folder / "rows"), "benchmarks.compare"
    read = {"stack": STACK, "seconds": seconds}
    loader = {"frame_stack": STACK, "seconds": seconds, "warm": True}
    auto, raw = str(folder / "auto.replay"), str(data.store_of(folder, "none"))
    scratch = str(settings.data / "scratch")
    return (
        Contestant(ours.NAME, "benchmarks.ours:Loader", {"store": auto, **loader}),
        Contestant(RAW, "benchmarks.ours:Loader", {"store": raw, **loader}, note='compression="none"'),
        Contestant(
            CPPRB, f"{compare}.cpprb_buffers:Prioritized", {"rows": rows, **read}, needs="cpprb",
            note="stack_compress, next_of; bytes are those of its process",
        ),
        Contestant(
            TORCHRL, f"{compare}.torchrl_buffers:Memmap", {"rows": rows, "scratch": f"{scratch}-memmap", **read},
            needs="torchrl", environment="torchrl",
            note="LazyMemmapStorage, PrioritizedSampler; prefetching if faster",
        ),
        Contestant(
            "TorchRL, slices", f"{compare}.torchrl_buffers:Slices",
            {"rows": rows, "scratch": f"{scratch}-slices", **read},
            needs="torchrl", environment="torchrl",
            note="LazyMemmapStorage, PrioritizedSliceSampler: each frame once, no windows at episode starts",
        ),
        Contestant(
            "SB3, RAM (uniform)", f"{compare}.sb3_buffers:Uniform", {"rows": rows, **read}, needs="stable_baselines3",
            note="optimize_memory_usage; no priorities",
        ),
        Contestant(NUMPY, f"{compare}.numpy_arrays:Windows", {"rows": rows, **read},
                   note="fancy indexing; no priorities, no checks: the limit"),
        Contestant(
            "tensorstore (uniform)", f"{compare}.zarr_readers:Windows",
            {"store": auto, "reader": "tensorstore", **read}, needs="tensorstore",
            note="indexing diskreplay's own compressed array; no priorities",
        ),
    )  # fmt: skip


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    verdicts = []
    for case in found:
        work = f"{case['name']}, compressed"
        verdicts += [
            goals.at_least(case, work, ours.NAME, CPPRB, MEASURE, 1.3),
            goals.size_ratio(case, work, ours.NAME, CPPRB, 30),
            goals.at_least(case, work, ours.NAME, TORCHRL, MEASURE, 6),
            goals.at_least(case, f"{case['name']}, raw", RAW, CPPRB, MEASURE, 2.5),
            goals.at_least(case, f"{case['name']}, raw", RAW, NUMPY, MEASURE, 0.6),
        ]
    return verdicts
