"""Look at a store that may be damaged in any way, without being hurt by it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from diskreplay.errors import CorruptStoreError, FormatVersionError, ReplayError, StoreNotFoundError
from diskreplay.storage import layout
from diskreplay.storage.creation import Description, parse_description, read_description
from diskreplay.storage.index import Index
from diskreplay.storage.segments import read_attributes

if TYPE_CHECKING:
    from pathlib import Path


def require_store(root: Path) -> None:
    """Make sure that there is a replay store, or what is left of one.

    Raises:
        StoreNotFoundError: If there is none.
    """
    if not root.exists():
        raise StoreNotFoundError(f"{root}: no such store", path=root)
    parts = (layout.INDEX, layout.STEPS, layout.LOCKS)
    if not root.is_dir() or sum((root / part).is_dir() for part in parts) < 2:
        raise StoreNotFoundError(f"{root}: not a replay store", path=root)


def open_index(path: Path) -> tuple[Index, str]:
    """Open an index, even if it is an older state than was committed; return it, and what is wrong with it.

    Raises:
        CorruptStoreError: If it cannot be opened at all.
    """
    try:
        return Index(path), ""
    except CorruptStoreError as err:
        return Index(path, checked=False), str(err).removeprefix(f"{path / 'data.mdb'}: ")


def description_of(root: Path, index: Path | None) -> tuple[Description, dict[str, Any]]:
    """Return a store's description, and the attributes it is made of: the index's copy if it has one, else zarr.json.

    Args:
        root: The store's folder.
        index: The index's folder; None if it cannot be read.

    Raises:
        CorruptStoreError: If neither can be read.
    """
    require_store(root)
    copy = None if index is None else _copy_in(index)
    if copy is not None:
        with contextlib.suppress(ReplayError):
            if read_description(root).durability == "power":  # of two the stronger holds
                copy = {**copy, "durability": "power"}
        with contextlib.suppress(CorruptStoreError, FormatVersionError):
            return _described(root, copy), copy
    try:
        read_description(root)
        attributes = read_attributes(root)
        return _described(root, attributes), attributes
    except CorruptStoreError as err:
        raise CorruptStoreError(
            f"{err}; and the index has no sound copy of it",
            path=root,
            hint="Put zarr.json back from a backup: nothing else says what the bytes of this store mean.",
        ) from err


def _described(root: Path, attributes: dict[str, Any]) -> Description:
    """Return the description that attributes are.

    Raises:
        CorruptStoreError: If they are none, or say it in other words than this package does: no handle would open then.
    """
    description = parse_description(root, attributes)
    here = description.to_json()
    wrong = sorted(name for name in here.keys() | attributes.keys() if here.get(name) != attributes.get(name))
    if set(wrong) - {"durability"}:
        what = f"{layout.group_path(root)}: the store's description is damaged: {', '.join(wrong)}"
        raise CorruptStoreError(what, path=root)
    return description


def _copy_in(path: Path) -> dict[str, Any] | None:
    try:
        index = Index(path, checked=False)
        try:
            with index.read() as txn:
                return txn.json("meta", b"description")
        finally:
            index.close()
    except ReplayError:
        return None
