"""An endpoint: which models, for whom, within which limits."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from paliscribe.config.base import Settings, model_shorthand, one_or_many, validated
from paliscribe.config.fields import MaxBytes, MaxPixels
from paliscribe.config.pool import ModelSpec, PoolConfig


class ImagesConfig(Settings):
    """What an online call may send as an image."""

    max_bytes: MaxBytes = 20 * 2**20
    max_pixels: MaxPixels = 50_000_000
    addresses: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
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
    model: Annotated[ModelSpec, BeforeValidator(model_shorthand)] = Field(
        default_factory=ModelSpec, description="The model: an id, or a mapping of its settings."
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Replicas and their resources.")

    @property
    def called(self) -> str:
        """What clients call it."""
        return self.name or (f"{self.model.id}:{self.pool.name}" if self.pool.name else self.model.id)


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
    outputs: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = Field(
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
        pools = [(served.model, served.pool.name) for served in value]
        if twice := next((pool for place, pool in enumerate(pools) if pool in pools[:place]), None):
            raise ValueError(f"two pools of {twice[0].id} have the same name, or none; give one another `pool.name`")
        return value


def parse_serve(values: dict[str, Any], *, source: str = "settings") -> ServeConfig:
    """Check an endpoint's raw values. Raises UsageError likewise."""
    return validated(ServeConfig, values, source)
