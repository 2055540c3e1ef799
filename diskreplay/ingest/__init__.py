"""Bring steps in: rollouts of Gymnasium environments, numpy archives."""

from diskreplay.ingest.environments import make_env
from diskreplay.ingest.gym_rollout import ingest_gym
from diskreplay.ingest.npz import ingest_npz
from diskreplay.ingest.policy import Policy
from diskreplay.ingest.progress import IngestReport
from diskreplay.ingest.source import Source, parse_source

__all__ = [
    "IngestReport",
    "Policy",
    "Source",
    "ingest_gym",
    "ingest_npz",
    "make_env",
    "parse_source",
]
