"""Files of settings: job files and endpoint files."""

from pathlib import Path
from typing import Any

from paliscribe.config.base import Settings, load
from paliscribe.config.endpoint import ServeConfig
from paliscribe.config.job import JobConfig
from paliscribe.errors import UsageError

JOB, ENDPOINT = "job file", "endpoint file"
KINDS: dict[str, tuple[type[Settings], str]] = {  # of file -> its settings, and the command that takes it
    JOB: (JobConfig, "paliscribe annotate"),
    ENDPOINT: (ServeConfig, "paliscribe serve"),
}
WITH_ARTICLE = {JOB: f"a {JOB}", ENDPOINT: f"an {ENDPOINT}"}


def load_job(path: Path) -> dict[str, Any]:
    """Read a job file into raw values. Raises UsageError as `load`, or if it is another kind of file."""
    return _load(path, JOB, ENDPOINT)


def load_endpoint(path: Path) -> dict[str, Any]:
    """Read an endpoint file into raw values. Raises UsageError as `load_job`."""
    return _load(path, ENDPOINT, JOB)


def _load(path: Path, what: str, other: str) -> dict[str, Any]:
    if path.is_dir():
        ways = "; give a folder of images with --manifest" if what == JOB else ""
        raise UsageError(f"{path}: a folder, not {WITH_ARTICLE[what]}{ways}")
    values = load(path, what)
    if "applications" in values:
        raise UsageError(f"{path}: a file for `serve deploy`; its `args` are the settings of an {ENDPOINT}")
    (kind, command), (other_kind, other_command) = KINDS[what], KINDS[other]
    names = set(map(str, values))
    foreign = sorted(names & (other_kind.model_fields.keys() - kind.model_fields.keys()))
    if foreign and not names & (kind.model_fields.keys() - other_kind.model_fields.keys()):
        raise UsageError(
            f"{path}: this is {WITH_ARTICLE[other]}, for `{other_command}`, by its setting `{foreign[0]}`; "
            f"`{command}` takes {WITH_ARTICLE[what]}"
        )
    return values
