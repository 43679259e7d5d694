"""The run file: settings of a run, so that only the same run can be resumed in an output."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from paliscribe.config import JobConfig, ModelSpec
from paliscribe.errors import RunError, UsageError
from paliscribe.results import state
from paliscribe.results.publish import SUMMARY
from paliscribe.storage import Store, redacted

RUN_FILE = "_run/run.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that determines what a run publishes. Runs with equal fingerprints publish equal files."""

    manifest: str  # hash of rows, ids and columns
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
    draft: bool = False  # from here on absent from run files of older versions
    double_quantization: bool = False
    options_column: str | None = None
    drop_columns: tuple[str, ...] = ()
    rename_columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: JobConfig, *, manifest: str, rows: int, revision: str, shard_rows: int) -> "Fingerprint":
        """The fingerprint of a job over a frozen manifest and a located model. `shard_rows`: for `auto`."""
        return cls(
            manifest=manifest,
            rows=rows,
            tasks=job.tasks,
            model=job.model.id,
            revision=revision,
            precision=job.model.precision,
            quantization=job.model.quantization,
            max_tokens=job.max_tokens,
            shard_rows=job.shard_rows or shard_rows,
            image_column=job.image_column,
            id_column=job.id_column,
            partition_by=job.partition_by,
            mask_decoder=job.mask_decoder,
            draft=job.fetch.draft,
            double_quantization=job.model.double_quantization,
            options_column=job.options_column,
            drop_columns=job.drop_columns,
            rename_columns=job.rename_columns,
        )

    def differences(self, now: "Fingerprint") -> list[str]:
        """Differences between the existing run (self) and the requested one, as text."""
        found = []
        for name, then in asdict(self).items():
            requested = getattr(now, name)
            if then == requested or name == "rows":
                continue
            if name == "manifest":
                found.append(f"the manifest ({self.rows:,} rows then, {now.rows:,} rows now, or other content)")
            else:
                found.append(f"{name} ({_words(then)} then, {_words(requested)} now)")
        return found


@dataclass(frozen=True, slots=True)
class RunFile:
    """`_run/run.json`: the fingerprint, the job as submitted, and the resolved model."""

    fingerprint: Fingerprint
    job: JobConfig
    model: ModelSpec  # precision is never `auto`
    image_size: int

    def write(self, store: Store) -> None:
        """Write the run file. An existing one is kept."""
        store.put_if_absent(RUN_FILE, self._as_json())

    def replace(self, store: Store) -> None:
        """Write the run file in the place of another. Only with the run's lease."""
        store.put(RUN_FILE, self._as_json())

    def _as_json(self) -> bytes:
        plain = tuple(map(redacted, self.job.manifest))  # without secrets
        body = {
            "version": VERSION,
            "fingerprint": asdict(self.fingerprint),
            "job": self.job.model_copy(update={"manifest": plain}).model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "image_size": self.image_size,
        }
        return state.encode(body, indent=2)

    @classmethod
    def read(cls, store: Store) -> "RunFile | None":
        """The run file of an output, or None. Raises RunError for a file of another version, Damaged."""

        def build(body: dict[str, Any]) -> RunFile:
            if body["version"] != VERSION:
                raise RunError(f"{store.uri}: this run was written by another version of paliscribe; use that version")
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in body["fingerprint"].items()}
            made = cls(
                fingerprint=state.typed(Fingerprint)(given),
                job=JobConfig.model_validate(body["job"]),
                model=ModelSpec.model_validate(body["model"]),
                image_size=body["image_size"],
            )
            if type(made.image_size) is not int or made.job.tasks != made.fingerprint.tasks:
                raise ValueError("its settings do not fit together")
            return made

        return state.read(store, RUN_FILE, build)


def refuse_changes(store: Store, then: Fingerprint, now: Fingerprint, limit: int | None = None) -> None:
    """Raise UsageError, with the differences, if an output contains another run. `limit`: with which it began."""
    if found := then.differences(now):
        ways = "Use another output, or undo the change"
        in_manifest_only = replace(now, manifest=then.manifest, rows=then.rows) == then
        if in_manifest_only and limit is not None and not store.exists(SUMMARY):
            ways = f"It began with --limit {limit} and is not finished: finish it so, then add the others with --append"
        elif in_manifest_only and store.exists(SUMMARY):
            ways = "To annotate the rows whose ids are new, add --append; else use another output, or undo the change"
        raise UsageError(f"{store.uri} contains a run that differs in {'; '.join(found)}. {ways}")


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(repr(item) for item in value) or "none"
    return repr(value) if isinstance(value, str) else str(value)
