"""Continuous batching: requests in, answers out, whatever their lengths and whenever they come."""

from pipeline.engine.loop import Engine, EngineStats
from pipeline.engine.sizing import Sizes, engine_sizes, keep_to_share

__all__ = ["Engine", "EngineStats", "Sizes", "engine_sizes", "keep_to_share"]
