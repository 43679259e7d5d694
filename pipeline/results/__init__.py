"""Results: their schema, the commit of shards, the publication of parts, and the lease of the one driver."""

from pipeline.results.commit import Marker, commit, done, read_committed, read_marker, write_shard
from pipeline.results.lease import Lease, Owner, hold, read_lease
from pipeline.results.publish import (
    SUCCESS,
    SUMMARY,
    Layout,
    PartMarker,
    begin_retry,
    finish,
    generation_base,
    publish_part,
    published,
    read_part,
    read_summary,
    retry_begun,
    run_name,
    sweep,
)
from pipeline.results.schema import ModelFacts, describe, record_values, schema, to_table

__all__ = [
    "SUCCESS",
    "SUMMARY",
    "Layout",
    "Lease",
    "Marker",
    "ModelFacts",
    "Owner",
    "PartMarker",
    "begin_retry",
    "commit",
    "describe",
    "done",
    "finish",
    "generation_base",
    "hold",
    "publish_part",
    "published",
    "read_committed",
    "read_lease",
    "read_marker",
    "read_part",
    "read_summary",
    "record_values",
    "retry_begun",
    "run_name",
    "schema",
    "sweep",
    "to_table",
    "write_shard",
]
