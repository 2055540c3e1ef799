"""Interrupt the scenario at every place where an interrupt can come, once each, and go on.

The life goes on with the same handle, where that takes what was interrupted for whole; else it says so, with an error
of diskreplay's own, and a new handle goes on from the last commit. Nothing that was acknowledged is lost, nothing is
there by halves, nobody waits for a lock for ever.

    python -m tests.torture.interrupts
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
    from collections.abc import Mapping, Sequence

SHOWN = 20


def jobs_of(places: Mapping[str, int], count: int, seed: int, commits: int) -> list[Job]:
    """Return an interrupt at each of so many places, all if there are fewer; at which moment is left to chance."""
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(count, len(places)))
    return [
        Job("interrupt", rng.randint(1, places[place]), place=place, seed=seed, commits=commits) for place in chosen
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=sys.maxsize, help="so many of the places, not all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commits", type=int, default=trial.scenario.COMMITS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every result here")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    places = trial.undisturbed(Job("interrupt", seed=options.seed, commits=options.commits)).places
    jobs = jobs_of(places, options.count, options.seed, options.commits)
    began = time.monotonic()
    results = list(tqdm(trial.run(jobs, workers=options.workers), total=len(jobs), unit="life", smoothing=0))
    seconds = time.monotonic() - began
    bad = [result for result in results if result.problems]
    ways = Counter(result.went_on or "undisturbed" for result in results)
    parts = ", ".join(f"{count} {way}" for way, count in ways.most_common())
    print(  # noqa: T201
        f"{len(results)} of {len(places)} places, {len(bad)} with problems; {parts}; {len(jobs) / seconds:.1f} a second"
    )
    for result in bad[:SHOWN]:
        print(result.job, "; ".join(result.problems))  # noqa: T201
    if options.json:
        options.json.write_text(
            json.dumps(
                {"places": len(places), "moments": sum(places.values()), "results": [asdict(r) for r in results]}
            )
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
