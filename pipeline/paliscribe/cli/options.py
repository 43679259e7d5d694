"""Flags that several commands have, and what is common to their values."""

from typing import Annotated, Any

import typer
from pydantic import BaseModel

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Append = Annotated[
    bool, typer.Option("--append", help="Add the rows whose ids are new to the finished run in the output.")
]


def option(settings: type[BaseModel], name: str, more: str = "", *, flag: str | None = None) -> Any:
    """A flag whose help text is the setting's description."""
    help_ = f"{settings.model_fields[name].description}{more}"
    return typer.Option(*filter(None, [flag]), help=help_)


def without_none(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}
