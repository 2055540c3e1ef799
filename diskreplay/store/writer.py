"""Append steps to one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from diskreplay.errors import SpecMismatchError, WriterStateError
from diskreplay.experience.spec import ArraySpec, flatten
from diskreplay.experience.validation import as_array, check_array, check_flag, check_flags, check_reward, check_rewards
from diskreplay.storage import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from diskreplay.experience.spec import Tree
    from diskreplay.storage.streams import Stream
    from diskreplay.store.replay_store import ReplayStore


class StreamWriter:
    """Write the ordered steps of one actor. Made by `ReplayStore.writer`; a context manager.

    Steps are visible to samplers of this process at once, durable after `ReplayStore.commit`. When a segment is
    full the store commits by itself, so that memory stays bounded.

    Attributes:
        name: The stream's name.
    """

    def __init__(self, store: ReplayStore, stream: Stream) -> None:
        self._store = store
        self._stream = stream
        self._spec = store.spec
        self._engine = store._engine  # noqa: SLF001  the writer is the store's other half
        self._in_episode = False
        self._closed = False
        self.name = stream.name

    @property
    def steps(self) -> int:
        """Return how many steps the stream holds since it was made, evicted ones included."""
        return self._stream.steps

    @property
    def episodes(self) -> int:
        """Return how many episodes of the stream have ended since it was made."""
        return self._stream.episodes

    def reset(self, observation: Any) -> None:
        """Begin an episode with its first observation; one that is going on ends as interrupted.

        Raises:
            SpecMismatchError: If the observation does not fit the spec.
        """
        try:
            values = self._observed(observation)
        except SpecMismatchError as err:
            raise self._at_step(err) from err
        with self._engine.lock:
            self._check_open()
            self._end_running()
            tail = self._engine.tail_to_write(self._stream)
            self._stream.torn = True
            tail.observe(values)
            self._follow()
            self._in_episode = True
            self._stream.torn = False
        self._commit_if_full()

    def step(self, action: Any, reward: Any, terminated: Any, truncated: Any, next_observation: Any) -> int:
        """Append what was done, what followed and the observation it led to; return the step id.

        Args:
            action: The action taken in the newest observation.
            reward: A finite number.
            terminated: Whether a terminal state was reached.
            truncated: Whether the episode was cut off.
            next_observation: The observation that followed; the episode's last if it ended.

        Raises:
            SpecMismatchError: If a value does not fit the spec; nothing is written.
            WriterStateError: If no episode is going on, or the writer is closed.
            StoreFullError: If a full segment could not be committed. The step is kept all the same (`steps` counts
                it): do not repeat it; make room and go on, or call `ReplayStore.commit`. Or if a new segment could not
                be begun: then the step is not kept, its episode ends as interrupted, and `reset` begins the next.
        """
        self._check_in_episode()
        try:
            acted = self._acted(action)
            gain = check_reward(reward)
            ended, cut = check_flag("terminated", terminated), check_flag("truncated", truncated)
            follows = self._observed(next_observation)
        except SpecMismatchError as err:
            raise self._at_step(err) from err
        engine, stream = self._engine, self._stream
        with engine.lock:
            self._check_in_episode()  # again: another thread may have closed the writer, or ended the episode
            tail = stream.tails[-1]
            try:
                new = engine.new_tails(stream, 1) if tail.rows + 1 == engine.segment_steps else ()
            except BaseException:
                self._end_running()  # the step is not kept, so the next one must not go on from before it
                raise
            stream.torn = True
            step_id = tail.act(acted, gain, terminated=ended, truncated=cut)
            stream.steps += 1
            for following in new:
                engine.table.follow_tail(engine.table.slot(tail.segment), tail)
                tail = engine.start_tail(stream, following)
            tail.observe(follows)
            if ended or cut:
                engine.end_episode(stream, ended * layout.TERMINATED | (cut and not ended) * layout.TRUNCATED)
                self._in_episode = False
            self._follow()
            stream.torn = False
        self._commit_if_full()
        return step_id

    def write_episode(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminations: Any,
        truncations: Any,
    ) -> NDArray[np.int64]:
        """Append a whole episode of T steps at once; return the (T,) step ids.

        Args:
            observations: T + 1 of them along the leading axis, nested as the spec is.
            actions: T, nested as the spec is.
            rewards: (T,).
            terminations: (T,); only the last may be true.
            truncations: (T,); likewise. With neither, the episode counts as interrupted.

        Raises:
            SpecMismatchError: If something does not fit; nothing is written.
            StoreFullError: If a full segment could not be committed; the episode is kept, as in `step`. Or if new
                segments could not be begun: then nothing of it is.
        """
        self._check_open()
        try:
            rewards = as_array("rewards", rewards)
            if rewards.ndim != 1:
                raise SpecMismatchError(f"rewards: expected shape (T,), got {rewards.shape}")
            count = len(rewards)
            gains = check_rewards(rewards, count=count)
            ended = check_flags("terminations", terminations, count=count)
            cut = check_flags("truncations", truncations, count=count)
            if count == 0:
                raise SpecMismatchError("an episode needs at least one step")
            early = np.flatnonzero(ended[:-1] | cut[:-1])
            if len(early):
                raise SpecMismatchError(f"step {int(early[0])} of {count} ends the episode, but steps follow")
            seen = self._observed(observations, count=count + 1)
            acted = self._acted(actions, count=count)
        except SpecMismatchError as err:
            raise self._at_step(err) from err
        engine, stream, done, ids = self._engine, self._stream, 0, []
        with engine.lock:
            self._check_open()
            self._end_running()
            tail = engine.tail_to_write(stream)
            new = engine.new_tails(stream, (tail.rows + count) // engine.segment_steps)
            stream.torn = True
            while done < count:
                part = slice(done, done + min(count - done, engine.segment_steps - tail.rows))
                ids.append(tail.first_step_id + np.arange(tail.rows, tail.rows + part.stop - done))
                tail.extend(
                    [values[part] for values in seen],
                    [values[part] for values in acted],
                    gains[part], ended[part], cut[part],
                )  # fmt: skip
                engine.table.follow_tail(engine.table.slot(tail.segment), tail)
                done = part.stop
                if tail.full:
                    tail = engine.start_tail(stream, new.pop(0))
                tail.observe([values[done] for values in seen])
            stream.steps += count
            flags = layout.TERMINATED if ended[-1] else layout.TRUNCATED if cut[-1] else layout.INTERRUPTED
            engine.end_episode(stream, flags)
            self._follow()
            stream.torn = False
        self._commit_if_full()
        return np.concatenate(ids)

    def close(self) -> None:
        """End an unfinished episode as interrupted and give the stream back. Commits nothing."""
        with self._engine.lock:
            if self._closed:  # perhaps by another thread, and the stream may be another writer's by now
                return
            self._end_running()
            self._closed = self._stream.closing = True  # at once: of an interrupt in what follows the stream knows
            self._store._writer_closed(self)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Of a writer that nobody closed. A collection may come in the midst of any change, so no more than this is done
        # here: the stream's next writer ends the episode, or the next commit gives the stream back with it unfinished.
        if not getattr(self, "_closed", True):
            self._stream.closing = True

    def _end_running(self) -> None:
        tail = self._stream.open_tail
        if tail is not None and tail.pending and not self._stream.torn:
            self._stream.torn = True
            self._engine.end_episode(self._stream, layout.INTERRUPTED)
            self._follow()
            self._stream.torn = False
        self._in_episode = False

    def _follow(self) -> None:
        tail = self._stream.tails[-1]
        self._engine.table.follow_tail(self._engine.table.slot(tail.segment), tail)

    def _commit_if_full(self) -> None:
        with self._engine.lock:
            self._engine.encode_ahead(self._stream)
            full = any(tail.full for tail in self._stream.tails)
        if full:
            self._store.commit()

    def _check_open(self) -> None:
        if self._closed:
            raise WriterStateError(
                f"stream {self.name!r}: the writer is closed",
                hint="Get another one from store.writer().",
            )
        self._stream.require_whole()

    def _check_in_episode(self) -> None:
        self._check_open()
        if not self._in_episode:
            raise WriterStateError(f"stream {self.name!r}: step() outside an episode")

    def _observed(self, value: Any, count: int | None = None) -> list[Any]:
        return _checked(self._spec.observation, self._spec.observation_leaves, value, "observation", count)

    def _acted(self, value: Any, count: int | None = None) -> list[Any]:
        return _checked(self._spec.action, self._spec.action_leaves, value, "action", count, in_space=True)

    def _at_step(self, err: SpecMismatchError) -> SpecMismatchError:
        where = f"stream {self.name!r}, step {self.steps}: {err}"
        return SpecMismatchError(where, path=self._store.path, hint=err.hint)


def _checked(
    tree: Tree, leaves: Sequence[ArraySpec], value: Any, name: str, count: int | None, *, in_space: bool = False
) -> list[Any]:
    """Return a value's leaves, as `check_array` returns them."""
    if isinstance(tree, ArraySpec):  # the usual case, an eighth of a step's time shorter
        return [check_array(tree, value, count=count, in_space=in_space)]
    parts = flatten(tree, value, name)
    return [check_array(leaf, part, count=count, in_space=in_space) for leaf, part in zip(leaves, parts, strict=True)]
