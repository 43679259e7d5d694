"""Settings of a model and of its pool: weights, replicas, resources, scaling."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from paliscribe.config.base import Settings

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SMALLEST = 0.0001  # minimum amount of a resource: Ray's resolution
# Ray resources that have their own settings or are internal to Ray.
RESERVED = re.compile(r"CPU|GPU|memory|object_store_memory|bundle|(node|accelerator_type|bundle_group\w*):.*")


class ModelSpec(Settings):
    """The model: weights and precision."""

    id: str = Field(
        "demo",
        min_length=1,
        description="`demo` (the small model in the package), a Hugging Face id such as "
        "`google/paligemma-3b-mix-224`, or a folder or `s3://` prefix with the files that `save_pretrained` writes.",
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a Hugging Face repository. Default: `main`; for "
        "`google/paligemma-3b-*`, the branch of the precision, if it exists.",
    )
    precision: Precision = Field(
        "auto", description="Data type of the weights. `auto`: bfloat16 on a GPU, float32 on a CPU."
    )
    quantization: Quantization = Field(
        "none", description="Quantize the decoder's weights to 8 or 4 bits, with bitsandbytes."
    )
    double_quantization: bool = Field(
        False, description="With `nf4`: also quantize the scales to 8 bits, which saves 0.37 bits per weight."
    )

    @model_validator(mode="after")
    def _double_needs_nf4(self) -> "ModelSpec":
        if self.double_quantization and self.quantization != "nf4":
            raise ValueError("double_quantization needs `quantization: nf4`")
        return self

    def resolved(self, *, gpu: bool) -> "ModelSpec":
        """This spec with `auto` replaced by the default precision of the hardware."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bfloat16" if gpu else "float32"})


class PoolConfig(Settings):
    """A pool: number of replicas, resources per replica, autoscaling, engine sizes."""

    name: str | None = Field(
        None,
        pattern=NAME,
        max_length=40,
        description="In a job: the served pool to use; no other pool is used or started. In an endpoint: the name of "
        "this pool, for such jobs. Default: none; a job uses any served pool of its model, or starts its own.",
    )
    replicas: int | None = Field(
        None,
        ge=1,
        description="Number of replicas. Default: as many as fit the GPUs and `resources` of the cluster at the start, "
        "at least one; one without either.",
    )
    min_replicas: int | None = Field(
        None,
        ge=0,
        description="For autoscaling: minimum number of replicas, 0 allowed. Default: 1 with `max_replicas`.",
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="For autoscaling: maximum number of replicas. Default: with `min_replicas`, that of `replicas`.",
    )
    rows_per_replica: int | None = Field(
        None,
        ge=1,
        description="For autoscaling: target of queued and active requests per replica. Default: its `slots`.",
    )
    scale_up_after: float = Field(5.0, ge=0, description="Seconds of higher load before replicas are added.")
    scale_down_after: float = Field(300.0, ge=0, description="Seconds of lower load before replicas are removed.")
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs per replica: 0, a whole number, or a fraction below 1 of one GPU, which limits its memory "
        "too. Default: 1 with `accelerator_type` or if the cluster has GPUs now, else 0. On a cluster that adds GPU "
        "nodes on demand, set 1.",
    )
    accelerator_type: str | None = Field(
        None,
        pattern=NAME,
        max_length=60,
        description="GPU type, as Ray names it: `L4`, `A100`, `H100`. Default: any.",
    )
    resources: dict[str, float] = Field(
        {}, description="Custom Ray resources per replica, name to amount. Default: none."
    )
    cpus_per_replica: float = Field(0.5, gt=0, description="CPUs that Ray reserves per replica.")
    threads: int | None = Field(
        None, ge=1, description="Torch threads of a replica without a GPU. Default: the machine's cores minus one."
    )
    slots: int | None = Field(
        None,
        ge=1,
        description="Requests that a replica decodes at a time; 8 more slots are reserved for online requests. "
        "Default: 32 on a CPU; on a GPU, as many as fit into free memory, at most 248.",
    )
    text_tokens: int = Field(
        512, ge=1, description="Maximum length of prompt and answer, in tokens; with the image's tokens, a slot's size."
    )
    prefill_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of images and prompts in one prefill, during which active requests wait. "
        "Default: 4096 on a GPU, 1024 on a CPU.",
    )
    compile: bool = Field(
        False,
        description="Fuse the model's smaller operations with `torch.compile`. Adds minutes to a replica's start. The "
        "speedup on a GPU has not been measured.",
    )
    step_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds of one engine step after which a replica counts as hung and is replaced. Starting and "
        "waiting are no steps. Ten times as long with `compile`, since a step may compile.",
    )
    embedding_cache: int = Field(
        512, ge=0, description="A replica's cache of image embeddings, in MiB, for further tasks on the same images."
    )

    @model_validator(mode="after")
    def _fixed_or_autoscaled(self) -> "PoolConfig":
        if self.replicas is not None and (self.min_replicas is not None or self.max_replicas is not None):
            raise ValueError("set either `replicas`, or `min_replicas` and `max_replicas`")
        if (self.min_replicas or 0) > (self.max_replicas or 10**9):
            raise ValueError("min_replicas is above max_replicas")
        return self

    @field_validator("gpus_per_replica")
    @classmethod
    def _fraction_or_whole(cls, value: float | None) -> float | None:
        if value is not None and not (value.is_integer() or SMALLEST <= value < 1):
            raise ValueError(f"must be 0, a whole number, or a fraction of one GPU, from {SMALLEST} to below 1")
        return value

    @field_validator("resources")
    @classmethod
    def _custom_resources(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if not name.strip() or RESERVED.fullmatch(name):
                raise ValueError(f"{name!r} is not a custom resource; use cpus_per_replica and gpus_per_replica")
            if amount < SMALLEST:
                raise ValueError(f"{name!r} is {amount:g}, below the minimum of {SMALLEST}")
        return value

    @model_validator(mode="after")
    def _accelerator_needs_gpu(self) -> "PoolConfig":
        if self.accelerator_type is not None and self.gpus_per_replica == 0:
            raise ValueError("accelerator_type needs a GPU, but gpus_per_replica is 0")
        return self

    def gpus(self, *, available: bool) -> float:
        """GPUs per replica. `available`: whether the cluster has any now, for the default."""
        if self.gpus_per_replica is not None:
            return self.gpus_per_replica
        return 1.0 if available or self.accelerator_type is not None else 0.0

    @property
    def device_share(self) -> float:
        """The fraction of a GPU's memory that a replica may use, in (0, 1]."""
        share = self.gpus_per_replica
        return share if share is not None and 0 < share < 1 else 1.0
