"""The loss against a numpy twin that follows the formulas line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from diskreplay.experience import Batch
from diskreplay.learning.dqn import dqn_loss, rescaled, td_target, unscaled

B, D, A = 16, 3, 4


def make_batch(rng, *, first_action=0):
    return Batch(
        observation=rng.normal(size=(B, D)).astype(np.float32),
        action=rng.integers(A, size=B) + first_action,
        reward=rng.normal(size=B).astype(np.float32) * 3,
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9**3).astype(np.float32),
        next_observation=rng.normal(size=(B, D)).astype(np.float32),
        weight=rng.uniform(0.1, 1.0, size=B).astype(np.float32),
        step_ids=np.arange(B),
    )


def to_torch(batch):
    return Batch(**{name: torch.as_tensor(getattr(batch, name)) for name in Batch.__slots__})


def linear(rng):
    layer = nn.Linear(D, A)
    weight, bias = rng.normal(size=(A, D)), rng.normal(size=A)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        layer.bias.copy_(torch.as_tensor(bias))
    return layer, lambda x: x.astype(np.float64) @ weight.T + bias


def h(x):
    return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x


def h_inverse(y):
    """Solve h(x) = y, for h only grows."""
    return brentq(lambda x: h(x) - y, -1e6, 1e6, xtol=1e-12)


def twin(q, q_target, batch, *, double, huber, rescale, cql_alpha, first_action):
    """Compute loss, TD errors and mean Q one transition at a time."""
    losses, errors, chosen = [], [], []
    for i in range(B):
        values, following = q(batch.observation[i]), q_target(batch.next_observation[i])
        best = int(np.argmax(q(batch.next_observation[i]) if double else following))
        bootstrap = h_inverse(following[best]) if rescale else following[best]
        goal = batch.reward[i] + batch.discount[i] * bootstrap
        goal = h(goal) if rescale else goal
        now = values[batch.action[i] - first_action]
        error = now - goal
        linear_part = huber and abs(error) > 1
        rho = abs(error) - 0.5 if linear_part else 0.5 * error**2
        conservative = np.log(np.sum(np.exp(values))) - now
        losses.append(batch.weight[i] * (rho + cql_alpha * conservative))
        errors.append(error)
        chosen.append(now)
    return np.mean(losses), np.array(errors), np.mean(chosen)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("huber", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("cql_alpha", "first_action"), [(0.0, 0), (0.5, 0), (0.0, -2)])
def test_loss_equals_the_twin(rng, double, huber, rescale, cql_alpha, first_action):
    """Every option gives what its formula says."""
    online, q = linear(rng)
    target, q_target = linear(rng)
    batch = make_batch(rng, first_action=first_action)
    options = {
        "double": double,
        "huber": huber,
        "rescale": rescale,
        "cql_alpha": cql_alpha,
        "first_action": first_action,
    }
    result = dqn_loss(online, target, to_torch(batch), **options)
    loss, errors, mean_q = twin(q, q_target, batch, **options)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.td_error.numpy() == pytest.approx(errors, rel=1e-4, abs=1e-4)
    assert result.mean_q.item() == pytest.approx(mean_q, rel=1e-4)


def test_rescaling_goes_back(rng):
    """For values of every size; and it is nearly the identity around 0."""
    values = torch.as_tensor(np.concatenate([rng.normal(size=50) * 10.0**k for k in range(-3, 5)])).float()
    assert torch.allclose(unscaled(rescaled(values)), values, rtol=1e-4, atol=1e-6)
    assert (rescaled(values).abs() <= values.abs()).all()


def test_terminated_transitions_do_not_bootstrap(rng):
    """A discount of 0 leaves the return alone, whatever the target network says."""
    online, _ = linear(rng)
    batch = make_batch(rng)
    goal = td_target(online, online, to_torch(batch)).numpy()
    ended = batch.discount == 0
    assert ended.any()
    assert (goal[ended] == batch.reward[ended]).all()


def test_gradient_reaches_the_online_network_alone(rng):
    """Targets are constants: no gradient flows through them."""
    online, _ = linear(rng)
    target, _ = linear(rng)
    dqn_loss(online, target, to_torch(make_batch(rng))).loss.backward()
    assert online.weight.grad is not None
    assert target.weight.grad is None


def test_conservative_term_lowers_actions_not_in_the_data(rng):
    """CQL(H) pushes down what the data do not show, relative to what they do."""
    online, _ = linear(rng)
    batch = to_torch(make_batch(rng))
    optimizer = torch.optim.SGD(online.parameters(), lr=0.1)

    def gap():
        values = online(batch.observation)
        chosen = values.gather(1, batch.action[:, None]).squeeze(1)
        return (values.logsumexp(1) - chosen).mean().item()

    before = gap()
    for _ in range(50):
        optimizer.zero_grad()
        dqn_loss(online, online, batch, cql_alpha=10.0).loss.backward()
        optimizer.step()
    assert gap() < before
