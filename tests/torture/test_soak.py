"""A short form of soak.py; what grows can only be seen in the long one."""

from __future__ import annotations

import subprocess
import sys


def test_many_processes_for_some_seconds():
    command = "--minutes 0.15 --writers 3 --readers 2 --kill-every 1.5 --capacity 40000"
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.soak", *command.split()], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost, 0 wrong, 0 problems" in done.stdout
