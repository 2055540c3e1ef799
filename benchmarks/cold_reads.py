"""How fast are batches from data far larger than memory?

Every process has a memory limit of its own from its start, page cache included (cgroup v1), and the files leave the
page cache before the first round; from then on the kernel keeps for each what it likes. "noise": rows of 8 kB of
random bytes, at least four times the limit, stored raw. "frames": Atari steps whose frames are at least eight times
the limit; here diskreplay's compressed store fits into the limit and the rivals' equal steps do not. fio reads past
the page cache, a transition's bytes a read, 32 under way: what the disk gives. What a fault in a memory map costs
depends on how much the kernel reads around it (the read-ahead named below); a map that is told it is read at random
reads one page. The rivals do not tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks import data, goals, machine, ours
from benchmarks.harness import Case, Contestant, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TITLE = "Cold reads: data far larger than memory, batch 256"
MEASURE = "transitions_per_second"
LIMIT = 640 << 20
ROW_BYTES, FRAME_BYTES = 8192, 84 * 84
NUMPY, CPPRB, TORCHRL, FIO = "numpy memory map (uniform)", "cpprb, mmap", "TorchRL, memmap", "fio, direct"
ADVISED = "numpy memory map, MADV_RANDOM (uniform)"


def cases(settings: Settings) -> list[Case]:
    """Return both cases; without a memory limit, on quick runs and where it cannot be had."""
    limit = LIMIT if machine.can_limit_memory() and not settings.quick else None
    rows = settings.pick(4 * LIMIT // ROW_BYTES + 10_000, 2_000)
    steps = settings.pick(8 * LIMIT // FRAME_BYTES + 10_000, 2_000)
    made = (
        ("noise", data.noise(settings.data, rows), "none", 1, 2 * ROW_BYTES, rows * ROW_BYTES),
        ("frames", data.atari(settings.data, "Breakout", steps), "auto", 4, 5 * FRAME_BYTES, steps * FRAME_BYTES),
    )
    found = []
    for name, folder, compression, stack, window, raw in made:
        store = data.store_of(folder, compression)
        about = {"steps": rows if stack == 1 else steps, "frame_stack": stack, "raw_bytes": raw}
        if limit is None:
            about["no_memory_limit"] = "a quick run" if settings.quick else "cgroup v1 is not to be had: not cold"
        who = contestants(settings, folder, store, stack, window)
        files = store, folder / "rows", data.second_rows(folder)
        found.append(Case(name, who, about, memory_limit=limit, cold=files))
    return found


def contestants(settings: Settings, folder: Path, store: Path, stack: int, window: int) -> tuple[Contestant, ...]:
    """Return who reads these rows."""
    compare, seconds = "benchmarks.compare", settings.pick(6.0, 0.2)
    read = {"rows": str(folder / "rows"), "stack": stack, "seconds": seconds}
    again = {**read, "rows": str(data.second_rows(folder)), "mapped": True, "advised": True}
    torchrl = "Memmap" if stack == 1 else "Slices"
    scratch = settings.data / "scratch"
    return (
        Contestant(ours.NAME, "benchmarks.ours:Loader",
                   {"store": str(store), "frame_stack": stack, "seconds": seconds, "warm": False}),
        Contestant(NUMPY, f"{compare}.numpy_arrays:Windows", {**read, "mapped": True},
                   note="no priorities, no checks"),
        Contestant(ADVISED, f"{compare}.numpy_arrays:Windows", again, note="no priorities, no checks"),
        Contestant(CPPRB, f"{compare}.cpprb_buffers:Prioritized", {**read, "scratch": f"{scratch}-cpprb"},
                   needs="cpprb", note="mmap_prefix, next_of" + (", stack_compress" if stack > 1 else "")),
        Contestant(
            TORCHRL, f"{compare}.torchrl_buffers:{torchrl}", {**read, "scratch": f"{scratch}-torchrl", "warm": False},
            needs="torchrl", environment="torchrl",
            note="observation and next observation both stored" if stack == 1 else
            "PrioritizedSliceSampler: each frame once; stacked it would be eight times as much",
        ),
        Contestant(
            FIO, f"{compare}.fio_reads:RandomReads",
            {"file": str(folder / "rows" / "observation.npy"), "bytes_per_read": -(-window // 4096) * 4096,
             "seconds": max(1.0, seconds)}, program="fio", note="the disk itself, uncompressed",
        ),
    )  # fmt: skip


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    verdicts = []
    for case in found:
        noise = case["name"] == "noise"
        work = "noise, 4 times the limit" if noise else "Breakout, 8 times the limit, compressed"
        least: dict[str, float] = dict.fromkeys((NUMPY, ADVISED, CPPRB, TORCHRL), 50 if noise else 100)
        if noise:
            least[FIO] = 0.7
        judged = [goals.at_least(case, work, ours.NAME, rival, MEASURE, times) for rival, times in least.items()]
        limited = case["memory_limit"] is not None
        verdicts += judged if limited else [replace(v, measured="without a memory limit", met=None) for v in judged]
    return verdicts
