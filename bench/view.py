"""How fast `paliscribe view` opens and filters a large run: `python bench/view.py OUTPUT`."""

import subprocess
import sys
import time

import httpx

QUERIES = (
    "sort=score",
    "sort=boxes",
    "label=cat&sort=score",
    "text=dog&sort=score",
    "kind=detect&least=0.2&most=0.4",
    "status=invalid",
    "sort=score&offset=100000",
)


def main() -> None:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "paliscribe", "view", sys.argv[1], "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    try:
        with httpx.Client(base_url=address.partition("/?")[0], timeout=600, trust_env=False) as client:
            client.get(address).raise_for_status()
            client.get("/api/items?limit=60").raise_for_status()
            print(f"opened, first items   {time.perf_counter() - begun:6.2f} s")
            total = client.get("/api/counts").raise_for_status().json()["total"]
            print(f"first counts          {time.perf_counter() - begun:6.2f} s, {total:,} items")
            time.sleep(10)  # the short columns are in memory then
            for query in QUERIES:
                start = time.perf_counter()
                client.get(f"/api/items?limit=60&{query}").raise_for_status()
                middle = time.perf_counter()
                client.get(f"/api/counts?{query}").raise_for_status()
                end = time.perf_counter()
                print(f"{query:<32} items {middle - start:5.2f} s, counts {end - middle:5.2f} s")
    finally:
        process.send_signal(2)
        process.wait()


if __name__ == "__main__":
    main()
