"""The loss of deep Q-learning: targets, TD errors, importance weights, a conservative term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diskreplay.experience import Batch

EPS = 1e-3
"""What keeps `rescaled` invertible for large values."""


@dataclass(frozen=True, slots=True)
class DQNLoss:
    """Hold what one batch says about the network.

    Attributes:
        loss: () the number to minimise, with its graph.
        td_error: (B,) Q(o, a) minus its target, detached; not weighted, so it can be a priority.
        mean_q: () mean of Q(o, a), detached.
    """

    loss: Tensor
    td_error: Tensor
    mean_q: Tensor


@torch.no_grad()
def td_target(
    online: nn.Module,
    target: nn.Module,
    batch: Batch,
    *,
    double: bool = True,
    rescale: bool = False,
) -> Tensor:
    """Return `R + discount * Q_target(o', a*)`, (B,).

    a* maximises the target network (Mnih et al. 2015), or with `double` the online network (van Hasselt
    et al. 2016, arXiv:1509.06461). `batch.discount` is gamma^m, and 0 where the episode terminated: a
    truncated one bootstraps. With `rescale` the networks' values are h(Q), h being `rescaled`, and so is the
    target: `h(R + discount * h^-1(Q_target))` (Pohlen et al. 2018, arXiv:1805.11593, equation 7).
    """
    values: Tensor = target(batch.next_observation)
    if double:
        best = online(batch.next_observation).argmax(dim=1, keepdim=True)
        bootstrap = values.gather(1, best).squeeze(1)
    else:
        bootstrap = values.amax(dim=1)
    if rescale:
        bootstrap = unscaled(bootstrap)
    result: Tensor = batch.reward + batch.discount * bootstrap
    return rescaled(result) if rescale else result


def dqn_loss(
    online: nn.Module,
    target: nn.Module,
    batch: Batch,
    *,
    double: bool = True,
    huber: bool = True,
    rescale: bool = False,
    cql_alpha: float = 0.0,
    first_action: int = 0,
) -> DQNLoss:
    """Return `mean_i w_i (rho(td_i) + cql_alpha (logsumexp_a Q(o_i, a) - Q(o_i, a_i)))`.

    rho is the Huber loss with threshold 1, or half the square. The second term is CQL(H) (Kumar et al. 2020,
    arXiv:2006.04779, equation 4): it holds down the values of actions the data do not show.

    Args:
        online: Network to improve; maps observations to Q-values (B, actions).
        target: Network the targets are taken from.
        batch: Tensors on the networks' device.
        double: Choose the next action with the online network.
        huber: Huber loss; half the squared error otherwise.
        rescale: The networks' values are rescaled ones.
        cql_alpha: Weight of the conservative term; 0 leaves it out.
        first_action: The action space's start; actions are counted from it.
    """
    goal = td_target(online, target, batch, double=double, rescale=rescale)
    values: Tensor = online(batch.observation)
    index = batch.action.to(torch.int64).reshape(-1, 1) - first_action
    chosen = values.gather(1, index).squeeze(1)
    penalty = nn.functional.huber_loss if huber else _half_square
    each = penalty(chosen, goal, reduction="none")
    if cql_alpha:
        each = each + cql_alpha * (values.logsumexp(dim=1) - chosen)
    loss = (batch.weight * each).mean()
    return DQNLoss(loss, (chosen - goal).detach(), chosen.detach().mean())


def rescaled(values: Tensor) -> Tensor:
    """Return `h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x`: large values small, and back by `unscaled`.

    Pohlen et al. 2018, with eps = 0.001 as in R2D2 (Kapturowski et al. 2019).
    """
    return values.sign() * ((values.abs() + 1).sqrt() - 1) + EPS * values


def unscaled(values: Tensor) -> Tensor:
    """Return the x with `rescaled(x) = values`.

    Computed in float64, because it subtracts nearly equal numbers.
    """
    wide = values.double()
    root = ((1 + 4 * EPS * (wide.abs() + 1 + EPS)).sqrt() - 1) / (2 * EPS)
    return (wide.sign() * (root.square() - 1)).to(values.dtype)


def _half_square(chosen: Tensor, goal: Tensor, reduction: str) -> Tensor:
    return 0.5 * nn.functional.mse_loss(chosen, goal, reduction=reduction)
