"""Packages a job for submission: the checked job file and the local files that it names."""

import itertools
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paliscribe import config, manifest
from paliscribe.config import JobConfig
from paliscribe.config.base import itself_if_one
from paliscribe.errors import UsageError
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.grammar.tasks import parse_tasks
from paliscribe.storage import StorageError, is_local, local_path, open_store
from paliscribe.submit.secrets import refuse_secrets

JOB_FILE = "job.yaml"
CHECKED_ROWS = 1000  # rows of a manifest whose images are checked for local paths
MAX_UPLOAD = 100 * 2**20  # bytes; the limit of Ray's dashboard
REMEDY = "not visible to the cluster: put it into object storage (s3://), or, if that path exists on every node, "
REMEDY += "pass --shared-paths"


@dataclass(frozen=True, slots=True)
class Package:
    """A job that a cluster can run. `values`: content of its job file. `files`: name in the package -> local path."""

    job: JobConfig
    values: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the job file and the other files into a folder."""
        (folder / JOB_FILE).write_text(yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True))
        for name, path in self.files.items():
            shutil.copyfile(path, folder / name)


def pack(file: Path, *, shared_paths: bool = False) -> Package:
    """Check a job file and package it for a cluster.

    `shared_paths`: local paths exist on every node, so they are made absolute and not uploaded.
    Raises UsageError: as `config.parse`, for local files that the cluster cannot see, and for secrets in addresses.
    """
    values = config.load_job(file)
    job = config.parse(values, source=str(file))
    refuse_secrets(values, str(file))
    parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
    for name, uri in [("output", job.output), *(("manifest", each) for each in job.manifest)]:
        _open(name, uri)
    changes, files = _shared_path_changes(job) if shared_paths else _upload_changes(job)
    values |= changes
    if (size := sum(path.stat().st_size for path in files.values())) > MAX_UPLOAD:
        names = ", ".join(map(str, files.values()))
        raise UsageError(
            f"{names}: {size:,} bytes; the upload limit is {MAX_UPLOAD:,}. Put it into object storage (s3://)"
        )
    return Package(config.parse(values, source=str(file)), values, files)


def _shared_path_changes(job: JobConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """Changes of the job file that make every local path absolute; no files to upload."""
    changes: dict[str, Any] = {}
    places = tuple(str(_path("manifest", uri)) if is_local(uri) else uri for uri in job.manifest)
    changes["manifest"] = itself_if_one(places)
    for name in ("output", "mask_decoder"):
        uri = getattr(job, name)
        if uri is not None and is_local(uri):
            changes[name] = str(_path(name, uri))
    if _is_local_folder(job.model.id):
        changes["model"] = job.model.model_dump(exclude_unset=True) | {"id": str(_path("model", job.model.id))}
    return changes, {}


def _upload_changes(job: JobConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """Changes of the job file that refer to uploaded files, and those files by name. Raises UsageError."""
    if is_local(job.output):
        raise UsageError(f"output {job.output}: a local folder, {REMEDY}")
    if _is_local_folder(job.model.id):
        raise UsageError(f"model {job.model.id}: a local folder, {REMEDY}")
    changes: dict[str, Any] = {}
    files: dict[str, Path] = {}
    manifests = list(job.manifest)
    for number, uri in enumerate(manifests):
        if is_local(uri):
            path = _path("manifest", uri)
            if path.is_dir() or "*" in uri:
                raise UsageError(f"manifest {uri}: a local folder or pattern, {REMEDY}")
            _check_images(job, uri, path)
            manifests[number] = name = _safe(f"manifest-{number}" if number else "manifest", path)
            files[name] = path
    changes["manifest"] = itself_if_one(tuple(manifests))
    if job.mask_decoder is not None and is_local(job.mask_decoder):
        path = _path("mask_decoder", job.mask_decoder)
        try:
            MaskDecoder.from_npz(path.read_bytes())
        except OSError as error:
            raise UsageError(f"mask_decoder {job.mask_decoder}: {error.strerror}") from None
        changes["mask_decoder"] = _safe("mask-decoder", path)
        files[changes["mask_decoder"]] = path
    return changes, files


def _check_images(job: JobConfig, uri: str, path: Path) -> None:
    """Raise UsageError for an uploaded manifest that is invalid or names local images."""
    rows = manifest.read(str(path), **job.columns)
    for row in itertools.islice(rows, CHECKED_ROWS):
        if row.image is not None and is_local(row.image):
            at = f"manifest {uri}, row {row.row + 1}"
            raise UsageError(f"{at}: image {row.image}: a local file, {REMEDY}")


def _open(name: str, uri: str) -> None:
    try:
        open_store(uri)
    except StorageError as error:
        raise UsageError(f"{name} {error}") from None


def _path(name: str, uri: str) -> Path:
    try:
        return local_path(uri).expanduser().absolute()
    except StorageError as error:
        raise UsageError(f"{name} {error}") from None


def _is_local_folder(model: str) -> bool:
    """Whether a model is a local folder, not `demo`, a prefix or a Hugging Face id: see `weights.locate`."""
    if model == "demo" or not is_local(model):
        return False
    return model.startswith(("/", "./", "../", "~", "file:")) or Path(model).expanduser().is_dir()


def _safe(purpose: str, path: Path) -> str:
    """A file name without characters special to shells, ignore files or URLs. Keeps the extension."""
    return f"{purpose}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}"
