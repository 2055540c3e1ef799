"""Signals and closed pipes, in processes of their own."""

import json
import signal
import subprocess
import sys
import time

import pytest

from diskreplay.store import ReplayStore


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "diskreplay", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(path, count):
    """Wait until another process has committed so many steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists():
            with ReplayStore.open(path) as store:
                if len(store) >= count:
                    return
        time.sleep(0.05)
    pytest.fail("nothing was committed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_and_says_how_many_steps_are_kept(tmp_path, number):
    store = tmp_path / "s.replay"
    process = start("ingest", store, "gym:CartPole-v1", "--steps", 10**8, "--commit-every", 200, "--json")
    wait_for_steps(store, 400)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    report = json.loads(out)
    assert report["interrupted"] is True
    assert f"Interrupted: the {report['steps']:,} new steps are kept in {store}." in err
    assert "Traceback" not in err
    with ReplayStore.open(store) as opened:
        assert len(opened) == report["steps"] >= 400
        assert opened.stats().to_json()["tail_steps"] == 0
        assert opened.verify() == []


def test_kill_keeps_what_was_committed(tmp_path):
    store = tmp_path / "s.replay"
    process = start("ingest", store, "gym:CartPole-v1", "--steps", 10**8, "--commit-every", 200)
    wait_for_steps(store, 400)
    process.kill()
    process.communicate(timeout=60)
    with ReplayStore.open(store) as opened:
        before = len(opened)
        assert before >= 400
    process = start("ingest", store, "gym:CartPole-v1", "--steps", 100)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    with ReplayStore.open(store) as opened:
        assert len(opened) == before + 100
        assert opened.verify() == []


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    with start("ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 20) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
