"""A job: one run, from its manifest to its output."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from paliscribe.config.base import Settings, model_shorthand, one_or_many, validated
from paliscribe.config.fields import MAX_STOPS, MaxBytes, MaxPixels, MaxTokens, Seed, Temperature, TopP
from paliscribe.config.pool import SMALLEST, ModelSpec, PoolConfig


class RequestOptions(Settings):
    """What one request may ask for beside its prompt; what is not given is greedy, and as long as its kind allows."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0
    stop: tuple[str, ...] = Field((), max_length=MAX_STOPS)


class FetchConfig(Settings):
    """How images are fetched and what is refused."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Processes that fetch and decode. Default: one a core that the cluster has when the pool is up "
        "and the replicas leave over, at most 64.",
    )
    cpus_per_worker: float | None = Field(
        None,
        ge=SMALLEST,
        description="CPUs that Ray reserves for one of these processes. Default: 1, or less where they would not fit "
        "into the cluster as it is. Where CPU nodes come when they are asked for, say 1, and `workers`.",
    )
    concurrency: int = Field(32, ge=1, description="Objects that one of these processes fetches at a time.")
    retries: int = Field(4, ge=0, description="Repeats of a throttled or broken fetch, with backoff.")
    timeout: float = Field(30.0, gt=0, description="Seconds that one attempt may be without an answer.")
    max_bytes: MaxBytes = 256 * 2**20
    max_pixels: MaxPixels = 178_956_970
    draft: bool = Field(False, description="Decode large JPEGs at a reduced scale: faster, and not pixel-exact.")


class JobConfig(Settings):
    """One run: a manifest, a model, a list of tasks, an output location."""

    manifest: str = Field(
        min_length=1,
        description="JSONL, CSV, Parquet or text list of images (.gz and .zst too), or a folder or prefix to list.",
    )
    tasks: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        min_length=1, description="Prompts asked of every image; `{column}` is filled from the manifest."
    )
    output: str = Field(min_length=1, description="Folder or `s3://` prefix of this run alone.")
    model: Annotated[ModelSpec, BeforeValidator(model_shorthand)] = Field(
        default_factory=ModelSpec, description="The model: an id, or a mapping of its settings."
    )
    image_column: str = Field("image", min_length=1, description="Manifest column that holds the image's address.")
    id_column: str = Field("id", min_length=1, description="Manifest column that identifies a row; may be absent.")
    options_column: str | None = Field(
        None,
        min_length=1,
        description="Manifest column of a row's own options, as JSON: `max_tokens`, `temperature`, `top_p`, `seed`, "
        "`stop`.",
    )
    partition_by: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        ("task",), description="Folders of the output: `task`, `kind` or manifest columns, outermost first."
    )
    shard_rows: int = Field(
        256, ge=1, le=100_000, description="Rows that are committed together: the most that a crash repeats."
    )
    max_tokens: MaxTokens | None = Field(None, description="Longest answer in tokens. Default: by the task's kind.")
    max_error_rate: float = Field(
        0.5, ge=0, le=1, description="Share of requests that may fail before the run is stopped."
    )
    mask_decoder: str | None = Field(
        None, description="The authors' `vae-oid.npz`, to turn the codes of `segment` into masks."
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Replicas and their resources.")
    fetch: FetchConfig = Field(default_factory=FetchConfig, description="Fetching and decoding of images.")

    @field_validator("partition_by")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a column is named twice")
        return value

    @field_validator("pool")
    @classmethod
    def _taken_as_it_is(cls, value: PoolConfig) -> PoolConfig:
        if value.name is not None and value != PoolConfig(name=value.name):
            defaults = dict(PoolConfig(name=value.name))
            given = ", ".join(key for key, setting in value if setting != defaults[key])
            raise ValueError(f"a pool that is served is taken as it is: with `name` nothing else can be set ({given})")
        return value


def parse(values: dict[str, Any], *, source: str = "settings") -> JobConfig:
    """Check a run's raw values. Raises UsageError with every problem on one line, each with its key."""
    return validated(JobConfig, values, source)
