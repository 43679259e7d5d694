"""Results of a run: schema, commit of shards, publication of parts, and the driver's lease."""

from paliscribe.results.commit import (
    Marker,
    commit,
    committed,
    done,
    find_marker,
    read_committed,
    read_marker,
    write_shard,
)
from paliscribe.results.layout import Layout, retried_generation
from paliscribe.results.lease import Lease, Owner, hold, read_lease
from paliscribe.results.publish import (
    SUCCESS,
    SUMMARY,
    PartMarker,
    finish,
    generation_base,
    publish_part,
    published,
    read_part,
    read_parts,
    run_name,
    summarise,
    sweep,
)
from paliscribe.results.retrying import begin_retry, read_failed, retries_begun, retry_begun, retry_rows
from paliscribe.results.schema import ModelFacts, describe, record_values, schema, to_table
from paliscribe.results.state import Damaged
from paliscribe.results.summary import read_summary

__all__ = [
    "SUCCESS",
    "SUMMARY",
    "Damaged",
    "Layout",
    "Lease",
    "Marker",
    "ModelFacts",
    "Owner",
    "PartMarker",
    "begin_retry",
    "commit",
    "committed",
    "describe",
    "done",
    "find_marker",
    "finish",
    "generation_base",
    "hold",
    "publish_part",
    "published",
    "read_committed",
    "read_failed",
    "read_lease",
    "read_marker",
    "read_part",
    "read_parts",
    "read_summary",
    "record_values",
    "retried_generation",
    "retries_begun",
    "retry_begun",
    "retry_rows",
    "run_name",
    "schema",
    "summarise",
    "sweep",
    "to_table",
    "write_shard",
]
