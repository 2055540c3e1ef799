"""What do real Atari steps take on disk, and does every zarr reader see the bytes the emulator gave?

    python benchmarks/bench_atari_disk.py FOLDER [--games Breakout Seaquest] [--steps 100000]

Every observation that leaves the environment is hashed, episode by episode, on its way to the store. Afterwards
zarr-python and tensorstore, each in a process that does not import diskreplay, hash the episodes they find in
`steps/`, and the hashes are compared. Prints one JSON line a game.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np

from diskreplay import ReplayStore
from diskreplay.ingest import environments, ingest_gym

READERS = {
    "zarr": "import zarr\na = lambda f: zarr.open_array(root + '/steps/' + f, mode='r')",
    "tensorstore": (
        "import tensorstore as ts\n"
        "spec = lambda f: {'driver': 'zarr3', 'kvstore': 'file://' + root + '/steps/' + f}\n"
        "a = lambda f: ts.open(spec(f)).result()"
    ),
}
SCRIPT = """
import hashlib, json, sys
import numpy as np
root = sys.argv[1]
{reader}
read = lambda f, rows=slice(None): np.asarray(a(f)[rows])
episode, ended = read('episode'), read('terminated') | read('truncated')
live = np.flatnonzero(episode >= 0)
finished = set(episode[np.flatnonzero(ended & (episode >= 0))].tolist())
hashes = dict((first, hashlib.sha256()) for first in sorted(finished))
for start in range(0, int(live.max()) + 1, 4096):
    frames, owners = read('observation', slice(start, start + 4096)), episode[start:start + 4096]
    for owner in np.unique(owners[owners >= 0]).tolist():
        if owner in hashes:
            hashes[owner].update(np.ascontiguousarray(frames[owners == owner]).tobytes())
assert 'diskreplay' not in sys.modules
print(json.dumps(sorted(h.hexdigest() for h in hashes.values())))
"""
ENVS = 4
finished: list[str] = []


class Hashing(gymnasium.Wrapper):
    """Hash the observations of every episode as they leave the environment."""

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.hash = hashlib.sha256(np.ascontiguousarray(observation).tobytes())
        return observation, info

    def step(self, action):
        result = self.env.step(action)
        self.hash.update(np.ascontiguousarray(result[0]).tobytes())
        if result[2] or result[3]:
            finished.append(self.hash.hexdigest())
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--games", nargs="+", default=["Breakout", "Seaquest"])
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    make = environments._make_in_worker
    environments._make_in_worker = lambda env_id: Hashing(make(env_id))
    for game in options.games:
        finished.clear()
        path = options.folder / f"{game.lower()}.replay"
        report = ingest_gym(
            path, f"ALE/{game}-v5", steps=options.steps, num_envs=ENVS, seed=0, progress=sys.stderr.isatty()
        )
        with ReplayStore.open(path) as store:
            stats = store.stats()
        result = {
            "game": game,
            "steps": stats.steps,
            "steps_per_second": round(report.steps_per_second),
            "bytes_per_step": round(stats.bytes_on_disk / stats.steps, 1),
            "times_smaller_than_84x84": round(84 * 84 * stats.steps / stats.bytes_on_disk, 1),
        }
        for name, reader in READERS.items():
            command = [sys.executable, "-c", SCRIPT.format(reader=reader), str(path)]
            seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            # The last call may step some environments past the steps that were asked for.
            assert set(seen) <= set(finished)
            assert len(finished) - len(seen) < ENVS
            result[name] = f"the same bytes in {len(seen)} of {len(finished)} episodes"
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
