"""The table of the bench of faults: counts are added over runs of it, and one bad run is told."""

import json
from dataclasses import asdict
from pathlib import Path

from chaos.trial import HEAD, Tally

from bench import chaos


def test_counts_are_added_and_kept(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    name = "driver killed at any moment"
    once = Tally(3, 1, 1, 0, 0, 1, 1, 12, 8, [0.25, 0.5, 1.0])
    counts.write_text(json.dumps({name: asdict(once)}))
    tallies = chaos.read(counts)
    assert tallies == {name: once} and tallies[name].good
    tallies[name].add(Tally(1, 1, 1, 0, 0, 1, 1, 8, 8, [9.0]))
    row = f"| {name} | 4 | 2 | 2 | 0 | 0 | 2 | 2 | 1.25 | 0.75, 9.00 |"
    assert chaos.table(tallies).splitlines()[2:] == [row, row.replace(name, "all")]
    assert len({line.count("|") for line in (*HEAD.splitlines(), row)}) == 1
    assert not Tally(1, 1, 1, 1, 0, 0, 1).good and not Tally(1, 1, 1, 0, 0, 1, 1, wrong=["it hung"]).good
