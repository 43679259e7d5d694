"""The names of a manifest's columns: which two are images and ids, and what the others are carried as."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from paliscribe.errors import UsageError
from paliscribe.manifest.messages import cut, listed, quoted
from paliscribe.results.schema import NAMES

RESERVED = frozenset(name.lower() for name in NAMES)
UNNAMED = "unnamed"  # start of the name that a column without one is carried under
MADE = re.compile(rf"{UNNAMED}(?:_[0-9]+_*)?")


class ColumnSettings(TypedDict, total=False):
    """Settings of a job about columns. `rename_columns`: `OLD=NEW`."""

    image_column: str
    id_column: str
    drop_columns: Sequence[str]
    rename_columns: Sequence[str]


@dataclass(frozen=True, slots=True)
class Naming:
    """`image`, `id`: columns. `dropped`: columns that are not carried. `renamed`: column -> name to carry it under."""

    image: str = "image"
    id: str = "id"
    dropped: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        image_column: str = "image",
        id_column: str = "id",
        drop_columns: Sequence[str] = (),
        rename_columns: Sequence[str] = (),
    ) -> "Naming":
        """The naming that a job's settings mean. Raises UsageError if they drop or rename a column that is needed."""
        renamed = {old: new for old, _, new in (each.rpartition("=") for each in rename_columns)}
        for name in (image_column, id_column):
            if name in renamed or (name in drop_columns and name == image_column):
                raise UsageError(f"column {quoted(name)} is the one of images or ids; it cannot be dropped or renamed")
        return cls(image_column, id_column, frozenset(drop_columns), renamed)

    def carried(self, name: str) -> str | None:
        """The name that a column is carried under; None if it is not."""
        if name in self.dropped or name in (self.image, self.id):
            return None
        return self.renamed.get(name, name if name.strip() else UNNAMED)

    def clash(self, columns: Collection[str]) -> str | None:
        """What is wrong with the names that columns would be carried under; None if nothing is.

        Case does not count: DuckDB and Spark take `Text` and `text` for one column.
        """
        taken: list[str] = []
        first: dict[str, str] = {}
        for name in columns:
            if (carried := self.carried(name)) is None:
                continue
            if carried.lower() in RESERVED:
                taken.append(name)
            elif (other := first.setdefault(carried.lower(), name)) != name:
                return (
                    f"columns {quoted(other)} and {quoted(name)} would both be carried as {quoted(carried)}, for case "
                    f"does not count in many readers; {_ways_out(name)}"
                )
        if not taken:
            return None
        taken.sort()
        case = "" if set(taken) <= NAMES else " (case does not count)"
        ids = f", or take it for the ids with --id-column {taken[0]}" if taken[0].lower() == "id" else ""
        return f"column {listed(taken)} has the name of a result column{case}; rename it: {_ways_out(taken[0])}{ids}"

    def check_all_found(self, columns: Iterable[str], manifest: str) -> None:
        """Raise UsageError if there is no column that is to be dropped or renamed."""
        if absent := sorted((self.dropped | self.renamed.keys()) - set(columns)):
            raise UsageError(
                f"manifest {manifest}: no column {listed(absent)}, which is to be dropped or renamed (columns: "
                f"{listed(columns)})"
            )

    def made(self, columns: Iterable[str]) -> list[str]:
        """The names that were made for columns without one."""
        carried = (self.carried(name) for name in columns if name not in self.renamed)
        return [name for name in carried if name is not None and MADE.fullmatch(name)]


def _ways_out(name: str) -> str:
    renamed = shlex.quote(f"{cut(name)}=NEW")
    return f"--rename-column {renamed} gives it another name, --drop-column {shlex.quote(cut(name))} leaves it out"
