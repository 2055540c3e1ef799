"""Short form of write_order.py: logs of the project keep its rules, logs made to break one are caught."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.torture import shim
from tests.torture.write_order import INDEX, TEMPORARY, lint, run_under_shim

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
ROOT = "/root-of-the-log"
STORE = "a.replay"
FIELD = f"{STORE}/steps/reward"


def op(name, path, to="", *, data=b"", dsync=False, pid=1):
    return shim.Operation(name, dsync, pid, 0, f"{ROOT}/{path}".rstrip("/"), f"{ROOT}/{to}" if to else "", data)


def shard(number, *, pid=1):
    path = f"{FIELD}/c.{number}"
    return [
        op("CREATE", f"{path}.partial", pid=pid),
        op("WRITE", f"{path}.partial", data=b"rows", pid=pid),
        op("SYNC", f"{path}.partial", pid=pid),
        op("RENAME", f"{path}.partial", path, pid=pid),
        op("SYNC", FIELD, pid=pid),
    ]


def commit(*, pid=1):
    index = f"{STORE}/{INDEX}"
    return [
        op("WRITE", index, data=b"page", pid=pid),
        op("SYNC", index, pid=pid),
        op("WRITE", index, data=b"meta", dsync=True, pid=pid),
    ]


ACK = op("ACK", "")
MADE = [
    *[op("MKDIR", path) for path in (STORE, f"{STORE}/steps", FIELD, f"{STORE}/index.lmdb")],
    op("CREATE", f"{STORE}/{INDEX}"),
    *[op("SYNC", path) for path in ("", STORE, f"{STORE}/steps", f"{STORE}/index.lmdb")],
    *commit(),
    ACK,
]
SEALED = [*MADE, *shard(0), *commit(), ACK]
EVICTED = [*SEALED, *shard(1), *commit(), op("UNLINK", f"{FIELD}/c.0"), op("SYNC", FIELD), ACK]
CHECKPOINT = [
    op("MKDIR", "run"),
    op("SYNC", ""),
    op("CREATE", "run/checkpoint.next.pt.tmp"),
    op("WRITE", "run/checkpoint.next.pt.tmp", data=b"weights"),
    op("SYNC", "run/checkpoint.next.pt.tmp"),
    op("RENAME", "run/checkpoint.next.pt.tmp", "run/checkpoint.next.pt"),
    op("SYNC", "run"),
    *commit(),
    op("RENAME", "run/checkpoint.next.pt", "run/checkpoint.pt"),
    op("SYNC", "run"),
]


def rules(operations, *, ended=False):
    return {violation.rule for violation in lint(operations, ROOT, ended=ended).violations}


def leave_out(operations, pattern, name="SYNC"):
    return [each for each in operations if not (each.name == name and re.search(pattern, each.path))]


@pytest.mark.parametrize("good", [MADE, SEALED, EVICTED, [*MADE, *CHECKPOINT]])
def test_good_logs_keep_the_rules(good):
    assert rules(good, ended=True) == set()


def test_two_processes_are_told_apart():
    # The other one's shard is not in place yet, and its folder not synced, when this one commits.
    assert rules([*SEALED, *shard(1, pid=2)[:4], *commit(), ACK]) == set()
    assert rules([*SEALED, *shard(1)[:4], *commit(), ACK]) == {"R2", "R3"}


FORGOTTEN = {
    "a shard is not synced": ("R1", leave_out(SEALED, r"c\.0\.partial$")),
    "a shard is made in place": ("R1", [*SEALED, op("CREATE", f"{FIELD}/c.1")]),
    "a shard is synced before its last write": (
        "R1",
        [*MADE, *shard(0)[:3], op("WRITE", f"{FIELD}/c.0.partial", data=b"more"), *shard(0)[3:], *commit()],
    ),
    "the folder of a shard is not synced": ("R2", leave_out(SEALED, "steps/reward$")),
    "the folder is synced after the commit": ("R2", [*MADE, *shard(0)[:4], *commit(), shard(0)[4], ACK]),
    "pages are not synced before the meta page": ("R3", [*MADE, commit()[0], commit()[2], ACK]),
    "acknowledged, then committed": ("R3", [*SEALED, *shard(1), ACK, *commit()]),
    "acknowledged before the meta page": ("R3", [*SEALED, *commit()[:2], ACK, commit()[2]]),
    "acknowledged before the removal is synced": ("R3", [*EVICTED[:-2], ACK]),
    "a shard is written again": ("R4", [*SEALED, op("WRITE", f"{FIELD}/c.0", data=b"other")]),
    "a shard is cut off": ("R4", [*SEALED, op("TRUNCATE", f"{FIELD}/c.0")]),
    "a shard is replaced": ("R4", [*SEALED, *shard(0), *commit(), ACK]),
    "a shard is removed before the commit": (
        "R5",
        [*SEALED, op("UNLINK", f"{FIELD}/c.0"), op("SYNC", FIELD), *commit()],
    ),
    "a shard is moved before the commit": (
        "R5",
        [*SEALED, op("MKDIR", f"{STORE}/lost+found"), op("RENAME", f"{FIELD}/c.0", f"{STORE}/lost+found/c.0")],
    ),
    "a shard is removed among new ones": ("R5", [*SEALED, *commit(), *shard(1), op("UNLINK", f"{FIELD}/c.0")]),
    "a new folder is not synced": ("R6", [*MADE, op("MKDIR", f"{STORE}/steps/action"), *commit(), ACK]),
    "a checkpoint is not synced": ("R1", [*MADE, *leave_out(CHECKPOINT, r"\.tmp$")]),
    "a checkpoint's name is not synced": ("R2", [*MADE, *CHECKPOINT[:6], *CHECKPOINT[7:]]),
    "a checkpoint is written in place": ("R7", [*MADE, *CHECKPOINT, op("WRITE", "run/checkpoint.pt", data=b"again")]),
    "a checkpoint's last name is not synced": ("R7", [*MADE, *CHECKPOINT[:-1]]),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_each_rule_catches(what):
    rule, operations = FORGOTTEN[what]
    assert rule in rules(operations, ended=True)


@pytest.mark.parametrize("missing", ["zarr.json", INDEX])
def test_a_new_store_is_synced_before_it_is_in_place(missing):
    folder = f".{STORE}.partial"
    made = [
        op("MKDIR", folder),
        op("MKDIR", f"{folder}/index.lmdb"),
        *[op("CREATE", f"{folder}/{name}") for name in ("zarr.json", INDEX)],
        *[op("WRITE", f"{folder}/{name}", data=b"{}") for name in ("zarr.json", INDEX)],
        *[op("SYNC", f"{folder}/{name}") for name in ("zarr.json", "index.lmdb", INDEX, "")],
    ]
    placed = [op("RENAME", folder, STORE), op("SYNC", "")]
    assert rules([*made, *placed], ended=True) == set()
    assert rules([*leave_out(made, f"{missing}$"), *placed]) == {"R1"}
    assert rules([*leave_out(made, "index.lmdb$"), *placed]) == {"R1"}


def test_what_is_temporary():
    kept = (f"{FIELD}/c.0", f"{STORE}/zarr.json", f"{STORE}/{INDEX}", "run/checkpoint.pt", STORE)
    left = (f"{FIELD}/c.0.partial", f".{STORE}.0123.partial/zarr.json", f"{STORE}/locks/store", f"{STORE}/lost+found/x")
    assert not any(TEMPORARY.search(path) for path in kept)
    assert all(TEMPORARY.search(path) for path in left)


def test_commands_keep_the_rules(tmp_path):
    commands = (
        f"{sys.executable} -m diskreplay ingest cart.replay gym:CartPole-v1 --steps 600 --seed 1",
        f"{sys.executable} -m tests.torture.scenario life.replay --seed 0 --commits 30 --ack {tmp_path / 'ack'}",
    )
    linter, _ = run_under_shim([shlex.split(command) for command in commands], tmp_path)
    assert [str(violation) for violation in linter.violations] == []
    assert linter.stores == {"cart.replay", "life.replay"}
    assert linter.acknowledgements > 30
    assert linter.commit_points >= linter.acknowledgements - 2
