"""How fast `paliscribe view` opens and filters a large run: `python -m bench.view OUTPUT --rows 500000`.

An output that is not there is made, with two annotations a row, see `made_run`. The pictures do not exist.
"""

import argparse
import subprocess
import sys
import time

import httpx

from bench.made_run import make
from paliscribe import results
from paliscribe.storage import open_store

QUERIES = (
    "sort=score",
    "sort=boxes",
    "label=cat&sort=score",
    "text=dog&sort=score",
    "kind=detect&least=0.2&most=0.4",
    "status=invalid",
    "sort=score&offset=100000",
)


def open_once(output: str, filters: bool) -> None:
    """Print the seconds from the command to the first items and counts. `filters`: time the filters too."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "paliscribe", "view", output, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    try:
        with httpx.Client(base_url=address.partition("/?")[0], timeout=600, trust_env=False) as client:
            client.get(address).raise_for_status()
            client.get("/api/items?limit=60").raise_for_status()
            items = time.perf_counter() - begun
            total = client.get("/api/counts").raise_for_status().json()["total"]
            counts = time.perf_counter() - begun
            print(f"first items {items:6.2f} s, first counts {counts:6.2f} s, {total:,} items")
            if filters:
                time.sleep(10)  # the short columns are in memory then
                _filter(client)
    finally:
        process.send_signal(2)
        process.wait()


def _filter(client: httpx.Client) -> None:
    for query in QUERIES:
        start = time.perf_counter()
        client.get(f"/api/items?limit=60&{query}").raise_for_status()
        middle = time.perf_counter()
        client.get(f"/api/counts?{query}").raise_for_status()
        end = time.perf_counter()
        print(f"{query:<32} items {middle - start:5.2f} s, counts {end - middle:5.2f} s")


def main() -> None:
    """Make the run if it is not there, open it several times, and filter it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    if not (store := open_store(given.output)).exists(results.SUCCESS):
        make(store, given.rows, boxes=True)
    for number in range(given.times):
        open_once(given.output, filters=number == given.times - 1)


if __name__ == "__main__":
    main()
