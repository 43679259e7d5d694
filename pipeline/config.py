"""What a run is asked to do: every setting, its default and its description, once.

The YAML job file and the command line's flags fill the same models; unknown keys are errors.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4"]
Kind = TypeVar("Kind", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 40  # characters of a pool's name
SMALLEST = 0.0001  # of a resource: Ray counts in ten-thousandths
# Resources of Ray's that have settings of their own, or that nobody may ask for.
RESERVED = re.compile(r"CPU|GPU|memory|object_store_memory|bundle|(node|accelerator_type|bundle_group\w*):.*")


class Settings(BaseModel):
    """The base of all settings: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)


class ModelSpec(Settings):
    """Which weights answer, and in which arithmetic."""

    id: str = Field(
        "demo",
        min_length=1,
        description="`demo` (the small model inside the package), a Hugging Face id such as "
        "`google/paligemma-3b-mix-224`, or a folder or an `s3://` prefix that holds what `save_pretrained` writes.",
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a Hugging Face repository. Default: `main`, but of "
        "`google/paligemma-3b-*` the branch of the precision, if there is one.",
    )
    precision: Precision = Field(
        "auto", description="Arithmetic of the weights. `auto`: bfloat16 on a GPU, float32 on a CPU."
    )
    quantization: Quantization = Field(
        "none", description="Weights of the decoder in 8 or 4 bits, through bitsandbytes."
    )
    double_quantization: bool = Field(
        False, description="With `nf4`: their scales in 8 bits too, which saves 0.37 bits a weight."
    )

    @model_validator(mode="after")
    def _scales_of_4_bits(self) -> "ModelSpec":
        if self.double_quantization and self.quantization != "nf4":
            raise ValueError("double_quantization needs `quantization: nf4`")
        return self

    def resolved(self, *, gpu: bool) -> "ModelSpec":
        """This spec with `auto` replaced by what the pool's hardware calls for."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bfloat16" if gpu else "float32"})


class PoolConfig(Settings):
    """How many replicas of the model, and what each of them takes."""

    name: str | None = Field(
        None,
        pattern=NAME,
        max_length=LONGEST_NAME,
        description="Of a job: the served pool that answers it; no other does, and nothing is started. Of an endpoint: "
        "what such jobs call this pool. Default: of a job any served pool of its model, else one of its own; of an "
        "endpoint `models[].name`.",
    )
    replicas: int | None = Field(
        None,
        ge=1,
        description="Replicas of the model. Default: as many as the GPUs and `resources` that are there when it "
        "starts have room for, at least one; one without either.",
    )
    min_replicas: int | None = Field(
        None, ge=0, description="Instead of a fixed number: fewest replicas, 0 allowed. Default: 1 with `max_replicas`."
    )
    max_replicas: int | None = Field(
        None, ge=1, description="Most replicas. Default: with `min_replicas` as many as `replicas` would be."
    )
    rows_per_replica: int | None = Field(
        None,
        ge=1,
        description="Requests, waiting or under way, for which one replica is enough. Default: its `slots`.",
    )
    scale_up_after: float = Field(5.0, ge=0, description="Seconds for which more replicas must have been called for.")
    scale_down_after: float = Field(300.0, ge=0, description="Seconds for which fewer must have been enough.")
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs of a replica: 0, a whole number, or a share below 1 of one GPU, whose memory it keeps to. "
        "Default: 1 with `accelerator_type` or where the cluster has GPUs now, else 0. Where GPU nodes come when they "
        "are asked for, say 1.",
    )
    accelerator_type: str | None = Field(
        None,
        pattern=NAME,
        max_length=60,
        description="Kind of GPU, as Ray calls it: `L4`, `A100`, `H100`. Default: any.",
    )
    resources: dict[str, float] = Field(
        {}, description="Custom resources of Ray's that a replica takes, each with its amount. Default: none."
    )
    cpus_per_replica: float = Field(0.5, gt=0, description="CPUs that Ray reserves for a replica.")
    threads: int | None = Field(
        None, ge=1, description="Torch threads of a replica without a GPU. Default: the machine's cores less one."
    )
    slots: int | None = Field(
        None,
        ge=1,
        description="Requests that a replica decodes together. Default: 32 on a CPU; on a GPU what its free memory "
        "holds, at most 256.",
    )
    text_tokens: int = Field(
        512, ge=1, description="Longest prompt and answer together, in tokens: with the image's, the length of a slot."
    )
    prefill_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of images and prompts that a replica reads in one step, while others wait for their next "
        "token. Default: 4096 on a GPU, 1024 on a CPU.",
    )
    embedding_cache: int = Field(
        512, ge=0, description="MiB of image embeddings that a replica keeps for further tasks on the same images."
    )

    @model_validator(mode="after")
    def _fixed_or_scaled(self) -> "PoolConfig":
        if self.replicas is not None and (self.min_replicas is not None or self.max_replicas is not None):
            raise ValueError("either `replicas`, or `min_replicas` and `max_replicas`")
        if (self.min_replicas or 0) > (self.max_replicas or 10**9):
            raise ValueError("min_replicas is above max_replicas")
        return self

    @field_validator("gpus_per_replica")
    @classmethod
    def _a_share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and not (value.is_integer() or SMALLEST <= value < 1):
            raise ValueError(f"0, a whole number, or a share of one GPU from {SMALLEST} to below 1")
        return value

    @field_validator("resources")
    @classmethod
    def _custom(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if not name.strip() or RESERVED.fullmatch(name):
                raise ValueError(f"{name!r} is no custom resource; there are cpus_per_replica and gpus_per_replica")
            if amount < SMALLEST:
                raise ValueError(f"{name!r} is {amount:g}, less than the least that can be asked for, {SMALLEST}")
        return value

    @model_validator(mode="after")
    def _of_a_gpu(self) -> "PoolConfig":
        if self.accelerator_type is not None and self.gpus_per_replica == 0:
            raise ValueError("accelerator_type is a kind of GPU, and gpus_per_replica is 0")
        return self

    def gpus(self, *, there: bool) -> float:
        """GPUs of a replica. `there`: whether the cluster has any now; a pool that asks for one waits for it."""
        if self.gpus_per_replica is not None:
            return self.gpus_per_replica
        return 1.0 if there or self.accelerator_type is not None else 0.0

    @property
    def device_share(self) -> float:
        """The part of a GPU's memory that a replica may fill, above 0 to 1."""
        share = self.gpus_per_replica
        return share if share is not None and 0 < share < 1 else 1.0


class RequestOptions(Settings):
    """What one request may ask for beside its prompt; what is not given is greedy, and as long as its kind allows."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    stop: tuple[str, ...] = Field((), max_length=4)


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
    max_bytes: int = Field(256 * 2**20, ge=1, description="Largest encoded image, in bytes.")
    max_pixels: int = Field(178_956_970, ge=1, description="Largest image, in pixels; more is a decompression bomb.")
    draft: bool = Field(False, description="Decode large JPEGs at a reduced scale: faster, and not pixel-exact.")


def _model_shorthand(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class JobConfig(Settings):
    """One run: a manifest, a model, a list of tasks, an output location."""

    manifest: str = Field(
        min_length=1,
        description="JSONL, CSV, Parquet or text list of images (.gz and .zst too), or a folder or prefix to list.",
    )
    tasks: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1, description="Prompts asked of every image; `{column}` is filled from the manifest."
    )
    output: str = Field(min_length=1, description="Folder or `s3://` prefix of this run alone.")
    model: Annotated[ModelSpec, BeforeValidator(_model_shorthand)] = Field(
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
    partition_by: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        ("task",), description="Folders of the output: `task`, `kind` or manifest columns, outermost first."
    )
    shard_rows: int = Field(
        256, ge=1, le=100_000, description="Rows that are committed together: the most that a crash repeats."
    )
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens. Default: by the task's kind.")
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


class ImagesConfig(Settings):
    """What an online call may send as an image."""

    max_bytes: int = Field(20 * 2**20, ge=1, description="Largest encoded image, in bytes.")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest image, in pixels.")
    addresses: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        (),
        description="Where images may be read from: `https://host/path/`, `https://*.host/`, `s3://bucket/prefix/`. "
        "Default: nowhere.",
    )
    private: bool = Field(False, description="Allow hosts of these whose addresses are not public.")
    timeout: float = Field(20.0, gt=0, description="Seconds within which an image must have come from its address.")


class ServedModel(Settings):
    """One model of an endpoint, with replicas of its own."""

    name: str | None = Field(
        None,
        min_length=1,
        description="What clients call it. Default: the model's id, and `ID:POOL` where the pool has a `name`.",
    )
    model: Annotated[ModelSpec, BeforeValidator(_model_shorthand)] = Field(
        default_factory=ModelSpec, description="The model: an id, or a mapping of its settings."
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Replicas and their resources.")

    @property
    def called(self) -> str:
        """What clients call it."""
        return self.name or (f"{self.model.id}:{self.pool.name}" if self.pool.name else self.model.id)

    @property
    def named_pool(self) -> PoolConfig:
        """Its pool, under the name by which a job asks for it, if it has one that a pool can have."""
        named = self.name is not None and len(self.name) <= LONGEST_NAME and re.fullmatch(NAME, self.name)
        return self.pool.model_copy(update={"name": self.pool.name or (self.name if named else None)})


class ServeConfig(Settings):
    """An endpoint: which models, for whom, within which limits."""

    models: tuple[ServedModel, ...] = Field(
        (ServedModel(),), min_length=1, description="The models; calls that name none get the first."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; beyond loopback keys are needed.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    keys: str | None = Field(
        None, description="File of API keys, one a line, plain or as `sha256:HEX`; PALISCRIBE_API_KEYS adds to it."
    )
    open: bool = Field(False, description="Listen beyond loopback without keys: whoever reaches the port may call.")
    rate: float | None = Field(
        None,
        gt=0,
        description="Calls a second of one key, with ten seconds' worth saved up; without keys, of all together.",
    )
    timeout: float = Field(60.0, gt=0, description="Seconds within which a call is answered, or refused with 504.")
    max_body: int = Field(64 * 2**20, ge=1, description="Largest body of a call, in bytes.")
    max_prompt: int = Field(2000, ge=1, description="Longest prompt, in characters.")
    max_requests: int = Field(64, ge=1, description="Images times tasks of one call to /v1/annotate.")
    files: str | None = Field(
        None,
        min_length=1,
        description="Folder or `s3://` prefix that holds what /v1/files, /v1/batches and /v1/jobs work on, seen by "
        "every node. Default: the endpoint has none of these.",
    )
    max_file: int = Field(200 * 2**20, ge=1, description="Largest file of /v1/files, in bytes.")
    outputs: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        (),
        description="Folders or `s3://` prefixes below which jobs of /v1/jobs may write; they read what "
        "`images.addresses` lists. Default: nowhere.",
    )
    images: ImagesConfig = Field(default_factory=ImagesConfig, description="Limits of images.")
    mask_decoder: str | None = Field(None, description="The authors' `vae-oid.npz`, for masks of `segment`.")

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [served.called for served in value]
        if len(set(names)) != len(names):
            raise ValueError("two models have the same name; give one another `name`, or its pool a `name`")
        pools = [(served.model, served.named_pool.name) for served in value]
        if twice := next((pool for place, pool in enumerate(pools) if pool in pools[:place]), None):
            raise ValueError(f"two pools of {twice[0].id} have the same name; give one another `pool.name`")
        return value


def parse(values: dict[str, Any], *, source: str = "settings") -> JobConfig:
    """Check a run's raw values. Raises UsageError with every problem on one line, each with its key."""
    return _validated(JobConfig, values, source)


def parse_serve(values: dict[str, Any], *, source: str = "settings") -> ServeConfig:
    """Check an endpoint's raw values. Raises UsageError likewise."""
    return _validated(ServeConfig, values, source)


def _validated(kind: type[Kind], values: dict[str, Any], source: str) -> Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        inside = {e["loc"][:end] for e in found for end in range(len(e["loc"]))}
        # Pydantic counts the items of a list that are valid, so a list of one bad item is "too short" as well.
        kept = [e for e in found if e["type"] != "too_short" or e["loc"] not in inside]
        problems = "; ".join(_problem(kind, e["loc"], e["type"], e["msg"]) for e in kept)
        raise UsageError(f"{source}: {problems}") from None


def load(path: Path) -> dict[str, Any]:
    """Read a YAML job file into raw values, not yet checked. Raises UsageError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such job file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error.__class__.__name__})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise UsageError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a job file is a mapping of settings such as `manifest:` and `tasks:`")
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a small file a very large one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)


def plain_yaml(body: bytes) -> Any:
    """The values in YAML, or JSON, that a stranger has sent, not yet checked. Raises ValueError."""
    try:
        return yaml.load(body, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _problem(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        for part in location[:-1]:
            annotation = model.model_fields[part].annotation if isinstance(part, str) else model
            if get_origin(annotation) is tuple:
                annotation = get_args(annotation)[0]
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
        close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
        return f"unknown key {key!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
    if kind == "missing":
        return f"{key!r} is missing"
    message = message.removeprefix("Value error, ")
    return f"{key!r}: {message[0].lower()}{message[1:]}"
