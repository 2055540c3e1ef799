"""What is on disk is plain zarr v3: other readers see the same bytes without this package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from diskreplay import ArraySpec, ReplayStore, StepSpec

READERS = {
    "zarr": "import zarr\na = lambda f: zarr.open_array(root + '/steps/' + f, mode='r')[:]",
    "tensorstore": (
        "import tensorstore as ts\n"
        "a = lambda f: ts.open({'driver': 'zarr3', 'kvstore': 'file://' + root + '/steps/' + f})"
        ".result().read().result()"
    ),
}
SCRIPT = """
import hashlib, json, sys
import numpy as np
root = sys.argv[1]
{reader}
episode, last, observation = a('episode'), a('is_last'), a('observation.image')
out = {{}}
for first in sorted(set(episode[episode >= 0].tolist())):
    rows = np.flatnonzero(episode == first)
    assert last[rows].tolist() == [False] * (len(rows) - 1) + [True]
    out[first] = hashlib.sha256(np.ascontiguousarray(observation[rows]).tobytes()).hexdigest()
out['rewards'] = a('reward')[(episode >= 0) & ~last].tolist()
out['actions'] = a('action')[(episode >= 0) & ~last].tolist()
assert 'diskreplay' not in sys.modules
print(json.dumps(out))
"""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("compression", ["auto", "zstd", "lz4", "lz4hc", "none"])
def test_other_readers_see_the_same_bytes(tmp_path, reader, compression):
    """zarr-python and tensorstore, in a process of their own, hash every episode as it was written."""
    import hashlib

    spec = StepSpec(
        {
            "image": ArraySpec("observation.image", (20, 20), "uint8"),
            "speed": ArraySpec("observation.speed", (2,), "float32"),
        },
        ArraySpec("action", (), "int64", "discrete", n=4),
    )
    rng, expected, rewards, actions = np.random.default_rng(0), {}, [], []
    store = ReplayStore.create(tmp_path / "x.replay", spec, segment_steps=32, compression=compression)
    with store.writer() as writer:
        for length in (1, 30, 40, 5, 70):
            image = np.zeros((length + 1, 20, 20), np.uint8)
            image[:, ::3] = rng.integers(3, size=(length + 1, 1, 1))
            act, gain = rng.integers(4, size=length), rng.normal(size=length).astype(np.float32)
            last = np.arange(length) == length - 1
            ids = writer.write_episode(
                {"image": image, "speed": np.zeros((length + 1, 2), np.float32)},
                act,
                gain,
                last,
                ~last & False,
            )
            expected[str(ids[0])] = hashlib.sha256(image.tobytes()).hexdigest()
            rewards += gain.tolist()
            actions += act.tolist()
    store.seal()
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(reader=READERS[reader]), str(tmp_path / "x.replay")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**expected, "rewards": rewards, "actions": actions}


def test_two_stores_open_the_same_state(make_store):
    """A store sealed, or not, opens with the same transitions."""
    from tests.conftest import fill

    store = make_store()
    ids = fill(store, episodes=7, length=9)
    store.commit()
    before = store.read(ids, n_step=3)
    other = ReplayStore.open(store.path)
    np.testing.assert_array_equal(other.read(ids, n_step=3).observation, before.observation)
    store.seal()
    assert other.refresh()
    assert not other.refresh()
    np.testing.assert_array_equal(other.read(ids, n_step=3).observation, before.observation)
    assert len(other) == len(store) == len(ids)
    other.close()
