"""Owns which leaf a draw falls on and how its bias is corrected; no steps, no storage."""

from diskreplay.priority.pages import HugePages, allow_huge_pages, zeros
from diskreplay.priority.schedule import LinearSchedule
from diskreplay.priority.sum_tree import SumTree
from diskreplay.priority.weights import importance_weights, leaf_value, to_priorities

__all__ = [
    "HugePages",
    "LinearSchedule",
    "SumTree",
    "allow_huge_pages",
    "importance_weights",
    "leaf_value",
    "to_priorities",
    "zeros",
]
