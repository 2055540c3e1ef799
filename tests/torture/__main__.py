"""Run every suite, one after the other, and print one table.

    python -m tests.torture               the counts that ARCHITECTURE.md reports, a soak of 5 minutes: some hours
    python -m tests.torture --full        a soak of 30 minutes, and every suite that ought to catch a planted fault
    python -m tests.torture --quick       a few trials of each: minutes, to see whether the suites run
    python -m tests.torture --only soak --only damage

A column that a suite does not count by itself is 0 where it has no problems, for a row that is lost or wrong is one.
What cannot be run here is listed as skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
FORMS = ("quick", "normal", "full")


@dataclass
class Row:
    """What a suite found; None where it does not say."""

    suite: str
    trials: int | None = None
    acknowledged: int | None = None
    lost: int | None = None
    wrong: int | None = None
    problems: int = 0
    seconds: float = 0.0
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def settle(self) -> Row:
        """Say 0 lost and 0 wrong where there were no problems at all."""
        if not self.problems and not self.note:
            self.lost, self.wrong = self.lost or 0, self.wrong or 0
        return self


class Suite(NamedTuple):
    """A suite: what to run in each form, and how to read what it says, from its JSON file and its standard output."""

    name: str
    module: str
    arguments: tuple[str, str, str]
    read: Callable[[Row, dict[str, Any], str], None]
    writes_json: bool = True


def read_summary(row: Row, data: dict[str, Any], _: str) -> None:
    """Read the summary that most suites write."""
    for name in ("trials", "acknowledged", "lost", "wrong", "problems"):
        setattr(row, name, data[name])
    row.details = {name: value for name, value in data.items() if name not in {"samples", "found"}}


def read_kills(row: Row, data: dict[str, Any], _: str) -> None:
    row.trials, row.acknowledged, row.problems = data["kills"], data["steps"], len(data["problems"])


def read_calls(row: Row, data: dict[str, Any], _: str) -> None:
    row.trials, row.acknowledged = len(data["results"]), sum(result["acked"] for result in data["results"])
    row.problems = sum(bool(result["problems"]) for result in data["results"])
    row.details = {name: data[name] for name in ("calls", "places", "moments") if name in data}


def number(pattern: str, text: str) -> int:
    """Return the sum of the numbers that a pattern finds."""
    return sum(int(found.replace(",", "")) for found in re.findall(pattern, text))


def read_states(row: Row, _: dict[str, Any], text: str) -> None:
    row.trials, row.acknowledged = number(r"([\d,]+) states,", text), number(r"([\d,]+) commits", text)
    row.problems = number(r"([\d,]+) with problems", text)


def read_order(row: Row, _: dict[str, Any], text: str) -> None:
    last = text.strip().splitlines()[-1]
    row.trials, row.acknowledged = number(r"in ([\d,]+) calls", last), number(r"([\d,]+) acknowledgements", last)
    row.problems = number(r"([\d,]+) violations", last)


def read_cuts(row: Row, _: dict[str, Any], text: str) -> None:
    row.trials = number(r": ([\d,]+) cuts of", text) or number(r"([\d,]+) full disks", text)
    row.acknowledged = number(r"([\d,]+) commits acknowledged", text)
    row.problems = number(r"([\d,]+) problems", text)


SUITES = (
    Suite("kill -9 at random", "kill_random", ("--kills 30", "--kills 10000", "--kills 10000"), read_kills),
    Suite(
        "kill at every call", "every_call",
        ("--kinds kill --stride 60", "--kinds kill", "--kinds kill"), read_calls,
    ),
    Suite(
        "every failing call", "every_call",
        ("--kinds eio,enospc,short --stride 120 --in-turn", *["--kinds eio,enospc,short --commits 40"] * 2),
        read_calls,
    ),
    Suite(
        "done, yet failed", "every_call",
        ("--kinds late --stride 100 --in-turn", *["--kinds late --commits 40"] * 2), read_calls,
    ),
    Suite("interrupts", "interrupts", ("--count 20", "", ""), read_calls),
    Suite("power cut, ext4", "power_cut", ("--fs ext4 --cuts 3", *["--fs ext4 --cuts 200"] * 2), read_cuts, False),
    Suite("power cut, XFS", "power_cut", ("--fs xfs --cuts 3", *["--fs xfs --cuts 200"] * 2), read_cuts, False),
    Suite("full disk", "power_cut", ("--full 1", "--full 20", "--full 20"), read_cuts, False),
    Suite("op-log states", "oplog", ("--states 100 --stride 50", *["--states 10000"] * 2), read_states, False),
    Suite("write order", "write_order", ("", "", ""), read_order, False),
    Suite("damage", "damage", ("--count 60", "--count 6000", "--count 6000"), read_summary),
    Suite("exchanged pages", "pages", ("--stride 60", "", ""), read_summary),
    Suite("forks", "forks", (
        "--count 24 --modes fork,fork-shutdown,mp-fork,forkserver --stops 4 --longest 0.5 --loaders fork --commits 90",
        *["--count 1000 --timer --longest 10"] * 2,
    ), read_summary),
    Suite("soak", "soak", ("--minutes 0.25", "--minutes 5", "--minutes 30"), read_summary),
    Suite("planted faults", "planted", ("", "", "--all"), read_summary),
)  # fmt: skip


def run(suite: Suite, form: str, *, show: bool) -> Row:
    """Run a suite and read what it says."""
    row, began = Row(suite.name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        to = Path(name) / "found.json"
        command = [sys.executable, "-m", f"tests.torture.{suite.module}", *suite.arguments[FORMS.index(form)].split()]
        command += ["--json", str(to)] if suite.writes_json else []
        done = subprocess.run(
            command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=None if show else subprocess.PIPE
        )
        row.seconds = round(time.monotonic() - began, 1)
        if done.returncode == SKIPPED:
            row.note = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "skipped"
            return row
        try:
            suite.read(row, json.loads(to.read_text()) if suite.writes_json else {}, done.stdout)
        except (OSError, ValueError, KeyError, IndexError) as err:
            row.problems, row.note = 1, f"ended with {done.returncode} and said nothing that could be read: {err!r}"
        if not row.trials and not row.problems:
            row.problems, row.note = 1, "nothing was tried, or its count could not be read"
        if done.returncode and not row.problems:
            row.problems, row.note = 1, f"ended with {done.returncode}"
        if row.problems:
            print(f"--- {suite.name}\n{done.stdout[-6000:]}{'' if show else (done.stderr or '')[-3000:]}\n---")  # noqa: T201
    return row.settle()


def line(row: Row) -> str:
    """Return a line of the table."""
    counts = (row.trials, row.acknowledged, row.lost, row.wrong, row.problems)
    cells = "".join(f"{'-' if count is None else format(count, ','):>13}" for count in counts)
    return f"{row.suite:20}{cells}{row.seconds:10,.0f}  {row.note}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--quick", action="store_const", dest="form", const="quick", default="normal")
    forms.add_argument("--short", action="store_const", dest="form", const="normal", help="the default")
    forms.add_argument("--full", action="store_const", dest="form", const="full")
    parser.add_argument(
        "--only", action="append", default=[], choices=[suite.name for suite in SUITES], metavar="SUITE"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = []
    print(f"{'suite':20}{'trials':>13}{'acknowledged':>13}{'lost':>13}{'wrong':>13}{'problems':>13}{'seconds':>10}")  # noqa: T201
    for suite in SUITES:
        if options.only and suite.name not in options.only:
            continue
        rows.append(run(suite, options.form, show=sys.stderr.isatty()))
        print(line(rows[-1]), flush=True)  # noqa: T201
        if options.json:
            found = {"form": options.form, "cpus": os.cpu_count(), "suites": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(found, indent=1))
    bad = [row.suite for row in rows if row.problems]
    print(f"problems in: {', '.join(bad)}" if bad else "no problems")  # noqa: T201
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
