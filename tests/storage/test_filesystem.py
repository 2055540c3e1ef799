"""Stores on network file systems and in lower layers of overlays are refused; what to do is said."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from diskreplay import ReplayError, ReplayStore
from diskreplay.storage.filesystem import check_filesystem
from tests.conftest import fill

MOUNTS = r"""
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:40 / /home rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2,proto=tcp
31 30 8:1 / /home/me/disk rw,relatime - xfs /dev/sda1 rw
32 27 0:41 / /mnt/my\040share rw,relatime - cifs //server/share rw
33 27 0:42 / /data rw,nosuid - fuse.sshfs me@host:/data rw,user_id=0
34 27 0:43 / /local rw - fuse.ntfs-3g /dev/sdb1 rw
35 27 0:44 / /both rw - overlay overlay rw,lowerdir=/l,upperdir=/nowhere/u,workdir=/w
""".strip()


@pytest.mark.parametrize(
    "place",
    ["/home/a.replay/index.lmdb", "/home/me/a.replay", "/mnt/my share/a.replay", "/data/x"],
)
def test_network_file_systems_are_refused(tmp_path, place):
    """The message names the kind and the mount point, the hint the way out."""
    from pathlib import Path

    with pytest.raises(ReplayError, match="network file system") as caught:
        check_filesystem(Path(place), MOUNTS)
    assert "local disk" in caught.value.hint


@pytest.mark.parametrize("place", ["/tmp/a.replay", "/home/me/disk/a.replay", "/local/a", "/both/a", "/homes/a"])
def test_local_ones_are_not(place):
    """A mount below a network's is its own; a container's overlay may be written to."""
    from pathlib import Path

    check_filesystem(Path(place), MOUNTS)


def test_it_can_be_forced(monkeypatch):
    """At one's own risk."""
    from pathlib import Path

    monkeypatch.setenv("DISKREPLAY_ANY_FILESYSTEM", "1")
    check_filesystem(Path("/home/a.replay"), MOUNTS)


def test_create_and_open_look(make_store, monkeypatch, tmp_path):
    """Before anything is written."""
    store = make_store()
    store.close()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:40 / {tmp_path} rw - nfs4 server:/home rw\n")
    monkeypatch.setattr("diskreplay.storage.filesystem.MOUNTS", mounts)
    with pytest.raises(ReplayError, match="nfs4"):
        ReplayStore.open(store.path)
    with pytest.raises(ReplayError, match="nfs4"):
        make_store("other.replay")
    assert not list(tmp_path.glob("*other*"))


def test_a_lower_layer_of_a_real_overlay(make_store, tmp_path):
    """There the first write makes another file of it; a copy into the upper layer is fine."""
    store = make_store()
    fill(store)
    store.commit()
    store.close()
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower").mkdir()
    store.path.rename(tmp_path / "lower" / "a.replay")
    merged = tmp_path / "merged"
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    made = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=False)
    if made.returncode:
        pytest.skip("overlays cannot be mounted here")
    try:
        with pytest.raises(ReplayError, match="lower layer of the overlay") as caught:
            ReplayStore.open(merged / "a.replay")
        assert "Copy" in caught.value.hint
        shutil.copytree(merged / "a.replay", merged / "b.replay")
        with ReplayStore.open(merged / "b.replay", mode="a") as copy:
            fill(copy)
            copy.commit()
            assert copy.read(np.arange(10)).step_ids.tolist() == list(range(10))
            assert copy.verify() == []
    finally:
        subprocess.run(["umount", str(merged)], check=True)
