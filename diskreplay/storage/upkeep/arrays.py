"""The zarr.json files of a store: what they must say, whether they do, and what they were before damage."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.durable import Disk
from diskreplay.storage.fields import COMPRESSIONS, Coding
from diskreplay.storage.regular import read_zarr_json
from diskreplay.storage.segments import SegmentWriter
from diskreplay.storage.upkeep.records import INCONSISTENT, Problem
from diskreplay.storage.upkeep.shards import DAMAGED, MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from diskreplay.storage.fields import Field

DOCUMENT = "zarr.json"
# All but the shape, which grows, and attributes, which are anybody's.
DECISIVE = (
    "zarr_format", "node_type", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
    "dimension_names", "storage_transformers",
)  # fmt: skip


def array_documents(
    fields: Sequence[Field], segment_steps: int, codings: Mapping[str, Coding]
) -> dict[str, dict[str, Any]]:
    """Return each field's zarr.json, as zarr writes it for a new store."""
    written = _written(tuple(fields), segment_steps, tuple(codings.items()))
    return {name: json.loads(document) for name, document in written.items()}


@lru_cache(maxsize=4)
def _written(
    fields: tuple[Field, ...], segment_steps: int, codings: tuple[tuple[str, Coding], ...]
) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="diskreplay-") as folder:
        root = Path(folder)
        (root / layout.STEPS).mkdir()
        SegmentWriter(root, fields, segment_steps, Disk("process")).create_arrays(dict(codings))
        return {item.name: (layout.field_path(root, item.name) / DOCUMENT).read_bytes() for item in fields}


def group_documents(attributes: dict[str, Any]) -> dict[str, bytes]:
    """Return the groups' zarr.json files, by their path in the store."""
    with tempfile.TemporaryDirectory(prefix="diskreplay-") as folder:
        root = Path(folder)
        SegmentWriter(root, (), 1, Disk("process")).create_group(attributes)
        return {name: (root / name).read_bytes() for name in (DOCUMENT, f"{layout.STEPS}/{DOCUMENT}")}


def array_problems(root: Path, documents: Mapping[str, dict[str, Any]], rows: int) -> Iterator[Problem]:
    """Compare the arrays' zarr.json with what they must say.

    Args:
        root: The store's folder.
        documents: From `array_documents`.
        rows: As long as the arrays must be at least.
    """
    for name, expected in documents.items():
        path = layout.field_path(root, name) / DOCUMENT
        document, problem = read_document(path)
        if document is None:
            yield problem
            continue
        wrong = [key for key in DECISIVE if _plain(document.get(key)) != _plain(expected.get(key))]
        shape = document.get("shape")
        if not isinstance(shape, list) or not shape or shape[1:] != expected["shape"][1:]:
            wrong.append("shape")
        elif not isinstance(shape[0], int) or shape[0] < rows:
            yield Problem(INCONSISTENT, str(path), f"the array has {shape[0]} rows, {rows} are needed")
        if wrong:
            yield Problem(DAMAGED, str(path), f"it describes another array: {', '.join(wrong)}")
            continue
        refusal = _refusal(zarr.open_array, path)
        if refusal:
            yield Problem(DAMAGED, str(path), refusal)


def group_problems(root: Path, description: dict[str, Any] | None) -> Iterator[Problem]:
    """Look at the groups' zarr.json; compare the store's with the copy of it in the index."""
    for path in (layout.group_path(root), root / layout.STEPS / DOCUMENT):
        document, problem = read_document(path)
        if document is None:
            yield problem
        elif (document.get("zarr_format"), document.get("node_type")) != (3, "group"):
            yield Problem(DAMAGED, str(path), "it describes no zarr v3 group")
            continue
        elif path == layout.group_path(root) and description is not None:
            attributes = document.get("attributes")
            found = attributes.get(layout.GROUP_KEY) if isinstance(attributes, dict) else None
            if found != description:
                yield Problem(INCONSISTENT, str(path), "the index has another copy of the description")
                continue
        elif path != layout.group_path(root) and document.get("attributes"):
            yield Problem(DAMAGED, str(path), "it is another group's: this one has no attributes")
            continue
        refusal = _refusal(zarr.open_group, path) if document is not None else ""
        if refusal:
            yield Problem(DAMAGED, str(path), refusal)


def _refusal(opener: Callable[..., Any], path: Path) -> str:
    """Say why zarr will not open what this zarr.json describes."""
    try:
        opener(str(path.parent), mode="r", zarr_format=3)
    except Exception as err:  # noqa: BLE001  whatever zarr does not like, it is the file's fault
        return f"zarr cannot read it: {err}"
    return ""


def read_document(path: Path) -> tuple[dict[str, Any] | None, Problem]:
    """Return a JSON object, or None and what is wrong with the file."""
    try:
        document = layout.loads(read_zarr_json(path))
    except CorruptStoreError as err:
        return None, Problem(DAMAGED, str(path), str(err).removeprefix(f"{path}: "))
    except FileNotFoundError:
        return None, Problem(MISSING, str(path), "zarr cannot read the array without it")
    except OSError as err:
        return None, Problem(DAMAGED, str(path), err.strerror or str(err))
    except ValueError:
        return None, Problem(DAMAGED, str(path), "it is no JSON")
    if not isinstance(document, dict):
        return None, Problem(DAMAGED, str(path), "it is no JSON object")
    return document, Problem("", str(path), "")


def coding_of(document: dict[str, Any], segment_steps: int) -> Coding | None:
    """Return the coding that an array's zarr.json stands for, or None."""
    try:
        sharding = document["codecs"][0]["configuration"]
        coders = [
            coder["configuration"]["cname"] if coder["name"] == "blosc" else coder["name"]
            for coder in sharding["codecs"]
        ]
        steps = sharding["chunk_shape"][0]
        codec = next((coder for coder in coders if coder in COMPRESSIONS[1:]), "none")
        return Coding.from_json("", {"codec": codec, "chunk_steps": steps}, segment_steps)
    except (LookupError, TypeError, AttributeError, CorruptStoreError):
        return None


def _plain(value: Any) -> Any:
    """Drop empty objects: zarr's releases write them or leave them out."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part not in ({}, None)}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
