"""What an engine has done and holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done and holds; counts since it was made."""

    waiting: int
    waiting_online: int  # of these
    live: int
    slots: int
    steps: int
    occupancy: float  # share of decoded rows that held a request
    padding: float  # share of prefilled tokens that were padding
    embedded: int  # images that passed the encoder
    reused: int  # requests whose image had passed it before
