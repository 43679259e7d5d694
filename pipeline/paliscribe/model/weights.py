"""Locate model weights: the built-in demo, a folder, an object store prefix, or a Hugging Face repository.

`locate` needs no torch and downloads no weights. It checks that the model exists, is readable and is a PaliGemma, and
resolves its revision, so that errors are reported in one line before a cluster starts.
"""

import hashlib
import json
import re
import socket
import urllib.request
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paliscribe.config import ModelSpec
from paliscribe.errors import UsageError, did_you_mean
from paliscribe.model.download import HASH_PREFIX, MODEL_SUFFIXES, download, model_objects, revision_of
from paliscribe.storage import StorageError, open_store

DEMO = "demo"
PREFIX = "s3://"
# PaliGemma 1 is published in float32, with a branch per other precision; PaliGemma 2 in bfloat16 only.
BRANCHED = re.compile(r"google/paligemma-3b-[\w-]+")
BRANCHES = ("bfloat16", "float16")
INDEX = "model.safetensors.index.json"  # present if the weights are in several files
CONNECT = 3.0  # seconds to connect to the hub
NO_SAFETENSORS = (
    "has no .safetensors file; weights in other formats, which can hold code, are not loaded: "
    "load them elsewhere and write them with `save_pretrained`"
)


@dataclass(frozen=True, slots=True)
class Located:
    """An existing model. `path`: a folder, a prefix, or a Hugging Face id to load at commit `revision`.

    The revision of a folder or prefix is a content hash.
    """

    path: str
    revision: str
    image_size: int  # pixels per side
    family: str  # model_type of the decoder: gemma or gemma2

    @property
    def is_folder(self) -> bool:
        """Whether `path` is a local folder."""
        return Path(self.path).is_dir()

    def pin(self, spec: ModelSpec) -> ModelSpec:
        """The spec at exactly this revision: loading it gives these weights or an error."""
        return spec.model_copy(update={"revision": self.revision})

    def local(self) -> tuple[str, str | None]:
        """Path and revision for transformers; downloads a prefix, once per node. Raises UsageError."""
        if self.is_folder:
            return self.path, None
        if self.path.startswith(PREFIX):
            return str(download(open_store(self.path), self.revision)), None
        return self.path, self.revision


def locate(spec: ModelSpec) -> Located:
    """Find the model and its exact revision. Raises UsageError: missing, gated, not a PaliGemma, unreachable."""
    folder = Path(str(files("paliscribe.demo") / "checkpoint")) if spec.id == DEMO else Path(spec.id).expanduser()
    if folder.is_dir():
        return _checked(spec, str(folder.resolve()), _config_of(folder), _digest(folder))
    if spec.id.startswith(PREFIX):
        return _locate_in_store(spec)
    if spec.id.startswith(("/", "./", "../", "~")):
        raise UsageError(f"model {spec.id}: no such folder")
    if "/" not in spec.id:
        meant = did_you_mean(spec.id, [DEMO])
        if not meant and spec.id.lower().startswith("paligemma"):
            meant = f" (did you mean 'google/{spec.id.lower()}'?)"
        raise UsageError(f"model {spec.id}: neither a folder nor a Hugging Face id (owner/name) nor {DEMO!r}{meant}")
    return _locate_on_hub(spec)


def default_branch(spec: ModelSpec) -> str | None:
    """The branch with weights in the spec's precision, if it sets no revision and the repository may have one."""
    given = spec.revision is not None or spec.precision not in BRANCHES
    return None if given or not BRANCHED.fullmatch(spec.id) else spec.precision


def _locate_in_store(spec: ModelSpec) -> Located:
    try:
        store = open_store(spec.id)
        objects = model_objects(store)
        names = {found.key for found in objects}
        if not names:
            raise UsageError(f"model {store.uri}: no model found")
        _check_files(store.uri, names)
        return _checked(spec, spec.id, _parsed(store.uri, store.get("config.json")), revision_of(objects))
    except StorageError as error:
        raise UsageError(f"model {error}") from None


def _locate_on_hub(spec: ModelSpec) -> Located:
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    if branch := default_branch(spec):
        try:
            return _hub_config(spec, branch)
        except (RevisionNotFoundError, LocalEntryNotFoundError):  # or not cached: try main
            pass
    try:
        return _hub_config(spec, spec.revision)
    except RevisionNotFoundError:
        raise UsageError(f"model {spec.id} has no revision {spec.revision!r}") from None
    except LocalEntryNotFoundError:
        raise UsageError(f"model {spec.id} is not in the local cache and Hugging Face cannot be reached") from None


def _hub_listens() -> bool:
    """Whether the hub can be connected to: its client would try for half a minute. Not tried behind an HTTP proxy."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return not constants.HF_HUB_OFFLINE
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((str(hub.hostname), port), timeout=CONNECT).close()
    except OSError:
        return False
    return True


def _hub_config(spec: ModelSpec, revision: str | None) -> Located:
    """Fetch the configuration at a revision from the hub, and check that it has loadable weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client's own httpx

    try:
        config = Path(hf_hub_download(spec.id, "config.json", revision=revision, local_files_only=not _hub_listens()))
    except HFValidationError:
        raise UsageError(f"model {spec.id}: neither a folder nor a Hugging Face id (owner/name)") from None
    except GatedRepoError:
        raise UsageError(
            f"model {spec.id} is gated: accept its licence at https://huggingface.co/{spec.id}, "
            "then set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"model {spec.id}: no such repository on Hugging Face (or a private one: set HF_TOKEN)"
        ) from None
    except (RevisionNotFoundError, LocalEntryNotFoundError):
        raise
    except EntryNotFoundError:
        raise UsageError(f"model {spec.id} has no config.json: it is not a transformers model") from None
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UsageError(f"model {spec.id}: request to Hugging Face failed: {error.__class__.__name__}") from None
    commit = config.parent.name
    if _without_safetensors(spec.id, commit):
        raise UsageError(f"model {spec.id} {NO_SAFETENSORS}")
    return _checked(spec, spec.id, _parsed(spec.id, config.read_bytes()), commit)


def _without_safetensors(repository: str, commit: str) -> bool:
    """Whether a repository has no safetensors. False if the hub cannot tell: then loading will fail."""
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # as above

    try:
        return not any(file_exists(repository, name, revision=commit) for name in ("model.safetensors", INDEX))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError):
        return False


def _checked(spec: ModelSpec, path: str, config: dict[str, Any], revision: str) -> Located:
    if config.get("model_type") != "paligemma":
        raise UsageError(f"model {spec.id} is a {config.get('model_type', 'model of unknown type')}, not a PaliGemma")
    if revision.startswith(HASH_PREFIX) and spec.revision not in (None, revision):
        if not str(spec.revision).startswith(HASH_PREFIX):
            raise UsageError(f"model {spec.id}: only Hugging Face repositories have revisions; drop `revision`")
        raise UsageError(f"model {spec.id}: it is at {revision} now, not at {spec.revision}")
    return Located(
        path=path,
        revision=revision,
        image_size=int(config["vision_config"].get("image_size", 224)),
        family=str(config["text_config"].get("model_type", "gemma")),
    )


def _config_of(folder: Path) -> dict[str, Any]:
    _check_files(str(folder), {path.name for path in folder.iterdir()})
    try:
        return _parsed(str(folder), (folder / "config.json").read_bytes())
    except OSError:
        raise UsageError(f"model {folder}: config.json cannot be read") from None


def _check_files(where: str, names: set[str]) -> None:
    if "config.json" not in names:
        raise UsageError(f"model {where}: no config.json; write one with `save_pretrained`")
    if not any(name.endswith(".safetensors") for name in names):
        raise UsageError(f"model {where} {NO_SAFETENSORS}")


def _parsed(where: str, config: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(config)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UsageError(f"model {where}: config.json cannot be read")
    return parsed


def _digest(folder: Path) -> str:
    """A folder's revision: a hash of every file that can affect an answer."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in MODEL_SUFFIXES):
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{HASH_PREFIX}{whole.hexdigest()[:16]}"
