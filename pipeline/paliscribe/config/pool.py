"""Which weights answer, on how many replicas, and what each of them takes."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from paliscribe.config.base import Settings

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SMALLEST = 0.0001  # of a resource: Ray counts in ten-thousandths
# Resources of Ray's that have settings of their own, or that nobody may ask for.
RESERVED = re.compile(r"CPU|GPU|memory|object_store_memory|bundle|(node|accelerator_type|bundle_group\w*):.*")


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
        max_length=40,
        description="Of a job: the served pool that answers it; no other does, and nothing is started. Of an endpoint: "
        "what such jobs call this pool. Default: none; a job takes any served pool of its model, else one of its own.",
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
    compile: bool = Field(
        False,
        description="Have `torch.compile` fuse the model's smaller operations: minutes more until a replica is ready. "
        "What it gains on a GPU has not been measured.",
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
