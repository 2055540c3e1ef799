"""Run every check, one line per stage with its seconds; stop at the first that fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

STAGES: tuple[tuple[str, list[str]], ...] = (
    ("format", [str(BIN / "ruff"), "format", "--check", "--quiet", "."]),
    ("lint", [str(BIN / "ruff"), "check", "--quiet", "."]),
    ("types", [str(BIN / "mypy")]),
    ("contracts", [str(BIN / "lint-imports"), "--no-logo"]),
    ("tests", [sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow", *sys.argv[1:]]),
)


def main() -> int:
    """Run the stages in order; return the first exit status that is not 0."""
    for name, command in STAGES:
        started = time.monotonic()
        last = name == "tests"
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=not last, text=True)
        seconds = time.monotonic() - started
        print(
            f"{'ok  ' if done.returncode == 0 else 'FAIL'} {name:<10} {seconds:6.1f} s",
            flush=True,
        )
        if done.returncode != 0:
            if not last:
                print(done.stdout, done.stderr, sep="\n")
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
