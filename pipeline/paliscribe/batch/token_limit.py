"""A resume with another `max_tokens`: it goes on where no committed record would be another one."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paliscribe import results
from paliscribe.errors import UsageError
from paliscribe.grammar.tasks import KINDS
from paliscribe.manifest import FrozenManifest
from paliscribe.results.run_file import Fingerprint
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order

READS = 4  # shards that are read at the same time


def only_the_limit_differs(then: Fingerprint, now: Fingerprint) -> bool:
    """Whether two runs differ in `max_tokens` alone."""
    return then.max_tokens != now.max_tokens and not replace(then, max_tokens=now.max_tokens).differences(now)


def check_committed(store: Store, frozen: FrozenManifest, then: Fingerprint, now: Fingerprint) -> None:
    """Raise UsageError if a committed record of an unfinished run depends on its `max_tokens`, which is another now.

    An answer that ended by itself does not, if it has fewer tokens than both limits. Rows with options may have a limit
    of their own, so one that is committed counts as dependent.
    """
    shards = np.flatnonzero(results.done(store, frozen.shards)).tolist()
    dependent = 0
    for table in in_order(
        lambda shard: results.read_committed(store, results.read_marker(store, shard)), shards, READS
    ):
        dependent += len(table) if now.options_column else _dependent(table, now.max_tokens)
    if dependent:
        limits = [limit or "by the task's kind" for limit in (then.max_tokens, now.max_tokens)]
        raise UsageError(
            f"{store.uri} contains a run with another max_tokens ({limits[0]} then, {limits[1]} now), on which "
            f"{dependent:,} committed records depend. Use another output, or undo the change"
        )


def _dependent(table: pa.Table, limit: int | None) -> int:
    """Number of records that would be others with this limit. Dead letters have no answer that it could cut."""
    kinds = table["kind"].to_pylist()
    limits = pa.array([limit or KINDS[kind].max_tokens for kind in kinds], pa.int32())
    cut = pc.equal(table["finish_reason"], "length")
    same = pc.if_else(cut, pc.equal(table["tokens"], limits), pc.less(table["tokens"], limits))
    return len(table) - (pc.sum(pc.fill_null(same, True)).as_py() or 0)
