"""Settings of a job, which is one run: manifest, model, tasks, output."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from paliscribe.config.base import Settings, itself_if_one, model_shorthand, one_or_many, validated
from paliscribe.config.fields import (
    MAX_STOPS,
    DecodeMemory,
    DecodeSeconds,
    MaxBytes,
    MaxPixels,
    MaxTokens,
    Seed,
    Temperature,
    TopP,
)
from paliscribe.config.pool import SMALLEST, ModelSpec, PoolConfig
from paliscribe.errors import UsageError

HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"  # RFC 9110
HEADER_VALUE = r"^[\x20-\x7e]*$"


class RequestOptions(Settings):
    """Sampling options of one request. Default: greedy decoding, with the kind's `max_tokens`."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0
    stop: tuple[str, ...] = Field((), max_length=MAX_STOPS)


class FetchConfig(Settings):
    """Fetching and decoding of images: processes, retries, limits."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Stage processes, which fetch and decode. Default: one per CPU core that the replicas leave free "
        "in the cluster when the pool is ready, at most 64.",
    )
    cpus_per_worker: float | None = Field(
        None,
        ge=SMALLEST,
        description="CPUs that Ray reserves per stage process. Default: 1, or less if the processes would not fit into "
        "the existing cluster. On a cluster that adds CPU nodes on demand, set 1, and set `workers`.",
    )
    concurrency: int = Field(32, ge=1, description="Objects that a stage process fetches concurrently.")
    retries: int = Field(
        4,
        ge=0,
        description="Retries of a throttled or failed fetch, with backoff. A store (10 minutes) or web server (2) that "
        "answers no longer is waited for.",
    )
    timeout: float = Field(30.0, gt=0, description="Timeout of one attempt to connect or to read, in seconds.")
    max_bytes: MaxBytes = 256 * 2**20
    max_pixels: MaxPixels = 178_956_970
    decode_seconds: DecodeSeconds = 8.0
    decode_memory: DecodeMemory = 2**30
    user_agent: str = Field(
        "paliscribe",
        pattern=HEADER_VALUE,
        description="User-Agent of requests to web servers; some ask for a contact in it.",
    )
    headers: dict[
        str, dict[Annotated[str, Field(pattern=HEADER_NAME)], Annotated[str, Field(pattern=HEADER_VALUE)]]
    ] = Field({}, description="Headers of requests to a web server: host, or `*.host`, to names and values.")
    draft: bool = Field(False, description="Decode large JPEGs at a reduced scale: faster, but not pixel-exact.")


def _renamed(value: Any) -> Any:
    """Expand a mapping of old to new names to a list of `OLD=NEW`."""
    return [f"{old}={new}" for old, new in value.items()] if isinstance(value, dict) else one_or_many(value)


class JobConfig(Settings):
    """Settings of a run: manifest, model, tasks, output, and more."""

    manifest: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(one_or_many), PlainSerializer(itself_if_one)
    ] = Field(
        min_length=1,
        description="JSONL, JSON, CSV, Parquet or text list of images (.gz and .zst too); a zip or tar of images; a "
        "COCO file; a folder, a prefix or a pattern with `*` of such files or of images; or a list of these.",
    )
    tasks: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        min_length=1, description="Prompts for every image; `{column}` is filled from the manifest."
    )
    output: str = Field(min_length=1, description="Folder or `s3://` prefix that only this run uses.")
    model: Annotated[ModelSpec, BeforeValidator(model_shorthand)] = Field(
        default_factory=ModelSpec, description="The model: an id, or a mapping of its settings."
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="Rows: annotate the first so many of the manifest only. To annotate the others later, run again "
        "without it and with `--append`.",
    )
    image_column: str = Field("image", min_length=1, description="Manifest column with the image's address.")
    id_column: str = Field("id", min_length=1, description="Manifest column with the row's unique id; optional.")
    drop_columns: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        (), description="Manifest columns that are not carried into the results."
    )
    rename_columns: Annotated[tuple[str, ...], BeforeValidator(_renamed)] = Field(
        (), description="Manifest columns to carry under other names, as `OLD=NEW`."
    )
    options_column: str | None = Field(
        None,
        min_length=1,
        description="Manifest column with options per row, as JSON: `max_tokens`, `temperature`, `top_p`, `seed`, "
        "`stop`.",
    )
    partition_by: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        ("task",),
        max_length=16,
        description="Partition columns of the output: `task`, `kind` or manifest columns, outermost first.",
    )
    shard_rows: Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)] = Field(
        None,
        ge=1,
        le=100_000,
        description="Rows per shard, the unit of commit and of resume. Default, or `auto`: 256 up to a million rows, "
        "then more.",
    )
    max_tokens: MaxTokens | None = Field(
        None,
        description="Maximum answer length, in tokens, at most what `pool.text_tokens` leaves beside the prompt. "
        "Default: by the task's kind.",
    )
    deduplicate: bool = Field(
        False,
        description="Ask once about equal images (by their bytes) under one prompt; every row is kept, and records are "
        "the same. Each stage process does so among its last 8,192 different requests.",
    )
    max_error_rate: float = Field(0.5, ge=0, le=1, description="Share of failed requests above which the run stops.")
    stall_timeout: float | None = Field(
        1800.0,
        gt=0,
        description="Seconds without progress, such as an answer or a replica that becomes ready, after which the run "
        "ends with what it waits for; the same command resumes it. `null`: it waits for ever.",
    )
    mask_decoder: str | None = Field(
        None, description="PaliGemma's `vae-oid.npz`, which decodes the masks of `segment`. The demo has its own."
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Replicas and their resources.")
    fetch: FetchConfig = Field(default_factory=FetchConfig, description="Fetching and decoding of images.")

    @property
    def columns(self) -> dict[str, Any]:
        """The settings by which the manifest's columns are read."""
        return self.model_dump(include={"image_column", "id_column", "drop_columns", "rename_columns"})

    @field_validator("partition_by")
    @classmethod
    def _unique_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("duplicate column")
        if "" in value:
            raise ValueError("a column without a name; for no folders use []")
        return value

    @field_validator("rename_columns")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        pairs = [each.rpartition("=") for each in value]
        if wrong := [each for each, (_, equals, new) in zip(value, pairs, strict=True) if not (equals and new.strip())]:
            raise ValueError(f"{wrong[0]!r} is not of the form OLD=NEW")
        if len({old for old, _, _ in pairs}) != len(pairs):
            raise ValueError("duplicate column")
        return value

    @field_validator("pool")
    @classmethod
    def _name_only(cls, value: PoolConfig) -> PoolConfig:
        if value.name is not None and value != PoolConfig(name=value.name):
            defaults = dict(PoolConfig(name=value.name))
            given = ", ".join(key for key, setting in value if setting != defaults[key])
            raise ValueError(f"with `name` nothing else can be set, since that pool exists already; remove {given}")
        return value


def parse(values: dict[str, Any], *, source: str = "settings") -> JobConfig:
    """Validate a run's raw values. Raises UsageError as `validated`, or if no prompt fits beside `max_tokens`."""
    job = validated(JobConfig, values, source)
    most, room = job.max_tokens or 0, job.pool.text_tokens
    if most >= room and job.pool.name is None:
        raise UsageError(
            f"{source}: max_tokens {most:,} leaves no room for a prompt: a slot has {room:,} tokens for prompt and "
            f"answer. Lower max_tokens, or set pool.text_tokens to {most + 64:,} or more"
        )
    return job
