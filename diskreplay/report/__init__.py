"""Show what a store holds: a table for the terminal, a page of plots."""

from diskreplay.report.plot import plot_stats
from diskreplay.report.table import stats_table

__all__ = ["plot_stats", "stats_table"]
