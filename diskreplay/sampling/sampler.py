"""What all samplers share: a random state that is committed with the store, and draws in flight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diskreplay.errors import NotEnoughStepsError, SpecMismatchError, StepEvictedError
from diskreplay.storage.commit import SamplerRecord
from diskreplay.storage.drawn import pack_drawn, unpack_drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from diskreplay.store import ReplayStore


T = TypeVar("T")
REFRESHES = 200


@dataclass(eq=False, slots=True)
class Draw:
    """A batch that was drawn.

    Attributes:
        step_ids: (B,) int64.
        weight: (B,) float32, importance weights.
        log_scale: Logarithm of what the weights were divided by, so that the largest is 1.
        number: Among those drawn ahead.
    """

    step_ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    log_scale: float = 0.0
    number: int = -1

    def replaced(self, gone: NDArray[np.bool_], other: Draw) -> Draw:
        """Return this draw with the steps of another one where its own are gone, (B,) bool; the largest weight is 1."""
        scale = max(self.log_scale, other.log_scale)
        mine, others = (draw.weight * np.exp(draw.log_scale - scale) for draw in (self, other))
        weight, ids = np.where(gone, others, mine), np.where(gone, other.step_ids, self.step_ids)
        largest = float(weight.max())
        if not largest > 0:  # nothing is left of the lighter ones
            return replace(self, step_ids=ids, weight=np.ones_like(self.weight))
        return replace(
            self, step_ids=ids, weight=(weight / largest).astype(np.float32), log_scale=scale + math.log(largest)
        )

    def to_json(self) -> list[str]:
        """Return it as a sampler's state holds it."""
        return pack_drawn(self.step_ids, self.weight, self.log_scale)

    @classmethod
    def from_json(cls, data: list[str]) -> Draw:
        """Build from `to_json`'s list.

        Raises:
            ValueError: If it is none.
        """
        return cls(*unpack_drawn(data))


class Request:
    """A draw that was asked for; made by `Sampler.serve`, at the latest before anything changes that it depends on."""

    def __init__(self, how: Callable[[], Draw]) -> None:
        self._how = how
        self._made: Draw | None = None
        self._failed: Exception | None = None

    def make(self) -> None:
        """Draw; what goes wrong is for the one who asked."""
        try:
            self._made = self._how()
        except Exception as err:  # noqa: BLE001  raised by `result`
            self._failed = err

    @property
    def made(self) -> Draw | None:
        """Return the draw, if it was made."""
        return self._made

    def result(self) -> Draw:
        """Return the draw, or raise what went wrong, once; it must have been served."""
        failed = self._failed
        self.let_go()
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # it holds this frame
        assert self._made is not None  # noqa: S101  served
        return self._made

    def let_go(self) -> None:
        """Forget what went wrong: its traceback holds this request, a cycle with all that it sees."""
        self._failed = None


class Sampler(ABC):
    """Draw batches of step ids from a store.

    Same seed, same store, same calls: same batches. The state is written by every `store.commit()` in the same
    transaction as the data; a sampler made with `resume=True` goes on from there, draws in flight included.

    Args:
        store: The store.
        seed: Where the random numbers begin; None: anywhere.
        name: Under which name the state is kept.
        resume: Go on from the committed state, if there is one. Default: if no seed is given.

    Raises:
        SpecMismatchError: If the state kept under that name is another kind of sampler's.
    """

    def __init__(
        self,
        store: ReplayStore,
        *,
        seed: int | None,
        name: str,
        resume: bool | None = None,
    ) -> None:
        if not name or "\0" in name or len(name.encode()) > 100:
            raise ValueError(f"a sampler's name has 1 to 100 bytes, got {name!r}")
        self.store = store
        self.name = name
        self.batches = 0
        self.batches_delivered = 0
        self._random = np.random.default_rng(seed)
        self._in_flight: dict[int, Draw] = {}
        self._numbers = count()
        self._drawn_before: deque[Draw] = deque()
        self._requests: deque[Request] = deque()
        self._serving = False
        with store.lock:
            state = store.access.load_state(name)
            if state is not None and store.access.writable:
                self._check_kind(state["kind"])
            if state is not None and (seed is None if resume is None else resume):
                self.load_state_dict(state)
            # Last: what could not be made is not to be committed.
            store.access.join(name, self)
            store.access.watch(self)

    @abstractmethod
    def _draw(self, batch_size: int) -> Draw:
        """Draw from the live steps, a Draw of its own each time; called with the store's lock held."""

    def draw(self, batch_size: int) -> Draw:
        """Draw a batch, with replacement: it may be larger than the store.

        Raises:
            NotEnoughStepsError: If there is nothing to draw.
        """
        with self.store.lock:
            recalled = bool(self._drawn_before)
            draw = self.draw_ahead(batch_size)
            if recalled:  # steps may have been evicted since
                draw, _ = self.mend(draw, self.draw_again)
            return self.delivered(draw)

    def draw_ahead(self, batch_size: int) -> Draw:
        """Draw a batch that is to be delivered later: until then it is part of the sampler's state."""
        if isinstance(batch_size, bool) or int(batch_size) != batch_size or not 1 <= batch_size <= 1 << 24:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        self.store.check_open()
        with self.store.lock:
            self.serve()
            draw = None
            if self._drawn_before:
                draw = self._drawn_before.popleft()
                if len(draw.step_ids) != batch_size:
                    self.batches_delivered += 1 + len(self._drawn_before)  # as good as: they are not on their way
                    self._drawn_before.clear()
                    draw = None
                else:
                    draw = replace(draw)  # whoever had it before knows its former number
            if draw is None:
                draw = self.draw_again(int(batch_size))
                self.batches += 1
            draw.number = next(self._numbers)
            self._in_flight[draw.number] = draw
            return draw

    def request(self, how: Callable[[], Draw]) -> Request:
        """Ask for a draw without waiting for it: `how` is called by whoever calls `serve` next.

        Everything that changes what a draw depends on (priorities, live steps, the sampler's state) serves first. So
        the draws are the same as if each had been made when it was asked for, whichever thread makes them.
        """
        request = Request(how)
        self._requests.append(request)
        return request

    def serve(self) -> None:
        """Make the draws that were asked for, in that order; afterwards they are made, whichever thread does it."""
        with self.store.lock:
            if self._serving:  # a draw may refresh the store, which serves
                return
            self._serving = True
            try:
                while self._requests:
                    self._requests.popleft().make()
            finally:
                self._serving = False

    def draw_again(self, batch_size: int) -> Draw:
        """Draw steps that take the place of others; they are no batch of their own."""
        with self.store.lock:
            if not len(self.store):
                raise NotEnoughStepsError(f"{self.store.path}: no transition to sample yet")
            return self._current(lambda: self._draw(batch_size))

    def _current(self, look: Callable[[], T]) -> T:
        """Look at the store; again, refreshed, if another process evicted what was looked at."""
        for _ in range(REFRESHES):
            try:
                return look()
            except StepEvictedError:
                self.store.refresh()
        return look()

    def delivered(self, draw: Draw) -> Draw:
        """Note that a batch drawn ahead reached its user. Takes no lock: another thread may be drawing."""
        if self._in_flight.pop(draw.number, None) is not None:
            self.batches_delivered += 1
        return draw

    def mend(self, draw: Draw, again: Callable[[int], Draw]) -> tuple[Draw, int]:
        """Put steps that `again` draws in the place of those that cannot be sampled any more; return how many.

        Raises:
            StepEvictedError: If another process evicts while one looks what is gone.
        """
        with self.store.lock:
            gone = ~self.store.access.can_sample(draw.step_ids)
            count = int(gone.sum())
            if not count:
                return draw, 0
            other = again(len(draw.step_ids))
            mended = draw.replaced(gone, other)
            if draw.number in self._in_flight:
                self._in_flight[draw.number] = mended
            return mended, count

    def recall(self, draws: Sequence[Draw]) -> None:
        """Put back, in order, batches that were drawn ahead and will not be delivered: they come next again."""
        with self.store.lock:
            self.serve()
            numbers = sorted(draw.number for draw in draws if draw.number in self._in_flight)
            self._drawn_before.extendleft(self._in_flight.pop(number) for number in reversed(numbers))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a JSON object: random numbers, batches drawn, draws in flight."""
        with self.store.lock:
            self.serve()
            waiting = [*self._in_flight.values(), *self._drawn_before]
            return {
                "kind": type(self).__name__,
                "random": self._random.bit_generator.state,
                "batches": self.batches,
                "in_flight": [draw.to_json() for draw in waiting],
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned.

        Raises:
            SpecMismatchError: If it is another kind of sampler's, or damaged.
        """
        with self.store.lock:
            self.serve()
            try:
                self._check_kind(state["kind"])
                batches, before = int(state["batches"]), deque(Draw.from_json(draw) for draw in state["in_flight"])
                self._random.bit_generator.state = state["random"]  # which refuses what is none
                self.batches, self._drawn_before = batches, before
                self.batches_delivered = batches - len(before)
            except SpecMismatchError:
                raise
            except (KeyError, TypeError, ValueError, OverflowError) as err:
                raise SpecMismatchError(f"sampler {self.name!r}: not a sampler's state: {err!r}") from err
            self._in_flight = {}

    def _check_kind(self, kind: str) -> None:
        if kind != type(self).__name__:
            raise SpecMismatchError(
                f"sampler {self.name!r}: the state is of a {kind}, this is a {type(self).__name__}",
                hint="Give this sampler a name of its own.",
            )

    def collect(self) -> SamplerRecord:
        """Return what is to be committed with the data."""
        return SamplerRecord(self.name, self.state_dict())

    def committed(self) -> None:  # noqa: B027  most samplers have nothing to do
        """Hear that what was collected is durable."""
