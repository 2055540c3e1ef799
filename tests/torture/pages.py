"""Exchange every two pages of a store's index, and put every page of an older state of it back; see damage.py.

LMDB has no checksums, and a record on such a page is sound in itself. What LMDB makes of the pages of its own trees
(an assertion that ends the process, now and then) is counted apart, by name: `died`. Nothing else may go unnoticed: a
wrong row, or a store that opens without a word as it was some commits ago, is a problem.

    python -m tests.torture.pages                every pair, every older page: about 20 minutes
    python -m tests.torture.pages --stride 50    every 50th of them
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from diskreplay.storage import layout
from tests.torture.damage import (
    PAGE,
    Base,
    Trial,
    build_apart,
    copy,
    examine,
    in_child,
    judge_verify,
    observe,
    put,
    report,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INDEX = f"{layout.INDEX}/data.mdb"


def exchanges(data: bytes, stale: bytes) -> list[tuple[str, Callable[[], bytes]]]:
    """Return what can be done to an index: (in words, its content then)."""

    def page(content: bytes, number: int) -> bytes:
        return content[number * PAGE : (number + 1) * PAGE]

    def with_pages(pages: dict[int, bytes]) -> Callable[[], bytes]:
        def made() -> bytes:
            out = bytearray(data)
            for number, content in pages.items():
                out[number * PAGE : (number + 1) * PAGE] = content
            return bytes(out)

        return made

    count = len(data) // PAGE
    older = [n for n in range(min(count, len(stale) // PAGE)) if page(stale, n) != page(data, n)]
    found = [(f"page {n} of some commits ago", with_pages({n: page(stale, n)})) for n in older]
    found += [
        (f"pages {one} and {two} exchanged", with_pages({one: page(data, two), two: page(data, one)}))
        for one, two in combinations(range(count), 2)
        if page(data, one) != page(data, two)
    ]
    return found


def run(number: int, how: str, content: bytes, base: Base, folder: Path) -> Trial:
    """Do one trial in a process of its own."""
    trial = Trial(number, base.path.stem, "index", how)
    shutil.rmtree(folder, ignore_errors=True)
    store = folder / "damaged.replay"
    store.mkdir(parents=True)
    copy(base, store)
    put(store / INDEX, content)
    rng = random.Random(number)
    status, got, stderr = in_child(lambda: examine(store, base, rng, trial), folder)
    if got is None:
        trial.outcome = "hung" if status == -signal.SIGALRM else "died"
        trial.lines = [signal.Signals(-status).name if status < 0 else f"exit code {status}", *stderr]
        return trial
    judge_verify(got, "index", [INDEX])
    return got


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    began, trials = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="pages-") as name:
        base = build_apart(Path(name))[0]
        observe(base.path)  # compiles what each child then has
        done = list(enumerate(exchanges((base.path / INDEX).read_bytes(), base.stale)))
        for number, (how, content) in tqdm(
            done[options.first :: options.stride], disable=not sys.stderr.isatty(), unit="trial"
        ):
            trials.append(run(number, how, content(), base, Path(name) / "trial"))
    seconds = time.monotonic() - began
    report(trials, seconds)
    bad = [trial for trial in trials if trial.bad and trial.outcome != "died"]
    bad += [trial for trial in trials if trial.rolled_back]
    if options.json:
        options.json.write_text(json.dumps({**summary(trials, seconds), "problems": len(bad)}, indent=1))
    for trial in bad[:30]:
        print(trial)  # noqa: T201
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
