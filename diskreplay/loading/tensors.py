"""Turn fetched arrays into a batch of tensors, and keep buffers to read into."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diskreplay.experience import Batch
from diskreplay.storage.gather import Pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.gather import Taken

UNHELD = 2
SMALL = 1 << 16


class Buffers:
    """Arrays to read observations into, used again when nobody holds their last batch any more.

    Fresh memory costs more than the copy into it: every page of a new 9 MB batch is a fault. A buffer whose
    reference count shows that a batch, or a tensor made from it, is still alive is never handed out.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[tuple[tuple[int, ...], str], list[NDArray[Any]]] = {}
        self._lock = threading.Lock()

    def take(self, pieces: Sequence[Pieces | Taken]) -> list[NDArray[Any] | None]:
        """Return an array for each that is to be read, of its shape."""
        with self._lock:
            return [
                self._one((*p.leading, *p.geometry.shape), p.geometry.dtype) if isinstance(p, Pieces) else None
                for p in pieces
            ]

    def _one(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        kept = self._kept.setdefault((shape, dtype), [])
        for i in range(len(kept)):
            if sys.getrefcount(kept[i]) == UNHELD:
                return kept[i]
        made = np.empty(shape, dtype)
        if len(kept) < self.most:
            kept.append(made)
        return made


def to_tensors(batch: Batch, *, pin: bool = False) -> Batch:
    """Return the batch with its arrays as tensors that share their memory; pinned if asked."""

    def convert(array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if pin else tensor

    return batch.map(convert)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device, copied without waiting for it."""
    return batch.map(lambda tensor: tensor.to(device, non_blocking=True))
