"""Settings of runs and endpoints: Pydantic models with defaults and descriptions.

YAML files and command-line flags fill the same models; unknown keys are errors.
"""

from paliscribe.config.base import Settings, load, plain_yaml, validated
from paliscribe.config.endpoint import ImagesConfig, ServeConfig, ServedModel, parse_serve
from paliscribe.config.files import load_endpoint, load_job
from paliscribe.config.job import FetchConfig, JobConfig, RequestOptions, parse
from paliscribe.config.pool import ModelSpec, PoolConfig

__all__ = [
    "FetchConfig",
    "ImagesConfig",
    "JobConfig",
    "ModelSpec",
    "PoolConfig",
    "RequestOptions",
    "ServeConfig",
    "ServedModel",
    "Settings",
    "load",
    "load_endpoint",
    "load_job",
    "parse",
    "parse_serve",
    "plain_yaml",
    "validated",
]
