"""Status of a run, read from its files, without torch or Ray."""

from collections import Counter
from typing import Any

import numpy as np

from paliscribe import manifest, results
from paliscribe.errors import UsageError
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError, open_store
from paliscribe.storage.parallel import in_order


def run_status(output: str) -> dict[str, Any]:
    """The status of a run. Raises UsageError if `output` has no run or cannot be read."""
    try:
        store = open_store(output)
        file, frozen = RunFile.read(store), manifest.load(store)
        if frozen is None:
            raise UsageError(f"{output}: no run is here; `paliscribe annotate` starts one")
        holder = results.read_lease(store)
        summary = results.read_summary(store)
        done = results.done(store, frozen.shards)
        finished = store.exists(results.SUCCESS)
        known = summary or {"ok": 0, "invalid": 0, "errors": 0, "error_kinds": {}, "rows": 0}
        statuses = Counter({"ok": known["ok"], "invalid": known["invalid"], "error": known["errors"]})
        error_kinds = Counter(known["error_kinds"])
        if known["rows"] < frozen.rows:  # the shards that the summary does not have
            new = [shard for shard in np.flatnonzero(done).tolist() if frozen.first_row(shard) >= known["rows"]]
            for marker in in_order(lambda shard: results.read_marker(store, shard), new):
                statuses.update(marker.statuses)
                error_kinds.update(marker.error_kinds)
    except StorageError as error:
        raise UsageError(str(error)) from None
    working = holder is not None and not holder.is_dead
    return {
        "output": output,
        "state": "finished" if finished else "running" if working else "interrupted",
        "driver": f"process {holder.pid} on {holder.host}" if holder is not None and working else None,
        "waits": (holder.waits or None) if holder is not None and working else None,
        "model": file.fingerprint.model if file else None,
        "tasks": list(file.fingerprint.tasks) if file else None,
        "rows": frozen.rows,
        "rows_done": frozen.rows_in(done),
        "shards": frozen.shards,
        "shards_done": int(done.sum()),
        "ok": statuses["ok"],
        "invalid": statuses["invalid"],
        "errors": statuses["error"],
        "error_kinds": dict(error_kinds),
        "retries": summary["retries"] if summary else 0,
    }
