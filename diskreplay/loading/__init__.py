"""From step ids to batches of tensors: read-ahead, threads, worker processes. torch begins here."""

from diskreplay.loading.loader import ReplayLoader

__all__ = ["ReplayLoader"]
