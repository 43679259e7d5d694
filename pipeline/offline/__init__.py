"""The driver's side of orders: batches and jobs that were asked for over HTTP, each an ordinary run."""

from pipeline.offline.drivers import Drivers
from pipeline.offline.work import Pooled

__all__ = ["Drivers", "Pooled"]
