"""The training loop: batches from a store to a network, with metrics, evaluations and checkpoints.

Owns the order of things. A checkpoint and the store's commit, which holds priorities and sampler, happen
together, so that a resumed run draws the very batches the uninterrupted one would have drawn.
"""

from __future__ import annotations

import sys
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from diskreplay.errors import NotEnoughStepsError, ReadOnlyError, TrainingError
from diskreplay.learning import checkpoint as checkpoints
from diskreplay.learning import curve
from diskreplay.learning.batches import Batches
from diskreplay.learning.checkpoint import Checkpoint
from diskreplay.learning.evaluation import Evaluator
from diskreplay.learning.learner import Learner
from diskreplay.learning.manners import set_on_signals, torch_threads
from diskreplay.learning.metrics import MetricsLog, read_metrics
from diskreplay.learning.policy import EpsilonGreedyPolicy
from diskreplay.learning.report import Stopwatch, Tally, TrainReport, pace

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from diskreplay.learning.config import TrainConfig
    from diskreplay.learning.evaluation import EnvFactory
    from diskreplay.store import ReplayStore


def train(
    store: ReplayStore,
    out_dir: str | PathLike[str],
    config: TrainConfig,
    *,
    resume: bool = False,
    env_factory: EnvFactory | None = None,
    progress: bool = True,
    on_report: Callable[[dict[str, Any]], None] | None = None,
) -> TrainReport:
    """Train a Q-network on a store, offline, and leave everything about the run in a folder.

    The folder gets `checkpoint.pt`, `metrics.jsonl`, `curve.png` and `tensorboard/`. Ctrl-C and SIGTERM
    finish the update, write a checkpoint and return a report; a second one stops at once.

    Args:
        store: Store to learn from, opened with mode="a": checkpoints commit the priorities to it.
        out_dir: Folder of the run; made if it does not exist.
        config: Options; `TrainConfig.for_spec(store.spec)` has the defaults.
        resume: Go on from the folder's checkpoint; from the start if it has none yet, so that the same
            command can be given after every interruption.
        env_factory: Makes the evaluation's environments; `gymnasium.make` if None.
        progress: Show a progress bar on stderr.
        on_report: Called with every record of metrics.jsonl.

    Raises:
        TrainingError: If the folder holds another run, the checkpoint does not fit the store or the options,
            the environment does not fit, or the loss is not finite any more.
        SpecMismatchError: If the store's action is not one Discrete space.
        ReadOnlyError: If the store is read-only.
        NotEnoughStepsError: If the store holds no transition.
    """
    trainer = Trainer(store, out_dir, config, resume=resume)
    return trainer.run(env_factory=env_factory, progress=progress, on_report=on_report)


class Trainer:
    """Hold a run's state between its updates. The arguments are those of `train`."""

    def __init__(
        self,
        store: ReplayStore,
        out_dir: str | PathLike[str],
        config: TrainConfig,
        *,
        resume: bool = False,
    ) -> None:
        if store.mode != "a":
            raise ReadOnlyError(
                f"{store.path}: training commits priorities to the store, which was opened with mode='r'",
                path=store.path,
            )
        if not len(store):
            raise NotEnoughStepsError(f"{store.path}: no transition to learn from", path=store.path)
        self.store, self.config = store, config
        self.folder = Path(out_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.env_id = config.eval_env or _env_id_of(store, config)
        self.learner = Learner(store.spec, config)
        self._stop = threading.Event()
        found = self._find_checkpoint(resume=resume)
        if found is None:
            self._run, self.updates = uuid.uuid4().hex, 0
            self._clock = Stopwatch()
            self.batches = Batches(store, config)
            if config.normalise:
                self.batches.normalise(self.learner.network)
                self.learner.copy_target()
        else:
            self._run, self.updates = found.run, found.updates
            self._clock = Stopwatch(found.seconds)
            self.batches = Batches(store, config, resume=True, wait_seconds=found.wait_seconds)
            if self.batches.delivered != found.updates:
                raise TrainingError(
                    f"{store.path}: its sampler has delivered {self.batches.delivered:,} batches, the run made "
                    f"{found.updates:,} updates: somebody else used the sampler of that name since",
                    path=store.path,
                    hint="Start anew in another folder; give samplers of your own another name.",
                )
            self.learner.load_state_dict(found.learner)
        # Not before the sampler is this run's: another that still goes on may be about to let its next one count.
        checkpoints.settle(self.folder, checkpoints.committed_run(store.metadata))
        self._tally = Tally(self._clock.seconds, self.batches.wait_seconds)
        self._returns: list[float] = []
        self._evaluated_at = -1

    def run(
        self,
        *,
        env_factory: EnvFactory | None = None,
        progress: bool = True,
        on_report: Callable[[dict[str, Any]], None] | None = None,
    ) -> TrainReport:
        """Do the updates that are left, evaluate, and write the last checkpoint and the curve."""
        updates, seconds, waited = self.updates, self._clock.seconds, self.batches.wait_seconds
        whole = Stopwatch()
        with ExitStack() as stack:
            stack.enter_context(whole.running())
            self._on_report = on_report or (lambda _: None)
            self._evaluator = self._make_evaluator(env_factory)
            if self._evaluator is not None:
                stack.enter_context(self._evaluator)
            self._log = stack.enter_context(
                MetricsLog(self.folder, update=self.updates, tensorboard=self.config.tensorboard)
            )
            self._recall_evaluation()
            stack.enter_context(torch_threads(self.config.torch_threads))
            stack.enter_context(set_on_signals(self._stop))
            stack.callback(self.batches.close)
            self._bar = stack.enter_context(
                tqdm(
                    total=self.config.updates,
                    initial=self.updates,
                    unit=" updates",
                    disable=not progress,
                    file=sys.stderr,
                    dynamic_ncols=True,
                )
            )
            if self.updates < self.config.updates:
                self.batches.warm_up()
            with self._clock.running():
                self._learn()
            if self.updates == self.config.updates:
                self._evaluate()
            self._save()
            records = read_metrics(self.folder)
            curve.plot_curve(records, self.folder / curve.NAME, title=self.env_id)
        rate, share = pace(
            self.updates - updates,
            self._clock.seconds - seconds,
            self.batches.wait_seconds - waited,
        )
        evaluated = self._evaluated_at == self.updates
        returns = self._returns if evaluated else []
        return TrainReport(
            updates=self.updates,
            updates_per_second=rate,
            data_wait_share=share,
            eval_return_mean=sum(returns) / len(returns) if returns else None,
            eval_returns=returns,
            quarantined=sorted(self.batches.skipped),
            interrupted=self.updates < self.config.updates or not (evaluated or self._evaluator is None),
            seconds=whole.seconds,
            out_dir=self.folder,
        )

    def _learn(self) -> None:
        config = self.config
        if self.updates and config.eval_every and self.updates % config.eval_every == 0:
            self._evaluate()  # the one that a signal cut off before the checkpoint this run goes on from
        while self.updates < config.updates and not self._stop.is_set():
            batch = self.batches.next()
            update = self.learner.update(batch, self.updates)
            self.batches.set_priorities(batch, update.td_error)
            self._tally.add(update)
            self.updates += 1
            self._bar.update()
            last = self.updates == config.updates
            if self.updates % config.log_every == 0 or last:
                self._log_tally()
            if config.eval_every and self.updates % config.eval_every == 0:
                self._evaluate()
            if self.updates % config.checkpoint_every == 0 and not last:
                self._save()

    def _log_tally(self) -> None:
        record = {
            "kind": "train",
            "update": self.updates,
            **self._tally.summary(self._clock.seconds, self.batches.wait_seconds),
            "learning_rate": self.config.learning_rate_at(self.updates - 1),
        }
        self._write(record)
        status = f"loss {record['loss']:.3g}, data wait {record['data_wait_share']:.0%}"
        if self._returns:
            status += f", return {sum(self._returns) / len(self._returns):.1f}"
        self._bar.set_postfix_str(status, refresh=False)

    def _evaluate(self) -> None:
        if self._evaluator is None or self._evaluated_at == self.updates:
            return
        with self._clock.paused():
            policy = EpsilonGreedyPolicy(self.learner.network, self.env_id, self.config.device)
            returns = self._evaluator.run(policy, should_stop=self._stop.is_set)
        if len(returns) < self.config.eval_episodes:
            return
        self._returns, self._evaluated_at = returns, self.updates
        mean = sum(returns) / len(returns)
        self._write(
            {
                "kind": "evaluation",
                "update": self.updates,
                "eval_return_mean": mean,
                "eval_returns": returns,
            }
        )

    def _save(self) -> None:
        """Commit the store and write the checkpoint, together."""
        with self._clock.paused():
            self._tally.means()
            self._log.sync()
            checkpoint = Checkpoint(
                run=self._run,
                updates=self.updates,
                config=self.config,
                spec=self.store.spec,
                env_id=self.env_id,
                seconds=self._clock.seconds,
                wait_seconds=self.batches.wait_seconds,
                learner=self.learner.state_dict(),
            )
            checkpoints.write_next(self.folder, checkpoint)
            self.store.update_metadata({checkpoints.MARK: {"run": self._run, "updates": self.updates}})
            self.store.commit()
            checkpoints.promote(self.folder)

    def _find_checkpoint(self, *, resume: bool) -> Checkpoint | None:
        committed = checkpoints.committed_run(self.store.metadata)
        path = checkpoints.standing(self.folder, committed)
        if path is None:
            return None
        if not resume:
            raise TrainingError(
                f"{self.folder}: there is a training run already",
                path=self.folder,
                hint="Go on with it (--resume), or name another folder (--out).",
            )
        found = checkpoints.read_checkpoint(path)
        found.check_fits(self.store.spec, self.config, path)
        if committed != (found.run, found.updates):
            other = f"run {committed[0]}, update {committed[1]}" if committed else "no training run"
            raise TrainingError(
                f"{path}: the checkpoint (run {found.run}, update {found.updates}) and the store do not "
                f"belong together: the store's last training commit is of {other}",
                path=path,
                hint="Resume with the store this run trained on last, or start anew in another folder.",
            )
        return found

    def _make_evaluator(self, env_factory: EnvFactory | None) -> Evaluator | None:
        if not (self.config.eval_episodes and self.env_id):
            return None
        return Evaluator(
            self.store.spec,
            self.env_id,
            episodes=self.config.eval_episodes,
            seed=self.config.seed,
            max_envs=self.config.eval_envs,
            max_steps=self.config.eval_max_steps,
            env_factory=env_factory,
        )

    def _recall_evaluation(self) -> None:
        """Take the last evaluation from the metrics of the run that is resumed."""
        for record in read_metrics(self.folder):
            if record["kind"] == "evaluation":
                self._returns, self._evaluated_at = record["eval_returns"], record["update"]

    def _write(self, record: dict[str, Any]) -> None:
        self._log.write(record)
        self._on_report(record)


def _env_id_of(store: ReplayStore, config: TrainConfig) -> str:
    """Return the environment that the store's metadata name.

    Raises:
        TrainingError: If it is to be made, and that would import a module: what a store says must not run code.
    """
    env_id = str(store.metadata.get("env_id", ""))
    if config.eval_episodes and ":" in env_id:
        raise TrainingError(
            f"{store.path}: its metadata name the environment {env_id!r}, which would import a module of that name",
            path=store.path,
            hint=f"If you trust it, say so: --eval-env {env_id}; or --eval-env none for no evaluation.",
        )
    return env_id
