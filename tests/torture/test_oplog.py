"""Short form of oplog.py, and what its model of a file system must know."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tests.torture import shim
from tests.torture.oplog import FileSystem, Recording, check_states, record

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
ROOT = "/root-of-the-log"
DRAWS = 200
SEED = 1


def op(name, path, data=b"", offset=0, *, to="", dsync=False, pid=1):
    return shim.Operation(name, dsync, pid, offset, f"{ROOT}/{path}".rstrip("/"), f"{ROOT}/{to}" if to else "", data)


def replay(*operations):
    files = FileSystem(ROOT)
    for operation in operations:
        files.apply(operation)
    return files


def draws(files, *, strict=True):
    """Return the distinct states among some draws, and how many they are of each."""
    return Counter(tuple(sorted(files.draw(random.Random(seed), strict=strict).items())) for seed in range(DRAWS))


WRITTEN = (op("CREATE", "a"), op("WRITE", "a", b"x" * 1024))
NAMED = op("SYNC", "")


class TestData:
    def test_what_is_not_synced_may_be_lost(self):
        files = replay(*WRITTEN, NAMED)
        assert files.everything() == {"a": b"x" * 1024}
        assert files.durable() == {"a": b""}
        assert {(), (("a", b""),), (("a", b"x" * 1024),)} & set(draws(files)) == {(("a", b""),), (("a", b"x" * 1024),)}

    def test_what_is_synced_stays(self):
        files = replay(*WRITTEN, NAMED, op("SYNC", "a"))
        assert files.durable() == files.everything() == {"a": b"x" * 1024}
        assert len(draws(files)) == 1
        assert not files.dirty

    def test_a_write_is_torn_at_sectors(self):
        states = draws(replay(*WRITTEN, NAMED))
        assert (("a", bytes(512) + b"x" * 512),) in states
        assert (("a", b"x" * 512),) in states
        assert (("a", b"x" * 512 + bytes(512)),) in states
        assert {len(dict(state)["a"]) % 512 for state in states} == {0}

    def test_a_later_write_without_an_earlier_one_leaves_zeros(self):
        files = replay(*WRITTEN, op("WRITE", "a", b"y" * 512, 1024), NAMED)
        assert (("a", bytes(1024) + b"y" * 512),) in draws(files)

    def test_a_sector_holds_what_the_cache_held_at_some_time(self):
        old, new = op("WRITE", "a", b"old" + b"." * 509), op("WRITE", "a", b"new", 256)
        states = {dict(state)["a"] for state in draws(replay(op("CREATE", "a"), NAMED, old, new))}
        # The second write went to a page that had the first one in it: it cannot be there alone.
        assert {state[:3] for state in states if state[256:259] == b"new"} == {b"old"}
        assert b"old" + b"." * 509 in states

    def test_dsync_covers_its_own_sectors_only(self):
        files = replay(*WRITTEN, NAMED, op("WRITE", "a", b"meta", 2048, dsync=True))
        assert files.durable() == {"a": bytes(2048) + b"meta"}
        assert all(dict(state)["a"].endswith(b"meta") for state in draws(files))
        assert len(draws(files)) == 4

    def test_dsync_is_not_undone_by_an_earlier_write(self):
        files = replay(*WRITTEN, NAMED, op("WRITE", "a", b"y" * 512, dsync=True))
        assert {dict(state)["a"][:512] for state in draws(files)} == {b"y" * 512}

    def test_dsync_takes_along_what_shares_its_sectors(self):
        files = replay(op("CREATE", "a"), NAMED, op("WRITE", "a", b"early"), op("WRITE", "a", b"late", 100, dsync=True))
        assert files.durable() == {"a": b"early" + bytes(95) + b"late"}
        assert not files.dirty

    @pytest.mark.parametrize("size", [0, 100, 4096])
    def test_a_change_of_size_is_pending_too(self, size):
        files = replay(*WRITTEN, NAMED, op("SYNC", "a"), op("TRUNCATE", "a", offset=size))
        full = b"x" * 1024
        assert files.everything() == {"a": (full + bytes(4096))[:size]}
        assert files.durable() == {"a": full}
        assert len(draws(files)) == 2

    def test_allocation_never_shortens(self):
        files = replay(*WRITTEN, op("ALLOCATE", "a", offset=100), op("ALLOCATE", "a", offset=2048))
        assert files.everything() == {"a": b"x" * 1024 + bytes(1024)}


class TestNames:
    @pytest.mark.parametrize("strict", [False, True])
    def test_a_name_needs_its_folder_synced(self, strict):
        files = replay(*WRITTEN, op("SYNC", "a"))
        assert files.durable() == {}
        assert set(draws(files, strict=strict)) == {(), (("a", b"x" * 1024),)}
        assert len(draws(replay(*WRITTEN, op("SYNC", "a"), NAMED), strict=strict)) == 1

    def test_a_rename_keeps_one_of_both(self):
        files = replay(*WRITTEN, op("SYNC", "a"), NAMED, op("RENAME", "a", to="b"))
        assert set(draws(files)) == {((name, b"x" * 1024),) for name in "ab"}

    def test_renaming_over_a_file_keeps_the_old_or_the_new(self):
        old = (op("CREATE", "b"), op("WRITE", "b", b"old"), op("SYNC", "b"), NAMED)
        new = (op("CREATE", "c"), op("WRITE", "c", b"new"), op("SYNC", "c"), op("RENAME", "c", to="b"))
        assert {dict(state)["b"] for state in draws(replay(*old, *new))} == {b"old", b"new"}

    def test_renaming_before_the_sync_loses_both(self):
        old = (op("CREATE", "b"), op("WRITE", "b", b"old"), op("SYNC", "b"), NAMED)
        new = (op("CREATE", "c"), op("WRITE", "c", b"new"), op("RENAME", "c", to="b"), NAMED)
        assert {dict(state)["b"] for state in draws(replay(*old, *new))} == {b"", b"new", bytes(3)}

    def test_only_strictly_may_the_second_name_come_alone(self):
        files = replay(op("CREATE", "a"), op("CREATE", "b"))
        assert (("b", b""),) in draws(files, strict=True)
        assert (("b", b""),) not in draws(files, strict=False)

    def test_changes_of_one_name_stay_in_order(self):
        files = replay(op("CREATE", "a"), NAMED, op("UNLINK", "a"), op("MKDIR", "a"))
        assert set(draws(files)) == {(("a", b""),), (), (("a", None),)}

    def test_a_folder_without_a_name_takes_its_files_along(self):
        files = replay(op("MKDIR", "d"), op("CREATE", "d/a"), op("SYNC", "d/a"), op("SYNC", "d"))
        assert files.durable() == {}
        assert files.everything() == {"d": None, "d/a": b""}
        assert replay(*[op("MKDIR", "d"), NAMED, op("CREATE", "d/a"), op("SYNC", "d")]).durable() == {
            "d": None,
            "d/a": b"",
        }

    def test_a_file_goes_on_under_its_new_name(self):
        files = replay(
            *WRITTEN, op("MKDIR", "d"), op("RENAME", "a", to="d/b"), op("SYNC", "d/b"), op("SYNC", "d"), NAMED
        )
        assert files.durable() == {"d": None, "d/b": b"x" * 1024}

    def test_a_link_is_a_second_name(self):
        files = replay(*WRITTEN, op("LINK", "a", to="b"), op("UNLINK", "a"), op("SYNC", "b"), NAMED)
        assert files.durable() == {"b": b"x" * 1024}

    def test_syncfs_covers_everything(self):
        files = replay(*WRITTEN, op("MKDIR", "d"), op("CREATE", "d/a"), op("SYNCFS", ""))
        assert files.durable() == files.everything()
        assert not files.dirty

    def test_what_was_never_made_is_an_error(self):
        with pytest.raises(ValueError, match="never made"):
            replay(op("WRITE", "a", b"x"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"), seed=SEED, commits=16, kills=(250,))


def without(recording, folder, unwanted):
    """Return a recording that lacks some calls."""
    log, kept = recording.log.read_bytes(), b""
    for operation in recording.operations:
        length = 4 + int.from_bytes(log[:4], "little")
        kept += b"" if unwanted(operation) else log[:length]
        log = log[length:]
    (folder / "ops.log").write_bytes(kept)
    return Recording(recording.root, recording.seed, folder / "ops.log")


def test_model_and_disk_end_the_same(recording, tmp_path):
    tree = recording.end.everything()
    root = recording.log.parent / "root"
    found = {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.name != "lock.mdb"  # written through a memory map
    }
    assert found == {path: content for path, content in tree.items() if not path.endswith("lock.mdb")}


def test_states_of_a_life(recording):
    crashes = [*recording.prefixes(stride=60), *recording.random_states(300, seed=0)]
    tally = check_states(recording, crashes)
    assert [str(problem) for problem in tally.problems] == []
    assert sum(tally.checked.values()) == len(crashes)
    assert tally.distinct["random"] > 250


@pytest.mark.parametrize("pattern", ["/c[.][^/]*[.]partial$", "/steps/[a-z_.]+$", "data[.]mdb$"])
def test_missing_syncs_are_found(recording, tmp_path, pattern):
    forgetful = without(recording, tmp_path, lambda op: op.name == "SYNC" and re.search(pattern, op.path))
    tally = check_states(forgetful, forgetful.random_states(12, seed=0))
    assert tally.problems


def test_states_are_the_same_when_drawn_again(recording):
    crashes = recording.random_states(20, seed=3)
    first = dict(recording.states(sorted(crashes), 3))
    for crash in crashes[:5]:
        assert recording.crash(str(crash), 3) == crash
        assert dict(recording.states([crash], 3)) == {crash: first[crash]}
