"""Evaluation of runs: figures against truth with intervals, calibration of scores, comparison of two runs."""

from paliscribe.evaluation.calibration import ScoreMap, read_maps
from paliscribe.evaluation.evaluate import Options, evaluate, read_evaluation

__all__ = ["Options", "ScoreMap", "evaluate", "read_evaluation", "read_maps"]
