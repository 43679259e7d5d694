"""The run file: what a run was asked to do, so that only the same run goes on in its output."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from paliscribe.config import JobConfig, ModelSpec
from paliscribe.errors import RunError, UsageError
from paliscribe.storage import StorageError, Store, redacted

RUN_FILE = "_run/run.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides what a run publishes. Two runs with equal fingerprints give equal files."""

    manifest: str  # digest of rows, ids and columns
    rows: int
    tasks: tuple[str, ...]
    model: str
    revision: str
    precision: str
    quantization: str
    max_tokens: int | None
    shard_rows: int
    image_column: str
    id_column: str
    partition_by: tuple[str, ...]
    mask_decoder: str | None
    draft: bool = False  # absent from the run files of older versions, as are the next
    double_quantization: bool = False
    options_column: str | None = None

    @classmethod
    def of(cls, job: JobConfig, *, manifest: str, rows: int, revision: str) -> "Fingerprint":
        """The fingerprint of a job over a frozen manifest and a located model."""
        return cls(
            manifest=manifest,
            rows=rows,
            tasks=job.tasks,
            model=job.model.id,
            revision=revision,
            precision=job.model.precision,
            quantization=job.model.quantization,
            max_tokens=job.max_tokens,
            shard_rows=job.shard_rows,
            image_column=job.image_column,
            id_column=job.id_column,
            partition_by=job.partition_by,
            mask_decoder=job.mask_decoder,
            draft=job.fetch.draft,
            double_quantization=job.model.double_quantization,
            options_column=job.options_column,
        )

    def differences(self, now: "Fingerprint") -> list[str]:
        """What differs, in words, from the run that is there (self) to the one asked for."""
        found = []
        for name, then in asdict(self).items():
            asked = getattr(now, name)
            if then == asked or name == "rows":
                continue
            if name == "manifest":
                found.append(f"the manifest ({self.rows:,} rows then, {now.rows:,} rows now, or other content)")
            else:
                found.append(f"{name} ({_words(then)} then, {_words(asked)} now)")
        return found


@dataclass(frozen=True, slots=True)
class RunFile:
    """`_run/run.json`: the fingerprint, the job as it was given, and the model as it was resolved."""

    fingerprint: Fingerprint
    job: JobConfig
    model: ModelSpec  # its precision is never `auto`
    image_size: int

    def write(self, store: Store) -> None:
        """Write it once; a run file that is already there stays."""
        body = {
            "version": VERSION,
            "fingerprint": asdict(self.fingerprint),
            "job": self.job.model_dump(mode="json") | {"manifest": redacted(self.job.manifest)},  # no secrets here
            "model": self.model.model_dump(mode="json"),
            "image_size": self.image_size,
        }
        store.put_if_absent(RUN_FILE, json.dumps(body, indent=2).encode())

    @classmethod
    def read(cls, store: Store) -> "RunFile | None":
        """The run of this output, or None where there is none. Raises RunError for a file of another version."""
        try:
            body: dict[str, Any] = json.loads(store.get(RUN_FILE))
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        if body["version"] != VERSION:
            raise RunError(f"{store.uri}: this run was written by another version of paliscribe; use that one")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body["fingerprint"].items()}
        return cls(
            fingerprint=Fingerprint(**given),
            job=JobConfig.model_validate(body["job"]),
            model=ModelSpec.model_validate(body["model"]),
            image_size=body["image_size"],
        )


def refuse_changes(store: Store, then: Fingerprint, now: Fingerprint) -> None:
    """Raise UsageError, naming what differs, if an output already holds another run."""
    if found := then.differences(now):
        raise UsageError(
            f"{store.uri} holds a run that differs in {'; '.join(found)}. Give another output, or undo the change"
        )


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(repr(item) for item in value) or "none"
    return repr(value) if isinstance(value, str) else str(value)
