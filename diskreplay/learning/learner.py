"""The learner: two networks and an optimizer, and what one update does to them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diskreplay.errors import TrainingError
from diskreplay.learning.checkpoint import build_network
from diskreplay.learning.dqn import dqn_loss
from diskreplay.learning.network import action_leaf

if TYPE_CHECKING:
    from diskreplay.experience import Batch, StepSpec
    from diskreplay.learning.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Update:
    """Hold what one update did; detached tensors, so that nothing waits for the device.

    Attributes:
        td_error: (B,) TD errors, for the priorities.
        numbers: (4,) loss, mean Q, mean |TD error|, gradient norm before clipping.
    """

    td_error: Tensor
    numbers: Tensor


class Learner:
    """Improve a Q-network batch by batch.

    Its start depends on `config.seed` alone; torch's global generator is left as it was.

    Args:
        spec: What the observations and actions are.
        config: Options of the run.

    Raises:
        SpecMismatchError: If the action is not one Discrete leaf.
        TrainingError: If torch does not have the device.
    """

    def __init__(self, spec: StepSpec, config: TrainConfig) -> None:
        self._config = config
        self._first_action = action_leaf(spec).start
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(spec, config)
        try:
            torch.zeros(1, device=config.device).item()  # "meta" takes a network, but has no numbers
            self.network = network.to(config.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ImportError) as err:  # torch without CUDA asserts
            why = str(err).partition("\n")[0]
            raise TrainingError(f"device {config.device!r}: {why}", hint="Use --device cpu.") from err
        self.target = copy.deepcopy(self.network)
        for parameter in self.target.parameters():
            parameter.requires_grad = False
        # One fused kernel an update: the many small ones cost more than the arithmetic of a small network.
        self._optimizer = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )

    def update(self, batch: Batch, number: int) -> Update:
        """Take one gradient step; copy the target network if it is due.

        Args:
            batch: Tensors on the learner's device.
            number: Updates done before this one.
        """
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        result = dqn_loss(
            self.network,
            self.target,
            batch,
            double=config.double,
            huber=config.huber,
            rescale=config.rescale,
            cql_alpha=config.cql_alpha,
            first_action=self._first_action,
        )
        self._optimizer.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_clip)
        self._optimizer.step()
        if (number + 1) % config.target_every == 0:
            self.copy_target()
        magnitude = result.td_error.abs().mean()
        numbers = torch.stack([result.loss.detach(), result.mean_q, magnitude, norm.detach()])
        return Update(result.td_error, numbers)

    @torch.no_grad()
    def copy_target(self) -> None:
        """Make the target network equal to the online network."""
        self.target.load_state_dict(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both networks and the optimizer."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take on the states `state_dict` gave.

        Raises:
            TrainingError: If they are of other networks.
        """
        try:
            self.network.load_state_dict(state["network"])
            self.target.load_state_dict(state["target"])
            groups = self._optimizer.state_dict()["param_groups"]  # the config's, not a file's
            self._optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        except (KeyError, RuntimeError, ValueError) as err:
            raise TrainingError(f"the checkpoint's weights do not fit its config: {err}") from err
