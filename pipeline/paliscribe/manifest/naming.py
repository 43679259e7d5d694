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
        alike: dict[str, list[str]] = {}
        for name in columns:
            if (carried := self.carried(name)) is None:
                continue
            if carried.lower() in RESERVED:
                taken.append(name)
            else:
                alike.setdefault(carried.lower(), []).append(name)
        problems: list[str] = []
        case = "" if set(taken) <= NAMES else " (case does not count)"
        if taken:
            problems.append(f"column {listed(sorted(taken))} has the name of a result column{case}; rename it")
        if twins := [name for names in alike.values() if len(names) > 1 for name in names]:
            problems.append(f"columns {listed(twins)} would be carried under one name, since case does not count")
        if not problems:
            return None
        first = cut((taken or twins)[0])
        ids = f", --id-column {shlex.quote(first)} takes it for the ids" if first.lower() == "id" else ""
        renamed = shlex.quote(f"{first}=NEW")
        ways_out = f"--rename-column {renamed} gives it another name, --drop-column {shlex.quote(first)} leaves it out"
        return f"{'; '.join(problems)}: {ways_out}{ids}"

    def check_all_found(self, columns: Collection[str], manifest: str) -> None:
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
