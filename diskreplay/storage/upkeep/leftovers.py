"""Files in a store's folder that nothing explains: left by a crash, an interrupted repair, or another program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskreplay.errors import CorruptStoreError
from diskreplay.storage import layout
from diskreplay.storage.durable import PARTIAL
from diskreplay.storage.upkeep.records import ORPHAN, Catalogue, Problem, read_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from diskreplay.storage.fields import Field
    from diskreplay.storage.index import Index

ARRAY = "zarr.json"


@dataclass(frozen=True)
class Candidate:
    """A file that has to be explained.

    Attributes:
        path: Its path.
        segment: Whose shard, or unfinished shard, it is by its name; -1: no shard at all.
        partial: Whether it is an unfinished file.
    """

    path: Path
    segment: int
    partial: bool

    @property
    def what(self) -> str:
        """Say what it may be."""
        if self.partial:
            return "left by an interrupted write"
        return "no catalogue entry names it" if self.segment >= 0 else "not a file of this store"


def find_leftovers(root: Path, fields: Sequence[Field], segment_steps: int, index: Index) -> list[Problem]:
    """List what nothing explains. The files are listed first, so what writers commit meanwhile is explained."""
    found = list(candidates(root, fields))
    with index.read() as txn:
        catalogue = read_catalogue(txn, fields, segment_steps)
    return [
        Problem(ORPHAN, str(item.path), item.what)
        for item in found
        if not explained(item, catalogue) and item.path.exists()
    ]


def explained(item: Candidate, catalogue: Catalogue) -> bool:
    """Return whether the index names the shard, is about to, or knows that it is to be removed."""
    if item.segment in catalogue.open_segments():
        return True
    return not item.partial and any(item.segment in catalogue.keys[n] for n in ("segments", "quarantine", "garbage"))


def candidates(root: Path, fields: Sequence[Field]) -> Iterator[Candidate]:
    """Yield every file below `steps/` but the arrays' descriptions, and unfinished files elsewhere."""
    by_name = {item.name: item for item in fields}
    for folder in (root, root / layout.INDEX):
        yield from (Candidate(path, -1, partial=True) for path in _entries(folder) if path.name.endswith(PARTIAL))
    for folder in _entries(root / layout.STEPS):
        item = by_name.get(folder.name)
        if item is None or not folder.is_dir():
            if folder.name != ARRAY:
                yield Candidate(folder, -1, partial=folder.name.endswith(PARTIAL))
            continue
        shard = re.compile(r"c\.(0|[1-9][0-9]{0,18})" + re.escape(".0" * len(item.shape)))
        for path in _entries(folder):
            if path.name == ARRAY:
                continue
            match = shard.fullmatch(path.name.removesuffix(PARTIAL))
            number = int(match[1]) if match else layout.MOST_SEGMENTS
            segment = number if number < layout.MOST_SEGMENTS else -1
            yield Candidate(path, segment, partial=path.name.endswith(PARTIAL))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as err:
        raise CorruptStoreError(f"{folder}: {err.strerror}", path=folder) from err
