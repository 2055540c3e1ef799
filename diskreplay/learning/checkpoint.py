"""Checkpoints of a training run: written whole or not at all, read without running code.

A checkpoint and the store's commit belong together: the sampler's priorities are in the store. Both must name
the same update, so a checkpoint is saved in two steps: the next one is made durable under a second name, the
store commits with the update in its metadata, and then the name is changed. After a crash in between, the
store says which of the two files counts (`settle`).
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from diskreplay.errors import TrainingError
from diskreplay.experience import StepSpec
from diskreplay.learning.config import TrainConfig
from diskreplay.learning.network import QNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

FORMAT = 1
MARK = "training"
"""Key in the store's metadata under which a commit names the run and the update it belongs to."""
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What may come of a file that is not what it says: errors of Python's containers, of torch, of a spec."""
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

    def config_with(self, given: Mapping[str, Any], path: Path) -> TrainConfig:
        """Return the config of a run that goes on from here, with the given options instead of its own.

        Raises:
            TrainingError: If its own environment is to be made, and that would import a module: what a file says
                must not run code.
            ValueError: If a value is out of range.
        """
        config = dataclasses.replace(self.config, **given)
        env_id = config.eval_env or ""
        if "eval_env" not in given and config.eval_episodes and ":" in env_id:
            raise TrainingError(
                f"{path}: the checkpoint names the environment {env_id!r}, which would import a module of that name",
                path=path,
                hint=f"If you trust it, say so: --eval-env {env_id}; or --eval-env none for no evaluation.",
            )
        return config

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
    packed = io.BytesIO()  # straight to the file, torch hides what went wrong with the disk
    torch.save(data, packed)
    temporary = folder / (NEXT_NAME + ".tmp")
    with temporary.open("wb") as file:
        file.write(packed.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NEXT_NAME)
    _sync_folder(folder)


def promote(folder: Path) -> Path:
    """Let the next checkpoint take the place of the present one; return its path."""
    (folder / NEXT_NAME).replace(folder / NAME)
    _sync_folder(folder)
    return folder / NAME


def committed_run(metadata: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the run and the update that a store's last commit of a training run names, if any."""
    mark = metadata.get(MARK)
    if not isinstance(mark, dict) or not isinstance(mark.get("updates"), int):
        return None
    return str(mark.get("run")), mark["updates"]


def standing(folder: Path, committed: tuple[str, int] | None) -> Path | None:
    """Return the path of the checkpoint that counts, also after a crash; None if there is none. Changes nothing.

    Args:
        folder: The run's folder.
        committed: Run and update that the store's last commit names, if any.
    """
    following = folder / NEXT_NAME
    if following.exists():
        checkpoint = read_checkpoint(following)
        if committed == (checkpoint.run, checkpoint.updates):
            return following
    path = folder / NAME
    return path if path.exists() else None


def settle(folder: Path, committed: tuple[str, int] | None) -> Path | None:
    """Leave the one checkpoint that counts, as `standing` finds it; return its path, or None if there is none."""
    path = standing(folder, committed)
    if path == folder / NEXT_NAME:
        return promote(folder)
    (folder / NEXT_NAME).unlink(missing_ok=True)
    return path


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
        _check_bytes(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch's unpickler fails on foreign bytes in whatever way it meets them
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        if isinstance(err, UnpicklingError):  # torch's own words say how to run what a file brings
            first = "it holds other things than tensors and plain values"
        raise TrainingError(f"{path}: not a checkpoint that can be read: {first}", path=path) from err
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise TrainingError(f"{path}: expected a checkpoint of format {FORMAT}, got {given!r}", path=path)
    try:
        found = Checkpoint(
            **{
                **{field.name: data[field.name] for field in fields(Checkpoint)},
                "config": TrainConfig.from_json(data["config"]),
                "spec": StepSpec.from_json(data["spec"]),
            }
        )
        _check(found)
    except MISFITS as err:
        raise TrainingError(f"{path}: the checkpoint lacks or misstates {err}", path=path) from err
    return found


def _check_bytes(path: Path) -> None:
    """Compare every record with its checksum, which torch does not: a bit more or less is another network.

    Raises:
        ValueError: If one differs, or is not stored as it is; it could grow to any size.
    """
    with zipfile.ZipFile(path) as archive:
        wrong = next((i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED), None)
        wrong = wrong or archive.testzip()
    if wrong is not None:
        raise ValueError(f"its record {wrong} is damaged")


def _check(found: Checkpoint) -> None:
    """Check the type of every part, and each tensor against the network that the config describes.

    Nothing is allocated for that: what a file claims may be of any size.

    Raises:
        ValueError: If one does not fit; others of MISFITS if it is not even what can be compared.
    """
    for name in ("run", "env_id"):
        _require(isinstance(getattr(found, name), str), name, "a string", getattr(found, name))
    _require(type(found.updates) is int and found.updates >= 0, "updates", "a whole number", found.updates)
    for name in ("seconds", "wait_seconds"):
        value = getattr(found, name)
        sound = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        _require(sound, name, "a number of seconds", value)
    with torch.device("meta"):
        network = build_network(found.spec, found.config)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for part in ("network", "target"):
        _check_tensors(part, found.learner[part], shapes)
    _require(isinstance(found.learner["optimizer"], dict), "optimizer", "its state", found.learner["optimizer"])
    moments = found.learner["optimizer"]["state"]
    parameters = list(network.parameters())
    if found.updates or moments:
        _require(set(moments) == set(range(len(parameters))), "optimizer", "all parameters' moments", [*moments])
    for i, state in moments.items():
        shape = parameters[i].shape
        _check_tensors(f"optimizer {i}", state, {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape})


def _check_tensors(where: str, tensors: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> None:
    _require(isinstance(tensors, dict), where, "tensors by name", tensors)
    _require(set(tensors) == set(shapes), where, str(sorted(shapes)), [*tensors])
    for name, tensor in tensors.items():
        what, dense = f"{where} {name}", isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        dense = dense and tensor.device.type == "cpu" and tensor.is_contiguous()
        _require(dense, what, "a tensor, dense, in memory", "something else")
        _require(tensor.is_floating_point(), what, "floating-point numbers", tensor.dtype)
        _require(tensor.shape == shapes[name], what, f"shape {tuple(shapes[name])}", tuple(tensor.shape))
        _require(bool(tensor.isfinite().all()), what, "finite numbers", "others")


def _require(ok: bool, what: str, expected: str, given: object) -> None:
    if not ok:
        raise ValueError(f"{what}: expected {expected}, got {str(given)[:200]}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
