"""Short form of power_cut.py, where there is root and loop devices."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.torture import power_cut


def run(*arguments):
    reason = power_cut.missing(arguments[1] if arguments[0] == "--fs" else "ext4")
    if reason is not None:
        pytest.skip(reason)
    # A process of its own, for it leaves everybody else's mount namespace.
    command = [sys.executable, "-m", "tests.torture.power_cut", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_acknowledged_commits_survive_power_cuts(file_system):
    done = run("--fs", file_system, "--cuts", "3", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"3 cuts of 1 stores, (\d+) commits acknowledged, 0 problems", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 0


@pytest.mark.slow
def test_a_full_disk():
    done = run("--full", "1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_why_it_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert power_cut.missing() == "needs root, to mount"
