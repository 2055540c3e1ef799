"""Checkpoints of a training run: written whole or not at all, read without running code.

A checkpoint and the store's commit belong together: the sampler's priorities are in the store. Both must name
the same update, so a checkpoint is saved in two steps: the next one is made durable under a second name, the
store commits with the update in its metadata, and then the name is changed. After a crash in between, the
store says which of the two files counts (`settle`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diskreplay.errors import SpecMismatchError, TrainingError
from diskreplay.experience import StepSpec
from diskreplay.learning.config import TrainConfig
from diskreplay.learning.network import QNetwork

if TYPE_CHECKING:
    from os import PathLike

FORMAT = 1
NAME = "checkpoint.pt"
NEXT_NAME = "checkpoint.next.pt"


@dataclass(frozen=True)
class Checkpoint:
    """Hold everything a run needs to go on.

    Attributes:
        run: Name of the run, made up at its start; the store's metadata repeat it.
        updates: Gradient steps done.
        config: Options of the run.
        spec: The store's spec.
        env_id: Environment the data came from or the run is evaluated in; empty if not known.
        seconds: Seconds spent learning, and `wait_seconds` of those waiting for data.
        wait_seconds: See `seconds`.
        learner: States of the networks and the optimizer, as `Learner.state_dict` gives them.
    """

    run: str
    updates: int
    config: TrainConfig
    spec: StepSpec
    env_id: str
    seconds: float
    wait_seconds: float
    learner: dict[str, Any]

    def build_network(self) -> QNetwork:
        """Return the online network, on the CPU.

        Raises:
            TrainingError: If the weights do not fit the config.
        """
        network = build_network(self.spec, self.config)
        try:
            network.load_state_dict(self.learner["network"])
        except (KeyError, RuntimeError) as err:
            raise TrainingError(f"the checkpoint's weights do not fit its config: {err}") from err
        return network

    def check_fits(self, spec: StepSpec, config: TrainConfig, path: Path) -> None:
        """Refuse to go on with another spec or with options that would learn something else.

        Raises:
            TrainingError: Names every difference.
        """
        if self.spec != spec:
            raise TrainingError(
                f"{path}: the checkpoint was trained on steps of another kind than the store's: "
                + self.spec.difference(spec),
                path=path,
                hint="Give the store the checkpoint was trained on, or another --out folder.",
            )
        changed = self.config.difference(config)
        if changed:
            raise TrainingError(
                f"{path}: the checkpoint was made with other options (checkpoint against now): {changed}",
                path=path,
                hint="Resume with the options of the checkpoint, or start anew in another folder.",
            )
        if config.updates < self.updates:
            raise TrainingError(
                f"{path}: the checkpoint has {self.updates} updates already, {config.updates} were asked for",
                path=path,
                hint="Ask for more updates; they are counted over all resumed runs.",
            )


def build_network(spec: StepSpec, config: TrainConfig) -> QNetwork:
    """Return the network a config describes, on the CPU, initialised from torch's generator."""
    return QNetwork(
        spec,
        frame_stack=config.frame_stack,
        hidden=config.hidden,
        dueling=config.dueling,
        activation=config.activation,
    )


def write_next(folder: Path, checkpoint: Checkpoint) -> None:
    """Make the next checkpoint durable beside the present one; `promote` makes it count."""
    data = {
        "format": FORMAT,
        **{field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)},
        "config": checkpoint.config.to_json(),
        "spec": checkpoint.spec.to_json(),
    }
    temporary = folder / (NEXT_NAME + ".tmp")
    with temporary.open("wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NEXT_NAME)
    _sync_folder(folder)


def promote(folder: Path) -> Path:
    """Let the next checkpoint take the place of the present one; return its path."""
    (folder / NEXT_NAME).replace(folder / NAME)
    _sync_folder(folder)
    return folder / NAME


def settle(folder: Path, committed: tuple[str, int] | None) -> Path | None:
    """Decide after a crash which checkpoint counts; return its path, or None if there is none.

    Args:
        folder: The run's folder.
        committed: Run and update that the store's last commit names, if any.
    """
    following = folder / NEXT_NAME
    if following.exists():
        checkpoint = read_checkpoint(following)
        if committed == (checkpoint.run, checkpoint.updates):
            promote(folder)
        else:
            following.unlink()
    path = folder / NAME
    return path if path.exists() else None


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint with `torch.load(weights_only=True)`: no code in the file is run.

    Raises:
        TrainingError: If there is no checkpoint, or the file is not one.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.exists():
        raise TrainingError(
            f"{path}: no checkpoint there",
            path=path,
            hint="Give the --out folder of a training run.",
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch's unpickler fails on foreign bytes in whatever way it meets them
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise TrainingError(f"{path}: not a checkpoint that can be read: {first}", path=path) from err
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise TrainingError(f"{path}: expected a checkpoint of format {FORMAT}, got {given!r}", path=path)
    try:
        return Checkpoint(
            **{
                **{field.name: data[field.name] for field in fields(Checkpoint)},
                "config": TrainConfig.from_json(data["config"]),
                "spec": StepSpec.from_json(data["spec"]),
            }
        )
    except (KeyError, TypeError, ValueError, SpecMismatchError) as err:
        raise TrainingError(f"{path}: the checkpoint lacks or misstates {err}", path=path) from err


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
