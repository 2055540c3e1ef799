"""LMDB environments of this process: one a store, shared by every handle, at rest while the process forks.

- LMDB must not be opened twice in one process: handles share an environment, found by the file's device and inode.
- What a child inherits, it can only close safely if no thread was inside: a fork waits until all are out, so the
  child closes its copy and may open the store again by itself. Where that takes too long (a backup under way, a
  fork inside a transaction) the child's copy is never touched, and a new open says why it cannot be.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from diskreplay.storage.environment import PATIENCE_S, Environment, identity

if TYPE_CHECKING:
    from pathlib import Path

_registry: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.Lock()
_to_leave: list[tuple[tuple[int, int], Environment]] = []
_closed_for_fork: list[Environment] = []


def enter(path: Path, *, create: bool, synced: bool, checked: bool = True) -> tuple[tuple[int, int], Environment]:
    """Return the process's environment of an index, and the key to give it back by."""
    data = path / "data.mdb"
    with _registry_lock:
        while _to_leave:
            _leave(*_to_leave.pop())
        if data.exists():
            key = identity(data)
            known = _registry.get(key)
            if known is not None:
                if not known.handles:  # somebody was inside when its last handle was given back
                    known.reopen(synced=synced)
                known.handles += 1
                return key, known
        environment = Environment(path, create=create, synced=synced, checked=checked)
        key = identity(data)
        _registry[key] = environment
        return key, environment


def leave(key: tuple[int, int], environment: Environment, *, wait: bool) -> None:
    """Give an environment back; it closes with its last handle.

    Args:
        key: What `enter` returned.
        environment: Likewise.
        wait: Take the registry's lock. False in finalisers: the garbage collector may run them in the very thread that
            holds it; whoever comes next then does it.
    """
    if not wait:
        _to_leave.append((key, environment))
        return
    with _registry_lock:
        _leave(key, environment)


def _leave(key: tuple[int, int], environment: Environment) -> None:
    environment.handles -= 1
    if environment.handles:
        return
    # Whoever is inside reads from the map that closing takes away. If somebody stays, the next handle finds it open.
    if environment.gate.close(PATIENCE_S):
        try:
            _registry.pop(key, None)
            environment.close()
        finally:
            environment.gate.open()


def _before_fork() -> None:
    _registry_lock.acquire()
    until = time.monotonic() + PATIENCE_S
    for environment in _registry.values():  # noted one by one: after an interrupt the fork goes on, and opens these
        if environment.gate.close(max(0.0, until - time.monotonic())):
            _closed_for_fork.append(environment)  # noqa: PERF401


def _after_fork_in_parent() -> None:
    for environment in _closed_for_fork:
        environment.gate.open()
    _closed_for_fork.clear()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for environment in _registry.values():
        if environment in _closed_for_fork:
            environment.close()
        else:
            environment.keep()
    _closed_for_fork.clear()
    _to_leave.clear()
    _registry.clear()
    _registry_lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
