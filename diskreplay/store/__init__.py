"""ReplayStore and StreamWriter: create, open, append, commit, refresh, read, evict, stats, verify."""

from diskreplay.store.replay_store import ReplayStore
from diskreplay.store.stats import EpisodeTable, StoreStats
from diskreplay.store.writer import StreamWriter

__all__ = ["EpisodeTable", "ReplayStore", "StoreStats", "StreamWriter"]
