"""What a verification finds: damage, file by file, and what was checked."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

COUNTS = ("rows", "parts", "shards", "files", "records")  # of what was checked
SHOWN = 20  # findings in an answer; the others are counted

# What `--repair` does about a finding: writes the summary and `_SUCCESS` again; moves a file out of the way; makes the
# marker of a part, or the marker and file of a shard, again; publishes files of a part again, or withdraws the part;
# nothing, since nothing tells what was there.
Remedy = Literal["finish", "stray", "marker", "shard", "part", "lease", "none"]
WAYS: dict[Remedy, str] = {
    "finish": "--repair writes it again from the markers",
    "stray": "--repair moves it to _run/stray/",
    "marker": "--repair makes it again from what is left",
    "shard": "--repair makes it again from the published records, or has `paliscribe annotate` do the shard again",
    "part": "--repair publishes it again from the committed shards, or has `paliscribe annotate` do them again",
    "lease": "delete it if no driver works on this run",
    "none": "restore it from a copy, or an earlier version of the object; or annotate into another output",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Damage in one file. `part`, `generation`, `shard`: of a remedy that needs them."""

    key: str
    what: str
    remedy: Remedy = "none"
    part: int = -1
    generation: int = 0
    shard: int = -1

    def __str__(self) -> str:
        return f"{self.key}: {self.what}; {WAYS[self.remedy]}"


@dataclass
class Report:
    """The result of a verification.

    `state`: finished, unfinished, or running: `driver` holds the lease. `checked`: counts of what was checked.
    `findings`: all damage, of few words each.
    """

    output: str
    state: str = "finished"
    driver: str | None = None
    checked: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is damaged."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, with the first findings."""
        shown = [{"file": each.key, "what": each.what, "way": WAYS[each.remedy]} for each in self.findings[:SHOWN]]
        return {
            "output": self.output,
            "state": self.state,
            "driver": self.driver,
            "good": self.good,
            "checked": {name: self.checked[name] for name in COUNTS},
            "damages": len(self.findings),
            "findings": shown,
        }
