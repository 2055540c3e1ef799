"""Turn step ids into rows: plan windows over the live segments, and fetch them.

A plan says what to read and where, and nothing else: it can be executed in another thread, or sent to another
process, which then needs neither the index nor the store.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import CorruptStoreError, StepEvictedError
from diskreplay.experience.n_step import n_step_return
from diskreplay.storage import planning_kernels
from diskreplay.storage.durable import disk_error
from diskreplay.storage.gather import Geometry, Pieces, Taken, take
from diskreplay.storage.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from diskreplay.storage.fields import Coding, Field
    from diskreplay.storage.residency import Residency
    from diskreplay.storage.table import SegmentTable

REWARD = "reward"


@dataclass
class WindowPlan:
    """Where B windows lie.

    Attributes:
        step_ids: (B,).
        n_step, gamma, frame_stack: What was asked for.
        shared: Whether observation and next observation are columns of one array, (B, k + 1).
        lengths: (B,) steps m of each window. terminated: (B,).
        observations, actions: A leaf each: where its rows lie, or the rows themselves. rewards: (B, n).
        keep: What must live as long as the plan: open files, rows in memory.
        paths: For each leaf of a portable plan, the paths of its files.
    """

    step_ids: NDArray[np.int64]
    n_step: int
    gamma: float
    frame_stack: int
    shared: bool
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    observations: list[Pieces | Taken]
    actions: list[Pieces | Taken]
    rewards: Pieces | Taken
    keep: object
    paths: list[list[tuple[str, str]]] | None = None

    def pieces(self) -> list[Pieces | Taken]:
        """Return every field's pieces."""
        return [*self.observations, *self.actions, self.rewards]

    @property
    def complete(self) -> bool:
        """Return whether nothing is left to read: all rows were taken when the plan was made."""
        return all(isinstance(pieces, Taken) for pieces in self.pieces())

    def announce(self) -> None:
        """Tell the kernel which bytes will be read soon."""
        for pieces in self.pieces():
            pieces.announce()

    def fetch(self, buffers: Sequence[NDArray[Any] | None] | None = None) -> Fetched:
        """Read everything.

        Args:
            buffers: One array an observation leaf to fill; made if None.

        Raises:
            CorruptStoreError: If stored bytes are damaged; names the file.
        """
        k = self.frame_stack
        observations, following = [], []
        for i, pieces in enumerate(self.observations):
            rows = pieces.fetch(None if buffers is None else buffers[i])
            first, second = (rows[:, :k], rows[:, 1:]) if self.shared else (rows[:, :k], rows[:, k:])
            observations.append(first if k > 1 else first[:, 0])
            following.append(second if k > 1 else second[:, 0])
        reward, discount = n_step_return(
            self.rewards.fetch(),
            self.lengths,
            self.terminated,
            gamma=self.gamma,
        )
        return Fetched(observations, [p.fetch() for p in self.actions], reward, discount, following)

    def portable(self) -> WindowPlan:
        """Return a plan that another process can execute."""
        moved = [pieces.portable() for pieces in self.pieces()]
        return self._with([p for p, _ in moved], keep=None, paths=[paths for _, paths in moved])

    def resolved(self, open_file: Callable[[str, str], int]) -> WindowPlan:
        """Return a portable plan with its files opened by `open_file` (which returns -1 for "")."""
        if self.paths is None:
            return self
        pieces = [
            p.resolved([open_file(*path) for path in paths]) for p, paths in zip(self.pieces(), self.paths, strict=True)
        ]
        return self._with(pieces, keep=None, paths=None)

    def _with(
        self, pieces: list[Pieces | Taken], *, keep: object, paths: list[list[tuple[str, str]]] | None
    ) -> WindowPlan:
        n = len(self.observations)
        return replace(
            self, observations=pieces[:n], actions=pieces[n:-1], rewards=pieces[-1], keep=keep, paths=paths,
        )  # fmt: skip


@dataclass
class Fetched:
    """A batch's arrays, one a leaf."""

    observation: list[NDArray[Any]]
    action: list[NDArray[Any]]
    reward: NDArray[np.float32]
    discount: NDArray[np.float32]
    next_observation: list[NDArray[Any]]


@dataclass
class Windows:
    """Which rows B windows take; slot and row of each, see `planning_kernels.plan_windows`."""

    slots: NDArray[np.int32]
    rows: NDArray[np.int32]
    shared: bool
    window_slot: NDArray[np.int32]
    window_row: NDArray[np.int32]
    reward_slot: NDArray[np.int32]
    reward_row: NDArray[np.int32]
    lengths: NDArray[np.int64]
    outcome: NDArray[np.uint8]


class Reader:
    """Plan reads over the table's segments. Not thread-safe: the caller holds the store's lock."""

    def __init__(self, fields: Sequence[Field], table: SegmentTable, residency: Residency) -> None:
        self.table = table
        self.residency = residency
        self.fields = {field.name: field for field in fields}
        self.observation_names = [f.name for f in fields if f.role == "observation"]
        self.action_names = [f.name for f in fields if f.role == "action"]
        self._geometries: dict[str, tuple[Coding | None, Geometry]] = {}

    def plan(
        self,
        step_ids: NDArray[np.int64],
        *,
        n_step: int,
        gamma: float,
        frame_stack: int,
        pad_zeros: bool,
    ) -> WindowPlan:
        """Choose and find the rows of one window a step id.

        Raises:
            StepEvictedError: If a step id is not in the store, or is an episode's last row.
            CorruptStoreError: If a segment cannot be opened.
        """
        windows = self.windows(step_ids, n_step=n_step, frame_stack=frame_stack, pad_zeros=pad_zeros)
        seen, paid = (windows.window_slot, windows.window_row), (windows.reward_slot, windows.reward_row)
        wanted = [
            *((name, seen) for name in self.observation_names),
            *((name, (windows.slots, windows.rows)) for name in self.action_names),
            (REWARD, paid),
        ]
        pieces: list[Any] = [self._take(name, *places) for name, places in wanted]
        missing = [name for (name, _), found in zip(wanted, pieces, strict=True) if found is None]
        keep: object = None
        if missing:
            touched = [seen[0].reshape(-1)]
            if n_step > 1:  # else the step's own, which is seen
                touched.append(paid[0].reshape(-1))
            keep = self.residency.need_files(touched, missing)
            pieces = [
                self.pieces(name, *places) if found is None else found
                for (name, places), found in zip(wanted, pieces, strict=True)
            ]
        n = len(self.observation_names)
        return WindowPlan(
            step_ids=step_ids,
            n_step=n_step,
            gamma=gamma,
            frame_stack=frame_stack,
            shared=windows.shared,
            lengths=windows.lengths,
            terminated=windows.outcome == planning_kernels.TERMINATED,
            observations=pieces[:n],
            actions=pieces[n:-1],
            rewards=pieces[-1],
            keep=keep,
        )

    def _take(self, name: str, slots: NDArray[np.int32], rows: NDArray[np.int32]) -> Taken | None:
        places = self.table.by_field[name]
        return take(self.fields[name], slots.shape, slots.reshape(-1), rows.reshape(-1), places.base, places.step)

    def windows(
        self,
        step_ids: NDArray[np.int64],
        *,
        n_step: int,
        frame_stack: int,
        pad_zeros: bool,
    ) -> Windows:
        """Choose the rows of one window a step id.

        Raises:
            StepEvictedError: If a step id is not in the store, or is an episode's last row.
        """
        table, size, k = self.table, len(step_ids), frame_stack
        slots, rows = table.slots_of(step_ids)
        shared = n_step == 1 and k > 1
        width = k + 1 if shared else 2 * k
        found = Windows(
            slots, rows, shared,
            np.empty((size, width), np.int32), np.empty((size, width), np.int32),
            np.empty((size, n_step), np.int32), np.empty((size, n_step), np.int32),
            np.empty(size, np.int64), np.empty(size, np.uint8),
        )  # fmt: skip
        bad = self._with_ends(
            slots,
            lambda: planning_kernels.plan_windows(
                slots, rows, n_step, k, shared, pad_zeros, table.available, table.previous,
                table.following, table.first_end, table.last_end, table.first_flags, table.n_ends,
                table.ends_address, table.flags_address, found.window_slot, found.window_row,
                found.reward_slot, found.reward_row, found.lengths, found.outcome,
            ),
        )  # fmt: skip
        if bad != planning_kernels.PLANNED:
            where, unknown = divmod(bad, 2)
            raise StepEvictedError(
                f"step id {int(step_ids[where])} is not in the store: evicted, or never written"
                if unknown
                else f"step id {int(step_ids[where])} is not a step that can be sampled: it holds an episode's "
                "last observation, or its next observation is not there yet",
            )
        return found

    def step_ids_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the step ids of the transitions of these ranks, counted in the order of step ids.

        Args:
            ranks: (B,), each in [0, transitions).

        Raises:
            ValueError: If one is not.
        """
        table = self.table
        until, live = table.transitions_until(), table.live()
        slots, step_ids = np.empty(len(ranks), np.int32), np.empty(len(ranks), np.int64)
        bad = self._with_ends(
            slots,
            lambda: planning_kernels.steps_of_ranks(
                ranks, until, live, table.segment, table.segment_steps, table.available, table.n_ends,
                table.ends_address, slots, step_ids,
            ),
        )  # fmt: skip
        if bad != planning_kernels.PLANNED:
            raise ValueError(f"there are {table.transitions} transitions, none of rank {int(ranks[bad])}")
        return step_ids

    def _with_ends(self, slots: NDArray[np.int32], look: Callable[[], int]) -> int:
        """Call a planning kernel; once more, if it lacks episode ends of the slots, with these in memory."""
        outcome = look()
        if outcome == planning_kernels.LACKING:
            self.residency.need_ends(slots)
            outcome = look()
            assert outcome != planning_kernels.LACKING  # noqa: S101  by need_ends
        return outcome

    def final_rows(self, segment: int) -> NDArray[np.int32]:
        """Return the rows of a live segment that hold an episode's last observation."""
        slot = self.table.slot(segment)
        self.residency.need_ends(np.array([slot], np.int32))
        ends = self.table.ends.get(slot)
        return np.empty(0, np.int32) if ends is None else ends[: self.table.n_ends[slot]]

    def rows(self, name: str, slots: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[Any]:
        """Return one field's rows, wherever they lie; slot -1 gives zeros."""
        keep = self.residency.need_files((slots.reshape(-1),), [name])
        out = self.pieces(name, slots, rows).fetch()
        del keep
        return out

    def pieces(self, name: str, slots: NDArray[np.int32], rows: NDArray[np.int32]) -> Pieces:
        """Find where rows of a field lie; their segments are open or in memory.

        Raises:
            CorruptStoreError: If a shard's index points outside its file.
        """
        table, places = self.table, self.table.by_field[name]
        geometry = self._geometry(name)
        flat_slots, flat_rows = slots.reshape(-1), rows.reshape(-1)
        count = len(flat_slots)
        fd, inner = np.empty(count, np.int32), np.zeros(count, np.int32)
        offset, length = np.zeros(count, np.int64), np.zeros(count, np.int64)
        address, check = np.empty(count, np.int64), np.zeros(count, np.uint32)
        bad = planning_kernels.locate(
            flat_slots, flat_rows, geometry.chunk_steps, geometry.chunk_bytes,
            places.fd, places.base, places.step, places.coded, places.index, places.check, places.size,
            fd, offset, length, inner, check, address,
        )  # fmt: skip
        if bad >= 0:
            segment = int(table.segment[flat_slots[bad]])
            raise CorruptStoreError(
                f"{self.residency.root}: segment {segment}, field {name}: the shard's index points outside the file",
                path=self.residency.root,
                segment=segment,
            )
        return Pieces(geometry, slots.shape, fd, offset, length, inner, check, address)

    def _geometry(self, name: str) -> Geometry:
        coding = self.residency.codings.get(name)
        known = self._geometries.get(name)
        if known is None or known[0] is not coding:
            known = self._geometries[name] = coding, Geometry.of(self.fields[name], coding)
        return known[1]


def _is_shard(fd: int, name: str) -> bool:
    """Return whether an open file is the shard of this name, perhaps unlinked meanwhile, or moved with its store."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name))  # noqa: PTH116
    except FileNotFoundError:
        found = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")  # noqa: PTH115
        return Path(found).parts[-2:] == Path(name).parts[-2:]


class FileCache:
    """Open files by path, for a worker process that executes portable plans."""

    def __init__(self, most: int = 512) -> None:
        self.most = most
        self._fds: dict[str, int] = {}

    def __call__(self, name: str, source: str) -> int:
        """Return an open file descriptor; -1 for no name.

        Args:
            name: The shard's path, never used for another file.
            source: Where the process that made the plan has it open.

        Raises:
            ReplayError: If it cannot be opened; whether it is damaged the process that made the plan has to find out.
        """
        if not name:
            return -1
        fd = self._fds.pop(name, -1)
        if fd < 0:
            try:
                fd = self._open(name, source)
            except OSError as err:
                self.most = min(self.most, max(1, len(self._fds) // 2))  # perhaps there are too many
                raise disk_error(err, name) from err
        self._fds[name] = fd
        return fd

    def _open(self, name: str, source: str) -> int:
        with contextlib.suppress(OSError):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            if _is_shard(fd, name):
                return fd
            os.close(fd)  # of a plan that was given up: by now that process has another file open there
        return open_regular(name)

    def trim(self) -> None:
        """Close the files used longest ago, between two plans."""
        while len(self._fds) > self.most:
            os.close(self._fds.pop(next(iter(self._fds))))
