"""Where steps go: a new store, or an existing one that holds the same kind of steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from diskreplay.errors import ReplayError, SpecMismatchError
from diskreplay.storage.creation import parse_capacity
from diskreplay.store import ReplayStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diskreplay.experience import StepSpec
    from diskreplay.storage.eviction import Capacity

SAME_STORE_KEYS = ("env_id", "preprocessing")


def open_destination(
    path: str | os.PathLike[str],
    spec: StepSpec | None,
    metadata: Mapping[str, Any],
    **create_options: Any,
) -> ReplayStore:
    """Open the store at the path for appending, or create it.

    Args:
        path: Where the store is or is to be.
        spec: What the source's steps look like; must equal the store's. None takes an existing
            store's.
        metadata: For a new store; `env_id` and `preprocessing` must equal an existing store's.
        create_options: `capacity`, `segment_steps`, `compression`, `chunk_steps`, `durability` for a new store;
            None for the store's defaults.

    Raises:
        SpecMismatchError: If an existing store holds other steps, or has other options.
        StoreNotFoundError: If something else is at the path.
    """
    options = {key: value for key, value in create_options.items() if value is not None}
    try:
        if "capacity" in options:
            parse_capacity(options["capacity"])
        if spec is not None and not os.path.lexists(path):
            return ReplayStore.create(path, spec, metadata=dict(metadata), **options)
    except ReplayError:
        raise
    except (ValueError, OverflowError) as err:  # a capacity may be beyond all numbers
        raise SpecMismatchError(
            f"{path}: {err}",
            path=path,
            hint="Change the options for a new store, or leave them out.",
        ) from err
    store = ReplayStore.open(path, mode="a")
    try:
        _check_metadata(store, metadata)
        if spec is not None:
            _check_spec(store, spec)
        _check_options(store, options)
    except BaseException:
        store.close()
        raise
    return store


def _check_spec(store: ReplayStore, spec: StepSpec) -> None:
    difference = store.spec.difference(spec)
    if difference:
        raise SpecMismatchError(
            f"{store.path} holds other steps than the source (store against source): {difference}",
            path=store.path,
            hint="Ingest into another store, or use the source this store was made from.",
        )


def _check_metadata(store: ReplayStore, metadata: Mapping[str, Any]) -> None:
    for key in SAME_STORE_KEYS:
        here = store.metadata.get(key)
        if here is not None and key in metadata and here != metadata[key]:
            raise SpecMismatchError(
                f"{store.path} has {key} {here!r}, the source {metadata[key]!r}",
                path=store.path,
                hint="Keep one environment per store.",
            )


def _check_options(store: ReplayStore, options: Mapping[str, Any]) -> None:
    given = dict(options)
    if "capacity" in given:
        given["capacity"] = parse_capacity(given["capacity"])
    for key, value in given.items():
        here = getattr(store, key)
        if value != here:
            told = "chosen by measurement" if here is None else _capacity(here) if key == "capacity" else here
            raise SpecMismatchError(
                f"{store.path} has {key} {told}, which cannot become {options[key]}",
                path=store.path,
                hint=f"Leave out --{key.replace('_', '-')}: it only counts when a store is made.",
            )


def _capacity(capacity: Capacity) -> str:
    if capacity.size_bytes is not None:
        return f"{capacity.size_bytes:,} bytes"
    return "without limit" if capacity.steps is None else f"{capacity.steps:,} transitions"
