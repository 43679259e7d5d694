"""Continuous batching: requests in, answers out, whatever their lengths and whenever they come."""

from paliscribe.engine.loop import Engine
from paliscribe.engine.sizing import Sizes, engine_sizes, limit_memory_to_share
from paliscribe.engine.stats import EngineStats

__all__ = ["Engine", "EngineStats", "Sizes", "engine_sizes", "limit_memory_to_share"]
