"""Offline deep Q-learning on a store: networks, loss, training loop, checkpoints, evaluation."""

from diskreplay.learning.checkpoint import Checkpoint, read_checkpoint
from diskreplay.learning.config import TrainConfig
from diskreplay.learning.curve import plot_curve
from diskreplay.learning.dqn import DQNLoss, dqn_loss
from diskreplay.learning.evaluation import Evaluator
from diskreplay.learning.metrics import read_metrics
from diskreplay.learning.network import QNetwork
from diskreplay.learning.policy import EpsilonGreedyPolicy, load_policy
from diskreplay.learning.report import TrainReport
from diskreplay.learning.trainer import Trainer, train

__all__ = [
    "Checkpoint",
    "DQNLoss",
    "EpsilonGreedyPolicy",
    "Evaluator",
    "QNetwork",
    "TrainConfig",
    "TrainReport",
    "Trainer",
    "dqn_loss",
    "load_policy",
    "plot_curve",
    "read_checkpoint",
    "read_metrics",
    "train",
]
