"""Status of a run, read from its files, without torch or Ray."""

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
        counts: dict[str, dict[str, int]] = {"statuses": {}, "error_kinds": {}}
        if summary is None:
            for marker in in_order(lambda shard: results.read_marker(store, shard), np.flatnonzero(done).tolist()):
                for name, found in (("statuses", marker.statuses), ("error_kinds", marker.error_kinds)):
                    for key, value in found.items():
                        counts[name][key] = counts[name].get(key, 0) + value
    except StorageError as error:
        raise UsageError(str(error)) from None
    working = holder is not None and not holder.is_dead
    found = summary or {
        "ok": counts["statuses"].get("ok", 0),
        "invalid": counts["statuses"].get("invalid", 0),
        "errors": counts["statuses"].get("error", 0),
        "error_kinds": counts["error_kinds"],
    }
    return {
        "output": output,
        "state": "finished" if finished else "running" if working else "interrupted",
        "driver": f"process {holder.pid} on {holder.host}" if holder is not None and working else None,
        "model": file.fingerprint.model if file else None,
        "tasks": list(file.fingerprint.tasks) if file else None,
        "rows": frozen.rows,
        "rows_done": frozen.rows_in(done),
        "shards": frozen.shards,
        "shards_done": int(done.sum()),
        **{key: found[key] for key in ("ok", "invalid", "errors", "error_kinds")},
        "retries": summary["retries"] if summary else 0,
    }
