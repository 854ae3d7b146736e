"""Metrics: rules per benchmark, and the one table of them."""

from mmjax.evaluation.metrics.table import METRICS, Metric, Scores, find_metric, mean

__all__ = ["METRICS", "Metric", "Scores", "find_metric", "mean"]
