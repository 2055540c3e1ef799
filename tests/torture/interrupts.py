"""Interrupt the scenario at moments taken at random, and go on.

The life goes on with the same handle, where that takes what was interrupted for whole; else it says so, with an error
of diskreplay's own, and a new handle goes on from the last commit. Nothing that was acknowledged is lost, nothing is
there by halves, nobody waits for a lock for ever.

    python -m tests.torture.interrupts --count 2000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tests.torture import trial
from tests.torture.trial import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 20


def jobs_of(moments: int, count: int, seed: int, commits: int) -> list[Job]:
    """Return interrupts at moments taken at random, each once."""
    at = random.Random(seed).sample(range(1, moments + 1), min(count, moments))
    return [Job("interrupt", moment, seed=seed, commits=commits) for moment in sorted(at)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commits", type=int, default=trial.scenario.COMMITS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every result here")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    moments = trial.undisturbed(Job("interrupt", seed=options.seed, commits=options.commits)).moments
    jobs = jobs_of(moments, options.count, options.seed, options.commits)
    began = time.monotonic()
    results = list(tqdm(trial.run(jobs, workers=options.workers), total=len(jobs), unit="life", smoothing=0))
    seconds = time.monotonic() - began
    bad = [result for result in results if result.problems]
    ways = Counter(result.went_on or "undisturbed" for result in results)
    parts = ", ".join(f"{count} {way}" for way, count in ways.most_common())
    print(f"{len(results)} of {moments} moments, {len(bad)} with problems; {parts}; {len(jobs) / seconds:.1f} a second")  # noqa: T201
    for result in bad[:SHOWN]:
        print(result.job, "; ".join(result.problems))  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps({"moments": moments, "results": [asdict(r) for r in results]}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
