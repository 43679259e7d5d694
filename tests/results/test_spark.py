"""Spark itself reads a published folder, as the guide says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from results.made import Job
from results.test_publish import ODD, odd

from paliscribe.storage import open_store

SPARK = "pyspark==4.3.0"
READ = """
import json, sys
from pyspark.sql import SparkSession

settings = {
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
}
builder = SparkSession.builder.master("local[1]")
for name, value in settings.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
output, told = sys.argv[1], {}
for part in ("", "annotations", "errors"):
    frame = spark.read.option("recursiveFileLookup", "true").parquet(f"{output}/{part}")
    rows = frame.select("id", "task", "s", "S2", "text", "boxes").collect()
    told[part] = [frame.columns, list([row.id, row.task, row.s, row.S2, row.text, len(row.boxes)] for row in rows)]
try:
    spark.read.parquet(f"{output}/annotations")
except Exception as error:
    told["plain"] = str(error).splitlines()[0]
print(json.dumps(told))
"""


@pytest.mark.full
def test_spark(tmp_path: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("needs Java 17 or newer (Debian: openjdk-17-jre-headless)")
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    install = [python, "-m", "pip", "install", "-q", "--no-compile", SPARK]
    subprocess.run(install, check=True, capture_output=True, timeout=900)
    values = [{"s": value, "S2": number} for number, value in enumerate([*ODD, "Cat", "cat"])]
    job = Job(values, pa.schema([("s", pa.string()), ("S2", pa.int64())]), by=("task", "s"))
    job.annotate(store := open_store(str(tmp_path / "out")), odd)
    job.publish(store)

    quiet = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(tmp_path)}
    command = [python, "-c", READ, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    records = job.table(job.records(odd)).to_pylist()
    halves = {
        "": records,
        "annotations": [record for record in records if record["status"] != "error"],
        "errors": [record for record in records if record["status"] == "error"],
    }
    for half, expected in halves.items():
        columns, rows = told[half]
        assert columns == job.schema.names, half
        wanted = [
            [*(record[name] for name in ("id", "task", "s", "S2", "text")), len(record["boxes"])] for record in expected
        ]
        assert sorted(rows, key=lambda row: row[:2]) == sorted(wanted, key=lambda row: row[:2]), half
    assert "UNABLE_TO_INFER_SCHEMA" in told["plain"]  # as the guide says of Spark without the option
