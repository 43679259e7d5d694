"""Addresses of pools."""

import uuid
from dataclasses import dataclass

TEMPORARY = "paliscribe-batch-"  # name prefix of applications that belong to one attempt at a run


@dataclass(frozen=True, slots=True)
class PoolAddress:
    """Address of a pool; any process of the cluster can call it."""

    application: str
    deployment: str
    replicas: int

    @property
    def is_temporary(self) -> bool:
        """Whether the pool belongs to one attempt at a run, and ends with it."""
        return self.application.startswith(TEMPORARY)


def temporary_name(run: str) -> str:
    """A pool name unique to one attempt at a run, so that a late reaper cannot delete a newer pool."""
    return f"{TEMPORARY}{run}-{uuid.uuid4().hex[:6]}"
