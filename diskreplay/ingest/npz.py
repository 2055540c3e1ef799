"""Ingest a numpy archive of episodes.

Each file gets a stream of its own, named after its content and the columns that were chosen by hand, so that
the same file is never taken in twice, and one that was interrupted goes on at the episode where it stopped.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import SourceError, SpecMismatchError
from diskreplay.experience import ArraySpec, StepSpec
from diskreplay.experience.validation import check_array, check_flags, check_rewards
from diskreplay.ingest.archive import Archive
from diskreplay.ingest.columns import Columns, EpisodeCutter
from diskreplay.ingest.destination import open_destination
from diskreplay.ingest.environments import canonical_id, make_env, preprocessing
from diskreplay.ingest.progress import IngestReport, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from diskreplay.store import ReplayStore

NAMES: dict[str, tuple[str, ...]] = {
    "observations": ("observations",),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminations", "terminals"),
    "truncations": ("truncations", "timeouts"),
    "next_observations": ("next_observations",),
}
OPTIONAL = frozenset({"truncations", "next_observations"})


def ingest_npz(
    store_path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    steps: int | None = None,
    env_id: str | None = None,
    max_bytes: int | None = None,
    commit_every: int = 5_000,
    capacity: int | str | None = None,
    segment_steps: int | None = None,
    compression: str | None = None,
    chunk_steps: int | None = None,
    durability: str | None = None,
    seal: bool = True,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Add the episodes of an `.npz` file to a store, which is created if there is none.

    Args:
        store_path: The store.
        file: An archive with observations, actions, rewards, terminations (or terminals), and
            perhaps truncations (or timeouts) and next_observations, laid out as
            `diskreplay.ingest.columns` shows.
        columns: Names in the file, where they are others: {"observations": "obs"}.
        steps: Stop after the episode that reaches so many steps; None takes all.
        env_id: The Gymnasium environment the data come from: gives a new store its spec, and
            training an environment to evaluate in.
        max_bytes: Refuse arrays that take more memory; None allows half of the machine's.
        commit_every: Commit after so many steps; also every few seconds.
        capacity: For a new store: see `ReplayStore.create`.
        segment_steps: For a new store, likewise.
        compression: For a new store, likewise.
        chunk_steps: For a new store, likewise.
        durability: For a new store, likewise.
        seal: Turn everything into segments at the end.
        progress: Draw a bar on stderr.
        stop: Asked between episodes; once true, what was taken in is committed and reported.

    Returns:
        What was taken in; its notes name steps that were not.

    Raises:
        SourceError: If the file cannot be read, its columns do not fit each other or the store, or the store
            has it with other columns.
    """
    if commit_every < 1 or (steps is not None and steps < 1):
        raise ValueError("require steps, commit_every >= 1")
    with Archive(file, max_bytes=max_bytes) as archive:
        found = _find(archive, columns or {})
        arrays = _load(archive, found)
    spec, metadata = _expected(store_path, archive, arrays, env_id)
    stream = _stream(archive, found)
    # A new store is made only for a file that fits; an existing one says what the file must fit.
    cutter = None if spec is None else _cut(archive, arrays, spec)
    with open_destination(
        store_path,
        spec,
        metadata,
        capacity=capacity,
        segment_steps=segment_steps,
        compression=compression,
        chunk_steps=chunk_steps,
        durability=durability,
    ) as store:
        _refuse_other_columns(archive, store, stream)
        cutter = cutter or _cut(archive, arrays, store.spec)
        total = int(cutter.lengths.sum())
        wanted = total if steps is None else steps
        with Progress(store, total=wanted, commit_every=commit_every, visible=progress) as clock:
            before, after = _write(store, stream, cutter, clock=clock, wanted=wanted, stop=stop)
            store.commit()
            if seal:
                store.seal()
            notes = cutter.notes
            if before:
                notes += (f"{before} of its {total} steps were in the store already",)
            return clock.report(
                path=str(store_path),
                source=f"npz:{os.fspath(file)}",
                total_steps=after,
                interrupted=clock.steps < wanted and after < total,
                notes=notes,
            )


def _write(
    store: ReplayStore,
    stream: str,
    cutter: EpisodeCutter,
    *,
    clock: Progress,
    wanted: int,
    stop: Callable[[], bool],
) -> tuple[int, int]:
    """Write whole episodes after those the stream has; return its steps before and after."""
    with store.writer(stream=stream) as writer:
        before, passed = int(writer.steps), 0
        for episode in cutter:
            length = len(episode.rewards)
            passed += length
            if passed <= before:
                continue
            if clock.steps >= wanted or stop():
                break
            writer.write_episode(*episode)
            clock.add_episode(float(episode.rewards.sum(dtype=np.float64)), length)
            clock.add_steps(length)
        return before, int(writer.steps)


def _find(archive: Archive, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return which array of the file holds which column."""
    unknown = sorted(set(renamed) - set(NAMES))
    if unknown:
        raise archive.error(f"there is no column {unknown[0]!r} to map", hint=f"Map one of {', '.join(NAMES)}.")
    found: dict[str, str] = {}
    for name, known in NAMES.items():
        names = (renamed[name],) if name in renamed else known
        there = [column for column in names if column in archive.columns]
        if len(there) > 1:
            raise archive.error(f"has both {there[0]} and {there[1]}", hint=f"Choose with --map {name}=COLUMN.")
        if there:
            found[name] = there[0]
        elif name not in OPTIONAL or name in renamed:
            raise archive.error(
                f"has no array {' or '.join(names)}; it has {', '.join(archive.columns) or 'none'}",
                hint=f"Name the array with --map {name}=COLUMN.",
            )
    return found


def _load(archive: Archive, found: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read the columns under the names used here; a trailing axis of length 1 is dropped."""
    loaded = archive.load(found.values())
    arrays = {name: loaded[column] for name, column in found.items()}
    for name, array in arrays.items():
        if array.ndim == 0:
            raise archive.error(f"{found[name]} is a single number; expected one row per step")
        scalar = name in {"rewards", "terminations", "truncations"} or (name == "actions" and array.dtype.kind in "iu")
        if scalar and array.ndim == 2 and array.shape[1] == 1:
            arrays[name] = array[:, 0]
    lengths = {name: len(arrays[name]) for name in arrays if name != "observations"}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{found[name]} {length}" for name, length in lengths.items())
        raise archive.error(f"its columns have different lengths: {listed}", hint="Store one row per step.")
    if not len(arrays["rewards"]):
        raise archive.error("holds no steps", hint="Leave it out.")
    return arrays


def _expected(
    store_path: str | os.PathLike[str],
    archive: Archive,
    arrays: Mapping[str, NDArray[Any]],
    env_id: str | None,
) -> tuple[StepSpec | None, dict[str, Any]]:
    """Return the spec and metadata the store must have; None takes the existing store's spec."""
    if env_id is not None:
        env_id = canonical_id(env_id)
        env = make_env(env_id)
        spec = StepSpec.from_spaces(env.observation_space, env.action_space)
        env.close()
        return spec, {"env_id": env_id, "preprocessing": preprocessing(env_id)}
    if os.path.lexists(store_path):
        return None, {}
    try:
        return StepSpec(_describe("observation", arrays["observations"]), _describe("action", arrays["actions"])), {}
    except SpecMismatchError as err:
        raise archive.error(str(err), hint=err.hint) from err


def _describe(name: str, rows: NDArray[Any]) -> ArraySpec:
    """Guess the space a column was drawn from: whole numbers are discrete, bytes are pixels."""
    shape, dtype = rows.shape[1:], rows.dtype.name
    if rows.dtype.kind == "b":
        return ArraySpec(name, shape, "int8", "multibinary")
    if rows.dtype.kind == "f":
        return ArraySpec(name, shape, dtype, "box", low=-np.inf, high=np.inf)
    if not shape and rows.size and rows.min() >= 0:
        return ArraySpec(name, (), "int64", "discrete", n=int(rows.max()) + 1)
    limits = np.iinfo(rows.dtype)
    return ArraySpec(name, shape, dtype, "box", low=float(limits.min), high=float(limits.max))


def _cut(archive: Archive, arrays: Mapping[str, NDArray[Any]], spec: StepSpec) -> EpisodeCutter:
    """Hold every column against the spec and the number of rewards; find the episodes."""
    if isinstance(spec.observation, (dict, tuple)) or isinstance(spec.action, (dict, tuple)):
        raise archive.error(
            "the store's observations or actions are nested, which an archive's are not",
            hint="Write nested steps with ReplayStore.writer.",
        )
    count, actions = len(arrays["rewards"]), arrays["actions"]
    if actions.ndim == 1 and spec.action.shape == (1,):
        actions = actions[:, None]
    try:
        following = arrays.get("next_observations")
        columns = Columns(
            _rows(spec.observation, arrays["observations"]),
            check_array(spec.action, actions, count=count, in_space=True),
            check_rewards(arrays["rewards"], count=count),
            check_flags("terminations", _flags(arrays["terminations"]), count=count),
            check_flags(
                "truncations",
                _flags(arrays.get("truncations", np.zeros(count, dtype=np.bool_))),
                count=count,
            ),
            None if following is None else _rows(spec.observation, following),
        )
        return EpisodeCutter(columns)
    except (SpecMismatchError, SourceError) as err:
        own_hint = "" if err.hint == SpecMismatchError.default_hint else err.hint
        hint = own_hint or "Correct that column of the file, or ingest it into another store."
        raise archive.error(str(err), hint=hint) from err


def _rows(leaf: ArraySpec, rows: NDArray[Any]) -> NDArray[Any]:
    named = replace(leaf, name="observation")
    return check_array(named, rows, count=len(rows))


def _flags(flags: NDArray[Any]) -> NDArray[Any]:
    """Take 0.0 and 1.0 for flags, as many data sets store them."""
    whole = flags.dtype.kind == "f" and bool(((flags == 0) | (flags == 1)).all())
    return flags.astype(np.bool_) if whole else flags


def _digest(path: os.PathLike[str]) -> str:
    with open(path, "rb") as stream:  # noqa: PTH123
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _stream(archive: Archive, found: Mapping[str, str]) -> str:
    """Name the stream of a file: by its content, and by its columns where they are not those of the usual names."""
    name = f"npz-{_digest(archive.path)}"
    try:
        usual = _find(archive, {})
    except SourceError:
        usual = {}
    if found == usual:
        return name
    columns = "\0".join(f"{key}={column}" for key, column in sorted(found.items()))
    return f"{name}-{hashlib.sha256(columns.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _refuse_other_columns(archive: Archive, store: ReplayStore, stream: str) -> None:
    """Refuse a file of which the store has other columns already: the same steps twice, or some of both."""
    content = "-".join(stream.split("-")[:2])
    if any(name != stream and (name == content or name.startswith(f"{content}-")) for name in store.streams):
        raise archive.error(
            f"{store.path} has this file already, with other columns",
            hint="Give --map as at the first time, or ingest these columns into another store.",
        )
