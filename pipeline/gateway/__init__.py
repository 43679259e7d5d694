"""The online endpoint: HTTP in front of the replicas, in OpenAI's shape and in our own."""

from pipeline.gateway.app import create_app
from pipeline.gateway.service import Backend, Served, Service

__all__ = ["Backend", "Served", "Service", "create_app"]
