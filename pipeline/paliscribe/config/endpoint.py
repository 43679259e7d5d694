"""Settings of an endpoint: models, access, limits."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from paliscribe.config.base import Settings, model_shorthand, one_or_many, validated
from paliscribe.config.fields import DecodeMemory, DecodeSeconds, MaxBytes, MaxPixels
from paliscribe.config.pool import ModelSpec, PoolConfig


class ImagesConfig(Settings):
    """Limits and permitted sources of images in online calls."""

    max_bytes: MaxBytes = 20 * 2**20
    max_pixels: MaxPixels = 50_000_000
    decode_seconds: DecodeSeconds = 5.0
    decode_memory: DecodeMemory = 2**30
    addresses: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        (),
        description="Addresses that images may be read from: `https://host/path/`, `https://*.host/`, "
        "`s3://bucket/prefix/`. Default: none.",
    )
    private: bool = Field(False, description="Allow hosts in `addresses` that have non-public IP addresses.")
    timeout: float = Field(20.0, gt=0, description="Time limit for fetching one image, in seconds.")


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class ServedModel(Settings):
    """One model of an endpoint, with its own replicas."""

    name: str | None = Field(
        None,
        min_length=1,
        description="Model name in requests. Default: the model's id, or `ID:POOL` if the pool has a `name`.",
    )
    model: Annotated[ModelSpec, BeforeValidator(model_shorthand)] = Field(
        default_factory=ModelSpec, description="The model: an id, or a mapping of its settings."
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Replicas and their resources.")

    @property
    def called(self) -> str:
        """The model name in requests."""
        return self.name or (f"{self.model.id}:{self.pool.name}" if self.pool.name else self.model.id)


class ServeConfig(Settings):
    """Settings of an endpoint."""

    models: tuple[ServedModel, ...] = Field(
        (ServedModel(),), min_length=1, description="The models; calls without a model name use the first."
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; beyond loopback, API keys are required."
    )
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on. 0: a free one, which `paliscribe serve` prints."
    )
    keys: str | None = Field(
        None,
        description="File of API keys, one per line: `KEY`, or `TENANT:KEY`; each KEY may be `sha256:HEX`. Read again "
        "when it changes. PALISCRIBE_API_KEYS adds keys.",
    )
    open: bool = Field(False, description="Listen beyond loopback without API keys: accept any client.")
    cors_origins: Annotated[tuple[Origin, ...], BeforeValidator(one_or_many)] = Field(
        (),
        description="Origins whose pages may call this endpoint from a browser, such as `https://chat.example.com`; "
        "`*`: any. Default: none.",
    )
    hosts: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        (),
        description="Further names in calls' `Host` header that this endpoint accepts where it needs no API key. "
        "Default: loopback addresses, `localhost` and `host`.",
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="Rate limit per tenant, in calls per second, with bursts of 10 s; without keys, of all clients.",
    )
    gateways: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of gateways, the processes that check calls and decode images. On a cluster two or more, "
        "on different nodes. They share `rate`.",
    )
    timeout: float = Field(60.0, gt=0, description="Time limit for a call, in seconds; then it gets a 504.")
    max_body: int = Field(64 * 2**20, ge=1, description="Maximum body size of a call, in bytes.")
    max_prompt: int = Field(2000, ge=1, description="Maximum prompt length, in characters.")
    last_picture: bool = Field(
        False,
        description="Chat completions take a longer conversation: they answer the text of its last user message about "
        "its last picture, and ignore all else. A call may set it too.",
    )
    max_requests: int = Field(64, ge=1, description="Maximum of images times tasks in one call to /v1/annotate.")
    files: str | None = Field(
        None,
        min_length=1,
        description="Folder or `s3://` prefix for the data of /v1/files, /v1/batches and /v1/jobs, visible to every "
        "node. Default: none; these three are disabled.",
    )
    max_file: int = Field(200 * 2**20, ge=1, description="Maximum file size in /v1/files, in bytes.")
    expire_after: int | None = Field(
        None,
        ge=3600,
        description="Seconds after which finished batches and background jobs, and files that no unfinished batch "
        "needs, are deleted. Default: none; they stay.",
    )
    outputs: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
        (),
        description="Folders or `s3://` prefixes that background jobs (/v1/jobs) may write below; they may read "
        "`images.addresses`. Default: none.",
    )
    images: ImagesConfig = Field(default_factory=ImagesConfig, description="Limits and permitted sources of images.")
    mask_decoder: str | None = Field(
        None, description="PaliGemma's `vae-oid.npz`, which decodes the masks of `segment`. The demo has its own."
    )

    @field_validator("models")
    @classmethod
    def _unique_names(cls, value: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [served.called for served in value]
        if len(set(names)) != len(names):
            raise ValueError("two models have the same name; set a different `name`, or a `pool.name`, for one of them")
        pools = [(served.model, served.pool.name) for served in value]
        if twice := next((pool for place, pool in enumerate(pools) if pool in pools[:place]), None):
            raise ValueError(
                f"two pools of {twice[0].id} have the same name, or none; set a different `pool.name` for one of them"
            )
        return value


def parse_serve(values: dict[str, Any], *, source: str = "settings") -> ServeConfig:
    """Validate an endpoint's raw values. Raises UsageError as `validated`."""
    return validated(ServeConfig, values, source)
