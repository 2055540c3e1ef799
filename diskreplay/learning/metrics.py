"""What a run says about itself: metrics.jsonl, one JSON object a line, and TensorBoard events.

Every line has "kind" ("train" or "evaluation") and "update". The file never holds a line from after the
checkpoint a run went on from: those updates are done again.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from diskreplay.errors import TrainingError

if TYPE_CHECKING:
    from os import PathLike

    from torch.utils.tensorboard import SummaryWriter

NAME = "metrics.jsonl"
EVENTS_NAME = "tensorboard"


class MetricsLog:
    """Append records to metrics.jsonl and to TensorBoard events; a context manager.

    Args:
        folder: The run's folder.
        update: Update the run goes on from; later lines of an earlier attempt are cut away. 0 starts anew.
        tensorboard: Write events too.
    """

    def __init__(self, folder: Path, *, update: int = 0, tensorboard: bool = True) -> None:
        self._path = folder / NAME
        _cut(self._path, update)
        self._file = self._path.open("a", encoding="utf-8")
        self._writer = _open_events(folder / EVENTS_NAME, update) if tensorboard else None

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, and its numbers as TensorBoard scalars."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._writer is None:
            return
        for name, value in record.items():
            if isinstance(value, float) and math.isfinite(value):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["update"])

    def sync(self) -> None:
        """Make what was written durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, or of the one in a run's folder.

    A last line that a crash cut short is left out.

    Raises:
        TrainingError: If there is no such file, or another line is not a record.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.exists():
        raise TrainingError(f"{path}: no metrics there", path=path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as err:
            if number == len(lines):
                break
            raise TrainingError(f"{path}: line {number} is not JSON: {err}", path=path) from err
        if not _is_record(record):
            raise TrainingError(f"{path}: line {number} is not a record of a run", path=path)
        records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Tell whether a line has what a curve and a resumed run take from it."""
    if not isinstance(record, dict) or not isinstance(record.get("update"), int):
        return False
    numbers = [record.get("loss"), record.get("data_wait_share")]
    if record.get("kind") == "evaluation":
        returns = record.get("eval_returns")
        numbers = [record.get("eval_return_mean"), *(returns if isinstance(returns, list) and returns else [None])]
    return all(isinstance(number, (int, float)) for number in numbers)


def _cut(path: Path, update: int) -> None:
    """Drop the lines after an update, whole or not at all."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["update"] <= update] if update else []
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _open_events(folder: Path, update: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  a second that few callers need

    return SummaryWriter(str(folder), purge_step=update + 1 if update else None)
