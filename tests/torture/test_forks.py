"""A short form of forks.py."""

from __future__ import annotations

import subprocess
import sys


def test_forks_while_threads_are_busy():
    """Of each kind; spawned ones and loaders by spawn are in the long form, as each takes seconds."""
    modes = "fork,fork-shutdown,mp-fork,forkserver"
    command = f"--count 16 --modes {modes} --readers 130 --commits 90 --stops 4 --longest 0.5 --loaders fork"
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.forks", *command.split()], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
