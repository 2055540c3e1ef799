"""Measure commits: how many a second, by durability and by steps a commit, beside raw LMDB and an append with fsync.

Every way gets the same steps: CartPole's (4 float32, an action), made before the clock starts.

- step, power and process: `StreamWriter.step` for each step, then `ReplayStore.commit`, with either durability.
- episode, power and process: `StreamWriter.write_episode` for all steps of a commit at once.
- LMDB: one put of as many bytes as the steps have, raw, in a transaction each; synced, or not.
- append: the same bytes to the end of a file; with an fsync each, or without.

Repeats alternate between the ways, so that whatever else the machine does hits all alike; shown are medians. What the
store does beside, and the others do not: check and buffer each step, make them readable at once, checksum, seal full
segments into compressed shards. Sealing is part of the time in which it falls.

    python benchmarks/bench_commit.py --dir /mnt/disk --json commits.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
from tqdm import tqdm

from diskreplay import ArraySpec, ReplayStore, StepSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SPEC = StepSpec(ArraySpec("observation", (4,), "float32"), ArraySpec("action", (), "int64", "discrete", n=2))
STEP_BYTES = 4 * 4 + 8 + 4 + 1 + 1
SIZES = (1, 100, 10_000)
WAYS = (
    "step, power", "step, process", "episode, power", "episode, process",
    "LMDB, synced", "LMDB, not synced", "append, fsync", "append, no fsync",
)  # fmt: skip


def steps_of(count: int) -> dict[str, Any]:
    """Return an episode of so many steps."""
    rng = np.random.default_rng(0)
    last = np.arange(count) == count - 1
    return {
        "observations": rng.normal(size=(count + 1, 4)).astype(np.float32),
        "actions": rng.integers(2, size=count),
        "rewards": np.ones(count, np.float32),
        "terminations": last,
        "truncations": np.zeros(count, bool),
    }


def timed(seconds: float, most: int, commit: Callable[[], None]) -> float:
    """Commit for so many seconds, at least three times; return commits a second."""
    for _ in range(2):
        commit()
    began, done = time.perf_counter(), 0
    while done < 3 or (time.perf_counter() - began < seconds and done < most):
        commit()
        done += 1
    return done / (time.perf_counter() - began)


def run_store(folder: Path, way: str, size: int, seconds: float) -> float:
    """Commit steps to a store."""
    how, durability = way.split(", ")
    data = steps_of(size)
    rows = [(data["actions"][t], data["observations"][t + 1]) for t in range(size)]
    with (
        ReplayStore.create(folder / "bench.replay", SPEC, durability=durability) as store,
        store.writer() as writer,
    ):
        writer.reset(data["observations"][0])

        def by_step() -> None:
            for action, follows in rows:
                writer.step(action, 1.0, False, False, follows)  # noqa: FBT003  Gymnasium's own order
            store.commit()

        def by_episode() -> None:
            writer.write_episode(**data)
            store.commit()

        return timed(seconds, 200_000, by_step if how == "step" else by_episode)


def run_lmdb(folder: Path, way: str, size: int, seconds: float) -> float:
    """Put a value in a transaction of its own."""
    synced = way == "LMDB, synced"
    value, number = os.urandom(STEP_BYTES * size), 0
    environment = lmdb.open(
        str(folder / "bench.lmdb"), map_size=1 << 36, sync=synced, metasync=synced, lib_version=0, readahead=False
    )

    def commit() -> None:
        nonlocal number
        with environment.begin(write=True) as txn:
            txn.put(number.to_bytes(8, "big"), value)
        number += 1

    try:
        return timed(seconds, 200_000, commit)
    finally:
        environment.close()


def run_append(folder: Path, way: str, size: int, seconds: float) -> float:
    """Append to a file."""
    value = os.urandom(STEP_BYTES * size)
    fd = os.open(folder / "bench.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def commit() -> None:
        os.write(fd, value)
        if way == "append, fsync":
            os.fsync(fd)

    try:
        return timed(seconds, 20_000 if size > 100 else 200_000, commit)
    finally:
        os.close(fd)


def run(way: str, size: int, where: Path, seconds: float) -> float:
    """Measure one way once, in a folder that is gone afterwards; return commits a second."""
    folder = Path(tempfile.mkdtemp(prefix="bench-commit-", dir=where))
    try:
        work = run_lmdb if way.startswith("LMDB") else run_append if way.startswith("append") else run_store
        return work(folder, way, size, seconds)
    finally:
        shutil.rmtree(folder)


def measure(where: Path, sizes: Sequence[int], repeats: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Return commits a second of every repeat, by size and way."""
    found: dict[str, dict[str, list[float]]] = {str(size): {way: [] for way in WAYS} for size in sizes}
    with tqdm(total=len(sizes) * len(WAYS) * repeats, unit="run") as bar:
        run("step, process", 100, where, 0.1)  # whatever is slow the first time
        for repeat in range(repeats):
            for size in sizes:
                for way in WAYS if repeat % 2 else WAYS[::-1]:
                    found[str(size)][way].append(run(way, size, where, seconds))
                    bar.update()
    return found


def show(found: dict[str, dict[str, list[float]]]) -> None:
    """Print medians."""
    for size, ways in found.items():
        print(f"\n{int(size):,} steps a commit ({int(size) * STEP_BYTES:,} bytes)")
        print(f"{'':20}{'commits/s':>12}{'lowest':>12}{'highest':>12}{'steps/s':>14}{'MB/s':>10}{'ms a commit':>14}")
        for way, rates in ways.items():
            rate = statistics.median(rates)
            steps = rate * int(size)
            print(
                f"{way:20}{rate:12,.0f}{min(rates):12,.0f}{max(rates):12,.0f}{steps:14,.0f}"
                f"{steps * STEP_BYTES / 1e6:10.2f}{1000 / rate:14.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="steps a commit")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-commit-", dir=options.dir))
    try:
        found = measure(folder, options.sizes, options.repeats, options.seconds)
    finally:
        shutil.rmtree(folder)
    show(found)
    if options.json:
        about = {"machine": platform.platform(), "cpus": os.cpu_count(), "step_bytes": STEP_BYTES}
        options.json.write_text(json.dumps({**about, "commits_per_second": found}, indent=1))


if __name__ == "__main__":
    main()
