"""Disk-backed replay storage for reinforcement learning, far larger than RAM.

>>> from diskreplay import ReplayStore, StepSpec, PrioritizedSampler, ReplayLoader  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diskreplay.errors import (
        CorruptionWarning,
        CorruptStoreError,
        FormatVersionError,
        NotEnoughStepsError,
        ReadOnlyError,
        ReplayError,
        SourceError,
        SpecMismatchError,
        StepEvictedError,
        StoreExistsError,
        StoreFullError,
        StoreLockedError,
        StoreNotFoundError,
        TrainingError,
        WriterStateError,
    )
    from diskreplay.experience import ArraySpec, Batch, SequenceBatch, StepSpec
    from diskreplay.loading import ReplayLoader
    from diskreplay.priority import LinearSchedule
    from diskreplay.sampling import PrioritizedSampler, UniformSampler
    from diskreplay.store import ReplayStore, StreamWriter

__version__ = "0.1.0"

# Loaded when first asked for: nobody who only opens a store should wait for torch, nor the command line for zarr.
_HOMES = {
    "diskreplay.errors": (
        "CorruptStoreError CorruptionWarning FormatVersionError NotEnoughStepsError ReadOnlyError ReplayError"
        " SourceError SpecMismatchError StepEvictedError StoreExistsError StoreFullError StoreLockedError"
        " StoreNotFoundError TrainingError WriterStateError"
    ),
    "diskreplay.experience": "ArraySpec Batch SequenceBatch StepSpec",
    "diskreplay.priority": "LinearSchedule",
    "diskreplay.store": "ReplayStore StreamWriter",
    "diskreplay.sampling": "PrioritizedSampler UniformSampler",
    "diskreplay.loading": "ReplayLoader",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ArraySpec",
    "Batch",
    "CorruptStoreError",
    "CorruptionWarning",
    "FormatVersionError",
    "LinearSchedule",
    "NotEnoughStepsError",
    "PrioritizedSampler",
    "ReadOnlyError",
    "ReplayError",
    "ReplayLoader",
    "ReplayStore",
    "SequenceBatch",
    "SourceError",
    "SpecMismatchError",
    "StepEvictedError",
    "StepSpec",
    "StoreExistsError",
    "StoreFullError",
    "StoreLockedError",
    "StoreNotFoundError",
    "StreamWriter",
    "TrainingError",
    "UniformSampler",
    "WriterStateError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'diskreplay' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
