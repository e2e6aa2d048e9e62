"""The machine that a figure was measured on: the package's own probes and description."""

from tilewright.baselines.machine import Probes, commit, describe, peak_rss_mb

__all__ = ["Probes", "commit", "describe", "peak_rss_mb"]
