"""The errors diskreplay raises on purpose, one small tree.

    ReplayError                 .path, .hint (one sentence: what to do about it)
    ├── StoreNotFoundError      also FileNotFoundError: no store at that path
    ├── StoreExistsError        also FileExistsError: something is there already
    ├── FormatVersionError      written by another version of the format
    ├── StoreLockedError        another process or writer holds it
    ├── ReadOnlyError           opened with mode="r"
    ├── StoreFullError          the disk, a quota or the index is full
    ├── CorruptStoreError       stored bytes are damaged; never continued past
    ├── SpecMismatchError       also ValueError: a step, a store or a checkpoint does not fit the spec
    ├── StepEvictedError        also LookupError: the step id is not in the store any more
    ├── NotEnoughStepsError     nothing to sample yet
    ├── WriterStateError        step() before reset(), or a closed writer or store
    ├── SourceError             a data source that cannot be read: unknown environment, bad file
    └── TrainingError           a training run that cannot go on: wrong checkpoint, wrong store

Beside it stands one warning, CorruptionWarning: damage was met and, as asked for, left out.
Wrong arguments stay ValueError or TypeError. Every class can be built from one message string, because a
DataLoader worker's error is rebuilt that way; so whatever matters (path, field, step id) is in the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


class ReplayError(Exception):
    """Base of every error diskreplay raises on purpose.

    Args:
        message: What was wrong and where (path, field, step id).
        path: The store or file concerned, if any.
        hint: One sentence that says what to do about it.
    """

    default_hint = ""

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.hint = hint or self.default_hint


class StoreNotFoundError(ReplayError, FileNotFoundError):
    """No replay store at that path."""

    default_hint = "Check the path, or make a store with ReplayStore.create or `diskreplay ingest`."


class StoreExistsError(ReplayError, FileExistsError):
    """Something is already at the path where a store was to be created."""

    default_hint = "Open it with ReplayStore.open(path, mode='a'), or choose another path."


class FormatVersionError(ReplayError):
    """The store was written in a version of the format this release does not read."""

    default_hint = "Install the release of diskreplay that wrote it."


class StoreLockedError(ReplayError):
    """Another process or writer holds what was asked for."""

    default_hint = "Wait for the holder, stop it, or use another stream name."


class ReadOnlyError(ReplayError):
    """A write was asked of a store opened with mode="r"."""

    default_hint = "Open it with ReplayStore.open(path, mode='a')."


class StoreFullError(ReplayError):
    """The disk, a quota or the index has no room left; earlier commits are intact."""

    default_hint = "Free some space, or lower the store's capacity; then commit again."


class CorruptStoreError(ReplayError):
    """Stored bytes are damaged or missing; nothing from them is served.

    Args:
        message: What is damaged and where: segment, field and file.
        path: The store or file concerned, if any.
        hint: What to do about it.
        segment: The segment concerned, if it is one.
    """

    default_hint = "See what is damaged with `diskreplay verify`; restore it from a backup, or run `diskreplay repair`."

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        hint: str = "",
        segment: int | None = None,
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.segment = segment


class SpecMismatchError(ReplayError, ValueError):
    """A step, a store or a checkpoint does not fit the spec it is used with."""

    default_hint = "Compare the shapes and dtypes with store.spec."


class StepEvictedError(ReplayError, LookupError):
    """The step id was evicted, or was never in this store."""

    default_hint = "Draw step ids from a sampler of this store."


class NotEnoughStepsError(ReplayError):
    """The store holds no transition that could be sampled."""

    default_hint = "Write steps first, or call refresh() to see what other processes committed."


class WriterStateError(ReplayError):
    """A call that does not fit the writer's state."""

    default_hint = "Call reset(observation) at the start of every episode, and step() until it ends."


class SourceError(ReplayError):
    """A source of steps cannot be opened or read."""

    default_hint = "Check the name of the environment or the file."


class TrainingError(ReplayError):
    """A training run cannot start or go on."""

    default_hint = "Check that the store, the options and the checkpoint belong together."


class CorruptionWarning(UserWarning):
    """A damaged segment was left out, as asked for with on_corruption="skip"."""
