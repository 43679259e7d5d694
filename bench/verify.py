"""Time and memory of `paliscribe verify`: `python -m bench.verify OUTPUT --rows 1000000` makes a run and verifies it.

The run has two tasks and no model, see `made_run`. An output that is there is only verified.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from bench.made_run import make
from paliscribe import results
from paliscribe.storage import open_store

VERIFY = """
import json, resource, sys, time
from paliscribe.verify import verify
began = time.monotonic()
report = verify(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
figures = {"seconds": time.monotonic() - began, "cpu_seconds": used.ru_utime + used.ru_stime}
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # not the parent's
figures |= {"peak_mib": int(peak) / 1024}
print(json.dumps(report.as_dict() | {name: round(value, 1) for name, value in figures.items()}))
"""


def main() -> None:
    """Make the run if it is not there, and verify it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("--rows", type=int, default=500_000)
    given = parser.parse_args()
    store = open_store(given.output)
    if not store.exists(results.SUCCESS):
        began = time.monotonic()
        make(store, given.rows)
        print(
            f"made in {time.monotonic() - began:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
        )
    ran = subprocess.run([sys.executable, "-c", VERIFY, given.output], capture_output=True, text=True, check=True)
    print(json.dumps(json.loads(ran.stdout), indent=2))


if __name__ == "__main__":
    main()
