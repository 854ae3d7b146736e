"""Data sets: raw release -> prepared directory, one builder each. `prepare` makes any of them by name."""

from data_pipelines.registry import BUILDERS, prepare

__all__ = ["BUILDERS", "prepare"]
