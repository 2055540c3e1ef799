"""Kill the scenario at every storage call; let every storage call fail.

"kill": the process dies in place of the k-th call. Then the store opens without help at the last commit that was
acknowledged, or the one that was on its way, every byte and priority is right, and it lives on.

"eio", "enospc", "short": the k-th call fails, or writes only half; once, or it and all that follow. The life goes on
undisturbed or stops with an error of diskreplay's own, a StoreFullError where there is no room. Once the calls work
again it goes on, with the same handle or a new one (after ENOSPC: the same); or the process leaves at the error. In
each case nothing that was acknowledged is lost.

"late": the k-th call is done, and reported as failed; sometimes all that follow fail. A commit may count that seemed
to fail.

In most of the lives that go on, more joins the commit that failed before it is tried again.

A call that needs no room is not failed with ENOSPC, and only writes are cut short: such a life would be undisturbed,
or be that of the next call that can fail so.

Not covered: failing reads, and calls that the shim does not see (memory maps, flock).

    python -m tests.torture.every_call --stride 10 --kinds kill,enospc
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tests.torture import shim, trial
from tests.torture.trial import Job, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KINDS = ("kill", "eio", "enospc", "short", "late")
WAYS = ({"forever": False}, {"forever": True}, {"forever": False, "leave": True}, {"forever": True, "leave": True})
ABLE = {
    "enospc": shim.NEED_ROOM,
    "short": {"WRITE"},
    "late": set(shim.OPERATIONS) - {"SYNC", "SYNCFS"},  # in memory, a sync that is done is as one that is not
}
SHOWN = 20


def points_of(kind: str, operations: Sequence[str], first: int = 1, stride: int = 1) -> list[int]:
    """Return the calls that can fail in a way, every n-th of them from some call on; the first call is 1."""
    able = ABLE.get(kind)
    points = [at for at, name in enumerate(operations, 1) if at >= first and (able is None or name in able)]
    return points[::stride]


def jobs_of(kind: str, points: Iterable[int], seed: int, commits: int, *, turn: int | None = None) -> Iterator[Job]:
    """Yield the trials of one kind; a turn: of the ways to fail each point has one, in turn, from this one on."""
    for number, point in enumerate(points):
        if kind == "kill":
            yield Job(kind, point, seed=seed, commits=commits)
            continue
        ways = WAYS[:2] if kind == "late" else WAYS
        for way in ways if turn is None else [ways[(number + turn) % len(ways)]]:
            yield Job(kind, point, seed=seed, commits=commits, **way)


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each kind."""
    for kind in KINDS:
        mine = [result for result in results if result.job.kind == kind]
        if not mine:
            continue
        errors = Counter(result.errors[0][0] for result in mine if result.errors)
        ways = Counter(result.went_on for result in mine if result.went_on)
        bad = sum(bool(result.problems) for result in mine)
        parts = [f"{count} {name}" for name, count in [*errors.most_common(), *ways.most_common()]]
        points = len({result.job.at for result in mine})
        yield f"{kind:7} {points:5} calls, {len(mine):6} lives, {bad} with problems; {', '.join(parts) or 'no errors'}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--stride", type=int, default=1, help="take every n-th call")
    parser.add_argument("--kinds", default=",".join(KINDS), help="any of " + ",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the scenario")
    parser.add_argument("--commits", type=int, default=trial.scenario.COMMITS)
    parser.add_argument("--first", type=int, default=1, help="begin at this call")
    parser.add_argument(
        "--in-turn",
        type=int,
        nargs="?",
        const=0,
        metavar="K",
        help="one way of failing a call, not all four; with 0 and 1 each call fails once and for good",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every result here")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    operations = trial.undisturbed(Job(seed=options.seed, commits=options.commits)).operations
    calls = len(operations)
    jobs = [
        job
        for kind in options.kinds.split(",")
        for job in jobs_of(
            kind,
            points_of(kind, operations, options.first, options.stride),
            options.seed,
            options.commits,
            turn=options.in_turn,
        )
    ]
    began = time.monotonic()
    results = list(tqdm(trial.run(jobs, workers=options.workers), total=len(jobs), unit="life", smoothing=0))
    seconds = time.monotonic() - began
    results.sort(key=lambda result: (KINDS.index(result.job.kind), result.job.at))
    print(f"{calls} storage calls in {options.commits} commits; {len(jobs) / seconds:.1f} lives a second")  # noqa: T201
    for line in table(results):
        print(line)  # noqa: T201
    bad = [result for result in results if result.problems]
    for result in bad[:SHOWN]:
        print(result.job, "; ".join(result.problems))  # noqa: T201
    if options.json:
        summary = {"calls": calls, "seconds": seconds, "seed": options.seed, "results": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(summary))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
