"""Engine statistics."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine: current sizes, and counts since it was created."""

    waiting: int
    waiting_online: int  # part of `waiting`
    live: int
    slots: int
    steps: int
    occupancy: float  # fraction of decoded rows that held a request
    padding: float  # fraction of prefilled tokens that were padding
    embedded: int  # images encoded
    reused: int  # requests whose image embedding was cached
    busy: float  # seconds spent in steps
