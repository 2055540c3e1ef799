"""Make what the contestants read, once: rows as arrays, and stores of the same rows.

Everything lies under the data folder and is made under another name first, so that what is there is whole.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from benchmarks.rows import COLUMNS, Rows
from diskreplay import ArraySpec, PrioritizedSampler, ReplayStore, StepSpec
from diskreplay.ingest import ingest_gym

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = StepSpec(ArraySpec("observation", (1,), "uint8"), ArraySpec("action", (), "uint8", "discrete", n=4))
TINY_EPISODE = 1_000
BLOCK = 4_096


def atari(data: Path, game: str, steps: int) -> Path:
    """Return `recorded` of an Atari game."""
    return recorded(data, f"ALE/{game}-v5", steps)


def recorded(data: Path, env_id: str, steps: int) -> Path:
    """Return a folder with the store that `diskreplay ingest` makes of random play, and its rows."""

    def make(folder: Path) -> None:
        path = folder / "auto.replay"
        ingest_gym(path, env_id, steps=steps, num_envs=1, seed=0, commit_every=20_000)
        rows_of(path, {"env_id": env_id, "steps": steps}).save(folder / "rows")

    name = env_id.rpartition("/")[2].rpartition("-")[0].lower()
    return _once(data / f"{name}-{steps}", make)


def rows_of(path: Path, about: dict[str, Any]) -> Rows:
    """Read the rows of a sealed store of one stream, with zarr alone."""
    fields = {name: zarr.open_array(path / "steps" / name, mode="r") for name in (*COLUMNS, "episode")}
    kept = int(np.flatnonzero(np.asarray(fields.pop("episode")[:]) >= 0).max()) + 1
    columns = {name: np.empty((kept, *array.shape[1:]), array.dtype) for name, array in fields.items()}
    for begin in range(0, kept, BLOCK):
        part = slice(begin, min(begin + BLOCK, kept))
        for name, array in fields.items():
            columns[name][part] = array[part]
    return Rows(**columns, about=about)


def vectors(data: Path, steps: int, width: int = 17) -> Path:
    """Return a folder with rows of `width` floats a step, in episodes of 1,000 steps."""
    return _generated(data, f"vectors-{steps}", steps, (width,), "float32", (6,))


def noise(data: Path, steps: int, row_bytes: int = 8192) -> Path:
    """Return a folder with rows of random bytes, which nothing compresses, in episodes of 1,000 steps."""
    return _generated(data, f"noise-{steps}", steps, (row_bytes,), "uint8", ())


def store_of(folder: Path, compression: str, chunk_steps: int | None = None) -> Path:
    """Return a store of a folder's rows, sealed."""

    def make(path: Path) -> None:
        rows = Rows.load(folder / "rows", mapped=True)
        discrete = rows.action.ndim == 1
        action = ArraySpec("action", rows.action.shape[1:], rows.action.dtype.name,
                           **({"kind": "discrete", "n": 18} if discrete else {}))  # fmt: skip
        shape, dtype = rows.observation.shape[1:], rows.observation.dtype.name
        spec = StepSpec(ArraySpec("observation", shape, dtype), action)
        options: dict[str, Any] = {"compression": compression, "chunk_steps": chunk_steps, "durability": "process"}
        with ReplayStore.create(path, spec, **options) as store:
            with store.writer() as writer:
                for episode in rows.episodes():
                    write_episode(writer, rows, episode)
            store.seal()

    name = compression if chunk_steps is None else f"{compression}-{chunk_steps}"
    return _once(folder / f"{name}.replay", make, folder=False)


def write_episode(writer: Any, rows: Rows, episode: slice) -> None:
    """Write the rows of one episode to a stream."""
    steps = slice(episode.start, episode.stop - 1)
    writer.write_episode(
        rows.observation[episode], rows.action[steps], rows.reward[steps], rows.terminated[steps], rows.truncated[steps]
    )


def second_rows(folder: Path) -> Path:
    """Return a copy of a folder's rows: who reads them has none of the others' pages in the page cache."""
    return _once(folder / "rows-again", lambda path: shutil.copytree(folder / "rows", path), folder=False)


def tiny(data: Path, steps: int) -> Path:
    """Return a store of so many steps of a few bytes each, with committed priorities."""

    def make(path: Path) -> None:
        began = time.perf_counter()
        rng = np.random.default_rng(0)
        seen = rng.integers(256, size=(TINY_EPISODE + 1, 1)).astype(np.uint8)
        acted = rng.integers(4, size=TINY_EPISODE).astype(np.uint8)
        gained = rng.normal(size=TINY_EPISODE).astype(np.float32)
        ended = np.arange(TINY_EPISODE) == TINY_EPISODE - 1
        with ReplayStore.create(path, TINY, durability="process") as store:
            with store.writer() as writer:
                for _ in range(-(-steps // TINY_EPISODE)):
                    writer.write_episode(seen, acted, gained, ended, ~ended & False)
            store.seal()
            wrote = time.perf_counter() - began
            sampler = PrioritizedSampler(store, seed=0)
            for _ in range(100):
                sampler.update_priorities(sampler.draw(256).step_ids, rng.random(256))
            store.update_metadata({"write_seconds": wrote})
            store.commit()

    return _once(data / f"tiny-{steps}.replay", make, folder=False)


def _generated(data: Path, name: str, steps: int, shape: tuple[int, ...], dtype: str, action: tuple[int, ...]) -> Path:
    def make(folder: Path) -> None:
        episodes = max(1, steps // 1_000)
        count = steps + episodes
        rng = np.random.default_rng(0)
        is_last = np.zeros(count, np.bool_)
        is_last[np.linspace(0, count, episodes + 1).astype(int)[1:] - 1] = True
        cut = np.concatenate([is_last[1:], [False]])
        seen = rng.integers(256, size=(count, *shape), dtype=np.uint8) if dtype == "uint8" else None
        Rows(
            observation=rng.standard_normal((count, *shape), dtype=np.float32) if seen is None else seen,
            action=rng.standard_normal((count, *action), dtype=np.float32) if action else rng.integers(18, size=count),
            reward=rng.standard_normal(count, dtype=np.float32),
            terminated=np.zeros(count, np.bool_),
            truncated=cut,
            is_last=is_last,
            about={"steps": steps},
        ).save(folder / "rows")

    return _once(data / name, make)


def _once(path: Path, make: Callable[[Path], object], *, folder: bool = True) -> Path:
    if path.exists():
        return path
    partial = path.with_name(f"making-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if folder:
        partial.mkdir()
    make(partial)
    partial.rename(path)
    return path
